"""The decoder against the WHATWG standard, line by line; against httpx-sse; on real bytes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentproto._sse import ServerSentEvent, SSEDecoder

from .sse_standard import interpret

WIRE = Path(__file__).parent / "wire"
STREAMS = sorted(WIRE.glob("*/*.sse"))
BODIES = sorted(WIRE.glob("*/*.body"))


def decode(*chunks: bytes) -> list[ServerSentEvent]:
    decoder = SSEDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def one_byte_at_a_time(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def sse(
    data: str | bytes,
    event: str = "message",
    id: str = "",  # noqa: A002  # the field's name
    own_id: str | None = None,
    retry: int | None = None,
) -> ServerSentEvent:
    raw = data if isinstance(data, bytes) else data.encode()
    return ServerSentEvent(event, raw, id, own_id, retry)


LINES_OF_THE_STANDARD: dict[str, tuple[bytes, list[ServerSentEvent]]] = {
    "LF ends a line": (b"data: a\n\n", [sse("a")]),
    "CR ends a line": (b"data: a\r\r", [sse("a")]),
    "CRLF ends a line": (b"data: a\r\n\r\n", [sse("a")]),
    "line ends may be mixed": (b"data: a\rdata: b\r\ndata: c\n\r\n", [sse("a\nb\nc")]),
    "CR LF CR is two line ends": (b"data: a\r\n\rdata: b\n\n", [sse("a"), sse("b")]),
    "a BOM at the start is dropped": (b"\xef\xbb\xbfdata: a\n\n", [sse("a")]),
    "only one BOM is dropped": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    "a BOM elsewhere is data": (b"data: \xef\xbb\xbfa\n\n", [sse("\ufeffa")]),
    "a BOM before a blank line is dropped": (b"\xef\xbb\xbf\ndata: a\n\n", [sse("a")]),
    "one space after the colon is dropped": (b"data:a\ndata: b\ndata:  c\n\n", [sse("a\nb\n c")]),
    "a tab after the colon is data": (b"data:\ta\n\n", [sse("\ta")]),
    "a field without colon has no value": (b"data\n\n", [sse("")]),
    "two empty data lines are one LF": (b"data\ndata\n\n", [sse("\n")]),
    "data without a value is an event": (b"data:\n\n", [sse("")]),
    "a comment is nothing": (b": hello\n\n:\n\ndata: a\n: b\n\n", [sse("a")]),
    "an unknown field is nothing": (b"foo: a\ndata: b\nData: c\n data: d\n\n", [sse("b")]),
    "event names the event": (b"event: x\ndata: a\n\n", [sse("a", "x")]),
    "the last event field counts": (b"event: x\nevent: y\ndata: a\n\n", [sse("a", "y")]),
    "an empty name is message": (b"event: x\nevent:\ndata: a\n\n", [sse("a")]),
    "the name is forgotten after a block": (b"event: x\n\ndata: a\n\n", [sse("a")]),
    "an id is kept": (
        b"id: 1\ndata: a\n\ndata: b\n\n",
        [sse("a", id="1", own_id="1"), sse("b", id="1")],
    ),
    "an empty id resets it": (
        b"id: 1\ndata: a\n\nid\ndata: b\n\ndata: c\n\n",
        [sse("a", id="1", own_id="1"), sse("b", id="", own_id=""), sse("c")],
    ),
    "an id with NUL is ignored": (
        b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n",
        [sse("a", id="1", own_id="1"), sse("b", id="1")],
    ),
    "the id of a block without data is kept": (b"id: 1\n\ndata: a\n\n", [sse("a", id="1")]),
    "a heartbeat after an id is not an event": (
        b"id: 1\ndata: a\n\n: heartbeat\n\n",
        [sse("a", id="1", own_id="1")],
    ),
    "a block without data is not an event": (b"event: x\nid: 1\nretry: 5\n\n", []),
    "retry takes digits": (b"retry: 0050\ndata: a\n\n", [sse("a", retry=50)]),
    "retry takes nothing else": (
        b"retry: -1\nretry: 1.5\nretry: 5s\nretry:  5\nretry:\nretry: \xd9\xa5\ndata: a\n\n",
        [sse("a")],
    ),
    "retry is clamped": (b"retry: " + b"9" * 4000 + b"\ndata: a\n\n", [sse("a", retry=10**18)]),
    "an unterminated block is dropped": (b"data: a\n\ndata: b\n", [sse("a")]),
    "an unterminated line is dropped": (b"data: a\n\ndata: b", [sse("a")]),
    "other line separators are data": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\n\n".encode(),
        [sse("a\u2028b\u2029c\x85d\x0be\x0cf")],
    ),
    "a colon in a value is data": (b"data: a: b:c\n\n", [sse("a: b:c")]),
    "blank lines are nothing": (b"\n\n\r\r\n\n", []),
    "NUL is data": (b"data: a\0b\n\n", [sse("a\0b")]),
}


@pytest.mark.parametrize(
    ("stream", "events"), LINES_OF_THE_STANDARD.values(), ids=LINES_OF_THE_STANDARD
)
def test_stream_is_interpreted_as_the_standard_says(
    stream: bytes, events: list[ServerSentEvent]
) -> None:
    """SSE standard: 9.2.6 Interpreting an event stream."""
    assert decode(stream) == events
    assert decode(*one_byte_at_a_time(stream)) == events
    assert interpret(stream) == events


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"\r\n\r\n"])
def test_event_is_out_with_the_byte_that_ends_it(end: bytes) -> None:
    """SSE standard: a CR ends a line; whether an LF follows is not waited for."""
    decoder = SSEDecoder()
    first = end[:-1] if end.endswith(b"\r\n") else end
    assert decoder.feed(b"data: a" + first) == [sse("a")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata: b\n\n") == [sse("b")]


def test_invalid_bytes_become_replacement_characters() -> None:
    """SSE standard: a stream is decoded as UTF-8, with replacement."""
    (event,) = decode(b"event: \xff\nid: \xc3\ndata: \xe2\x82x\xff\n\n")
    assert (event.event, event.id, event.text) == ("\ufffd", "\ufffd", "\ufffdx\ufffd")


def test_retry_of_a_block_without_data_is_kept_for_the_stream() -> None:
    """SSE standard: a reconnection time needs no event."""
    decoder = SSEDecoder()
    assert decoder.feed(b"retry: 1500\n\n") == []
    assert decoder.retry == 1500


@pytest.mark.parametrize("newline", [b"", b"\ndata: "], ids=["one line", "many lines"])
def test_event_of_5_mb_in_1_kb_chunks_is_one_event(newline: bytes) -> None:
    """SSE standard: there is no limit to an event's size. Pieces are joined once."""
    pieces = [b"x" * 1024 + newline] * 5120
    (event,) = decode(b"data: ", *pieces, b"\n\n")
    lines = event.data.split(b"\n")
    assert sum(map(len, lines)) == 5 * 2**20
    assert len(lines) == (5121 if newline else 1)


