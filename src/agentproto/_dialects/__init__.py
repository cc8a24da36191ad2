"""What differs between servers, as data: one pure function per operation and dialect.

An `Operation` says what to send and how to read the answer; nothing here sends anything. A
dialect is a module with the functions of `Dialect`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import unquote

from .._models import (
    Interrupt,
    Run,
    RunCreate,
    RunEvent,
    RunRef,
    RunSearchRequest,
    RunUpdate,
    RunWaitResponse,
    told_ref,
)
from .._sse import ServerSentEvent

T = TypeVar("T")


_RUN_AT_END = re.compile(
    r"(?:/threads/(?P<thread>[^/?#]+))?/runs/(?P<run>[^/?#]+)(?:/(?:stream|wait|join))?/?$"
)


_NO_RUNS = frozenset({"wait", "stream", "search"})
"""What stands where a run id does in the URLs of other calls."""


def run_named_by(headers: Mapping[str, str]) -> RunRef | None:
    """The run that Content-Location or Location name; only the ids are read out of the URL."""
    for name in ("content-location", "location"):
        found = _RUN_AT_END.search(headers.get(name, ""))
        if found is None:
            continue
        ref = told_ref(unquote(found["run"]), unquote(found["thread"] or ""))
        if ref is not None and ref.run_id not in _NO_RUNS and "\ufffd" not in ref.run_id:
            return ref
    return None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Answer:
    """A whole response: headers and body of a 2xx, and the run that they name or that was meant."""

    headers: Mapping[str, str]
    body: bytes
    asked: str
    run: RunRef | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Request:
    """What to send. `path` is percent-encoded and relative to the base URL.

    `run` is the run that is meant, `thread_id` the thread of one that is still to be named.
    `continues` is whether the run goes on when its caller leaves; None where only the server
    knows; `is_cancelled_when_left` is whether the server then cancels it, None where the run has to
    be looked at. `shows_interrupts` is whether the answer would tell whatever the run asks.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    content: bytes | None = None
    run: RunRef | None = None
    thread_id: str | None = None
    is_idempotent: bool = False
    continues: bool | None = None
    is_cancelled_when_left: bool | None = False
    shows_interrupts: bool = True

    @property
    def asked(self) -> str:
        """The request as a message names it."""
        return f"{self.method} /{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Operation(Request, Generic[T]):
    """A call whose answer is one JSON body."""

    decode: Callable[[Answer], T]
    has_body: bool = True
    needs: Needs[Operation[T]] | None = None
    follow_up: FollowUp[T] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class StreamOperation(Request, Generic[T]):
    """A call whose answer is a stream of events, those behind `last_event_id` where it is given.

    `why_not_kept` says why the server need not have kept the events, and so cannot go on with
    them; None where the ids that it gives them prove that it did. `replay_from` is the event id
    that asks for all of them. `begins_run` is whether the first event is the first of the run.
    """

    last_event_id: str | None = None
    begins_run: bool = True
    why_not_kept: str | None = None
    replay_from: str | None = None
    decode: Callable[[ServerSentEvent], RunEvent[T]]
    needs: Needs[StreamOperation[T]] | None = None
    follow_up: FollowUp[RunWaitResponse[T]]
    join: Callable[[RunRef, str], Request]


R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Needs(Generic[R]):
    """What must be asked before: `then` makes the whole request of the answer."""

    ask: Operation[Any]
    then: Callable[[Any], R]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FollowUp(Generic[T]):
    """What may be asked of a run afterwards; None where the server cannot be asked.

    `status` is how it stands, `result` its output, and `questions` what waits for an answer, on
    servers where the answer of a call may not show it. `cancel` ends it.
    """

    status: Callable[[RunRef], Operation[Run] | None]
    result: Callable[[RunRef], Operation[T] | None]
    questions: Callable[[RunRef], Operation[list[Interrupt]] | None]
    cancel: Callable[[RunRef], Operation[None]]


class Dialect(Protocol):
    """The eleven operations. A module is one, too.

    All raise ValueError for what a server of theirs cannot be asked.
    """

    def create_and_wait_run(
        self, run_create: RunCreate, extra_body: Mapping[str, Any], values_type: type[T] | None, /
    ) -> Operation[RunWaitResponse[T]]: ...
    def create_and_stream_run(
        self, run_create: RunCreate, extra_body: Mapping[str, Any], values_type: type[T] | None, /
    ) -> StreamOperation[T]: ...
    def update_and_wait_run(
        self,
        run: RunRef,
        run_update: RunUpdate,
        extra_body: Mapping[str, Any],
        values_type: type[T] | None,
        /,
    ) -> Operation[RunWaitResponse[T]]: ...
    def update_and_stream_run(
        self,
        run: RunRef,
        run_update: RunUpdate,
        extra_body: Mapping[str, Any],
        values_type: type[T] | None,
        /,
    ) -> StreamOperation[T]: ...
    def create_run(
        self, run_create: RunCreate, extra_body: Mapping[str, Any], /
    ) -> Operation[Run]: ...
    def get_run(self, run: RunRef, /) -> Operation[Run]: ...
    def search_runs(
        self, request: RunSearchRequest, extra_body: Mapping[str, Any], /
    ) -> Operation[list[Run]]: ...
    def wait_run(
        self, run: RunRef, values_type: type[T] | None, /
    ) -> Operation[RunWaitResponse[T]]: ...
    def stream_run(
        self,
        run: RunRef,
        last_event_id: str | None,
        values_type: type[T] | None,
        /,
        *,
        are_events_kept: bool,
    ) -> StreamOperation[T]: ...
    def cancel_run(self, run: RunRef, /, *, wait: bool, action: str) -> Operation[None]: ...
    def delete_run(self, run: RunRef, /) -> Operation[None]: ...
