"""What httpx, and the libraries that transports are made of, raise: as errors of this library."""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from inspect import unwrap
from types import CodeType, FrameType, FunctionType
from typing import Any, cast

import httpx

from .._errors import (
    ProtocolError,
    RequestTimeoutError,
    StatusError,
    TransportError,
    error_from_status,
    reason,
)
from .._settings import Timeout
from .._shapes import as_list
from . import WireRequest, late_imports
from .frames import without_frames
from .httpx2 import from_httpx2
from .proxies import proxy_for

TRANSPORT_ERRORS = (
    *(httpx.HTTPError, httpx.StreamError, httpx.InvalidURL),
    *(OSError, UnicodeError),
)

# Seen to come out of a client of httpx as they are: of pyreqwest 0.15.1 (a body that is cut), of
# httpx-socks 0.13.1 (python-socks, anyio, trio) and of `httpx[socks]` 0.28.1 (socksio).
_LIBRARIES = frozenset({"pyreqwest", "python_socks", "socksio"})
_BROKEN = frozenset(
    {"anyio.BrokenResourceError", "anyio.ClosedResourceError", "anyio.EndOfStream"}
    | {"trio.BrokenResourceError", "trio.ClosedResourceError"}
)
_NAMED_AS_IN_HTTPX = frozenset({"httpcore", "httpcore2", "httpx2"})


def is_of_network(exc: Exception) -> bool:
    """Whether it reports a failure of the network, and no mistake.

    Its class decides: an OSError, an error of httpx, or one of a library that transports are made
    of. What a test, a hook or an application defines is none of these, such as pytest-socket's
    `SocketBlockedError`, a RuntimeError.
    """
    return (
        isinstance(from_httpx2(exc), TRANSPORT_ERRORS)
        or _is_of_aiohttp(exc)
        or _httpx_class_for(exc) is not None
        or not _BROKEN.isdisjoint(_names_of(exc))
        or (_library_of(exc) in _LIBRARIES and not isinstance(exc, RuntimeError | ValueError))
    )


def _library_of(exc: BaseException) -> str:
    return type(exc).__module__.partition(".")[0]


def _is_of_aiohttp(exc: BaseException) -> bool:
    return _library_of(exc) == "aiohttp"


