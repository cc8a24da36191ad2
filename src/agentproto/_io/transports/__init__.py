"""Where bytes come from: connections of our own under httpx, and those of aiohttp."""

import httpx

# No cap on connections: every open stream holds one, and with a cap of 100 the next stream fails.
# Servers close idle connections after 5 s, and a POST that meets a closed one is not repeated.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=3.0)
