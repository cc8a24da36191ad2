"""Joined chunks: whatever arrives, however it is cut, parsers read the same bodies and find the
same faults, in fewer chunks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import h11
import httpx
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser
from hypothesis import given
from hypothesis import strategies as st

from agentproto import RunsClient
from agentproto._io.transports.aiohttp import _JoiningReceive
from agentproto._io.transports.chunks import AnswerJoiner

from .both import Flavour
from .raw_server import BOUND, Connection, chunk, head, raw_server

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = HEAD + chunk(b"hello") + chunk(b"world") + b"0\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
HEADS = [
    *[HEAD] * 8,
    HEAD.replace(b"\r", b""),
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD,
    HEAD.replace(b"1.1", b"1.0"),
    HEAD.replace(b"200", b"204"),
    HEAD.replace(b"chunked\r\n", b"chunked\r\ncontent-length: 9\r\n"),
    HEAD.replace(b"chunked\r\n", b"chunked\r\ntransfer-encoding: identity\r\n"),
    HEAD.replace(b"chunked\r\n", b"chunked\r\n x\r\n"),
    HEAD.replace(b"chunked", b"chunked\t"),
    HEAD.replace(b"chunked", b"gzip, chunked"),
    HEAD.replace(b"transfer-encoding: chunked", b"content-length: 9"),
    HEAD.replace(b"transfer-encoding", b"x: y\r\n transfer-encoding"),
    SIZED % len(ANSWER),
]


def read_by_h11(answers: list[list[bytes]], *, joins: bool) -> tuple[list[Any], int]:
    """What h11 reads of answers on one connection, when it knows how much, and in how many chunks.

    As httpcore drives it.
    """
    connection = h11.Connection(h11.CLIENT)
    pieces: Iterator[bytes] = iter([piece for answer in answers for piece in answer])
    joiner = AnswerJoiner()
    told, chunks = list[Any](), 0
    try:
        for _ in answers:
            connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
            connection.send(h11.EndOfMessage())
            joiner.awaits_head = joins
            event: Any = None
            while not isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    told.append("read")
                    connection.receive_data(joiner.join(next(pieces, b"")))
                elif isinstance(event, h11.Response):
                    told.append(event.status_code)
                elif isinstance(event, h11.Data):
                    chunks += 1
                    before = told.pop() if isinstance(told[-1], bytes) else b""
                    told.append(before + bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    told.append(list(event.headers))
            connection.start_next_cycle()
    except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
        told.append(str(error))
    return told, chunks


def read_by_aiohttp(answers: list[list[bytes]], *, joins: bool) -> list[object]:
    """What aiohttp's parser reads of answers on one connection, or how many before it failed."""
    loop = asyncio.new_event_loop()
    protocol = BaseProtocol(loop)
    protocol.transport = Mock()
    parser = HttpResponseParser(protocol, loop, 2**20, read_until_eof=True, auto_decompress=False)
    found: list[Any] = []
    receive = _JoiningReceive(lambda data: found.extend(parser.feed_data(data)[0]))
    told: list[object] = []
    try:
        for answer in answers:
            receive.awaits_head = joins
            for piece in answer:
                receive(piece)
            for message, payload in found:
                body = b"".join(getattr(payload, "_buffer", []))
                told.append((message.code, body, payload.is_eof()))
            found.clear()
    except Exception as error:
        told.append(type(error))
    finally:
        loop.close()
    return told


def cut(data: bytes, points: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:stop] for start, stop in pairwise(places)]


BODY = st.one_of(
    st.lists(st.sampled_from([b"\r", b"\n", b"0", b"a", b"Z"]), min_size=1, max_size=40).map(
        b"".join
    ),
    st.just(ANSWER),
)
SIZES = st.sampled_from(
    [b"%x", b"%X", b"000%x", b"%x;a=b", b"%x ", b" %x", b"0x%x", b"+%x", b"%x_0", b"0%013x"]
)
LINE_ENDS = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b"", b"xx"])
ENDS = st.sampled_from([*[b"0\r\n\r\n"] * 4, b"0\r\na: b\r\n\r\n", b"00\r\n\r\n", b""])


@st.composite
def sent(draw: st.DrawFn) -> list[bytes]:
    """An answer as it arrives. Most of its chunks are of the plainest form, some are wrong."""
    body = bytearray()
    for data in draw(st.lists(BODY, max_size=8)):
        size = draw(SIZES) if draw(st.integers(0, 9)) == 9 else b"%x"
        body += size % len(data) + draw(LINE_ENDS) + data + draw(LINE_ENDS)
    start, whole = draw(st.sampled_from(HEADS)), bytes(body) + draw(ENDS)
    if start.startswith(SIZED[:40]):
        whole = ANSWER
    points = draw(st.lists(st.integers(0, 10**4), max_size=8))
    return [start, *cut(whole, points)] if draw(st.booleans()) else cut(start + whole, points)


@given(answers=st.lists(sent(), min_size=1, max_size=3))
def test_h11_reads_the_same(answers: list[list[bytes]]) -> None:
    """The same bodies, the same faults, and each byte as soon as without."""
    plainly, many = read_by_h11(answers, joins=False)
    joined, few = read_by_h11(answers, joins=True)
    assert joined == plainly
    assert few <= many


@given(answers=st.lists(sent(), min_size=1, max_size=3))
def test_aiohttp_reads_the_same(answers: list[list[bytes]]) -> None:
    """The same bodies and faults. What comes before a fault may be told, where it was not."""
    plainly = read_by_aiohttp(answers, joins=False)
    joined = read_by_aiohttp(answers, joins=True)
    assert joined == plainly


