"""The extra `aiohttp`. Every scenario with a `flavour` is played over it, too."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
from httpx_aiohttp import HttpxAiohttpClient

from agentproto import (
    AsyncRunsClient,
    RunsClient,
    RunStream,
    StreamInterruptedError,
    Timeout,
    TransportError,
)
from agentproto._aiohttp import as_httpx

from .both import Flavour, as_forked
from .faults import SOON, breaking, good_body, reset, send_half
from .raw_server import BOUND, Connection, RawServer, chunk, events, head, json_answer, raw_server

META = b'event: metadata\ndata: {"run_id":"r1"}\nid: 1\n\n'
HEAD = head(200, content_type="text/event-stream", transfer_encoding="chunked")
END = b'event: end\ndata: {"status":"success"}\nid: 2\n\n'


def test_without_the_extra_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginner sees what to type, and when the client is made."""
    monkeypatch.delitem(sys.modules, "agentproto._aiohttp", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ImportError, match=r"pip install 'agentproto\[aiohttp\]'"):
        AsyncRunsClient("http://x", transport="aiohttp")


def test_sync_client_refuses_it() -> None:
    """aiohttp has no blocking half."""
    unchecked: Any = RunsClient
    with pytest.raises(TypeError, match="is for AsyncRunsClient"):
        unchecked("http://x", transport="aiohttp")


def test_it_is_not_given_together_with_a_client() -> None:
    """DESIGN: not together with http_client."""
    with pytest.raises(TypeError, match="give one of them"):
        AsyncRunsClient("http://x", transport="aiohttp", http_client=httpx.AsyncClient())


def test_trio_is_told_at_the_first_call() -> None:
    """aiohttp is made of asyncio."""

    async def main() -> None:
        async with AsyncRunsClient("http://127.0.0.1:9", transport="aiohttp") as client:
            with pytest.raises(RuntimeError, match="needs asyncio"):
                await client.get_run("r1")

    anyio.run(main, backend="trio")


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (aiohttp.ConnectionTimeoutError(), httpx.ConnectTimeout),
        (aiohttp.SocketTimeoutError(), httpx.ReadTimeout),
        (aiohttp.InvalidURL("http://["), httpx.UnsupportedProtocol),
        (aiohttp.ServerDisconnectedError(), httpx.ReadError),
        (aiohttp.ClientOSError(32, "Broken pipe"), httpx.ReadError),
        (aiohttp.ClientPayloadError("short"), httpx.ReadError),
        (RuntimeError("Connection closed."), httpx.ReadError),
    ],
)
def test_error_of_aiohttp_is_the_one_of_httpx_that_says_the_same(
    exc: Exception, kind: type[httpx.HTTPError]
) -> None:
    """What was sent must not pass for what never left: it would be sent again."""
    error = as_httpx(exc)
    assert type(error) is kind
    assert error.__cause__ is exc


async def stream_over(server: RawServer, http_client: httpx.AsyncClient) -> RunStream[Any]:
    client = AsyncRunsClient(server.url, http_client=http_client, timeout=Timeout(idle=0.3))
    return client.create_and_stream_run()


async def test_client_of_the_caller_streams() -> None:
    """README: http_client= takes a client of httpx-aiohttp, too."""
    with raw_server(events(META, END)) as server:
        async with HttpxAiohttpClient() as own:
            stream = await stream_over(server, own)
            assert [event.id async for event in stream] == ["1", "2"]


async def test_client_of_the_caller_sends_a_create_once() -> None:
    """httpx-aiohttp tells a connection that broke as one that was never made."""
    with raw_server(breaking(reset), json_answer("{}")) as server:
        async with HttpxAiohttpClient() as own:
            client = AsyncRunsClient(server.url, http_client=own)
            with pytest.raises(TransportError, match="the connection broke"):
                await client.create_run()
    assert len(server.requests) == 1


async def test_client_of_the_caller_does_not_wait_for_ever() -> None:
    """aiohttp forgets who reads a body when it closes the connection on a broken chunk."""
    is_begun = threading.Event()

    async def script(connection: Connection) -> None:
        await send_half(connection, good_body(connection))
        # In one packet with the head, aiohttp would lose the head, too.
        await asyncio.to_thread(is_begun.wait, SOON)
        await connection.send(b"zz\r\nwhat\r\n")

    with raw_server(script) as server:
        async with HttpxAiohttpClient() as own:
            stream = await stream_over(server, own)
            await anext(stream)
            is_begun.set()
            with pytest.raises(StreamInterruptedError) as caught:
                await asyncio.wait_for(stream.final(), BOUND)
    assert isinstance(caught.value.__cause__, TransportError)


def bodies() -> int:
    gc.collect()
    return sum(isinstance(o, aiohttp.StreamReader) for o in gc.get_objects())


async def test_kept_alive_connection_gathers_nothing() -> None:
    """Each body listens to the end of its connection no longer than it lasts."""
    before = bodies()
    with raw_server(json_answer('{"run_id": "r1"}')) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp") as client:
            for _ in range(20):
                await client.get_run("r1")
            gathered = bodies() - before
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
    assert len(server.requests) == 20
    assert gathered <= 1


