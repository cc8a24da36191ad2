"""Wait calls on a kept-alive connection: the seconds that one takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any

import httpx

from agentproto import AsyncRunsClient, RunsClient

COUNT = 100
BODY: dict[str, Any] = {"agent_id": "a", "input": {"n": 1}}


def sync(url: str) -> float:
    with RunsClient(url) as client:
        client.create_and_wait_run(**BODY)
        began = perf_counter()
        for _ in range(COUNT):
            client.create_and_wait_run(**BODY)
        return (perf_counter() - began) / COUNT


def bare_sync(url: str) -> float:
    with httpx.Client() as client:
        client.post(f"{url}/runs/wait", json=BODY)
        began = perf_counter()
        for _ in range(COUNT):
            client.post(f"{url}/runs/wait", json=BODY).raise_for_status().json()
        return (perf_counter() - began) / COUNT


async def _ours(url: str, transport: Any) -> float:
    async with AsyncRunsClient(url, transport=transport) as client:
        await client.create_and_wait_run(**BODY)
        began = perf_counter()
        for _ in range(COUNT):
            await client.create_and_wait_run(**BODY)
        return (perf_counter() - began) / COUNT


async def _bare(url: str) -> float:
    async with httpx.AsyncClient() as client:
        await client.post(f"{url}/runs/wait", json=BODY)
        began = perf_counter()
        for _ in range(COUNT):
            (await client.post(f"{url}/runs/wait", json=BODY)).raise_for_status().json()
        return (perf_counter() - began) / COUNT


WAITS: dict[str, Callable[[str], float]] = {
    "sync": sync,
    "bare sync": bare_sync,
    "async": lambda url: asyncio.run(_ours(url, None)),
    "bare async": lambda url: asyncio.run(_bare(url)),
    "aiohttp": lambda url: asyncio.run(_ours(url, "aiohttp")),
}
