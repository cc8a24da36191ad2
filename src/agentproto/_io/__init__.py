"""The port between the core and the network: send, read a chunk, release, close.

Its two sides are the same over `httpx.AsyncClient` and `httpx.Client`. The methods of both are
coroutines; those of the blocking side never suspend. Nothing outside this folder names httpx
clients, anyio or time.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

import httpx

from .._coding import Inflater, inflater_for
from .._errors import AgentProtoError, TransportError
from .._models import RunRef
from .._settings import Timeout

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from anyio import CancelScope

forks: list[None] = []
"""One for each fork between the process that imported this module and this one.

Asked with each chunk, which the process id is too slow for.
"""
late_imports = threading.RLock()
"""Held while modules are imported late: a fork waits for it.

In the child nobody would go on with what a thread of the parent was importing, and whoever needs
that would wait for ever.
"""
with suppress(AttributeError):  # there are none on Windows
    os.register_at_fork(after_in_child=partial(forks.append, None))
    os.register_at_fork(
        before=late_imports.acquire,
        after_in_parent=late_imports.release,
        after_in_child=late_imports.release,
    )

T = TypeVar("T")
Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""What is still to be done, once."""


class Auth(Protocol):
    """An auth of httpx or of httpx2, as type checkers see it."""

    def auth_flow(self, request: Any, /) -> Generator[Any, Any, None]: ...


class HTTPClient(Protocol):
    """A sync client of httpx or of httpx2, as type checkers see it."""

    def build_request(
        self, method: str, url: str, *, content: Any, headers: Any, timeout: Any
    ) -> Any: ...
    def send(self, request: Any, *, stream: bool, auth: Any, follow_redirects: bool) -> Any: ...
    def close(self) -> None: ...


class AsyncHTTPClient(Protocol):
    """An async client of httpx or of httpx2, as type checkers see it."""

    def build_request(
        self, method: str, url: str, *, content: Any, headers: Any, timeout: Any
    ) -> Any: ...
    async def send(
        self, request: Any, *, stream: bool, auth: Any, follow_redirects: bool
    ) -> Any: ...
    async def aclose(self) -> None: ...


AuthTypes: TypeAlias = tuple[str | bytes, str | bytes] | Callable[[Any], Any] | Auth


class Connection(Protocol):
    """A network stream of ours, which needs no event loop and no lock to be ended."""

    def abort(self) -> None:
        """End it, from any thread; a read that waits there ends, too."""
        ...

    def drop(self) -> None:
        """The same where a finalizer runs, which may be in the middle of anything."""
        ...


class Stop:
    """What ends the waits of a request, from any task or thread."""

    def __init__(self) -> None:
        self.is_set: bool = False
        self._event: threading.Event | None = None  # made where a thread waits: it is large
        self.scopes: dict[CancelScope, AbstractEventLoop | None] = {}
        self.connections: set[Connection] = set()
        self.exchanges: set[Exchange] = set()

    def hold(self, connection: Connection) -> None:
        """End this connection, too, until its answer has begun and is an exchange."""
        self.connections.add(connection)
        if self.is_set:
            connection.abort()

    def wait(self, seconds: float) -> None:
        """Sleep in this thread, unless it is set before."""
        self._event = self._event or threading.Event()
        if not self.is_set:
            self._event.wait(seconds)

    def set(self) -> None:
        """End what waits now, and what would."""
        self.is_set = True
        if self._event is not None:
            self._event.set()
        running = running_loop()
        for scope, loop in members(self.scopes.items()):
            if loop is None or loop is running:
                scope.cancel()
                continue
            with suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(scope.cancel)
        for connection in members(self.connections):
            connection.abort()
        for exchange in members(self.exchanges):
            exchange.wake()


sending: ContextVar[Stop | None] = ContextVar("sending", default=None)
"""What ends the request that is sent here: a connection takes itself in as it writes."""


def running_loop() -> AbstractEventLoop | None:
    """The event loop of asyncio that runs here, if one does."""
    asyncio = sys.modules.get("asyncio")  # whoever runs one has imported it, which takes a while
    try:
        return None if asyncio is None else cast("AbstractEventLoop", asyncio.get_running_loop())
    except RuntimeError:  # none, or that of trio
        return None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WireRequest:
    """A request as it goes on the wire. `deadline` is a reading of the port's clock.

    Its headers may hold secrets: it has no repr.
    """

    method: str
    url: str
    headers: Mapping[str, str | bytes]
    content: bytes | None
    asked: str
    timeout: Timeout
    deadline: float | None
    stop: Stop = field(default_factory=Stop)


class Owner(Protocol):
    """The side of the port that an exchange is of."""

    is_closed: bool
    exchanges: set[Exchange]
    dropped: deque[Exchange]
    left: deque[RunRef | None]

    def closed(self) -> RuntimeError: ...
    def error(self, exc: Exception, request: WireRequest) -> Exception: ...