async def test_what_arrived_before_a_cut_is_handed_over() -> None:
    """Seen: aiohttp tells of the cut first, and forgets a whole end of the run."""

    async def script(connection: Connection) -> None:
        await connection.send(HEAD + chunk(META))
        await connection.send(chunk(b"event: custom\ndata: 1\n\n"), chunk(END))

    with raw_server(script) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp") as client:
            stream = client.create_and_stream_run()
            first = await anext(stream)
            assert await asyncio.to_thread(server.all_closed.wait, SOON)
            connection = stream.core.exchange._own_connection  # type: ignore[union-attr]
            async with asyncio.timeout(BOUND):
                while connection.get_extra_info("socket"):  # noqa: ASYNC110  # it tells nobody
                    await asyncio.sleep(0)
            assert [first, *[event async for event in stream]][1:] != []
            assert stream.ended == "end"


async def test_time_that_the_caller_takes_is_no_silence() -> None:
    """Seen: the clock of aiohttp runs on while nobody reads."""

    async def script(connection: Connection) -> None:
        await connection.send(HEAD + chunk(META))
        await asyncio.sleep(0.5)
        await connection.send(chunk(END), b"0\r\n\r\n")

    with raw_server(script) as server:
        limits = Timeout(idle=0.3)
        async with AsyncRunsClient(server.url, transport="aiohttp", timeout=limits) as client:
            stream = client.create_and_stream_run()
            await anext(stream)
            await asyncio.sleep(0.4)
            assert [event.event async for event in stream] == ["end"]


async def test_close_in_a_child_leaves_the_stream_of_the_parent() -> None:
    """Seen: both wait at one epoll, from which aiohttp in the child took the connection."""
    with raw_server(events(META, hold=True)) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp") as client:
            stream = client.create_and_stream_run()
            await anext(stream)
            with as_forked():
                await stream.core.exchange.release()  # type: ignore[union-attr]
            assert not server.closed.is_set()
            await stream.aclose()


async def test_reason_phrase_may_be_any_bytes() -> None:
    """Seen: one that is not ASCII passed for a redirect to no valid URL."""

    async def script(connection: Connection) -> None:
        body = b'{"run_id":"r1"}'
        await connection.send(b"HTTP/1.1 200 Tr\xe8s bien\r\ncontent-type: application/json\r\n")
        await connection.send(b"content-length: %d\r\n\r\n" % len(body) + body)

    with raw_server(script) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp") as client:
            assert (await client.get_run("r1")).run_id == "r1"


async def test_secrets_are_in_no_cause() -> None:
    """Seen: the repr of aiohttp's error has the headers of the request."""

    async def script(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n")

    key = {"x-api-key": "s3cret"}
    with raw_server(script) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp", headers=key) as client:
            with pytest.raises(TransportError) as caught:
                await client.create_run()
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3cret" not in repr(error)
            error = error.__cause__ or error.__context__
        async with HttpxAiohttpClient() as own:
            client = AsyncRunsClient(server.url, http_client=own, headers=key)
            with pytest.raises(TransportError) as caught:
                await client.create_run()
    assert caught.value.__cause__ is None


async def test_the_url_goes_out_as_it_is(flavour: Flavour) -> None:
    """Seen: yarl quotes again, and a;b is another run then."""
    with raw_server(json_answer('{"run_id": "r1"}')) as server:
        client = flavour.client(f"{server.url}/%41")
        for run in ("a;b", "a:@=&,!$'()*b", "ä b"):
            await flavour.call(client.get_run, run)
        await flavour.close(client)
    told = [request.target for request in server.requests]
    assert told == ["/%41/runs/a%3Bb", "/%41/runs/a%3A%40%3D%26%2C%21%24%27%28%29%2Ab", ODD]


ODD = "/%41/runs/%C3%A4%20b"


@pytest.mark.parametrize("size", [10, 2_000_000])
async def test_body_of_any_size_is_sent(flavour: Flavour, size: int) -> None:
    """Seen: aiohttp warns of a large one, and nothing is sent where warnings are errors."""
    with raw_server(json_answer('{"run_id": "r1"}')) as server:
        client = flavour.client(server.url)
        assert (await flavour.call(client.create_run, input="x" * size)).run_id == "r1"
        await flavour.close(client)
    assert len(server.requests[0].body) > size


async def test_header_that_is_no_text_is_refused() -> None:
    """aiohttp writes headers as UTF-8: others would go out as other bytes."""

    def sign(request: httpx.Request) -> httpx.Request:
        request.headers = httpx.Headers([*request.headers.raw, (b"x-key", b"\xff")])
        return request

    with raw_server(json_answer("{}")) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp", auth=sign) as client:
            with pytest.raises(TransportError, match="could not be written as HTTP"):
                await client.create_run()
    assert server.requests == []
