"""The server on a socket of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from types import TracebackType

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from ._agents import Agent
from ._app import runs_app
from ._recorder import RecordedRequest, Recorder
from ._store import RunStore

HANG_UP_SECONDS = 0.2
"""How long clients may read the end of their responses when the server stops."""

JOIN_SECONDS = 5.0
"""How long the thread may take to end before an agent must be what holds it up."""


class RunsServer:
    """An in-memory server of the Runs API, in which agents are async generator functions.

    As a context manager, `with` or `async with`, it serves in a thread of its own on a free port
    of `host`, an IPv4 address or name. Runs are kept after it stopped and are there when it is
    entered again. Without a context manager, `app` is an ASGI application for a server of your
    own; it needs asyncio.

    What the spec leaves open:

    - A request without `agent_id` goes to the first of `agents`.
    - `thread_id` is any string. A thread has one run at work at a time; a second one is a 409.
    - A cancelled run has the status `interrupted` and nothing to answer. An agent that raises
      TimeoutError makes the run `timeout`, one that raises anything else `error`; both send an
      `error` event before the `end` event.
    - Deleting a run also stops it. Cancelling a run that waits for an answer drops the question.
    - An update with a map of interrupt ids as `resume` answers these questions; any other value
      answers the only open question, and is a 422 if there are several. No `resume` answers all
      of them with null.
    - GET /runs/{run_id}/stream replays the events after `Last-Event-ID`, or all events without
      this header or for an id the run has not sent, and goes on live. An `end` that an update
      followed is left out of it.
    - `webhook`, `on_completion` and `if_not_exists` are checked and kept, and have no effect.

    Args:
        agents: the agents by agent_id, at least one.
        host: where to listen.
        port: the port to listen on; 0 takes a free one.
        heartbeat: seconds without an event after which a stream sends a comment and a wait an
            empty line.

    Raises:
        ValueError: there are no agents, or the heartbeat is not positive.
        TypeError: an agent is a coroutine function.
        OSError: on entering, `host` and `port` are not free to listen on.
        RuntimeError: on entering, the server is already running; on leaving, an agent swallowed
            its cancellation.

    Spec: paths /runs of the Agent Protocol
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        heartbeat: float = 5.0,
    ) -> None:
        if heartbeat <= 0:
            raise ValueError(f"expected a heartbeat of more than 0 seconds, got {heartbeat}")
        self._store = RunStore(agents)
        self._recorder = Recorder(runs_app(self._store, heartbeat))
        self._address = (host, port)
        self._thread: _ServerThread | None = None

    @property
    def app(self) -> ASGIApp:
        """The ASGI application, which also keeps `requests` and `open_requests`."""
        return self._recorder

    @property
    def url(self) -> str:
        """The root of the API, without a slash at its end.

        Raises:
            RuntimeError: the server is not running.
        """
        if self._thread is None:
            raise RuntimeError("the server has no url before it runs: enter it using `with`")
        return self._thread.url

    @property
    def requests(self) -> list[RecordedRequest]:
        """All requests so far in the order in which they arrived, those in progress included."""
        return self._recorder.requests

    @property
    def open_requests(self) -> int:
        """The number of requests in progress; safe to read from any thread."""
        return self._recorder.open_requests

    def wait_until_idle(self, timeout: float = 5.0) -> bool:
        """Block until no request is in progress; False if `timeout` seconds were not enough.

        A request is in progress until the last byte of its response is handed to the socket, or
        the server noticed that the client hung up and, if that cancels the run, the agent
        stopped. A background run is no request. In async code use `wait_until_idle_async`.
        """
        return self._recorder.wait_until_idle(timeout)

    async def wait_until_idle_async(self, timeout: float = 5.0) -> bool:
        """`wait_until_idle` for async code: it does not block the event loop."""
        return await run_in_threadpool(self.wait_until_idle, timeout)

    def __enter__(self) -> RunsServer:
        if self._thread is not None:
            raise RuntimeError(f"the server is already running on {self.url}")
        self._thread = _ServerThread(self._recorder, self._store, self._address)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            thread, self._thread = self._thread, None
            thread.stop()

    async def __aenter__(self) -> RunsServer:
        return await run_in_threadpool(self.__enter__)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await run_in_threadpool(self.__exit__, exc_type, exc, traceback)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: threading.Event) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started.set()

    def hang_up(self) -> None:
        """Close the connections whose clients do not read: their responses would never end."""
        for connection in self.server_state.connections:
            connection.transport.abort()


class _ServerThread:
    def __init__(self, recorder: Recorder, store: RunStore, address: tuple[str, int]) -> None:
        listener = socket.create_server(address)
        self.url = "http://{}:{}".format(*listener.getsockname())
        self._recorder = recorder
        self._store = store
        self._started = threading.Event()
        # A daemon, so that an agent which cannot be stopped does not keep the process alive.
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(listener),), name="RunsServer", daemon=True
        )
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(JOIN_SECONDS)
        if self._thread.is_alive():
            raise RuntimeError(
                f"the server did not stop within {JOIN_SECONDS} s: does an agent catch "
                f"asyncio.CancelledError without raising it again?"
            )

    async def _serve(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = _Uvicorn(_config(self._recorder), self._started)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await self._stopping.wait()
        await self._store.close()
        if not await asyncio.to_thread(self._recorder.wait_until_idle, HANG_UP_SECONDS):
            server.hang_up()
        server.should_exit = True
        await serving


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False)
