"""The server as a context manager: uvicorn in a thread of its own, on a free loopback port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._agents import Agent
from ._app import runs_app
from ._store import RunStore

START_SECONDS = 10.0
STOP_SECONDS = 1


@dataclass(frozen=True)
class RecordedRequest:
    """A request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class RunsServer:
    """An in-memory server of the Runs API, for tests and demonstrations.

    Use it as a context manager: it listens while the block runs, at `url`. `app` is the same
    server as an ASGI application, for a server of your own; it needs asyncio.

    What the spec leaves open is so here: any `thread_id` will do, and a thread has one run at
    work at a time; a cancelled run is `interrupted`, with nothing to answer; an agent that raises
    TimeoutError ends in `timeout`, with another exception in `error`, and tells an `error` event
    before `end`. An update whose `resume` maps interrupt ids answers these questions, another
    value the only open one; without `resume` all are answered with None. Deleting a run stops it.

    Args:
        agents: async generator functions by agent id. The first is the default agent.
        host: the address to listen at.
        port: 0 takes a free one.
        heartbeat: seconds of silence after which a stream sends a comment, and a wait call a
            line feed before its JSON.

    Attributes:
        requests: the requests so far, in the order in which their bodies were complete.

    Raises:
        ValueError: without agents, or for a heartbeat that is not above 0.
        TypeError: for an agent that is a coroutine function.
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
            raise ValueError(f"heartbeat: expected seconds above 0, got {heartbeat}")
        self._address = (host, port)
        self._store = RunStore(agents)
        self._counted = threading.Condition()
        self._open_requests = 0
        self._url: str | None = None
        self.requests: list[RecordedRequest] = []
        self.app: ASGIApp = self._recorded(runs_app(self._store, heartbeat))

    @property
    def url(self) -> str:
        """Base URL of the running server, without a slash at its end.

        Raises:
            RuntimeError: if it does not run.
        """
        if self._url is None:
            raise RuntimeError("the server does not run: use it in a with block")
        return self._url

    @property
    def open_requests(self) -> int:
        """How many requests are being answered. Thread-safe."""
        return self._open_requests

    def wait_until_idle(self, timeout: float = 2.0) -> bool:
        """Wait until no request is being answered; False if one still is after `timeout` seconds.

        A stream whose client has gone is no longer answered. In a coroutine:
        `await asyncio.to_thread(server.wait_until_idle)`.
        """
        with self._counted:
            return self._counted.wait_for(lambda: self._open_requests == 0, timeout)

    def __enter__(self) -> Self:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listener = socket.create_server(self._address, family=family)
        # asyncio does so only for sockets it opens; without, each answer waits 40 ms for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        config = uvicorn.Config(
            self.app,
            http="h11",
            ws="none",
            lifespan="on",
            access_log=False,
            log_level="critical",
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="agentproto.testing", daemon=True
        )
        self._thread.start()
        if not self._server.has_started.wait(START_SECONDS):
            listener.close()
            raise RuntimeError(f"the server did not start within {START_SECONDS:g} s")
        host, port = listener.getsockname()[:2]
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._url = None
        # Open responses end with their runs; a server that stops first would wait for them.
        closing = asyncio.run_coroutine_threadsafe(self._store.close(), self._server.loop)
        closing.result(START_SECONDS)
        self._server.should_exit = True
        self._thread.join(START_SECONDS)
        if self._thread.is_alive():
            raise RuntimeError("the server did not stop: an agent swallows its cancellation")

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.__exit__, exc_type, exc, traceback)

    def _recorded(self, app: ASGIApp) -> ASGIApp:
        async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self._count(+1)
            try:
                await app(scope, self._recording(scope, receive), send)
            finally:
                self._count(-1)

        return recorded

    def _recording(self, scope: Scope, receive: Receive) -> Receive:
        pieces: list[bytes] = []

        async def recording() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    self.requests.append(_recorded_request(scope, b"".join(pieces)))
            return message

        return recording

    def _count(self, change: int) -> None:
        with self._counted:
            self._open_requests += change
            self._counted.notify_all()


def _recorded_request(scope: Mapping[str, Any], body: bytes) -> RecordedRequest:
    query = scope["query_string"].decode("latin-1")
    return RecordedRequest(
        method=scope["method"],
        path=scope["raw_path"].decode("latin-1") + (f"?{query}" if query else ""),
        headers={
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        },
        body=body,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn calls asyncio.run, which nest_asyncio replaces by one that knows no loop
        # factory and never closes its loop.
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve(sockets=sockets))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.has_started.set()
