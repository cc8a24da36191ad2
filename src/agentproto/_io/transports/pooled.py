"""What both transports of ours share: httpx's own, over pools that make connections of our own.

They leave `handle_request` and `handle_async_request` as they are: that is what pytest-httpx, vcrpy
and OpenTelemetry put something in the place of.
"""

from __future__ import annotations

import ssl
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx

from .. import Connection, sending
from . import LIMITS

if TYPE_CHECKING:
    import httpcore as httpcore
else:
    # Where a program has put httpx2 in the place of httpx, its transports know the errors of
    # httpcore2 alone: those of httpcore would come out as they are.
    httpcore = import_module("httpcore2" if httpx.__name__ == "httpx2" else "httpcore")


def pool_options(context: ssl.SSLContext, proxy: httpx.Proxy | None) -> dict[str, Any]:
    """What a pool of httpcore is made with."""
    return {
        "ssl_context": context,
        "proxy": None if proxy is None else _as_httpcore(proxy),
        "max_connections": LIMITS.max_connections,
        "max_keepalive_connections": LIMITS.max_keepalive_connections,
        "keepalive_expiry": LIMITS.keepalive_expiry,
    }


def _as_httpcore(proxy: httpx.Proxy) -> httpcore.Proxy:
    url = httpcore.URL(
        scheme=proxy.url.raw_scheme,
        host=proxy.url.raw_host,
        port=proxy.url.port,
        target=proxy.url.raw_path,
    )
    return httpcore.Proxy(
        url, auth=proxy.raw_auth, headers=proxy.headers.raw, ssl_context=proxy.ssl_context
    )


def note_sending(connection: Connection) -> None:
    """Let what ends the call end this connection, from now until its answer has begun."""
    stop = sending.get()
    if stop is not None:
        stop.hold(connection)
