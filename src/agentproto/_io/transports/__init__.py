"""Where bytes come from: connections of our own under httpx, and those of aiohttp."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache

import httpx

# No cap on connections: every open stream holds one, and with a cap of 100 the next stream fails.
# Servers close idle connections after 5 s, and a POST that meets a closed one is not repeated.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=3.0)


def shared_ssl_context() -> ssl.SSLContext:
    """The certificates that httpx trusts by default: read once, which takes 20 ms."""
    return _ssl_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _ssl_context(cert_file: str | None, cert_dir: str | None) -> ssl.SSLContext:
    del cert_file, cert_dir  # httpx looks there itself
    return httpx.create_ssl_context()
