"""Frames behind errors: their locals hold headers, and what reports errors sends them."""

from __future__ import annotations

from typing import TypeVar, cast

E = TypeVar("E", bound=BaseException)


def without_frames(error: E, handled: BaseException | None) -> E:
    """The same error, and all that it was raised from or while, without their tracebacks.

    `handled` is what the caller was handling before: Python makes that a context, and it is left
    as it is.
    """
    spared = _reachable(handled)
    for key, exc in _reachable(error).items():
        if key not in spared:
            exc.__traceback__ = None
    return error


def _reachable(error: BaseException | None) -> dict[int, BaseException]:
    """An error and all its causes and contexts, by their ids."""
    found: dict[int, BaseException] = {}
    left = [error]
    while left:
        exc = left.pop()
        if exc is None or id(exc) in found:
            continue
        found[id(exc)] = exc
        left += [exc.__cause__, exc.__context__]
        if isinstance(exc, BaseExceptionGroup):
            left += cast("tuple[BaseException, ...]", exc.exceptions)
    return found
