"""The port over `httpx.AsyncClient`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import ref

import anyio
import httpx
from anyio.lowlevel import RunVar, checkpoint

from .._errors import RequestTimeoutError
from . import (
    LEAVE_SECONDS,
    AsyncHTTPClient,
    AuthTypes,
    Exchange,
    WireRequest,
    Work,
    abandoned,
    forks,
    late_imports,
    members,
    running_loop,
    sending,
)
from .cancellation import guarded
from .clients import (
    ClientIO,
    Mounts,
    check_client,
    check_headers,
    check_kind,
    own_client,
    refuse_redirect,
)
from .failures import cause_of, is_of_network, look_for_redirect, ran_out
from .frames import without_frames
from .transports import LIMITS

if TYPE_CHECKING:
    from asyncio import TimerHandle


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
        self.client = client
        self._body: AsyncIterator[bytes] | None = None
        self._expiry: TimerHandle | None = None

    async def _receive(self) -> bytes:
        body = self._body or self._open_body()
        handled = sys.exception()
        try:
            if self.request.deadline is None and self._connection is not None:
                async for piece in body:
                    if piece:
                        return piece
            else:
                # Of another transport, or one for other runs, too: who knows its limits?
                with self._io.within(self.request, idles=1):
                    async for piece in body:
                        if piece:
                            return piece
        except Exception as exc:
            if not is_of_network(exc):
                raise
            raise self._io.error(exc, self.request) from cause_of(exc, handled)
        except BaseException as exc:
            without_frames(exc, handled)
            raise
        return self._end()

    def _open_body(self) -> AsyncIterator[bytes]:
        was_read = self.response.is_stream_consumed
        # What httpx puts around it costs a third more.
        raw = self.response.aiter_bytes() if was_read else self.response.stream
        self._body = aiter(cast("AsyncIterable[bytes]", raw))
        return self._body

    def expire_in(self, seconds: float) -> None:
        loop = running_loop()
        if loop is not None and self._connection is not None and not self._is_at_end:
            self._expiry = loop.call_later(seconds, self.wake)

    async def release(self) -> None:
        self._forget()
        if self._forks != len(forks):
            abandoned.append(self)  # closing would unregister what the parent process waits for
            return
        if self._expiry is not None:
            self._expiry.cancel()
        self.wake()
        if self.is_shared:
            await apart(self._close)
        else:
            await guarded(self._close(), cancellations=0)

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            if self.is_shared:
                await self._interrupt()
            elif self.is_left_open:
                await self._unwind()
            await self.response.aclose()
            if self.is_left_open:
                await checkpoint()  # asyncio closes sockets in its next turn

    async def _interrupt(self) -> None:
        """End those generators where another read would wait for other requests."""
        if self._body is not None:
            with anyio.CancelScope() as scope, suppress(Exception):
                scope.cancel()
                await anext(self._body, None)

    async def _unwind(self) -> None:
        """Let the generators of httpx and httpcore end, which would wait for the collector."""
        if self._foreign_stream is not None:
            with suppress(Exception):
                await self._foreign_stream.aclose()
        if self._body is not None:
            with suppress(Exception):
                async for _ in self._body:
                    pass


class _Place:
    """That of a request on a connection: httpcore waits for one over HTTP/2 without a limit."""

    def __init__(self, request: WireRequest) -> None:
        self._request = request
        self._scope: anyio.CancelScope | None = None
        self._seconds = math.inf
        self.is_found = False

    @contextmanager
    def within(self, seconds: float | None) -> Generator[None]:
        """End what is awaited here unless the request has its place by then."""
        if seconds is None:
            yield
            return
        self._seconds = seconds
        with anyio.move_on_after(seconds) as self._scope:
            yield
        if self._scope.cancelled_caught:
            raise ran_out(self._request, "stream")

    def note(self, name: str) -> None:
        """What httpcore begins has a limit of its own; the time between has none."""
        self.is_found = self.is_found or name.endswith("send_request_headers.started")
        if self._scope is not None:
            is_limited = self.is_found or name.endswith(".started")
            left = math.inf if is_limited else self._seconds
            self._scope.deadline = anyio.current_time() + left


class _Loop:
    """The event loop that runs here. It is not kept alive: a client would keep it for ever."""

    def __init__(self) -> None:
        running = running_loop()
        self._loop = None if running is None else ref(running)

    def is_gone(self) -> bool:
        """Also said of a run of trio: at worst, it makes connections anew."""
        loop = None if self._loop is None else self._loop()
        return loop is None or loop.is_closed()


class AsyncIO(ClientIO[httpx.AsyncClient]):
    """The port over `httpx.AsyncClient`."""

    def __init__(
        self,
        make: Callable[[Mounts], httpx.AsyncClient],
        auth: AuthTypes | None,
        *,
        is_ours: bool,
        discard: Callable[
            [httpx.AsyncClient], object
        ] = id,  # a client of the caller's is not ours to let go
    ) -> None:
        self._discard = discard
        self._here: RunVar[_Loop] = RunVar("agentproto")
        self._clients: dict[_Loop, httpx.AsyncClient] = {}
        self._leaving: set[anyio.Event] = set()
        self._is_http2 = False
        self._is_http2_traced = False
        super().__init__(make, auth, is_ours=is_ours)

    # A connection lives and dies with its event loop: each loop has a pool of its own.
    def _get_client(self) -> httpx.AsyncClient | None:
        here = self._here.get(None) if self._clients else None
        return None if here is None else self._clients.get(here)

    def _set_client(self, client: httpx.AsyncClient | None) -> None:
        if client is None:
            abandoned.append(self._clients)
            self._clients = {}
            return
        self._discard_of_loops_gone()
        here = _Loop()
        with late_imports:  # anyio, of its backend
            self._here.set(here)
        self._clients[here] = client

    def _discard_of_loops_gone(self) -> None:
        for loop in [loop for loop in members(self._clients) if loop.is_gone()]:
            self._discard(self._clients.pop(loop))

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
            request.stop.scopes[scope] = running_loop()
            try:
                yield
            finally:
                del request.stop.scopes[scope]
        if scope.cancelled_caught:
            self.check_not_stopped(request.stop)
            raise ran_out(request, "total" if left <= patience else "idle")

    async def send(self, request: WireRequest) -> Exchange:
        client = self._ready_client()
        await self.release_dropped()
        built: httpx.Request | None = None

        place = _Place(request)

        async def trace(name: str, info: Mapping[str, Any]) -> None:
            self._is_http2_traced = self._is_http2_traced or name.startswith("http2.")
            place.note(name)
            look_for_redirect(name, info, request)

        handled = sys.exception()
        before = sending.set(request.stop)
        try:
            built = self._build(client, request, trace)
            if self._is_http2:  # on a client of ours: over a transport of the caller's
                built.extensions["trace"] = trace
            # 1xx responses start httpx's read timer anew, each of them: silence has no end there.
            limit = self._seconds_for_a_place(client, request)
            with self.within(request, idles=2), place.within(limit):
                sent = client.send(built, **self._send_options())
                response = await guarded(sent, cancellations=1)
            exchange = _AsyncExchange(self, client, request, response)
            self._is_http2 = exchange.is_shared
        except RequestTimeoutError as error:
            if self._is_http2_traced and not place.is_found:
                self.name_holders(error)
            raise
        except Exception as exc:
            if not is_of_network(exc):
                raise
            raise self.error(exc, request, built) from cause_of(exc, handled)
        except BaseException as exc:
            without_frames(exc, handled)  # a limit of the caller's makes it a cause
            raise
        finally:
            sending.reset(before)
            request.stop.connections.clear()
        return exchange

    def _seconds_for_a_place(self, client: httpx.AsyncClient, request: WireRequest) -> float | None:
        """Seconds until the request has to be written, where it is heard when it is."""
        if not self._is_http2_traced:
            return None
        auth = self._auth or client.auth
        # Another kind may ask for a token first, which takes its time.
        is_quick = auth is None or isinstance(auth, httpx.BasicAuth)
        return request.timeout.connect if is_quick else None

    async def sleep(self, seconds: float, request: WireRequest) -> None:
        with self.within(request):
            await anyio.sleep(seconds)

    async def shielded(self, work: Work, seconds: float) -> None:
        """Do it within so many seconds, also in a task that was cancelled, or is meanwhile."""
        is_over = anyio.Event()
        self._leaving.add(is_over)
        try:
            await apart(partial(_in_time, work, seconds))
        finally:
            self._leaving.discard(is_over)
            is_over.set()

    async def leave(self, ways: Sequence[Work]) -> None:
        """Leave in these ways, all at once, and wait for what is being left already."""
        begun = members(self._leaving)
        if ways:
            async with anyio.create_task_group() as group:
                for way in ways:
                    group.start_soon(_done, way)
        if begun:
            with anyio.move_on_after(LEAVE_SECONDS, shield=True):
                for is_over in begun:
                    await is_over.wait()

    async def close(self) -> None:
        self.is_closed = True
        if self._forks != len(forks):
            return
        self._stop_all()
        client = self._get_client()
        for exchange in members(self.exchanges):
            if cast("_AsyncExchange", exchange).client is client:
                await exchange.release()
            else:
                exchange.wake()
        if self._is_ours and client is not None:
            await client.aclose()
            await guarded(checkpoint(), cancellations=0)  # asyncio closes sockets in its next turn
        self._discard_of_loops_gone()
        self._clients.clear()


async def apart(work: Work) -> None:
    """Do what heeds no cancellation of this task, neither one from before nor one meanwhile."""
    if running_loop() is None:
        with anyio.CancelScope(shield=True):
            await work()
        return
    import asyncio  # it was before: only who runs a loop pays for it

    task = asyncio.ensure_future(work())
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    if not task.cancelled():  # as a loop does that ends
        task.result()


async def _in_time(work: Work, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await work()


async def _done(work: Work) -> None:
    with suppress(Exception):  # of the caller's transport, as it closes
        await work()


def async_io(
    transport: httpx.AsyncBaseTransport | Literal["aiohttp"] | None,
    http_client: AsyncHTTPClient | None,
    auth: AuthTypes | None,
) -> AsyncIO:
    """A port over a client of our own, or over the caller's."""
    make_transport = _maker_of(transport)
    check_client(http_client, httpx.AsyncClient, transport)
    if http_client is not None:
        theirs = cast("httpx.AsyncClient", http_client)  # one of httpx2 has what is used of it
        return AsyncIO(lambda _: theirs, auth, is_ours=False)
    own = _OwnClients(make_transport, auth)
    io = AsyncIO(own.make, auth, is_ours=True, discard=own.discard)
    io.follows_environment = transport is None
    return io


