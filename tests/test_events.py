"""From JSON of a server to typed events, and what they add up to."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agentproto import (
    CustomEvent,
    EndEvent,
    ErrorEvent,
    ErrorResponse,
    Interrupt,
    Message,
    MessageAnyBlock,
    MessagesEvent,
    MessageTextBlock,
    MetadataEvent,
    ProtocolError,
    RunEvent,
    UnknownEvent,
    UpdatesEvent,
    ValuesEvent,
)
from agentproto._events import EventReader, Transcript
from agentproto._sse import ServerSentEvent, SSEDecoder

WIRE = Path(__file__).parent / "wire"
STREAMS = sorted(WIRE.glob("*/*.sse"))


def sse(event: str, data: Any, own_id: str | None = None) -> ServerSentEvent:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return ServerSentEvent(event, raw, own_id or "", own_id, None)


def read(event: str, data: Any, own_id: str | None = None) -> RunEvent[Any]:
    return EventReader[Any](None).read(sse(event, data, own_id))


def message(text: str, id: str | None = None, **extra: Any) -> dict[str, Any]:  # noqa: A002  # field
    return {"role": "assistant", "content": text, "id": id, **extra}


ASK = [{"id": "i", "value": 1, "response_schema": None}]
ASKED = (Interrupt.model_validate(ASK[0]),)


@pytest.mark.parametrize(
    ("block", "event"),
    [
        (sse("metadata", {"run_id": "r"}, "1"), MetadataEvent("metadata", {"run_id": "r"}, "1")),
        (sse("values", {"n": 1}), ValuesEvent("values", {"n": 1})),
        (
            sse("values|a:1|b:2", {"n": 1}),
            ValuesEvent("values|a:1|b:2", {"n": 1}, None, ("a:1", "b:2")),
        ),
        (
            sse("values", {"__interrupt__": ASK}),
            ValuesEvent("values", {"__interrupt__": ASK}, None, (), ASKED),
        ),
        (
            sse("updates", {"__interrupt__": ASK}),
            UpdatesEvent("updates", {"__interrupt__": ASK}, None, (), ASKED),
        ),
        (sse("updates", None), UpdatesEvent("updates", None)),
        (sse("custom|c", 5), CustomEvent("custom|c", 5, None, ("c",))),
        (
            sse("error", {"error": "ValueError", "message": "boom"}),
            ErrorEvent(
                "error",
                {"error": "ValueError", "message": "boom"},
                ErrorResponse(code="ValueError", message="boom"),
            ),
        ),
        (sse("error", "no"), ErrorEvent("error", "no", ErrorResponse(message="no"))),
        (sse("error", b"no"), ErrorEvent("error", "no", ErrorResponse(message="no"))),
        (sse("error", b""), ErrorEvent("error", "", ErrorResponse())),
        (sse("error", [1]), ErrorEvent("error", [1], ErrorResponse(message="[1]"))),
        (sse("error|c", "no"), UnknownEvent("error|c", "no", None, ("c",))),
        (sse("end|c", None), UnknownEvent("end|c", None, None, ("c",))),
        (sse("end", None), EndEvent("end", None)),
        (sse("end", b""), EndEvent("end", None)),
        (sse("end", b"bye"), EndEvent("end", "bye")),
        (sse("end", {"status": "success"}), EndEvent("end", {"status": "success"})),
        (sse("debug", [1]), UnknownEvent("debug", [1])),
        (sse("message", b"plain"), UnknownEvent("message", "plain")),
        (sse("values/x", b"\xff"), UnknownEvent("values/x", "\ufffd")),
        (sse("custom", b'"\xff"'), CustomEvent("custom", "\ufffd")),
    ],
    ids=lambda v: v.event if isinstance(v, ServerSentEvent) else "",
)
def test_block_becomes_its_event(block: ServerSentEvent, event: RunEvent[Any]) -> None:
    """DESIGN, What a stream call returns."""
    assert EventReader[Any](None).read(block) == event


def test_end_tells_its_status() -> None:
    """Seen on aegra: end with a status, null on langrove."""
    assert EndEvent("end", {"status": "success"}).status == "success"
    assert EndEvent("end", None).status is None


@pytest.mark.parametrize(
    ("name", "data", "kind", "texts", "metadata"),
    [
        ("messages", [message("a"), {"node": "n"}], "chunk", ["a"], {"node": "n"}),
        ("messages", [message("a"), message("b")], "chunk", ["a", "b"], {}),
        ("messages", [message("a")], "chunk", ["a"], {}),
        ("messages", message("a"), "chunk", ["a"], {}),
        ("messages", [], "chunk", [], {}),
        ("messages/partial", [message("a")], "partial", ["a"], {}),
        ("messages/complete", [message("a"), message("b")], "complete", ["a", "b"], {}),
        ("messages/complete", message("a"), "complete", ["a"], {}),
        ("messages/metadata", {"m": {"metadata": {}}}, "metadata", [], {"m": {"metadata": {}}}),
        ("messages|sub", [message("a")], "chunk", ["a"], {}),
    ],
)
def test_messages_of_every_form_are_read(
    name: str, data: Any, kind: str, texts: list[str], metadata: Any
) -> None:
    """Seen on langgraph dev and langgraphjs dev; Spec: stream mode messages."""
    event = read(name, data)
    assert isinstance(event, MessagesEvent)
    assert (event.kind, event.data, event.metadata) == (kind, data, metadata)
    assert [m.text for m in event.messages] == texts


@pytest.mark.parametrize(
    "block",
    [
        sse("metadata", 5),
        sse("metadata", b""),
        sse("values", [1]),
        sse("values", b"{"),
        sse("updates", b"nope"),
        sse("custom", b""),
        sse("messages", {"no": "message"}),
        sse("messages", [[]]),
        sse("messages/partial", [{"role": "a", "content": 5}]),
        sse("messages/metadata", []),
        sse("values", b"\xff" * 900),
    ],
    ids=lambda b: f"{b.event} {b.data[:9]!r}",
)
def test_known_event_that_does_not_fit_is_a_protocol_error(block: ServerSentEvent) -> None:
    """FAULTS: bad JSON or shape, with the raw data."""
    with pytest.raises(ProtocolError, match="data that does not fit") as caught:
        EventReader[Any](None).read(block)
    assert caught.value.raw == block.data
    assert len(str(caught.value)) < 1500


class State(BaseModel):
    n: int


@dataclass
class Box:
    n: int


def test_values_are_typed_after_the_interrupt_was_taken_off() -> None:
    """DESIGN: what holds nothing else keeps the last root values."""
    reader = EventReader(State)
    first = reader.read(sse("values", {"__interrupt__": ASK}))
    whole = reader.read(sse("values", {"n": 1, "__interrupt__": ASK}))
    inner = reader.read(sse("values|sub", {"other": 1}))
    alone = reader.read(sse("values", {"__interrupt__": ASK}))
    assert [e.data for e in (first, whole, inner, alone)] == [
        None,
        State(n=1),
        {"other": 1},
        State(n=1),
    ]
    assert isinstance(alone, ValuesEvent)
    assert alone.interrupts == ASKED
    with pytest.raises(ProtocolError, match="n: Field required"):
        reader.read(sse("values", {}))


@pytest.mark.parametrize(
    ("kind", "data", "typed"), [(Box, {"n": 1}, Box(1)), (list[int], ["1"], [1]), (str, "a", "a")]
)
def test_values_are_of_any_type_pydantic_knows(kind: Any, data: Any, typed: Any) -> None:
    """values_type: a model, a dataclass, a TypedDict, and whatever else a state may be."""
    assert EventReader(kind).read(sse("values", data)).data == typed


CLASSES: dict[str, type] = {
    "metadata": MetadataEvent,
    "values": ValuesEvent,
    "updates": UpdatesEvent,
    "messages": MessagesEvent,
    "messages/partial": MessagesEvent,
    "messages/complete": MessagesEvent,
    "messages/metadata": MessagesEvent,
    "custom": CustomEvent,
    "error": ErrorEvent,
    "debug": UnknownEvent,
    "tasks": UnknownEvent,
    "checkpoints": UnknownEvent,
    "events": UnknownEvent,
}


def of_stream(path: Path) -> list[RunEvent[Any]]:
    reader = EventReader[Any](None)
    return [reader.read(block) for block in SSEDecoder().feed(path.read_bytes())]


# The newer protocol of another endpoint, whose `messages` wrap what they tell.
OTHER_PROTOCOL = {"langgraph_dev/proto_stream_events", "langgraph_dev/thread_stream_get"}
RUN_STREAMS = [p for p in STREAMS if f"{p.parent.name}/{p.stem}" not in OTHER_PROTOCOL]


@pytest.mark.parametrize("case", sorted(OTHER_PROTOCOL))
def test_stream_of_another_protocol_is_a_protocol_error(case: str) -> None:
    """Seen on langgraph dev: POST /threads/{id}/stream/events."""
    with pytest.raises(ProtocolError, match=r"event 'messages' .* content: Field required"):
        of_stream(WIRE / f"{case}.sse")


@pytest.mark.parametrize("path", RUN_STREAMS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_event_of_a_real_stream_is_typed(path: Path) -> None:
    """Seen on langgraph dev and langgraphjs dev: 116 recorded streams."""
    recorded = json.loads((WIRE / "events.json").read_text())[f"{path.parent.name}/{path.name}"]
    expected = [CLASSES.get(name.partition("|")[0], UnknownEvent) for name in recorded]
    events = of_stream(path)
    assert [type(event) for event in events] == expected
    assert [event.event for event in events] == recorded


@pytest.mark.parametrize(
    "case",
    [
        "stream_messages",
        "stream_messages-tuple",
        "stream_list_spec4",
        "stream_list_one",
        "stream_list_all",
        "stream_list_messages_tuple_and_messages",
    ],
)
@pytest.mark.parametrize("server", ["langgraph_dev", "langgraphjs_dev"])
def test_text_is_the_same_in_whichever_form_messages_come(server: str, case: str) -> None:
    """Seen on langgraph dev and langgraphjs dev: partial, complete, tuples, and both at once."""
    transcript = Transcript[Any]()
    pieces = [transcript.add(event) for event in of_stream(WIRE / server / f"{case}.sse")]
    said = {"langgraph_dev": "Hello from a fake model", "langgraphjs_dev": "Hello from JS"}
    assert "".join(pieces) == said[server]
    assert len([piece for piece in pieces if piece]) > 3
    assert transcript.messages[-1].text == said[server]


def said(*blocks: ServerSentEvent) -> tuple[list[str], Transcript[Any]]:
    reader, transcript = EventReader[Any](None), Transcript[Any]()
    return [transcript.add(reader.read(block)) for block in blocks], transcript


def test_text_is_that_of_the_assistant_only() -> None:
    """DESIGN: text() gives the assistant's text only, keyed by message id."""
    pieces, transcript = said(
        sse("messages", [{"type": "human", "content": "hi", "id": "h"}, {}]),
        sse("messages", [message("He", "a"), {}]),
        sse("messages", [message("Yo", "b"), {}]),
        sse("messages", [message("y", "a"), {}]),
        sse("messages/partial", [message("Hey you", "a")]),
    )
    assert pieces == ["", "He", "Yo", "y", ""]
    assert [(m.role, m.text) for m in transcript.messages] == [
        ("user", "hi"),
        ("assistant", "Hey"),
        ("assistant", "Yo"),
    ]