def _names_of(exc: BaseException) -> set[str]:
    """Its class and those above it, each as library and name: "httpcore.ConnectError"."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(exc).__mro__}


def _httpx_class_for(exc: BaseException) -> type[httpx.RequestError] | None:
    """The class of httpx that has the name of this one of a sibling library."""
    if _library_of(exc) not in _NAMED_AS_IN_HTTPX or isinstance(exc, httpx.HTTPError):
        return None
    kind = getattr(httpx, type(exc).__name__, None)
    is_error = isinstance(kind, type) and issubclass(kind, httpx.RequestError)
    return cast("type[httpx.RequestError]", kind) if is_error else None


def retold(exc: Exception) -> Exception:
    """The error of httpx that says what one of another library does, also where that is a cause."""
    alike = _httpx_class_for(exc)
    if alike is not None:
        error = alike(str(exc))
        error.__cause__ = exc
        return error
    origin = exc if _is_of_aiohttp(exc) else exc.__cause__
    if origin is None or not _is_of_aiohttp(origin):
        return exc
    with late_imports:
        from .transports.aiohttp import as_httpx

    return as_httpx(origin)


_NEVER_SENT = frozenset(
    {
        f"{library}.{name}"
        for library in ("httpcore", "httpcore2")
        for name in ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
    }
    | {"aiohttp.ClientConnectorError", "aiohttp.ConnectionTimeoutError"}
    | {"aiohttp.ClientHttpProxyError"}
)
"""What these libraries raise before the first byte of a request is written, and only then."""

_REFUSED_BY_PROXY = frozenset(
    {"httpcore.ProxyError", "httpcore2.ProxyError", "aiohttp.ClientHttpProxyError"}
)

_WITH_HEADERS = frozenset({"aiohttp.ClientResponseError"})
_CONNECT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def was_never_sent(exc: BaseException) -> bool:
    """Whether it proves that no byte of the request was written.

    An error of httpx that says so by its name proves nothing: pyreqwest raises `ConnectError` for
    a reset after the request. Proof is the error of httpcore or aiohttp that a transport raised it
    from, or that a mock raised it.
    """
    frames = list(_frames_of(exc))
    if _has_reached_an_application(frames):
        return False
    if _is_out_of_streams(exc) or any(_links_named(_NEVER_SENT, exc)):
        return _is_of_a_transport(frames)
    # The library that is mocked would have given a cause; respx gives one of its own.
    is_bare = all(link is exc or _library_of(link) == "respx" for link in _causes_of(exc))
    return isinstance(exc, _CONNECT_ERRORS) and is_bare and _is_of_a_mock(frames)


def _links_named(names: frozenset[str], exc: BaseException) -> Generator[BaseException]:
    return (link for link in _causes_of(exc) if not names.isdisjoint(_names_of(link)))


def _causes_of(exc: BaseException) -> Generator[BaseException]:
    """This error and what it was raised from, each once: respx makes a circle of them."""
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        # httpcore raises its errors again `from None`: what they stand for is their context.
        is_of_httpcore = _library_of(link) in {"httpcore", "httpcore2"}
        link = link.__cause__ or (link.__context__ if is_of_httpcore else None)


def _frames_of(exc: BaseException) -> Generator[FrameType]:
    """The frames from where it was caught to where it was raised.

    Those of earlier attempts are gone: `cause_of` took them off an error that a mock raises again.
    """
    step = exc.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


_HANDLERS = frozenset({"handle_request", "handle_async_request"})
"""What a transport of httpx is called by."""


def _codes(*functions: Callable[..., Any]) -> frozenset[CodeType]:
    # Unwrapped: tracing may have wrapped them before this module was imported.
    return frozenset(cast("FunctionType", unwrap(function)).__code__ for function in functions)


_APPLICATIONS = _codes(httpx.ASGITransport.handle_async_request, httpx.WSGITransport.handle_request)
_SENDS = _codes(httpx.AsyncClient.send, httpx.Client.send)
_MOCKS = _codes(httpx.MockTransport.handle_async_request, httpx.MockTransport.handle_request)
_MOCKING = frozenset({"respx", "pytest_httpx"})


def _is_of_a_transport(frames: Iterable[FrameType]) -> bool:
    return any(frame.f_code.co_name in _HANDLERS for frame in frames)


def _has_reached_an_application(frames: Iterable[FrameType]) -> bool:
    """Whether it came out of an application in this process, or a client within a transport.

    What could not connect there is another request, made because of ours.
    """
    is_in_transport = False
    for frame in frames:
        code = frame.f_code
        if code in _APPLICATIONS or (is_in_transport and code in _SENDS):
            return True
        is_in_transport = is_in_transport or code.co_name in _HANDLERS
    return False


def _is_of_a_mock(frames: Iterable[FrameType]) -> bool:
    """Whether the innermost transport is a mock."""
    is_mock = False
    for frame in frames:
        library = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code in _MOCKS or library in _MOCKING:
            is_mock = True
        elif frame.f_code.co_name in _HANDLERS:
            is_mock = False
    return is_mock


_OF_A_CLIENT = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, UnicodeError)
"""What a client of httpx raises itself, outside of its transport."""

_CLOCK_SLACK = 0.01
"""Seconds by which a socket's timeout may end before its time."""

_SAYS = {
    "connect": "no connection{to} within {s:g} s (timeout.connect); is the {kind} running there?",
    "pool": "no free connection within {s:g} s (timeout.connect); the pool of the client is full: "
    "close streams that are done, or raise max_connections of http_client",
    "idle": "not a byte within {s:g} s (timeout.idle); "
    "give a longer limit with timeout=Timeout(idle=...)",
    "stream": "no free stream within {s:g} s (timeout.connect) on the HTTP/2 connection of the "
    "client: close streams that are done, or use HTTP/1.1",
    "total": "not done within {s:g} s (timeout.total); "
    "give a longer limit with timeout=Timeout(total=...)",
}


def ran_out(request: WireRequest, limit: str, *, proxy: str | None = None) -> RequestTimeoutError:
    """The error for a limit of time, or for that of the whole where it ran out by then."""
    limit, seconds = _limit_of(request, limit)
    seconds = cast("float", seconds)
    to, kind = ("", "server") if proxy is None else (f" to the proxy {proxy}", "proxy")
    message = f"{request.asked}: {_SAYS[limit].format(s=seconds, to=to, kind=kind)}"
    named = "pool" if limit == "stream" else limit
    return RequestTimeoutError(message, limit=named, seconds=seconds)


def _limit_of(request: WireRequest, limit: str) -> tuple[str, float | None]:
    """The limit that ran out and its seconds; a system has limits of its own, too: None."""
    if request.deadline is not None and time.monotonic() >= request.deadline - _CLOCK_SLACK:
        limit = "total"
    field = "connect" if limit in {"pool", "stream"} else limit
    return limit, getattr(request.timeout, field)


def _limit_in(exc: httpx.TimeoutException) -> str:
    match exc:
        case httpx.ConnectTimeout():
            return "connect"
        case httpx.PoolTimeout():
            return "pool"
        case _:
            return "idle"


def _is_of_a_redirect(exc: Exception) -> bool:
    # What httpx trips over when it looks where a redirect leads, on a client of the caller's.
    return isinstance(exc, UnicodeError) or "location header" in str(exc)


