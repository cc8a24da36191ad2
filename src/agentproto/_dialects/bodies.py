"""What dialects share: bodies as they are sent, and answers as they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from .._errors import ProtocolError
from .._events import (
    first_problem,
    interrupts_in,
    messages_in,
    shown,
    take_interrupts,
    values_adapter,
)
from .._json import parse_json, to_json
from .._models import FAILED, Run, RunRef, RunWaitResponse
from .._shapes import as_list, as_object
from . import Answer

T = TypeVar("T")
J = TypeVar("J")


def segment(value: str) -> str:
    """An id as one segment of a path."""
    return quote(value, safe="")


def content_of(fields: Mapping[str, Any], extra_body: Mapping[str, Any]) -> bytes:
    """The fields that are set, and what a server adds to them.

    Raises:
        ValueError: for a field that is set twice.
    """
    twice = sorted(fields.keys() & extra_body.keys())
    if twice:
        raise ValueError(f"extra_body: {twice[0]!r} is set as a field of the call, too")
    return to_json({**fields, **extra_body})


Reshape: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""From an object as a server has it to one as the schema has it."""


def triple(data: dict[str, Any]) -> dict[str, Any]:
    """The schema's run, values and messages, where the server sent the values alone."""
    if "run" in data or "values" in data:
        return data
    return bare(data)


def bare(values: dict[str, Any]) -> dict[str, Any]:
    """The schema's triple for the values alone."""
    return {"values": values, "messages": messages_in(values)}


def wait_decoder(
    values_type: type[T] | None, reshape: Reshape = triple
) -> Callable[[Answer], RunWaitResponse[T]]:
    """Reads the output of a run."""
    adapter = None if values_type is None else values_adapter(values_type)
    return partial(_wait_response, adapter=adapter, reshape=reshape)


def _wait_response(
    answer: Answer, *, adapter: TypeAdapter[T] | None, reshape: Reshape
) -> RunWaitResponse[T]:
    data = reshape(_json_in(answer, as_object, _OUTPUT))
    try:
        return _response_from(answer, data, adapter)
    except ValidationError as exc:
        raise _unusable(answer, _OUTPUT, first_problem(exc)) from exc


def nothing(_: Answer) -> None:
    """Reads an answer that tells nothing more than its status."""
    return


def as_it_is(data: dict[str, Any]) -> dict[str, Any]:
    """What already is as the schema has it."""
    return data


def run_in(answer: Answer, *, reshape: Reshape = as_it_is) -> Run:
    """Reads a run."""
    data = reshape(_json_in(answer, as_object, _A_RUN))
    try:
        return _run_from(data, answer.run)
    except ValidationError as exc:
        raise _unusable(answer, _A_RUN, first_problem(exc)) from exc


def runs_in(answer: Answer, *, reshape: Reshape = as_it_is) -> list[Run]:
    """Reads a page of runs."""
    data = _json_in(answer, as_list, _RUNS)
    try:
        return [Run.model_validate(_each(item, reshape)) for item in data]
    except ValidationError as exc:
        raise _unusable(answer, _RUNS, first_problem(exc)) from exc


def _each(item: object, reshape: Reshape) -> object:
    found = as_object(item)
    return item if found is None else reshape(found)


_A_RUN = "a JSON object that describes a run"
_RUNS = "a JSON array of runs"
_OUTPUT = "a JSON object with run, values and messages"


def state_in(answer: Answer) -> dict[str, Any]:
    """Reads a JSON object of any fields."""
    return _json_in(answer, as_object, "a JSON object")


def _json_in(answer: Answer, shape: Callable[[object], J | None], expected: str) -> J:
    try:
        data = parse_json(answer.body)
    except ValueError as exc:
        raise _unusable(answer, expected, str(exc)) from exc
    found = shape(data)
    if found is None:
        raise _unusable(answer, expected, f"got {type(data).__name__}")
    return found


def _unusable(answer: Answer, expected: str, problem: str) -> ProtocolError:
    content_type = answer.headers.get("content-type", "no content type")
    return ProtocolError(
        f"expected {expected} from {answer.asked}, got {content_type}: {problem}; "
        f"is base_url the root of the API? body: {shown(answer.body)}",
        raw=answer.body,
    )


def _response_from(
    answer: Answer, data: dict[str, Any], adapter: TypeAdapter[T] | None
) -> RunWaitResponse[T]:
    run = _run_from(data.get("run"), answer.run)
    state, interrupts = take_interrupts(data.get("values"))
    pending = [*interrupts, *interrupts_in(data.get("interrupts") or [])]
    known: dict[str, Any] = {
        **data,
        "run": run,
        "values": _typed(answer, state, run, adapter, asks=bool(pending)),
        "messages": data.get("messages") or [],
        "interrupts": pending,
    }
    return RunWaitResponse(**known)


def _run_from(data: object, ref: RunRef | None) -> Run:
    run = Run.model_validate(data or {})
    if ref is None:
        return run
    run_id, thread_id = run.run_id or ref.run_id, run.thread_id or ref.thread_id
    if (run_id, thread_id) == (run.run_id, run.thread_id):
        return run
    return run.model_copy(update={"run_id": run_id, "thread_id": thread_id})


def _typed(
    answer: Answer, state: Any, run: Run, adapter: TypeAdapter[T] | None, *, asks: bool
) -> Any:
    if state is None or (adapter is not None and asks and not state):
        return None
    if adapter is None:
        return state if as_object(state) is not None else _PLAIN.validate_python(state)
    try:
        return adapter.validate_python(state)
    except ValidationError as exc:
        # A run that failed, or asks, need not have got as far as the values asked for.
        if run.status in FAILED or asks:
            return None
        raise ProtocolError(
            f"the values from {answer.asked} do not fit values_type: {first_problem(exc)}; "
            f"body: {shown(answer.body)}",
            raw=answer.body,
        ) from exc


_PLAIN: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
