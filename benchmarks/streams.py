"""Each client as its documentation says: how many events it took from a stream."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import httpx
import httpx_sse

from agentproto import AsyncRunsClient, MessagesEvent, RunsClient
from agentproto._sse import SSEDecoder

Stream: TypeAlias = Callable[[str], Awaitable[int]]
TIMEOUT = 60.0


async def ours(url: str) -> int:
    """agentproto: typed events."""
    count = 0
    async with AsyncRunsClient(url) as client, client.create_and_stream_run(agent_id="a") as stream:
        async for event in stream:
            if isinstance(event, MessagesEvent):
                count += len(event.messages)
    return count


async def bare(url: str) -> int:
    """httpx: bytes that nobody looks at, the limit of the transport."""
    size = 0
    async with (
        httpx.AsyncClient(timeout=TIMEOUT) as client,
        client.stream("POST", f"{url}/runs/stream", json={"agent_id": "a"}) as response,
    ):
        async for piece in response.aiter_raw():
            size += len(piece)
    return size


async def with_httpx_sse(url: str) -> int:
    """httpx-sse and json."""
    count = 0
    async with (
        httpx.AsyncClient(timeout=TIMEOUT) as client,
        httpx_sse.aconnect_sse(client, "POST", f"{url}/runs/stream", json={}) as source,
    ):
        async for sse in source.aiter_sse():
            count += bool(json.loads(sse.data))
    return count


async def langgraph_sdk(url: str) -> int:
    """langgraph-sdk: untyped parts."""
    from langgraph_sdk import get_client

    count = 0
    client = get_client(url=url)
    async for part in client.runs.stream(None, "a", input={}, stream_mode="messages-tuple"):
        count += part.event == "messages"
    await client.aclose()
    return count


async def openai(url: str) -> int:
    """openai, on a stream of completions of the same length."""
    from openai import AsyncOpenAI

    count = 0
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        async for part in stream:
            count += bool(part.choices[0].delta.content)
    return count


async def with_aiohttp(url: str) -> int:
    """aiohttp and the decoder of agentproto, without types."""
    import aiohttp

    decoder, count = SSEDecoder(), 0
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/runs/stream", json={}) as response,
    ):
        async for piece in response.content.iter_any():
            for sse in decoder.feed(piece):
                count += bool(json.loads(sse.data))
    return count


def sync(url: str) -> int:
    """agentproto without asyncio."""
    count = 0
    with RunsClient(url) as client:
        for event in client.create_and_stream_run(agent_id="a"):
            if isinstance(event, MessagesEvent):
                count += len(event.messages)
    return count


def sync_by_hand(url: str) -> int:
    """What somebody writes by hand over httpx.Client, with the same decoder and models."""
    from agentproto._events import EventReader

    decoder, read, count = SSEDecoder(), EventReader[Any](None), 0
    with (
        httpx.Client(timeout=TIMEOUT) as client,
        client.stream("POST", f"{url}/runs/stream", json={}) as response,
    ):
        for piece in response.iter_raw():
            for sse in decoder.feed(piece):
                event = read(sse)
                if isinstance(event, MessagesEvent):
                    count += len(event.messages)
    return count


def wait(client: RunsClient) -> None:
    """A wait call."""
    client.create_and_wait_run(agent_id="a", input={"n": 1})


def bare_wait(client: httpx.Client, url: str) -> dict[str, Any]:
    """The same request over httpx."""
    answer = client.post(f"{url}/runs/wait", json={"agent_id": "a", "input": {"n": 1}})
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found
