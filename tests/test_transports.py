"""Connections of our own: what they are read in, how they are made, used again and ended."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import AsyncMock, Mock

import anyio
import httpcore
import httpx
import pytest
import trustme
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agentproto import (
    AgentProtoError,
    AsyncRunsClient,
    EndEvent,
    NotFoundError,
    ProtocolError,
    RequestTimeoutError,
    RetryPolicy,
    RunsClient,
    ServerError,
    Timeout,
    TransportError,
)
from agentproto._io import WireRequest, shut_down
from agentproto._io.transports import couplings, shared_ssl_context
from agentproto._io.transports.asynchronous import (
    AsyncBackend,
    AsyncTransport,
    addresses_of,
    first_connected,
)
from agentproto._io.transports.asyncio_stream import AsyncioStream, receive_buffer

from .both import Aiohttp, Async, Blocking, Flavour
from .faults import IDS, RUN, SOON, redirect, stalled_error
from .raw_server import BOUND, Connection, RawServer, Script, chunk, head, json_answer, raw_server

SSE = {"content_type": "text/event-stream", "transfer_encoding": "chunked"}
BODY = b"".join(map(chunk, RUN)) + b"0\r\n\r\n"
RESULT = b'{"run": {"run_id": "r1", "status": "success"}}'


def new_stream() -> AsyncioStream:
    return AsyncioStream(asyncio.get_running_loop(), receive_buffer())


def receive(stream: AsyncioStream, data: bytes) -> None:
    """As an event loop does it."""
    stream.get_buffer(-1)[: len(data)] = data
    stream.buffer_updated(len(data))


def kept_open(*answers: bytes) -> Script:
    """One answer after another on one connection, the last one for all that follow."""

    async def script(connection: Connection) -> None:
        left = list(answers)
        while True:
            await connection.send(left.pop(0) if len(left) > 1 else left[0])
            raw = await connection.reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in raw.lower().split(b"\r\n") if b"content-length" in line]
            await connection.reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)

    return script


def certified() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A context for the server, and one that trusts it."""
    authority = trustme.CA()
    known = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trusting = ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(known)
    authority.configure_trust(trusting)
    return known, trusting


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The context of a server whose certificate clients of ours trust."""
    known, trusting = certified()
    for module in (
        "_io.transports.asynchronous",
        "_io.transports.blocking",
        "_io.transports.aiohttp",
    ):
        monkeypatch.setattr(f"agentproto.{module}.shared_ssl_context", lambda: trusting)
    return known


async def pieces_of(flavour: Flavour, server: RawServer) -> list[bytes]:
    """A body as the port reads it, in its pieces."""
    client = flavour.client(server.url)
    io = client._session.io
    request = WireRequest(
        method="GET",
        url=f"{server.url}/runs/r1/stream",
        headers={},
        content=None,
        asked="GET /runs/r1/stream",
        timeout=Timeout(),
        deadline=None,
    )

    async def read() -> list[bytes]:
        exchange = await io.send(request)
        pieces: list[bytes] = []
        while piece := await exchange.read():
            pieces.append(piece)
        await exchange.release()
        return pieces

    pieces = await (asyncio.to_thread(driven, read) if isinstance(flavour, Blocking) else read())
    await flavour.close(client)
    return pieces


def driven(work: Callable[[], Awaitable[list[bytes]]]) -> list[bytes]:
    try:
        work().__await__().send(None)
    except StopIteration as done:
        found: list[bytes] = done.value
        return found
    raise AssertionError("it has suspended")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_chunks_that_arrive_together_are_read_as_one_piece(
    flavour: Flavour, scheme: str, trusted: ssl.SSLContext
) -> None:
    """Without it each chunk costs what its event does; lost on any loop, it is heard here."""
    parts = [b"data: %d\n\n" % number for number in range(500)]
    is_begun = threading.Event()

    async def script(connection: Connection) -> None:
        await connection.send(head(200, **SSE))
        await connection.send(b"".join(map(chunk, parts)) + b"0\r\n\r\n")
        is_begun.set()

    with raw_server(script, tls=trusted if scheme == "https" else None) as server:
        pieces = await pieces_of(flavour, server)
    assert b"".join(pieces) == b"".join(parts)
    assert len(pieces) <= 10


async def test_streams_read_to_their_end_use_one_connection(flavour: Flavour) -> None:
    """FAULTS: after `end` the rest of the body is taken, and the connection is free again."""
    with raw_server(kept_open(head(200, **SSE) + BODY)) as server:
        client = flavour.client(server.url)
        for _ in range(5):
            stream = client.create_and_stream_run()
            assert [event.id for event in await flavour.collect(stream)] == IDS
        assert server.ends == []
        await flavour.close(client)
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
    assert server.ends == ["client"]


async def test_stream_that_is_left_at_its_end_frees_its_connection(flavour: Flavour) -> None:
    """`case EndEvent(): break` leaves as much as reading on."""
    with raw_server(kept_open(head(200, **SSE) + BODY)) as server:
        client = flavour.client(server.url)
        for _ in range(3):
            stream = client.create_and_stream_run()
            async with flavour.entered(stream):
                taken = await flavour.take(stream, len(IDS))
            assert isinstance(taken[-1], EndEvent)
            assert stream.ended == "end"
        await flavour.close(client)
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
    assert server.ends == ["client"]


async def test_rest_that_comes_behind_the_end_is_taken(flavour: Flavour) -> None:
    """A comment behind the end of the run is no reason to close the connection."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.send(head(200, **SSE) + b"".join(map(chunk, RUN)))
            await connection.send(chunk(b": bye\n\n"), chunk(b": bye\n\n"), b"0\r\n\r\n")
            await connection.reader.readuntil(b"\r\n\r\n")
            await connection.reader.readexactly(2)

    with raw_server(script) as server:
        client = flavour.client(server.url)
        for _ in range(3):
            stream = client.create_and_stream_run()
            assert [event.id for event in await flavour.collect(stream)] == IDS
        assert len(server.requests) == 1
        await flavour.close(client)


