"""`AsyncRunsClient` and `RunStream`: name an operation, hand it over to the session."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import cache
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
    overload,
)

import httpx
from pydantic import BaseModel, ValidationError

from ._dialects import Dialect
from ._events import first_problem
from ._io import AsyncHTTPClient, AuthTypes, late_imports
from ._models import (
    Command,
    Interrupt,
    Run,
    RunCreate,
    RunCreateFields,
    RunEvent,
    RunLike,
    RunRef,
    RunSearchFields,
    RunSearchRequest,
    RunUpdate,
    RunUpdateFields,
    RunWaitResponse,
    check_answers,
    ids_answered,
    run_ref,
)
from ._retry import NO_RETRIES, RetryPolicy
from ._session import CallSettings, Session
from ._settings import (
    MAX_BYTES,
    Timeout,
    checked_headers,
    checked_limit,
    split_base_url,
    timeout_from,
)
from ._shapes import as_object
from ._sse import ServerSentEvent
from ._stream import RAW, Ended, EventStream
from ._version import __version__

if TYPE_CHECKING:
    import httpx_sse

T = TypeVar("T")
M = TypeVar("M", RunCreate, RunUpdate, RunSearchRequest)

DialectName: TypeAlias = Literal["agent-protocol", "langgraph"]
"""How a server speaks: by the schema, or as LangGraph servers do."""

PAGE_SIZE = 100
"""Runs that `iter_runs` asks for at a time."""


class RequestOptions(TypedDict, total=False):
    """Options of every call.

    `timeout`: the limits of this call, in the place of the client's.
    `retry`: the policy of this call, in the place of the client's; None repeats nothing.
    `headers`: sent beside the client's own, which they replace where the names are equal.
    """

    timeout: Timeout | float | None
    retry: RetryPolicy | None
    headers: Mapping[str, str] | None


class RunOptions(RequestOptions, total=False):
    """Options of a call that ends with a run.

    `raise_on_failure`: whether a failed run raises `RunFailedError`.
    """

    raise_on_failure: bool


class CallOptions(RunOptions, total=False):
    """Options of a call that has a body.

    `extra_body`: fields that a server adds to the protocol, sent as they are.
    """

    extra_body: Mapping[str, Any] | None


class StreamOptions(TypedDict, total=False):
    """Options of a call that streams.

    `rejoin`: whether a cut stream goes on where nothing can be lost or doubled.
    """

    rejoin: bool


class JoinOptions(RunOptions, StreamOptions, total=False):
    """What joining a stream takes as keywords."""


class CreateArguments(RunCreateFields, CallOptions, total=False):
    """What a create takes as keywords: the fields of `RunCreate`, and `CallOptions`."""


class CreateStreamArguments(CreateArguments, StreamOptions, total=False):
    """What a streaming create takes as keywords: `CreateArguments` and `StreamOptions`."""


class UpdateArguments(RunUpdateFields, CallOptions, total=False):
    """What an update takes as keywords: the fields of `RunUpdate`, and `CallOptions`."""


class UpdateStreamArguments(UpdateArguments, StreamOptions, total=False):
    """What a streaming update takes as keywords: `UpdateArguments` and `StreamOptions`."""


class SearchArguments(RunSearchFields, CallOptions, total=False):
    """What a search takes as keywords: the fields of `RunSearchRequest`, and `CallOptions`."""


class StreamState(Generic[T]):
    """What a stream of either client knows of itself."""

    def __init__(self, stream: EventStream[T]) -> None:
        self.core = stream

    def __repr__(self) -> str:
        return f"<{type(self).__name__} run={self.run} ended={self.ended!r}>"

    def __del__(self) -> None:
        self.core.abandon()
        if self.core.holds_connection:
            told = f"{self!r} was not closed; use it in a with block"
            warnings.warn(told, ResourceWarning, 2, self)

    @property
    def run(self) -> RunRef | None:
        """Which run this is, as soon as a header or the first event told it."""
        return self.core.run

    @property
    def run_id(self) -> str | None:
        """Id of the run, as soon as it is known."""
        return None if self.run is None else self.run.run_id

    @property
    def thread_id(self) -> str | None:
        """Id of the run's thread, as soon as it is known."""
        return None if self.run is None else self.run.thread_id

    @property
    def last_event_id(self) -> str | None:
        """Id of the last event that was handed over, or that the stream goes on behind.

        None where the server gives none.
        """
        return self.core.last_event_id

    @property
    def interrupts(self) -> list[Interrupt]:
        """What the run asks a person, as far as the events have told it."""
        return self.core.interrupts

    @property
    def response(self) -> httpx.Response:
        """The response: status and headers; its body is this stream.

        Raises:
            RuntimeError: the stream has not started.
        """
        if self.core.exchange is None:
            raise RuntimeError("the stream has not started: enter it, or take the first event")
        return self.core.exchange.response

    @property
    def ended(self) -> Ended | None:
        """How the stream ended; None while it goes on.

        `end`: the server said so. `error`: the run failed. `status`: the connection ended in
        order, and the server says that the run has ended. `eof`: the same, and the server cannot
        be asked. `stopped`: it has nothing more to send (204). `closed`: by the caller. `cut`: by
        a failure.
        """
        return self.core.ended


