"""The operations as LangGraph servers have them: langgraph dev, LangGraph.js, aegra and others.

Seen on langgraph-api 0.16.7, langgraph-cli 2.0.0 (JS) and aegra-api 0.11.0: runs live under their
thread, an agent is an assistant, a resume is a new run on the thread, a wait answers with the
bare values, and neither that nor the end of a stream tells how the run stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from .._errors import ProtocolError, error_from_status
from .._events import EventReader, interrupts_in, merged_interrupts
from .._models import (
    Command,
    ErrorEvent,
    Interrupt,
    Run,
    RunCreate,
    RunEvent,
    RunRef,
    RunSearchRequest,
    RunUpdate,
    RunWaitResponse,
    check_answers,
    check_id,
    event_id_bytes,
    ids_answered,
)
from .._shapes import as_list, as_object
from .._sse import ServerSentEvent
from . import Answer, FollowUp, Needs, Operation, Request, StreamOperation
from .bodies import (
    bare,
    content_of,
    nothing,
    run_in,
    runs_in,
    segment,
    state_in,
    wait_decoder,
)

T = TypeVar("T")
R = TypeVar("R", Operation[Any], StreamOperation[Any])

REPLAY_ALL = "-1"
"""The event id behind which every event of a resumable run is."""


def create_and_wait_run(
    run_create: RunCreate, extra_body: Mapping[str, Any], values_type: type[T] | None
) -> Operation[RunWaitResponse[T]]:
    """POST /runs/wait, or /threads/{thread_id}/runs/wait"""
    fields = _create_fields(run_create, extra_body)
    return _wait(run_create.thread_id, fields, extra_body, values_type)


def create_and_stream_run(
    run_create: RunCreate, extra_body: Mapping[str, Any], values_type: type[T] | None
) -> StreamOperation[T]:
    """POST /runs/stream, or /threads/{thread_id}/runs/stream"""
    fields = _create_fields(run_create, extra_body)
    return _stream(run_create.thread_id, fields, extra_body, values_type)


def update_and_wait_run(
    run: RunRef, run_update: RunUpdate, extra_body: Mapping[str, Any], values_type: type[T] | None
) -> Operation[RunWaitResponse[T]]:
    """POST /threads/{thread_id}/runs/wait: a new run, with the command"""
    thread_id = _thread_of(run)

    def resume(told: Run | None) -> Operation[RunWaitResponse[T]]:
        fields = run_update.fields_to_send() | _of_run(told, extra_body, ("assistant_id",))
        # LangGraph.js: where one of two questions is answered, that does not show the other.
        return replace(_wait(thread_id, fields, extra_body, values_type), shows_interrupts=False)

    return _asking_first(resume, run, run_update.command, extra_body)


def update_and_stream_run(
    run: RunRef, run_update: RunUpdate, extra_body: Mapping[str, Any], values_type: type[T] | None
) -> StreamOperation[T]:
    """POST /threads/{thread_id}/runs/stream: a new run, with the command, streamed like the old"""
    thread_id = _thread_of(run)

    def resume(told: Run | None) -> StreamOperation[T]:
        fields = run_update.fields_to_send() | _of_run(told, extra_body, _KEPT_BY_A_RESUME)
        return replace(_stream(thread_id, fields, extra_body, values_type), shows_interrupts=False)

    return _asking_first(resume, run, run_update.command, extra_body)


def create_run(run_create: RunCreate, extra_body: Mapping[str, Any]) -> Operation[Run]:
    """POST /runs, or /threads/{thread_id}/runs"""
    return Operation(
        method="POST",
        path=_runs(run_create.thread_id),
        content=content_of(_create_fields(run_create, extra_body), extra_body),
        thread_id=run_create.thread_id,
        decode=partial(run_in, reshape=_run_of_schema),
    )


def get_run(run: RunRef) -> Operation[Run]:
    """GET /threads/{thread_id}/runs/{run_id}"""
    return Operation(
        method="GET",
        is_idempotent=True,
        path=_path(run),
        run=run,
        decode=partial(run_in, reshape=_run_of_schema),
    )


def search_runs(request: RunSearchRequest, extra_body: Mapping[str, Any]) -> Operation[list[Run]]:
    """GET /threads/{thread_id}/runs"""
    fields = request.fields_to_send()
    thread_id = fields.pop("thread_id", None)
    if thread_id is None:
        raise ValueError("thread_id: LangGraph servers list the runs of a thread; say which one")
    for name in ("metadata", "agent_id"):
        if name in fields:
            raise ValueError(
                f"{name}: LangGraph servers do not list runs by it; look at the {name} of each run"
            )
    _check_not_extra(extra_body, *RunSearchRequest.model_fields)
    limit, offset = fields.get("limit", 10), fields.get("offset", 0)
    # LangGraph.js takes limit for the end of the page, counted from the first run of all.
    fields["limit"] = max(limit, min(limit + offset, 1000))
    return Operation(
        method="GET",
        is_idempotent=True,
        path=_runs(thread_id),
        query={name: _in_query(value) for name, value in {**fields, **extra_body}.items()},
        thread_id=thread_id,
        decode=lambda answer: runs_in(answer, reshape=_run_of_schema)[:limit],
    )


def wait_run(run: RunRef, values_type: type[T] | None) -> Operation[RunWaitResponse[T]]:
    """GET /threads/{thread_id}/runs/{run_id}/join"""
    return Operation(
        method="GET",
        is_idempotent=True,
        path=f"{_path(run)}/join",
        run=run,
        decode=wait_decoder(values_type, _output_of_schema),
        shows_interrupts=False,  # LangGraph.js leaves them out
        follow_up=_follow_up(values_type),
    )


def stream_run(
    run: RunRef, last_event_id: str | None, values_type: type[T] | None, *, are_events_kept: bool
) -> StreamOperation[T]:
    """GET /threads/{thread_id}/runs/{run_id}/stream"""
    joined = _join(run, last_event_id)
    operation: StreamOperation[T] = StreamOperation(
        method=joined.method,
        is_idempotent=True,
        path=joined.path,
        headers=joined.headers,
        run=run,
        last_event_id=last_event_id,
        begins_run=False,
        continues=True,
        why_not_kept=None if are_events_kept else _PERHAPS_NOT_KEPT,
        replay_from=REPLAY_ALL,
        decode=partial(_event_of_run, read=EventReader[T](values_type).read, asked=joined.asked),
        follow_up=_follow_up(values_type),
        join=_join,
    )
    if last_event_id is None:
        return operation
    # A server that keeps no events goes on with what comes next, and does not tell of the gap.
    return replace(operation, needs=Needs(get_run(run), partial(_unless_not_kept, operation)))


def _in_query(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def cancel_run(run: RunRef, *, wait: bool, action: str) -> Operation[None]:
    """POST /threads/{thread_id}/runs/{run_id}/cancel"""
    return Operation(
        method="POST",
        path=f"{_path(run)}/cancel",
        query={"wait": str(int(wait)), "action": action},  # aegra takes no true and false
        run=run,
        decode=nothing,
        has_body=False,
    )


def delete_run(run: RunRef) -> Operation[None]:
    """DELETE /threads/{thread_id}/runs/{run_id}"""
    return Operation(
        method="DELETE",
        path=_path(run),
        run=run,
        decode=nothing,
        has_body=False,
    )


def _wait(
    thread_id: str | None,
    fields: Mapping[str, Any],
    extra_body: Mapping[str, Any],
    values_type: type[T] | None,
) -> Operation[RunWaitResponse[T]]:
    body = {**fields, **extra_body}
    return Operation(
        method="POST",
        path=f"{_runs(thread_id)}/wait",
        content=content_of(fields, extra_body),
        thread_id=thread_id,
        continues=body.get("on_disconnect") == "continue",
        is_cancelled_when_left=body.get("on_disconnect") == "cancel",
        decode=wait_decoder(values_type, _output_of_schema),
        shows_interrupts=_shows_interrupts(body.get("stream_mode")),
        follow_up=_follow_up(values_type),
    )


def _stream(
    thread_id: str | None,
    fields: Mapping[str, Any],
    extra_body: Mapping[str, Any],
    values_type: type[T] | None,
) -> StreamOperation[T]:
    on_disconnect = {**fields, **extra_body}.get("on_disconnect")
    return StreamOperation(
        method="POST",
        path=f"{_runs(thread_id)}/stream",
        content=content_of(fields, extra_body),
        thread_id=thread_id,
        continues=on_disconnect == "continue",
        is_cancelled_when_left=on_disconnect == "cancel",
        why_not_kept=None if extra_body.get("stream_resumable") is True else _NOT_KEPT,
        replay_from=REPLAY_ALL,
        decode=partial(_event_of_run, read=EventReader[T](values_type).read, asked="GET the run"),
        follow_up=_follow_up(values_type),
        join=_join,
    )


_NOT_KEPT = (
    "a LangGraph server keeps the events of a run only where it is created with "
    "extra_body={'stream_resumable': True}"
)
_PERHAPS_NOT_KEPT = (
    "whether this run was created with stream_resumable is not known here; if it was, give "
    "rejoin=True to stream_run"
)


def _join(run: RunRef, last_event_id: str | None) -> Request:
    headers = {} if last_event_id is None else {"last-event-id": event_id_bytes(last_event_id)}
    return Request(
        method="GET",
        is_idempotent=True,
        path=f"{_path(run)}/stream",
        headers=headers,
        run=run,
    )


def _unless_not_kept(operation: StreamOperation[T], told: Run) -> StreamOperation[T]:
    if _options_of(told).get("resumable") is False:
        raise ValueError(
            f"last_event_id: run {told.run_id} was created without stream_resumable=True, so there "
            "are no kept events to go on with; without last_event_id its stream is joined as it is"
        )
    return operation


def _asking_first(
    resume: Callable[[Run | None], R],
    run: RunRef,
    command: Command | None,
    extra_body: Mapping[str, Any],
) -> R:
    """The resume, once it is known of which assistant it is and that what it answers is asked."""
    _check_not_extra(extra_body, "command")
    whole = resume(None)
    if "assistant_id" not in extra_body:
        whole = replace(whole, needs=Needs(get_run(run), resume))
    answered = ids_answered(None if command is None else command.resume)
    if not answered:
        return whole

    def checked(pending: list[Interrupt]) -> R:
        check_answers(answered, pending)
        return whole

    return replace(whole, needs=Needs(_questions(run), checked))


_KEPT_BY_A_RESUME = ("assistant_id", "stream_mode", "stream_subgraphs")


def _of_run(
    told: Run | None, extra_body: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Any]:
    """What a resume takes over from the run it goes on with, unless the caller says otherwise."""
    if told is None:
        return {}
    if told.agent_id is None:
        raise ProtocolError(
            f"the server does not say which assistant run {told.run_id} is of; "
            "give it: extra_body={'assistant_id': ...}"
        )
    known = {
        "assistant_id": told.agent_id,
        "stream_mode": told.stream_mode,
        "stream_subgraphs": _options_of(told).get("subgraphs") or None,
    }
    return {n: known[n] for n in names if n not in extra_body and known[n] is not None}


def _options_of(run: Run) -> dict[str, Any]:
    return as_object((run.model_extra or {}).get("kwargs")) or {}


def _create_fields(run_create: RunCreate, extra_body: Mapping[str, Any]) -> dict[str, Any]:
    _check_not_extra(extra_body, "thread_id", "agent_id", "messages")
    fields = run_create.fields_to_send()
    fields.pop("thread_id", None)
    agent_id, messages = fields.pop("agent_id", None), fields.pop("messages", None)
    if agent_id is not None:
        fields["assistant_id"] = agent_id
    elif "assistant_id" not in extra_body:
        raise ValueError(
            "agent_id: LangGraph servers have no default agent; give the name of a graph or the "
            "id of an assistant"
        )
    return fields if messages is None else {**fields, "input": _with_messages(fields, messages)}


def _check_not_extra(extra_body: Mapping[str, Any], *names: str) -> None:
    # These servers have no such fields: sent as they are, they would mean nothing.
    for name in names:
        if name in extra_body:
            raise ValueError(f"extra_body: {name!r} is a field of the call; give it as {name}=")


def _with_messages(fields: Mapping[str, Any], messages: list[Any]) -> dict[str, Any]:
    # These servers ignore a field `messages`: there, the conversation is part of the input.
    given = fields.get("input")
    state = {} if given is None else as_object(given)
    if state is None or "messages" in state:
        raise ValueError("messages: a LangGraph server takes them in input['messages']; give one")
    return {**state, "messages": messages}


def _runs(thread_id: str | None) -> str:
    if thread_id is None:
        return "runs"
    check_id("thread_id", thread_id)
    return f"threads/{segment(thread_id)}/runs"


def _thread_of(run: RunRef) -> str:
    if run.thread_id is None:
        raise ValueError(
            f"run: LangGraph servers keep a run under its thread, and that of {run.run_id} is not "
            "known: give RunRef(run_id, thread_id), or what knows it, such as stream.run or a "
            "response; a run that is to be found again is created with thread_id="
        )
    return run.thread_id


def _path(run: RunRef) -> str:
    return f"{_runs(_thread_of(run))}/{segment(run.run_id)}"


def _shows_interrupts(stream_mode: object) -> bool:
    # A wait is a stream of which the last values are kept: without values it may show nothing.
    modes = as_list(stream_mode) or [stream_mode or "values"]
    return "values" in modes


def _follow_up(values_type: type[T] | None) -> FollowUp[RunWaitResponse[T]]:
    # The thread of a stateless run is told by few servers, and gone when the run is over.
    return FollowUp(
        status=_where_thread_is_known(get_run),
        result=_where_thread_is_known(partial(wait_run, values_type=values_type)),
        questions=_where_thread_is_known(_questions),
        cancel=partial(cancel_run, wait=False, action="interrupt"),
    )


def _where_thread_is_known(
    ask: Callable[[RunRef], Operation[T]],
) -> Callable[[RunRef], Operation[T] | None]:
    return lambda run: None if run.thread_id is None else ask(run)


def _questions(run: RunRef) -> Operation[list[Interrupt]]:
    return Operation(
        method="GET",
        is_idempotent=True,
        path=f"threads/{segment(_thread_of(run))}/state",
        run=run,
        decode=_questions_in,
    )


def _questions_in(answer: Answer) -> list[Interrupt]:
    state = state_in(answer)
    tasks = [as_object(task) or {} for task in as_list(state.get("tasks")) or ()]
    # A task that has its result was answered, and waits for the others.
    parts = [state, *(task for task in tasks if task.get("result") is None)]
    return merged_interrupts(*(interrupts_in(part.get("interrupts") or []) for part in parts))


def _run_of_schema(data: dict[str, Any]) -> dict[str, Any]:
    options = as_object(data.get("kwargs")) or {}
    modes, webhook = options.get("stream_mode"), options.get("webhook")
    modes_listed = as_list(modes)
    found = {
        "input": options.get("input"),
        "config": as_object(options.get("config")),
        "webhook": webhook if isinstance(webhook, str) else None,
        "stream_mode": modes
        if isinstance(modes, str)
        else modes_listed and list(map(str, modes_listed)),
        "agent_id": data.get("assistant_id"),
    }
    return {**{name: value for name, value in found.items() if value is not None}, **data}


_FIELDS_OF_SCHEMA = frozenset(RunWaitResponse.model_fields)


def _output_of_schema(data: dict[str, Any]) -> dict[str, Any]:
    if "__error__" in data:
        return {"run": {"status": "error", "error": _unwrapped(data["__error__"])}}
    # A state of its own may have a key `values`, too.
    is_wrapped = data.keys() <= _FIELDS_OF_SCHEMA and isinstance(data.get("values"), dict)
    return data if is_wrapped else bare(data)


def _unwrapped(error: Any) -> Any:
    """What went wrong, as LangGraph.js has it as well: as JSON in the message."""
    message = (as_object(error) or {}).get("message")
    try:
        inner = as_object(json.loads(message if isinstance(message, str) else ""))
    except (ValueError, RecursionError):
        return error
    return inner or error


def _event_of_run(
    sse: ServerSentEvent, *, read: Callable[[ServerSentEvent], RunEvent[T]], asked: str
) -> RunEvent[T]:
    """An event of a stream; to a join, that the run is not there is told by one, after a 200."""
    event = read(sse)
    if isinstance(event, ErrorEvent) and str(event.error) in _NO_SUCH_RUN:
        raise error_from_status(404, {}, sse.data, asked=asked)
    return event


_NO_SUCH_RUN = frozenset({"HTTPException: 404: Run not found", "Run not found"})