syntax = st.sampled_from(
    b"data|event|id|retry|:| |\n|\r|\r\n|\n\n|\r\r|\0|7|\xef\xbb\xbf|\xff|\xe2\x80|\xa8|\x85|\x0b|"
    b"a|data: x|id: 1\n|: hb\n\n|event: e\n".split(b"|")
)
# What nearly every stream is made of, and has a faster way through the decoder.
common = st.builds(
    lambda before, name, data, event_id, end: (
        (before + name + data + event_id + b"\n").replace(b"\n", end) if data else b"\n"
    ),
    st.sampled_from([b"", b"", b"id: 7\n", b"id: \0\n"]),
    st.sampled_from([b"", b"event: e\n", b"event: f\n", b"event: \xff\n", b"event: \n"]),
    st.sampled_from([b"data: x\n", b"data: \n", b"data: a: b\n", b"data: 1\ndata: 2\n", b""]),
    st.sampled_from([b"", b"id: 1\n", b"id: \n", b"id: \0\n", b"id:  2\n", b"retry: 5\n"]),
    st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"]),
)
# And what is cut out of it in one go, as far as each is like the one before.
runs = st.builds(
    lambda head, data: b"".join([head + each + b"\n\n" for each in data]),
    st.sampled_from([b"data: ", b"event: e\ndata: "]),
    st.lists(st.sampled_from([b"", b"x", b"xxxxx", b"x\nid: 1", b"x\ndata: y"]), max_size=6),
)
streams = st.lists(syntax | common | runs | st.binary(max_size=4), max_size=60).map(b"".join)


