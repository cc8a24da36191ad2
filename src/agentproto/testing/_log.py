"""The events of one run, in the order they happened, and the streams that follow them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from ._json import dump, encode

HEARTBEAT = b": heartbeat\n\n"


@dataclass(frozen=True)
class LoggedEvent:
    id: str
    name: str
    data: str

    def encoded(self) -> bytes:
        return encode(f"id: {self.id}\nevent: {self.name}\ndata: {self.data}\n\n")


class EventLog:
    def __init__(self) -> None:
        self._events: list[LoggedEvent] = []
        self._changed = _future()

    def append(self, name: str, data: Any) -> None:
        self._events.append(LoggedEvent(str(len(self._events) + 1), name, dump(data)))
        self._changed.set_result(None)
        self._changed = _future()

    def __len__(self) -> int:
        return len(self._events)

    @property
    def is_ended(self) -> bool:
        return self._events[-1].name == "end"

    def position_after(self, event_id: str | None) -> int:
        """The position behind the event with this id; 0, the beginning, for an unknown id."""
        ids = [event.id for event in self._events]
        return ids.index(event_id) + 1 if event_id in ids else 0

    async def streamed(
        self, position: int, heartbeat: float, *, through_updates: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """The events from this position up to an `end`, with a heartbeat in idle times.

        With `through_updates` an `end` is left out when an update of the run followed it: it is
        not how the run ended.
        """
        while position < len(self) or not self.is_ended:
            if position == len(self):
                changed, _ = await asyncio.wait({self._changed}, timeout=heartbeat)
                if not changed:
                    yield HEARTBEAT
                continue
            event = self._events[position]
            position += 1
            if through_updates and event.name == "end" and position < len(self):
                continue
            yield event.encoded()
            if event.name == "end":
                return


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()
