"""HTTP/2, on a client of the caller's: its server cannot see that a stream was left.

httpcore 1.0.9 sends nothing when an HTTP/2 stream is left, so a run that is to be cancelled when
its caller leaves is cancelled by a request. The server here is a real one, of h2, in cleartext.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

import anyio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import httpx
import pytest

from agentproto import (
    AsyncRunsClient,
    Command,
    ProtocolError,
    RequestTimeoutError,
    RunFailedError,
    StatusError,
    StreamInterruptedError,
    Timeout,
    TransportError,
)

from .both import Async, Blocking, Flavour, as_forked
from .faults import SOON
from .raw_server import BOUND, events, raw_server

LIMIT_OF_STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
SSE = "text/event-stream"
JSON = "application/json"


def block(event: str, data: Any, event_id: str) -> bytes:
    return f"id: {event_id}\nevent: {event}\ndata: {json.dumps(data)}\n\n".encode()


@dataclass
class Call:
    """One request and the stream of its answer."""

    method: str
    target: str
    body: Any
    server: Http2Server
    connection: _Connection
    stream_id: int
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    def head(self, status: int = 200, **headers: str) -> None:
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.connection.h2.send_headers(self.stream_id, [(":status", str(status)), *named])
        self.connection.flush()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.h2.send_data(self.stream_id, piece)
        self.connection.flush()

    def end(self) -> None:
        with suppress(h2.exceptions.ProtocolError):  # it has ended before
            self.connection.h2.end_stream(self.stream_id)
            self.connection.flush()
        self.is_over.set()

    def answer(self, body: Any = None, status: int = 200, **headers: str) -> None:
        self.head(status, content_type=JSON, **headers)
        self.send(json.dumps(body).encode())
        self.end()


Script: TypeAlias = Callable[[Call], Awaitable[None]]


class _Connection(asyncio.Protocol):
    def __init__(self, server: Http2Server) -> None:
        self.server = server
        settings = h2.config.H2Configuration(client_side=False)
        self.h2 = h2.connection.H2Connection(settings)
        self.calls: dict[int, Call] = {}
        self.bodies: dict[int, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.add(self)
        most = self.server.max_streams
        limits = {} if most is None else {LIMIT_OF_STREAMS: most}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=limits)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived(stream_id=int(number), headers=headers):
                    named = dict(headers or [])
                    method, target = named[b":method"].decode(), named[b":path"].decode()
                    self.calls[number] = Call(method, target, None, self.server, self, number)
                    self.bodies[number] = b""
                case h2.events.DataReceived(stream_id=int(number), data=bytes(piece)):
                    self.bodies[number] += piece
                    self.h2.acknowledge_received_data(len(piece), number)
                case h2.events.StreamEnded(stream_id=int(number)):
                    call = self.calls[number]
                    call.body = json.loads(self.bodies.pop(number) or b"null")
                    self.server.take(call)
                case h2.events.StreamReset(stream_id=int(number)):
                    self.server.note(f"reset of {self.calls[number].path}")
                case _:
                    pass
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.server.note("connection closed")


@dataclass
class Http2Server:
    """Runs that go on until they are cancelled, r1, r2 and so on, on one port of loopback.

    `answers` are scripts in the place of the usual ones, by the name of what is asked: `stream`,
    `wait`, `join`, `get` or `cancel`.
    """

    answers: dict[str, Script] = field(default_factory=dict)
    max_streams: int | None = 100
    heard: list[str] = field(default_factory=list)
    """The requests, and what else a client did."""
    url: str = ""

    def __enter__(self) -> Self:
        self.connections: set[_Connection] = set()
        self.calls: list[Call] = []
        self.runs: dict[str, Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(BOUND)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(BOUND)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._listener = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.sleep(0)

    def hang_up(self) -> None:
        """Accept no connection any more, and reset those that are there."""
        self._listener.close()
        for connection in list(self.connections):
            connection.transport.abort()

    async def sends(self, run_id: str, *pieces: bytes, is_over: bool = False) -> None:
        """Let a run go on with this."""
        sent = _sent(self.runs[run_id], pieces, is_over=is_over)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sent, self._loop))

    def answer_the_silent(self) -> None:
        """Answer each cancel that got no answer."""
        for call in self.calls:
            if _asked(call) == "cancel":
                self._loop.call_soon_threadsafe(call.answer)

    def note(self, what: str) -> None:
        with self._changed:
            self.heard.append(what)
            self._changed.notify_all()

    def take(self, call: Call) -> None:
        self.calls.append(call)
        self.note(f"{call.method} {call.path}")
        script = self.answers.get(_asked(call), USUAL[_asked(call)])
        task = self._loop.create_task(_played(script, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def hears(self, what: str, times: int = 1, seconds: float = BOUND) -> bool:
        """Whether a client does this so many times, in time."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.heard.count(what) >= times, seconds)

        return await anyio.to_thread.run_sync(wait)

    @property
    def asked(self) -> list[str]:
        """The requests."""
        return [f"{call.method} {call.path}" for call in self.calls]

    @property
    def cancelled(self) -> list[str]:
        """The runs that clients asked to cancel."""
        return [call.path.split("/")[-2] for call in self.calls if _asked(call) == "cancel"]