async def held_open(connection: Connection) -> None:
    await connection.send(head(200, **SSE) + b"".join(map(chunk, RUN)))
    await connection.client_closes()


async def test_body_that_stays_open_behind_the_end_is_closed(flavour: Flavour) -> None:
    """FAULTS: at most 50 ms after the end was handed over."""
    with raw_server(held_open) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        assert [event.id for event in await flavour.collect(stream)] == IDS
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
        assert stream.ended == "end"
        await flavour.close(client)


def test_body_of_a_client_of_the_caller_is_not_waited_for() -> None:
    """Nothing could limit a read that blocks there."""
    with raw_server(held_open) as server, httpx.Client() as own:
        client = RunsClient(server.url, http_client=own, timeout=Timeout(idle=60))
        assert [event.id for event in client.create_and_stream_run()] == IDS
        assert server.all_closed.wait(SOON)


@pytest.mark.parametrize("kind", [Async, Aiohttp])
async def test_body_is_closed_while_its_reader_takes_time_with_the_end(kind: type[Async]) -> None:
    """FAULTS: a caller may hold the last event for long, and its connection costs the server."""
    with raw_server(held_open) as server:
        client = kind().client(server.url)
        stream = client.create_and_stream_run()
        await kind().take(stream, len(IDS))
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
        assert [event async for event in stream] == []
        await client.aclose()


async def test_stream_that_is_dropped_at_its_end_leaves_nothing(flavour: Flavour) -> None:
    """It has nothing more to say: no warning, and no connection that waits for nobody."""
    with raw_server(held_open) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        await flavour.take(stream, len(IDS))
        del stream
        gc.collect()
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
        await flavour.close(client)


ERRORS = {
    "sized": head(500, content_length="4") + b"oops",
    "in chunks": head(500, transfer_encoding="chunked") + chunk(b"oops") + b"0\r\n\r\n",
    "empty": head(500, content_length="0"),
    "compressed": head(500, content_encoding="deflate", content_length="4") + b"oops",
}
CLIENTS: dict[str, Callable[[], Any]] = {
    "ours": lambda: None,
    "httpx": httpx.AsyncClient,
}


