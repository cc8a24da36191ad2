"""What needs no network: decoding, typing, and how both grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

import httpx
import httpx_sse
import server

from agentproto._events import EventReader
from agentproto._sse import SSEDecoder

SIZES = {
    "150 B tokens": ("token", 4_000),
    "19 KB values": ("values", 200),
    "1 MB values": ("wide", 6),
}
CHUNK = 65_536


def seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def chunks(whole: bytes, size: int = CHUNK) -> list[bytes]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


class Body(httpx.SyncByteStream):
    """A body that is there already."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Any:
        return iter(self._pieces)


def decoded_by_us(pieces: list[bytes]) -> int:
    decoder = SSEDecoder()
    return sum(len(decoder.feed(piece)) for piece in pieces)


def decoded_by_httpx_sse(pieces: list[bytes]) -> int:
    headers = {"content-type": "text/event-stream"}
    response = httpx.Response(200, headers=headers, stream=Body(pieces))
    return sum(1 for _ in httpx_sse.EventSource(response).iter_sse())


def decoding(kind: str, count: int) -> dict[str, Callable[[], float]]:
    """The same bytes, decoded by both."""
    pieces = chunks(b"".join(server.frame(kind, number) for number in range(count)))
    assert decoded_by_us(pieces) == decoded_by_httpx_sse(pieces) == count
    return {
        "ours": lambda: seconds(lambda: decoded_by_us(pieces)),
        "peer": lambda: seconds(lambda: decoded_by_httpx_sse(pieces)),
    }


def typing(kind: str) -> dict[str, Callable[[], float]]:
    """One payload of about as many bytes, from JSON to what the caller gets."""
    from openai._models import construct_type
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    (sse,) = SSEDecoder().feed(b": first\n\n" + server.frame(kind, 0))
    read = EventReader[Any](None).read
    is_token = kind == "token"
    theirs = json.dumps(server.COMPLETION if is_token else completion_of(len(sse.data)))
    cast_to: Any = ChatCompletionChunk if is_token else ChatCompletion
    rounds = range(2_000 if is_token else 500)

    def by_us() -> None:
        for _ in rounds:
            event: Any = read(sse)
            if is_token:
                _ = event.messages

    def by_openai() -> None:
        for _ in rounds:
            construct_type(type_=cast_to, value=json.loads(theirs))

    return {"ours": lambda: seconds(by_us), "peer": lambda: seconds(by_openai)}


def completion_of(size: int) -> dict[str, Any]:
    """A whole completion of openai's, with as many choices as fill so many bytes."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "word " * 20},
    }
    count = max(1, size // len(json.dumps(choice)))
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    return {**head, "choices": [choice] * count}


def per_event(count: int) -> Callable[[], float]:
    """Seconds per event, in one stream of so many."""
    pieces = chunks(b"".join(server.frame("numbered", number) for number in range(count)))
    return lambda: seconds(lambda: decoded_by_us(pieces)) / count


def per_byte(size: int) -> Callable[[], float]:
    """Seconds per byte, in events of so many bytes that come in chunks of 1 KB."""
    count = max(1, 4_000_000 // size)
    event = b"event: custom\ndata: " + b"x" * size + b"\n\n"
    pieces = chunks(event * count, 1_000)
    return lambda: seconds(lambda: decoded_by_us(pieces)) / (count * size)
