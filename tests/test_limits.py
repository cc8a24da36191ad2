"""Limits of size: a server can make a call end, and not the process."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentproto import (
    NotFoundError,
    ProtocolError,
    RetryPolicy,
    StreamInterruptedError,
    TooLargeError,
    TransportError,
)
from agentproto._sse import SSEDecoder

from .both import Flavour
from .raw_server import BOUND, Connection, Script, answer, events, head, json_answer, raw_server

SSE = {"content_type": "text/event-stream"}
JSON = {"content_type": "application/json"}
META = b'event: metadata\ndata: {"run_id":"r1"}\nid: 1\n\n'
MEBI = 2**20
FAST = RetryPolicy(first_delay=0)


def body_of(pieces: Callable[[], Iterator[bytes]], **headers: str) -> Script:
    """A body that ends with its pieces, or when the client closes."""

    async def script(connection: Connection) -> None:
        await connection.send(head(200, **headers, connection="close"))
        for piece in pieces():
            await connection.send(piece)

    return script


def endless(piece: bytes, first: bytes = b"") -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield first
        while True:
            yield piece

    return pieces


def bomb(first: bytes) -> Callable[[], Iterator[bytes]]:
    """512 MiB, compressed."""

    def pieces() -> Iterator[bytes]:
        deflate = zlib.compressobj(1, wbits=31)
        yield deflate.compress(first)
        for _ in range(512):
            yield deflate.compress(b" " * MEBI)
        yield deflate.flush()

    return pieces


def event_of(size: int) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield META + b"data: "
        for _ in range(size // MEBI):
            yield b"x" * MEBI
        yield b"\n\n"

    return pieces


WAITS: dict[str, Script] = {
    "a 512 MiB bomb": body_of(bomb(b'{"a":"'), **JSON, content_encoding="gzip"),
    "an endless body": body_of(endless(b" " * MEBI), **JSON),
    "a body of 100 MiB": answer(200, b" " * (100 * MEBI), **JSON),
}
STREAMS: dict[str, Script] = {
    "a 512 MiB bomb of a stream": body_of(bomb(META + b"data: "), **SSE, content_encoding="gzip"),
    "an event of 100 MiB": body_of(event_of(100 * MEBI), **SSE),
    "an endless line": body_of(endless(b"x" * MEBI, META), **SSE),
    "an endless comment": body_of(endless(b"x" * MEBI, META + b":"), **SSE),
    "an endless id": body_of(endless(b"x" * MEBI, META + b"id: "), **SSE),
    "endless data lines": body_of(endless(b"data: 12345678901234\n" * 50_000, META), **SSE),
}

CHILD = """
import asyncio, json, sys
from pathlib import Path
from tests.both import Aiohttp, Async, Blocking
from agentproto import AgentProtoError

def most_memory():
    # Not ru_maxrss: it begins with that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

async def main(kind, url, waits, streams):
    flavour = {"Async": Async, "Aiohttp": Aiohttp, "Blocking": Blocking}[kind]()
    client = flavour.client(url)
    before, told = most_memory(), {}
    for case in [*waits, *streams]:
        events = []
        try:
            if case in waits:
                await flavour.call(client.create_and_wait_run, headers={"x-case": case})
            else:
                async with flavour.entered(
                    client.create_and_stream_run(headers={"x-case": case})
                ) as stream:
                    while True:
                        events += await flavour.take(stream, 1)
        except AgentProtoError as error:
            told[case] = (type(error).__name__, str(error), len(events), most_memory() - before)
    await flavour.close(client)
    print(json.dumps(told))

