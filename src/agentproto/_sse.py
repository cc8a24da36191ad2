"""Bytes to server-sent events, as the WHATWG standard interprets an event stream.

Incremental: `SSEDecoder.feed` takes chunks cut anywhere and returns the events they complete.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import BytesIO
from itertools import takewhile

_CR = 13  # found a fifth faster than b"\r" is
_EVENT = b"event: "
_ID = b"id: "
_DATA = b"data: "
_BOM = b"\xef\xbb\xbf"
_MOST_DIGITS = 18
_SHORT = 1024
"""Bytes of data: where an event has fewer, more of its kind may follow in the chunk."""


@dataclass(slots=True)
class ServerSentEvent:
    """One event of a stream.

    `data` is the bytes of its data lines, joined by LF and not yet decoded. `id` is the last
    event id of the stream when the event was dispatched, `own_id` the one its own block gave:
    "" if it reset it, None if it gave none. `retry` is in milliseconds.

    Of events that came together and differ by their data alone there may be one for all: `more`
    is what is left of their data, the last first, and `data` is that of the one at hand.
    """

    event: str
    data: bytes
    id: str
    own_id: str | None
    retry: int | None
    more: list[bytes] | None = None

    @property
    def text(self) -> str:
        """The data as text; bytes that are no UTF-8 become U+FFFD."""
        return self.data.decode("utf-8", "replace")

    def each(self) -> list[ServerSentEvent]:
        """One for each event that this one stands for."""
        if self.more is None:
            return [self]
        of_each = reversed(self.more)
        return [ServerSentEvent(self.event, data, self.id, self.own_id, None) for data in of_each]


class SSEDecoder:
    """Takes the bytes of one connection, in order.

    `last_event_id` is that of the stream before, where this connection goes on with one.
    `max_event_bytes` is the most that the data of an event may have, and any line behind its
    field's name.

    Attributes:
        retry: the newest reconnection time that the stream gave, in milliseconds.
        is_over: whether an event went over the limit. Nothing comes out any more, then.
    """

    def __init__(self, last_event_id: str = "", *, max_event_bytes: int = sys.maxsize) -> None:
        self.retry: int | None = None
        self.is_over = False
        self._most = max_event_bytes
        self._most_of_line = max_event_bytes + len(b"data: ")
        self._last_event_id = last_event_id
        self._line = bytearray()
        self._at_start = True
        self._after_cr = False
        self._is_between_blocks = self._is_run_looked_for = False
        self._head, self._name = _DATA, "message"
        self._begin_block()

    def _begin_block(self) -> None:
        self._event = b""
        self._data: bytes | bytearray | None = None
        self._own_id: str | None = None
        self._own_retry: int | None = None
        # Data whose line goes on: its one piece, a buffer from the second on.
        self._long: BytesIO | bytes | None = None

    @property
    def is_within_event(self) -> bool:
        """Whether more has come than whole events and comments."""
        is_data_begun = self._data is not None or self._long is not None
        is_begun = self._event or is_data_begun or self._own_id is not None
        return bool(is_begun or (self._line and not self._line.startswith(b":")))

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that end within this chunk."""
        events = self.feed_runs(chunk)
        if not self._is_run_looked_for:
            return events
        return [one for event in events for one in event.each()]

    def feed_runs(self, chunk: bytes) -> list[ServerSentEvent]:
        """The same, with one for all of those that differ by their data alone."""
        if self._after_cr and chunk:
            # A line that ends in CR was taken at once; an LF that follows belongs to it.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if _CR in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: list[ServerSentEvent] = []
        self._is_run_looked_for = False
        at, size = 0, len(chunk)
        while at < size and not self.is_over:
            if self._is_between_blocks:
                at = self._take_blocks(chunk, at, events)
            if at < size:
                at = self._take_line(chunk, at, events)
        return events

    def _take_blocks(self, chunk: bytes, at: int, events: list[ServerSentEvent]) -> int:
        """Take whole blocks of the common forms, up to the first that is not one: where it begins.

        Those are an event and its data, perhaps with an id before or behind. One whose fields are
        those of the block before is cut out by two searches, a third of what its lines would take.
        """
        head, name, most = self._head, self._name, self._most
        size = len(chunk)
        while at < size:
            fields, own_id = at, None
            if not chunk.startswith(head, at):
                if chunk.startswith(_ID, at):
                    fields = chunk.find(b"\n", at) + 1
                    own_id = self._id_in(chunk[at + len(_ID) : fields - 1])
                    if own_id is None or not fields:
                        break
                if not chunk.startswith(head, fields):
                    head, name = self._head_at(chunk, fields)
                    if not head:
                        break
            begin = fields + len(head)
            end = chunk.find(b"\n", begin)
            if end < 0 and own_id is None:
                # Its data goes on in the next chunk.
                self._is_between_blocks = False
                self._event = head[len(_EVENT) : -len(_DATA) - 1]
                at = self._go_on_with_long(chunk, begin, end, events)
                break
            if end < 0 or end - begin > most:
                break
            if chunk.startswith(b"\n", end + 1):
                data = chunk[begin:end]
            elif chunk.startswith(_ID, end + 1):
                data = chunk[begin:end]
                value = chunk[end + 1 + len(_ID) : (end := chunk.find(b"\n", end + 1))]
                if end < 0 or not chunk.startswith(b"\n", end + 1):
                    break
                if b"\0" in value or len(value) > most:
                    break
                own_id = value.decode("utf-8", "replace")
            else:
                end = chunk.find(b"\n\n", end)
                rest = None if end < 0 else self._rest_of_block(chunk[begin:end])
                if rest is None:
                    break
                data, own_id = rest[0], own_id if rest[1] is None else rest[1]
            if own_id is not None:
                self._last_event_id = own_id
            events.append(ServerSentEvent(name, data, self._last_event_id, own_id, None))
            at = end + 2
            if not self._is_run_looked_for and own_id is None and len(data) < _SHORT:
                at = self._take_run(chunk, at, head, name, events)
        self._head, self._name = head or _DATA, name
        return at

    def _take_run(
        self, chunk: bytes, at: int, head: bytes, name: str, events: list[ServerSentEvent]
    ) -> int:
        """Take the whole blocks that follow with this head and one line of data: where they end.

        They are cut out in one go, which takes half of what one after the other does. Once in a
        chunk: each look goes through what is left of it.
        """
        self._is_run_looked_for = True
        end = chunk.rfind(b"\n\n", at)
        if end < 0 or end - at > self._most or not chunk.startswith(head, at):
            return at
        between = b"\n\n" + head
        run = chunk[at + len(head) : end].split(between)
        if chunk.count(b"\n", at, end) != len(run) * between.count(b"\n") - 2:
            # One of them is more than its data.
            run = list(takewhile(lambda data: b"\n" not in data, run))
            end = at + sum(map(len, run)) + len(run) * len(between) - 2
        if run:
            run.reverse()
            events.append(ServerSentEvent(name, b"", self._last_event_id, None, None, run))
        return end + 2

    def _rest_of_block(self, rest: bytes) -> tuple[bytes, str | None] | None:
        """Data of many lines and the id behind it, from the first data on; None if it is other."""
        data, mark, value = rest.rpartition(b"\n" + _ID)
        event_id = self._id_in(value) if mark else None
        if not mark:
            data = value
        elif event_id is None:
            return None
        # Where each line is one of data, they are joined without looking at them.
        if data.count(b"\n") != data.count(b"\n" + _DATA):
            return None
        data = data.replace(b"\n" + _DATA, b"\n")
        return None if len(data) > self._most else (data, event_id)

    def _id_in(self, value: bytes) -> str | None:
        is_common = b"\n" not in value and b"\0" not in value and len(value) <= self._most
        return value.decode("utf-8", "replace") if is_common else None

    def _take_line(self, chunk: bytes, at: int, events: list[ServerSentEvent]) -> int:
        """Take one line, or the beginning of one; where the next begins."""
        end = chunk.find(b"\n", at)
        if self._long is not None:
            return self._go_on_with_long(chunk, at, end, events)
        if end < 0:
            self._is_between_blocks = False
            is_first_data = not self._line and self._data is None and not self._at_start
            if is_first_data and chunk.startswith(_DATA, at):
                return self._go_on_with_long(chunk, at + len(_DATA), end, events)
            self._line += chunk[at:]
            of_no_line = len(_BOM) if self._at_start and self._line.startswith(_BOM) else 0
            if len(self._line) - of_no_line > self._most_of_line:
                self._give_up()
            return len(chunk)
        line = chunk[at:end]
        if self._line:
            self._line += line
            line = bytes(self._line)
            self._line.clear()
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if not line:
            return self._end_block(end, events)
        self._is_between_blocks = False
        if line.startswith(_DATA):
            self._add_data(line[len(_DATA) :])
        else:
            self._take_field(line)
        if len(line) > self._most_of_line or len(self._data or b"") > self._most:
            self._give_up()
        return end + 1

    def _end_block(self, at: int, events: list[ServerSentEvent]) -> int:
        if self._data is not None:
            events.append(self._dispatch(self._data))
        self._begin_block()
        self._is_between_blocks = True
        return at + 1

    def _go_on_with_long(
        self, chunk: bytes, at: int, end: int, events: list[ServerSentEvent]
    ) -> int:
        piece = chunk[at:] if end < 0 else chunk[at:end]
        long = self._long
        if long is None:
            self._long = piece
            size = len(piece)
        elif end >= 0 and isinstance(long, bytes):
            # In two pieces, as nearly all are: cheaper than a buffer, for a copy of the first.
            self._data = long + piece
            size = len(self._data)
        else:
            # The buffer becomes the data as it is: of a large event there is no second copy.
            long = self._long = _as_buffer(long)
            long.write(piece)
            size = long.tell()
            if end >= 0:
                self._data = long.getvalue()
        if size > self._most:
            self._give_up()
        elif end >= 0:
            self._long = None
            if chunk.startswith(b"\n", end + 1):
                return self._end_block(end + 1, events)
        return len(chunk) if end < 0 else end + 1

    def _give_up(self) -> None:
        self.is_over = True
        self._line.clear()
        self._begin_block()

    def _head_at(self, chunk: bytes, at: int) -> tuple[bytes, str]:
        """What stands before the data of a common block, and its event name; else b""."""
        if chunk.startswith(_DATA, at):
            return _DATA, "message"
        end = chunk.find(b"\n", at)
        is_common = chunk.startswith(_EVENT, at) and chunk.startswith(_DATA, end + 1)
        if not is_common or not 0 <= end - at <= self._most_of_line:
            return b"", "message"
        name = chunk[at + len(_EVENT) : end].decode("utf-8", "replace")
        return chunk[at : end + 1] + _DATA, name or "message"

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"event":
                self._event = value
            case b"data":
                self._add_data(value)
            case b"id" if b"\0" not in value:
                self._own_id = self._last_event_id = value.decode("utf-8", "replace")
            case b"retry" if value.isdigit():
                self.retry = self._own_retry = _milliseconds(value)
            case _:
                pass

    def _add_data(self, value: bytes) -> None:
        if self._data is None:
            self._data = value
        elif isinstance(self._data, bytearray):
            # Not a list of lines: short ones would take up many times their bytes.
            self._data += b"\n"
            self._data += value
        else:
            self._data = bytearray(self._data + b"\n" + value)

    def _dispatch(self, data: bytes | bytearray) -> ServerSentEvent:
        return ServerSentEvent(
            self._event.decode("utf-8", "replace") or "message",
            bytes(data),
            self._last_event_id,
            self._own_id,
            self._own_retry,
        )


def _as_buffer(long: BytesIO | bytes) -> BytesIO:
    if isinstance(long, BytesIO):
        return long
    buffer = BytesIO()
    buffer.write(long)
    return buffer


def _milliseconds(digits: bytes) -> int:
    # A server may send more digits than int() takes, and no one waits as long anyway.
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS
