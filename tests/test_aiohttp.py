"""The extra `aiohttp`. Every scenario with a `flavour` is played over it, too."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import anyio
import httpx
import pytest
import trustme
import uvicorn
from httpx_aiohttp import HttpxAiohttpClient
from multidict import CIMultiDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agentproto import (
    AgentProtoError,
    AsyncRunsClient,
    RunsClient,
    RunStream,
    ServerError,
    StreamInterruptedError,
    Timeout,
    TransportError,
)
from agentproto._io.frames import without_frames
from agentproto._io.transports.aiohttp import Transport, as_httpx

from .both import Flavour, as_forked
from .conftest import LOOPS
from .faults import (
    SOON,
    bad_chunk,
    breaking,
    full_backlog,
    garbage,
    good_body,
    reset,
    reset_at_once,
    send_half,
)
from .raw_server import (
    BOUND,
    Connection,
    RawServer,
    Script,
    chunk,
    events,
    head,
    json_answer,
    raw_server,
)

META = b'event: metadata\ndata: {"run_id":"r1"}\nid: 1\n\n'
HEAD = head(200, content_type="text/event-stream", transfer_encoding="chunked")
END = b'event: end\ndata: {"status":"success"}\nid: 2\n\n'


def test_without_the_extra_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginner sees what to type, and when the client is made."""
    monkeypatch.delitem(sys.modules, "agentproto._io.transports.aiohttp", raising=False)
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
            connection: Any = stream.core.exchange._connection  # type: ignore[union-attr]
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


@pytest.mark.parametrize("size", [10, 2_000_000, 20_000_000])
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


LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=60)


async def fetch(
    transport: Transport, url: str, *, content: bytes = b"", **limits: float
) -> httpx.Response:
    timeout = {"connect": BOUND, "pool": BOUND, "read": BOUND, **limits}
    method = "POST" if content else "GET"
    request = httpx.Request(method, url, content=content, extensions={"timeout": timeout})
    return await transport.handle_async_request(request)


def body_of(response: httpx.Response) -> AsyncIterator[bytes]:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)


async def close(response: httpx.Response) -> None:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    await response.stream.aclose()


async def whole(response: httpx.Response) -> bytes:
    pieces = [piece async for piece in body_of(response)]
    await close(response)
    return b"".join(pieces)


