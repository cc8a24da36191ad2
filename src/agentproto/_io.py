"""The port between the core and the network: send, read a chunk, release, close.

`AsyncIO` and `BlockingIO` are the same port over `httpx.AsyncClient` and `httpx.Client`. The
methods of both are coroutines; those of `BlockingIO` never suspend. This is the only file that
names httpx clients, anyio or time.
"""

from __future__ import annotations

import math
import os
import random
import re
import socket
import ssl
import sys
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast
from weakref import ref

import anyio
import httpx
from anyio.lowlevel import RunVar

from ._coding import Inflater, inflater_for
from ._errors import (
    ProtocolError,
    RequestTimeoutError,
    StatusError,
    TransportError,
    error_from_status,
)
from ._settings import Timeout
from ._shapes import as_list

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_forks: list[None] = []
"""One for each fork between the process that imported this module and this one.

Asked with each chunk, which the process id is too slow for.
"""
with suppress(AttributeError):  # there are none on Windows
    os.register_at_fork(after_in_child=partial(_forks.append, None))

T = TypeVar("T")
C = TypeVar("C", httpx.AsyncClient, httpx.Client)

AuthTypes: TypeAlias = (
    tuple[str | bytes, str | bytes] | Callable[[httpx.Request], httpx.Request] | httpx.Auth
)


class Stop:
    """What ends the waits of a request, from any task or thread."""

    def __init__(self) -> None:
        self.is_set: bool = False
        self._event: threading.Event | None = None  # made where a thread waits: it is large
        self.scopes: dict[anyio.CancelScope, AbstractEventLoop | None] = {}
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
        running = _running_loop()
        for scope, loop in _members(self.scopes.items()):
            if loop is None or loop is running:
                scope.cancel()
                continue
            with suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(scope.cancel)
        for exchange in _members(self.exchanges):
            exchange.wake()


def _running_loop() -> AbstractEventLoop | None:
    asyncio = sys.modules.get("asyncio")  # whoever runs one has imported it, which takes a while
    try:
        return None if asyncio is None else cast("AbstractEventLoop", asyncio.get_running_loop())
    except RuntimeError:  # none, or that of trio
        return None


Hooks: TypeAlias = dict[str, list[Callable[..., Any]]]


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request as it goes on the wire. `deadline` is a reading of the port's clock."""

    method: str
    url: str
    headers: Mapping[str, str | bytes] = field(repr=False)  # may hold secrets
    content: bytes | None
    asked: str
    timeout: Timeout
    deadline: float | None
    stop: Stop = field(default_factory=Stop, repr=False)


class Exchange(ABC):
    """One request and its response, whose body is still to be read."""

    request: WireRequest

    def __init__(
        self, owner: _ClientIO[Any], request: WireRequest, response: httpx.Response
    ) -> None:
        self.request = request
        self.response = response
        self._owner = owner
        self._forks = len(_forks)
        extensions = response.extensions
        # Over HTTP/2 the socket is that of other runs, too.
        is_alone = extensions.get("http_version", b"").startswith(b"HTTP/1")
        self._own_connection: Any = extensions.get("network_stream") if is_alone else None
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
        if not self._is_at_end and self._forks == len(_forks):
            _shut_down(self._own_connection)

    def _forget(self) -> None:
        self._owner.exchanges.discard(self)
        self.request.stop.exchanges.discard(self)

    def drop(self) -> None:
        """Let the server see that nobody listens any more, where nothing can be awaited."""
        self.wake()
        # httpcore locks when it closes: a finalizer that did could wait for its own thread.
        if self._forks == len(_forks):
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
        if self._forks != len(_forks):
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


def _shut_down(stream: Any) -> None:
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


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

_TRANSPORT_ERRORS = (
    *(httpx.HTTPError, httpx.StreamError, httpx.InvalidURL),
    *(OSError, UnicodeError),
)


def _is_of_network(exc: BaseException) -> bool:
    return isinstance(exc, _TRANSPORT_ERRORS) or _is_of_aiohttp(exc)


def _is_of_aiohttp(exc: BaseException) -> bool:
    return type(exc).__module__.partition(".")[0] == "aiohttp"


def _retold(exc: Exception) -> Exception:
    origin = exc if _is_of_aiohttp(exc) else exc.__cause__
    if origin is None or not _is_of_aiohttp(origin):
        return exc
    from ._aiohttp import as_httpx

    return as_httpx(origin)


def _members(of: Iterable[T]) -> list[T]:
    while True:
        # Another thread may add one meanwhile.
        with suppress(RuntimeError):
            return list(of)


