"""What an agent is: an async generator function over one `AgentRun`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Values:
    """The full state of the run from here on; sent as a `values` event.

    It replaces the state before it. An agent that adds to the state yields
    `Values({**run.values, "booked": True})`.
    """

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Updates:
    """What one step changed; sent as an `updates` event. The state of the run stays as it is."""

    updates: Any


@dataclass(frozen=True)
class Custom:
    """Any JSON value; sent as a `custom` event."""

    data: Any


@dataclass(frozen=True)
class Token:
    """A piece of an assistant's message; sent as a `messages` event.

    Pieces with the same `message_id` are one message: a wait returns it in full. None goes on
    with the message of the token before, or begins the first message of the run.
    """

    text: str
    message_id: str | None = None


@dataclass(frozen=True, init=False)
class Ask:
    """One or more questions to a person: the run is interrupted until they are answered.

    `answer = yield Ask(question)` receives one answer, `first, second = yield Ask(a, b)` a tuple
    of answers in the order of the questions. A question is any JSON value.
    """

    questions: tuple[Any, ...]

    def __init__(self, *questions: Any) -> None:
        if not questions:
            raise ValueError("expected at least one question, got Ask()")
        object.__setattr__(self, "questions", questions)


Step: TypeAlias = Ask | Custom | Token | Updates | Values


@dataclass
class AgentRun:
    """The run an agent works on. The server writes these fields, the agent reads them.

    `input`, `messages`, `config` and `metadata` are those of the request that created the run.
    `values` is the state: the last `Values`, with `command.update` of later updates merged in.
    `command` is the command of the last update, so that an agent finds `goto` in it; it is
    empty until the first update.

    Spec: schemas RunCreate and RunUpdate
    """

    run_id: str
    thread_id: str
    agent_id: str
    input: Any = None
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    command: dict[str, Any] = field(default_factory=dict[str, Any])


Agent: TypeAlias = Callable[[AgentRun], AsyncGenerator[Step, Any]]