class _OwnClients:
    """Makes clients, each with a transport of its own, which it can let go without its loop."""

    def __init__(
        self,
        make_transport: Callable[[httpx.Proxy | None], httpx.AsyncBaseTransport],
        auth: AuthTypes | None,
    ) -> None:
        self._make_transport = make_transport
        self._auth = auth
        self._transports: dict[httpx.AsyncClient, httpx.AsyncBaseTransport] = {}

    def make(self, mounts: Mounts) -> httpx.AsyncClient:
        client, transport = own_client(
            httpx.AsyncClient,
            self._make_transport,
            self._auth,
            mounts,
            check=_check_headers_async,
            refuse=_refuse_redirect_async,
        )
        self._transports[client] = transport
        return client

    def discard(self, client: httpx.AsyncClient) -> None:
        """Let go of a client whose event loop has ended: nobody can close it in order."""
        discard = getattr(self._transports.pop(client), "discard", None)
        if discard is not None:
            discard()


def _maker_of(
    transport: httpx.AsyncBaseTransport | Literal["aiohttp"] | None,
) -> Callable[[httpx.Proxy | None], httpx.AsyncBaseTransport]:
    if transport != "aiohttp":
        check_kind("transport", transport, httpx.AsyncBaseTransport)
        return _own_transport if transport is None else lambda _: transport
    try:
        from .transports.aiohttp import Transport
    except ImportError as exc:
        raise ImportError(
            "transport='aiohttp' needs aiohttp: pip install 'agentproto[aiohttp]'"
        ) from exc

    def make(_: httpx.Proxy | None) -> httpx.AsyncBaseTransport:
        if running_loop() is None:
            raise RuntimeError("transport='aiohttp' needs asyncio; leave it out under trio")
        return Transport(LIMITS)

    return make


def _own_transport(proxy: httpx.Proxy | None) -> httpx.AsyncBaseTransport:
    from .transports.asynchronous import AsyncTransport

    return AsyncTransport(proxy)


async def _refuse_redirect_async(response: httpx.Response) -> None:
    refuse_redirect(response)


async def _check_headers_async(request: httpx.Request) -> None:
    check_headers(request)
