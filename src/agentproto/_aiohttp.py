"""The extra `aiohttp`: httpx over the connections of aiohttp, which parse HTTP in C.

Imported only where somebody asks for it. What aiohttp would do of its own accord is switched off
here: a limit of 100 connections, a cookie jar, a content type, and the repetition of a DELETE.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

_MAX_HEADER_BYTES = 65_536
"""Of a line, and of a field: aiohttp's own limit refuses a long `Content-Location`."""

_answers: ContextVar[list[aiohttp.ClientResponse]] = ContextVar("agentproto")


class Transport(AiohttpTransport):
    """Tells what httpx's own transport tells, too: the socket, and errors by their right names."""

    def __init__(self, limits: httpx.Limits) -> None:
        super().__init__(client=lambda: _session(limits, self.ssl_context))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answers: list[aiohttp.ClientResponse] = []
        token = _answers.set(answers)
        try:
            response = await super().handle_async_request(request)
        finally:
            _answers.reset(token)
        answer = answers[-1]
        response.stream = _Body(answer, response.stream)
        response.extensions["network_stream"] = _Connection(answer)
        return response


class _Body(httpx.AsyncByteStream):
    """All that has arrived as one piece, where httpx-aiohttp cuts it up."""

    def __init__(self, answer: aiohttp.ClientResponse, stream: Any) -> None:
        self._answer = answer
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._answer.content.iter_any():
                yield piece
        except (aiohttp.ClientError, OSError, RuntimeError) as exc:
            # A RuntimeError is how aiohttp tells a reader that the connection was closed.
            raise as_httpx(exc) from exc

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Connection:
    """The connection of a response, as long as it is that of no other."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    def get_extra_info(self, name: str) -> Any:
        connection = self._response.connection
        transport = None if connection is None else connection.transport
        return None if transport is None else transport.get_extra_info(name)


def _session(limits: httpx.Limits, ssl_context: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=limits.max_connections or 0,
        keepalive_timeout=limits.keepalive_expiry,
        ssl=ssl_context,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=[_once],
        skip_auto_headers=["Content-Type"],
        max_line_size=_MAX_HEADER_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
    )


async def _once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        response = await send(request)
    except (aiohttp.ClientError, OSError) as exc:
        # aiohttp repeats what it knows to be idempotent, unless the error is none of its own.
        raise as_httpx(exc) from exc
    _answers.get().append(response)
    _end_with_connection(response)
    return response


def _end_with_connection(response: aiohttp.ClientResponse) -> None:
    """Let nobody wait for a body whose connection aiohttp has closed on a broken chunk."""
    protocol = None if response.connection is None else response.connection.protocol
    closed = None if protocol is None else protocol.closed
    if closed is None:
        return
    body = response.content

    def tell(future: asyncio.Future[None]) -> None:
        future.exception()
        if not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("a broken message"))

    def forget() -> None:
        closed.remove_done_callback(tell)

    closed.add_done_callback(tell)
    body.on_eof(forget)


def as_httpx(exc: BaseException) -> httpx.HTTPError:
    """The error of httpx that says the same. httpx-aiohttp takes what was cut for not connected."""
    error = _error_for(exc, " ".join(str(exc).split()))
    error.__cause__ = exc
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