class _ClientIO(ABC, Generic[C]):
    """What both ports share: a client of our own, or the caller's."""

    is_closed: bool

    def __init__(self, make: Callable[[], C], auth: AuthTypes | None, *, is_ours: bool) -> None:
        self._make: Callable[[], C] = make
        self._auth = auth
        self._is_ours = is_ours
        self._forks = len(_forks)
        self._making = threading.Lock()
        self.is_closed = False
        # Held until they are released: collected, they would lock as in `Exchange.drop`.
        self.exchanges: set[Exchange] = set()
        self.dropped: deque[Exchange] = deque()
        self._stops: set[Stop] = set()

    @abstractmethod
    def _get_client(self) -> C | None: ...
    @abstractmethod
    def _set_client(self, client: C | None) -> None: ...

    def error(
        self, exc: Exception, request: WireRequest, built: httpx.Request | None = None
    ) -> Exception:
        """What is raised for a failure of httpx, which `built` it may have been that failed."""
        if self.is_closed:
            return self.closed()
        error = _translated(_retold(exc), request)
        if isinstance(error, TransportError) and built is not None and not _is_of(exc, built):
            # Of a request that a hook or auth made meanwhile: ours may have been answered.
            error.was_sent = True
        return error

    async def release_dropped(self) -> None:
        """Release what was dropped since the last time."""
        while self.dropped:
            with suppress(Exception):
                await self.dropped.popleft().release()

    @contextmanager
    def _waiting(self, request: WireRequest) -> Generator[None]:
        """Let the wait in here be ended by whoever closes the client."""
        self._stops.add(request.stop)
        try:
            self.check_not_stopped(request.stop)
            yield
        finally:
            self._stops.discard(request.stop)

    def _stop_all(self) -> None:
        """End what waits, and every stream, from any thread."""
        for stop in _members(self._stops):
            stop.set()
        for exchange in _members(self.exchanges):
            exchange.request.stop.set()
            exchange.wake()

    def closed(self) -> RuntimeError:
        """What ends a call whose client is closed meanwhile."""
        return RuntimeError("the client was closed while a call was waiting for its answer")

    def check_not_stopped(self, stop: Stop) -> None:
        """Refuse to go on with what was closed.

        Raises:
            RuntimeError: if the client was closed, or the stream whose stop this is.
        """
        if self.is_closed:
            raise self.closed()
        if stop.is_set:
            raise RuntimeError(STREAM_CLOSED)

    def deadline(self, timeout: Timeout) -> float | None:
        """When the total limit of a call that begins now runs out, by the port's clock."""
        return None if timeout.total is None else time.monotonic() + timeout.total

    def chance(self) -> float:
        """A number in [0, 1)."""
        return random.random()  # noqa: S311  # jitter is no secret

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def _ready_client(self) -> C:
        if self.is_closed:
            raise RuntimeError("this client is closed; make a new one")
        if self._forks != len(_forks):
            self._meet_fork()
        with self._making:
            client = self._get_client()
            if client is None:
                client = self._make()
                self._set_client(client)
        return client

    def _meet_fork(self) -> None:
        # Two processes on one inherited connection read each other's answers.
        if not self._is_ours:
            raise RuntimeError(
                "this client was made before a fork with http_client=; "
                "make a new client in the child process"
            )
        _abandoned.append((self._get_client(), *self.exchanges))
        self._set_client(None)
        self._forks, self._making = len(_forks), threading.Lock()
        self.exchanges, self.dropped, self._stops = set(), deque(), set()

    def _build(self, client: C, request: WireRequest) -> httpx.Request:
        limits = _limits_left(request)
        return client.build_request(
            request.method,
            request.url,
            headers=[(name.encode(), _as_bytes(v)) for name, v in request.headers.items()],
            content=request.content,
            timeout=httpx.Timeout(
                connect=limits.connect,
                read=limits.idle,
                write=limits.idle,
                pool=limits.connect,
            ),
        )

    def _send_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"stream": True, "follow_redirects": False}
        return options if self._auth is None else {**options, "auth": self._auth}


