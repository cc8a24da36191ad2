"""JSON as the server reads and writes it: strict, on one line, not escaped."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def copied(value: Any) -> Any:
    """The value as JSON carries it: later changes by the agent do not reach it."""
    return json.loads(dump(value))


def encode(text: str) -> bytes:
    # A lone surrogate has no UTF-8 form; its backslash form is also its JSON escape.
    return text.encode("utf-8", "backslashreplace")


def parse(body: bytes) -> Any:
    """Raises ValueError for anything that is not JSON."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
