"""trio: the happy path, leaving, cancelling and joining, without a warning."""

from __future__ import annotations

import gc
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
import trustme

from agentproto import AsyncRunsClient, RetryPolicy
from agentproto.testing import AgentRun, RunsServer, Values

from .faults import IDS, SOON, breaking, good, reset, silence
from .raw_server import Script, events, raw_server

META = b'event: metadata\ndata: {"run_id":"r1"}\nid: 1\n\n'


async def echo(_: AgentRun) -> AsyncGenerator[Values]:
    yield Values({"n": 1})


async def many(_: AgentRun) -> AsyncGenerator[Values]:
    for number in range(1_000):
        yield Values({"n": number})


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What Python could raise nowhere, such as the warning of a suspended generator."""
    found: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: found.append(str(report.exc_value)))
    yield found
    gc.collect()
    assert found == []


def on_trio(main: Callable[..., Awaitable[None]], *args: Any) -> None:
    anyio.run(main, *args, backend="trio")
    gc.collect()


def test_streams_leave_no_suspended_generator(unraisable: list[str]) -> None:
    """Seen: 50 ResourceWarnings of trio for 10 streams that were read whole."""

    async def main(url: str) -> None:
        async with AsyncRunsClient(url) as client:
            for _ in range(10):
                async with client.create_and_stream_run(agent_id="echo") as stream:
                    assert [event.event async for event in stream][-1] == "end"
            for _ in range(10):
                async with client.create_and_stream_run(agent_id="many") as stream:
                    await anext(stream)
            result = await client.create_and_wait_run(agent_id="echo")
            assert result.values == {"n": 1}
            stream = client.create_and_stream_run(agent_id="echo")
            assert (await stream.final()).values == {"n": 1}

    with RunsServer({"echo": echo, "many": many}) as server:
        on_trio(main, server.url)
    assert unraisable == []


def test_cut_stream_is_joined(unraisable: list[str]) -> None:
    """FAULTS, How a cut stream goes on, 2."""

    async def main(url: str) -> None:
        async with AsyncRunsClient(url, retry=RetryPolicy(first_delay=0)) as client:
            stream = client.create_and_stream_run(on_disconnect="continue")
            assert [event.id async for event in stream] == IDS

    with raw_server(breaking(reset), good()) as server:
        on_trio(main, server.url)
    assert unraisable == []


@pytest.mark.parametrize("script", [silence, events(META, hold=True)], ids=["head", "events"])
def test_scope_that_is_cancelled_closes_the_connection(
    script: Script, unraisable: list[str]
) -> None:
    """FAULTS: the server sees the close within 2 s."""

    async def main(url: str) -> None:
        async with AsyncRunsClient(url) as client:
            with anyio.move_on_after(0.1) as scope:
                async with client.create_and_stream_run() as stream:
                    async for _ in stream:
                        pass
            assert scope.cancelled_caught
            assert await anyio.to_thread.run_sync(server.all_closed.wait, SOON)

    with raw_server(script) as server:
        on_trio(main, server.url)
    assert unraisable == []


def test_streams_over_tls_are_read_and_left(unraisable: list[str]) -> None:
    """TLS makes no difference."""
    authority = trustme.CA()
    known, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(known)
    authority.configure_trust(trusting)

    async def main(url: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            name = "agentproto._io.transports.asynchronous.shared_ssl_context"
            patch.setattr(name, lambda: trusting)
            async with AsyncRunsClient(url) as client:
                stream = client.create_and_stream_run(on_disconnect="continue")
                assert [event.id async for event in stream] == IDS
                async with client.stream_run("r1") as left:
                    await anext(left)
                assert await anyio.to_thread.run_sync(server.all_closed.wait, SOON)

    with raw_server(good(), events(META, hold=True), tls=known) as server:
        on_trio(main, server.url)
    assert unraisable == []


def test_client_of_the_caller_serves(unraisable: list[str]) -> None:
    """README: `http_client` is used as it is."""

    async def main(url: str) -> None:
        async with httpx.AsyncClient() as own:
            client = AsyncRunsClient(url, http_client=own)
            stream = client.create_and_stream_run(on_disconnect="continue")
            assert [event.id async for event in stream] == IDS
            async with client.stream_run("r1") as left:
                await anext(left)

    with raw_server(good(), events(META, hold=True)) as server:
        on_trio(main, server.url)
    assert unraisable == []
