"""What a server or a network can do wrong: scripts of `raw_server`.

`good` is a whole server of the Runs API for one run, r1, that keeps its events. The others answer a
request wrongly; `first` puts them in front of a good one.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from .raw_server import BOUND, Connection, Script, chunk, head, json_answer

SOON = 2.0
"""Seconds within which a server sees a connection close."""

SSE = {"content_type": "text/event-stream"}
JSON = {"content_type": "application/json"}


def block(event_id: str, event: str, data: Any) -> bytes:
    return f"id: {event_id}\nevent: {event}\ndata: {json.dumps(data)}\n\n".encode()


RUN = [
    block("m", "metadata", {"run_id": "r1"}),
    *(block(f"v{n}", "values", {"n": n}) for n in range(5)),
    block("e", "end", {"status": "success"}),
]
IDS = ["m", "v0", "v1", "v2", "v3", "v4", "e"]
LOCATED = {"content_location": "/runs/r1"}


def cutting_proxy(upstream: str, after: int) -> Script:
    """Passes each request on to a real server, and cuts each event stream after so many bytes."""
    address = urlsplit(upstream)

    async def script(connection: Connection) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        request = connection.request
        headers = {**request.headers, "host": address.netloc, "connection": "close"}
        lines = [f"{request.method} {request.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + request.body)
        try:
            start = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
            most = after if b"text/event-stream" in start.lower() else 2**20
            await connection.send(start)
            await connection.send(await asyncio.wait_for(reader.readexactly(most), BOUND))
        except asyncio.IncompleteReadError as rest:
            await connection.send(rest.partial)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        connection.reset()

    return script


Body: TypeAlias = tuple[dict[str, str], list[bytes]]
"""Headers and the pieces of a good answer."""


def good_body(connection: Connection, *, overlap: int = 0, **fields: str) -> Body:
    """What a good server answers to this request; a join gets so many old events, too."""
    request = connection.request
    run = {"run_id": "r1", "status": "success", "on_disconnect": "continue", **fields}
    path = urlsplit(request.target).path
    if path.endswith("/stream"):
        after = request.headers.get("last-event-id")
        start = 0 if after is None else max(0, IDS.index(after) + 1 - overlap)
        return {**SSE, **LOCATED}, RUN[start:]
    if path.endswith("/wait"):
        return {**JSON, **LOCATED}, [json.dumps({"run": run, "values": {"n": 4}}).encode()]
    if path.endswith("/search"):
        return JSON, [json.dumps([run]).encode()]
    return JSON, [json.dumps(run).encode()]


def good(*, overlap: int = 0, **fields: str) -> Script:
    """A server that does nothing wrong; `fields` are those of its run."""

    async def script(connection: Connection) -> None:
        headers, pieces = good_body(connection, overlap=overlap, **fields)
        start = head(200, **headers, transfer_encoding="chunked", connection="close")
        await connection.send(start, *map(chunk, pieces), b"0\r\n\r\n")

    return script


Broken: TypeAlias = Callable[[Connection, Body], Awaitable[None]]


def breaking(how: Broken, **extra: str) -> Script:
    """Begin what a good server answers, then break it."""

    async def script(connection: Connection) -> None:
        headers, pieces = good_body(connection)
        await how(connection, ({**headers, **extra}, pieces))

    return script


def half(pieces: list[bytes]) -> bytes:
    """Three events and a half, or half of any other body."""
    whole = b"".join(pieces)
    return whole[: len(b"".join(pieces[:3])) + 9] if len(pieces) > 1 else whole[: len(whole) // 2]


async def send_half(connection: Connection, body: Body) -> None:
    headers, pieces = body
    start = head(200, **headers, transfer_encoding="chunked")
    await connection.send(start, chunk(half(pieces)))


async def reset(connection: Connection, body: Body) -> None:
    await send_half(connection, body)
    connection.reset()


async def no_terminator(connection: Connection, body: Body) -> None:
    await send_half(connection, body)


async def bad_chunk(connection: Connection, body: Body) -> None:
    await send_half(connection, body)
    await connection.send(b"zz\r\nwhat\r\n")


async def short_length(connection: Connection, body: Body) -> None:
    headers, pieces = body
    length = str(len(b"".join(pieces)))
    await connection.send(head(200, **headers, content_length=length), half(pieces))


async def stall(connection: Connection, body: Body) -> None:
    await send_half(connection, body)
    await connection.client_closes()


async def restart(connection: Connection, body: Body) -> None:
    await send_half(connection, body)
    asyncio.get_running_loop().create_task(connection.server.restart(0.02))
    await connection.client_closes()


async def drip(connection: Connection, body: Body) -> None:
    headers, pieces = body
    whole = b"".join(pieces)
    start = head(200, **headers, transfer_encoding="chunked")
    bytes_of = [whole[i : i + 1] for i in range(len(whole))]
    await connection.send(start, *map(chunk, bytes_of), b"0\r\n\r\n")


async def heartbeats(connection: Connection, body: Body) -> None:
    headers, pieces = body
    await connection.send(head(200, **headers, connection="close"))
    if headers["content_type"] == SSE["content_type"]:
        while True:
            await connection.send(b": hi\n\n")
            await asyncio.sleep(0.01)
    await connection.send(*[b"\n"] * 50, *pieces)


async def broken_gzip(connection: Connection, body: Body) -> None:
    headers, pieces = body
    compressed = gzip.compress(b"".join(pieces))
    whole = compressed[:9] + b"\xff" * len(compressed)
    await whole_answer(whole, headers, content_encoding="gzip")(connection)


async def too_large(connection: Connection, body: Body) -> None:
    headers, pieces = body
    padding = b" " * 5_000
    is_stream = headers["content_type"] == SSE["content_type"]
    large = b"data: " + padding + b"\n\n" if is_stream else padding + pieces[0]
    await whole_answer(large, headers)(connection)


def body_of(body: bytes) -> Broken:
    """A good start, and this in the place of the body; of a stream, behind its first event."""

    async def how(connection: Connection, good: Body) -> None:
        headers, pieces = good
        is_stream = headers["content_type"] == SSE["content_type"]
        whole = pieces[0] + b"event: values\ndata: " + body + b"\n\n" if is_stream else body
        await whole_answer(whole, headers)(connection)

    return how


async def unnamed(connection: Connection, body: Body) -> None:
    """A cut before anything told the run."""
    headers, pieces = body
    named = {name: value for name, value in headers.items() if name != "content_location"}
    nameless = [block("m", "metadata", {}), *pieces[1:]] if len(pieces) > 1 else pieces
    await reset(connection, (named, nameless))


def whole_answer(body: bytes, headers: dict[str, str], **more: str) -> Script:
    start = head(200, **headers, **more, content_length=str(len(body)), connection="close")

    async def script(connection: Connection) -> None:
        await connection.send(start, body)

    return script


async def whole(connection: Connection, body: Body) -> None:
    headers, pieces = body
    await whole_answer(b"".join(pieces), headers)(connection)


async def no_answer(connection: Connection) -> None:
    pass


async def reset_at_once(connection: Connection) -> None:
    connection.reset()


async def garbage(connection: Connection) -> None:
    await connection.send(b"SSH-2.0-nope\r\n\r\n")


async def silence(connection: Connection) -> None:
    await connection.client_closes()


async def endless_1xx(connection: Connection) -> None:
    while True:
        await connection.send(head(102))
        await asyncio.sleep(0.01)


async def endless_headers(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await connection.send(b"x-more: yes\r\n" * 1000)


async def endless_error(connection: Connection) -> None:
    await connection.send(head(404, **JSON, connection="close"))
    while True:
        await connection.send(b"x" * 65536)


async def stalled_error(connection: Connection) -> None:
    await connection.send(head(404, **JSON, content_length="100") + b'{"detail"')
    await connection.client_closes()


def redirect(status: int, target: str | None) -> Script:
    """To `target`, in which {server} is the server itself."""

    async def script(connection: Connection) -> None:
        named = {} if target is None else {"location": target.format(server=connection.server.url)}
        await connection.send(head(status, **named, content_length="0", connection="close"))

    return script


ERROR_BODIES: dict[str, bytes] = {
    "ErrorResponse": b'{"code":"x","message":"no such run"}',
    "detail text": b'{"detail":"no such run"}',
    "detail list": b'{"detail":[{"loc":["body","a"],"msg":"no such run"}]}',
    "error and message": b'{"error":"x","message":"no such run"}',
    "HTML": b"<html><body>no such run</body></html>",
    "empty": b"",
    "null": b"null",
    "array": b"[1, 2]",
    "bad UTF-8": b'{"detail":"\xff\xfe no such run"}',
    "20 MB": b"x" * 20_000_000,
    "deep": b"[" * 50_000,
}


def error(body: bytes) -> Script:
    return json_answer(body, 404)


def full_backlog(stack: ExitStack) -> int:
    """A port whose connections are not accepted."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(8):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return int(listener.getsockname()[1])