async def _sent(call: Call, pieces: tuple[bytes, ...], *, is_over: bool) -> None:
    call.send(*pieces)
    if is_over:
        call.end()


async def _played(script: Script, call: Call) -> None:
    with suppress(h2.exceptions.ProtocolError):  # its connection has ended
        await script(call)


def _asked(call: Call) -> str:
    last = call.path.rpartition("/")[2]
    if call.method == "GET":
        return "join" if last == "stream" else "get"
    return last


def _begun(call: Call) -> str:
    """The id of a run that begins with this call."""
    resumed = call.path.split("/")[-2]
    run_id = resumed if resumed != "runs" else f"r{len(call.server.runs) + 1}"
    call.server.runs[run_id] = call
    return run_id


async def streamed(call: Call) -> None:
    """A run that is named by its first event, and goes on."""
    run_id = _begun(call)
    call.head(content_type=SSE)
    call.send(block("metadata", {"run_id": run_id}, "1"))
    await call.is_over.wait()


async def awaited(call: Call) -> None:
    """A run that is named by a header, and goes on."""
    path = f"{call.path.rpartition('/')[0]}/{_begun(call)}"
    call.head(content_type=JSON, content_location=path)
    call.send(b"\n")
    await call.is_over.wait()


async def joined(call: Call) -> None:
    call.head(content_type=SSE)
    call.send(block("values", {"n": 1}, "2"))
    await call.is_over.wait()


async def active(call: Call) -> None:
    call.answer({"run_id": call.path.rpartition("/")[2], "status": "running"})


async def cancelled(call: Call) -> None:
    """The run is over, and so is its stream."""
    call.answer(None)
    call.server.runs[call.path.split("/")[-2]].end()


async def silent(call: Call) -> None:
    await call.is_over.wait()


USUAL: dict[str, Script] = {
    "stream": streamed,
    "wait": awaited,
    "join": joined,
    "get": active,
    "cancel": cancelled,
}


def answering(status: int) -> Script:
    async def script(call: Call) -> None:
        call.answer({"detail": "no"}, status)

    return script


async def hanging_up(call: Call) -> None:
    call.server.hang_up()


def run_that_is(**fields: str) -> Script:
    async def script(call: Call) -> None:
        call.answer({"run_id": call.path.rpartition("/")[2], **fields})

    return script


def ending_with(*pieces: bytes, is_over: bool = False) -> Script:
    """A run that is named, and then this."""

    async def script(call: Call) -> None:
        run_id = _begun(call)
        call.head(content_type=SSE)
        call.send(b"".join([block("metadata", {"run_id": run_id}, "1"), *pieces]))
        if is_over:
            call.end()
        await call.is_over.wait()

    return script


async def nameless(call: Call) -> None:
    call.head(content_type=SSE)
    call.send(block("values", {"n": 1}, "1"))
    await call.is_over.wait()


ANSWER = Command(resume="yes")
END = block("end", {"status": "success"}, "2")


@asynccontextmanager
async def connected(flavour: Flavour, server: Http2Server, **arguments: Any) -> AsyncIterator[Any]:
    """A client over a client of the caller's, which is closed when ours is."""
    kind = httpx.AsyncClient if isinstance(flavour, Async) else httpx.Client
    theirs = kind(http1=False, http2=True)
    client = flavour.client(server.url, http_client=theirs, **arguments)
    try:
        yield client
    finally:
        await flavour.close(client)
        await (theirs.aclose() if isinstance(theirs, httpx.AsyncClient) else _closed(theirs))
    if server.calls:
        assert await server.hears("connection closed")


async def _has_answer(client: Any) -> None:
    while not client._session.io.shared():  # noqa: ASYNC110  # nothing says when
        await asyncio.sleep(0)


async def _closed(theirs: httpx.Client) -> None:
    await asyncio.to_thread(theirs.close)


async def _read(stream: Any, has_begun: asyncio.Event) -> None:
    async for _ in stream:
        has_begun.set()


async def _reading(client: Any) -> tuple[asyncio.Task[None], Any]:
    """A task that waits for an event, and what it reads."""
    stream, has_begun = client.create_and_stream_run(), asyncio.Event()
    task = asyncio.create_task(_read(stream, has_begun))
    await has_begun.wait()
    return task, stream


async def after_break(client: Any) -> None:
    stream = client.create_and_stream_run()
    async for _ in stream:
        break
    await stream.aclose()


async def at_the_end_of_the_block(client: Any) -> None:
    async with client.create_and_stream_run(on_disconnect="cancel") as stream:
        await anext(stream)


async def by_an_exception_in_the_block(client: Any) -> None:
    async def fail() -> None:
        async with client.create_and_stream_run() as stream:
            await anext(stream)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()


async def by_a_cancelled_task(client: Any) -> None:
    task, _ = await _reading(client)
    task.cancel("the caller's reason")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("the caller's reason",)


