"""Requests, resources, and the JSON that goes on the wire."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from agentproto import (
    Command,
    EndEvent,
    Message,
    MessageAnyBlock,
    MessagesEvent,
    MessageTextBlock,
    MetadataEvent,
    Run,
    RunConfig,
    RunCreate,
    RunRef,
    RunStatus,
    RunUpdate,
    RunWaitResponse,
    Send,
    ValuesEvent,
)
from agentproto._json import parse_json, to_json
from agentproto._models import message_from, run_ref

RUN = "6f1f4e0c-55c9-4c3d-9d29-8c3c6c3ad0d5"


def sent(model: RunCreate | RunUpdate) -> Any:
    return json.loads(to_json(model.fields_to_send()))


def test_every_field_of_a_create_is_sent_as_the_schema_has_it() -> None:
    """Spec: schema RunCreate."""
    create = RunCreate(
        thread_id=UUID(RUN),  # type: ignore[arg-type]  # a UUID is taken as its text
        agent_id="a",
        input={"x": [1, 2.5, None, True, "ü"]},
        messages=[
            Message(role="user", content="hi"),
            Message(role="user", content=[MessageTextBlock(text="t", metadata={"m": 1})], id="m1"),
            Message(role="user", content=[MessageAnyBlock.model_validate({"type": "img", "u": 1})]),
        ],
        metadata={"m": 1},
        config=RunConfig(tags=["t"], recursion_limit=5, configurable={"c": None}),
        webhook="https://example.com/hook",
        stream_mode=["values", "messages", "updates", "custom", "debug"],
        on_completion="keep",
        on_disconnect="continue",
        if_not_exists="create",
    )
    assert sent(create) == {
        "thread_id": RUN,
        "agent_id": "a",
        "input": {"x": [1, 2.5, None, True, "ü"]},
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "t", "metadata": {"m": 1}}],
                "id": "m1",
            },
            {"role": "user", "content": [{"type": "img", "u": 1}]},
        ],
        "metadata": {"m": 1},
        "config": {"tags": ["t"], "recursion_limit": 5, "configurable": {"c": None}},
        "webhook": "https://example.com/hook",
        "stream_mode": ["values", "messages", "updates", "custom", "debug"],
        "on_completion": "keep",
        "on_disconnect": "continue",
        "if_not_exists": "create",
    }


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (RunCreate(), {}),
        (RunCreate(agent_id=None, thread_id=None), {}),
        (RunCreate(input=None), {"input": None}),
        (RunCreate(stream_mode="values"), {"stream_mode": "values"}),
        (RunUpdate(), {}),
        (RunUpdate(command=Command()), {"command": {}}),
        (RunUpdate(command=Command(resume=None)), {"command": {"resume": None}}),
        (RunUpdate(command=Command(update=None, goto=None)), {"command": {"update": None}}),
        (RunUpdate(command=Command(resume={"i": 1})), {"command": {"resume": {"i": 1}}}),
        (RunUpdate(command=Command(update=[["a", 1]])), {"command": {"update": [["a", 1]]}}),
        (RunUpdate(command=Command(goto="n")), {"command": {"goto": "n"}}),
        (RunUpdate(command=Command(goto=["n", "m"])), {"command": {"goto": ["n", "m"]}}),
        (
            RunUpdate(command=Command(goto=Send(node="n", input={"a": 1}))),
            {"command": {"goto": {"node": "n", "input": {"a": 1}}}},
        ),
        (
            RunUpdate(command=Command(goto=[Send(node="n", input={})])),
            {"command": {"goto": [{"node": "n", "input": {}}]}},
        ),
    ],
)
def test_only_fields_that_were_set_are_sent(model: RunCreate | RunUpdate, body: Any) -> None:
    """Spec: schemas RunCreate and RunUpdate; defaults are the server's."""
    assert sent(model) == body


@pytest.mark.parametrize(
    "fields",
    [
        {"agentid": "a"},
        {"stream_mode": 5},
        {"stream_mode": [5]},
        {"on_disconnect": "stay"},
        {"webhook": ""},
        {"config": {"recursion_limt": 5}},
        {"config": {"recursion_limit": "5"}},
        {"config": {"tags": "t"}},
        {"metadata": [1]},
        {"agent_id": b"a"},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": 5}]},
    ],
)
def test_field_that_does_not_fit_is_refused(fields: dict[str, Any]) -> None:
    """Spec: schema RunCreate."""
    with pytest.raises(ValidationError, match=next(iter(fields))):
        RunCreate(**fields)