class _AsyncExchange(Exchange):
    def __init__(
        self,
        owner: AsyncIO,
        client: httpx.AsyncClient,
        request: WireRequest,
        response: httpx.Response,
    ) -> None:
        super().__init__(owner, request, response)
        self._io = owner
        self._idles = 1 if self._own_connection is None else math.inf
        self.client = client
        self._body: AsyncIterator[bytes] | None = None

    async def _receive(self) -> bytes:
        body = self._body or self._open_body()
        try:
            if self.request.deadline is None and self._own_connection is not None:
                async for piece in body:
                    if piece:
                        return piece
            else:
                # Another transport, or a connection of other runs too: who knows its limits?
                with self._io.within(self.request, idles=self._idles):
                    async for piece in body:
                        if piece:
                            return piece
        except Exception as exc:
            if not _is_of_network(exc):
                raise
            raise self._io.error(exc, self.request) from exc
        return self._end()

    def _open_body(self) -> AsyncIterator[bytes]:
        was_read = self.response.is_stream_consumed
        # What httpx puts around it costs a third more.
        raw = self.response.aiter_bytes() if was_read else self.response.stream
        self._body = aiter(cast("AsyncIterable[bytes]", raw))
        return self._body

    async def release(self) -> None:
        self._forget()
        if self._forks != len(_forks):
            _abandoned.append(self)  # closing would unregister what the parent process waits for
            return
        # asyncio's own task.cancel() does not know the shield: it may come a second time.
        self.wake()
        with anyio.CancelScope(shield=True):
            await self.response.aclose()


class _BlockingExchange(Exchange):
    def __init__(
        self, owner: _ClientIO[Any], request: WireRequest, response: httpx.Response
    ) -> None:
        super().__init__(owner, request, response)
        self._body: Iterator[bytes] | None = None

    async def _receive(self) -> bytes:
        body = self._body or self._open_body()
        if self.request.deadline is not None:
            _check_deadline(self.request)
        try:
            for piece in body:
                if piece:
                    return piece
        except _TRANSPORT_ERRORS as exc:
            raise self._owner.error(exc, self.request) from exc
        return self._end()

    def _open_body(self) -> Iterator[bytes]:
        was_read = self.response.is_stream_consumed
        raw = self.response.iter_bytes() if was_read else self.response.stream
        self._body = iter(cast("Iterable[bytes]", raw))
        return self._body

    def hurry(self, seconds: float) -> None:
        # A read that begins just within the time may take as long again.
        super().hurry(seconds / 2)

    async def release(self) -> None:
        self._forget()
        self.response.close()


class _Loop:
    """The event loop that runs here. It is not kept alive: a client would keep it for ever."""

    def __init__(self) -> None:
        running = _running_loop()
        self._loop = None if running is None else ref(running)

    def is_gone(self) -> bool:
        """Also said of a run of trio: at worst, it makes connections anew."""
        loop = None if self._loop is None else self._loop()
        return loop is None or loop.is_closed()


class AsyncIO(_ClientIO[httpx.AsyncClient]):
    """The port over `httpx.AsyncClient`."""

    def __init__(
        self, make: Callable[[], httpx.AsyncClient], auth: AuthTypes | None, *, is_ours: bool
    ) -> None:
        self._here: RunVar[_Loop] = RunVar("agentproto")
        self._clients: dict[_Loop, httpx.AsyncClient] = {}
        super().__init__(make, auth, is_ours=is_ours)

    # A connection lives and dies with its event loop: each loop has a pool of its own.
    def _get_client(self) -> httpx.AsyncClient | None:
        here = self._here.get(None)
        return None if here is None else self._clients.get(here)

    def _set_client(self, client: httpx.AsyncClient | None) -> None:
        if client is None:
            _abandoned.append(self._clients)
            self._clients = {}
            return
        for loop in [loop for loop in _members(self._clients) if loop.is_gone()]:
            del self._clients[loop]
        here = _Loop()
        self._here.set(here)
        self._clients[here] = client

    @contextmanager
    def within(self, request: WireRequest, *, idles: float = math.inf) -> Generator[None]:
        """End what is awaited here at the limit of the request, or when the client is closed.

        `idles` is how many times the limit of silence may run out meanwhile.
        """
        idle = request.timeout.idle
        patience = math.inf if idle is None else idle * idles
        left = math.inf if request.deadline is None else request.deadline - time.monotonic()
        within = max(0.0, min(patience, left))
        with self._waiting(request), anyio.move_on_after(within) as scope:
            request.stop.scopes[scope] = _running_loop()
            try:
                yield
            finally:
                del request.stop.scopes[scope]
        if scope.cancelled_caught:
            self.check_not_stopped(request.stop)
            raise _ran_out(request, "total" if left <= patience else "idle")

    async def send(self, request: WireRequest) -> Exchange:
        client = self._ready_client()
        await self.release_dropped()
        built: httpx.Request | None = None
        connection: Any = None

        async def trace(name: str, info: Mapping[str, Any]) -> None:
            nonlocal connection
            if name.endswith(".complete"):
                connection = _connection_made(name, info) or connection
                _look_for_redirect(name, info, request)

        try:
            built = self._build(client, request)
            built.extensions["trace"] = trace
            # 1xx responses start httpx's read timer anew, each of them: silence has no end there.
            with self.within(request, idles=2):
                response = await client.send(built, **self._send_options())
        except Exception as exc:
            if not _is_of_network(exc):
                _shut_down(connection)
                raise
            raise self.error(exc, request, built) from _tellable(exc)
        except BaseException:
            # A second cancellation may meet httpcore just when it closes the connection.
            _shut_down(connection)
            raise
        return _AsyncExchange(self, client, request, response)

    async def sleep(self, seconds: float, request: WireRequest) -> None:
        with self.within(request):
            await anyio.sleep(seconds)

    async def close(self) -> None:
        self.is_closed = True
        if self._forks != len(_forks):
            return
        self._stop_all()
        client = self._get_client()
        for exchange in _members(self.exchanges):
            if cast("_AsyncExchange", exchange).client is client:
                await exchange.release()
            else:
                exchange.wake()
        if self._is_ours and client is not None:
            await client.aclose()
        self._clients.clear()


class BlockingIO(_ClientIO[httpx.Client]):
    """The port over `httpx.Client`: the coroutines of this class never suspend."""

    def __init__(
        self, make: Callable[[], httpx.Client], auth: AuthTypes | None, *, is_ours: bool
    ) -> None:
        super().__init__(make, auth, is_ours=is_ours)
        self._client: httpx.Client | None = None
        # Weak, yet without callbacks: collected just then, one would swallow a KeyboardInterrupt.
        self._connections: list[ref[Any]] = []

    def _get_client(self) -> httpx.Client | None:
        return self._client

    def _set_client(self, client: httpx.Client | None) -> None:
        self._client = client

    def _meet_fork(self) -> None:
        super()._meet_fork()
        self._connections = []

    async def send(self, request: WireRequest) -> Exchange:
        client = self._ready_client()
        await self.release_dropped()
        _check_deadline(request)
        built: httpx.Request | None = None

        def trace(name: str, info: Mapping[str, Any]) -> None:
            if name.endswith(".complete"):
                if self._is_ours:
                    self._note_connection(name, info)
                _look_for_redirect(name, info, request)

        try:
            built = self._build(client, request)
            built.extensions["trace"] = trace
            with self._waiting(request):
                response = client.send(built, **self._send_options())
        except _TRANSPORT_ERRORS as exc:
            raise self.error(exc, request, built) from _tellable(exc)
        return _BlockingExchange(self, request, response)

    def _note_connection(self, name: str, info: Mapping[str, Any]) -> None:
        # Which connection a request waits on, httpx tells only with the answer.
        made = _connection_made(name, info)
        if made is not None:
            with self._making:
                alive = [known for known in self._connections if known() is not None]
                self._connections = [*alive, ref(made)]
            if self.is_closed:
                _shut_down(made)

    async def sleep(self, seconds: float, request: WireRequest) -> None:
        until = math.inf if request.deadline is None else request.deadline
        with self._waiting(request):
            request.stop.wait(max(0.0, min(seconds, until - time.monotonic())))
        self.check_not_stopped(request.stop)
        _check_deadline(request)

    async def close(self) -> None:
        self.is_closed = True
        if self._forks != len(_forks):
            return
        self._stop_all()
        for known in self._connections:
            _shut_down(known())
        if self._is_ours and self._client is not None:
            self._client.close()


def _limits_left(request: WireRequest) -> Timeout:
    """The limits as httpx shall have them: nothing of a call may outlast the whole."""
    if request.deadline is None:
        return request.timeout
    left = max(0.001, request.deadline - time.monotonic())
    connect, idle = request.timeout.connect, request.timeout.idle
    return Timeout(
        connect=left if connect is None else min(connect, left),
        idle=left if idle is None else min(idle, left),
    )


def _check_deadline(request: WireRequest) -> None:
    if request.deadline is not None and time.monotonic() >= request.deadline:
        raise _ran_out(request, "total")


_CLOCK_SLACK = 0.01
"""Seconds by which a socket's timeout may end before its time."""