async def by_a_task_cancelled_twice(client: Any) -> None:
    task, _ = await _reading(client)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_a_limit_of_asyncio(client: Any) -> None:
    async def read() -> None:
        async with asyncio.timeout(BOUND) as limit:
            async for _ in client.create_and_stream_run():
                limit.reschedule(asyncio.get_running_loop().time())

    with pytest.raises(TimeoutError):
        await read()


async def by_a_limit_of_anyio(client: Any) -> None:
    with anyio.move_on_after(BOUND) as scope:
        async for _ in client.create_and_stream_run():
            scope.deadline = anyio.current_time()
    assert scope.cancelled_caught


async def by_the_total_limit(client: Any) -> None:
    stream = client.create_and_stream_run(timeout=Timeout(total=0.7))
    with pytest.raises(RequestTimeoutError, match=r"timeout\.total"):
        await _read(stream, asyncio.Event())


async def by_the_limit_of_silence(client: Any) -> None:
    stream = client.create_and_stream_run(timeout=Timeout(idle=0.7))
    with pytest.raises(StreamInterruptedError, match=r"timeout\.idle"):
        await _read(stream, asyncio.Event())


async def by_closing_the_client(client: Any) -> None:
    stream = client.create_and_stream_run()
    await anext(stream)
    await client.aclose()
    assert stream.ended == "closed"


async def by_closing_the_stream_that_a_task_reads(client: Any) -> None:
    task, stream = await _reading(client)
    await stream.aclose()
    with pytest.raises(RuntimeError, match="stream is closed"):
        await task


async def by_closing_the_client_that_a_task_reads(client: Any) -> None:
    task, _ = await _reading(client)
    await client.aclose()
    with pytest.raises(RuntimeError, match=r"stream is closed|client was closed"):
        await task


async def by_closing_the_client_while_a_cancelled_task_ends(client: Any) -> None:
    task, _ = await _reading(client)
    task.cancel()
    await client.aclose()
    with pytest.raises(asyncio.CancelledError):
        await task


WAYS: list[Callable[[Any], Awaitable[None]]] = [
    after_break,
    at_the_end_of_the_block,
    by_an_exception_in_the_block,
    by_a_cancelled_task,
    by_a_task_cancelled_twice,
    by_a_limit_of_asyncio,
    by_a_limit_of_anyio,
    by_the_total_limit,
    by_the_limit_of_silence,
    by_closing_the_client,
    by_closing_the_stream_that_a_task_reads,
    by_closing_the_client_that_a_task_reads,
    by_closing_the_client_while_a_cancelled_task_ends,
]


