"""What a JSON value is, told so that a type checker follows."""

from __future__ import annotations

from typing import Any, cast


def as_object(value: object) -> dict[str, Any] | None:
    """The value if it is a JSON object, else None."""
    return cast("dict[str, Any] | None", value if isinstance(value, dict) else None)


def as_list(value: object) -> list[Any] | None:
    """The value if it is a JSON array, else None."""
    return cast("list[Any] | None", value if isinstance(value, list) else None)
