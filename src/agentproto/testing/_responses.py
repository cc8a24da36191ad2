"""Responses that stay open while a run works, and end when the client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ._json import dump, encode
from ._runs import Turn


class LiveResponse(Response):
    """Sends status and headers at once, then each chunk as it comes.

    Starlette's StreamingResponse has no place for `on_hang_up`, which is awaited when the
    client's connection closes before the last chunk was sent.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        location: str,
        media_type: str,
        on_hang_up: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-store", "content-location": location},
            media_type=media_type,
        )
        # The length is not known yet.
        del self.headers["content-length"]
        self._chunks = chunks
        self._on_hang_up = on_hang_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        hang_up = asyncio.create_task(_hang_up(receive))
        try:
            await asyncio.wait({sending, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            is_sent = sending.done()
        finally:
            sending.cancel()
            hang_up.cancel()
            await asyncio.wait({sending, hang_up})
        if is_sent:
            sending.result()
        else:
            await self._on_hang_up()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def waited(turn: Turn, heartbeat: float) -> AsyncGenerator[bytes, None]:
    """A line feed in idle times, which JSON ignores, then the outcome of the turn."""
    while not turn.done():
        done, _ = await asyncio.wait({turn}, timeout=heartbeat)
        if not done:
            yield b"\n"
    yield encode(dump(turn.result()))


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