def as_text(events: list[ServerSentEvent]) -> list[tuple[Any, ...]]:
    return [(e.event, e.text, e.id, e.own_id, e.retry) for e in events]


@given(stream=streams, cuts=st.lists(st.integers(0, 400), max_size=12))
@example(stream=b"\xef\xbb\xbfdata: a\r\n\r\n", cuts=[1, 2, 10, 11, 12])
@example(stream=b"data: x\r\r\n", cuts=[])  # two lines, as three bytes of two ways to end one
@example(stream=b"\ndata: x\n\ndata: x\n\ndata: y\ndata: z\n\ndata: x\n\n", cuts=[])
@example(stream=b"\ndata: x\n\ndata: y\n", cuts=[])
@example(stream=b"\nid: 1\ndata: x\n\ndata: x\n\ndata: x\n\n", cuts=[])
def test_any_chunking_gives_the_events_of_the_standard(stream: bytes, cuts: list[int]) -> None:
    """SSE standard: an event stream is a sequence of bytes; where it is cut means nothing."""
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    expected = as_text(interpret(stream))
    assert as_text(decode(*chunks)) == expected
    assert as_text(decode(*one_byte_at_a_time(stream))) == expected


def by_httpx_sse(stream: bytes) -> list[tuple[str, str, str, int | None]]:
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    events = httpx_sse.EventSource(response).iter_sse()
    return [(e.event, e.data, e.id, e.retry) for e in events]


def by_us(stream: bytes) -> list[tuple[str, str, str, int | None]]:
    return [(e.event, e.text, e.id, e.retry) for e in decode(stream)]


DEVIATIONS_OF_HTTPX_SSE: dict[str, tuple[bytes, Any, Any]] = {
    "keeps a BOM, so that the first line is no field": (
        b"\xef\xbb\xbfdata: a\n\n",
        [("message", "a", "", None)],
        [],
    ),
    "makes an event of a heartbeat once an id was seen": (
        b"id: 1\ndata: a\n\n: heartbeat\n\n",
        [("message", "a", "1", None)],
        [("message", "a", "1", None), ("message", "", "1", None)],
    ),
    "makes an event of a block without data": (
        b"event: x\n\n",
        [],
        [("x", "", "", None)],
    ),
    "makes an event of a reconnection time": (
        b"retry: 5\n\n",
        [],
        [("message", "", "", 5)],
    ),
    "takes a retry with a sign": (
        b"retry: -5\ndata: a\n\n",
        [("message", "a", "", None)],
        [("message", "a", "", -5)],
    ),
    "dispatches a block whose blank line is the unterminated end of a CR": (
        b"data: a\n\r",
        [("message", "a", "", None)],
        [("message", "a", "", None)],
    ),
}


@pytest.mark.parametrize(
    ("stream", "ours", "theirs"), DEVIATIONS_OF_HTTPX_SSE.values(), ids=DEVIATIONS_OF_HTTPX_SSE
)
def test_deviation_of_httpx_sse_is_still_there(stream: bytes, ours: Any, theirs: Any) -> None:
    """Seen on httpx-sse 0.4.3."""
    assert by_us(stream) == ours
    assert by_httpx_sse(stream) == theirs


