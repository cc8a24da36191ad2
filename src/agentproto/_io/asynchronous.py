"""The port over `httpx.AsyncClient`."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast
from weakref import ref

import anyio
import httpx
from anyio.lowlevel import RunVar

from .._chunks import AsyncJoiningRead, join_chunks
from . import (
    AuthTypes,
    Exchange,
    WireRequest,
    abandoned,
    forks,
    late_imports,
    members,
    running_loop,
    shut_down,
)
from .clients import (
    LIMITS,
    ClientIO,
    check_client,
    check_headers,
    check_kind,
    connection_made,
    own_client,
    refuse_redirect,
)
from .failures import is_of_network, look_for_redirect, ran_out, tellable


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
            if not is_of_network(exc):
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
        if self._forks != len(forks):
            abandoned.append(self)  # closing would unregister what the parent process waits for
            return
        # asyncio's own task.cancel() does not know the shield: it may come a second time.
        self.wake()
        with anyio.CancelScope(shield=True):
            await self.response.aclose()


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
        self, make: Callable[[], httpx.AsyncClient], auth: AuthTypes | None, *, is_ours: bool
    ) -> None:
        self._here: RunVar[_Loop] = RunVar("agentproto")
        self._clients: dict[_Loop, httpx.AsyncClient] = {}
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
        for loop in [loop for loop in members(self._clients) if loop.is_gone()]:
            del self._clients[loop]
        here = _Loop()
        with late_imports:  # anyio, of its backend
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
        connection: Any = None

        async def trace(name: str, info: Mapping[str, Any]) -> None:
            nonlocal connection
            made = connection_made(name, info)
            if made is not None:
                connection = made
                join_chunks(made, AsyncJoiningRead)
            else:
                look_for_redirect(name, info, request)

        try:
            built = self._build(client, request, trace)
            # 1xx responses start httpx's read timer anew, each of them: silence has no end there.
            with self.within(request, idles=2):
                response = await client.send(built, **self._send_options())
        except Exception as exc:
            if not is_of_network(exc):
                shut_down(connection)
                raise
            raise self.error(exc, request, built) from tellable(exc)
        except BaseException:
            # A second cancellation may meet httpcore just when it closes the connection.
            shut_down(connection)
            raise
        return _AsyncExchange(self, client, request, response)

    async def sleep(self, seconds: float, request: WireRequest) -> None:
        with self.within(request):
            await anyio.sleep(seconds)

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
        self._clients.clear()


def async_io(
    transport: httpx.AsyncBaseTransport | Literal["aiohttp"] | None,
    http_client: httpx.AsyncClient | None,
    auth: AuthTypes | None,
) -> AsyncIO:
    """A port over a client of our own, or over the caller's."""
    make_transport = _maker_of(transport)
    check_client(http_client, httpx.AsyncClient, transport)
    if http_client is not None:
        return AsyncIO(lambda: http_client, auth, is_ours=False)
    return AsyncIO(
        lambda: own_client(
            httpx.AsyncClient,
            make_transport(),
            auth,
            check=_check_headers_async,
            refuse=_refuse_redirect_async,
        ),
        auth,
        is_ours=True,
    )


def _maker_of(
    transport: httpx.AsyncBaseTransport | Literal["aiohttp"] | None,
) -> Callable[[], httpx.AsyncBaseTransport | None]:
    if transport != "aiohttp":
        check_kind("transport", transport, httpx.AsyncBaseTransport)
        return lambda: transport
    try:
        from .._aiohttp import Transport
    except ImportError as exc:
        raise ImportError(
            "transport='aiohttp' needs aiohttp: pip install 'agentproto[aiohttp]'"
        ) from exc

    def make() -> httpx.AsyncBaseTransport:
        if running_loop() is None:
            raise RuntimeError("transport='aiohttp' needs asyncio; leave it out under trio")
        return Transport(LIMITS)

    return make


async def _refuse_redirect_async(response: httpx.Response) -> None:
    refuse_redirect(response)


async def _check_headers_async(request: httpx.Request) -> None:
    check_headers(request)
