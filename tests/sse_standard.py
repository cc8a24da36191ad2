"""The WHATWG standard's "interpreting an event stream", written down as slowly as it is told.

It decodes the whole stream first and walks it line by line: an oracle for the real decoder.
"""

from __future__ import annotations

import re

from agentproto._sse import ServerSentEvent


def interpret(stream: bytes) -> list[ServerSentEvent]:
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _unterminated = re.split("\r\n|\r|\n", text)
    events: list[ServerSentEvent] = []
    data = event = ""
    last_event_id = ""
    own_id: str | None = None
    retry: int | None = None
    for line in lines:
        if line == "":
            if data != "":
                body = data.removesuffix("\n").encode()
                events.append(
                    ServerSentEvent(event or "message", body, last_event_id, own_id, retry)
                )
            data, event, own_id, retry = "", "", None, None
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            own_id = last_event_id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = min(int(value), 10**18)
    return events