class RunStream(StreamState[T]):
    """The events of a run: an async iterator and an async context manager in one.

    The request goes out on `async with` or on the first event. Leaving the block, finishing,
    failing or being cancelled closes the connection at once. A stream is consumed once, by one of
    `async for`, `text()` and `aiter_sse()`; `final()` may follow any of them.
    """

    async def __aenter__(self) -> Self:
        await self.core.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        self.core.claim("async for")
        return self

    async def __anext__(self) -> RunEvent[T]:
        while (event := self.core.take()) is None:
            if not await self.core.advance():
                raise StopAsyncIteration
        return event

    def aiter_sse(self) -> AsyncIterator[httpx_sse.ServerSentEvent]:
        """The same stream as raw `httpx_sse.ServerSentEvent`s: nothing is decoded.

        Yields `error` and `end` like any other, and never raises `RunFailedError`.

        Raises:
            AgentProtoError: the stream could not be opened, or was cut.
        """
        self.core.claim(RAW)
        return self._blocks()

    async def _blocks(self) -> AsyncIterator[httpx_sse.ServerSentEvent]:
        while (sse := await self.core.next_raw()) is not None:
            yield as_httpx_sse(sse)

    def text(self) -> AsyncIterator[str]:
        """Only what the assistant says, piece by piece, in whichever form the server sends it.

        Nothing, where the `stream_mode` of the run has no messages.

        Raises:
            AgentProtoError: as iteration over the events does.
        """
        self.core.claim("text()")
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[str]:
        while await self.core.next() is not None:
            if self.core.new_text:
                yield self.core.new_text

    async def final(self) -> RunWaitResponse[T]:
        """Drain the stream, then tell the output of the run.

        It comes from the last values and the messages that were streamed. Where no values were,
        the server is asked for them (`GET /runs/{run_id}/wait`); a server without that call
        leaves `values` None.

        Raises:
            RunFailedError: the run failed.
            AgentProtoError: as iteration over the events does.
            RuntimeError: the stream was closed before its end.
        """
        return await self.core.final()

    async def aclose(self) -> None:
        """Stop now and close the connection. More than once is fine."""
        await self.core.close()


def as_httpx_sse(sse: ServerSentEvent) -> httpx_sse.ServerSentEvent:
    """A block as httpx-sse has it."""
    return _class_of_httpx_sse()(sse.event, sse.text, sse.id, sse.retry)


@cache
def _class_of_httpx_sse() -> type[httpx_sse.ServerSentEvent]:
    with late_imports:
        import httpx_sse  # for few programs, and a thirtieth of what importing this package takes

    return httpx_sse.ServerSentEvent


