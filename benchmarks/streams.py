"""Each client as its documentation says: how many events it took, and in how many seconds.

A client is made and has a connection before the clock starts: what is measured is the stream.
Builds of another time run this file too: private names are imported only where they are used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, TypeAlias

import httpx
import httpx_sse

from agentproto import AsyncRunsClient, MessagesEvent, RunsClient

Taken: TypeAlias = tuple[int, float]
Client: TypeAlias = Callable[[str], Coroutine[Any, Any, Taken] | Taken]
TIMEOUT = 60.0


def microseconds(client: Client, url: str, count: int) -> float:
    """The time for an event of one stream of so many."""
    taken = client(url)
    seen, seconds = asyncio.run(taken) if isinstance(taken, Coroutine) else taken
    assert seen >= count, f"{client.__name__} took {seen} of {count}"
    return seconds / count * 1e6


async def _events(client: AsyncRunsClient) -> Taken:
    await client.create_and_wait_run(agent_id="a")
    count, began = 0, perf_counter()
    async with client.create_and_stream_run(agent_id="a") as stream:
        async for event in stream:
            if isinstance(event, MessagesEvent):
                count += bool(event.data)
    return count, perf_counter() - began


async def _messages(client: AsyncRunsClient) -> Taken:
    await client.create_and_wait_run(agent_id="a")
    count, began = 0, perf_counter()
    async with client.create_and_stream_run(agent_id="a") as stream:
        async for event in stream:
            if isinstance(event, MessagesEvent):
                count += bool(event.messages[0].content)
    return count, perf_counter() - began


async def ours(url: str) -> Taken:
    """agentproto."""
    async with AsyncRunsClient(url) as client:
        return await _events(client)


async def ours_messages(url: str) -> Taken:
    """agentproto, each `Message` looked into."""
    async with AsyncRunsClient(url) as client:
        return await _messages(client)


async def ours_on_client(url: str) -> Taken:
    """agentproto on an httpx client of the caller's."""
    async with (
        httpx.AsyncClient(timeout=TIMEOUT) as http_client,
        AsyncRunsClient(url, http_client=http_client) as client,
    ):
        return await _events(client)


async def ours_aiohttp(url: str) -> Taken:
    """agentproto[aiohttp]."""
    async with AsyncRunsClient(url, transport="aiohttp") as client:
        return await _events(client)


async def ours_aiohttp_messages(url: str) -> Taken:
    """agentproto[aiohttp], each `Message` looked into."""
    async with AsyncRunsClient(url, transport="aiohttp") as client:
        return await _messages(client)


async def bare(url: str) -> Taken:
    """httpx `aiter_raw`: bytes that nobody looks at."""
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        await client.post(f"{url}/runs/wait", json={})
        size, began = 0, perf_counter()
        async with client.stream("POST", f"{url}/runs/stream", json={"agent_id": "a"}) as response:
            async for piece in response.aiter_raw():
                size += len(piece)
        return size, perf_counter() - began


async def with_httpx_sse(url: str) -> Taken:
    """httpx-sse and json."""
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        await client.post(f"{url}/runs/wait", json={})
        count, began = 0, perf_counter()
        async with httpx_sse.aconnect_sse(client, "POST", f"{url}/runs/stream", json={}) as source:
            async for sse in source.aiter_sse():
                count += sse.event == "messages" and bool(json.loads(sse.data))
        return count, perf_counter() - began


async def langgraph_sdk(url: str) -> Taken:
    """langgraph-sdk."""
    from langgraph_sdk import get_client

    client = get_client(url=url)
    await client.runs.wait(None, "a", input={})
    count, began = 0, perf_counter()
    async for part in client.runs.stream(None, "a", input={}, stream_mode="messages-tuple"):
        count += part.event == "messages" and bool(part.data)
    taken = perf_counter() - began
    await client.aclose()
    return count, taken


async def openai(url: str) -> Taken:
    """openai, on as many completion chunks."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        await client.post("/runs/wait", body={}, cast_to=object)
        count, began = 0, perf_counter()
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        async for part in stream:
            count += bool(part.choices[0].delta.content)
        return count, perf_counter() - began


async def with_aiohttp(url: str) -> Taken:
    """aiohttp, the decoder of agentproto, and json."""
    import aiohttp

    from agentproto._sse import SSEDecoder

    decoder = SSEDecoder()
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/runs/wait", json={}) as response:
            await response.read()
        count, began = 0, perf_counter()
        async with session.post(f"{url}/runs/stream", json={}) as response:
            async for piece in response.content.iter_any():
                for sse in decoder.feed(piece):
                    count += sse.event == "messages" and bool(json.loads(sse.data))
        return count, perf_counter() - began


def sync(url: str) -> Taken:
    """agentproto without asyncio."""
    with RunsClient(url) as client:
        client.create_and_wait_run(agent_id="a")
        count, began = 0, perf_counter()
        for event in client.create_and_stream_run(agent_id="a"):
            if isinstance(event, MessagesEvent):
                count += bool(event.data)
        return count, perf_counter() - began


def sync_by_hand(url: str) -> Taken:
    """by hand over `httpx.Client`, with the decoder and the events of agentproto."""
    from agentproto._events import EventReader
    from agentproto._sse import SSEDecoder

    decoder, read = SSEDecoder(), EventReader[Any](None).read
    with httpx.Client(timeout=TIMEOUT) as client:
        client.post(f"{url}/runs/wait", json={})
        count, began = 0, perf_counter()
        with client.stream("POST", f"{url}/runs/stream", json={}) as response:
            for piece in response.iter_raw():
                for sse in decoder.feed(piece):
                    event = read(sse)
                    if isinstance(event, MessagesEvent):
                        count += bool(event.data)
        return count, perf_counter() - began
