"""Where a cut stream goes on, and which events were there before."""

from __future__ import annotations

import hashlib

from ._sse import ServerSentEvent

WINDOW = 4_096
"""Event ids that are remembered, beside the first one."""

_LONG = 128


def _short(event_id: str) -> str:
    # Remembered by the thousand: a server must not say how much memory that takes.
    if len(event_id) <= _LONG:
        return event_id
    return hashlib.sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()


class RunCursor:
    """Watches events go by. Ids are opaque; order is arrival.

    `last_event_id` is that of the stream before, where this one goes on with it.

    Attributes:
        last_event_id: what to go on behind; None if nothing was seen.
        has_progressed: whether an event came that was not there before, since it was last set
            to False.
    """

    def __init__(self, last_event_id: str | None = None) -> None:
        self.last_event_id = last_event_id
        self.has_progressed = False
        self._seen: dict[str, None] = {}
        self._first: str | None = None
        self._before_join: frozenset[str] | None = None
        self._new_since_join = False
        self._skips_to: str | None = None
        self._ends_without_id = False

    def take_in(self, events: list[ServerSentEvent]) -> list[ServerSentEvent]:
        """Those of the events that were not there before.

        Raises:
            LookupError: if what came before cannot be told from what is new.
        """
        return [event for event in events if not self._is_repeat(event)]

    def why_not_joinable(self, *, can_replay: bool) -> str | None:
        """Why a join could lose or double events; None if it cannot.

        `can_replay` is whether the server sends all events again where it is asked to: enough, as
        long as none without an id was handed over.
        """
        if self._ends_without_id:
            return "the last event had no id"
        if self.last_event_id is None and not can_replay:
            return "the server gave its events no ids"
        return None

    def joined(self) -> None:
        """The stream goes on over a new connection."""
        self._before_join = frozenset(self._seen)
        self._new_since_join = False
        self._skips_to = None

    def _is_repeat(self, event: ServerSentEvent) -> bool:
        event_id = _short(event.own_id) if event.own_id else None
        if self._before_join is not None and self._was_there(event_id, self._before_join):
            return True
        self._note(event, event_id)
        return False

    def _was_there(self, event_id: str | None, before_join: frozenset[str]) -> bool:
        if self._skips_to is not None:
            if event_id == self._skips_to:
                self._skips_to = None
            return True
        if event_id is None:
            return False
        if event_id == self._first and event_id not in before_join and not self._new_since_join:
            self._skips_to = _short(self.last_event_id or "")
            return True
        if event_id in before_join and self._new_since_join and self._first not in before_join:
            raise LookupError("the server repeats events from before those that are remembered")
        return event_id in before_join or event_id in self._seen

    def _note(self, event: ServerSentEvent, event_id: str | None) -> None:
        self._new_since_join = self.has_progressed = True
        if event_id is not None:
            self._first = self._first or event_id
            self.last_event_id = event.own_id
            self._seen[event_id] = None
            if len(self._seen) > WINDOW:
                del self._seen[next(iter(self._seen))]
        if event.event != "metadata" or event_id is not None:
            self._ends_without_id = event_id is None