values = st.text(st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"]))
blocks = st.builds(
    lambda event, data, newline: newline.join(
        [f"event: {event}", *(f"data: {d}" for d in data), "", ""]
    ),
    values,
    st.lists(values, min_size=1, max_size=3),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


@given(
    stream=streams,
    cuts=st.lists(st.integers(0, 400), max_size=12),
    most=st.integers(1, 30),
)
@example(stream=b"\ndata: x\n\ndata: xxxxx\n\n", cuts=[], most=4)
def test_limit_does_not_depend_on_the_chunking(stream: bytes, cuts: list[int], most: int) -> None:
    """Property: up to the first event over the limit, all of them; behind it, none."""
    edges = [0, *sorted(cuts), len(stream)]
    whole = SSEDecoder(max_event_bytes=most)
    expected = whole.feed(stream)
    for chunks in [stream[a:b] for a, b in pairwise(edges)], one_byte_at_a_time(stream):
        decoder = SSEDecoder(max_event_bytes=most)
        assert [event for chunk in chunks for event in decoder.feed(chunk)] == expected
        assert decoder.is_over == whole.is_over
    everything = decode(stream)
    assert expected == everything[: len(expected)]
    assert all(len(event.data) <= most for event in expected)
    assert whole.is_over or expected == everything


@given(st.lists(blocks, max_size=8).map("".join))
def test_httpx_sse_agrees_where_it_obeys_the_standard(stream: str) -> None:
    """Differential: blocks with data, no BOM, no id before a comment, digits in retry."""
    assert by_us(stream.encode()) == by_httpx_sse(stream.encode())


@pytest.mark.parametrize("path", STREAMS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_real_stream_gives_the_recorded_events(path: Path) -> None:
    """Seen on langgraph dev and langgraphjs dev."""
    stream = path.read_bytes()
    events = decode(stream)
    recorded = json.loads((WIRE / "events.json").read_text())
    assert [e.event for e in events] == recorded[f"{path.parent.name}/{path.name}"]
    assert events == interpret(stream)
    assert decode(*one_byte_at_a_time(stream)) == events


@given(st.data())
def test_real_stream_may_be_cut_anywhere(data: st.DataObject) -> None:
    """Seen on langgraph dev and langgraphjs dev."""
    stream = data.draw(st.sampled_from(STREAMS)).read_bytes()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    edges = [0, *cuts, len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    assert decode(*chunks) == decode(stream)


@pytest.mark.parametrize("path", BODIES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_body_that_is_no_stream_has_no_events(path: Path) -> None:
    """Seen on langgraph dev and langgraphjs dev: JSON and plain text, refusals among them."""
    assert decode(path.read_bytes()) == decode(*one_byte_at_a_time(path.read_bytes())) == []


def test_byte_order_mark_is_no_part_of_a_line() -> None:
    """Seen: where it came alone it counted, and a line that fits was refused."""
    stream = b"\xef\xbb\xbfevent: 123456789\ndata: x\n\n"
    for chunks in [stream], one_byte_at_a_time(stream):
        decoder = SSEDecoder(max_event_bytes=10)
        assert [e.data for chunk in chunks for e in decoder.feed(chunk)] == [b"x"]
        assert not decoder.is_over


def test_id_with_a_nul_behind_many_lines_is_ignored() -> None:
    """SSE standard: an id that contains NUL is ignored, behind data of many lines, too."""
    stream = b"data: x\n\nevent: e\ndata: a\ndata: b\nid: \0\n\n"
    for rest in (b"id: \0\n\n", b"id: 1\nother: b\n\n", b"id: 1\n"):
        short = b"data: x\n\nevent: e\ndata: a\n" + rest
        assert as_text(decode(short[:9], short[9:])) == as_text(interpret(short))
    for chunks in [b"data: x\n\n", stream[9:]], [stream], one_byte_at_a_time(stream):
        assert as_text(decode(*chunks)) == as_text(interpret(stream))


def test_long_line_of_any_field_ends_the_stream() -> None:
    """`max_event_bytes`: any line behind its field's name."""
    decoder = SSEDecoder(max_event_bytes=1)
    assert decoder.feed(b"unknown: field\ndata: x\n\n") == []
    assert decoder.is_over
    decoder = SSEDecoder(max_event_bytes=1)
    assert [decoder.feed(piece) for piece in (b"\n", b"data: x", b"y")] == [[], [], []]
    assert decoder.is_over
