"""Bytes to server-sent events, as the WHATWG standard interprets an event stream.

Incremental: `SSEDecoder.feed` takes chunks cut anywhere and returns the events they complete.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"
_DIGITS = re.compile(rb"[0-9]+")
_MOST_DIGITS = 18


@dataclass(slots=True)
class ServerSentEvent:
    """One event of a stream.

    `data` is the bytes of its data lines, joined by LF and not yet decoded. `id` is the last
    event id of the stream when the event was dispatched, `own_id` the one its own block gave:
    "" if it reset it, None if it gave none. `retry` is in milliseconds.
    """

    event: str
    data: bytes
    id: str
    own_id: str | None
    retry: int | None

    @property
    def text(self) -> str:
        """The data as text; bytes that are no UTF-8 become U+FFFD."""
        return self.data.decode("utf-8", "replace")


class SSEDecoder:
    """Takes the bytes of one connection, in order.

    `last_event_id` is that of the stream before, where this connection goes on with one.

    Attributes:
        retry: the newest reconnection time that the stream gave, in milliseconds.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.retry: int | None = None
        self._last_event_id = last_event_id
        self._line: list[bytes] = []
        self._at_start = True
        self._after_cr = False
        self._begin_block()

    def _begin_block(self) -> None:
        self._event = b""
        self._data: list[bytes] = []
        self._own_id: str | None = None
        self._own_retry: int | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that end within this chunk."""
        if self._after_cr and chunk:
            # A line that ends in CR was taken at once; an LF that follows belongs to it.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        lines = chunk.splitlines()
        unfinished = None if chunk.endswith((b"\n", b"\r")) else lines.pop()
        if lines and self._line:
            # Pieces are joined once, when their line ends: joining as they come is quadratic.
            lines[0] = b"".join([*self._line, lines[0]])
            self._line.clear()
        if unfinished is not None:
            self._line.append(unfinished)
        if lines and self._at_start:
            lines[0] = lines[0].removeprefix(_BOM)
            self._at_start = False
        return self._take(lines)

    def _take(self, lines: list[bytes]) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        for line in lines:
            # The field of nearly every line, asked for first: a tenth off the time per event.
            if line.startswith(b"data: "):
                self._data.append(line[6:])
            elif line:
                self._take_field(line)
            else:
                if self._data:
                    events.append(self._dispatch())
                self._begin_block()
        return events

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"event":
                self._event = value
            case b"data":
                self._data.append(value)
            case b"id" if b"\0" not in value:
                self._own_id = self._last_event_id = value.decode("utf-8", "replace")
            case b"retry" if _DIGITS.fullmatch(value):
                self.retry = self._own_retry = _milliseconds(value)
            case _:
                pass

    def _dispatch(self) -> ServerSentEvent:
        return ServerSentEvent(
            self._event.decode("utf-8", "replace") or "message",
            b"\n".join(self._data),
            self._last_event_id,
            self._own_id,
            self._own_retry,
        )


def _milliseconds(digits: bytes) -> int:
    # A server may send more digits than int() takes, and no one waits as long anyway.
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS
