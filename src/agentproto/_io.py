"""The port between the core and the network: send, read a chunk, release, close.

`AsyncIO` and `BlockingIO` are the same port over `httpx.AsyncClient` and `httpx.Client`. The
methods of both are coroutines; those of `BlockingIO` never suspend. This is the only file that
names httpx clients, anyio or time.
"""

from __future__ import annotations

import math
import os
import random
import socket
import ssl
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast
from weakref import WeakSet

import anyio
import httpx

from ._coding import Inflater, inflater_for
from ._errors import ProtocolError, RequestTimeoutError, TransportError
from ._settings import Timeout

C = TypeVar("C", httpx.AsyncClient, httpx.Client)

AuthTypes: TypeAlias = (
    tuple[str | bytes, str | bytes] | Callable[[httpx.Request], httpx.Request] | httpx.Auth
)


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


class Exchange(ABC):
    """One request and its response, whose body is still to be read."""

    request: WireRequest

    def __init__(
        self, owner: _ClientIO[Any], request: WireRequest, response: httpx.Response
    ) -> None:
        self.request = request
        self.response = response
        self._owner = owner
        self._pid = os.getpid()
        owner.exchanges.add(self)

    def _broken(self, exc: Exception) -> Exception:
        """What a broken read is told as."""
        if self._owner.is_closed:
            return RuntimeError("the client was closed while an answer was being read")
        return _translated(exc, self.request)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError("this stream was opened before a fork; open one in this process")

    def hurry(self, seconds: float) -> None:
        """Give the rest of the body so many seconds in all, and each read of it no more."""
        until = time.monotonic() + seconds
        deadline = until if self.request.deadline is None else min(until, self.request.deadline)
        self.request = replace(self.request, deadline=deadline)
        # Where httpcore looks when it begins to read a body.
        self.response.request.extensions["timeout"]["read"] = seconds

    def wake(self) -> None:
        """Shut the socket down, from any thread: it ends a read that blocks there."""
        stream = self.response.extensions.get("network_stream")
        connection = None if stream is None else stream.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    async def read(self) -> bytes:
        """The next piece of the body, not compressed; b"" at its end.

        Raises:
            TransportError: if the body was cut, or is not what its coding says.
            RequestTimeoutError: if `idle` or `total` ran out.
            ProtocolError: if its coding is none of those asked for.
        """
        inflater = self._inflater
        if inflater is None:
            return await self._receive()
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


class IO(Protocol):
    """The port."""

    async def send(self, request: WireRequest) -> Exchange: ...
    async def sleep(self, seconds: float, request: WireRequest) -> None: ...
    async def close(self) -> None: ...
    def chance(self) -> float: ...
    def now(self) -> float: ...
    def deadline(self, timeout: Timeout) -> float | None: ...


_TRANSPORT_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError)


class _ClientIO(Generic[C]):
    """What both ports share: a client of our own, or the caller's."""

    is_closed: bool

    def __init__(self, make: Callable[[], C], auth: AuthTypes | None, *, is_ours: bool) -> None:
        self._make: Callable[[], C] = make
        self._auth = auth
        self._is_ours = is_ours
        self._client: C | None = None
        self._pid = os.getpid()
        self.is_closed = False
        self.exchanges: WeakSet[Exchange] = WeakSet()

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
        if self._pid != os.getpid():
            self._meet_fork()
        if self._client is None:
            self._client = self._make()
        return self._client

    def _client_to_close(self) -> C | None:
        self.is_closed = True
        return self._client if self._is_ours and self._pid == os.getpid() else None

    def _meet_fork(self) -> None:
        # Two processes on one inherited connection read each other's answers.
        if not self._is_ours:
            raise RuntimeError(
                "this client was made before a fork with http_client=; "
                "make a new client in the child process"
            )
        _abandoned.append(self._client)
        self._client, self._pid = None, os.getpid()

    def _build(self, client: C, request: WireRequest) -> httpx.Request:
        limits = request.timeout
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
        self, owner: _ClientIO[Any], request: WireRequest, response: httpx.Response
    ) -> None:
        super().__init__(owner, request, response)
        self._body: AsyncIterator[bytes] | None = None

    async def _receive(self) -> bytes:
        self._check_process()
        if self._body is None:
            was_read = self.response.is_stream_consumed
            raw = self.response.aiter_bytes() if was_read else self.response.stream
            self._body = aiter(cast("AsyncIterable[bytes]", raw))
        try:
            with _within(self.request, self.request.deadline):
                while (piece := await anext(self._body, None)) == b"":
                    pass
        except _TRANSPORT_ERRORS as exc:
            raise self._broken(exc) from exc
        return piece or b""

    async def release(self) -> None:
        self._owner.exchanges.discard(self)
        with anyio.CancelScope(shield=True):
            await self.response.aclose()


class _BlockingExchange(Exchange):
    def __init__(
        self, owner: _ClientIO[Any], request: WireRequest, response: httpx.Response
    ) -> None:
        super().__init__(owner, request, response)
        self._body: Iterator[bytes] | None = None

    async def _receive(self) -> bytes:
        self._check_process()
        if self._body is None:
            was_read = self.response.is_stream_consumed
            raw = self.response.iter_bytes() if was_read else self.response.stream
            self._body = iter(cast("Iterable[bytes]", raw))
        _check_deadline(self.request)
        try:
            return next((piece for piece in self._body if piece), b"")
        except _TRANSPORT_ERRORS as exc:
            raise self._broken(exc) from exc

    async def release(self) -> None:
        self._owner.exchanges.discard(self)
        self.response.close()


class AsyncIO(_ClientIO[httpx.AsyncClient]):
    """The port over `httpx.AsyncClient`."""

    async def send(self, request: WireRequest) -> Exchange:
        client = self._ready_client()
        try:
            with _within(request, request.deadline, until_headers=True):
                response = await client.send(self._build(client, request), **self._send_options())
        except _TRANSPORT_ERRORS as exc:
            raise _translated(exc, request) from exc
        return _AsyncExchange(self, request, response)

    async def sleep(self, seconds: float, request: WireRequest) -> None:
        with _within(request, request.deadline):
            await anyio.sleep(seconds)

    async def close(self) -> None:
        client = self._client_to_close()
        for exchange in list(self.exchanges):
            await exchange.release()
        if client is not None:
            await client.aclose()


class BlockingIO(_ClientIO[httpx.Client]):
    """The port over `httpx.Client`: the coroutines of this class never suspend."""

    async def send(self, request: WireRequest) -> Exchange:
        client = self._ready_client()
        _check_deadline(request)
        try:
            response = client.send(self._build(client, request), **self._send_options())
        except _TRANSPORT_ERRORS as exc:
            raise _translated(exc, request) from exc
        return _BlockingExchange(self, request, response)

    async def sleep(self, seconds: float, request: WireRequest) -> None:
        until = math.inf if request.deadline is None else request.deadline
        time.sleep(max(0.0, min(seconds, until - time.monotonic())))  # noqa: ASYNC251  # blocks
        _check_deadline(request)

    async def close(self) -> None:
        client = self._client_to_close()
        for exchange in list(self.exchanges):
            exchange.wake()
        if client is not None:
            client.close()


@contextmanager
def _within(
    request: WireRequest, deadline: float | None, *, until_headers: bool = False
) -> Generator[None]:
    idle = request.timeout.idle
    # 1xx responses start httpx's read timer anew, each of them: silence alone has no end there.
    headers_by = time.monotonic() + 2 * idle if until_headers and idle is not None else math.inf
    total_by = math.inf if deadline is None else deadline
    first = min(headers_by, total_by)
    if first == math.inf:
        yield
        return
    with anyio.move_on_after(max(0.0, first - time.monotonic())) as scope:
        yield
    if scope.cancelled_caught:
        raise _ran_out(request, "total" if total_by <= headers_by else "idle")


def _check_deadline(request: WireRequest) -> None:
    if request.deadline is not None and time.monotonic() >= request.deadline:
        raise _ran_out(request, "total")


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
    field = "connect" if limit == "pool" else limit
    seconds = cast("float", getattr(request.timeout, field))
    message = f"{request.asked}: {_SAYS[limit].format(s=seconds)}"
    return RequestTimeoutError(message, limit=limit, seconds=seconds)


def _translated(exc: Exception, request: WireRequest) -> TransportError | ProtocolError:
    match exc:
        case httpx.ConnectTimeout():
            return _ran_out(request, "connect")
        case httpx.PoolTimeout():
            return _ran_out(request, "pool")
        case httpx.TimeoutException():
            return _ran_out(request, "idle")
        case httpx.RemoteProtocolError() if "location header" in str(exc):
            return ProtocolError(f"{request.asked} was answered with a redirect to no valid URL")
        case httpx.ConnectError():
            origin = httpx.URL(request.url).copy_with(raw_path=b"/")
            error = TransportError(
                f"{request.asked}: could not connect to {origin}: {exc}; "
                "is the server running there?"
            )
            error.was_sent = False
            error.is_final = _is_rejected_certificate(exc)
            return error
        case httpx.LocalProtocolError():
            # Its text quotes header values.
            return TransportError(f"{request.asked}: the request could not be written as HTTP")
        case _:
            return TransportError(
                f"{request.asked}: the connection broke: {str(exc) or type(exc).__name__}"
            )


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
    transport: httpx.AsyncBaseTransport | None,
    http_client: httpx.AsyncClient | None,
    auth: AuthTypes | None,
) -> AsyncIO:
    """A port over a client of our own, or over the caller's."""
    _check_kind("transport", transport, httpx.AsyncBaseTransport)
    _check_kind("http_client", http_client, httpx.AsyncClient)
    if http_client is not None:
        _check_not_both(transport)
        return AsyncIO(lambda: http_client, auth, is_ours=False)
    return AsyncIO(
        lambda: httpx.AsyncClient(transport=transport, limits=_LIMITS), auth, is_ours=True
    )


def blocking_io(
    transport: httpx.BaseTransport | None,
    http_client: httpx.Client | None,
    auth: AuthTypes | None,
) -> BlockingIO:
    """A port over a client of our own, or over the caller's."""
    _check_kind("transport", transport, httpx.BaseTransport)
    _check_kind("http_client", http_client, httpx.Client)
    if http_client is not None:
        _check_not_both(transport)
        return BlockingIO(lambda: http_client, auth, is_ours=False)
    return BlockingIO(lambda: httpx.Client(transport=transport, limits=_LIMITS), auth, is_ours=True)


def _check_kind(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name}: expected httpx.{kind.__name__}, got {type(value).__name__}")


def _check_not_both(transport: object) -> None:
    if transport is not None:
        raise TypeError("transport and http_client: give one of them; the client has a transport")


# No cap on connections: every open stream holds one, and with a cap of 100 the next stream fails.
# Servers close idle connections after 5 s, and a POST that meets a closed one is not repeated.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=3.0)
