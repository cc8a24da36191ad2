"""The extra `aiohttp`: httpx over the connections of aiohttp, which parse HTTP in C.

Imported only where a client asks for it. Not over httpx-aiohttp, which quotes the URL again, takes
a cut connection for one that was never made, lets aiohttp repeat a DELETE, and keeps 100 streams.

Of aiohttp and asyncio it uses what they document. A protocol of ours stands in front of aiohttp's:
it joins the chunks, and saves what arrived before aiohttp hears that the connection has ended.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from io import BytesIO
from typing import Any, Self, cast
from weakref import WeakSet

import aiohttp
import httpx
from multidict import CIMultiDict, istr
from yarl import URL

from ..frames import without_frames
from . import shared_ssl_context
from .chunks import AnswerJoiner

_MAX_HEADER_BYTES = 65_536
"""Of a line, and of a field: aiohttp's own limit refuses a long `Content-Location`."""

_LARGE = 2**20
"""Bytes of a body that aiohttp wants to be given as a file."""

_SERVER_ERROR = 500
"""From this status on, a server may close the connection without saying so: uvicorn does."""


class Transport(httpx.AsyncBaseTransport):
    """The connections of one event loop."""

    def __init__(self, limits: httpx.Limits) -> None:
        self._bodies: WeakSet[_Body] = WeakSet()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._connector = _Connector(
            limit=limits.max_connections or 0,
            keepalive_timeout=limits.keepalive_expiry,
            ssl=shared_ssl_context(),
            socket_factory=self._open_socket,
        )
        self._connector.waiting = {}
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),  # httpx has one
            skip_auto_headers=["Content-Type"],
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )

    def _open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        opened = socket.socket(*address[:3])
        self._sockets.add(opened)
        return opened

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits: dict[str, float | None] = request.extensions.get("timeout", {})
        body = _Body(limits)
        self._bodies.add(body)
        try:
            answer = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=_headers_of(request),
                data=_data_of(await request.aread()),
                allow_redirects=False,
                auto_decompress=False,
                middlewares=[partial(self._send_once, body)],
                # Its clock for reading runs while nobody reads: a slow reader would be timed out.
                timeout=aiohttp.ClientTimeout(
                    connect=limits.get("pool"), sock_connect=limits.get("connect")
                ),
            )
        except (aiohttp.ClientError, OSError) as exc:
            error: BaseException = as_httpx(exc)
        except BaseException as exc:  # a cancellation has passed the frames of aiohttp, too
            error = exc
        else:
            return httpx.Response(
                answer.status,
                headers=answer.raw_headers,
                stream=body,
                extensions={
                    "http_version": b"HTTP/1.1",
                    "reason_phrase": (answer.reason or "").encode("ascii", "replace"),
                    "network_stream": _Connection(body),
                },
            )
        body.abort()
        try:
            raise without_frames(error, sys.exception())
        finally:
            del error

    async def _send_once(
        self, body: _Body, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request, once, and let its body know the connection and the answer."""
        waiting = self._connector.waiting
        waiting[request] = body
        try:
            answer = await send(request)
            if request in waiting:
                raise RuntimeError("aiohttp took a connection by another way than its connector")
        except (aiohttp.ClientError, OSError) as exc:
            # aiohttp repeats what it knows to be idempotent, unless the error is none of its own.
            error = as_httpx(exc)
        else:
            body.begin(answer)
            return answer
        finally:
            waiting.pop(request, None)
        raise error

    async def aclose(self) -> None:
        for body in [*self._bodies]:
            await body.aclose()  # aiohttp would wait until the server has read all there is to send
        await self._session.close()

    def discard(self) -> None:
        """Close what belongs to an event loop that is closed, without it.

        The sockets are closed, not shut down: a parent process may still use them.
        """
        self._session.detach()
        with suppress(RuntimeError):  # of the loop, which aiohttp asks to end what still waits
            for _ in self._connector.close().__await__():
                pass
        for body in [*self._bodies]:
            body.close()
        for opened in self._sockets:
            opened.close()


def _headers_of(request: httpx.Request) -> CIMultiDict[str]:
    # aiohttp writes text, as UTF-8. What instruments aiohttp adds its own headers to these.
    with suppress(UnicodeDecodeError):
        return CIMultiDict(map(_as_text, request.headers.raw))
    # Outside, where the UnicodeDecodeError, which shows the value, is no context.
    raise httpx.LocalProtocolError("a header is not UTF-8")


def _as_text(header: tuple[bytes, bytes]) -> tuple[str, str]:
    return _name_of(header[0]), header[1].decode()


@lru_cache(maxsize=64)
def _name_of(header: bytes) -> istr:
    # aiohttp keeps the headers of a request as long as its answer is open, their names twice: as
    # sent and as compared. As one object each, they are 0.6 KiB less for each stream.
    return istr(header.decode())


def _data_of(content: bytes) -> BytesIO | bytes | None:
    return BytesIO(content) if len(content) > _LARGE else content or None


class _Body(httpx.AsyncByteStream):
    """The body of a response: all that has arrived, as one piece.

    It is made before the request is sent, so that an error finds the connection to end.
    """

    def __init__(self, limits: Mapping[str, float | None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._limits = limits
        self._front: _Front | None = None
        self._answer: aiohttp.ClientResponse | None = None
        self._content = aiohttp.EMPTY_PAYLOAD
        self._saved = b""
        self._waiter: asyncio.Future[bool] | None = None
        self._is_aborted = False
        self._broken_by: Exception | None = None

    def attach(self, front: _Front) -> None:
        """The request goes out on this connection."""
        self._front = front

    def begin(self, answer: aiohttp.ClientResponse) -> None:
        """The head of the response has arrived."""
        self._answer = answer
        self._content = answer.content

    @property
    def is_no_server_error(self) -> bool:
        """Whether its connection may be used again, once the body is whole."""
        return self._answer is not None and self._answer.status < _SERVER_ERROR

    @property
    def _own_front(self) -> _Front | None:
        """Its connection; None once that is gone, or is for other requests as the body is whole."""
        is_whole = self._answer is not None and self._answer.connection is None
        return None if is_whole else self._front

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not (piece := self._take()):
            self._check()
            if self._content.at_eof():
                raise StopAsyncIteration
            await self._arrival()
        return piece

    def _take(self) -> bytes:
        """What has arrived since the last time; b"" if nothing has."""
        if self._saved:
            saved, self._saved = self._saved, b""
            return saved
        return b"" if self._content.exception() else self._content.read_nowait()

    def _check(self) -> None:
        """Raise what has ended the body too early, if anything has."""
        if self._is_aborted:
            raise httpx.ReadError("the connection was closed on this side")
        exc = self._content.exception()
        if exc is not None:
            raise without_frames(as_httpx(exc), sys.exception())
        if self._broken_by is not None:
            raise httpx.ReadError(str(self._broken_by)) from self._broken_by
        if self._front is None and not self._content.at_eof():
            raise httpx.ReadError("the connection was closed within the body")

    async def _arrival(self) -> None:
        """Wait for a byte, or for the end of the connection."""
        if self._waiter is not None:
            raise RuntimeError("another task is reading this body")
        self._waiter = waiter = self.loop.create_future()
        limit = self._limits.get("read")
        timer = None if limit is None else self.loop.call_later(limit, self._end_wait, False)
        try:
            has_arrived = await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        if not has_arrived:
            raise httpx.ReadTimeout("not a byte within the limit")

    def wake(self) -> None:
        """Let the task that waits look again."""
        self._end_wait(True)

    def _end_wait(self, has_arrived: bool, /) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done() and not self.loop.is_closed():
            waiter.set_result(has_arrived)

    def end(self, exc: Exception | None, protocol: asyncio.Protocol) -> None:
        """The connection has ended: save what arrived before the `protocol` of aiohttp forgets."""
        self._front = None
        pieces: list[bytes] = []
        while piece := self._take():
            pieces.append(piece)
        self._saved = b"".join(pieces)
        is_whole = self._content.at_eof()
        protocol.connection_lost(exc)
        if not is_whole:
            # aiohttp takes a reset, too, for the end of a body with neither a length nor chunks.
            self._broken_by = exc
        self.wake()

    def abort(self) -> None:
        """End the connection at once, if it is still that of this body."""
        self._is_aborted = True
        front = self._own_front
        if front is not None:
            front.abort()
        self.wake()

    async def aclose(self) -> None:
        front = self._own_front if self.is_no_server_error else self._front
        if front is not None:
            front.abort()
        self.close()
        self.wake()

    def close(self) -> None:
        """Let aiohttp know that nobody reads any more."""
        self._front = None
        if self._answer is not None:
            connection = self._answer.connection
            self._answer.close()
            if connection is not None:
                connection.close()  # which the answer leaves out where the event loop is closed

    def get_extra_info(self, name: str) -> Any:
        """What the event loop knows of the connection; None if it is not that of this body."""
        front = self._own_front
        return None if front is None else front.transport.get_extra_info(name)


class _Connection:
    """The connection of a response, as long as it is that of no other."""

    def __init__(self, body: _Body) -> None:
        self._body = body

    def get_extra_info(self, name: str) -> Any:
        return self._body.get_extra_info(name)

    def abort(self) -> None:
        """End the connection at once, from any thread: reading ends in an `httpx.ReadError`."""
        loop = self._body.loop
        try:
            is_here = asyncio.get_running_loop() is loop
        except RuntimeError:
            is_here = False
        if is_here:
            self._body.abort()
        else:
            with suppress(RuntimeError):  # the loop is closed, and so is the connection
                loop.call_soon_threadsafe(self._body.abort)

    def drop(self) -> None:
        """The same where a finalizer runs, which may be in the middle of anything."""
        with suppress(RuntimeError):
            self._body.loop.call_soon_threadsafe(self._body.abort)


class _Connector(aiohttp.TCPConnector):
    """Connections with a protocol of ours in front of aiohttp's."""

    waiting: dict[aiohttp.ClientRequest, _Body]
    """Requests without a connection, and the bodies that their responses are to have."""

    async def connect(self, req: aiohttp.ClientRequest, *args: Any, **kwargs: Any) -> Any:
        while True:
            connection = await super().connect(req, *args, **kwargs)
            front = _free_front(connection.transport)
            if front is not None:
                front.expect(self.waiting.pop(req))
                return connection
            connection.close()


def _free_front(transport: asyncio.Transport | None) -> _Front | None:
    """The protocol of ours on a connection; None if no request may be sent on it.

    aiohttp gives a connection away as soon as a body is whole, which nobody may have read yet.
    """
    protocol = None if transport is None else transport.get_protocol()
    if isinstance(protocol, _Front):
        return protocol if protocol.body.is_no_server_error else None
    if transport is None:
        return None
    front = _Front(cast("asyncio.Protocol", protocol), transport)
    transport.set_protocol(front)
    return front


class _Front(asyncio.Protocol):
    """Stands in front of aiohttp's protocol: joins chunks, and lets a body see what happens.

    To replace a method of aiohttp's protocol would not do: uvloop keeps the one it found first.
    """

    __slots__ = ("_behind", "_receive", "body", "transport")

    body: _Body
    """Of the response to the request that was sent last."""

    def __init__(self, behind: asyncio.Protocol, transport: asyncio.Transport) -> None:
        self._behind = behind
        self._receive = _JoiningReceive(behind.data_received)
        self.transport = transport

    def expect(self, body: _Body) -> None:
        """A request is sent next, whose response is to have this body."""
        self.body = body
        self._receive.awaits_head = True
        body.attach(self)

    def data_received(self, data: bytes) -> None:
        self._receive(data)
        self.body.wake()

    def eof_received(self) -> bool | None:
        return self._behind.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.body.end(exc, self._behind)

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()

    def abort(self) -> None:
        with suppress(RuntimeError):  # of an event loop that is closed
            self.transport.abort()


class _JoiningReceive(AnswerJoiner):
    """Passes on what is received, in fewer chunks."""

    __slots__ = ("_receive",)

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        super().__init__()
        self._receive = receive

    def __call__(self, data: bytes | bytearray) -> None:
        head, rest = self.split(bytes(data))  # a bytearray on Windows
        if head:
            # Apart: of what is broken after it, aiohttp would not even report the head.
            self._receive(head)
        if rest or not head:
            self._receive(rest)


def as_httpx(exc: BaseException) -> httpx.HTTPError:
    """The error of httpx that says the same."""
    error = _error_for(exc, " ".join(str(exc).split()))
    # A ClientResponseError shows the headers of the request.
    is_tellable = not isinstance(exc, aiohttp.ClientResponseError)
    error.__cause__ = exc if is_tellable else exc.__cause__
    return error


def _error_for(exc: BaseException, says: str) -> httpx.HTTPError:
    match exc:
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout(says)
        case TimeoutError():
            return httpx.ReadTimeout(says)
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError(says)
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return httpx.UnsupportedProtocol(says)
        case aiohttp.ClientResponseError():
            return httpx.RemoteProtocolError(" ".join(exc.message.split()))
        case _:
            return httpx.ReadError(says)
