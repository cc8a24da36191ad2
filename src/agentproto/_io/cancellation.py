"""Cancellation by asyncio that comes a second time, while the first is still being heeded."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from . import running_loop

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


async def guarded(work: Coroutine[Any, Any, T], *, cancellations: int) -> T:
    """Do the work; no more than so many cancellations reach it, others wait until it is done.

    A shielded scope of anyio does not know of `task.cancel()`. httpx closes what was cancelled in
    steps that yield to the event loop, and one that comes just then leaves its pool with an entry
    that nobody takes out. Work that waits for a future is cancelled all the same: the future is.
    """
    if running_loop() is None:
        return await work
    import asyncio  # it was before: only who runs a loop pays for it

    return await _steps(work, cast("asyncio.Task[Any]", asyncio.current_task()), cancellations)


@types.coroutine
def _steps(
    work: Coroutine[Any, Any, T], task: asyncio.Task[Any], cancellations: int
) -> Generator[Any, Any, T]:
    from asyncio import CancelledError

    # Counted by asyncio: a scope that the work leaves takes its own cancellations back.
    before = task.cancelling()
    held: CancelledError | None = None
    thrown: BaseException | None = None
    while True:
        try:
            step = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration as done:
            if held is not None and task.cancelling() > before:
                raise held from None
            return cast("T", done.value)
        thrown = None
        try:
            yield step
        except CancelledError as exc:
            if task.cancelling() - before > cancellations:
                held = exc
            else:
                thrown = exc
        except BaseException as exc:  # it is the work's to handle
            thrown = exc