def test_cumulative_text_gives_what_is_new() -> None:
    """Seen on langgraph dev: messages/partial repeats the text so far."""
    pieces, transcript = said(
        sse("messages/partial", [message("He", "a")]),
        sse("messages/partial", [message("Hello", "a")]),
        sse("messages/complete", [message("Hello", "a")]),
        sse("messages/complete", [message("Help!", "a")]),
        sse("messages", [message("more", "a"), {}]),
    )
    assert pieces == ["He", "llo", "", "p!", ""]
    assert [m.text for m in transcript.messages] == ["Help!"]


def test_chunks_make_one_message() -> None:
    """Blocks and other fields of the chunks are kept, text is joined."""
    _, transcript = said(
        sse("messages", [message("a", "m", calls=[1], usage=None, n=1)]),
        sse("messages", [message("b", "m", calls=[2], usage={"t": 3}, n=0)]),
        sse("messages", [{**message("", "m"), "content": [{"type": "text", "text": "c"}]}]),
        sse("messages", [{**message("", "m"), "content": [{"type": "text", "text": "d"}]}]),
        sse("messages", [{**message("", "m"), "content": [{"type": "image", "url": "u"}]}]),
        sse("messages", [message("e", "m")]),
        sse("messages", [message("", "m")]),
    )
    (whole,) = transcript.messages
    assert whole.content == [
        MessageTextBlock(text="abcd"),
        MessageAnyBlock.model_validate({"type": "image", "url": "u"}),
        MessageTextBlock(text="e"),
    ]
    assert whole.model_extra == {"calls": [1, 2], "usage": {"t": 3}, "n": 1}
    assert whole.text == "abcde"


