"""Many streams at once, and one that is read slowly."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from agentproto import AsyncRunsClient, RunsClient

from .both import Flavour
from .faults import IDS, RUN, SSE, good
from .raw_server import BOUND, Connection, Script, chunk, events, head, raw_server

STREAMS = 1_000


@pytest.fixture
def many_files() -> Iterator[None]:
    """Two sockets a stream, client and server being one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * STREAMS + 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def held_back(count: int) -> Script:
    """Each stream waits behind its first event until so many are open."""
    open_streams: list[Connection] = []
    all_open: list[asyncio.Event] = []

    async def script(connection: Connection) -> None:
        if not all_open:
            all_open.append(asyncio.Event())
        open_streams.append(connection)
        await connection.send(head(200, **SSE, transfer_encoding="chunked"), chunk(RUN[0]))
        if len(open_streams) == count:
            all_open[0].set()
        await all_open[0].wait()
        await connection.send(*map(chunk, RUN[1:]), b"0\r\n\r\n")

    return script


@pytest.mark.usefixtures("many_files")
async def test_a_thousand_streams_at_once() -> None:
    """FAULTS: load: one client with its defaults, every event of each, none before all are open."""

    async def consume(client: AsyncRunsClient) -> list[str | None]:
        return [event.id async for event in client.create_and_stream_run()]

    with raw_server(held_back(STREAMS)) as server:
        async with AsyncRunsClient(server.url) as client:
            seen = await asyncio.gather(*(consume(client) for _ in range(STREAMS)))
    assert seen == [IDS] * STREAMS
    assert len(server.requests) == STREAMS


def test_a_stream_beside_a_hundred_idle_ones() -> None:
    """FAULTS: load: httpx's own limit of 100 connections makes the next one fail."""
    idle = [events(RUN[0], hold=True)] * 100
    with (
        raw_server(*idle, good()) as server,
        RunsClient(server.url) as client,
        ExitStack() as streams,
    ):
        for _ in range(100):
            next(streams.enter_context(client.create_and_stream_run()))
        assert [event.id for event in client.create_and_stream_run()] == IDS


EVENTS = 100_000
BATCH = 100
PADDING = b"x" * 900


async def test_slow_consumer_holds_the_server_back(flavour: Flavour) -> None:
    """FAULTS: load: the socket pushes back; nothing piles up here, and nothing is lost."""
    sent = 0
    is_stuck = threading.Event()

    async def flood(connection: Connection) -> None:
        nonlocal sent
        await connection.send(head(200, **SSE, connection="close"))
        for start in range(0, EVENTS, BATCH):
            batch = [
                b'event: custom\ndata: [%d, "%b"]\n\n' % (number, PADDING)
                for number in range(start, start + BATCH)
            ]
            sending = asyncio.ensure_future(connection.send(b"".join(batch)))
            if not (await asyncio.wait({sending}, timeout=0.5))[0]:
                is_stuck.set()
            await sending
            sent += BATCH
        await connection.send(RUN[-1])

    with raw_server(flood) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        numbers = [event.data[0] for event in await flavour.take(stream, EVENTS // 2)]
        is_stuck.clear()
        assert await asyncio.to_thread(is_stuck.wait, BOUND)
        bytes_ahead = (sent - EVENTS // 2) * len(PADDING)
        events_held = len(stream.core._pending)
        rest = await flavour.collect(stream)
        await flavour.close(client)
    numbers += [event.data[0] for event in rest[:-1]]
    assert numbers == list(range(EVENTS))
    assert events_held < 1_000
    assert bytes_ahead < 20_000_000  # in the buffers of the sockets