asyncio.run(main(*json.loads(sys.argv[1])))
"""


def test_endless_answers_end_at_the_limit_in_bounded_memory(flavour: Flavour) -> None:
    """FAULTS: bomb, huge event, endless line, huge body: TooLargeError, not retried."""
    cases = {**WAITS, **STREAMS}

    async def by_case(connection: Connection) -> None:
        await cases[connection.request.headers["x-case"]](connection)

    with raw_server(by_case) as server:
        asked = json.dumps([type(flavour).__name__, server.url, list(WAITS), list(STREAMS)])
        told = json.loads(
            subprocess.run(
                [sys.executable, "-c", CHILD, asked],
                cwd=Path(__file__).parent.parent,
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            ).stdout
        )
        assert sorted(told) == sorted(cases)
        for case, (kind, message, delivered, growth) in told.items():
            assert kind == "TooLargeError", (case, message)
            assert "67108864 bytes (max_" in message
            assert delivered == (1 if case in STREAMS else 0)
            assert growth < 200 * MEBI, (case, growth // MEBI)
    assert len(server.requests) == len(cases)


async def test_event_over_the_limit_is_told_after_those_before_it(flavour: Flavour) -> None:
    """FAULTS: TooLargeError at the limit; what came before it, also at once, is handed over."""
    pieces = META + b"data: 12\nid: 2\n\n" + b"data: 1234567890123456789\nid: 3\n\ndata: 1\n\n"
    with raw_server(events(pieces)) as server:
        client = flavour.client(server.url, max_event_bytes=18)
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert [event.id for event in await flavour.take(stream, 2)] == ["1", "2"]
        told = r"an event of more than 18 bytes \(max_event_bytes\)"
        with pytest.raises(TooLargeError, match=told) as caught:
            await flavour.collect(stream)
        await flavour.close(client)
    error = caught.value
    assert (error.run_id, error.status_code, error.last_event_id) == ("r1", 200, "2")
    assert stream.ended == "cut"
    assert len(server.requests) == 1


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("data", "fits"),
    [(b"data: 12345678", True), (b"data: 123456789", False), (b"data: 123\ndata: 1234", True),
     (b"data: 123\ndata: 12345", False), (b": a comment ..\ndata: 1", True),
     (b": a comment ...\ndata: 1", False)],
)  # fmt: skip
async def test_limit_of_an_event_is_exact(
    flavour: Flavour, data: bytes, fits: bool, size: int
) -> None:
    """An event may have as many bytes as the limit says, however they are cut."""
    whole = data + b"\n\n"
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    with raw_server(events(*pieces)) as server:
        client = flavour.client(server.url, max_event_bytes=8)
        stream = client.create_and_stream_run()
        if fits:
            assert len(await flavour.blocks(stream)) == 1
        else:
            with pytest.raises(TooLargeError):
                await flavour.blocks(stream)
        await flavour.close(client)


def test_short_lines_take_up_no_more_than_their_bytes() -> None:
    """A line that costs the server three bytes must not cost the client a hundred."""
    decoder = SSEDecoder()
    piece = b"data:ab\n" * 10_000
    decoder.feed(piece)
    tracemalloc.start()
    try:
        for _ in range(50):
            decoder.feed(piece)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * 3 * 500_000


async def test_limit_of_an_answer_is_exact(flavour: Flavour) -> None:
    """An answer may have as many bytes as the limit says, after decompression."""
    body = b'{"values":{}}'
    for coding, sent in (("identity", body), ("gzip", gzip.compress(body))):
        with raw_server(json_answer(sent, content_encoding=coding)) as server:
            client = flavour.client(server.url, max_response_bytes=len(body))
            assert (await flavour.call(client.wait_run, "r1")).values == {}
            await flavour.close(client)
            client = flavour.client(server.url, max_response_bytes=len(body) - 1)
            with pytest.raises(TooLargeError, match=r"12 bytes \(max_response_bytes\)") as caught:
                await flavour.call(client.wait_run, "r1")
            await flavour.close(client)
        assert (caught.value.run_id, caught.value.status_code) == ("r1", 200)
        assert len(server.requests) == 2


CODED = [
    ("gzip, gzip", gzip.compress(gzip.compress(b"{}"))),
    ("br", b"\x8b\x00\x80{}\x03"),
]


@pytest.mark.parametrize(("coding", "body"), CODED)
async def test_coding_that_was_not_asked_for_is_a_protocol_error(
    flavour: Flavour, coding: str, body: bytes
) -> None:
    """FAULTS: double gzip is refused; so is what was not asked for."""
    with raw_server(json_answer(body, content_encoding=coding)) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(ProtocolError, match="compressed once") as caught:
            await flavour.call(client.wait_run, "r1")
        assert (caught.value.run_id, caught.value.status_code) == ("r1", 200)
        await flavour.close(client)
    with raw_server(events(body, content_encoding=coding, x_request_id="q1")) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(ProtocolError, match="compressed once") as caught:
            await flavour.collect(client.stream_run("r1"))
        assert (caught.value.run_id, caught.value.request_id) == ("r1", "q1")
        await flavour.close(client)
    assert [r.headers["accept-encoding"] for r in server.requests] == ["identity"]


async def test_status_counts_more_than_the_coding_of_an_error(flavour: Flavour) -> None:
    """FAULTS: an error body of any kind is typed by status."""
    with raw_server(json_answer(b"zz", 404, content_encoding="br")) as server:
        client = flavour.client(server.url)
        with pytest.raises(NotFoundError):
            await flavour.call(client.get_run, "r1")
        await flavour.close(client)
    body = gzip.compress(b'{"message":"no such run"}')
    with raw_server(json_answer(body, 404, content_encoding="gzip")) as server:
        client = flavour.client(server.url)
        with pytest.raises(NotFoundError, match="no such run"):
            await flavour.call(client.get_run, "r1")
        await flavour.close(client)


EVENTS = META + b"data: 1\nid: 2\n\nevent: end\ndata: {}\nid: 3\n\n"


async def test_compressed_stream_is_read(flavour: Flavour) -> None:
    """Some middleware compresses a stream although identity was asked for."""
    deflate = zlib.compressobj(wbits=31)
    pieces = [
        deflate.compress(EVENTS[i : i + 9]) + deflate.flush(zlib.Z_SYNC_FLUSH)
        for i in range(0, len(EVENTS), 9)
    ]
    for sent in (pieces, [*pieces[:-1], pieces[-1] + deflate.flush()]):
        with raw_server(events(*sent, content_encoding="gzip")) as server:
            client = flavour.client(server.url)
            stream = client.create_and_stream_run()
            assert [event.id for event in await flavour.collect(stream)] == ["1", "2", "3"]
            await flavour.close(client)


BROKEN = gzip.compress(b'{"values":{}}')[:-3] + b"xyz"
SHORT = gzip.compress(b'{"values":{}}')[:-3]


@pytest.mark.parametrize("body", [BROKEN, SHORT, b"no gzip"])
async def test_broken_gzip_of_a_call_is_typed(flavour: Flavour, body: bytes) -> None:
    """FAULTS: gzip broken: a create is not repeated, a wait for a run is."""
    with raw_server(json_answer(body, content_encoding="gzip")) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(TransportError, match="compressed body is broken"):
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert len(server.requests) == 1
    fine = json_answer('{"values":{"n":1}}')
    with raw_server(json_answer(body, content_encoding="gzip"), fine) as server:
        client = flavour.client(server.url, retry=FAST)
        assert (await flavour.call(client.wait_run, "r1")).values == {"n": 1}
        await flavour.close(client)


async def test_broken_gzip_of_a_stream_is_a_cut(flavour: Flavour) -> None:
    """FAULTS: gzip broken: a stream is joined where a cut one is, else interrupted."""
    deflate = zlib.compressobj(wbits=31)
    begun = deflate.compress(META) + deflate.flush(zlib.Z_SYNC_FLUSH)
    after = b"data: 1\nid: 2\n\nevent: end\ndata: {}\nid: 3\n\n"
    is_read = threading.Event()

    async def breaks(connection: Connection) -> None:
        await connection.send(head(200, **SSE, content_encoding="gzip") + begun)
        # What comes in one piece with it is lost with it.
        assert await asyncio.to_thread(is_read.wait, BOUND)
        await connection.send(b"\xff")

    with raw_server(breaks, events(after)) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.stream_run("r1")
        events_seen = await flavour.take(stream, 1)
        is_read.set()
        events_seen += await flavour.collect(stream)
        assert [event.id for event in events_seen] == ["1", "2", "3"]
        await flavour.close(client)
    assert server.requests[1].headers["last-event-id"] == "1"
    with raw_server(events(b"no gzip", content_encoding="gzip")) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(StreamInterruptedError, match="compressed body is broken"):
            await flavour.collect(client.create_and_stream_run(on_disconnect="continue"))
        await flavour.close(client)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["max_event_bytes", "max_response_bytes"])
def test_limit_that_makes_no_sense_is_refused(flavour: Flavour, name: str) -> None:
    """Bad arguments are told before anything is sent."""
    with pytest.raises(ValueError, match=f"{name}: expected 1 byte or more, got 0"):
        flavour.client("http://127.0.0.1:9", **{name: 0})
    for odd in (None, 1.5, True):
        with pytest.raises(TypeError, match=f"{name}: expected bytes as an int, got"):
            flavour.client("http://127.0.0.1:9", **{name: odd})