_SAYS = {
    "connect": "no connection within {s:g} s (timeout.connect); is the server running there?",
    "pool": "no free connection within {s:g} s (timeout.connect); the pool of the client is full: "
    "close streams that are done, or raise max_connections of http_client",
    "idle": "not a byte within {s:g} s (timeout.idle); "
    "give a longer limit with timeout=Timeout(idle=...)",
    "total": "not done within {s:g} s (timeout.total); "
    "give a longer limit with timeout=Timeout(total=...)",
}


def _ran_out(request: WireRequest, limit: str) -> RequestTimeoutError:
    if request.deadline is not None and time.monotonic() >= request.deadline - _CLOCK_SLACK:
        limit = "total"
    field = "connect" if limit == "pool" else limit
    seconds = cast("float", getattr(request.timeout, field))
    message = f"{request.asked}: {_SAYS[limit].format(s=seconds)}"
    return RequestTimeoutError(message, limit=limit, seconds=seconds)


def _is_of_a_redirect(exc: Exception) -> bool:
    # What httpx trips over when it looks where a redirect leads, on a client of the caller's.
    return isinstance(exc, UnicodeError) or "location header" in str(exc)


def _body_of(response: httpx.Response) -> bytes:
    try:
        return response.content
    except httpx.StreamError:
        return b""


def _translated(
    exc: Exception, request: WireRequest
) -> TransportError | StatusError | ProtocolError:
    match exc:
        case httpx.ConnectTimeout():
            return _ran_out(request, "connect")
        case httpx.PoolTimeout():
            return _ran_out(request, "pool")
        case httpx.TimeoutException():
            return _ran_out(request, "idle")
        case httpx.RemoteProtocolError() | UnicodeError() if _is_of_a_redirect(exc):
            return ProtocolError(f"{request.asked} was answered with a redirect to no valid URL")
        case httpx.HTTPStatusError(response=response):  # of a hook that raises for a status
            return error_from_status(
                response.status_code, response.headers, _body_of(response), asked=request.asked
            )
        case httpx.ConnectError():
            origin = httpx.URL(request.url).copy_with(raw_path=b"/")
            error = TransportError(
                f"{request.asked}: could not connect to {origin}: {exc}; "
                "is the server running there?"
            )
            error.was_sent = False
            error.is_final = _is_rejected_certificate(exc)
            return error
        case httpx.InvalidURL():
            error = TransportError(f"{request.asked}: {exc}; check the base_url")
            error.was_sent, error.is_final = False, True
            return error
        case httpx.LocalProtocolError():
            return TransportError(f"{request.asked}: the request could not be written as HTTP")
        case _:
            return TransportError(
                f"{request.asked}: the connection broke: {str(exc) or type(exc).__name__}"
            )


def _is_of(exc: Exception, built: httpx.Request) -> bool:
    return getattr(exc, "_request", built) in {built, None}


def _connection_made(name: str, info: Mapping[str, Any]) -> Any:
    is_made = name.endswith(("connect_tcp.complete", "start_tls.complete"))
    return info["return_value"] if is_made else None


def _look_for_redirect(name: str, info: Mapping[str, Any], request: WireRequest) -> None:
    # Before httpx does, who builds the next request at once, and trips over what is no URL.
    if not name.endswith("receive_response_headers.complete"):
        return
    told: tuple[Any, ...] = info["return_value"]
    status: int = next((part for part in told if isinstance(part, int)), 0)
    (pairs,) = [part for part in map(as_list, told) if part is not None] or [[]]
    headers = {name.decode("latin-1").lower(): v.decode("utf-8", "replace") for name, v in pairs}
    if 300 <= status < 400 and "location" in headers:
        error = redirected(request.asked, status, headers["location"])
        error.about(status_code=status, headers=headers)
        raise error


def redirected(asked: str, status: int, target: str) -> ProtocolError:
    """The error for a redirect, which is never followed."""
    return ProtocolError(
        f"{asked} was answered {status} with a redirect to {target[:500]!r}, "
        "which is not followed; if that is the server, make it the base_url"
    )


def _tellable(exc: Exception) -> Exception | None:
    # h11 quotes header values, in the text of the cause, too; an error of aiohttp may hold them.
    is_secret = isinstance(exc, httpx.LocalProtocolError) or _is_of_aiohttp(exc)
    return None if is_secret else exc


def _is_rejected_certificate(exc: BaseException | None) -> bool:
    while exc is not None and not isinstance(exc, ssl.SSLCertVerificationError):
        exc = exc.__cause__ or exc.__context__
    return exc is not None


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


# Closing them would shut down TLS sessions that the parent process still uses.
_abandoned: list[object] = []