class Colour(Enum):
    RED = "red"


class Point(BaseModel):
    x: int
    when: datetime


@dataclass
class Box:
    points: list[Point]


def test_python_values_are_serialised() -> None:
    """What users pass as input: models, dataclasses, UUIDs, times, enums, tuples."""
    value = {
        "box": Box([Point(x=1, when=datetime(2026, 1, 2, tzinfo=UTC))]),
        "id": UUID(RUN),
        "day": date(2026, 1, 2),
        "colour": Colour.RED,
        "status": RunStatus.ERROR,
        "pair": (1, 2),
        "message": Message(role="user", content="hi"),
    }
    assert json.loads(to_json({"input": value}))["input"] == {
        "box": {"points": [{"x": 1, "when": "2026-01-02T00:00:00+00:00"}]},
        "id": RUN,
        "day": "2026-01-02",
        "colour": "red",
        "status": "error",
        "pair": [1, 2],
        "message": {"role": "user", "content": "hi"},
    }


def cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "error", "told"),
    [
        ({"a": [1, 2, math.nan]}, ValueError, r"input\.a\[2\]: nan"),
        ([math.inf], ValueError, r"input\[0\]: inf"),
        ({"a": b"x"}, TypeError, r"input\.a: bytes"),
        ({"a": {1, 2}}, TypeError, r"input\.a: set"),
        ({1: "a"}, TypeError, "keys of a JSON object are str, got int"),
        ({"a": "\ud800"}, ValueError, r"input\.a: a lone surrogate"),
        ({"\ud800": 1}, ValueError, "a lone surrogate"),
        (Box, TypeError, "input: type"),
        (cycle(), ValueError, "contain itself"),
    ],
)
def test_what_is_not_json_is_refused_with_its_path(
    value: Any, error: type[Exception], told: str
) -> None:
    """Nothing that JSON does not have is sent, and none of it silently changed."""
    with pytest.raises(error, match=told):
        to_json({"input": value})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@dataclass(frozen=True)
class Tagged(str):
    source: str = "web"


@dataclass
class Price(float):
    currency: str = "EUR"


def test_text_and_numbers_are_sent_as_such_whatever_else_they_are() -> None:
    """Seen: a faster writer took a dataclass that is text for its fields, and sent those."""
    price = Price.__new__(Price, 9.5)
    sent = to_json({"input": [Tagged("hello"), price, {Tagged("key"): 1}]})
    assert sent == b'{"input":["hello",9.5,{"key":1}]}'


@given(json_values)
def test_json_arrives_as_it_was_given(value: Any) -> None:
    """Property: what is sent reads back equal."""
    assert parse_json(to_json({"input": value})) == {"input": value}


@pytest.mark.parametrize(
    ("given_run", "ref"),
    [
        (RUN, RunRef(RUN)),
        (UUID(RUN), RunRef(RUN)),
        (RunRef(RUN, "t"), RunRef(RUN, "t")),
        (Run(run_id=RUN, thread_id="t"), RunRef(RUN, "t")),
        (RunWaitResponse[Any](run=Run(run_id=RUN)), RunRef(RUN)),
    ],
)
def test_run_is_known_by_what_knows_it(given_run: Any, ref: RunRef) -> None:
    """Wherever a run is named, its id or what knows it is taken."""
    assert run_ref(given_run) == ref


@pytest.mark.parametrize(
    ("given_run", "error", "told"),
    [
        (None, TypeError, "stream has not started|until the stream has started"),
        (5, TypeError, "got int"),
        (Run(), ValueError, "did not say which run"),
        (RunWaitResponse[Any](), ValueError, "did not say which run"),
        ("", ValueError, "got ''"),
        ("..", ValueError, r"got '\.\.'"),
        ("a\r\nb", ValueError, "got 'a"),
        ("x" * 513, ValueError, "513 characters"),
        ("\ud800", ValueError, "expected an id"),
    ],
)
def test_run_that_cannot_be_meant_is_refused(
    given_run: Any, error: type[Exception], told: str
) -> None:
    """A bad id never becomes another path."""
    with pytest.raises(error, match=told):
        run_ref(given_run)