def test_chunks_of_blocks_alone_make_one_message() -> None:
    """A message that begins with blocks has no text before them."""
    _, transcript = said(
        sse("messages", [{**message("", "m"), "content": [{"type": "text", "text": "c"}]}])
    )
    assert transcript.messages == [
        Message(role="assistant", content=[MessageTextBlock(text="c")], id="m")
    ]


extras = st.dictionaries(
    st.sampled_from(["name", "calls", "usage"]),
    st.none()
    | st.lists(st.integers(), max_size=2)
    | st.just({"t": 1})
    | st.sampled_from(["", "n"]),
)
pieces = st.builds(
    lambda kind, content, own, more: {**kind, "content": content, **own, **more},
    st.sampled_from([{"type": "ai"}, {"type": "AIMessageChunk"}, {"role": "user"}, {"role": ""}]),
    st.sampled_from(["", "a", "b", None, ["c"], [{"type": "image", "url": "u"}]]),
    st.sampled_from([{}, {"id": None}, {"id": "m"}, {"id": "n"}, {"metadata": {"a": 1}}]),
    extras,
)


# Most events are like one before, but for their text, and have faster ways that hang on that.
conversations = st.lists(pieces, min_size=1, max_size=3).flatmap(
    lambda few: st.lists(
        st.tuples(
            st.sampled_from([*["messages"] * 5, "messages|sub", "messages/partial"]),
            st.builds(
                lambda piece, text: piece if text is None else {**piece, "content": text},
                st.sampled_from(few),
                st.sampled_from([None, "", "d", "e"]),
            ),
        ),
        max_size=12,
    )
)


