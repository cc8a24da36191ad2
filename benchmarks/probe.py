"""One measurement in a process of its own.

`probe.py WHAT CLIENT URL COUNT [asyncio|uvloop]` prints a number. Builds of another time run this
file too: it uses nothing that is private.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

MEBI = 2**20


def resident() -> int:
    """Bytes that this process holds."""
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def queued() -> float:
    """Seconds that this process has waited for a core."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


Measurement: TypeAlias = Callable[[str, str, int], Coroutine[Any, Any, float]]


def undisturbed(measurement: Measurement) -> Measurement:
    """The one of up to three tries for which the process waited the least for a core.

    One that waits finds more events at once and takes less time for each: with five other busy
    processes on two cores, half of it.
    """

    async def measure(client: str, url: str, count: int) -> float:
        tries: list[tuple[float, float]] = []
        while len(tries) < 3 and (not tries or tries[-1][0] > 0.2):
            began, before = time.monotonic(), queued()
            found = await measurement(client, url, count)
            tries.append(((queued() - before) / (time.monotonic() - began), found))
        return min(tries)[1]

    return measure


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


def opened_by_httpx(url: str) -> tuple[Callable[[], AsyncIterator[Any]], Any]:
    """Bytes that nobody looks at."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    client = httpx.AsyncClient(timeout=300, limits=limits)

    async def start() -> AsyncIterator[bytes]:
        async with client.stream("POST", f"{url}/runs/stream", json={}) as response:
            async for piece in response.aiter_raw():
                yield piece

    return start, client.aclose


def opened_by_socket(url: str) -> tuple[Callable[[], AsyncIterator[Any]], Any]:
    """No HTTP either: what a stream of asyncio takes at least."""
    host, _, port = url.split("/")[2].partition(":")
    path = url.split("/", 3)[3]
    request = b"POST /%b/runs/stream HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode()

    async def start() -> AsyncIterator[bytes]:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        while piece := await reader.read(65_536):
            yield piece
            if piece.endswith(b"\r\n0\r\n\r\n"):
                break
        writer.close()

    async def close() -> None: ...

    return start, close


OPENERS = {
    "ours": opened_by_us(None),
    "ours_aiohttp": opened_by_us("aiohttp"),
    "langgraph_sdk": opened_by_langgraph_sdk,
    "httpx": opened_by_httpx,
    "socket": opened_by_socket,
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


async def token(client: str, url: str, count: int) -> float:
    """Microseconds of CPU for each event of so many streams, once all of them have begun."""
    start, close = OPENERS[client](url)
    begun, events, since = 0, 0, 0.0

    async def consume() -> None:
        nonlocal begun, events, since
        mine = 0
        async for _ in start():
            events += 1
            mine += 1
            if mine == 10:
                begun += 1
                if begun == count:
                    events, since = 0, time.process_time()

    await asyncio.gather(*[consume() for _ in range(count)])
    taken = time.process_time() - since
    await close()
    assert events >= count * 10
    return taken / events * 1e6


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


def stream(client: str, url: str, count: int) -> float:
    """Microseconds for each event of one stream of so many."""
    import streams

    return least(lambda: streams.microseconds(getattr(streams, client), url, count))


def wait(kind: str, url: str, _count: int) -> float:
    """Microseconds for a wait call."""
    import waits

    return least(lambda: waits.WAITS[kind](url)) * 1e6


def least(measure: Callable[[], float]) -> float:
    """The least of a few: other processes only add to it, and the first one warms up."""
    return min(measure() for _ in range(5))


def main() -> None:
    what, name, url, count, *loop = sys.argv[1:]
    measure = MEASUREMENTS[what](name, url, int(count))
    if not inspect.iscoroutine(measure):
        print(measure)
    elif loop == ["uvloop"]:
        import uvloop

        print(uvloop.run(measure))
    else:
        print(asyncio.run(measure))


MEASUREMENTS = {
    "cpu": undisturbed(cpu),
    "token": undisturbed(token),
    "memory": memory,
    "growth": growth,
    "large": large,
    "stream": stream,
    "wait": wait,
}

if __name__ == "__main__":
    main()