def _body_of(response: httpx.Response) -> bytes:
    try:
        return response.content
    except RuntimeError:  # a StreamError of httpx or httpx2
        return b""


def as_ours(
    exc: Exception,
    request: WireRequest,
    built: httpx.Request | None = None,
    mounts: Mapping[str, str | None] | None = None,
) -> TransportError | StatusError | ProtocolError:
    """The error of this library for a failure while a request was made or its body read.

    `built` is the request of httpx, None while a body is read. `mounts` are the proxies that the
    client takes from the environment.
    """
    mounts = mounts or {}
    proxy = _proxy_of(request.url, mounts)
    if built is None:
        return translated(exc, request, proxy)
    failed = _request_of(exc)
    if failed is not None and not _is_same(failed, built):
        return _of_another(exc, request, failed, mounts)
    if not isinstance(exc, _OF_A_CLIENT) and not _is_of_a_transport(_frames_of(exc)):
        return TransportError(f"{request.asked}: auth= or a hook failed: {_reason_of(exc)}")
    error = translated(exc, request, proxy)
    if isinstance(error, TransportError):
        error.was_sent = not was_never_sent(exc)
    return error


def _of_another(
    exc: Exception, request: WireRequest, failed: httpx.Request, mounts: Mapping[str, str | None]
) -> TransportError | StatusError | ProtocolError:
    """The error for a request that auth or a hook made: ours may have been answered before."""
    asked = f"{failed.method} {_origin_of(failed.url)} (by auth= or a hook, for {request.asked})"
    limits: Mapping[str, float | None] = failed.extensions.get("timeout", {})
    theirs = replace(
        request,
        url=str(failed.url),
        asked=asked,
        timeout=Timeout(connect=limits.get("connect"), idle=limits.get("read")),
    )
    error = translated(exc, theirs, _proxy_of(failed.url, mounts))
    status = error.status_code or 0
    if status == 429 or status >= 500:
        # Not as a status of ours: a call that was answered 429 may be made again.
        error = TransportError(f"{asked} answered {status} {reason(status)}".rstrip())
    if isinstance(error, TransportError):
        error.was_sent = True
    return error


def _request_of(exc: BaseException) -> httpx.Request | None:
    """The request that failed, where the error knows it."""
    with suppress(RuntimeError):  # it does not
        return exc.request if isinstance(exc, httpx.HTTPError) else None
    return None


def _is_same(failed: httpx.Request, built: httpx.Request) -> bool:
    # Auth may send another object in its place, with a token in the query.
    return failed.method == built.method and _without_query(failed) == _without_query(built)


def _without_query(request: httpx.Request) -> httpx.URL:
    return request.url.copy_with(query=None)


def _proxy_of(url: httpx.URL | str, mounts: Mapping[str, str | None]) -> str | None:
    """The proxy for this URL as messages name it: without credentials, and where it is set."""
    found = proxy_for(httpx.URL(url), mounts) if mounts else None
    return None if found is None else f"{_origin_of(found[0])} ({found[1]})"


def _origin_of(url: httpx.URL | str) -> str:
    """Scheme, host and port: no credentials, no path, no query."""
    url = httpx.URL(url)
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def translated(
    exc: Exception, request: WireRequest, proxy: str | None = None
) -> TransportError | StatusError | ProtocolError:
    """The error of this library for one of httpx. `proxy` is how messages name the one in use."""
    refusal = next(_links_named(_REFUSED_BY_PROXY, exc), None)
    if refusal is not None:
        return _refused_by_proxy(refusal, request, proxy)
    exc = retold(exc)
    if isinstance(exc, httpx.TimeoutException):
        limit = _limit_in(exc)
        if _limit_of(request, limit)[1] is not None:
            return ran_out(request, limit, proxy=proxy if _is_of_tcp(exc) else None)
    match exc:
        case httpx.RemoteProtocolError() | UnicodeError() if _is_of_a_redirect(exc):
            return ProtocolError(f"{request.asked} was answered with a redirect to no valid URL")
        case httpx.HTTPStatusError(response=response):  # of a hook that raises for a status
            return error_from_status(
                response.status_code, response.headers, _body_of(response), asked=request.asked
            )
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return _not_connected(exc, request, proxy)
        case httpx.InvalidURL():
            error = TransportError(f"{request.asked}: {exc}; check the base_url")
            error.was_sent, error.is_final = False, True
            return error
        case httpx.LocalProtocolError() if is_full(exc):
            error = TransportError(
                f"{request.asked}: {exc}: the HTTP/2 connection of the client is full; a stream "
                "that was left counts until its run ends: cancel such runs, or use HTTP/1.1"
            )
            error.was_sent = False
            return error
        case httpx.LocalProtocolError():
            return TransportError(f"{request.asked}: the request could not be written as HTTP")
        case _:
            return TransportError(f"{request.asked}: the connection broke: {_reason_of(exc)}")


