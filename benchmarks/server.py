"""A server that sends frames it made before, so that the client is all that is measured.

The first part of the path says what is wanted: `kind-count-chunk`, such as `token-20000-1` (one
event per HTTP chunk) or `token-20000-16384` (chunks of 16 KiB). `paced-20-4` sends 20 events a
second for 4 seconds. Run as a process: it prints its port and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import cache

TOKEN = [
    {"content": "hello ", "type": "AIMessageChunk", "id": "run-1"},
    {"langgraph_node": "model", "langgraph_step": 1},
]
COMPLETION = {
    "id": "c1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "hello "}, "finish_reason": None}],
}
VALUES = {
    "messages": [
        {"type": "ai", "id": f"m{n}", "content": "word " * 50, "additional_kwargs": {"n": n}}
        for n in range(60)
    ]
}
UPDATE = {"model": {"messages": VALUES["messages"][:8], "step": 1}}
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"content-location: /threads/t/runs/r\r\ntransfer-encoding: chunked\r\n\r\n"
)
WAIT = json.dumps({"run": {"run_id": "r", "status": "success"}, "values": {"n": 1}}).encode()


def frame(kind: str, number: int) -> bytes:
    """One event of this kind."""
    match kind:
        case "token":
            return b"event: messages\ndata: %b\n\n" % json.dumps(TOKEN).encode()
        case "numbered":
            data = json.dumps(TOKEN).encode()
            return b"event: messages\ndata: %b\nid: %d\n\n" % (data, number)
        case "values":
            return b"event: values\ndata: %b\n\n" % json.dumps(VALUES).encode()
        case "wide":
            return b"event: values\ndata: %b\n\n" % json.dumps({"wide": [VALUES] * 50}).encode()
        case "update":
            return b"event: updates\ndata: %b\n\n" % json.dumps(UPDATE).encode()
        case "counted":
            return b'event: custom\ndata: {"n":1}\nid: %d\n\n' % number
        case "large":
            return b'event: custom\ndata: "%b"\n\n' % (b"x" * 60_000_000)
        case "completion":
            return b"data: %b\n\n" % json.dumps(COMPLETION).encode()
        case _:
            raise ValueError(kind)


def ending(kind: str) -> bytes:
    return (
        b"data: [DONE]\n\n"
        if kind == "completion"
        else b'event: end\ndata: {"status":"success"}\n\n'
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@cache
def stream(kind: str, count: int, size: int) -> list[bytes]:
    """The body, in pieces to be written one by one."""
    frames = [frame(kind, number) for number in range(count)]
    if size == 1:
        chunks = [chunk(one) for one in [*frames, ending(kind)]]
    else:
        whole = b"".join([*frames, ending(kind)])
        chunks = [chunk(whole[at : at + size]) for at in range(0, len(whole), size)]
    chunks.append(b"0\r\n\r\n")
    return [b"".join(chunks[at : at + 500]) for at in range(0, len(chunks), 500)]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            await answer(reader, writer)
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = raw.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    await reader.readexactly(int(headers.get("content-length", 0)))
    path = lines[0].split(" ")[1]
    kind, _, numbers = path.lstrip("/").partition("/")[0].partition("-")
    if path.endswith("/wait"):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(WAIT) + WAIT)
        return
    first, second = map(int, numbers.split("-"))
    writer.write(HEAD)
    if kind in {"paced", "held"}:
        await paced(writer, kind, first, second)
        return
    for piece in stream(kind, first, second):
        writer.write(piece)
        await writer.drain()


async def paced(writer: asyncio.StreamWriter, kind: str, rate: int, seconds: int) -> None:
    token = chunk(frame("token", 0))
    for _ in range(rate * seconds):
        writer.write(token)
        await writer.drain()
        await asyncio.sleep(1 / rate)
    writer.write(chunk(ending("token")) + b"0\r\n\r\n")


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
