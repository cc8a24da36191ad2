"""All that relies on what other libraries do not document. Nothing else in this package may.

| what | seen on | lost, it is heard by |
|---|---|---|
| `_pool` of httpx's transports is the httpcore pool that they send through | httpx 0.28.1 | \
`test_transports.py` |
| httpcore looks up the read timeout of a body in the extensions of its request when the reading \
begins | httpcore 1.0.9 | `test_transports.py` |
"""

from __future__ import annotations

from typing import Any

import httpx


def put_pool(transport: httpx.AsyncHTTPTransport | httpx.HTTPTransport, pool: Any) -> None:
    """Let a transport of httpx send through this pool."""
    known = getattr(transport, "_pool", None)
    if known is None:
        raise RuntimeError(f"httpx {httpx.__version__} keeps its pool elsewhere; please report it")
    core = type(known).__module__.partition(".")[0]
    if type(pool).__module__.partition(".")[0] != core:  # its errors would come out as they are
        raise RuntimeError(f"{httpx.__name__} stands over {core} here; please report it")
    setattr(transport, "_pool", pool)  # noqa: B010  # the first line of the table


def limit_reads(response: httpx.Response, seconds: float) -> None:
    """Let each read of the body, which has not begun, take so many seconds."""
    response.request.extensions.setdefault("timeout", {})["read"] = seconds