class Exchange(ABC):
    """One request and its response, whose body is still to be read."""

    request: WireRequest

    def __init__(self, owner: Owner, request: WireRequest, response: httpx.Response) -> None:
        self.request = request
        self.response = response
        self._owner = owner
        self._forks = len(forks)
        extensions = response.extensions
        self.is_shared: bool = extensions.get("http_version", b"HTTP/1").startswith(b"HTTP/2")
        """Whether its connection is that of other requests, too."""
        stream = extensions.get("network_stream")
        is_ours = callable(getattr(stream, "abort", None))
        self._connection: Connection | None = stream if is_ours else None
        self._foreign_stream: Any = None if is_ours or self.is_shared else stream
        self._is_at_end = False
        self._is_retired = False
        self.run: RunRef | None = None
        """Which run it is, once that is known."""
        self.leave: Work = self.release
        """What the end of its client is for it."""
        self.was_left: bool = False
        """Whether its run was cancelled for that, where it was to be."""
        owner.exchanges.add(self)
        request.stop.exchanges.add(self)
        if request.stop.is_set:  # between the answer and here
            self.wake()

    def hurry(self, seconds: float) -> None:
        """Give the rest of the body so many seconds in all, and each read of it no more."""
        until = time.monotonic() + seconds
        deadline = until if self.request.deadline is None else min(until, self.request.deadline)
        limits = replace(self.request.timeout, idle=seconds, total=seconds)
        self.request = replace(self.request, deadline=deadline, timeout=limits)

    def retire(self) -> None:
        """Let no other request have this connection, however its body ends."""
        self._is_retired = not self.is_shared

    @property
    def is_inherited(self) -> bool:
        """Whether it is of a process that forked this one, and only of that."""
        return self._forks != len(forks)

    @property
    def is_left_open(self) -> bool:
        """Whether its connection is to be closed rather than kept for another request."""
        return self._is_retired or not self._is_at_end

    def wake(self) -> None:
        """End the connection, from any thread: it ends a read that waits there."""
        if (self._is_at_end and not self._is_retired) or self._forks != len(forks):
            return
        if self._connection is not None:
            self._connection.abort()
        elif self._foreign_stream is not None:
            shut_down(self._foreign_stream)

    async def finish(self, seconds: float) -> None:
        """Take the rest of the body, if it comes in time: the connection can then be used again."""
        self.hurry(seconds)
        with suppress(AgentProtoError, RuntimeError):
            while await self.read():
                pass
        await self.release()

    def _forget(self) -> None:
        if self.is_shared and not self._is_at_end and self in self._owner.exchanges:
            self._owner.left.append(self.run)
        self._owner.exchanges.discard(self)
        self.request.stop.exchanges.discard(self)

    @abstractmethod
    def expire_in(self, seconds: float) -> None:
        """End the connection then, unless its body has ended; where there are timers."""

    def drop(self) -> None:
        """Let the server see that nobody listens any more, where nothing can be awaited."""
        if self._connection is None:
            self.wake()
        elif self._forks == len(forks):
            self._connection.drop()
        # httpcore locks when it closes: a finalizer that did could wait for its own thread.
        if self._forks == len(forks):
            self._owner.dropped.append(self)

    def _end(self) -> bytes:
        if self._owner.is_closed:
            raise self._owner.closed()
        self._is_at_end = True
        return b""

    def read(self) -> Awaitable[bytes]:
        """The next piece of the body, not compressed; b"" at its end.

        Raises:
            TransportError: if the body was cut, or is not what its coding says.
            RequestTimeoutError: if `idle` or `total` ran out.
            ProtocolError: if its coding is none of those asked for.
        """
        if self._forks != len(forks):
            raise RuntimeError("this stream was opened before a fork; open one in this process")
        inflater = self._inflater
        return self._receive() if inflater is None else self._inflate(inflater)

    async def _inflate(self, inflater: Inflater) -> bytes:
        try:
            while not (decoded := inflater.take()) and (piece := await self._receive()):
                inflater.feed(piece)
        except zlib.error as exc:
            raise self._not_decoded(str(exc)) from exc
        if not decoded and not inflater.is_whole:
            raise self._not_decoded("it ends too early")
        return decoded

    @cached_property
    def _inflater(self) -> Inflater | None:
        if self.response.is_stream_consumed:  # by a hook of the caller's: httpx has decoded it
            return None
        return inflater_for(self.response.headers.get("content-encoding", ""))

    def _not_decoded(self, why: str) -> TransportError:
        return TransportError(f"{self.request.asked}: its compressed body is broken: {why}")

    @abstractmethod
    async def _receive(self) -> bytes:
        """The next piece of the body as it comes from the network; b"" at its end."""

    @abstractmethod
    async def release(self) -> None:
        """Close the connection, unless the body was read to its end. More than once is fine."""


def shut_down(stream: Any) -> None:
    """Let both ends of a network stream know at once that it is over, where its socket allows it.

    A socket of an event loop need not: that of uvloop raises a TypeError.
    """
    connection = stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError, TypeError):
            connection.shutdown(socket.SHUT_RDWR)


class IO(Protocol):
    """The port."""

    async def send(self, request: WireRequest) -> Exchange: ...
    async def sleep(self, seconds: float, request: WireRequest) -> None: ...
    async def shielded(self, work: Work, seconds: float) -> None: ...
    async def leave(self, ways: Sequence[Work]) -> None: ...
    def shared(self) -> list[Exchange]: ...
    def forget_left(self, run: RunRef) -> None: ...
    async def close(self) -> None: ...
    def chance(self) -> float: ...
    def now(self) -> float: ...
    def deadline(self, timeout: Timeout) -> float | None: ...
    def check_not_stopped(self, stop: Stop) -> None: ...


LEAVE_SECONDS = 2.0
"""Seconds that a run which is left may take to be cancelled."""

STREAM_CLOSED = "this stream is closed; start another to go on"


def members(of: Iterable[T]) -> list[T]:
    """What is in there, though another thread may add to it meanwhile."""
    while True:
        with suppress(RuntimeError):
            return list(of)


# Closing them would shut down TLS sessions that the parent process still uses.
abandoned: list[object] = []
