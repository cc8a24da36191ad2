"""What differs between servers, as data: one pure function per operation and dialect.

An `Operation` says what to send and how to read the answer; nothing here sends anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .._models import Run, RunEvent, RunRef, RunWaitResponse
from .._sse import ServerSentEvent

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response: headers and body of a 2xx."""

    headers: Mapping[str, str]
    body: bytes
    asked: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to send. `path` is percent-encoded and relative to the base URL.

    `continues` is whether the run goes on when its caller leaves; None where only the server
    knows.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    content: bytes | None = None
    run: RunRef | None = None
    is_idempotent: bool = False
    continues: bool | None = None
    run_named_by: Callable[[Mapping[str, str]], RunRef | None]

    @property
    def asked(self) -> str:
        """The request as a message names it."""
        return f"{self.method} /{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Request, Generic[T]):
    """A call whose answer is one JSON body."""

    decode: Callable[[Answer], T]
    has_body: bool = True
    follow_up: FollowUp[T] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOperation(Request, Generic[T]):
    """A call whose answer is a stream of events, those behind `last_event_id` where it is given."""

    last_event_id: str | None = None
    decode: Callable[[ServerSentEvent], RunEvent[T]]
    follow_up: FollowUp[RunWaitResponse[T]]
    join: Callable[[RunRef, str], Request]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp(Generic[T]):
    """What may be asked of a run afterwards: how it stands, and its output."""

    status: Callable[[RunRef], Operation[Run]]
    result: Callable[[RunRef], Operation[T]]
