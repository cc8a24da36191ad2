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
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

import httpx

from .._chunks import begin_body
from .._coding import Inflater, inflater_for
from .._errors import TransportError
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

AuthTypes: TypeAlias = (
    tuple[str | bytes, str | bytes] | Callable[[httpx.Request], httpx.Request] | httpx.Auth
)


class Stop:
    """What ends the waits of a request, from any task or thread."""

    def __init__(self) -> None:
        self.is_set: bool = False
        self._event: threading.Event | None = None  # made where a thread waits: it is large
        self.scopes: dict[CancelScope, AbstractEventLoop | None] = {}
        self.exchanges: set[Exchange] = set()

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
        for exchange in members(self.exchanges):
            exchange.wake()


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
        # Over HTTP/2 the socket is that of other runs, too.
        is_alone = extensions.get("http_version", b"").startswith(b"HTTP/1")
        self._own_connection: Any = extensions.get("network_stream") if is_alone else None
        if not response.is_stream_consumed:  # by a hook of the caller's
            begin_body(self._own_connection)
        self._is_at_end = False
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
        # Where httpcore looks when it begins to read a body.
        self.response.request.extensions.setdefault("timeout", {})["read"] = seconds

    def wake(self) -> None:
        """Shut the socket down, from any thread: it ends a read that blocks there."""
        if not self._is_at_end and self._forks == len(forks):
            shut_down(self._own_connection)

    def _forget(self) -> None:
        self._owner.exchanges.discard(self)
        self.request.stop.exchanges.discard(self)

    def drop(self) -> None:
        """Let the server see that nobody listens any more, where nothing can be awaited."""
        self.wake()
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
    """Let both ends of a network stream know at once that it is over."""
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is None:
        return
    with suppress(OSError):
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except TypeError:  # uvloop hands out a socket that refuses everything but its number
            with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)


class IO(Protocol):
    """The port."""

    async def send(self, request: WireRequest) -> Exchange: ...
    async def sleep(self, seconds: float, request: WireRequest) -> None: ...
    async def close(self) -> None: ...
    def chance(self) -> float: ...
    def now(self) -> float: ...
    def deadline(self, timeout: Timeout) -> float | None: ...
    def check_not_stopped(self, stop: Stop) -> None: ...


STREAM_CLOSED = "this stream is closed; start another to go on"


def members(of: Iterable[T]) -> list[T]:
    """What is in there, though another thread may add to it meanwhile."""
    while True:
        with suppress(RuntimeError):
            return list(of)


# Closing them would shut down TLS sessions that the parent process still uses.
abandoned: list[object] = []