@pytest.mark.parametrize(
    ("raw", "role", "text"),
    [
        ({"role": "user", "content": "a"}, "user", "a"),
        ({"type": "ai", "content": "a"}, "assistant", "a"),
        ({"type": "AIMessageChunk", "content": "a"}, "assistant", "a"),
        ({"type": "human", "content": "a", "role": None}, "user", "a"),
        ({"type": "tool", "content": None}, "tool", ""),
        ({"role": "x", "content": ["a", {"type": "text", "text": "b"}, {"type": "i"}]}, "x", "ab"),
    ],
)
def test_message_of_any_server_has_role_and_text(raw: Any, role: str, text: str) -> None:
    """Spec: schema Message; seen on langgraph dev and langgraphjs dev: `type` for `role`."""
    message = Message.model_validate(raw)
    assert (message.role, message.text) == (role, text)


@pytest.mark.parametrize("raw", [5, {"content": "a"}, {"type": 5, "content": "a"}])
def test_message_without_role_is_none(raw: Any) -> None:
    """Spec: schema Message, required fields."""
    with pytest.raises(ValidationError):
        Message.model_validate(raw)


def test_resources_keep_what_they_do_not_know() -> None:
    """In what a server sends, unknown fields and enum values survive."""
    run = Run.model_validate({"run_id": RUN, "status": "running", "attempt": 2})
    assert (run.status, run.model_extra) == ("running", {"attempt": 2})
    assert Run.model_validate({"status": "success"}).status is RunStatus.SUCCESS
    assert EndEvent("end", {"status": "odd"}).status == "odd"
    assert EndEvent("end", {"status": "error"}).status is RunStatus.ERROR
    assert [EndEvent("end", data).status for data in (None, "x", {"status": 5})] == [None] * 3
    assert MetadataEvent("metadata", {"run_id": 5}).run_id is None


@pytest.mark.parametrize(
    "value",
    [
        Run(run_id=RUN, status=RunStatus.ERROR),
        RunWaitResponse(run=Run(run_id=RUN), values={"a": 1}),
        ValuesEvent("values", {"a": 1}, "7", ("n",)),
        MessagesEvent("messages", [{"role": "a", "content": "b"}], "chunk"),
        RunRef(RUN, "t"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_values_travel(value: Any) -> None:
    """What comes out of a call can be pickled, copied and sent to another process."""
    assert pickle.loads(pickle.dumps(value)) == value
    assert copy.deepcopy(value) == value


def test_models_are_frozen() -> None:
    """Values that travel are frozen."""
    with pytest.raises(ValidationError, match="frozen"):
        RunCreate().agent_id = "b"


def test_escaped_lone_surrogate_is_read() -> None:
    """Seen on langgraphjs dev: it echoes them; RFC 8259 allows the escape."""
    assert parse_json(b'"\\ud83d lone"') == "\ud83d lone"
    for raw in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError, match="line 1"):
            parse_json(raw)


message_fields = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["assistant", "", None, 3]) | st.text(max_size=3),
        "type": st.sampled_from(["ai", "human", "AIMessageChunk", "tool", None, 3, []]),
        "content": st.text(max_size=5) | st.sampled_from([None, 3, [], [{"type": "text"}], ["a"]]),
        "id": st.sampled_from(["m1", None, 3]),
        "metadata": st.sampled_from([None, {}, {"a": 1}, 3]),
        "tool_calls": st.sampled_from([None, [], [{"a": 1}]]),
    },
)


@given(message_fields | st.sampled_from([None, 3, "text", []]))
def test_message_of_text_is_what_pydantic_makes_of_it(item: Any) -> None:
    """Differential: the short way to a message of a stream, against the long one."""
    try:
        expected = Message.model_validate(item)
    except ValidationError:
        with pytest.raises(ValidationError):
            message_from(item)
        return
    found = message_from(item)
    assert found == expected
    assert found.model_fields_set == expected.model_fields_set
    assert found.model_extra == expected.model_extra
    assert found.model_dump() == expected.model_dump()
    assert pickle.loads(pickle.dumps(found)) == expected