@pytest.mark.parametrize("leave", WAYS)
async def test_run_that_is_left_is_cancelled_once(
    leave: Callable[[Any], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS, Matrix: HTTP/2, the caller leaves a run that is known and has not ended."""
    caplog.set_level(logging.INFO, "agentproto")
    with Http2Server() as server:
        async with connected(Async(), server) as client:
            await asyncio.wait_for(leave(client), BOUND)
            assert await server.hears("POST /runs/r1/cancel", seconds=SOON)
        assert server.cancelled == ["r1"]
    assert caplog.messages == ["run r1 was left, and is cancelled"]
    assert "connection closed" in server.heard


def after_break_sync(client: Any) -> None:
    stream = client.create_and_stream_run()
    next(stream)
    stream.close()


def at_the_end_of_the_block_sync(client: Any) -> None:
    with client.create_and_stream_run(on_disconnect="cancel") as stream:
        next(stream)


def by_an_exception_in_the_block_sync(client: Any) -> None:
    def fail() -> None:
        with client.create_and_stream_run() as stream:
            next(stream)
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def by_the_total_limit_sync(client: Any) -> None:
    stream = client.create_and_stream_run(timeout=Timeout(total=0.7))
    with pytest.raises(RequestTimeoutError, match=r"timeout\.total"):
        list(stream)


def by_closing_the_client_sync(client: Any) -> None:
    stream = client.create_and_stream_run()
    next(stream)
    client.close()
    assert stream.ended == "closed"


def by_closing_from_another_thread(client: Any) -> None:
    """The thread that reads is not ended by this, but by its server."""
    stream = client.create_and_stream_run()
    next(stream)
    closing = threading.Thread(target=client.close)
    closing.start()
    with pytest.raises(RuntimeError, match=r"stream is closed|client was closed"):
        next(stream)
    closing.join(BOUND)
    assert not closing.is_alive()


WAYS_SYNC: list[Callable[[Any], None]] = [
    after_break_sync,
    at_the_end_of_the_block_sync,
    by_an_exception_in_the_block_sync,
    by_the_total_limit_sync,
    by_closing_the_client_sync,
    by_closing_from_another_thread,
]


@pytest.mark.parametrize("leave", WAYS_SYNC)
async def test_run_that_is_left_without_an_event_loop_is_cancelled_once(
    leave: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS, Matrix: the same, sync."""
    caplog.set_level(logging.INFO, "agentproto")
    with Http2Server() as server:
        async with connected(Blocking(), server) as client:
            await asyncio.wait_for(asyncio.to_thread(leave, client), BOUND)
            assert await server.hears("POST /runs/r1/cancel", seconds=SOON)
        assert server.cancelled == ["r1"]
    assert caplog.messages == ["run r1 was left, and is cancelled"]


@pytest.fixture(params=[Async, Blocking], ids=["async", "sync"])
def http2(request: pytest.FixtureRequest) -> Flavour:
    """The clients, less that of aiohttp, which has no HTTP/2."""
    made: Flavour = request.param()
    return made


async def _leave(flavour: Flavour, client: Any, **create: Any) -> None:
    async with flavour.entered(client.create_and_stream_run(**create)) as stream:
        await flavour.take(stream, 1)


async def test_run_that_outlives_its_caller_is_not_cancelled(http2: Flavour) -> None:
    """FAULTS, Matrix: `on_disconnect="continue"`."""
    with Http2Server() as server:
        async with connected(http2, server) as client:
            await _leave(http2, client, on_disconnect="continue")
            stream = client.create_and_stream_run(on_disconnect="continue")
            await http2.take(stream, 1)
        assert server.heard == ["POST /runs/stream"] * 2 + ["connection closed"]
        assert stream.ended == "closed"


async def test_run_that_is_not_known_is_not_cancelled(http2: Flavour) -> None:
    """FAULTS, Matrix: the run must be known."""
    with Http2Server({"stream": nameless}) as server:
        async with connected(http2, server) as client:
            await _leave(http2, client)
        assert server.heard == ["POST /runs/stream", "connection closed"]


@pytest.mark.parametrize(
    ("script", "count"),
    [
        (ending_with(END), 1),
        (ending_with(END), 2),
        (ending_with(END, is_over=True), 2),
        (ending_with(block("values", {"n": 1}, "2"), is_over=True), 2),
    ],
    ids=["end not taken", "end", "end and end of the body", "end of the body"],
)
async def test_run_that_has_ended_is_not_cancelled(
    http2: Flavour, script: Script, count: int
) -> None:
    """FAULTS, Matrix: the run must not have ended."""
    with Http2Server({"stream": script, "get": run_that_is(status="success")}) as server:
        async with connected(http2, server) as client:
            stream = client.create_and_stream_run()
            await http2.take(stream, count)
            if count > 1:
                assert await http2.collect(stream) == []
            await http2.close(stream)
        assert server.cancelled == []


async def test_run_that_has_failed_is_not_cancelled(http2: Flavour) -> None:
    """FAULTS, Matrix: an `error` event ends a run."""
    failing = ending_with(block("error", {"error": "E", "message": "no"}, "2"))
    with Http2Server({"stream": failing}) as server:
        async with connected(http2, server) as client:
            with pytest.raises(RunFailedError):
                await http2.collect(client.create_and_stream_run())
        assert server.heard == ["POST /runs/stream", "connection closed"]


async def test_run_that_was_joined_is_not_cancelled(http2: Flavour) -> None:
    """FAULTS, Matrix: leaving `stream_run` does not cancel a run."""
    with Http2Server() as server:
        async with connected(http2, server) as client:
            stream = client.stream_run("r1")
            await http2.take(stream, 1)
            await http2.close(stream)
        assert server.heard == ["GET /runs/r1/stream", "connection closed"]


async def test_run_that_is_left_over_http_1_is_not_cancelled(flavour: Flavour) -> None:
    """FAULTS, Matrix: there its server sees the end of the connection."""
    named = block("metadata", {"run_id": "r1"}, "1")
    with raw_server(events(named, hold=True)) as server:
        client = flavour.client(server.url)
        await _leave(flavour, client, on_disconnect="cancel")
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
        await flavour.close(client)
    assert [request.target for request in server.requests] == ["/runs/stream"]


async def test_stream_that_is_collected_cancels_nothing(http2: Flavour) -> None:
    """FAULTS, Matrix: nothing in `__del__`, and nothing later for it."""

    async def drop(client: Any) -> None:
        await anext(client.create_and_stream_run())
        gc.collect()

    def drop_sync(client: Any) -> None:
        next(client.create_and_stream_run())
        gc.collect()

    with Http2Server() as server:
        async with connected(http2, server) as client:
            for _ in range(2):
                with pytest.warns(ResourceWarning, match="was not closed"):
                    await http2.call(drop if isinstance(http2, Async) else drop_sync, client)
        assert server.heard == ["POST /runs/stream"] * 2 + ["connection closed"]


async def test_langgraph_run_is_cancelled_where_that_was_asked_for(http2: Flavour) -> None:
    """FAULTS, Matrix: a run of LangGraph outlives its caller unless the caller says otherwise."""
    with Http2Server() as server:
        async with connected(http2, server, dialect="langgraph") as client:
            await _leave(http2, client, agent_id="a", thread_id="t1")
            await _leave(http2, client, agent_id="a", thread_id="t1", on_disconnect="cancel")
        assert [(call.method, call.target) for call in server.calls] == [
            ("POST", "/threads/t1/runs/stream"),
            ("POST", "/threads/t1/runs/stream"),
            ("POST", "/threads/t1/runs/r2/cancel?wait=0&action=interrupt"),
        ]


async def test_langgraph_run_without_a_thread_is_logged(
    http2: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a stateless run the thread need not be known: it cannot be cancelled."""
    with Http2Server() as server:
        async with connected(http2, server, dialect="langgraph") as client:
            await _leave(http2, client, agent_id="a", on_disconnect="cancel")
        assert server.cancelled == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith("run r1 was left and could not be cancelled: ")


@pytest.mark.parametrize(
    ("script", "is_cancelled"),
    [
        (run_that_is(status="running"), True),
        (run_that_is(status="pending", on_disconnect="cancel"), True),
        (run_that_is(status="running", on_disconnect="continue"), False),
        (run_that_is(status="success"), False),
        (answering(404), False),
    ],
    ids=["running", "cancel", "continue", "success", "not found"],
)
@pytest.mark.parametrize("call", ["stream", "wait"])
async def test_run_that_is_updated_is_looked_at_before_it_is_cancelled(
    http2: Flavour,
    call: str,
    script: Script,
    is_cancelled: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FAULTS, Matrix: an update does not know what the run is to do when its caller leaves."""
    with Http2Server({"get": script}) as server:
        async with connected(http2, server) as client:
            if call == "stream":
                stream = client.update_and_stream_run("r7", command=ANSWER)
                async with http2.entered(stream):
                    await http2.take(stream, 1)
            else:
                limits = Timeout(total=0.7)
                with pytest.raises(RequestTimeoutError, match=r"timeout\.total"):
                    await http2.call(
                        client.update_and_wait_run, "r7", command=ANSWER, timeout=limits
                    )
        looked = [f"POST /runs/r7/{call}", "GET /runs/r7"]
        cancels = ["POST /runs/r7/cancel"] * is_cancelled
        assert server.asked == [*looked, *cancels]
    assert not caplog.records


async def test_wait_that_is_cancelled_cancels_its_run() -> None:
    """FAULTS, Matrix: a wait call whose run a header names."""
    with Http2Server() as server:
        async with connected(Async(), server) as client:
            task = asyncio.create_task(client.create_and_wait_run())
            await server.hears("POST /runs/wait")
            await asyncio.wait_for(_has_answer(client), BOUND)
            task.cancel("the caller's reason")
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert caught.value.args == ("the caller's reason",)
        assert server.cancelled == ["r1"]


async def test_wait_whose_client_is_closed_cancels_its_run(http2: Flavour) -> None:
    """FAULTS, Matrix: the same where another task or thread closes the client."""
    # A thread that waits is ended by its server, a task by the client.
    ends = cancelled if isinstance(http2, Blocking) else answering(200)
    with Http2Server({"cancel": ends}) as server:
        async with connected(http2, server) as client:
            task = asyncio.create_task(http2.call(client.create_and_wait_run))
            await asyncio.wait_for(_has_answer(client), BOUND)
            await http2.close(client)
            expected = (RuntimeError, ProtocolError)
            with pytest.raises(expected, match=r"client was closed|JSON object with run"):
                await task
        assert server.cancelled == ["r1"]


async def test_wait_that_is_over_cancels_nothing(http2: Flavour) -> None:
    """FAULTS, Matrix: a whole answer, one that is refused, and one that is no output."""

    async def whole(call: Call) -> None:
        call.answer({"run": {"run_id": "r1"}, "values": {}}, content_location="/runs/r1")

    async def empty(call: Call) -> None:
        call.answer(None, content_location="/runs/r1")

    for script, error in [(whole, None), (answering(409), StatusError), (empty, ProtocolError)]:
        with Http2Server({"wait": script, "get": run_that_is(status="success")}) as server:
            async with connected(http2, server) as client:
                with nullcontext() if error is None else pytest.raises(error):
                    await http2.call(client.create_and_wait_run)
            assert server.cancelled == []


async def test_stream_whose_events_cannot_be_read_cancels_its_run(http2: Flavour) -> None:
    """Over HTTP/1.1 its server would see the end of the connection."""
    with Http2Server({"stream": ending_with(b"event: values\ndata: {\n\n")}) as server:
        async with connected(http2, server) as client:
            with pytest.raises(ProtocolError):
                await http2.collect(client.create_and_stream_run())
        assert server.cancelled == ["r1"]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (answering(404), "answered 404"),
        (answering(409), "answered 409"),
        (answering(500), "answered 500"),
        (hanging_up, "the connection broke"),
        (silent, "no answer within 2 s"),
    ],
)
async def test_cancel_that_fails_is_logged_and_not_raised(
    http2: Flavour, script: Script, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS, Matrix: of at most 2 s, logged, never raised."""
    with Http2Server({"cancel": script}) as server:
        async with connected(http2, server) as client:
            await asyncio.wait_for(_leave(http2, client), BOUND)
        assert server.cancelled == ["r1"]
    assert [(r.name, r.levelname) for r in caplog.records] == [("agentproto", "WARNING")]
    assert caplog.messages[0].startswith("run r1 was left and could not be cancelled: ")
    assert problem in caplog.messages[0]


async def test_error_of_the_callers_own_is_logged_by_its_name(
    http2: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    """What a hook raises may show a secret."""

    def refuse(request: httpx.Request) -> None:
        if request.url.path.endswith("/cancel"):
            raise LookupError("secret")

    async def refuse_async(request: httpx.Request) -> None:
        refuse(request)

    with Http2Server() as server:
        async with connected(http2, server) as client:
            stream = client.create_and_stream_run()
            await http2.take(stream, 1)
            theirs = client._session.io._get_client()
            is_async = isinstance(theirs, httpx.AsyncClient)
            theirs.event_hooks = {"request": [refuse_async if is_async else refuse]}
            await http2.close(stream)
    assert caplog.messages == ["run r1 was left and could not be cancelled: LookupError"]


async def test_server_that_is_gone_when_its_run_is_left(
    http2: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS, Matrix: logged, never raised."""
    with Http2Server() as server:
        async with connected(http2, server) as client:
            stream = client.create_and_stream_run()
            await http2.take(stream, 1)
            server._loop.call_soon_threadsafe(server.hang_up)
            assert await server.hears("connection closed")
            await asyncio.wait_for(http2.close(stream), BOUND)
        assert server.heard == ["POST /runs/stream", "connection closed"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_cancel_without_an_answer_ends_no_other_stream(http2: Flavour) -> None:
    """Seen sync: the limit of its read ended all streams of the connection, and was too late."""
    with Http2Server({"cancel": silent}) as server:
        async with connected(http2, server) as client:
            left, idle, read = (client.create_and_stream_run() for _ in range(3))
            for stream in (left, idle, read):
                await http2.take(stream, 1)
            reading = asyncio.create_task(http2.take(read, 1))
            await asyncio.wait_for(http2.close(left), BOUND)
            assert not reading.done()
            server.answer_the_silent()  # a thread that waits for it might read what others wait for
            for run_id in ("r2", "r3"):
                await server.sends(run_id, block("values", {"n": 1}, "2"), END)
            assert [event.event for event in await reading] == ["values"]
            assert [event.event for event in await http2.collect(read)] == ["end"]
            assert [event.event for event in await http2.collect(idle)] == ["values", "end"]
        assert server.cancelled == ["r1"]


async def test_stream_that_has_ended_ends_no_other_stream(http2: Flavour) -> None:
    """Seen sync: the limit of the rest of its body did, where its server left that open."""
    with Http2Server() as server:
        async with connected(http2, server) as client:
            one, other = client.create_and_stream_run(), client.create_and_stream_run()
            await http2.take(other, 1)
            await http2.take(one, 1)
            await server.sends("r2", END)
            assert [event.event for event in await http2.collect(one)] == ["end"]
            await server.sends("r1", END)
            assert [event.event for event in await http2.collect(other)] == ["end"]
        assert server.cancelled == []


async def test_many_streams_are_left_at_once(http2: Flavour) -> None:
    """The client is closed while many runs are open, and no cancel is answered."""
    with Http2Server({"cancel": silent}) as server:
        async with connected(http2, server) as client:
            streams = [client.create_and_stream_run() for _ in range(20)]
            for stream in streams:
                await http2.take(stream, 1)
            await asyncio.wait_for(http2.close(client), BOUND)
        assert sorted(server.cancelled) == sorted(f"r{n + 1}" for n in range(20))


async def test_client_that_is_closed_waits_for_what_is_being_cancelled(http2: Flavour) -> None:
    """FAULTS, Matrix: one task leaves a run, and another closes the client."""
    may_answer = asyncio.Event()

    async def late(call: Call) -> None:
        await may_answer.wait()
        await cancelled(call)

    with Http2Server({"cancel": late}) as server:
        async with connected(http2, server) as client:
            stream = client.create_and_stream_run()
            await http2.take(stream, 1)
            leaving = asyncio.create_task(http2.close(stream))
            assert await server.hears("POST /runs/r1/cancel")
            closing = asyncio.create_task(http2.close(client))
            await asyncio.sleep(0)
            server._loop.call_soon_threadsafe(may_answer.set)
            await asyncio.wait_for(asyncio.gather(leaving, closing), BOUND)
        assert server.cancelled == ["r1"]


QUICK = Timeout(connect=0.3)


async def _fill(flavour: Flavour, client: Any, count: int, **create: Any) -> list[Any]:
    """Streams that are open."""
    streams = [client.create_and_stream_run(**create) for _ in range(count)]
    for stream in streams:
        await flavour.take(stream, 1)
    return streams


async def test_client_that_is_full_of_streams_that_were_left_names_their_runs(
    http2: Flavour,
) -> None:
    """Seen on httpcore 1.0.9 and h2 4.4.1: with 100 streams left, every call fails for ever."""
    with Http2Server() as server:
        async with connected(http2, server, retry=None) as client:
            for _ in range(100):
                await _leave(http2, client, on_disconnect="continue")
            with pytest.raises(TransportError) as caught:
                await http2.call(client.get_run, "r1")
        assert server.cancelled == []
    named = ", ".join(f"r{n + 1}" for n in range(10))
    assert str(caught.value) == (
        "GET /runs/r1: Max outbound streams is 100, 100 open: the HTTP/2 connection of the client "
        "is full; a stream that was left counts until its run ends: cancel such runs, or use "
        f"HTTP/1.1; left before the end: the streams of {named}, 90 more"
    )
    assert not caught.value.was_sent


async def test_client_does_not_fill_with_streams_whose_runs_were_cancelled(http2: Flavour) -> None:
    """A server ends the stream of a run that is cancelled."""
    with Http2Server(max_streams=3) as server:
        async with connected(http2, server) as client:
            for _ in range(10):
                await _leave(http2, client)
            assert (await http2.call(client.get_run, "r1")).status == "running"
            assert not client._session.io.left
        assert server.cancelled == [f"r{n + 1}" for n in range(10)]


@pytest.mark.parametrize(("max_streams", "most"), [(3, 3), (None, 1)])
async def test_client_that_is_full_of_open_streams_names_their_runs(
    max_streams: int | None, most: int
) -> None:
    """Seen on httpcore 1.0.9: a call waits for ever where a server takes no more streams.

    Of a server that gives no limit, it takes one at a time.
    """
    with Http2Server(max_streams=max_streams) as server:
        async with connected(Async(), server, retry=None, timeout=QUICK) as client:
            streams = await _fill(Async(), client, most)
            with pytest.raises(RequestTimeoutError) as caught:
                await client.get_run("r1")
            assert (caught.value.limit, caught.value.was_sent) == ("pool", False)
            start, _, named = str(caught.value).partition("; open here: the streams of ")
            assert start == (
                "GET /runs/r1: no free stream within 0.3 s (timeout.connect) on the HTTP/2 "
                "connection of the client: close streams that are done, or use HTTP/1.1"
            )
            assert sorted(named.split(", ")) == [f"r{n + 1}" for n in range(most)]
            await server.sends("r1", END, is_over=True)
            assert [event.event for event in await Async().collect(streams[0])] == ["end"]
            assert (await client.get_run("r1")).status == "running"


class Token(httpx.Auth):
    """Any auth but a plain one may take its time before the request."""


@pytest.mark.parametrize(
    ("limits", "limit"),
    [(Timeout(idle=0.2), "idle"), (Timeout(idle=0.2, total=0.3), "total")],
    ids=["silence", "total"],
)
async def test_limit_of_a_call_that_waits_for_a_stream_names_the_runs(
    limits: Timeout, limit: str
) -> None:
    """The same where another limit ends it first."""
    with Http2Server(max_streams=1) as server:
        async with connected(Async(), server, retry=None, auth=Token()) as client:
            (stream,) = await _fill(Async(), client, 1)
            with pytest.raises(RequestTimeoutError, match=f"timeout.{limit}.*streams of r1$"):
                await client.get_run("r1", timeout=limits)
            await stream.aclose()


async def test_limit_of_a_call_that_was_sent_names_no_runs() -> None:
    """Its answer is late: no stream of another call is to blame."""
    with Http2Server({"get": silent}) as server:
        async with connected(Async(), server, retry=None) as client:
            (stream,) = await _fill(Async(), client, 1)
            with pytest.raises(RequestTimeoutError) as caught:
                await client.get_run("r1", timeout=Timeout(connect=0.2, total=0.5))
            await stream.aclose()
        assert "streams of" not in str(caught.value)
        assert caught.value.limit == "total"


async def test_thread_waits_for_a_stream_until_another_one_is_left() -> None:
    """Seen on httpcore 1.0.9: nothing can end the wait of a thread, also no limit of the call."""
    with Http2Server(max_streams=1) as server:
        async with connected(Blocking(), server) as client:
            (stream,) = await _fill(Blocking(), client, 1, on_disconnect="continue")
            limits = Timeout(connect=0.1, idle=0.1, total=0.1)
            task = asyncio.create_task(Blocking().call(client.get_run, "r1", timeout=limits))
            await asyncio.wait([task], timeout=0.5)
            assert not task.done()
            await Blocking().close(stream)
            with pytest.raises(TransportError):
                await asyncio.wait_for(task, BOUND)


async def test_full_pool_of_http_1_names_the_run_that_holds_it(http2: Flavour) -> None:
    """FAULTS: typed, before a byte was sent."""
    kind = httpx.AsyncClient if isinstance(http2, Async) else httpx.Client
    theirs = kind(limits=httpx.Limits(max_connections=1))
    named = block("metadata", {"run_id": "r1"}, "1")
    with raw_server(events(named, hold=True)) as server:
        client = http2.client(server.url, http_client=theirs, retry=None, timeout=QUICK)
        (stream,) = await _fill(http2, client, 1)
        with pytest.raises(RequestTimeoutError) as caught:
            await http2.call(client.get_run, "r1")
        assert str(caught.value).endswith("; open here: the streams of r1")
        assert (caught.value.limit, caught.value.was_sent) == ("pool", False)
        await http2.close(stream)
        await http2.close(client)
        await (theirs.aclose() if isinstance(theirs, httpx.AsyncClient) else _closed(theirs))
    assert len(server.requests) == 1


async def test_streams_whose_runs_are_not_known_are_counted(http2: Flavour) -> None:
    """A server need not name its runs."""
    with Http2Server({"stream": nameless}, max_streams=2) as server:
        async with connected(http2, server, retry=None) as client:
            await _leave(http2, client)
            await _leave(http2, client)
            with pytest.raises(TransportError, match=r"streams of 2 whose run is not known$"):
                await http2.call(client.get_run, "r1")


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_transport_of_the_callers_own_is_left_in_the_same_way(is_async: bool) -> None:
    """HTTP/2 comes with `transport=`, too; then the connections are closed with our client."""
    flavour: Flavour = Async() if is_async else Blocking()
    kind = httpx.AsyncHTTPTransport if is_async else httpx.HTTPTransport
    with Http2Server(max_streams=2) as server:
        client = flavour.client(server.url, transport=kind(http1=False, http2=True), retry=None)
        await _leave(flavour, client)
        (stream, _) = await _fill(flavour, client, 2)
        if is_async:
            with pytest.raises(RequestTimeoutError, match=r"streams of r\d, r\d$"):
                await client.get_run("r1", timeout=QUICK)
        await flavour.close(stream)
        await flavour.close(client)
        assert await server.hears("connection closed")
        assert "r1" in server.cancelled


def test_run_that_is_left_under_trio_is_cancelled_once() -> None:
    """FAULTS, Matrix: the same under trio."""

    async def leave() -> None:
        with Http2Server() as server:
            async with httpx.AsyncClient(http1=False, http2=True) as theirs:
                client = AsyncRunsClient(server.url, http_client=theirs, retry=None)
                await after_break(client)
                await at_the_end_of_the_block(client)
                await by_a_limit_of_anyio(client)
                await by_the_total_limit(client)
                async with anyio.create_task_group() as group:
                    group.start_soon(_read_until_cancelled, client, group.cancel_scope)
                read, idle = client.create_and_stream_run(), client.create_and_stream_run()
                await anext(read)
                await anext(idle)
                async with anyio.create_task_group() as group:
                    group.start_soon(_read_until_closed, read)
                    await anyio.lowlevel.checkpoint()
                    await client.aclose()
            assert await server.hears("connection closed")
            assert sorted(server.cancelled) == [f"r{n + 1}" for n in range(7)]

    anyio.run(leave, backend="trio")
    gc.collect()


async def _read_until_cancelled(client: Any, scope: anyio.CancelScope) -> None:
    async for _ in client.create_and_stream_run():
        scope.cancel()


async def _read_until_closed(stream: Any) -> None:
    with pytest.raises(RuntimeError, match=r"stream is closed|client was closed"):
        await anext(stream)


def test_loop_that_is_closed_by_hand_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What is left suspended would be ended by a loop that is gone."""

    async def leave(url: str, theirs: httpx.AsyncClient) -> None:
        client = AsyncRunsClient(url, http_client=theirs)
        await after_break(client)

    loop = asyncio.new_event_loop()
    theirs = httpx.AsyncClient(http1=False, http2=True)
    with Http2Server() as server:
        loop.run_until_complete(leave(server.url, theirs))
        loop.run_until_complete(theirs.aclose())
        loop.close()
        gc.collect()
        assert server.cancelled == ["r1"]
    assert not caplog.records


async def test_run_is_cancelled_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python starts none while it ends, when a stream may still be closed."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Http2Server() as server:
        async with connected(Blocking(), server) as client:
            (stream,) = await _fill(Blocking(), client, 1)
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", refuse)
                stream.close()
        assert server.cancelled == ["r1"]


async def test_second_cancellation_waits_until_the_run_is_cancelled() -> None:
    """FAULTS, Matrix: shielded; CancelledError passes."""
    with Http2Server({"cancel": silent}) as server:
        async with connected(Async(), server) as client:
            task, _ = await _reading(client)
            task.cancel()
            assert await server.hears("POST /runs/r1/cancel")
            task.cancel("again")
            await asyncio.sleep(0)
            assert not task.done()
            server.answer_the_silent()
            with pytest.raises(asyncio.CancelledError, match="again"):
                await task
        assert server.cancelled == ["r1"]


async def test_child_of_a_fork_cancels_no_run_of_its_parent(http2: Flavour) -> None:
    """What a child closes, its parent still reads."""
    with Http2Server() as server:
        async with connected(http2, server) as client:
            streams = await _fill(http2, client, 2)
            with as_forked():
                await http2.close(streams[0])
                await http2.close(client)
            assert server.cancelled == []
            client._session.io.is_closed = False  # in the parent, whose memory is its own


async def test_cancel_that_is_itself_cancelled_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a loop does with all its tasks when it ends."""
    with Http2Server({"cancel": silent}) as server:
        async with connected(Async(), server) as client:
            (stream,) = await _fill(Async(), client, 1)
            before = asyncio.all_tasks()
            leaving = asyncio.create_task(stream.aclose())
            assert await server.hears("POST /runs/r1/cancel")
            for task in asyncio.all_tasks() - before - {leaving}:
                task.cancel()
            await asyncio.wait_for(leaving, BOUND)
    assert len(caplog.messages) == 1
