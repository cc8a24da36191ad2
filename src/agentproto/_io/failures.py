"""What httpx and aiohttp raise, as the errors of this library."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any, cast

import httpx

from .._errors import (
    ProtocolError,
    RequestTimeoutError,
    StatusError,
    TransportError,
    error_from_status,
)
from .._shapes import as_list
from . import WireRequest, late_imports

TRANSPORT_ERRORS = (
    *(httpx.HTTPError, httpx.StreamError, httpx.InvalidURL),
    *(OSError, UnicodeError),
)


def is_of_network(exc: BaseException) -> bool:
    """Whether it tells of the network, and not of a mistake or of the caller's code."""
    return isinstance(exc, TRANSPORT_ERRORS) or _is_of_aiohttp(exc)


def _is_of_aiohttp(exc: BaseException) -> bool:
    return type(exc).__module__.partition(".")[0] == "aiohttp"


def retold(exc: Exception) -> Exception:
    """The error of httpx that says what one of aiohttp does, also where that is but the cause."""
    origin = exc if _is_of_aiohttp(exc) else exc.__cause__
    if origin is None or not _is_of_aiohttp(origin):
        return exc
    with late_imports:
        from .._aiohttp import as_httpx

    return as_httpx(origin)


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


def ran_out(request: WireRequest, limit: str) -> RequestTimeoutError:
    """The error for a limit of time, or for that of the whole where it ran out by then."""
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


def translated(
    exc: Exception, request: WireRequest
) -> TransportError | StatusError | ProtocolError:
    """The error of this library for one of httpx."""
    match exc:
        case httpx.ConnectTimeout():
            return ran_out(request, "connect")
        case httpx.PoolTimeout():
            return ran_out(request, "pool")
        case httpx.TimeoutException():
            return ran_out(request, "idle")
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
        case httpx.LocalProtocolError() if is_full(exc):
            error = TransportError(
                f"{request.asked}: {exc}: the HTTP/2 connection of the client is full, and streams "
                "that were left count until their runs end; read them to their end, or use HTTP/1.1"
            )
            error.was_sent = False
            return error
        case httpx.LocalProtocolError():
            return TransportError(f"{request.asked}: the request could not be written as HTTP")
        case _:
            return TransportError(
                f"{request.asked}: the connection broke: {str(exc) or type(exc).__name__}"
            )


def is_full(exc: BaseException) -> bool:
    """Whether the client has no connection, and no stream of one, left for a request."""
    origin = exc.__cause__
    reason = origin.args[0] if origin is not None and origin.args else None
    return isinstance(exc, httpx.PoolTimeout) or type(reason).__name__ == "TooManyStreamsError"


def is_of(exc: Exception, built: httpx.Request) -> bool:
    """Whether it is that request which failed, as far as the error tells."""
    return getattr(exc, "_request", built) in {built, None}


def look_for_redirect(name: str, info: Mapping[str, Any], request: WireRequest) -> None:
    """Refuse it before httpx builds the next request, and trips over what is no URL."""
    if not name.endswith("receive_response_headers.complete"):
        return
    told: tuple[Any, ...] = info["return_value"]
    status: int = next((part for part in told if isinstance(part, int)), 0)
    if not 300 <= status < 400:
        return
    (pairs,) = [part for part in map(as_list, told) if part is not None] or [[]]
    headers = {name.decode("latin-1").lower(): v.decode("utf-8", "replace") for name, v in pairs}
    if "location" in headers:
        error = redirected(request.asked, status, headers["location"])
        error.about(status_code=status, headers=headers)
        raise error


def redirected(asked: str, status: int, target: str) -> ProtocolError:
    """The error for a redirect, which is never followed."""
    return ProtocolError(
        f"{asked} was answered {status} with a redirect to {target[:500]!r}, "
        "which is not followed; if that is the server, make it the base_url"
    )


def tellable(exc: Exception) -> Exception | None:
    """The cause, unless it may show a header: h11 quotes them, errors of aiohttp hold them."""
    is_secret = isinstance(exc, httpx.LocalProtocolError) or _is_of_aiohttp(exc)
    return None if is_secret else exc


def _is_rejected_certificate(exc: BaseException | None) -> bool:
    while exc is not None and not isinstance(exc, ssl.SSLCertVerificationError):
        exc = exc.__cause__ or exc.__context__
    return exc is not None


def check_deadline(request: WireRequest) -> None:
    """Refuse to go on when the time for the whole is over."""
    if request.deadline is not None and time.monotonic() >= request.deadline:
        raise ran_out(request, "total")