@pytest.fixture(params=["plain", "tls"])
def tls(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ssl.SSLContext | None:
    """What a server needs to speak TLS, with an authority that clients trust."""
    if request.param == "plain":
        return None
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_chunks_that_arrive_together_are_parsed_as_one(
    tls: ssl.SSLContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: uvloop keeps the first `data_received` it finds, and joining was lost there."""
    parsed = []
    end_chunk = aiohttp.StreamReader.end_http_chunk_receiving

    def note_chunk(reader: aiohttp.StreamReader) -> None:
        parsed.append(reader)
        end_chunk(reader)

    monkeypatch.setattr(aiohttp.StreamReader, "end_http_chunk_receiving", note_chunk)
    tokens = [b"event: custom\ndata: %d\nid: %d\n\n" % (n, n) for n in range(200)]

    async def script(connection: Connection) -> None:
        await connection.send(HEAD, b"".join(map(chunk, [META, *tokens, END])) + b"0\r\n\r\n")

    with raw_server(script, tls=tls) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp") as client:
            seen = [event async for event in client.create_and_stream_run()]
    assert len(seen) == 202
    assert 1 <= len(parsed) <= 5


async def test_connection_that_aiohttp_makes_elsewhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without our protocol in front, a body would wait for ever: better a loud end."""
    ours = "agentproto._io.transports.aiohttp._Connector.connect"
    monkeypatch.setattr(ours, aiohttp.TCPConnector.connect)
    with raw_server(json_answer("{}")) as server:
        async with Transport(LIMITS) as transport:
            with pytest.raises(RuntimeError, match="by another way than its connector"):
                await fetch(transport, server.url)


async def test_connection_that_died_while_it_was_handed_over_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tracing hook may wait between the connection and the request."""
    connect: Any = aiohttp.TCPConnector.connect
    made = []

    async def connect_slowly(connector: Any, *args: Any, **kwargs: Any) -> Any:
        connection = await connect(connector, *args, **kwargs)
        made.append(connection)
        while len(made) == 1 and connection.transport is not None:
            connection.transport.abort()
            await asyncio.sleep(0)
        return connection

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_slowly)
    with raw_server(json_answer("{}")) as server:
        async with Transport(LIMITS) as transport:
            assert await whole(await fetch(transport, server.url)) == b"{}"
    assert len(made) == 2


@pytest.mark.parametrize("packet", [1, 2, 3, 4])
async def test_what_precedes_a_broken_chunk_is_handed_over(
    tls: ssl.SSLContext | None, packet: int
) -> None:
    """aiohttp closes the connection on it, and forgets that a body is read."""
    parts = [HEAD, chunk(META), chunk(CUSTOM), b"zz\r\n"]
    is_read = threading.Event()

    async def script(connection: Connection) -> None:
        await connection.send(b"".join(parts[:packet]))
        assert await asyncio.to_thread(is_read.wait, BOUND)
        await connection.send(b"".join(parts[packet:]))
        await connection.client_closes()

    with raw_server(script, tls=tls) as server:
        async with Transport(LIMITS) as transport:
            response = await fetch(transport, server.url)
            reading = asyncio.ensure_future(pieces_until_error(response))
            await asyncio.sleep(0)
            is_read.set()
            pieces, error = await asyncio.wait_for(reading, BOUND)
            assert b"".join(pieces) == META + CUSTOM
            assert isinstance(error, httpx.ReadError)
            assert (await pieces_until_error(response))[0] == []
            assert await asyncio.to_thread(server.all_closed.wait, SOON)


CUSTOM = b"event: custom\ndata: 1\n\n"


async def pieces_until_error(response: httpx.Response) -> tuple[list[bytes], httpx.HTTPError]:
    pieces = []
    try:
        async for piece in body_of(response):
            pieces.append(piece)  # they count although it ends in an error
    except httpx.HTTPError as error:
        return pieces, error
    raise AssertionError("the body ended in order")


UNTIL_CLOSE = head(200, connection="close")


async def test_body_without_a_length_ends_with_its_connection(tls: ssl.SSLContext | None) -> None:
    """HTTP: what has neither a length nor chunks ends where the connection is closed in order."""

    async def script(connection: Connection) -> None:
        await connection.send(UNTIL_CLOSE, b"whole")

    with raw_server(script, tls=tls) as server:
        async with Transport(LIMITS) as transport:
            assert await whole(await fetch(transport, server.url)) == b"whole"


async def test_body_without_a_length_does_not_end_with_a_reset() -> None:
    """Seen on aiohttp 3.14.5: half a body passed for the whole."""
    is_read = threading.Event()

    async def script(connection: Connection) -> None:
        await connection.send(UNTIL_CLOSE, b"half")
        assert await asyncio.to_thread(is_read.wait, BOUND)
        accepted = connection.writer.get_extra_info("socket")
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.reset()

    with raw_server(script) as server:
        async with Transport(LIMITS) as transport:
            response = await fetch(transport, server.url)
            assert await anext(body_of(response)) == b"half"
            is_read.set()
            pieces, error = await pieces_until_error(response)
            assert (pieces, type(error)) == ([], httpx.ReadError)
            assert isinstance(error.__cause__, ConnectionResetError)


async def test_a_body_is_read_by_one_task() -> None:
    """A second reader would take what the first one waits for."""
    with raw_server(events(META, hold=True)) as server:
        async with Transport(LIMITS) as transport:
            body = body_of(await fetch(transport, server.url))
            await anext(body)
            reading = asyncio.ensure_future(anext(body))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(body)
            reading.cancel()
            await asyncio.wait([reading])


async def test_url_that_is_not_of_http_is_refused() -> None:
    """aiohttp finds out before it sends anything."""
    async with Transport(LIMITS) as transport:
        with pytest.raises(httpx.UnsupportedProtocol):
            await fetch(transport, "ftp://127.0.0.1/")


async def test_without_a_limit_a_body_is_waited_for() -> None:
    """A request of httpx need not have limits."""

    is_waited_for = threading.Event()

    async def script(connection: Connection) -> None:
        await connection.send(head(200, content_length="2"))
        assert await asyncio.to_thread(is_waited_for.wait, BOUND)
        await connection.send(b"{}")

    with raw_server(script) as server:
        async with Transport(LIMITS) as transport:
            request = httpx.Request("GET", server.url)
            response = await transport.handle_async_request(request)
            reading = asyncio.ensure_future(whole(response))
            await asyncio.sleep(0)
            is_waited_for.set()
            assert await asyncio.wait_for(reading, BOUND) == b"{}"


async def test_silence_ends_at_the_limit_that_holds_when_reading_begins() -> None:
    """The port shortens the limit of a body whose rest is not worth waiting for."""
    with raw_server(events(META, hold=True)) as server:
        async with Transport(LIMITS) as transport:
            limits = {"read": BOUND}
            request = httpx.Request("GET", server.url, extensions={"timeout": limits})
            body = body_of(await transport.handle_async_request(request))
            await anext(body)
            limits["read"] = 0.01
            with pytest.raises(httpx.ReadTimeout):
                await anext(body)


async def abort_here(connection: Any) -> None:
    connection.abort()


async def abort_in_a_thread(connection: Any) -> None:
    await asyncio.to_thread(connection.abort)


@pytest.mark.parametrize("abort", [abort_here, abort_in_a_thread])
@pytest.mark.parametrize("is_reading", [True, False])
@pytest.mark.parametrize("start", [HEAD + chunk(META), UNTIL_CLOSE + META], ids=["chunks", "close"])
async def test_aborted_connection_ends_at_once(
    tls: ssl.SSLContext | None,
    abort: Callable[[Any], Awaitable[None]],
    start: bytes,
    *,
    is_reading: bool,
) -> None:
    """Seen: a socket of uvloop refuses shutdown(): what ends a connection is its transport."""

    async def script(connection: Connection) -> None:
        await connection.send(start)
        await connection.client_closes()

    with raw_server(script, tls=tls) as server:
        async with Transport(LIMITS) as transport:
            response = await fetch(transport, server.url)
            body, connection = body_of(response), response.extensions["network_stream"]
            assert await anext(body) == META
            assert connection.get_extra_info("peername")[0] == "127.0.0.1"
            reading = asyncio.ensure_future(anext(body)) if is_reading else None
            await asyncio.sleep(0)
            await abort(connection)
            assert await asyncio.to_thread(server.all_closed.wait, SOON)
            with pytest.raises(httpx.ReadError, match="closed on this side"):
                await asyncio.wait_for(reading or anext(body), BOUND)
            await close(response)
            assert connection.get_extra_info("peername") is None


@pytest.mark.parametrize("is_read", [True, False])
async def test_leaving_early_closes_the_connection(
    tls: ssl.SSLContext | None, *, is_read: bool
) -> None:
    """FAULTS: the server sees it within 2 s; nothing that waits is left behind."""
    with raw_server(events(META, hold=True), tls=tls) as server:
        async with Transport(LIMITS) as transport:
            response = await fetch(transport, server.url)
            body: object = body_of(response)
            assert body is response.stream  # no generator that would be left suspended
            if is_read:
                await anext(body_of(response))
            await close(response)
            assert await asyncio.to_thread(server.all_closed.wait, SOON)
            await close(response)
            with pytest.raises(httpx.ReadError):
                await anext(body_of(response))


async def test_leaving_ends_the_read_of_another_task() -> None:
    """A stream is closed while another task waits for its next event."""
    with raw_server(events(META, hold=True)) as server:
        async with Transport(LIMITS) as transport:
            response = await fetch(transport, server.url)
            await anext(body_of(response))
            reading = asyncio.ensure_future(anext(body_of(response)))
            await asyncio.sleep(0)
            await close(response)
            with pytest.raises(httpx.ReadError):
                await asyncio.wait_for(reading, BOUND)


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_what_is_not_sent_yet_holds_up_no_end(*, is_cancelled: bool) -> None:
    """Seen: a transport of asyncio that is closed waits until all is sent, and so did aclose()."""
    with socket.create_server(("127.0.0.1", 0)) as deaf, ExitStack() as accepted:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        transport = Transport(LIMITS)
        calling = asyncio.ensure_future(fetch(transport, url, content=b"x" * 50_000_000))
        connection, _ = await asyncio.to_thread(deaf.accept)
        accepted.enter_context(connection)
        assert await asyncio.to_thread(connection.recv, 1)
        sockets, (body,) = list(transport._sockets), transport._bodies
        assert body._front is not None
        sending = body._front.transport
        async with asyncio.timeout(BOUND):
            while select.select([], sockets, [], 0)[1] or not sending.get_write_buffer_size():  # noqa: ASYNC110  # at once
                await asyncio.sleep(0)
        if is_cancelled:
            calling.cancel()
        else:
            await asyncio.wait_for(transport.aclose(), BOUND)
        with pytest.raises(asyncio.CancelledError if is_cancelled else httpx.ReadError):
            await asyncio.wait_for(calling, BOUND)
        async with asyncio.timeout(BOUND):
            while [each.fileno() for each in sockets] != [-1]:  # noqa: ASYNC110  # it is no event
                await asyncio.sleep(0)
        await transport.aclose()


class _Uvicorn(uvicorn.Server):
    def __init__(self, app: Starlette) -> None:
        super().__init__(uvicorn.Config(app, http="h11", log_level="critical"))
        self.has_started = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()


@contextmanager
def uvicorn_with(*routes: Route) -> Iterator[str]:
    """The URL of a uvicorn with these routes, which keeps connections alive."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Uvicorn(Starlette(routes=list(routes)))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    assert server.has_started.wait(BOUND)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(BOUND)


async def answer_with_port(request: Request) -> JSONResponse:
    assert request.client is not None
    status = int(request.path_params["status"])
    return JSONResponse({"port": request.client.port}, status)


async def test_connection_is_kept_unless_the_server_failed() -> None:
    """Seen: a server that fails closes its connection after the answer, and does not say so."""
    with uvicorn_with(Route("/{status}", answer_with_port)) as url:
        async with Transport(LIMITS) as transport:
            ports = [
                json.loads(await whole(await fetch(transport, f"{url}/{status}")))["port"]
                for status in (200, 404, 500, 503, 200, 200)
            ]
            left = await fetch(transport, f"{url}/200")
            await close(left)
            after_one_that_was_whole = await whole(await fetch(transport, f"{url}/200"))
    assert ports[0] == ports[1] == ports[2]
    assert ports[4] == ports[5]
    assert len({*ports}) == 3
    assert after_one_that_was_whole == b'{"port":%d}' % ports[5]


async def kept_alive(connection: Connection) -> None:
    await connection.send(head(200, content_length="2") + b"{}")
    await connection.client_closes()


async def test_connection_is_not_shared_before_its_server_error_is_read() -> None:
    """aiohttp gives it to others as soon as the body is whole."""

    async def fail(connection: Connection) -> None:
        await connection.send(head(500, content_length="6") + b"failed")
        await connection.client_closes()

    with raw_server(fail, kept_alive) as server:
        async with Transport(LIMITS) as transport:
            failed = await fetch(transport, server.url)
            assert await whole(await fetch(transport, server.url)) == b"{}"
            assert await whole(failed) == b"failed"


async def test_a_server_that_failed_costs_no_further_call() -> None:
    """Seen on uvicorn 0.54: the call after an unhandled exception failed 40 of 40 times."""

    async def wait(request: Request) -> JSONResponse:
        if (await request.json())["input"] == "boom":
            raise ValueError("boom")
        return JSONResponse({"run": {"run_id": "r1", "status": "success"}, "values": {"n": 1}})

    with uvicorn_with(Route("/runs/wait", wait, methods=["POST"])) as url:
        async with AsyncRunsClient(url, transport="aiohttp", retry=None) as client:
            for _ in range(20):
                with pytest.raises(ServerError):
                    await client.create_and_wait_run(input="boom")
                assert (await client.create_and_wait_run(input="ok")).values == {"n": 1}


async def test_headers_can_be_added_by_what_instruments_aiohttp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """elastic-apm 6.26 wraps `_request`, and sets its own in what it is given."""
    send: Any = aiohttp.ClientSession._request

    async def call(session: Any, *args: Any, headers: Any, **kwargs: Any) -> Any:
        assert isinstance(headers, CIMultiDict)
        headers["traceparent"] = "00-1"
        return await send(session, *args, headers=headers, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", call)
    with raw_server(json_answer('{"run_id": "r1"}')) as server:
        async with AsyncRunsClient(
            server.url, transport="aiohttp", headers={"x-key": "k"}
        ) as client:
            await client.get_run("r1")
    assert server.requests[0].headers["traceparent"] == "00-1"
    assert server.requests[0].headers["x-key"] == "k"


async def test_closed_transport_has_closed_its_sockets(tls: ssl.SSLContext | None) -> None:
    """Seen on aiohttp 3.12.3: over TLS, close() returned before they were closed."""
    with raw_server(events(META, hold=True), kept_alive, tls=tls) as server:
        async with Transport(LIMITS) as transport:
            await anext(body_of(await fetch(transport, server.url)))
            await whole(await fetch(transport, server.url))
            sockets = list(transport._sockets)
        assert [each.fileno() for each in sockets] == [-1, -1]


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
def test_connections_of_a_loop_that_is_gone_are_discarded(
    new_loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    """Seen: aiohttp logs an unclosed session for each `asyncio.run` but the last."""

    async def leave_open(url: str) -> tuple[Transport, Any]:
        transport = Transport(LIMITS)
        response = await fetch(transport, url)
        await anext(body_of(response))
        await whole(await fetch(transport, url))
        return transport, response

    with (
        warnings.catch_warnings(record=True) as warned,
        raw_server(events(META, hold=True), kept_alive) as server,
    ):
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=new_loop) as runner:
            transport, response = runner.run(leave_open(server.url))
        response.extensions["network_stream"].abort()  # of a loop that is closed: nothing is left
        transport.discard()
        assert server.all_closed.wait(SOON)
        transport.discard()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(close(response))
            with pytest.raises(RuntimeError, match="closed"):
                runner.run(fetch(transport, server.url))
        del transport, response
        gc.collect()
    # Of a transport that is not closed asyncio says so itself; uvloop says it of all it closes.
    assert [str(each.message) for each in warned if "Unclosed" in str(each.message)] == []
    assert caplog.get_records("call") == []


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
def test_what_a_task_of_a_closed_loop_reads_can_be_discarded(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A loop that is closed by hand leaves its tasks as they are."""

    async def begin_to_read(url: str) -> tuple[Transport, httpx.Response, asyncio.Future[bytes]]:
        transport = Transport(LIMITS)
        response = await fetch(transport, url)
        await anext(body_of(response))
        reading = asyncio.ensure_future(anext(body_of(response)))
        await asyncio.sleep(0)
        return transport, response, reading

    with warnings.catch_warnings(), raw_server(events(META, hold=True)) as server:
        warnings.simplefilter("ignore", ResourceWarning)  # of asyncio and uvloop, as above
        loop = new_loop()
        transport, response, reading = loop.run_until_complete(begin_to_read(server.url))
        loop.close()
        transport.discard()
        assert server.all_closed.wait(SOON)
        asyncio.run(close(response))
        del transport, response, reading
        gc.collect()


KEY = "s3cret-key"
WITH_KEY = {"x-api-key": KEY, "authorization": f"Bearer {KEY}"}


def chain_of(error: BaseException | None) -> list[BaseException]:
    """All that a report of this error would show."""
    found: list[BaseException] = []
    left = [error]
    while left:
        exc = left.pop()
        if exc is not None and exc not in found:
            found.append(exc)
            left += [exc.__cause__, exc.__context__]
            left += exc.exceptions if isinstance(exc, BaseExceptionGroup) else []
    return found


def locals_of(error: BaseException) -> Iterator[tuple[str, str]]:
    """Where a local variable of a frame behind this error is, and what a report shows of it."""
    for exc in chain_of(error):
        for frame, line in traceback.walk_tb(exc.__traceback__):
            if frame.f_code.co_filename == __file__:
                continue  # the server of a test has seen the key, of course
            where = f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
            yield from ((f"{where} {name}", repr(v)) for name, v in frame.f_locals.items())


def check_shows_no_key(error: BaseException) -> None:
    assert [where for where, shown in locals_of(error) if KEY in shown] == []
    assert KEY not in "".join(traceback.format_exception(error))
    assert [exc for exc in chain_of(error) if KEY in repr(exc)] == []


async def bad_header(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n")


async def silent(connection: Connection) -> None:
    await connection.client_closes()


async def half_an_answer(connection: Connection) -> None:
    await send_half(connection, good_body(connection))
    await connection.client_closes()


async def wait(client: AsyncRunsClient) -> None:
    await client.create_and_wait_run()


async def stream(client: AsyncRunsClient) -> None:
    async for _ in client.create_and_stream_run():
        pass


Act: TypeAlias = Callable[[AsyncRunsClient], Awaitable[None]]
FAILING: dict[str, Script] = {
    "reset": reset_at_once,
    "no HTTP": garbage,
    "bad header": bad_header,
    "silence": silent,
    "broken body": breaking(bad_chunk),
    "cut body": breaking(reset),
    "silence in the body": half_an_answer,
}


def client_with_key(url: str, **limits: float) -> AsyncRunsClient:
    timeout = Timeout(**{"idle": BOUND, "connect": BOUND, **limits})
    return AsyncRunsClient(
        url, transport="aiohttp", headers=WITH_KEY, retry=None, rejoin=False, timeout=timeout
    )


@pytest.mark.parametrize("act", [wait, stream])
@pytest.mark.parametrize("script", FAILING.values(), ids=FAILING)
async def test_no_error_shows_a_header(script: Script, act: Act) -> None:
    """Seen: the frames of aiohttp hold all headers, and tools that report errors send them."""
    with raw_server(script) as server:
        async with client_with_key(server.url, idle=0.2) as client:
            with pytest.raises(AgentProtoError) as caught:
                await act(client)
    assert server.requests[0].headers["x-api-key"] == KEY
    check_shows_no_key(caught.value)


async def test_no_error_of_a_connection_shows_a_header() -> None:
    """The same where the request was never sent."""
    with raw_server(silent) as server, ExitStack() as stack:
        server.down()
        for url in (server.url, f"http://127.0.0.1:{full_backlog(stack)}", "http://x.invalid"):
            async with client_with_key(url, connect=0.2) as client:
                with pytest.raises(AgentProtoError) as caught:
                    await wait(client)
            check_shows_no_key(caught.value)


async def test_no_error_of_a_header_shows_it() -> None:
    """aiohttp writes headers as UTF-8: an error of decoding has the value as its object."""

    def sign(request: httpx.Request) -> httpx.Request:
        value = KEY.encode() + b"\xff"
        request.headers = httpx.Headers([*request.headers.raw, (b"x-key", value)])
        return request

    with raw_server(silent) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp", auth=sign) as client:
            with pytest.raises(TransportError) as caught:
                await wait(client)
    check_shows_no_key(caught.value)


async def unhurried(acting: Awaitable[None], _: threading.Event) -> None:
    await acting


async def cancelled(acting: Awaitable[None], is_reached: threading.Event) -> None:
    task = asyncio.ensure_future(acting)
    assert await asyncio.to_thread(is_reached.wait, BOUND)
    task.cancel()
    await task


async def out_of_time(acting: Awaitable[None], is_reached: threading.Event) -> None:
    async with asyncio.timeout(None) as limit:
        expiring = asyncio.ensure_future(expire(limit, is_reached))
        await acting
    await expiring


async def expire(limit: asyncio.Timeout, is_reached: threading.Event) -> None:
    assert await asyncio.to_thread(is_reached.wait, BOUND)
    limit.reschedule(asyncio.get_running_loop().time())


@pytest.mark.parametrize(
    ("end", "error"), [(cancelled, asyncio.CancelledError), (out_of_time, TimeoutError)]
)
@pytest.mark.parametrize("act", [wait, stream])
@pytest.mark.parametrize("is_in_body", [False, True])
async def test_no_end_that_the_caller_wants_shows_a_header(
    end: Callable[..., Awaitable[None]], error: type[BaseException], act: Act, *, is_in_body: bool
) -> None:
    """Seen: also behind a CancelledError, and the TimeoutError of a caller's own limit."""
    is_reached = threading.Event()

    async def script(connection: Connection) -> None:
        if is_in_body:
            await send_half(connection, good_body(connection))
        is_reached.set()
        await connection.client_closes()

    with raw_server(script) as server:
        async with client_with_key(server.url) as client:
            with pytest.raises(error) as caught:
                await end(act(client), is_reached)
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
    assert server.requests[0].headers["x-api-key"] == KEY
    check_shows_no_key(caught.value)


async def fetch_while_handling(
    transport: Transport, url: str, handled: list[ValueError], kept: list[object]
) -> None:
    try:
        int("no number")
    except ValueError as exc:
        handled.append(exc)
        kept.append(exc.__traceback__)
        await fetch(transport, url)


@pytest.mark.parametrize("how", ["refused", "cut", "cancelled"])
async def test_error_that_the_caller_handles_keeps_its_traceback(how: str) -> None:
    """Python adds it to ours as context: at once, or when an error that was thrown in passes."""
    is_reached = threading.Event()

    async def script(connection: Connection) -> None:
        is_reached.set()
        await (silent if how == "cancelled" else reset_at_once)(connection)

    handled: list[ValueError] = []
    kept: list[object] = []
    with raw_server(script) as server:
        async with Transport(LIMITS) as transport:
            url = server.url.replace("http", "ftp") if how == "refused" else server.url
            calling = fetch_while_handling(transport, url, handled, kept)
            end = cancelled if how == "cancelled" else unhurried
            with pytest.raises((httpx.TransportError, asyncio.CancelledError)) as caught:
                await end(calling, is_reached)
    assert handled[0] in chain_of(caught.value)
    assert [handled[0].__traceback__] == kept


def test_every_part_of_an_error_loses_its_traceback() -> None:
    """A report shows the causes, the contexts and the members of groups, but each once."""

    def caught(error: Exception, **links: Exception) -> Exception:
        for name, other in links.items():
            setattr(error, f"__{name}__", other)
        return error.with_traceback(some_traceback)

    try:
        int("no number")
    except ValueError as exc:
        some_traceback = exc.__traceback__
    handled = caught(KeyError())
    group = caught(ExceptionGroup("all", [caught(OSError()), caught(ValueError())]))
    error = caught(RuntimeError(), cause=caught(TypeError(), context=handled), context=group)
    group.__context__ = error
    try:
        raise handled
    except KeyError:
        assert without_frames(error, sys.exception()) is error
    assert {type(each): each.__traceback__ is not None for each in chain_of(error)} == {
        **dict.fromkeys([RuntimeError, TypeError, ExceptionGroup, OSError, ValueError], False),
        KeyError: True,
    }


REPORTED: list[tuple[Script, Act, Callable[..., Awaitable[None]]]] = [
    (silent, wait, out_of_time),
    (half_an_answer, stream, out_of_time),
    (bad_header, wait, unhurried),
    (breaking(bad_chunk), stream, unhurried),
]


def report_to_sentry() -> None:
    """Fail in several ways, and write what the real sentry-sdk would send."""
    sentry: Any = importlib.import_module("sentry_sdk")

    class Keeping(sentry.transport.Transport):  # type: ignore[misc]  # any: it may not be installed
        def capture_envelope(self, envelope: Any) -> None:
            sys.stdout.write(envelope.serialize().decode())

    sentry.init("http://key@127.0.0.1:9/1", transport=Keeping, attach_stacktrace=True)
    for script, act, end in REPORTED:
        with raw_server(script) as server:
            asyncio.run(fail_and_report(server.url, server.asked, act, end))
            assert server.requests[0].headers["x-api-key"] == KEY


async def fail_and_report(
    url: str, is_asked: threading.Event, act: Act, end: Callable[..., Awaitable[None]]
) -> None:
    try:
        async with client_with_key(url) as client:
            await end(act(client), is_asked)
    except (AgentProtoError, TimeoutError) as error:
        importlib.import_module("sentry_sdk").capture_exception(error)


def test_sentry_is_sent_no_header() -> None:
    """With its default integrations, it sends the local variables of every frame."""
    pytest.importorskip("sentry_sdk")
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_aiohttp import *; report_to_sentry()"],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[1],
        timeout=6 * BOUND,
    )
    sent = done.stdout.decode()
    reports = [json.loads(line) for line in sent.splitlines() if '"exception"' in line]
    shown = [report["exception"]["values"][-1] for report in reports]
    assert [each["type"] for each in shown] == [
        *["TimeoutError"] * 2,
        *["TransportError", "StreamInterruptedError"],
    ]
    assert all(frame["vars"] for each in shown for frame in each["stacktrace"]["frames"])
    assert KEY not in sent