def is_full(exc: BaseException) -> bool:
    """Whether the client has no connection, and no stream of one, left for a request."""
    return isinstance(exc, httpx.PoolTimeout) or _is_out_of_streams(exc)


def _is_out_of_streams(exc: BaseException) -> bool:
    """Whether h2 refused to begin another stream: nothing was written."""
    origin = exc.__cause__
    refusal = origin.args[0] if origin is not None and origin.args else None
    return type(refusal).__name__ == "TooManyStreamsError"


def _not_connected(exc: Exception, request: WireRequest, proxy: str | None) -> TransportError:
    target, kind = f"{_origin_of(request.url)}/", "server"
    if proxy is not None and _is_of_tcp(exc):
        target, kind = f"the proxy {proxy}", "proxy"
    elif proxy is not None:
        target = f"{target} through the proxy {proxy}"
    error = TransportError(
        f"{request.asked}: could not connect to {target}: {_reason_of(exc)}; "
        f"is the {kind} running there?"
    )
    error.is_final = any(isinstance(e, ssl.SSLCertVerificationError) for e in _causes_of(exc))
    return error


def _is_of_tcp(exc: BaseException) -> bool:
    """Whether it was the first connection that failed, not TLS over it: that is a proxy's."""
    return any(
        frame.f_code.co_name == "connect_tcp"  # of the interface of httpcore's network backends
        for link in _causes_of(exc)
        for frame in _frames_of(link)
    )


_PROXY_STEPS = {
    403: "; allow this host and port there, or name the host in NO_PROXY",
    407: "; put user and password into the URL of the proxy",
}


def _refused_by_proxy(
    refusal: BaseException, request: WireRequest, proxy: str | None
) -> TransportError:
    """The error for a tunnel that a proxy refused; final if it would refuse again."""
    by = "the proxy" if proxy is None else f"the proxy {proxy}"
    status = _status_in(refusal)
    said = _text_of(refusal) if status is None else f"{status} {reason(status)}".rstrip()
    error = TransportError(
        f"{request.asked}: {by} refused the connection to {_origin_of(request.url)}: "
        f"{said[:200]}{_PROXY_STEPS.get(status or 0, '')}"
    )
    error.is_final = status is not None and status < 500 and status not in {408, 429}
    return error


def _status_in(refusal: BaseException) -> int | None:
    """The status that a proxy answered CONNECT with; one of SOCKS has none."""
    found = re.match(r"([1-9][0-9]{2})\b", str(refusal))
    return None if found is None else int(found[1])


def _reason_of(exc: BaseException) -> str:
    """What the system says, as "Connection refused [Errno 111]", else the text of the error."""
    for link in _causes_of(exc):
        if isinstance(link, ssl.SSLError):
            break
        reasons = dict.fromkeys(_system_reason(error) for error in _leaves_of(link))
        reasons.pop(None, None)
        if reasons:
            return "; ".join(map(str, reasons))
    return _text_of(exc)


def _leaves_of(exc: BaseException) -> list[BaseException]:
    """The errors of a group, of which each address of a host has one; itself if it is none."""
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    group = cast("BaseExceptionGroup[BaseException]", exc)
    return [leaf for member in group.exceptions for leaf in _leaves_of(member)]


def _system_reason(exc: BaseException) -> str | None:
    if not isinstance(exc, OSError) or exc.errno is None:
        return None
    text = exc.strerror or ""
    # asyncio and aiohttp put the address in the place of what the system said.
    is_hidden = not text or text.startswith("Connect call failed")
    return f"{os.strerror(exc.errno) if is_hidden else text} [Errno {exc.errno}]"


def _text_of(exc: BaseException) -> str:
    # pyreqwest has the causes as its second argument, which all of `str` would show.
    first = next(iter(exc.args), "")
    return (first if isinstance(first, str) else str(exc)) or type(exc).__name__


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


def cause_of(exc: Exception, handled: BaseException | None) -> Exception | None:
    """What an error of ours is raised from, unless its text may show a header.

    h11 quotes headers, and errors of aiohttp hold them. `handled` is what the caller was handling.
    """
    without_frames(exc, handled)
    is_secret = (
        isinstance(from_httpx2(exc), httpx.LocalProtocolError)
        or _is_of_aiohttp(exc)
        or any(_links_named(_WITH_HEADERS, exc))
    )
    return None if is_secret else exc


def check_deadline(request: WireRequest) -> None:
    """Refuse to go on when the time for the whole is over."""
    if request.deadline is not None and time.monotonic() >= request.deadline:
        raise ran_out(request, "total")