class RunCalls:
    """The calls of the Runs API over any port."""

    def __init__(self, session: Session, settings: CallSettings, dialect: str) -> None:
        self._session = session
        self._settings = settings
        with late_imports:
            self._dialect = _dialect_named(dialect)

    @overload
    async def create_and_wait_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: None = None,
        **arguments: Unpack[CreateArguments],
    ) -> RunWaitResponse[dict[str, Any]]: ...
    @overload
    async def create_and_wait_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: type[T],
        **arguments: Unpack[CreateArguments],
    ) -> RunWaitResponse[T]: ...
    async def create_and_wait_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: type[Any] | None = None,
        **arguments: Unpack[CreateArguments],
    ) -> RunWaitResponse[Any]:
        """Create a run, wait until it ends and return its final output.

        Takes a `RunCreate`, or its fields as keywords: `agent_id`, `thread_id`, `input` (any
        JSON), `messages`, `metadata`, `config`, `webhook`, `stream_mode`, `on_completion`,
        `on_disconnect`, `if_not_exists`. Only what is set is sent.

        The connection stays open for as long as the run takes; `timeout.idle` (seconds without a
        byte, 300 by default) is the limit that matters. An interrupted run is no failure: see
        `interrupts` of the response, and go on with `update_and_wait_run`.

        Options: `values_type` (a pydantic model, dataclass or TypedDict for `values`),
        `extra_body`, `timeout` (seconds, or a `Timeout`), `retry`, `raise_on_failure`, `headers`.

        Raises:
            RunFailedError: the run ended with status `error` or `timeout`.
            StatusError: the server refused, by status: `NotFoundError` (404: no such agent or
                thread), `ConflictError` (409), `UnprocessableRequestError` (422), and others.
            TransportError: nothing usable came back; the run may have been created.
            ProtocolError: the answer is not of the protocol.
            TypeError, ValueError: an argument is wrong; nothing was sent.

        Spec: POST /runs/wait
        """
        fields, extra, settings = self._split(arguments)
        body = _one_of(RunCreate, run_create, fields)
        operation = self._dialect.create_and_wait_run(body, extra, values_type)
        return await self._session.wait(operation, settings)

    @overload
    def create_and_stream_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: None = None,
        **arguments: Unpack[CreateStreamArguments],
    ) -> RunStream[dict[str, Any]]: ...
    @overload
    def create_and_stream_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: type[T],
        **arguments: Unpack[CreateStreamArguments],
    ) -> RunStream[T]: ...
    def create_and_stream_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: type[Any] | None = None,
        **arguments: Unpack[CreateStreamArguments],
    ) -> RunStream[Any]:
        """Create a run and stream its events.

        Takes what `create_and_wait_run` takes. `stream_mode` says which events are wanted:
        `values`, `messages`, `updates`, `custom`, or a list of them.

        Nothing is sent until the stream is entered or iterated. A run whose stream is left is
        cancelled by the server, unless it was created with `on_disconnect="continue"`; then a
        stream that is cut goes on by itself, if the server gives its events ids (`rejoin=False`
        switches that off). LangGraph servers let a run go on, unless it was created with
        `on_disconnect="cancel"`, and keep events only with `stream_resumable`.

        Raises:
            TypeError, ValueError: an argument is wrong; nothing was sent.

        Entering and iterating raise:
            StatusError, TransportError, ProtocolError: as `create_and_wait_run`.
            StreamInterruptedError: the stream was cut, and could not go on.
            RunFailedError: the run failed, told by an `error` event or by `end`.

        Spec: POST /runs/stream
        """
        fields, extra, settings = self._split(arguments)
        body = _one_of(RunCreate, run_create, fields)
        operation = self._dialect.create_and_stream_run(body, extra, values_type)
        return RunStream(EventStream(self._session, operation, settings))

    @overload
    async def update_and_wait_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: None = None,
        **arguments: Unpack[UpdateArguments],
    ) -> RunWaitResponse[dict[str, Any]]: ...
    @overload
    async def update_and_wait_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: type[T],
        **arguments: Unpack[UpdateArguments],
    ) -> RunWaitResponse[T]: ...
    async def update_and_wait_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: type[Any] | None = None,
        **arguments: Unpack[UpdateArguments],
    ) -> RunWaitResponse[Any]:
        """Update (resume) a run, wait until it ends and return its final output.

        `run` is a run id, or what knows one: a stream, a `RunRef` such as `stream.run`, a `Run`, a
        `RunWaitResponse`. Takes a `RunUpdate`, or its field as keyword:
        `command=Command(resume=...)`. A resume is never sent twice by itself. LangGraph servers
        make it a new run, which is the one that comes back.

        Options and errors are those of `create_and_wait_run`; `NotFoundError` is an unknown run,
        `ConflictError` one that waits for no answer.

        Spec: POST /runs/{run_id}/wait
        """
        fields, extra, settings = self._split(arguments)
        ref, body = run_ref(run), _one_of(RunUpdate, run_update, fields)
        _check_answers(run, body)
        operation = self._dialect.update_and_wait_run(ref, body, extra, values_type)
        return await self._session.wait(operation, settings)

    @overload
    def update_and_stream_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: None = None,
        **arguments: Unpack[UpdateStreamArguments],
    ) -> RunStream[dict[str, Any]]: ...
    @overload
    def update_and_stream_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: type[T],
        **arguments: Unpack[UpdateStreamArguments],
    ) -> RunStream[T]: ...
    def update_and_stream_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: type[Any] | None = None,
        **arguments: Unpack[UpdateStreamArguments],
    ) -> RunStream[Any]:
        """Update (resume) a run and stream its events from there on.

        Takes what `update_and_wait_run` takes; the stream is that of `create_and_stream_run`.

        Spec: POST /runs/{run_id}/stream
        """
        fields, extra, settings = self._split(arguments)
        ref, body = run_ref(run), _one_of(RunUpdate, run_update, fields)
        _check_answers(run, body)
        operation = self._dialect.update_and_stream_run(ref, body, extra, values_type)
        return RunStream(EventStream(self._session, operation, settings))

    async def create_run(
        self, run_create: RunCreate | None = None, /, **arguments: Unpack[CreateArguments]
    ) -> Run:
        """Create a run in the background and return it at once.

        Takes what `create_and_wait_run` takes. The run goes on without a connection: wait for it
        with `wait_run`, follow it with `stream_run`, stop it with `cancel_run`.

        Raises:
            StatusError, TransportError, ProtocolError, TypeError, ValueError: as
                `create_and_wait_run`.

        Spec: POST /runs
        """
        fields, extra, settings = self._split(arguments)
        body = _one_of(RunCreate, run_create, fields)
        return await self._session.call(self._dialect.create_run(body, extra), settings)

    async def get_run(self, run: RunLike, **options: Unpack[RequestOptions]) -> Run:
        """Get a run as it stands.

        Raises:
            NotFoundError: the server has no such run (404).
            StatusError, TransportError, ProtocolError: as `create_and_wait_run`.

        Spec: GET /runs/{run_id}
        """
        settings = self._settings_of(options)
        return await self._session.call(self._dialect.get_run(run_ref(run)), settings)

    async def search_runs(
        self, request: RunSearchRequest | None = None, /, **arguments: Unpack[SearchArguments]
    ) -> list[Run]:
        """List runs: one page of those that match every filter.

        Takes a `RunSearchRequest`, or its fields as keywords: `metadata`, `status`, `thread_id`,
        `agent_id`, `limit` (1 to 1000, the server's default is 10) and `offset`.

        Raises:
            StatusError, TransportError, ProtocolError, TypeError, ValueError: as
                `create_and_wait_run`.

        Spec: POST /runs/search
        """
        fields, extra, settings = self._split(arguments)
        body = _one_of(RunSearchRequest, request, fields)
        return await self._session.call(self._dialect.search_runs(body, extra), settings)

    def iter_runs(
        self, request: RunSearchRequest | None = None, /, **arguments: Unpack[SearchArguments]
    ) -> AsyncIterator[Run]:
        """Iterate over all runs that match, page after page.

        Takes what `search_runs` takes; `limit` is the size of a page (100), `offset` where to
        begin. A run that moves to a later page because others were created meanwhile is given
        once.

        Raises:
            StatusError, TransportError, ProtocolError, TypeError, ValueError: as `search_runs`.

        Spec: POST /runs/search
        """
        fields, extra, settings = self._split(arguments)
        body = _one_of(RunSearchRequest, request, fields)
        self._dialect.search_runs(body, extra)  # what is wrong is told before the first page
        return self._pages(body, extra, settings)

    async def _pages(
        self, body: RunSearchRequest, extra: Mapping[str, Any], settings: CallSettings
    ) -> AsyncIterator[Run]:
        size, offset = body.limit or PAGE_SIZE, body.offset or 0
        seen: set[str | None] = set()
        page: list[Run] | None = None
        while page is None or len(page) == size:
            asked = body.model_copy(update={"limit": size, "offset": offset})
            page = await self._session.call(self._dialect.search_runs(asked, extra), settings)
            new = [run for run in page if run.run_id is None or run.run_id not in seen]
            for run in new:
                seen.add(run.run_id)
                yield run
            if not new:  # a server that does not know offset would give its first page for ever
                break
            offset += len(page)

    @overload
    async def wait_run(
        self, run: RunLike, *, values_type: None = None, **options: Unpack[RunOptions]
    ) -> RunWaitResponse[dict[str, Any]]: ...
    @overload
    async def wait_run(
        self, run: RunLike, *, values_type: type[T], **options: Unpack[RunOptions]
    ) -> RunWaitResponse[T]: ...
    async def wait_run(
        self,
        run: RunLike,
        *,
        values_type: type[Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> RunWaitResponse[Any]:
        """Wait until a run ends and return its final output; at once if it already ended.

        The connection stays open for as long as the run takes; `timeout.idle` (seconds without a
        byte, 300 by default) is the limit that matters.

        Raises:
            NotFoundError: the server has no such run (404).
            RunFailedError: the run ended with status `error` or `timeout`.
            StatusError, TransportError, ProtocolError: as `create_and_wait_run`.

        Spec: GET /runs/{run_id}/wait
        """
        settings = self._settings_of(options)
        operation = self._dialect.wait_run(run_ref(run), values_type)
        return await self._session.wait(operation, settings)

    @overload
    def stream_run(
        self,
        run: RunLike,
        *,
        last_event_id: str | None = None,
        values_type: None = None,
        **options: Unpack[JoinOptions],
    ) -> RunStream[dict[str, Any]]: ...
    @overload
    def stream_run(
        self,
        run: RunLike,
        *,
        last_event_id: str | None = None,
        values_type: type[T],
        **options: Unpack[JoinOptions],
    ) -> RunStream[T]: ...
    def stream_run(
        self,
        run: RunLike,
        *,
        last_event_id: str | None = None,
        values_type: type[Any] | None = None,
        **options: Unpack[JoinOptions],
    ) -> RunStream[Any]:
        """Join the stream of a run.

        `last_event_id` is the id of the last event that was handled, from this process or another
        one: a server that keeps events goes on behind it. Without it, what a server sends of the
        past is up to the server; the protocol asks for new output only. Leaving the stream does
        not cancel the run. On LangGraph servers `rejoin=True` says that the run was created with
        `stream_resumable`, so that a cut stream can go on.

        Raises:
            TypeError, ValueError: an argument is wrong; nothing was sent.

        Entering and iterating raise what those of `create_and_stream_run` do.

        Spec: GET /runs/{run_id}/stream
        """
        settings = self._settings_of(options)
        operation = self._dialect.stream_run(
            run_ref(run), last_event_id, values_type, are_events_kept=options.get("rejoin", False)
        )
        return RunStream(EventStream(self._session, operation, settings))

    async def cancel_run(
        self,
        run: RunLike,
        *,
        wait: bool = False,
        action: Literal["interrupt", "rollback"] = "interrupt",
        **options: Unpack[RequestOptions],
    ) -> None:
        """Cancel a run, so that it stops and costs no more.

        `wait` returns only when the run has stopped; `action` is what becomes of it: `interrupt`
        keeps the run and what it did so far, `rollback` deletes both.

        Raises:
            NotFoundError: the server has no such run (404).
            StatusError, TransportError: as `create_and_wait_run`.

        Spec: POST /runs/{run_id}/cancel
        """
        settings = self._settings_of(options)
        if action not in ("interrupt", "rollback"):
            raise ValueError(f"action: expected 'interrupt' or 'rollback', got {action!r}")
        operation = self._dialect.cancel_run(run_ref(run), wait=bool(wait), action=action)
        return await self._session.call(operation, settings)

    async def delete_run(self, run: RunLike, **options: Unpack[RequestOptions]) -> None:
        """Delete a run.

        Raises:
            NotFoundError: the server has no such run (404).
            StatusError, TransportError: as `create_and_wait_run`.

        Spec: DELETE /runs/{run_id}
        """
        settings = self._settings_of(options)
        return await self._session.call(self._dialect.delete_run(run_ref(run)), settings)

    def _settings_of(self, options: Mapping[str, Any]) -> CallSettings:
        fields, _, settings = self._split(options)
        if fields or "extra_body" in options:
            name = min(fields) if fields else "extra_body"
            raise TypeError(
                f"unexpected argument {name!r}; beside what its help says this call takes "
                f"{', '.join(f'{option}=' for option in sorted(RequestOptions.__optional_keys__))}"
            )
        return settings

    def _split(
        self, arguments: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Mapping[str, Any], CallSettings]:
        fields = dict(arguments)
        options = {name: fields.pop(name) for name in _OPTIONS & fields.keys()}
        return fields, _mapping(options.get("extra_body")), _with_options(self._settings, options)


def _mapping(extra_body: object) -> Mapping[str, Any]:
    if extra_body is None or isinstance(extra_body, Mapping):
        return cast("Mapping[str, Any]", extra_body or {})
    raise TypeError(f"extra_body: expected a mapping, got {type(extra_body).__name__}")


_OPTIONS = CallOptions.__optional_keys__ | StreamOptions.__optional_keys__


def _with_options(settings: CallSettings, options: Mapping[str, Any]) -> CallSettings:
    if not options:
        return settings
    if options.get("headers"):
        both = {**settings.headers, **checked_headers(options["headers"])}
        settings = replace(settings, headers=both)
    if "timeout" in options:
        settings = replace(settings, timeout=timeout_from(options["timeout"]))
    if "retry" in options:
        settings = replace(settings, retry=policy_from(options["retry"]))
    plain = {name: options[name] for name in ("rejoin", "raise_on_failure") if name in options}
    return replace(settings, **plain)


def _dialect_named(name: str) -> Dialect:
    match name:
        case "agent-protocol":
            from ._dialects import agent_protocol

            return agent_protocol
        case "langgraph":
            from ._dialects import langgraph

            return langgraph
        case _:
            names = " or ".join(map(repr, get_args(DialectName)))
            raise ValueError(f"dialect: expected {names}, got {name!r}")


def _check_answers(run: RunLike, update: RunUpdate) -> None:
    """Refuse answers to what the run, as far as it is known here, does not ask."""
    pending = run.interrupts if isinstance(run, RunWaitResponse | StreamState) else []
    if update.command is None or not pending:
        return
    names = frozenset(as_object(update.command.resume) or ())
    is_by_id = not names.isdisjoint(interrupt.id for interrupt in pending)
    check_answers(names if is_by_id else ids_answered(update.command.resume), pending)


def _one_of(model: type[M], given: M | None, fields: Mapping[str, Any]) -> M:
    if given is None:
        _check_names(model, fields)
        try:
            return model.model_validate(fields)
        except ValidationError as exc:
            raise ValueError(f"{model.__name__}: {first_problem(exc)}") from exc
    _check_kind(model, given)
    if fields:
        raise TypeError(
            f"got a {model.__name__} and the field {min(fields)!r}, too: "
            "give the model, or its fields as keywords"
        )
    return given


def _check_kind(model: type[object], given: object) -> None:
    if not isinstance(given, model):
        raise TypeError(
            f"expected {model.__name__} or its fields as keywords, got {type(given).__name__}"
        )


def _check_names(model: type[BaseModel], fields: Mapping[str, Any]) -> None:
    known = model.model_fields.keys()
    for name in fields.keys() - known:
        if model is RunUpdate and name in Command.model_fields:
            raise TypeError(f"{name!r} is part of the command: command=Command({name}=...)")
        with late_imports:
            import difflib  # only a mistake needs it

        close = difflib.get_close_matches(name, {*known, *_OPTIONS, "values_type"} - {name}, 1)
        if name in ("run_create", "run_update", "run"):
            meant = "give it as it is, without its name"
        elif close:
            meant = f"did you mean {close[0]!r}?"
        else:
            meant = "extra_body= takes what a server adds"
        raise TypeError(f"{model.__name__} has no field {name!r}; {meant}")


def call_settings(
    headers: Mapping[str, str],
    *,
    timeout: Timeout | float | None,
    retry: RetryPolicy | None,
    rejoin: bool,
    raise_on_failure: bool,
    max_event_bytes: int,
    max_response_bytes: int,
) -> CallSettings:
    """The settings that every call of a client begins with."""
    return CallSettings(
        headers={"user-agent": f"agentproto/{__version__}", **headers},
        timeout=timeout_from(timeout),
        retry=policy_from(retry),
        rejoin=rejoin,
        raise_on_failure=raise_on_failure,
        max_event_bytes=checked_limit("max_event_bytes", max_event_bytes),
        max_response_bytes=checked_limit("max_response_bytes", max_response_bytes),
    )


def policy_from(retry: RetryPolicy | None) -> RetryPolicy:
    """The policy meant: None repeats nothing."""
    if retry is None:
        return NO_RETRIES
    if not isinstance(cast("object", retry), RetryPolicy):
        raise TypeError(f"retry: expected a RetryPolicy or None, got {type(retry).__name__}")
    return retry


class AsyncRunsClient(RunCalls):
    """Client of the Runs API of one server.

    Works with and without `async with`; `aclose()` closes its connections.

    Args:
        base_url: root of the API, with a path where it has one. Credentials in it become `auth`.
        headers: sent with every request.
        auth: what httpx takes: a pair of user and password, an `httpx.Auth`, or a callable.
        dialect: how the server speaks: `agent-protocol`, or `langgraph` for langgraph dev,
            LangGraph Platform, LangGraph.js, aegra and others.
        timeout: limits in seconds; a number is the limit of silence, None is no limit.
        retry: how often and how fast a call is repeated where that is safe; None repeats nothing.
        rejoin: whether a cut stream goes on where nothing can be lost or doubled.
        raise_on_failure: whether a run that ends in `error` or `timeout` raises
            `RunFailedError`, or is returned like any other.
        max_event_bytes: bytes that the data of one event may have, 64 MiB by default.
        max_response_bytes: bytes that any other answer may have, 64 MiB by default. Both count
            after decompression; more is a `TooLargeError`.
        transport: `aiohttp` for connections that take a fraction of the time where streams are
            many (needs the extra of that name), or an httpx transport in the network's place.
        http_client: the caller's own client, for TLS, proxies and pool limits: it is used and
            never closed. Its `base_url` is ignored; its headers and auth apply unless ours are
            given.

    Raises:
        TypeError, ValueError: an argument is wrong.
        ImportError: `transport="aiohttp"` without the extra.
    """

    def __init__(
        self,
        base_url: str = "http://localhost",
        *,
        headers: Mapping[str, str] | None = None,
        auth: AuthTypes | None = None,
        dialect: DialectName = "agent-protocol",
        timeout: Timeout | float | None = Timeout(),
        retry: RetryPolicy | None = RetryPolicy(),
        rejoin: bool = True,
        raise_on_failure: bool = True,
        max_event_bytes: int = MAX_BYTES,
        max_response_bytes: int = MAX_BYTES,
        transport: httpx.AsyncBaseTransport | Literal["aiohttp"] | None = None,
        http_client: AsyncHTTPClient | None = None,
    ) -> None:
        url, credentials = split_base_url(base_url)
        with late_imports:
            # Not with this module: anyio is a fifth of what that takes, and not of every program.
            from ._io.asynchronous import async_io
            from ._io.clients import checked_auth, headers_of

            auth = checked_auth(credentials if auth is None else auth, http_client)
            io = async_io(transport, http_client, auth)
        settings = call_settings(
            {**headers_of(http_client), **checked_headers(headers)},
            timeout=timeout,
            retry=retry,
            rejoin=rejoin,
            raise_on_failure=raise_on_failure,
            max_event_bytes=max_event_bytes,
            max_response_bytes=max_response_bytes,
        )
        super().__init__(Session(io, url), settings, dialect)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._session.base_url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. More than once is fine; a client of the caller's stays open."""
        await self._session.close()