def checked_auth(auth: AuthTypes | None) -> AuthTypes | None:
    """What httpx takes as `auth`. No message shows it.

    Raises:
        TypeError: for anything else.
    """
    match auth:
        case None | httpx.Auth() | (str() | bytes(), str() | bytes()):
            return auth
        case _ if callable(auth):
            return auth
        case _:
            raise TypeError(
                "auth: expected a pair of user and password, an httpx.Auth or a callable, "
                f"got {type(auth).__name__}"
            )


def headers_of(http_client: httpx.AsyncClient | httpx.Client | None) -> Mapping[str, str]:
    """Headers that the caller's own client adds, less what httpx puts there by itself."""
    if http_client is None:
        return {}
    agent = http_client.headers.get("user-agent", "python-httpx")
    return {} if agent.startswith("python-httpx") else {"user-agent": agent}


def async_io(
    transport: httpx.AsyncBaseTransport | Literal["aiohttp"] | None,
    http_client: httpx.AsyncClient | None,
    auth: AuthTypes | None,
) -> AsyncIO:
    """A port over a client of our own, or over the caller's."""
    make_transport = _maker_of(transport)
    _check_kind("http_client", http_client, httpx.AsyncClient)
    if http_client is not None:
        _check_not_both(transport)
        return AsyncIO(lambda: http_client, auth, is_ours=False)
    hooks: Hooks = {"request": [_check_headers_async], "response": [_refuse_redirect_async]}
    return AsyncIO(
        lambda: httpx.AsyncClient(transport=make_transport(), limits=_LIMITS, event_hooks=hooks),
        auth,
        is_ours=True,
    )


def _maker_of(
    transport: httpx.AsyncBaseTransport | Literal["aiohttp"] | None,
) -> Callable[[], httpx.AsyncBaseTransport | None]:
    if transport != "aiohttp":
        _check_kind("transport", transport, httpx.AsyncBaseTransport)
        return lambda: transport
    try:
        from ._aiohttp import Transport
    except ImportError as exc:
        raise ImportError(
            "transport='aiohttp' needs aiohttp: pip install 'agentproto[aiohttp]'"
        ) from exc

    def make() -> httpx.AsyncBaseTransport:
        if _running_loop() is None:
            raise RuntimeError("transport='aiohttp' needs asyncio; leave it out under trio")
        return Transport(_LIMITS)

    return make


def blocking_io(
    transport: httpx.BaseTransport | str | None,
    http_client: httpx.Client | None,
    auth: AuthTypes | None,
) -> BlockingIO:
    """A port over a client of our own, or over the caller's."""
    if isinstance(transport, str):
        raise TypeError("transport='aiohttp' is for AsyncRunsClient: aiohttp needs an event loop")
    _check_kind("transport", transport, httpx.BaseTransport)
    _check_kind("http_client", http_client, httpx.Client)
    if http_client is not None:
        _check_not_both(transport)
        return BlockingIO(lambda: http_client, auth, is_ours=False)
    hooks: Hooks = {"request": [_check_headers], "response": [_refuse_redirect]}
    return BlockingIO(
        lambda: httpx.Client(transport=transport, limits=_LIMITS, event_hooks=hooks),
        auth,
        is_ours=True,
    )


_HEADER_VALUE = re.compile(rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?")


def _check_headers(request: httpx.Request) -> None:
    # What `auth` put in: h11 would refuse it too, and tell it in a log.
    for name, value in request.headers.raw:
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(
                f"auth: the value of {name.decode('latin-1')!r} has characters HTTP does not allow"
            )


def _refuse_redirect(response: httpx.Response) -> None:
    # As `_look_for_redirect`, for transports of the caller's that tell no trace.
    if response.has_redirect_location:
        asked = f"{response.request.method} {response.request.url.path}"
        error = redirected(asked, response.status_code, response.headers["location"])
        error.about(status_code=response.status_code, headers=response.headers)
        raise error


async def _refuse_redirect_async(response: httpx.Response) -> None:
    _refuse_redirect(response)


async def _check_headers_async(request: httpx.Request) -> None:
    _check_headers(request)


def _check_kind(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name}: expected httpx.{kind.__name__}, got {type(value).__name__}")


def _check_not_both(transport: object) -> None:
    if transport is not None:
        raise TypeError("transport and http_client: give one of them; the client has a transport")


# No cap on connections: every open stream holds one, and with a cap of 100 the next stream fails.
# Servers close idle connections after 5 s, and a POST that meets a closed one is not repeated.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=3.0)