@given(conversations)
def test_piece_of_text_adds_up_to_what_a_whole_message_does(
    sent: list[tuple[str, dict[str, Any]]],
) -> None:
    """Differential: with metadata beside it a piece has a faster way, which must lead there."""
    told, transcript = said(
        *[sse(name, [piece] if "/" in name else [piece, {}]) for name, piece in sent]
    )
    expected, plain = said(*[sse(name, [piece]) for name, piece in sent])
    assert (told, transcript.messages) == (expected, plain.messages)
    reader = EventReader[Any](None)
    for _, piece in sent:
        event = reader.read(sse("messages", [piece, {"node": "n"}]))
        assert isinstance(event, MessagesEvent)
        assert event.messages == (Message.model_validate(piece),)
        assert (event.metadata, event.messages) == ({"node": "n"}, event.messages)


@pytest.mark.parametrize(
    "values",
    [[1, 1, True], [{"n": 1}, {"n": 1}, {"n": 1.0}], [["a"], ["a"], ["a"]], ["a", "a", "b"]],
)
def test_last_piece_tells_what_is_beside_the_text(values: list[Any]) -> None:
    """Seen: what is equal in Python passed for the same, where JSON has another."""
    sent = [{"type": "ai", "id": "m", "content": "a", "v": value} for value in values]
    _, transcript = said(*[sse("messages", [piece, {}]) for piece in sent])
    (whole,) = transcript.messages
    last = [v for value in values for v in value] if isinstance(values[-1], list) else values[-1]
    assert repr((whole.model_extra or {})["v"]) == repr(last)
    assert whole.text == "aaa"


def test_pieces_of_two_messages_do_not_mix() -> None:
    """What is like the last piece belongs to the message of that one."""
    sent = [("m", "a"), ("m", "b"), ("n", "c"), ("n", "d"), ("n", "e"), ("m", "f")]
    texts, transcript = said(*[sse("messages", [message(text, of), {}]) for of, text in sent])
    assert texts == [*"abcdef"]
    assert [m.text for m in transcript.messages] == ["abf", "cde"]


