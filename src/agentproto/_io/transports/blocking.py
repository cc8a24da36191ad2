"""Plain sockets under `httpx.Client`."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpx

from .. import shut_down
from . import LIMITS, shared_ssl_context
from .chunks import AnswerJoiner
from .couplings import put_pool
from .pooled import httpcore, note_sending, pool_options


class BlockingTransport(httpx.HTTPTransport):
    """httpx's transport over sockets that join chunks, and can be ended from other threads."""

    def __init__(self, proxy: httpx.Proxy | None = None) -> None:
        context = shared_ssl_context()
        super().__init__(verify=context, limits=LIMITS, proxy=proxy)
        options = pool_options(context, proxy)
        put_pool(self, httpcore.ConnectionPool(**options, network_backend=BlockingBackend()))


class BlockingBackend(httpcore.NetworkBackend):
    """Plain sockets."""

    def __init__(self) -> None:
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to a host, within so many seconds."""
        made = self._sockets.connect_tcp(
            host, port, timeout, local_address, () if socket_options is None else socket_options
        )
        return BlockingStream(made)


class BlockingStream(httpcore.NetworkStream):
    """A socket.

    Attributes:
        longest_read: seconds that a read of the answer at hand may take; None is httpcore's limit.
    """

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._joiner = AnswerJoiner()
        self.longest_read: float | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next piece, its chunks joined."""
        seconds = timeout if self.longest_read is None else self.longest_read
        return self._joiner.join(self._stream.read(max_bytes, seconds))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send it; an answer comes next."""
        note_sending(self)
        self._joiner.awaits_head, self.longest_read = True, None
        self._stream.write(buffer, timeout)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> BlockingStream:
        """This connection, encrypted."""
        return BlockingStream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def close(self) -> None:
        """End the connection."""
        self._stream.close()

    def abort(self) -> None:
        """End the connection, from any thread; a read that blocks there ends."""
        shut_down(self._stream)

    drop = abort

    def get_extra_info(self, info: str) -> Any:
        """What httpcore and callers ask of a connection."""
        return self._stream.get_extra_info(info)
