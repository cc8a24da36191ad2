"""A server that sends frames it made before, so that the client is all that is measured.

The first part of the path says what is wanted: `kind-count-chunk`, such as `token-20000-1` (one
event per HTTP chunk) or `token-20000-16384` (chunks of 16 KiB). `paced-20-4` sends 20 events a
second for 4 seconds. `real-20000-1` and `realpaced-20-4` do the same with tokens as `langgraph dev`
sends them. Run as a process: it prints its port and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import cache
from itertools import count as counting
from pathlib import Path
from typing import NamedTuple

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
    b"content-location: /threads/t/runs/%b\r\ntransfer-encoding: chunked\r\n\r\n"
)
WAIT = json.dumps({"run": {"run_id": "r", "status": "success"}, "values": {"n": 1}}).encode()
RECORDED = Path(__file__).parents[1] / "tests/wire/langgraph_dev/stream_messages-tuple.sse"
WORDS = b"the of a river and into morning light over which nobody had ever written anything".split()
GOLDEN = 0.618
"""Multiples of it spread evenly, however many there are."""
opened = counting()


class Real(NamedTuple):
    """The events of one stream as `langgraph dev` sent them: about 1,066 bytes, of which 900 are
    the same in each, and CRLF ends the lines. Only the text differs between the tokens of a stream.
    """

    run_id: bytes
    metadata: bytes
    before: bytes
    after: bytes

    def token(self, number: int) -> bytes:
        text = b" %b-%x" % (WORDS[number % len(WORDS)], number)
        return b"%b%b%b" % (self.before, text, self.after)


@cache
def recorded(stream: int) -> Real:
    """What was recorded, with ids of a run, a thread and a message that are of this stream only."""
    recording = RECORDED.read_bytes()
    for start_of_id in (b"01a20ab3", b"0a205b71"):
        recording = recording.replace(start_of_id, b"%08x" % (int(start_of_id, 16) + stream))
    metadata, token, *_ = (event + b"\r\n\r\n" for event in recording.split(b"\r\n\r\n"))
    run_id = json.loads(metadata.split(b"data: ")[1])["run_id"].encode()
    before, after = token.split(b"Hello")
    return Real(run_id, metadata, before, after)


def frame(kind: str, number: int) -> bytes:
    """One event of this kind."""
    match kind:
        case "real":
            return recorded(0).token(number)
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
    if kind == "completion":
        return b"data: [DONE]\n\n"
    return b'event: end\ndata: {"status":"success"}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@cache
def stream(kind: str, count: int, size: int) -> list[bytes]:
    """The body, in pieces to be written one by one."""
    frames = [recorded(0).metadata] if kind == "real" else []
    frames += [frame(kind, number) for number in range(count)]
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
    if kind == "realpaced":
        await paced_real(writer, first, second)
        return
    writer.write(HEAD % (recorded(0).run_id if kind == "real" else b"r"))
    if kind in {"paced", "held"}:
        await paced(writer, first, second)
        return
    for piece in stream(kind, first, second):
        writer.write(piece)
        await writer.drain()


async def paced(writer: asyncio.StreamWriter, rate: int, seconds: int) -> None:
    token = chunk(frame("token", 0))
    for _ in range(rate * seconds):
        writer.write(token)
        await writer.drain()
        await asyncio.sleep(1 / rate)
    writer.write(chunk(ending("token")) + b"0\r\n\r\n")


async def paced_real(writer: asyncio.StreamWriter, rate: int, seconds: int) -> None:
    """The same by a timetable that no other stream shares: models do not write in step."""
    stream = next(opened)
    real = recorded(stream)
    writer.write(HEAD % real.run_id + chunk(real.metadata))
    now = asyncio.get_running_loop().time
    begin = now() + stream * GOLDEN % 1 / rate
    for number in range(rate * seconds):
        await asyncio.sleep(begin + number / rate - now())
        writer.write(chunk(real.token(number)))
        await writer.drain()
    writer.write(chunk(ending("real")) + b"0\r\n\r\n")


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
