"""What clients asked for, and whether they are still being answered."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._json import parse


@dataclass(frozen=True)
class RecordedRequest:
    """A request as it arrived.

    `path` is without the query; `query` holds its parameters. The names in `headers` are in
    lower case.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed.

        Raises:
            ValueError: the body is not JSON.
        """
        return parse(self.body)


class Recorder:
    """ASGI middleware; the rest of it may be used from any thread."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests: list[RecordedRequest] = []
        self._open = 0
        self._changed = threading.Condition()

    @property
    def requests(self) -> list[RecordedRequest]:
        return self._requests.copy()

    @property
    def open_requests(self) -> int:
        return self._open

    def wait_until_idle(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._count(1)
        try:
            await self._record_and_answer(scope, receive, send)
        finally:
            self._count(-1)

    async def _record_and_answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            return
        self._requests.append(_recorded(scope, body))
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)

    def _count(self, change: int) -> None:
        with self._changed:
            self._open += change
            self._changed.notify_all()


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if the client hung up before its end."""
    body = b""
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more_body = message.get("more_body", False)
    return body


def _recorded(scope: Scope, body: bytes) -> RecordedRequest:
    return RecordedRequest(
        method=scope["method"],
        path=scope["path"],
        query=dict(parse_qsl(scope["query_string"].decode("latin-1"))),
        headers={
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        },
        body=body,
    )