@pytest.mark.parametrize("body", ERRORS)
async def test_connection_that_answered_5xx_is_not_used_again(flavour: Flavour, body: str) -> None:
    """FAULTS: uvicorn closes it after an exception in a handler, and does not say so."""
    with raw_server(kept_open(ERRORS[body]), json_answer(RESULT)) as server:
        client = flavour.client(server.url, retry=None)
        with pytest.raises(ServerError):
            await flavour.call(client.create_and_wait_run)
        assert (await flavour.call(client.create_and_wait_run)).run.status == "success"
        await flavour.close(client)
    assert len(server.requests) == 2
    assert sorted(server.ends) == ["client", "server"]


@pytest.mark.parametrize("body", ["sized", "empty"])
@pytest.mark.parametrize("make", CLIENTS)
async def test_connection_of_the_caller_that_answered_5xx_is_not_used_again(
    make: str, body: str
) -> None:
    """FAULTS: whose last read is left out, no client uses again."""
    own = CLIENTS[make]()
    with raw_server(kept_open(ERRORS[body]), json_answer(RESULT)) as server:
        client = AsyncRunsClient(server.url, retry=None, http_client=own)
        with pytest.raises(ServerError):
            await client.create_and_wait_run()
        assert (await client.create_and_wait_run()).run.status == "success"
        await client.aclose()
        if own is not None:
            await own.aclose()
    assert len(server.requests) == 2


async def test_connection_that_answered_4xx_is_used_again(flavour: Flavour) -> None:
    """Its server has not stumbled."""
    missing = head(404, content_length="2") + b"{}"
    result = head(200, content_type="application/json", content_length=str(len(RESULT))) + RESULT
    with raw_server(kept_open(missing, result)) as server:
        client = flavour.client(server.url)
        with pytest.raises(NotFoundError):
            await flavour.call(client.create_and_wait_run)
        assert (await flavour.call(client.create_and_wait_run)).run.status == "success"
        await flavour.close(client)
    assert len(server.requests) == 1