@pytest.mark.parametrize("start", HEADS[8:])
def test_head_of_which_parsers_think_otherwise_is_left_alone(start: bytes) -> None:
    """What looks like chunks is the body, then: of some, aiohttp thinks so."""
    body = b"3\r\n\r\n0\r\n1\r\n0\r\n0\r\n\r\n"
    assert read_by_aiohttp([[start + body]], joins=True) == read_by_aiohttp(
        [[start + body]], joins=False
    )


def test_chunks_that_come_together_are_one() -> None:
    """Also where the pieces are cut within a chunk, within its size, and within its end."""
    parts = [b"event %d" % number for number in range(100)]
    body = b"".join(map(chunk, parts)) + b"0\r\n\r\n"
    for at in range(1, 60):
        pieces = [HEAD, body[:at], body[at:500], body[500:1000], body[1000:]]
        told, chunks = read_by_h11([pieces], joins=True)
        assert b"".join(part for part in told if isinstance(part, bytes)) == b"".join(parts)
        assert chunks <= 9, at


def test_size_that_comes_byte_by_byte_is_understood() -> None:
    """What comes behind it is joined."""
    size, rest = b"00000005", b"\r\nhello\r\n" + chunk(b"a") * 50 + b"0\r\n\r\n"
    told, chunks = read_by_h11([[HEAD, *cut(size, [*range(8)]), rest]], joins=True)
    assert b"hello" + b"a" * 50 in told
    assert chunks == 2


@pytest.mark.parametrize("end", [b"", b"\r", b"\n", b"xx", b"\n\r", b"\r\n\r\n", b"\r\r\n"])
@pytest.mark.parametrize("size", [1, 0x10, 0x123])
def test_chunk_with_another_end_is_judged_by_the_parser(end: bytes, size: int) -> None:
    """Though what stands behind it looks like the size of a next one."""
    whole, cut_short = chunk(b"x" * 0x11), chunk(b"y" * size).removesuffix(b"\r\n")
    answers = [[HEAD, whole * 3 + cut_short + end + whole * 3 + b"0\r\n\r\n"]]
    plainly, many = read_by_h11(answers, joins=False)
    joined, few = read_by_h11(answers, joins=True)
    assert joined == plainly
    assert few < many
    assert read_by_aiohttp(answers, joins=True) == read_by_aiohttp(answers, joins=False)


def test_aiohttp_may_tell_its_parser_to_go_on() -> None:
    """It receives nothing, then, which is no head and ends nothing."""
    received: list[bytes] = []
    receive = _JoiningReceive(received.append)
    receive.awaits_head = True
    for piece in (b"", HEAD + b"5", b"", b"\r\nhello\r\n" + chunk(b"a") * 2, b""):
        receive(bytearray(piece))  # as on Windows
    assert received == [b"", HEAD, b"5", b"", b"\r\nhello\r\n2\r\naa\r\n", b""]


def test_head_that_comes_in_pieces_is_left_alone() -> None:
    """Nobody says where in the last piece it ends."""
    pieces = [HEAD[:20], HEAD[20:], chunk(b"a") + chunk(b"b") + b"0\r\n\r\n"]
    assert read_by_h11([pieces], joins=True) == read_by_h11([pieces], joins=False)


async def test_each_answer_of_a_connection_is_joined(flavour: Flavour) -> None:
    """A connection is used again, and an answer of another kind came in between."""
    body = b"".join(chunk(b"data: %d\n\n" % number) for number in range(50)) + b"0\r\n\r\n"
    stream = head(200, content_type="text/event-stream", transfer_encoding="chunked") + body
    result = b'{"run": {"status": "success"}}'
    plain = head(200, content_type="application/json", content_length=str(len(result))) + result

    async def script(connection: Connection) -> None:
        for answer in (stream, plain, stream, plain):
            await connection.send(answer[:300], answer[300:])
            await connection.reader.readuntil(b"\r\n\r\n")
            await connection.reader.readexactly(2)

    with raw_server(script) as server:
        client = flavour.client(server.url)
        for _ in range(2):
            blocks = await flavour.blocks(client.create_and_stream_run())
            assert [sse.data for sse in blocks] == [str(number) for number in range(50)]
            response = await flavour.call(client.create_and_wait_run)
            assert response.run.status == "success"
        await flavour.close(client)
        assert await asyncio.to_thread(server.all_closed.wait, 5)
        assert len(server.ends) == 1


def test_what_the_caller_asks_on_the_same_connection_is_left_alone() -> None:
    """A body may look like an answer in chunks."""
    result = b'{"run": {"status": "success"}}'
    plain = head(200, content_type="application/json", content_length=str(len(result))) + result

    head_was_read = threading.Event()

    async def script(connection: Connection) -> None:
        await connection.send(plain)
        await connection.reader.readuntil(b"\r\n\r\n")
        await connection.send(SIZED % len(ANSWER))
        assert await asyncio.to_thread(head_was_read.wait, BOUND)
        await connection.send(ANSWER)
        await connection.client_closes()

    with raw_server(script) as server, httpx.Client() as theirs:
        assert RunsClient(server.url, http_client=theirs).create_and_wait_run().run.status
        with theirs.stream("GET", f"{server.url}/file") as response:
            head_was_read.set()
            assert response.read() == ANSWER
        assert len(server.requests) == 1
