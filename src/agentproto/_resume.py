"""Where a cut stream goes on, and which events were there before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from ._sse import ServerSentEvent

WINDOW = 4_096
"""Event ids that are remembered, beside the first one."""

LAST = frozenset({"end", "error"})
"""The events behind which nothing comes."""

_LONG = 128
HELD_BYTES = 64 * 2**20
"""Bytes of events without ids that are held until an id tells their place."""

_UNREADABLE = "\ufffd"
"""What is left of an id whose bytes are no text: two of those may look the same."""


def _short(event_id: str) -> str:
    # Remembered by the thousand: a server must not say how much memory that takes.
    if len(event_id) <= _LONG:
        return event_id
    return hashlib.sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()


def _id_of(event: ServerSentEvent) -> str | None:
    own_id = event.own_id
    if not own_id or _UNREADABLE in own_id:
        return None
    return own_id if len(own_id) <= _LONG else _short(own_id)


def _remember(event_id: str, ids: OrderedDict[str, None]) -> None:
    # A plain dict looks for its first key behind all those that were deleted.
    ids[event_id] = None
    if len(ids) > WINDOW:
        ids.popitem(last=False)


class RunCursor:
    """Watches events go by. Ids are opaque; order is arrival.

    `last_event_id` is that of the stream before, where this one goes on with it. `begins_run` is
    whether the first event here is the first of the run.

    Attributes:
        last_event_id: what to go on behind; None if nothing was seen.
    """

    def __init__(self, last_event_id: str | None = None, *, begins_run: bool = True) -> None:
        self.last_event_id = last_event_id
        self._begins_run = begins_run
        self._seen: OrderedDict[str, None] = OrderedDict()
        if last_event_id is not None:
            self._seen[_short(last_event_id)] = None
        self._first: str | None = None
        self._asked = None if last_event_id is None else _short(last_event_id)
        self._repeats_ids = False
        self._ends_without_id = False
        self._before_join: frozenset[str] | None = None
        self._is_placed = True
        self._skips_to: str | None = None
        self._skips_all = False
        self._held: list[ServerSentEvent] = []
        self._held_bytes = 0
        self._has_skipped_some = False
        self._joints: OrderedDict[str, None] = OrderedDict()
        self.is_doubtful = False

    def take_in(self, events: list[ServerSentEvent]) -> Iterable[ServerSentEvent]:
        """Those of the events that were not there before. To be iterated over once.

        Metadata always comes out: any connection may begin with it.

        Raises:
            LookupError: behind those before, if what came before cannot be told from what is new.
        """
        if self._before_join is None:
            # Nothing was there before: nothing is held back, and nothing is a repeat.
            for event in events:
                if event.own_id and (event.event != "metadata" or self.last_event_id is None):
                    self._note_id(event)
            for event in reversed(events):
                if event.event != "metadata":
                    self._ends_without_id = _id_of(event) is None
                    break
            return events
        return self._new_among(events, self._before_join)

    def _new_among(
        self, events: list[ServerSentEvent], before_join: frozenset[str]
    ) -> Iterator[ServerSentEvent]:
        for event in events:
            for one in event.each():
                yield from self._new_with(one, before_join)

    def why_not_joinable(self, *, can_replay: bool) -> str | None:
        """Why a join could lose or double events; None if it cannot.

        `can_replay` is whether the server sends all events again where it is asked to: enough, as
        long as none without an id was handed over.
        """
        if self._repeats_ids:
            return "the server gave two events the same id"
        if self._ends_without_id:
            return "the last event had no id"
        if self.last_event_id is None and not can_replay:
            return "the server gave its events no ids"
        return None

    def joined(self) -> None:
        """The stream goes on over a new connection."""
        self._before_join = frozenset(self._seen)
        self._is_placed = self._has_skipped_some = False
        self._skips_to = None
        self._held.clear()
        if self.last_event_id is not None:
            # Where a replay pushes what was there out of the window, this still tells of it.
            _remember(_short(self.last_event_id), self._joints)

    def check_is_whole(self) -> None:
        """The connection ended, and in order.

        Raises:
            LookupError: if it ended before it came to what is new.
        """
        if self._skips_to is not None or self._held:
            raise LookupError("the server repeats events, and ends before the last that was there")

    def _new_with(
        self, event: ServerSentEvent, before_join: frozenset[str]
    ) -> list[ServerSentEvent]:
        if event.event == "metadata":
            return [event]
        event_id = _id_of(event)
        if event_id is None and event.event not in LAST and self._may_be_repeat(event):
            return []
        held, self._held = self._held, []
        if held and event_id is None:
            raise LookupError("behind the join there is no event with an id")
        if self._was_there(event_id, before_join):
            return []
        self._is_placed = True
        self._ends_without_id = not self._note_id(event)
        return [*held, event]

    def _may_be_repeat(self, event: ServerSentEvent) -> bool:
        """Hold or skip an event without id, where nothing tells its place yet."""
        if self._is_placed:
            if self._has_skipped_some:
                raise LookupError("behind a repeated event there is one without id")
            return False
        if self._skips_to is not None:
            self._has_skipped_some = True
            return True
        # Behind the last event, or within a repeat? The next id tells.
        self._held_bytes = len(event.data) + (self._held_bytes if self._held else 0)
        if len(self._held) == WINDOW or self._held_bytes > HELD_BYTES:
            raise LookupError("too many events without id, behind which no id tells their place")
        self._held.append(event)
        return True

    def _was_there(self, event_id: str | None, before_join: frozenset[str]) -> bool:
        if self._is_placed:
            is_known = event_id in self._seen
            is_from_before = event_id in before_join and not self._knows_all(before_join)
            if is_from_before or (event_id in self._joints and not is_known):
                raise LookupError("the server repeats events from before those that are remembered")
            self._has_skipped_some = is_known
            return is_known
        last = _short(self.last_event_id or "")
        if self._skips_to is not None:
            self._is_placed = event_id == last
            is_known = event_id is None or event_id in before_join or self._skips_all
            if not is_known and not self._is_placed and self._has_skipped_some:
                raise LookupError("the server repeats events, and not up to the last one")
            if self._is_placed or not is_known:
                self._skips_to, self._has_skipped_some = None, False
            return self._is_placed or is_known
        if event_id == last:
            self._is_placed = True
            return True
        if event_id is not None and (event_id in before_join or event_id == self._first):
            self._skips_to, self._skips_all = last, event_id not in before_join
            return True
        self.is_doubtful = self.is_doubtful or not self._begins_run
        return False

    def _knows_all(self, before_join: frozenset[str]) -> bool:
        return self._begins_run and self._first in before_join

    def _note_id(self, event: ServerSentEvent) -> bool:
        """Whether it has one that can be gone on behind."""
        event_id = _id_of(event)
        if event_id is None:
            return False
        seen = self._seen
        if self._first is None and event.event != "metadata":
            self._first = event_id
        if event_id in seen and self._before_join is None and event_id != self._asked:
            self._repeats_ids = True
        self.last_event_id = event.own_id
        _remember(event_id, seen)
        return True
