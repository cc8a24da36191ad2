"""What both sides of the port share."""

from __future__ import annotations

import codecs
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from typing import Any, Generic, TypeAlias, TypeVar

import httpx

from .._models import RunRef
from .._settings import Timeout
from . import (
    STREAM_CLOSED,
    AuthTypes,
    Exchange,
    Stop,
    WireRequest,
    abandoned,
    forks,
    late_imports,
    members,
)
from .failures import as_ours, is_full, redirected
from .httpx2 import from_httpx2, names_in_httpx2
from .proxies import mounts_from_environment
from .transports import LIMITS

C = TypeVar("C", httpx.AsyncClient, httpx.Client)
Mounts: TypeAlias = Mapping[str, str | None]
"""Patterns of URLs, as httpx knows them, and the proxy of each; None is no proxy."""


class ClientIO(ABC, Generic[C]):
    """What both ports share: a client of our own, or the caller's."""

    is_closed: bool

    def __init__(
        self, make: Callable[[Mounts], C], auth: AuthTypes | None, *, is_ours: bool
    ) -> None:
        self._make: Callable[[Mounts], C] = make
        self._auth = auth
        self._is_ours = is_ours
        self._forks = len(forks)
        self._making = threading.Lock()
        self.is_closed = False
        self.follows_environment = False
        self.mounts: Mounts = {}
        # Held until they are released: collected, they would lock as in `Exchange.drop`.
        self.exchanges: set[Exchange] = set()
        self.dropped: deque[Exchange] = deque()
        # As many as one connection takes: those of connections that are over need no room.
        self.left: deque[RunRef | None] = deque(maxlen=100)
        self._stops: set[Stop] = set()

    @abstractmethod
    def _get_client(self) -> C | None: ...
    @abstractmethod
    def _set_client(self, client: C | None) -> None: ...

    def error(
        self, exc: Exception, request: WireRequest, built: httpx.Request | None = None
    ) -> Exception:
        """What is raised for a failure of httpx, which `built` it may have been that failed."""
        if self.is_closed:
            return self.closed()
        if request.stop.is_set:
            return RuntimeError(STREAM_CLOSED)
        exc = from_httpx2(exc)
        error = as_ours(exc, request, built, self.mounts)
        if is_full(exc):
            self.name_holders(error)
        return error

    def name_holders(self, error: Exception) -> None:
        """Say which runs hold the connections of a client that has none left."""
        open_here = [exchange.run for exchange in members(self.exchanges)]
        named = _named("open here", open_here) + _named("left before the end", members(self.left))
        error.args = (f"{error}{named or '; no stream of this client holds one'}",)

    def forget_left(self, run: RunRef) -> None:
        """Let the stream of this run, which was left, hold its connection no longer."""
        with suppress(ValueError):
            self.left.remove(run)

    def shared(self) -> list[Exchange]:
        """What is open here on connections of other runs, too."""
        return [e for e in members(self.exchanges) if e.is_shared and not e.is_inherited]

    async def release_dropped(self) -> None:
        """Release what was dropped since the last time."""
        while self.dropped:
            with suppress(Exception):
                await self.dropped.popleft().release()

    @contextmanager
    def _waiting(self, request: WireRequest) -> Generator[None]:
        """Let the wait in here be ended by whoever closes the client."""
        self._stops.add(request.stop)
        try:
            self.check_not_stopped(request.stop)
            yield
        finally:
            self._stops.discard(request.stop)

    def _stop_all(self) -> None:
        """End what waits, and every stream, from any thread."""
        for stop in members(self._stops):
            stop.set()
        for exchange in members(self.exchanges):
            exchange.request.stop.set()
            exchange.wake()

    def closed(self) -> RuntimeError:
        """What ends a call whose client is closed meanwhile."""
        return RuntimeError("the client was closed while a call was waiting for its answer")

    def check_not_stopped(self, stop: Stop) -> None:
        """Refuse to go on with what was closed.

        Raises:
            RuntimeError: if the client was closed, or the stream whose stop this is.
        """
        if self.is_closed:
            raise self.closed()
        if stop.is_set:
            raise RuntimeError(STREAM_CLOSED)

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
        if self._forks != len(forks):
            self._meet_fork()
        with self._making:
            client = self._get_client()
            if client is None:
                self.mounts = mounts_from_environment() if self.follows_environment else {}
                client = self._make(self.mounts)
                self._set_client(client)
        return client

    def _meet_fork(self) -> None:
        # Two processes on one inherited connection read each other's answers.
        if not self._is_ours:
            raise RuntimeError(
                "this client was made before a fork with http_client=; "
                "make a new client in the child process"
            )
        abandoned.append((self._get_client(), *self.exchanges))
        self._set_client(None)
        self._forks, self._making = len(forks), threading.Lock()
        self.exchanges, self.dropped, self._stops = set(), deque(), set()

    def _build(self, client: C, request: WireRequest, trace: Callable[..., Any]) -> httpx.Request:
        limits = _limits_left(request)
        timeout = type(client.timeout)(  # of httpx2, if the client is
            connect=limits.connect, read=limits.idle, write=limits.idle, pool=limits.connect
        )
        if self._is_ours:
            # What a client of ours would build, in a third of the time: it adds nothing else.
            return httpx.Request(
                request.method,
                _parsed(request.url),
                headers=_as_pairs({"connection": "keep-alive", **request.headers}),
                cookies=client.cookies,
                content=request.content,
                extensions={"timeout": timeout.as_dict()},
            )
        built = client.build_request(
            request.method,
            request.url,
            headers=_as_pairs(request.headers),
            content=request.content,
            timeout=timeout,
        )
        built.extensions["trace"] = trace  # a redirect to no URL is named before httpx reads it
        return built

    def _send_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"stream": True, "follow_redirects": False}
        return options if self._auth is None else {**options, "auth": self._auth}


