"""The port over `httpx.Client`."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

import httpx

from . import (
    LEAVE_SECONDS,
    AuthTypes,
    Exchange,
    HTTPClient,
    WireRequest,
    Work,
    forks,
    members,
    sending,
)
from .clients import (
    ClientIO,
    Mounts,
    check_client,
    check_headers,
    check_kind,
    own_client,
    refuse_redirect,
)
from .failures import cause_of, check_deadline, is_of_network, look_for_redirect
from .frames import without_frames
from .transports.couplings import limit_reads

if TYPE_CHECKING:
    from .transports.blocking import BlockingStream


class _BlockingExchange(Exchange):
    def __init__(
        self, owner: ClientIO[Any], request: WireRequest, response: httpx.Response
    ) -> None:
        super().__init__(owner, request, response)
        self._body: Iterator[bytes] | None = None

    async def _receive(self) -> bytes:
        body = self._body or self._open_body()
        handled = sys.exception()
        if self.request.deadline is not None:
            check_deadline(self.request)
        try:
            for piece in body:
                if piece:
                    return piece
        except Exception as exc:
            if not is_of_network(exc):
                raise
            raise self._owner.error(exc, self.request) from cause_of(exc, handled)
        except BaseException as exc:
            without_frames(exc, handled)
            raise
        return self._end()

    def _open_body(self) -> Iterator[bytes]:
        was_read = self.response.is_stream_consumed
        raw = self.response.iter_bytes() if was_read else self.response.stream
        self._body = iter(cast("Iterable[bytes]", raw))
        return self._body

    def hurry(self, seconds: float) -> None:
        # A read that begins just within the time may take as long again.
        super().hurry(seconds / 2)
        if self._connection is not None:
            cast("BlockingStream", self._connection).longest_read = seconds / 2
        else:
            limit_reads(self.response, seconds / 2)

    async def finish(self, seconds: float) -> None:
        if self._connection is None:  # nothing limits a read of a body that was begun
            await self.release()
        else:
            await super().finish(seconds)

    def expire_in(self, seconds: float) -> None:
        del seconds  # no thread is kept for it: the next call of the caller finds out

    async def release(self) -> None:
        self._forget()
        if self._is_retired:
            self.wake()
        self.response.close()


class BlockingIO(ClientIO[httpx.Client]):
    """The port over `httpx.Client`: the coroutines of this class never suspend."""

    def __init__(
        self, make: Callable[[Mounts], httpx.Client], auth: AuthTypes | None, *, is_ours: bool
    ) -> None:
        super().__init__(make, auth, is_ours=is_ours)
        self._client: httpx.Client | None = None
        self._leaving: set[threading.Event] = set()

    def _get_client(self) -> httpx.Client | None:
        return self._client

    def _set_client(self, client: httpx.Client | None) -> None:
        self._client = client

    async def send(self, request: WireRequest) -> Exchange:
        client = self._ready_client()
        await self.release_dropped()
        check_deadline(request)
        built: httpx.Request | None = None

        def trace(name: str, info: Mapping[str, Any]) -> None:
            look_for_redirect(name, info, request)

        handled = sys.exception()
        before = sending.set(request.stop)
        try:
            built = self._build(client, request, trace)
            with self._waiting(request):
                response = client.send(built, **self._send_options())
            exchange = _BlockingExchange(self, request, response)
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

    async def sleep(self, seconds: float, request: WireRequest) -> None:
        until = math.inf if request.deadline is None else request.deadline
        with self._waiting(request):
            request.stop.wait(max(0.0, min(seconds, until - time.monotonic())))
        self.check_not_stopped(request.stop)
        check_deadline(request)

    async def shielded(self, work: Work, seconds: float) -> None:
        """Do it, and wait so many seconds for it.

        In a thread of its own: it may have to wait until another thread has read from a connection
        that they share, and the end of a limit of its own would end all streams there.
        """
        is_done = _begun(work)
        self._leaving.add(is_done)
        try:
            is_done.wait(seconds)
        finally:
            self._leaving.discard(is_done)

    async def leave(self, ways: Sequence[Work]) -> None:
        """Leave in these ways, all at once, and wait for what is being left already."""
        begun = members(self._leaving)
        until = time.monotonic() + LEAVE_SECONDS
        for is_done in [_begun(way) for way in ways]:
            is_done.wait()
        for is_done in begun:
            is_done.wait(max(0.0, until - time.monotonic()))

    async def close(self) -> None:
        self.is_closed = True
        if self._forks != len(forks):
            return
        self._stop_all()
        if self._is_ours and self._client is not None:
            self._client.close()


def _begun(work: Work) -> threading.Event:
    """What is set when the work, which a thread of its own does, is done."""
    is_done = threading.Event()

    def do() -> None:
        try:
            with suppress(Exception):  # of the caller's transport, as it closes
                next(work().__await__(), None)
        finally:
            is_done.set()

    try:
        threading.Thread(target=copy_context().run, args=(do,), daemon=True).start()
    except RuntimeError:  # none can be started while the interpreter ends
        do()
    return is_done


def blocking_io(
    transport: httpx.BaseTransport | str | None,
    http_client: HTTPClient | None,
    auth: AuthTypes | None,
) -> BlockingIO:
    """A port over a client of our own, or over the caller's."""
    if isinstance(transport, str):
        raise TypeError("transport='aiohttp' is for AsyncRunsClient: aiohttp needs an event loop")
    check_kind("transport", transport, httpx.BaseTransport)
    check_client(http_client, httpx.Client, transport)
    if http_client is not None:
        theirs = cast("httpx.Client", http_client)  # one of httpx2 has what is used of it
        return BlockingIO(lambda _: theirs, auth, is_ours=False)

    def make(mounts: Mounts) -> httpx.Client:
        client, _ = own_client(
            httpx.Client,
            _own_transport if transport is None else lambda _: transport,
            auth,
            mounts,
            check=check_headers,
            refuse=refuse_redirect,
        )
        return client

    io = BlockingIO(make, auth, is_ours=True)
    io.follows_environment = transport is None
    return io


def _own_transport(proxy: httpx.Proxy | None) -> httpx.BaseTransport:
    from .transports.blocking import BlockingTransport

    return BlockingTransport(proxy)
