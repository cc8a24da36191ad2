"""A connection of asyncio, as httpcore reads it.

It is a protocol on the documented interface of asyncio alone, so that any event loop will do.
anyio's stream pauses and resumes its transport around each receive, which takes two system calls
for each piece; this one reads on, and pauses only where nobody takes what has arrived. It receives
into one buffer of its loop: to make one for each receive takes ten times as long as the receive.
"""

from __future__ import annotations

import asyncio
import select
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from .. import running_loop
from .chunks import AnswerJoiner
from .pooled import httpcore, note_sending

BUFFER_BYTES = 2**18
"""Bytes that are received at once, at most."""

HIGH_WATER = 2**18
"""Bytes that wait to be taken when a connection is paused."""


def receive_buffer() -> memoryview:
    """What the connections of one event loop receive into, one after another."""
    return memoryview(bytearray(BUFFER_BYTES))


class AsyncioStream(asyncio.BufferedProtocol, httpcore.AsyncNetworkStream):
    """One connection: the protocol that asyncio feeds, and the stream that httpcore reads.

    What ends a read or a write from outside, a cancellation or a limit, ends the connection as
    well, at once and without another await: a second cancellation finds nothing left to do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self._loop = loop
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._joiner = AnswerJoiner()
        self._arrived: list[bytes] = []
        self._size = 0
        self._is_paused = False
        self._is_over = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._read_until: float | None = None
        self._is_silent = False
        self._was_used = False
        self._alarm: asyncio.TimerHandle | None = None
        self._writer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._arrived.append(bytes(self._buffer[:nbytes]))
        self._size += nbytes
        if self._size >= HIGH_WATER and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> None:
        self._is_over = True
        self._wake_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._transport = None

    def pause_writing(self) -> None:
        self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_result(None)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _end(self, exc: Exception | None) -> None:
        self._is_over = True
        self._error = self._error or exc
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._wake_reader()
        self.resume_writing()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """All that has arrived, once something has; b"" at the end.

        `max_bytes` is what httpcore would like; to hand that over in parts copies the rest each
        time.
        """
        arrived = self._arrived
        if not arrived and not self._is_over:
            await self._arrival(timeout)
        if not arrived:
            if self._error is not None:
                raise httpcore.ReadError(str(self._error)) from self._error
            return b""
        self._was_used = True
        data = arrived[0] if len(arrived) == 1 else b"".join(arrived)
        arrived.clear()
        self._size = 0
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        return self._joiner.join(data)

    async def _arrival(self, timeout: float | None) -> None:
        self._is_silent = False
        self._limit_silence(timeout)
        self._reader = self._loop.create_future()
        try:
            await self._reader
        except BaseException:
            self._abort()
            raise
        finally:
            self._reader = None
        if self._is_silent and not self._arrived:
            self._abort()
            raise httpcore.ReadTimeout("nothing arrived in time")

    def _limit_silence(self, seconds: float | None) -> None:
        # The timer of an earlier read serves this one: it looks when it fires. One for each read
        # would take as long as the read.
        self._read_until = None if seconds is None else self._loop.time() + seconds
        if self._read_until is None:
            return
        if self._alarm is not None and self._alarm.when() > self._read_until:
            self._alarm.cancel()
            self._alarm = None
        if self._alarm is None:
            self._alarm = self._loop.call_at(self._read_until, self._look_for_silence)

    def _look_for_silence(self) -> None:
        self._alarm = None
        if self._reader is None or self._read_until is None or self._reader.done():
            return
        if self._loop.time() < self._read_until:
            self._alarm = self._loop.call_at(self._read_until, self._look_for_silence)
        else:
            self._is_silent = True
            self._reader.set_result(None)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send it.

        Raises:
            ConnectionNotAvailable: if a connection that was kept had ended before this request
                began: the pool then takes another.
            ConnectError: if a new one had.
            WriteError, WriteTimeout: if it ends meanwhile, or takes too long.
        """
        if not buffer:
            return
        is_begun, self._joiner.awaits_head = self._joiner.awaits_head, True
        if self._transport is None or self._is_over:
            if is_begun:
                raise httpcore.WriteError("the connection has ended")
            if self._was_used:
                raise httpcore.ConnectionNotAvailable
            raise httpcore.ConnectError("the connection has ended before anything was sent")
        note_sending(self)
        self._transport.write(buffer)
        if self._writer is not None:
            await self._drained(self._writer, timeout)

    async def _drained(self, writer: asyncio.Future[None], timeout: float | None) -> None:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await writer
        except BaseException as exc:
            self._abort()
            if limit.expired():
                raise httpcore.WriteTimeout("nothing could be sent in time") from exc
            raise
        if self._is_over:
            raise httpcore.WriteError("the connection has ended")

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> AsyncioStream:
        """This connection, encrypted."""
        inner = AsyncioStream(self._loop, self._buffer)
        transport = self._transport
        if transport is None:
            raise httpcore.ConnectError("the connection has ended")
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                secured = await self._loop.start_tls(
                    transport, inner, ssl_context, server_hostname=server_hostname
                )
        except BaseException as exc:
            transport.abort()
            if limit.expired():
                raise httpcore.ConnectTimeout("no TLS handshake in time") from exc
            if isinstance(exc, OSError | EOFError):
                raise httpcore.ConnectError(str(exc)) from exc
            raise
        if secured is None:
            raise httpcore.ConnectError("the connection has ended")
        inner.connection_made(secured)
        return inner

    async def aclose(self) -> None:
        """End the connection. Nothing is awaited here: what was cancelled can do it, too."""
        self._abort()

    def abort(self) -> None:
        """End the connection, from any thread; a read that waits here fails."""
        if running_loop() is self._loop:
            self._abort()
        else:
            self.drop()

    def drop(self) -> None:
        """The same where a finalizer runs, which may be in the middle of anything."""
        with suppress(RuntimeError):  # its loop has ended, and with it the connection
            self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        self._arrived.clear()
        self._end(httpcore.ReadError("the connection was closed"))
        if self._transport is not None:
            self._transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore and callers ask of a connection."""
        if info == "is_readable":
            return self._is_over or bool(self._arrived) or self._has_input()
        transport = self._transport
        return None if transport is None else transport.get_extra_info(_NAMES.get(info, info))

    def _has_input(self) -> bool:
        # The loop may not have seen yet that the server has closed.
        connection = self.get_extra_info("socket")
        return connection is None or has_input(connection.fileno())


_NAMES: Mapping[str, str] = {"client_addr": "sockname", "server_addr": "peername"}


def has_input(descriptor: int) -> bool:
    """Whether a read from this socket would return at once."""
    if sys.platform == "win32":  # pragma: no cover  # it has no poll
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
