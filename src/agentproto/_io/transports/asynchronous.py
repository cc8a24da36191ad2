"""Connections of event loops under `httpx.AsyncClient`: asyncio's our own, trio's through anyio."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import Any, TypeAlias, cast

import anyio
import httpx

from .. import running_loop, shut_down
from . import LIMITS, shared_ssl_context
from .asyncio_stream import AsyncioStream, receive_buffer
from .chunks import AnswerJoiner
from .couplings import put_pool
from .pooled import httpcore, note_sending, pool_options

NEXT_ATTEMPT_SECONDS = 0.25
"""Seconds after which the next address of a host is tried beside the ones before (RFC 8305)."""

Attempt: TypeAlias = Callable[[], Awaitable[AsyncioStream]]


class AsyncTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over connections that join chunks, and can be ended at once."""

    def __init__(self, proxy: httpx.Proxy | None = None) -> None:
        context = shared_ssl_context()
        super().__init__(verify=context, limits=LIMITS, proxy=proxy)
        options = pool_options(context, proxy)
        put_pool(self, httpcore.AsyncConnectionPool(**options, network_backend=AsyncBackend()))


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Connections of the event loop that runs."""

    def __init__(self) -> None:
        self._buffer = receive_buffer()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host, within so many seconds."""
        loop = running_loop()
        if loop is None:
            # Its class depends on what is installed.
            backend = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())
            made = backend.connect_tcp(host, port, timeout, local_address, socket_options)
            return AnyioStream(await made)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await _connected(loop, self._buffer, host, port)
        except OSError as exc:
            if limit.expired():
                raise httpcore.ConnectTimeout("no connection in time") from exc
            raise httpcore.ConnectError(str(exc)) from exc


class AnyioStream(httpcore.AsyncNetworkStream):
    """A stream of anyio, for trio."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._joiner = AnswerJoiner()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next piece, its chunks joined."""
        return self._joiner.join(await self._stream.read(max_bytes, timeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send it; an answer comes next."""
        note_sending(self)
        self._joiner.awaits_head = True
        await self._stream.write(buffer, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> AnyioStream:
        """This connection, encrypted."""
        return AnyioStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    async def aclose(self) -> None:
        """End the connection."""
        await self._stream.aclose()

    def abort(self) -> None:
        """End the connection, from any thread; a read that waits here ends."""
        shut_down(self._stream)

    drop = abort

    def get_extra_info(self, info: str) -> Any:
        """What httpcore and callers ask of a connection."""
        return self._stream.get_extra_info(info)


async def _connected(
    loop: asyncio.AbstractEventLoop, buffer: memoryview, host: str, port: int
) -> AsyncioStream:
    attempts = [
        partial(_connect, partial(AsyncioStream, loop, buffer), loop, address, port, family)
        for family, address in await addresses_of(host, port)
    ]
    return await attempts[0]() if len(attempts) == 1 else await first_connected(attempts)


async def _connect(
    make: Callable[[], AsyncioStream],
    loop: asyncio.AbstractEventLoop,
    address: str,
    port: int,
    family: int,
) -> AsyncioStream:
    _, stream = await loop.create_connection(
        make, address, port, family=family, flags=socket.AI_NUMERICHOST
    )
    return stream


async def addresses_of(host: str, port: int) -> list[tuple[int, str]]:
    """The addresses of a host, of one family and the other in turns."""
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        return [(socket.AF_INET if address.version == 4 else socket.AF_INET6, host)]
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    known = dict.fromkeys((int(family), str(address[0])) for family, *_, address in found)
    preferred = next(iter(known))[0]
    same = [each for each in known if each[0] == preferred]
    other = [each for each in known if each[0] != preferred]
    turns = chain.from_iterable(zip_longest(same, other))
    return [each for each in turns if each is not None]


async def first_connected(attempts: Sequence[Attempt]) -> AsyncioStream:
    """The connection that is made first; a later address is tried where an earlier one takes long.

    Raises:
        OSError: that of the first address, if none is reached.
    """
    made: list[AsyncioStream] = []
    errors: list[OSError] = []

    async def attempt(connect: Attempt, is_over: anyio.Event) -> None:
        try:
            made.append(await connect())
            group.cancel_scope.cancel()
        except OSError as exc:
            errors.append(exc)
        finally:
            is_over.set()

    try:
        async with anyio.create_task_group() as group:
            for connect in attempts:
                is_over = anyio.Event()
                group.start_soon(attempt, connect, is_over)
                with anyio.move_on_after(NEXT_ATTEMPT_SECONDS):
                    await is_over.wait()
    except BaseException:
        for stream in made:
            stream.abort()
        raise
    for late in made[1:]:
        late.abort()
    if not made:
        raise errors[0] from ExceptionGroup("no address was reached", errors)
    return made[0]
