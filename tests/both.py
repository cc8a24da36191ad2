"""One scenario, both clients: the sync one is driven in a thread, as its users would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from agentproto import AsyncRunsClient, RunsClient, _io


class Flavour(Protocol):
    """How a scenario uses a client, whichever it is."""

    def client(self, url: str, **arguments: Any) -> Any: ...
    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...
    async def collect(self, stream: Any) -> list[Any]: ...
    async def blocks(self, stream: Any) -> list[Any]: ...
    async def text(self, stream: Any) -> list[str]: ...
    async def take(self, stream: Any, count: int) -> list[Any]: ...
    async def all_of(self, iterator: Any) -> list[Any]: ...
    async def close(self, closable: Any) -> None: ...
    def entered(self, stream: Any) -> Any: ...


class Async:
    def client(self, url: str, **arguments: Any) -> AsyncRunsClient:
        return AsyncRunsClient(url, **arguments)

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await method(*args, **kwargs)

    async def collect(self, stream: Any) -> list[Any]:
        return [event async for event in stream]

    async def blocks(self, stream: Any) -> list[Any]:
        return [sse async for sse in stream.aiter_sse()]

    async def text(self, stream: Any) -> list[str]:
        return [piece async for piece in stream.text()]

    async def take(self, stream: Any, count: int) -> list[Any]:
        return [await anext(stream) for _ in range(count)]

    async def all_of(self, iterator: Any) -> list[Any]:
        return [item async for item in iterator]

    async def close(self, closable: Any) -> None:
        await closable.aclose()

    @asynccontextmanager
    async def entered(self, stream: Any) -> AsyncIterator[Any]:
        async with stream:
            yield stream


class Aiohttp(Async):
    """The async client over aiohttp, unless the scenario brings a network of its own."""

    def client(self, url: str, **arguments: Any) -> AsyncRunsClient:
        if "http_client" in arguments:
            return AsyncRunsClient(url, **arguments)
        return AsyncRunsClient(url, **{"transport": "aiohttp", **arguments})


def _upto(iterator: Iterator[Any], count: int) -> list[Any]:
    return [next(iterator) for _ in range(count)]


class Blocking:
    def client(self, url: str, **arguments: Any) -> RunsClient:
        return RunsClient(url, **arguments)

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(method, *args, **kwargs)

    async def collect(self, stream: Any) -> list[Any]:
        return await asyncio.to_thread(list, stream)

    async def blocks(self, stream: Any) -> list[Any]:
        return await asyncio.to_thread(lambda: list(stream.iter_sse()))

    async def text(self, stream: Any) -> list[str]:
        return await asyncio.to_thread(lambda: list(stream.text()))

    async def take(self, stream: Any, count: int) -> list[Any]:
        return await asyncio.to_thread(_upto, stream, count)

    async def all_of(self, iterator: Any) -> list[Any]:
        return await asyncio.to_thread(list, iterator)

    async def close(self, closable: Any) -> None:
        await asyncio.to_thread(closable.close)

    @asynccontextmanager
    async def entered(self, stream: Any) -> AsyncIterator[Any]:
        await asyncio.to_thread(stream.__enter__)
        try:
            yield stream
        finally:
            await asyncio.to_thread(stream.close)


@contextmanager
def as_forked() -> Iterator[None]:
    """As if this process were the child of the one that was here before."""
    _io.forks.append(None)
    try:
        yield
    finally:
        _io.forks.pop()
