"""A server that answers with the bytes it is told, on a real loopback socket, plain or TLS.

It runs in a thread of its own, records every request and the end of every connection. What it
can do wrong is in `faults`.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias, cast

BOUND = 10.0
"""Seconds after which a test that waits for something fails."""


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Connection:
    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: RawServer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def client_closes(self) -> None:
        await asyncio.wait_for(self.reader.read(), BOUND)
        raise ConnectionAbortedError

    def reset(self) -> None:
        _transport(self.writer).abort()


def _transport(writer: asyncio.StreamWriter) -> asyncio.WriteTransport:
    assert isinstance(writer.transport, asyncio.WriteTransport)
    return writer.transport


Script: TypeAlias = Callable[[Connection], Awaitable[None]]


def head(status: int = 200, **headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status} Whatever",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Script:
    """A whole response with its length."""
    whole = head(status, content_length=str(len(body)), connection="close", **headers) + body

    async def script(connection: Connection) -> None:
        await connection.send(whole)

    return script


def json_answer(body: str | bytes, status: int = 200, **headers: str) -> Script:
    raw = body.encode() if isinstance(body, str) else body
    return answer(status, raw, **{"content_type": "application/json", **headers})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(*pieces: bytes, end: bytes = b"0\r\n\r\n", hold: bool = False, **headers: str) -> Script:
    """A chunked event stream of these pieces, one chunk each; `end` ends the body."""
    headers = {"content_type": "text/event-stream", "connection": "close", **headers}
    start = head(200, **headers, transfer_encoding="chunked")

    async def script(connection: Connection) -> None:
        await connection.send(start)
        await connection.send(*map(chunk, pieces))
        if hold:
            await connection.client_closes()
        else:
            await connection.send(end)

    return script


class _Noted(asyncio.StreamReaderProtocol):
    """Tells of its transport before anything can be cancelled."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        transports: list[asyncio.WriteTransport],
    ) -> None:
        super().__init__(reader, connected)
        self._transports = transports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transports.append(cast("asyncio.WriteTransport", transport))
        super().connection_made(transport)


@dataclass
class RawServer:
    """Plays its scripts, one a connection, the last one for all that follow."""

    scripts: Iterable[Script]
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list, repr=False)  # they hold secrets
    ends: list[str] = field(default_factory=list)
    """Who ended each connection that is over: "client" or "server"."""
    asked: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    all_closed: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __enter__(self) -> Self:
        self._left = list(self.scripts)
        self._answering: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(BOUND)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(BOUND)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._accepted: list[asyncio.WriteTransport] = []
        await self._listen(0)
        self._port = self._listener.sockets[0].getsockname()[1]
        self.url = f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self._port}"
        self._ready.set()
        await self._stop.wait()
        self._listener.close()
        # Connections that are just being accepted are let in first: cancelled, they leak a socket.
        for _ in range(10):
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in tasks & self._answering:
                    task.cancel()
                await asyncio.wait(tasks, timeout=0.05)
            # One that still has bytes to send would wait for its client.
            for transport in self._accepted:
                # asyncio trips over one that has sent its last bytes while it closed.
                with suppress(AttributeError):
                    transport.abort()
            await asyncio.sleep(0)

    def down(self) -> None:
        """Accept no connection any more."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(BOUND)

    def up(self) -> None:
        """Accept connections again, at the same address."""
        asyncio.run_coroutine_threadsafe(self._listen(self._port), self._loop).result(BOUND)

    async def _hang_up(self) -> None:
        self._listener.close()
        for writer in self._writers:
            _transport(writer).abort()

    async def _listen(self, port: int) -> None:
        if self._stop.is_set():
            return
        self._listener = await self._loop.create_server(
            self._protocol, "127.0.0.1", port, ssl=self.tls, backlog=2048
        )

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return _Noted(asyncio.StreamReader(), self._connected, self._accepted)

    async def restart(self, seconds: float) -> None:
        """Reset every connection, accept none for a while, then go on."""
        await self._hang_up()
        await asyncio.sleep(seconds)
        await self._listen(self._port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._answering.add(cast("asyncio.Task[None]", asyncio.current_task()))
        self._writers.add(writer)
        self.all_closed.clear()
        ended_by = "client"
        try:
            request = await self._read_request(reader)
            self.requests.append(request)
            self.asked.set()
            script = self._left.pop(0) if len(self._left) > 1 else self._left[0]
            await script(Connection(request, reader, writer, self))
            ended_by = "server"
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            self.ends.append(ended_by)
            self.closed.set()
            if not self._writers:
                self.all_closed.set()
            writer.close()
            # Asked for, or asyncio may log that nobody has retrieved how it ended.
            with suppress(OSError):
                await writer.wait_closed()

    async def _read_request(self, reader: asyncio.StreamReader) -> Request:
        raw = await reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (li.partition(": ") for li in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Request(method, target, headers, body)


def raw_server(*scripts: Script, tls: ssl.SSLContext | None = None) -> RawServer:
    return RawServer(scripts, tls)
