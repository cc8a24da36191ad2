"""What a JSON value is, told so that a type checker follows."""

from __future__ import annotations

from typing import Any, TypeGuard


def as_object(value: object) -> dict[str, Any] | None:
    """The value if it is a JSON object, else None."""
    return value if _is_object(value) else None


def as_list(value: object) -> list[Any] | None:
    """The value if it is a JSON array, else None."""
    return value if _is_list(value) else None


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)
