"""Request bodies and queries, checked against the schemas of the spec.

Fields the schemas do not name are left out: the server tolerates them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from ._json import dump, parse
from ._problems import unprocessable

Check: TypeAlias = Callable[[Any], bool]
Field: TypeAlias = tuple[Check, str]
"""A check, and what it expects in the words of an error message."""


def run_create(body: bytes) -> dict[str, Any]:
    return _fields(_object(body), _RUN_CREATE)


def run_update(body: bytes) -> dict[str, Any]:
    """The command of the update; empty without one."""
    command = _fields(_object(body), _RUN_UPDATE).get("command", {})
    return _fields(command, _COMMAND, "command.")


def run_search(body: bytes) -> dict[str, Any]:
    return _fields(_object(body), _RUN_SEARCH)


def cancel_query(query: Mapping[str, str]) -> tuple[bool, str]:
    """Whether to wait, and the action."""
    wait, action = query.get("wait", "false").lower(), query.get("action", "interrupt")
    if wait not in _BOOLEANS:
        raise unprocessable(f'expected "wait" to be true or false, got {wait!r}')
    if action not in ("interrupt", "rollback"):
        raise unprocessable(f'expected "action" to be interrupt or rollback, got {action!r}')
    return _BOOLEANS[wait], action


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = parse(body)
    except ValueError as error:
        raise unprocessable(f"expected a JSON body: {error}") from error
    if not _is_object(value):
        raise unprocessable(f"expected the body to be an object, got {_shortened(value)}")
    return cast(dict[str, Any], value)


def _fields(
    body: Mapping[str, Any], schema: Mapping[str, Field], prefix: str = ""
) -> dict[str, Any]:
    fields = {name: body[name] for name in schema if name in body}
    for name, value in fields.items():
        is_valid, expected = schema[name]
        if not is_valid(value):
            raise unprocessable(
                f'expected "{prefix}{name}" to be {expected}, got {_shortened(value)}'
            )
    return fields


def _shortened(value: Any) -> str:
    text = dump(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_anything(_: Any) -> bool:
    return True


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(check: Check) -> Check:
    def check_each(value: Any) -> bool:
        return isinstance(value, list) and all(check(item) for item in cast("Sequence[Any]", value))

    return check_each


def _is_object_with(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    def check(value: Any) -> bool:
        return (
            _is_object(value)
            and required.keys() <= value.keys()
            and all(
                is_valid(value[name])
                for name, is_valid in {**required, **optional}.items()
                if name in value
            )
        )

    return check


def _any_of(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def _one_of(*values: str) -> Field:
    return (lambda value: _is_text(value) and value in values), f"one of {', '.join(values)}"


def _is_integer_in(lowest: int, highest: float) -> Check:
    return lambda value: _is_integer(value) and lowest <= value <= highest


def _is_block(value: Any) -> bool:
    is_valid = _is_object_with({"type": _is_text}, {"metadata": _is_object})(value)
    return is_valid and (value["type"] != "text" or _is_text(value.get("text")))


_is_message = _is_object_with(
    {"role": _is_text, "content": _any_of(_is_text, _is_list_of(_is_block))},
    {"id": _is_text, "metadata": _is_object},
)
_is_config = _is_object_with(
    {},
    {
        "tags": _is_list_of(_is_text),
        "recursion_limit": _is_integer,
        "configurable": _is_object,
    },
)
_is_mode = _one_of("values", "messages", "updates", "custom")[0]
_is_send = _is_object_with({"node": _is_text, "input": _is_object}, {})
_is_node = _any_of(_is_text, _is_send)

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_TEXT: Field = (_is_text, "a string")
_OBJECT: Field = (_is_object, "an object")

_RUN_CREATE: dict[str, Field] = {
    "thread_id": _TEXT,
    "agent_id": _TEXT,
    "input": (_is_anything, "JSON"),
    "messages": (_is_list_of(_is_message), "a list of messages with role and content"),
    "metadata": _OBJECT,
    "config": (_is_config, "an object of tags, recursion_limit and configurable"),
    "webhook": _TEXT,
    "stream_mode": (
        _any_of(_is_mode, _is_list_of(_is_mode)),
        "one or a list of values, messages, updates, custom",
    ),
    "on_completion": _one_of("delete", "keep"),
    "on_disconnect": _one_of("cancel", "continue"),
    "if_not_exists": _one_of("create", "reject"),
}
_RUN_UPDATE: dict[str, Field] = {"command": _OBJECT}
_COMMAND: dict[str, Field] = {
    "update": (
        lambda value: value is None or isinstance(value, dict | list),
        "an object, a list or null",
    ),
    "resume": (_is_anything, "JSON"),
    "goto": (
        _any_of(_is_node, _is_list_of(_is_text), _is_list_of(_is_send)),
        "a node name, a Send, or a list of either",
    ),
}
_RUN_SEARCH: dict[str, Field] = {
    "metadata": _OBJECT,
    # "running" is not in the enum of the spec, but the server has runs with this status.
    "status": _one_of("pending", "running", "error", "success", "timeout", "interrupted"),
    "thread_id": _TEXT,
    "agent_id": _TEXT,
    "limit": (_is_integer_in(1, 1000), "an integer from 1 to 1000"),
    "offset": (_is_integer_in(0, float("inf")), "an integer from 0"),
}