NO_TEXTS: list[Any] = [None, 5, ["b"], {}]
NO_PIECES: list[Any] = [
    *[5, "xy", None, {}, {"content": "b", "id": "m"}, [], [{}], [{}, {}], ["x", {}], [["x"], {}]],
    *[[message("", "m") | {"content": other}, {}] for other in NO_TEXTS],
    *[[message("b", "m"), beside] for beside in (["x"], "x", None, 5, [], {"content": 1})],
    *[[message("b", "m")], [message("b", "m"), message("b", "n")], [message("b", "m"), {}, {}]],
]


@pytest.mark.parametrize("data", NO_PIECES, ids=str)
def test_chunk_is_judged_alike_behind_a_piece_that_it_resembles(data: Any) -> None:
    """What is like the piece before is told by that: no more may pass than by itself."""

    def outcome(*before: ServerSentEvent) -> Any:
        reader = EventReader[Any](None)
        for block in before:
            reader.read(block)
        try:
            event = reader.read(sse("messages", data))
        except ProtocolError as error:
            return str(error)
        assert isinstance(event, MessagesEvent)
        return event.messages, event.metadata

    assert outcome(sse("messages", [message("a", "m"), {}])) == outcome()


@pytest.mark.parametrize("role", [[], {}, 0, False, 5])
def test_role_that_is_none_is_told_at_once(role: object) -> None:
    """Seen: beside a type, an empty one passed."""
    piece = {"type": "ai", "role": role, "content": "a"}
    with pytest.raises(ProtocolError, match="role"):
        EventReader[Any](None).read(sse("messages", [piece, {}]))


def test_event_of_messages_is_its_fields() -> None:
    """What was made of it is none of them: copies and pickles are the same before and after."""
    event = EventReader[Any](None).read(sse("messages", [message("a", "m"), {"node": "n"}]))
    before = asdict(event)
    assert isinstance(event, MessagesEvent)
    assert event.messages[0].text == "a"
    assert asdict(event) == before
    assert MessagesEvent(**before).messages == event.messages
    assert replace(event, id="7").messages == event.messages


def test_interrupts_are_collected_by_id() -> None:
    """Seen on langgraph dev: parallel interrupts come one event at a time, and repeat."""
    _, transcript = said(
        sse("updates", {"__interrupt__": [{"id": "a", "value": 1}]}),
        sse("values", {"__interrupt__": [{"id": "a", "value": 1}]}),
        sse("values|sub", {"__interrupt__": [{"id": "b", "value": 2}]}),
        sse("values", {"__interrupt__": [{"value": 3}, {"value": 3}]}),
        sse("end", {"status": "interrupted", "interrupts": [{"id": "c", "value": 4}]}),
    )
    assert [(i.id, i.value) for i in transcript.interrupts] == [
        ("a", 1),
        ("b", 2),
        (None, 3),
        ("c", 4),
    ]
    assert (transcript.status, transcript.has_values) == ("interrupted", False)


def test_transcript_holds_the_last_root_values_and_the_status() -> None:
    """DESIGN: final() is from the last values."""
    _, transcript = said(
        sse("values", {"n": 1}),
        sse("values|sub", {"n": 2}),
        sse("values", {"__interrupt__": ASK}),
        sse("custom", 1),
        sse("error", "x"),
    )
    assert (transcript.values, transcript.has_values) == ({"n": 1}, True)
    assert transcript.status == "error"
    assert transcript.messages == []


def test_messages_are_those_of_the_values_where_none_were_streamed() -> None:
    """Spec: RunWaitResponse.messages."""
    _, transcript = said(sse("values", {"messages": [message("a", "m")]}))
    assert [m.text for m in transcript.messages] == ["a"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "type", "content", "id", "__interrupt__", "status", "run_id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
names = st.sampled_from([*CLASSES, "end", "values|a", "messages|b", "", "x"])


@given(st.lists(st.tuples(names, json_values.map(lambda v: json.dumps(v).encode()) | st.binary())))
def test_any_data_gives_events_or_our_error(blocks: list[tuple[str, bytes]]) -> None:
    """Property: whatever a server sends, only our errors come out."""
    reader, transcript = EventReader[Any](None), Transcript[Any]()
    for name, data in blocks:
        with suppress(ProtocolError):
            transcript.add(reader.read(sse(name, data)))
    assert isinstance(transcript.messages, list)
