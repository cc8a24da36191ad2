"""The operations as the Agent Protocol has them: openapi revision 47dcc84, `/runs`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from .._events import EventReader
from .._models import (
    Run,
    RunCreate,
    RunRef,
    RunSearchRequest,
    RunUpdate,
    RunWaitResponse,
    event_id_bytes,
)
from . import FollowUp, Operation, Request, StreamOperation
from .bodies import content_of, nothing, run_in, runs_in, segment, wait_decoder

T = TypeVar("T")


def create_and_wait_run(
    run_create: RunCreate, extra_body: Mapping[str, Any], values_type: type[T] | None
) -> Operation[RunWaitResponse[T]]:
    """Spec: POST /runs/wait"""
    return Operation(
        method="POST",
        path="runs/wait",
        content=content_of(run_create.fields_to_send(), extra_body),
        thread_id=run_create.thread_id,
        continues=run_create.on_disconnect == "continue",
        is_cancelled_when_left=run_create.on_disconnect != "continue",
        decode=wait_decoder(values_type),
        follow_up=_follow_up(values_type),
    )


def create_and_stream_run(
    run_create: RunCreate, extra_body: Mapping[str, Any], values_type: type[T] | None
) -> StreamOperation[T]:
    """Spec: POST /runs/stream"""
    return StreamOperation(
        method="POST",
        path="runs/stream",
        content=content_of(run_create.fields_to_send(), extra_body),
        thread_id=run_create.thread_id,
        continues=run_create.on_disconnect == "continue",
        is_cancelled_when_left=run_create.on_disconnect != "continue",
        decode=EventReader(values_type).read,
        follow_up=_follow_up(values_type),
        join=_join,
    )


def update_and_wait_run(
    run: RunRef,
    run_update: RunUpdate,
    extra_body: Mapping[str, Any],
    values_type: type[T] | None,
) -> Operation[RunWaitResponse[T]]:
    """Spec: POST /runs/{run_id}/wait"""
    return Operation(
        method="POST",
        path=f"runs/{segment(run.run_id)}/wait",
        content=content_of(run_update.fields_to_send(), extra_body),
        run=run,
        is_cancelled_when_left=None,
        decode=wait_decoder(values_type),
        follow_up=_follow_up(values_type),
    )


def update_and_stream_run(
    run: RunRef,
    run_update: RunUpdate,
    extra_body: Mapping[str, Any],
    values_type: type[T] | None,
) -> StreamOperation[T]:
    """Spec: POST /runs/{run_id}/stream"""
    return StreamOperation(
        method="POST",
        path=f"runs/{segment(run.run_id)}/stream",
        begins_run=False,
        content=content_of(run_update.fields_to_send(), extra_body),
        run=run,
        is_cancelled_when_left=None,
        decode=EventReader(values_type).read,
        follow_up=_follow_up(values_type),
        join=_join,
    )


def create_run(run_create: RunCreate, extra_body: Mapping[str, Any]) -> Operation[Run]:
    """Spec: POST /runs"""
    return Operation(
        method="POST",
        path="runs",
        content=content_of(run_create.fields_to_send(), extra_body),
        thread_id=run_create.thread_id,
        decode=run_in,
    )


def get_run(run: RunRef) -> Operation[Run]:
    """Spec: GET /runs/{run_id}"""
    return Operation(
        method="GET",
        is_idempotent=True,
        path=f"runs/{segment(run.run_id)}",
        run=run,
        decode=run_in,
    )


def search_runs(request: RunSearchRequest, extra_body: Mapping[str, Any]) -> Operation[list[Run]]:
    """Spec: POST /runs/search"""
    return Operation(
        method="POST",
        path="runs/search",
        is_idempotent=True,
        content=content_of(request.fields_to_send(), extra_body),
        decode=runs_in,
    )


def stream_run(
    run: RunRef,
    last_event_id: str | None,
    values_type: type[T] | None,
    *,
    are_events_kept: bool,  # ids are the proof here, whatever the caller says
) -> StreamOperation[T]:
    """Spec: GET /runs/{run_id}/stream"""
    headers = {} if last_event_id is None else {"last-event-id": event_id_bytes(last_event_id)}
    return StreamOperation(
        method="GET",
        is_idempotent=True,
        path=f"runs/{segment(run.run_id)}/stream",
        headers=headers,
        run=run,
        last_event_id=last_event_id,
        begins_run=False,
        continues=True,
        decode=EventReader(values_type).read,
        follow_up=_follow_up(values_type),
        join=_join,
    )


def cancel_run(run: RunRef, *, wait: bool, action: str) -> Operation[None]:
    """Spec: POST /runs/{run_id}/cancel"""
    return Operation(
        method="POST",
        path=f"runs/{segment(run.run_id)}/cancel",
        query={"wait": str(wait).lower(), "action": action},
        run=run,
        decode=nothing,
        has_body=False,
    )


def delete_run(run: RunRef) -> Operation[None]:
    """Spec: DELETE /runs/{run_id}"""
    return Operation(
        method="DELETE",
        path=f"runs/{segment(run.run_id)}",
        run=run,
        decode=nothing,
        has_body=False,
    )


def wait_run(run: RunRef, values_type: type[T] | None) -> Operation[RunWaitResponse[T]]:
    """Spec: GET /runs/{run_id}/wait"""
    return Operation(
        method="GET",
        is_idempotent=True,
        path=f"runs/{segment(run.run_id)}/wait",
        run=run,
        decode=wait_decoder(values_type),
    )


def _follow_up(values_type: type[T] | None) -> FollowUp[RunWaitResponse[T]]:
    return FollowUp(
        status=get_run,
        result=partial(wait_run, values_type=values_type),
        questions=_none_to_ask,
        cancel=partial(cancel_run, wait=False, action="interrupt"),
    )


def _none_to_ask(_: RunRef) -> None:
    """No operation: what a run asks comes with its output."""


def _join(run: RunRef, last_event_id: str) -> Request:
    operation: StreamOperation[Any] = stream_run(run, last_event_id, None, are_events_kept=True)
    return operation
