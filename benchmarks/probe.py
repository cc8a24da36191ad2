"""One measurement in a process of its own: `probe.py WHAT CLIENT URL COUNT` prints a number."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

MEBI = 2**20


def resident() -> int:
    """Bytes that this process holds."""
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def opened_by_us(transport: Any) -> Callable[[str], tuple[Callable[[], AsyncIterator[Any]], Any]]:
    def make(url: str) -> tuple[Callable[[], AsyncIterator[Any]], Any]:
        from agentproto import AsyncRunsClient

        client = AsyncRunsClient(url, transport=transport)
        return lambda: client.create_and_stream_run(agent_id="a"), client.aclose

    return make


def opened_by_langgraph_sdk(url: str) -> tuple[Callable[[], AsyncIterator[Any]], Any]:
    import httpx
    from langgraph_sdk import get_client

    client = get_client(url=url)
    # Its pool holds 100 connections, and the 101st stream fails: this is how its users raise it.
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
    client.http.client = httpx.AsyncClient(base_url=url, transport=transport, timeout=300)
    return (
        lambda: client.runs.stream(None, "a", input={}, stream_mode="messages-tuple"),
        client.aclose,
    )


OPENERS = {
    "ours": opened_by_us(None),
    "ours_aiohttp": opened_by_us("aiohttp"),
    "langgraph_sdk": opened_by_langgraph_sdk,
}


async def cpu(client: str, url: str, count: int) -> float:
    """Seconds of CPU of so many streams at once, from the first to the last event."""
    start, close = OPENERS[client](url)
    events = 0

    async def consume() -> None:
        nonlocal events
        async for _ in start():
            events += 1

    began = time.process_time()
    await asyncio.gather(*[consume() for _ in range(count)])
    taken = time.process_time() - began
    await close()
    assert events >= count * 20
    return taken


async def memory(client: str, url: str, count: int) -> float:
    """KiB per stream, with so many open and one event taken of each."""
    start, close = OPENERS[client](url)
    first = aiter(start())
    await anext(first)
    before = resident()
    streams = [aiter(start()) for _ in range(count)]
    for at in range(0, count, 50):
        await asyncio.gather(*[anext(stream) for stream in streams[at : at + 50]])
    held = (resident() - before) / count / 1024
    await asyncio.gather(*[stream.aclose() for stream in [first, *streams]])  # type: ignore[attr-defined]
    await close()
    return held


async def growth(client: str, url: str, count: int) -> float:
    """MiB by which the memory grows from a tenth of a stream of so many events to its end."""
    start, close = OPENERS[client](url)
    seen, before, after = 0, 0, 0
    async for _ in start():
        seen += 1
        if seen == count // 10:
            before = resident()
        elif seen == count:
            after = resident()
    await close()
    return (after - before) / MEBI


async def large(client: str, url: str, count: int) -> float:
    """How many times the size of one event of so many bytes the memory grew to."""
    start, close = OPENERS[client](url.replace("large", "token"))
    async for _ in start():
        pass
    await close()
    start, close = OPENERS[client](url)
    before = resident()
    async for event in start():
        del event
    await close()
    return (peak() - before) / count


if __name__ == "__main__":
    what, name, url, count = sys.argv[1:]
    measure = {"cpu": cpu, "memory": memory, "growth": growth, "large": large}[what]
    print(asyncio.run(measure(name, url, int(count))))