@contextmanager
def failing_app() -> Iterator[str]:
    """A real server whose handler raises, and then does not."""

    async def wait(request: Request) -> JSONResponse:
        if (await request.json()).get("input") == "boom":
            raise ValueError("boom")
        return JSONResponse({"run": {"run_id": "r", "status": "success"}})

    app = Starlette(routes=[Route("/runs/wait", wait, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", http="h11", loop="asyncio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(BOUND)
        listener.close()


async def test_call_after_an_exception_in_a_handler_of_uvicorn_succeeds(flavour: Flavour) -> None:
    """Seen: with aiohttp the next POST failed 40 of 40 times."""
    with failing_app() as url:
        client = flavour.client(url, retry=None)
        for _ in range(10):
            with pytest.raises(ServerError):
                await flavour.call(client.create_and_wait_run, input="boom")
            done = await flavour.call(client.create_and_wait_run, input="ok")
            assert done.run.status == "success"
        await flavour.close(client)


async def test_request_is_not_written_to_a_connection_that_has_ended(flavour: Flavour) -> None:
    """A POST that meets a closed connection must not be repeated: it goes to another one."""
    result = head(200, content_type="application/json", content_length=str(len(RESULT))) + RESULT

    async def closing(connection: Connection) -> None:
        await connection.send(result)

    with raw_server(closing) as server:
        client = flavour.client(server.url)
        for _ in range(3):
            assert (await flavour.call(client.create_and_wait_run)).run.status == "success"
            assert await asyncio.to_thread(server.all_closed.wait, SOON)
        await flavour.close(client)
    assert len(server.requests) == 3


async def test_end_that_is_seen_just_before_the_request_is_written_costs_no_call() -> None:
    """The pool takes another connection where nothing of the request was written."""
    with raw_server(kept_open(head(200, content_length=str(len(RESULT))) + RESULT)) as server:
        async with AsyncRunsClient(server.url) as client:
            await client.create_and_wait_run()
            (stream,) = [o for o in gc.get_objects() if isinstance(o, AsyncioStream)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(AsyncioStream, "get_extra_info", lambda *_: None)
                stream.eof_received()
                assert (await client.create_and_wait_run()).run.status == "success"
    assert len(server.requests) == 2


async def test_new_connection_that_ended_before_the_request_was_never_sent() -> None:
    """The pool must not try for ever where a server accepts and closes; the retry policy ends."""
    stream = new_stream()
    stream.connection_made(Mock())
    stream.eof_received()
    with pytest.raises(httpcore.ConnectError, match="before anything was sent"):
        await stream.write(b"POST / HTTP/1.1\r\n\r\n")


async def test_server_that_closes_each_connection_at_once_is_given_up(flavour: Flavour) -> None:
    """FAULTS 2: bounded, whatever the server does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        is_over = threading.Event()

        def hang_up() -> None:
            while not is_over.is_set():
                connection, _ = listener.accept()
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = flavour.client(url, retry=RetryPolicy(attempts=3, first_delay=0))
        with pytest.raises(TransportError):
            await asyncio.wait_for(flavour.call(client.get_run, "r1"), BOUND)
        await flavour.close(client)
        is_over.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join(BOUND)


async def test_end_behind_the_first_part_of_a_request_is_an_error() -> None:
    """A body that was begun may have arrived: nothing takes another connection then."""
    stream = new_stream()
    stream.connection_made(Mock())
    await stream.write(b"POST / HTTP/1.1\r\n\r\n")
    stream.connection_lost(None)
    with pytest.raises(httpcore.WriteError):
        await stream.write(b"body")
    await stream.write(b"")  # there is none


async def test_request_that_the_server_does_not_take_is_limited(flavour: Flavour) -> None:
    """Timeout: idle is silence in both directions."""

    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = flavour.client(url, timeout=Timeout(idle=0.3), retry=None)
        with pytest.raises(RequestTimeoutError):
            await flavour.call(client.create_and_wait_run, input="x" * 30_000_000)
        await flavour.close(client)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side ends it, in time."""
    with suppress(ConnectionError):
        while connection.recv(2**20):
            pass
    return True


async def test_request_is_cancelled_while_the_server_does_not_take_it() -> None:
    """FAULTS: CancelledError passes untouched, the connection is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with AsyncRunsClient(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            task = asyncio.create_task(client.create_and_wait_run(input="x" * 30_000_000))
            connection, _ = await asyncio.to_thread(listener.accept)
            await asyncio.to_thread(connection.recv, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        connection.settimeout(SOON)
        assert await asyncio.to_thread(is_closed, connection)
        connection.close()


async def test_server_that_ends_while_it_is_written_to_is_an_error() -> None:
    """What was written may have been read: it is not repeated."""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with AsyncRunsClient(url) as client:
            task = asyncio.create_task(client.create_and_wait_run(input="x" * 30_000_000))
            connection, _ = await asyncio.to_thread(listener.accept)
            await asyncio.to_thread(connection.recv, 10)
            connection.close()
            with pytest.raises(TransportError) as caught:
                await asyncio.wait_for(task, BOUND)
    assert caught.value.was_sent is not False


async def test_handshake_that_never_ends_is_limited(flavour: Flavour) -> None:
    """Timeout: connect is the handshake, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        client = flavour.client(url, timeout=Timeout(connect=0.2), retry=None)
        with pytest.raises(RequestTimeoutError) as caught:
            await flavour.call(client.create_run)
        await flavour.close(client)
    assert caught.value.limit == "connect"


async def test_handshake_that_the_server_breaks_was_never_sent(flavour: Flavour) -> None:
    """FAULTS: what fails before a byte of the request was written may be repeated."""

    async def script(connection: Connection) -> None:
        connection.reset()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(BOUND)

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        client = flavour.client(url, retry=None)
        with pytest.raises(TransportError) as caught:
            await flavour.call(client.create_run)
        await flavour.close(client)
        thread.join()
    assert caught.value.was_sent is False


async def test_handshake_is_cancelled() -> None:
    """FAULTS: task cancelled while connecting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with AsyncRunsClient(f"https://127.0.0.1:{listener.getsockname()[1]}") as client:
            task = asyncio.create_task(client.create_run())
            connection, _ = await asyncio.to_thread(listener.accept)
            await asyncio.to_thread(connection.recv, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        connection.close()


async def test_connection_that_ended_before_its_handshake_is_an_error() -> None:
    """A proxy may close behind its answer to CONNECT."""
    stream = new_stream()
    with pytest.raises(httpcore.ConnectError, match="has ended"):
        await stream.start_tls(ssl.create_default_context())


async def test_address_that_takes_long_is_passed_by() -> None:
    """RFC 8305: the next address is tried beside it; what comes second is closed."""
    hangs = asyncio.Event()
    stream = Mock()

    async def slow() -> Any:
        await hangs.wait()

    async def good() -> Any:
        return stream

    assert await first_connected([slow, good]) is stream
    stream.abort.assert_not_called()


async def test_connection_that_is_made_second_is_closed() -> None:
    """RFC 8305."""
    first, second = Mock(), Mock()
    is_made = asyncio.Event()

    async def one() -> Any:
        await is_made.wait()
        return first

    async def other() -> Any:
        with anyio.CancelScope(shield=True):
            is_made.set()
            await asyncio.sleep(0.01)
        return second

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentproto._io.transports.asynchronous.NEXT_ATTEMPT_SECONDS", 0)
        assert await first_connected([one, other]) is first
    first.abort.assert_not_called()
    second.abort.assert_called_once_with()


async def test_no_address_is_reached() -> None:
    """The error of the first one, and those of all as its cause."""

    async def refused() -> Any:
        raise ConnectionRefusedError(111, "Connect call failed")

    with pytest.raises(ConnectionRefusedError, match="Connect call failed") as caught:
        await first_connected([refused, refused])
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.exceptions) == 2


async def test_attempt_that_wins_when_its_call_is_cancelled_is_closed() -> None:
    """Nobody is left to use it."""
    stream = Mock()

    async def made_as_the_caller_leaves() -> Any:
        task.cancel()
        return stream

    task = asyncio.create_task(first_connected([made_as_the_caller_leaves] * 2))
    with pytest.raises(asyncio.CancelledError):
        await task
    stream.abort.assert_called_once_with()


async def test_loop_that_gives_no_connection_after_a_handshake_is_an_error() -> None:
    """asyncio: `start_tls` returns None where the transport was closing."""
    loop = Mock(start_tls=AsyncMock(return_value=None))
    stream = AsyncioStream(loop, receive_buffer())
    stream.connection_made(Mock())
    with pytest.raises(httpcore.ConnectError, match="has ended"):
        await stream.start_tls(ssl.create_default_context())


class _Stream(httpx.AsyncByteStream, httpx.SyncByteStream):
    """Pieces, one of them empty, and then perhaps an error."""

    def __init__(self, *pieces: bytes, error: BaseException | None = None) -> None:
        self._pieces, self._error = pieces, error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class _Transport(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """One answer of a transport of the caller's."""

    def __init__(self, answer: httpx.Response | BaseException) -> None:
        self._answer = answer

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        del request
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


async def test_piece_of_nothing_is_not_the_end() -> None:
    """A transport that can be aborted may be the caller's."""
    extensions = {"http_version": b"HTTP/1.1", "network_stream": Mock()}
    answer = httpx.Response(200, stream=_Stream(b"", RESULT), extensions=extensions)
    async with AsyncRunsClient("http://x", transport=_Transport(answer)) as client:
        assert (await client.create_and_wait_run()).run.status == "success"


async def test_answer_over_http_2_that_was_not_read_is_left() -> None:
    """There is no body whose reading is to be ended."""
    answer = httpx.Response(204, stream=_Stream(), extensions={"http_version": b"HTTP/2"})
    async with AsyncRunsClient("http://x", transport=_Transport(answer)) as client:
        with pytest.raises(ProtocolError, match="204"):
            await client.create_and_wait_run()


@pytest.mark.parametrize("error", [LookupError("theirs"), KeyboardInterrupt()])
def test_error_of_the_callers_own_comes_out_as_it_is(error: BaseException) -> None:
    """What is no failure of the network is for the caller to see."""
    answer = httpx.Response(200, stream=_Stream(b"{", error=error))
    for given in (answer, error):
        with RunsClient("http://x", transport=_Transport(given), retry=None) as client:
            with pytest.raises(type(error)) as caught:
                client.create_and_wait_run()
            assert caught.value is error


def test_stream_without_a_socket_has_nothing_to_shut_down() -> None:
    """A transport of the caller's may have none."""
    shut_down(Mock(get_extra_info=lambda _: None))


@pytest.mark.parametrize("kind", [httpx.Client, httpx.AsyncClient])
async def test_redirect_without_a_target_is_refused_over_a_client_of_the_caller(kind: Any) -> None:
    """FAULTS, Matrix: redirect, any target."""
    with raw_server(redirect(302, None)) as server:
        own = kind()
        made = RunsClient if kind is httpx.Client else AsyncRunsClient
        client: Any = made(server.url, http_client=own)
        flavour = Blocking() if kind is httpx.Client else Async()
        with pytest.raises(AgentProtoError):
            await flavour.call(client.create_run)
        await flavour.close(client)
    await (own.aclose() if isinstance(own, httpx.AsyncClient) else asyncio.to_thread(own.close))


async def test_addresses_of_both_families_are_tried_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RFC 8305: a family that is not reached must not delay the other."""
    v4 = [(socket.AF_INET, 1, 6, "", (f"192.0.2.{n}", 80)) for n in (1, 2, 3)]
    v6 = [(socket.AF_INET6, 1, 6, "", ("2001:db8::1", 80, 0, 0))]

    async def found(*_: object, **__: object) -> Any:
        return [*v6, *v4]

    monkeypatch.setattr("anyio.getaddrinfo", found)
    assert await addresses_of("host.test", 80) == [
        (socket.AF_INET6, "2001:db8::1"),
        (socket.AF_INET, "192.0.2.1"),
        (socket.AF_INET, "192.0.2.2"),
        (socket.AF_INET, "192.0.2.3"),
    ]
    assert await addresses_of("::1", 80) == [(socket.AF_INET6, "::1")]


async def test_name_with_several_addresses_is_reached() -> None:
    """`localhost` has two on most machines, one of which is often refused."""
    with raw_server(json_answer('{"run_id": "r1"}')) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        async with AsyncRunsClient(url) as client:
            assert (await client.get_run("r1")).run_id == "r1"


async def test_name_whose_addresses_all_refuse_is_an_error(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    """The number of the error is kept."""

    async def found(*_: object, **__: object) -> Any:
        return [
            (socket.AF_INET, 1, 6, "", ("127.0.0.1", unused_port)),
            (socket.AF_INET, 1, 6, "", ("127.0.0.2", unused_port)),
        ]

    monkeypatch.setattr("anyio.getaddrinfo", found)
    with pytest.raises(httpcore.ConnectError, match=r"Errno 111|Connection refused"):
        await AsyncBackend().connect_tcp("host.test", unused_port, timeout=5)


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_silence_of_a_later_read_is_measured_from_its_beginning() -> None:
    """One timer serves all reads: it must neither fire for an earlier one nor be lost."""
    loop = asyncio.get_running_loop()
    stream = new_stream()
    stream.connection_made(Mock())
    loop.call_later(0.1, receive, stream, b"a")
    assert await stream.read(10, timeout=0.15) == b"a"
    loop.call_later(0.1, receive, stream, b"b")
    assert await stream.read(10, timeout=0.15) == b"b"  # the timer has fired, and waits on
    receive(stream, b"c")
    assert await stream.read(10, timeout=60) == b"c"
    with pytest.raises(httpcore.ReadTimeout):
        await stream.read(10, timeout=0.05)


async def test_shorter_limit_replaces_a_longer_one() -> None:
    """The body of an error has five seconds, whatever the call had before."""
    loop = asyncio.get_running_loop()
    stream = new_stream()
    stream.connection_made(Mock())
    loop.call_soon(receive, stream, b"a")
    assert await stream.read(10, timeout=3600) == b"a"
    with pytest.raises(httpcore.ReadTimeout):
        await asyncio.wait_for(stream.read(10, timeout=0.05), BOUND)


async def test_what_arrives_with_the_end_of_patience_counts() -> None:
    """Both may happen in one turn of the loop."""
    stream = new_stream()
    stream.connection_made(Mock())
    reading = asyncio.ensure_future(stream.read(10, timeout=0.01))
    while not stream._is_silent:  # noqa: ASYNC110  # it sets no event
        await asyncio.sleep(0)
    receive(stream, b"a")
    assert await reading == b"a"


async def test_reset_is_an_error_behind_what_had_arrived() -> None:
    """Nothing is lost that was there."""
    stream = new_stream()
    stream.connection_made(Mock())
    receive(stream, b"a")
    receive(stream, b"b")
    stream.connection_lost(ConnectionResetError("reset by peer"))
    assert await stream.read(10) == b"ab"
    with pytest.raises(httpcore.ReadError, match="reset by peer"):
        await stream.read(10)
    assert stream.get_extra_info("socket") is None
    assert stream.get_extra_info("is_readable") is True


async def test_what_nobody_takes_pauses_the_connection() -> None:
    """FAULTS: load: the socket pushes back."""
    transport = Mock()
    stream = new_stream()
    stream.connection_made(transport)
    for _ in range(100):
        receive(stream, b"x" * 10_000)
    transport.pause_reading.assert_called_once_with()
    await stream.read(10)
    transport.resume_reading.assert_called_once_with()
    for _ in range(100):
        receive(stream, b"x" * 10_000)
    stream.connection_lost(None)
    assert len(await stream.read(10)) == 1_000_000


def test_connection_of_a_loop_that_has_ended_is_let_go() -> None:
    """There is nobody to close it, and nothing to complain about."""
    loop = asyncio.new_event_loop()
    stream = AsyncioStream(loop, receive_buffer())
    loop.close()
    stream.abort()
    stream.drop()


def test_httpx_that_keeps_its_pool_elsewhere_is_heard() -> None:
    """Couplings: joining, closing and leaving must not be lost in silence."""
    with pytest.raises(RuntimeError, match=f"httpx {httpx.__version__} keeps its pool elsewhere"):
        couplings.put_pool(Mock(spec=[]), None)


def test_transport_of_httpx_sends_through_our_pool() -> None:
    """Couplings, seen on httpx 0.28.1."""
    transport = AsyncTransport()
    assert isinstance(transport._pool._network_backend, AsyncBackend)


def test_read_limit_of_a_body_is_looked_up_when_its_reading_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Couplings, seen on httpcore 1.0.9: a client of the caller's waits no longer for an error."""
    monkeypatch.setattr("agentproto._session.ERROR_SECONDS", 0.2)
    with raw_server(stalled_error) as server, httpx.Client() as own:
        client = RunsClient(server.url, http_client=own, timeout=Timeout(idle=60))
        with pytest.raises(NotFoundError):
            client.get_run("r1")


def test_certificates_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read them takes 20 ms; who names others is asked again."""
    assert shared_ssl_context() is shared_ssl_context()
    before = shared_ssl_context()
    with trustme.CA().cert_pem.tempfile() as path:
        monkeypatch.setenv("SSL_CERT_FILE", path)
        assert shared_ssl_context() is not before