def _named(how: str, runs: list[RunRef | None]) -> str:
    names = [run.run_id for run in runs if run is not None][:10]
    more = len(runs) - len(names)
    named = [*names, f"{more} more" if names else f"{more} whose run is not known"]
    return f"; {how}: the streams of {', '.join(named if more else names)}" if runs else ""


@lru_cache(maxsize=64)
def _parsed(url: str) -> httpx.URL:
    # A tenth of what httpx does for a call is to read where it goes.
    return httpx.URL(url)


def _limits_left(request: WireRequest) -> Timeout:
    """The limits as httpx shall have them: nothing of a call may outlast the whole."""
    if request.deadline is None:
        return request.timeout
    left = max(0.001, request.deadline - time.monotonic())
    connect, idle = request.timeout.connect, request.timeout.idle
    return Timeout(
        connect=left if connect is None else min(connect, left),
        idle=left if idle is None else min(idle, left),
    )


def _as_pairs(headers: Mapping[str, str | bytes]) -> list[tuple[bytes, bytes]]:
    return [
        (_encoded(name), v.encode() if isinstance(v, str) else v) for name, v in headers.items()
    ]


# Names of headers, as one object each: every open stream keeps those of its request.
_encoded = lru_cache(maxsize=64)(str.encode)


class _Cookies(httpx.Cookies):
    def extract_cookies(self, response: httpx.Response) -> None:
        # httpx has the standard library look, in objects of its own: a tenth of a call. And what
        # is no ASCII it could not send back: every further call would fail.
        told = response.headers.get("set-cookie", "")
        if told and told.isascii():
            super().extract_cookies(response)


