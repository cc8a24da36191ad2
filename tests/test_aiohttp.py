"""The extra `aiohttp`. Every scenario with a `flavour` is played over it, too."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
from httpx_aiohttp import HttpxAiohttpClient

from agentproto import (
    AsyncRunsClient,
    RunsClient,
    RunStream,
    StreamInterruptedError,
    Timeout,
    TransportError,
)
from agentproto._aiohttp import as_httpx

from .faults import SOON, bad_chunk, breaking, reset
from .raw_server import BOUND, RawServer, events, json_answer, raw_server

META = b'event: metadata\ndata: {"run_id":"r1"}\nid: 1\n\n'
END = b'event: end\ndata: {"status":"success"}\nid: 2\n\n'


def test_without_the_extra_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginner sees what to type, and when the client is made."""
    monkeypatch.delitem(sys.modules, "agentproto._aiohttp", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ImportError, match=r"pip install 'agentproto\[aiohttp\]'"):
        AsyncRunsClient("http://x", transport="aiohttp")


def test_sync_client_refuses_it() -> None:
    """aiohttp has no blocking half."""
    unchecked: Any = RunsClient
    with pytest.raises(TypeError, match="is for AsyncRunsClient"):
        unchecked("http://x", transport="aiohttp")


def test_it_is_not_given_together_with_a_client() -> None:
    """DESIGN: not together with http_client."""
    with pytest.raises(TypeError, match="give one of them"):
        AsyncRunsClient("http://x", transport="aiohttp", http_client=httpx.AsyncClient())


def test_trio_is_told_at_the_first_call() -> None:
    """aiohttp is made of asyncio."""

    async def main() -> None:
        async with AsyncRunsClient("http://127.0.0.1:9", transport="aiohttp") as client:
            with pytest.raises(RuntimeError, match="needs asyncio"):
                await client.get_run("r1")

    anyio.run(main, backend="trio")


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (aiohttp.ConnectionTimeoutError(), httpx.ConnectTimeout),
        (aiohttp.SocketTimeoutError(), httpx.ReadTimeout),
        (aiohttp.InvalidURL("http://["), httpx.UnsupportedProtocol),
        (aiohttp.ServerDisconnectedError(), httpx.ReadError),
        (aiohttp.ClientOSError(32, "Broken pipe"), httpx.ReadError),
        (aiohttp.ClientPayloadError("short"), httpx.ReadError),
        (RuntimeError("Connection closed."), httpx.ReadError),
    ],
)
def test_error_of_aiohttp_is_the_one_of_httpx_that_says_the_same(
    exc: Exception, kind: type[httpx.HTTPError]
) -> None:
    """What was sent must not pass for what never left: it would be sent again."""
    error = as_httpx(exc)
    assert type(error) is kind
    assert error.__cause__ is exc


async def stream_over(server: RawServer, http_client: httpx.AsyncClient) -> RunStream[Any]:
    client = AsyncRunsClient(server.url, http_client=http_client, timeout=Timeout(idle=0.3))
    return client.create_and_stream_run()


async def test_client_of_the_caller_streams() -> None:
    """README: http_client= takes a client of httpx-aiohttp, too."""
    with raw_server(events(META, END)) as server:
        async with HttpxAiohttpClient() as own:
            stream = await stream_over(server, own)
            assert [event.id async for event in stream] == ["1", "2"]


async def test_client_of_the_caller_sends_a_create_once() -> None:
    """httpx-aiohttp tells a connection that broke as one that was never made."""
    with raw_server(breaking(reset), json_answer("{}")) as server:
        async with HttpxAiohttpClient() as own:
            client = AsyncRunsClient(server.url, http_client=own)
            with pytest.raises(TransportError, match="the connection broke"):
                await client.create_run()
    assert len(server.requests) == 1


async def test_client_of_the_caller_does_not_wait_for_ever() -> None:
    """aiohttp forgets who reads a body when it closes the connection on a broken chunk."""
    with raw_server(breaking(bad_chunk)) as server:
        async with HttpxAiohttpClient() as own:
            stream = await stream_over(server, own)
            with pytest.raises(StreamInterruptedError) as caught:
                await asyncio.wait_for(stream.final(), BOUND)
    assert isinstance(caught.value.__cause__, TransportError)


async def test_kept_alive_connection_gathers_nothing() -> None:
    """Each body listens to the end of its connection no longer than it lasts."""
    with raw_server(json_answer('{"run_id": "r1"}')) as server:
        async with AsyncRunsClient(server.url, transport="aiohttp") as client:
            for _ in range(20):
                await client.get_run("r1")
            gc.collect()
            bodies = [o for o in gc.get_objects() if isinstance(o, aiohttp.StreamReader)]
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
    assert len(server.requests) == 20
    assert len(bodies) <= 1
