"""The extra `aiohttp`: httpx over the connections of aiohttp, which parse HTTP in C.

Imported only where somebody asks for it. Not over httpx-aiohttp, which quotes the URL again, takes
a cut connection for one that was never made, lets aiohttp repeat a DELETE, and keeps 100 streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import aiohttp
import httpx
from multidict import istr
from yarl import URL

from ._io.transports.chunks import ChunkJoiner

_MAX_HEADER_BYTES = 65_536
"""Of a line, and of a field: aiohttp's own limit refuses a long `Content-Location`."""

_LARGE = 2**20
"""Bytes of a body that aiohttp wants to be given as a file."""


class Transport(httpx.AsyncBaseTransport):
    """The connections of one event loop."""

    def __init__(self, limits: httpx.Limits) -> None:
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=limits.max_connections or 0,
                keepalive_timeout=limits.keepalive_expiry,
                ssl=httpx.create_ssl_context(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),  # httpx has one
            middlewares=[_once],
            skip_auto_headers=["Content-Type"],
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions.get("timeout", {})
        content = await request.aread()
        answer = await self._session.request(
            request.method,
            URL(str(request.url), encoded=True),
            headers=_headers_of(request),
            data=BytesIO(content) if len(content) > _LARGE else content or None,
            allow_redirects=False,
            auto_decompress=False,
            # Its clock for reading runs on while nobody reads: who takes time would be timed out.
            timeout=aiohttp.ClientTimeout(
                connect=limits.get("pool"), sock_connect=limits.get("connect")
            ),
        )
        return httpx.Response(
            answer.status,
            headers=answer.raw_headers,
            stream=_Body(answer, limits.get("read")),
            extensions={
                "http_version": b"HTTP/1.1",
                "reason_phrase": (answer.reason or "").encode("ascii", "replace"),
                "network_stream": _Connection(answer),
            },
        )

    async def aclose(self) -> None:
        await self._session.close()


def _headers_of(request: httpx.Request) -> list[tuple[str, str]]:
    # aiohttp writes text, as UTF-8.
    try:
        return [(_name_of(name), value.decode()) for name, value in request.headers.raw]
    except UnicodeDecodeError:
        raise httpx.LocalProtocolError("a header is not UTF-8") from None


@lru_cache(maxsize=64)
def _name_of(header: bytes) -> istr:
    # aiohttp keeps the headers of a request as long as its answer is open, their names twice: as
    # sent and as compared. As one object each, they are 0.6 KiB less for each stream.
    return istr(header.decode())


class _Body(httpx.AsyncByteStream):
    """All that has arrived as one piece."""

    def __init__(self, answer: aiohttp.ClientResponse, idle: float | None) -> None:
        self._answer = answer
        self._idle = idle

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._answer.content
        error: httpx.HTTPError | None = None
        while True:
            try:
                piece = content.read_nowait()
                if not piece and error is None:
                    async with asyncio.timeout(self._idle):
                        piece = await content.readany()
            except (aiohttp.ClientError, OSError, RuntimeError) as exc:
                # A RuntimeError is how aiohttp tells a reader that the connection was closed.
                error = as_httpx(exc)
                # aiohttp tells it before what arrived until then: that first.
                content.set_exception(cast("Any", None))
                continue
            if piece:
                yield piece
            elif error is not None:
                raise error
            else:
                return

    async def aclose(self) -> None:
        self._answer.release()


class _Connection:
    """The connection of a response, as long as it is that of no other."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    def get_extra_info(self, name: str) -> Any:
        connection = self._answer.connection
        transport = None if connection is None else connection.transport
        return None if transport is None else transport.get_extra_info(name)

    def abort(self) -> None:
        connection = self._answer.connection
        transport = None if connection is None else connection.transport
        if transport is not None:
            cast("Any", transport).abort()

    drop = abort


class _Connector(aiohttp.TCPConnector):
    """Connections whose chunks are joined."""

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        connection = await super().connect(*args, **kwargs)
        protocol: Any = connection.protocol
        if not isinstance(protocol.data_received, _JoiningReceive):
            protocol.data_received = _JoiningReceive(protocol.data_received)
        protocol.data_received.awaits_head = True
        return connection


class _JoiningReceive(ChunkJoiner):
    """Stands in for the `data_received` of a protocol."""

    __slots__ = ("_receive", "awaits_head")

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        super().__init__()
        self._receive = receive
        self.awaits_head = False

    def __call__(self, data: bytes | bytearray) -> None:
        head, data = b"", bytes(data)  # a bytearray on Windows
        if self.awaits_head and data:
            self.awaits_head = False
            head, data = self.begin(data)
        else:
            data = self.take(data)
        if head:
            # Apart: of what is broken behind it, aiohttp would not even tell the head.
            self._receive(head)
        if data or not head:
            # Nothing is how aiohttp tells its parser to go on with what it has.
            self._receive(data)


async def _once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        answer = await send(request)
    except (aiohttp.ClientError, OSError) as exc:
        # aiohttp repeats what it knows to be idempotent, unless the error is none of its own.
        error = as_httpx(exc)
    else:
        _end_with_connection(answer)
        return answer
    raise error


def _end_with_connection(answer: aiohttp.ClientResponse) -> None:
    """Let nobody wait for a body whose connection aiohttp has closed on a broken chunk."""
    protocol = None if answer.connection is None else answer.connection.protocol
    closed = None if protocol is None else protocol.closed
    if closed is None:
        return
    end = _EndOfBody(answer.content, closed)
    closed.remove_done_callback(_retrieve)
    closed.add_done_callback(_retrieve)
    closed.add_done_callback(end.tell)
    answer.content.on_eof(end.forget)


class _EndOfBody:
    """Tells a body that its connection was closed, unless it has ended before."""

    __slots__ = ("_body", "_closed")

    def __init__(self, body: aiohttp.StreamReader, closed: asyncio.Future[None]) -> None:
        self._body = body
        self._closed = closed

    def tell(self, _: asyncio.Future[None]) -> None:
        if not self._body.is_eof() and self._body.exception() is None:
            self._body.set_exception(aiohttp.ClientPayloadError("a broken message"))

    def forget(self) -> None:
        self._closed.remove_done_callback(self.tell)


def _retrieve(closed: asyncio.Future[None]) -> None:
    closed.exception()  # or asyncio says that nobody did


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
        case aiohttp.InvalidURL():
            return httpx.UnsupportedProtocol(says)
        case aiohttp.ClientResponseError():
            return httpx.RemoteProtocolError(" ".join(exc.message.split()))
        case _:
            return httpx.ReadError(says)