def own_client(
    kind: type[C],
    make_transport: Callable[[httpx.Proxy | None], Any],
    auth: AuthTypes | None,
    mounts: Mounts,
    *,
    check: Callable[[httpx.Request], Any],
    refuse: Callable[[httpx.Response], Any],
) -> tuple[C, Any]:
    """A client of this kind that does not look for cookies in vain, and its transport."""
    # A class of each its own: whoever puts another in the place of httpx's is heard, too.
    own: Callable[..., C] = type(kind.__name__, (kind,), {"cookies": _Cookies()})
    hooks = {"request": [] if auth is None else [check], "response": [refuse]}
    # Only the first of a kind imports httpcore, and a transport of ours.
    with nullcontext() if kind in _made_before else late_imports:
        codecs.lookup("idna")  # as Python does for the first host
        transport = make_transport(None)
        mounted = {
            pattern: None if url is None else make_transport(httpx.Proxy(url))
            for pattern, url in mounts.items()
        }
        client = own(transport=transport, mounts=mounted, limits=LIMITS, event_hooks=hooks)
    _made_before.add(kind)
    return client, transport


_made_before: set[type] = set()


def checked_auth(auth: AuthTypes | None, http_client: object) -> AuthTypes | None:
    """What httpx takes as `auth`, or httpx2 if the client is of that. No message shows it.

    Raises:
        TypeError: for anything else.
    """
    is_for_httpx2 = bool(names_in_httpx2(http_client))
    is_auth = "Auth" in names_in_httpx2(auth) if is_for_httpx2 else isinstance(auth, httpx.Auth)
    match auth:
        case (str() | bytes() as user, str() | bytes() as password):
            # Made once: as a pair it would stand in what others note of each `client.send`.
            basic = httpx.BasicAuth(user, password)
            return partial(_with_credentials, basic) if is_for_httpx2 else basic
        case _ if auth is None or is_auth or callable(auth):
            return auth
        case _:
            library = "httpx2" if is_for_httpx2 else "httpx"
            raise TypeError(
                f"auth: expected a pair of user and password, an {library}.Auth or a callable, "
                f"got {_name_of_type(auth)}"
            )


def _with_credentials(basic: httpx.BasicAuth, request: httpx.Request) -> httpx.Request:
    return next(basic.auth_flow(request))


def headers_of(http_client: Any) -> Mapping[str, str]:
    """Headers that the caller's own client adds, less what httpx puts there by itself."""
    if http_client is None:
        return {}
    agent = http_client.headers.get("user-agent", "python-httpx")
    return {} if agent.startswith("python-httpx") else {"user-agent": agent}


_HEADER_VALUE = re.compile(rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?")


def check_headers(request: httpx.Request) -> None:
    """Refuse what `auth` put in: h11 would, too, and tell it in a log."""
    for name, value in request.headers.raw:
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(
                f"auth: the value of {name.decode('latin-1')!r} has characters HTTP does not allow"
            )


def refuse_redirect(response: httpx.Response) -> None:
    """As `look_for_redirect`, for transports of the caller's that tell no trace."""
    if response.has_redirect_location:
        path = response.request.url.raw_path.partition(b"?")[0].decode()
        asked = f"{response.request.method} {path}"
        error = redirected(asked, response.status_code, response.headers["location"])
        error.about(status_code=response.status_code, headers=response.headers)
        raise error


def check_kind(name: str, value: object, kind: type) -> None:
    """Refuse what is none of httpx's."""
    if value is not None and not isinstance(value, kind):
        message = f"{name}: expected httpx.{kind.__name__}, got {_name_of_type(value)}"
        if kind.__name__ in names_in_httpx2(value):
            message += f"; give a client of httpx2 that has this {name} as http_client"
        raise TypeError(message)


def _name_of_type(value: object) -> str:
    kind = type(value)
    is_builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"


def check_client(http_client: object, kind: type, transport: object) -> None:
    """Refuse what is no client, and one that comes with a transport of ours."""
    if kind.__name__ not in names_in_httpx2(http_client):
        check_kind("http_client", http_client, kind)
    if http_client is not None and transport is not None:
        raise TypeError("transport and http_client: give one of them; the client has a transport")
