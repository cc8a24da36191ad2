"""Every way out: the server sees the connection close, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import trustme

from agentproto import AsyncRunsClient, RetryPolicy, RunsClient, RunStream, Timeout
from agentproto._io import Stop, WireRequest
from agentproto.testing import AgentRun, RunsServer, Values

from .both import Async, Flavour, as_forked
from .faults import IDS, SOON, breaking, full_backlog, good, reset
from .interruptible import interruptible, wait_until_asleep
from .raw_server import BOUND, Connection, Script, answer, events, head, json_answer, raw_server

META = b'event: metadata\ndata: {"run_id":"r1"}\nid: 1\n\n'
END = b'event: end\ndata: {"status":"success"}\nid: 2\n\n'
STREAM = {"content_type": "text/event-stream"}


async def silent(connection: Connection) -> None:
    await connection.client_closes()


async def half_a_body(connection: Connection) -> None:
    await connection.send(head(200, **STREAM, content_length="100") + b'{"values"')
    await connection.client_closes()


CALLS: dict[str, Callable[[Flavour, Any], Any]] = {
    "create_and_wait_run": lambda flavour, client: flavour.call(client.create_and_wait_run),
    "wait_run": lambda flavour, client: flavour.call(client.wait_run, "r1"),
    "create_and_stream_run": lambda flavour, client: flavour.collect(
        client.create_and_stream_run()
    ),
    "stream_run": lambda flavour, client: flavour.collect(client.stream_run("r1")),
}
WAITS_FOR = {
    "headers": silent,
    "a body": half_a_body,
    "events": events(META, hold=True),
    "the next attempt": answer(429, retry_after="5"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("waits_for", WAITS_FOR)
async def test_closing_the_client_ends_a_call_that_waits(
    flavour: Flavour, call: str, waits_for: str
) -> None:
    """DESIGN: whatever a call waits for, close() ends it, also from another thread."""
    with raw_server(WAITS_FOR[waits_for]) as server:
        client = flavour.client(server.url)
        task = asyncio.create_task(CALLS[call](flavour, client))
        await asyncio.to_thread(server.asked.wait, BOUND)
        await flavour.close(client)
        with pytest.raises(RuntimeError, match=r"client (was|is) closed"):
            await asyncio.wait_for(task, BOUND)
        assert await asyncio.to_thread(server.closed.wait, BOUND)
    assert len(server.requests) == 1


async def test_child_of_a_fork_leaves_the_streams_of_its_parent(flavour: Flavour) -> None:
    """What a child closes or collects must not shut down a socket that its parent reads."""
    with raw_server(events(META, END)) as server:
        client = flavour.client(server.url)
        async with flavour.entered(client.create_and_stream_run()) as stream:
            with as_forked():
                await flavour.close(client)
                stream.core.abandon()
            client._session.io.is_closed = False  # in the parent, whose memory is its own
            assert [event.id for event in await flavour.take(stream, 2)] == ["1", "2"]
        await _close_pool(client)


async def _close_pool(client: Any) -> None:
    pool = client._session.io._get_client()
    if isinstance(pool, httpx.AsyncClient):
        await pool.aclose()
    else:
        pool.close()


def test_connection_that_is_made_while_its_call_is_ended_is_ended_as_well() -> None:
    """FAULTS: close() from another thread ends a call that is about to write its request."""
    stop, connection = Stop(), Mock()
    stop.set()
    stop.hold(connection)
    connection.abort.assert_called_once_with()


async def test_wait_that_begins_after_the_client_was_closed_ends_at_once() -> None:
    """DESIGN: a call that is between two waits when its client is closed ends at the next one."""
    client = AsyncRunsClient("http://127.0.0.1:9")
    await client.aclose()
    with pytest.raises(RuntimeError, match="client was closed"):
        await client._session.io.sleep(BOUND, REQUEST)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("waits_for", WAITS_FOR)
@pytest.mark.parametrize("own", [False, True], ids=["ours", "the caller's"])
async def test_cancelled_task_leaves_nothing_behind(
    call: str, waits_for: str, own: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS: CancelledError passes untouched, the server sees the close within 2 s."""
    theirs = httpx.AsyncClient() if own else None
    with raw_server(WAITS_FOR[waits_for]) as server:
        client = AsyncRunsClient(server.url, http_client=theirs)
        task = asyncio.create_task(CALLS[call](Async(), client))
        await asyncio.to_thread(server.asked.wait, BOUND)
        task.cancel("the caller's reason")
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ("the caller's reason",)
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await client.aclose()
    if theirs is not None:
        await theirs.aclose()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_cancellation_while_connecting_passes() -> None:
    """FAULTS: task cancelled while connecting."""
    with ExitStack() as stack:
        port = full_backlog(stack)
        async with AsyncRunsClient(f"http://127.0.0.1:{port}") as client:
            task = asyncio.create_task(client.create_and_wait_run())
            for _ in range(20):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_cancellation_while_closing_still_closes() -> None:
    """FAULTS: task cancelled while closing."""
    with raw_server(events(META, hold=True)) as server:
        async with AsyncRunsClient(server.url) as client:
            stream = client.create_and_stream_run()
            await anext(stream)
            task = asyncio.create_task(stream.aclose())
            await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.all_closed.wait, SOON)
            assert stream.ended == "closed"


REQUEST = WireRequest(
    method="GET",
    url="http://127.0.0.1:9/runs/r1",
    headers={},
    content=None,
    asked="GET /runs/r1",
    timeout=Timeout(),
    deadline=None,
)

LEFT_BY = {
    "wait": "client.create_and_wait_run()",
    "stream": "for event in client.create_and_stream_run(): print(event.id, flush=True)",
    "with": "with client.create_and_stream_run() as s: print(next(s).id, flush=True); next(s)",
    "retry": "client.get_run('r1')",
}
SYNC_PROGRAM = """
import sys
from agentproto import RunsClient
client = RunsClient(sys.argv[1])
print("ready", flush=True)
try:
    {}
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""
ASYNC_PROGRAM = """
import asyncio, sys
from agentproto import AsyncRunsClient

async def main():
    async with AsyncRunsClient(sys.argv[1]) as client:
        print("ready", flush=True)
        async for event in client.create_and_stream_run():
            print(event.id, flush=True)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("script", "program"),
    [
        (silent, SYNC_PROGRAM.format(LEFT_BY["wait"])),
        (events(META, hold=True), SYNC_PROGRAM.format(LEFT_BY["stream"])),
        (events(META, hold=True), SYNC_PROGRAM.format(LEFT_BY["with"])),
        (answer(429, retry_after="50"), SYNC_PROGRAM.format(LEFT_BY["retry"])),
        (events(META, hold=True), ASYNC_PROGRAM),
    ],
    ids=["sync wait", "sync stream", "sync stream in a block", "sync retry", "async stream"],
)
def test_ctrl_c_closes_the_connection_of_a_process_that_lives_on(
    script: Script, program: str
) -> None:
    """FAULTS: KeyboardInterrupt: the server sees the close within 2 s, no traceback is printed."""
    with raw_server(script) as server:
        command = [sys.executable, "-W", "default", "-c", program, server.url]
        with interruptible(command) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert server.asked.wait(BOUND)
            if "for event" in program or "next" in program:
                assert process.stdout.readline() == "1\n"
            wait_until_asleep(process, BOUND)
            process.send_signal(signal.SIGINT)
            assert server.all_closed.wait(SOON)
            out, err = process.communicate("", timeout=BOUND)
    assert (out, process.returncode) == ("interrupted\n", 0)
    assert "Traceback" not in err
    assert "never retrieved" not in err
    assert len(server.requests) == 1


def test_garbage_of_calls_runs_no_code_that_could_swallow_an_interrupt() -> None:
    """httpx leaves cycles: what is collected with them must not have Python callbacks."""
    ran: list[str] = []

    watchers = [getattr(callback, "__code__", None) for callback in gc.callbacks]  # hypothesis's

    def note(frame: FrameType, what: str, _: object) -> None:
        if what == "call" and frame.f_code not in watchers:
            ran.append(frame.f_code.co_qualname)

    with raw_server(events(META, END), json_answer('{"run_id": "r1"}')) as server:
        client = RunsClient(server.url)
        gc.collect()
        gc.disable()
        assert len(list(client.create_and_stream_run())) == 2
        assert client.get_run("r1").run_id == "r1"
        sys.setprofile(note)
        try:
            collected = gc.collect()
        finally:
            sys.setprofile(None)
            gc.enable()
        client.close()
    assert collected > 20
    assert ran == []


async def test_streams_over_tls_are_joined_and_closed(flavour: Flavour) -> None:
    """FAULTS: real TLS: a cut stream goes on, and close() ends a read, also from another thread."""
    authority = trustme.CA()
    known, trusting = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(purpose=ssl.Purpose.SERVER_AUTH),
    )
    authority.issue_cert("127.0.0.1").configure_cert(known)
    authority.configure_trust(trusting)
    kind = httpx.AsyncClient if isinstance(flavour, Async) else httpx.Client
    own = kind(verify=trusting)
    with raw_server(breaking(reset), good(), events(META, hold=True), tls=known) as server:
        client = flavour.client(server.url, http_client=own, retry=RetryPolicy(first_delay=0))
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert [event.id for event in await flavour.collect(stream)] == IDS
        held = client.stream_run("r1")
        await flavour.take(held, 1)
        reading = asyncio.create_task(flavour.take(held, 1))
        await asyncio.sleep(0)
        await flavour.close(client)
        with pytest.raises(RuntimeError, match=r"client (was|is) closed|stream is closed"):
            await asyncio.wait_for(reading, BOUND)
        assert await asyncio.to_thread(server.all_closed.wait, SOON)
    await (own.aclose() if isinstance(own, httpx.AsyncClient) else asyncio.to_thread(own.close))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of dead loops
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_client_serves_one_event_loop_after_another() -> None:
    """A connection kept from a loop that is gone would lose the answer of a run it has created."""
    with RunsServer({"echo": echo}) as server:
        client = AsyncRunsClient(server.url)

        async def use() -> None:
            assert (await client.create_and_wait_run(agent_id="echo")).values == {"n": 1}
            async with client.create_and_stream_run(agent_id="echo") as stream:
                assert (await stream.final()).values == {"n": 1}

        for _ in range(4):
            asyncio.run(use())
        gc.collect()
        with RunsClient(server.url) as counting:
            assert len(list(counting.iter_runs())) == 8

        async def leave_one_open_and_close_elsewhere() -> RunStream[dict[str, Any]]:
            return await client.create_and_stream_run(agent_id="echo").__aenter__()

        stream = asyncio.run(leave_one_open_and_close_elsewhere())
        asyncio.run(client.aclose())
        assert stream.run is not None
        stream.core.exchange = None  # its loop is gone: nobody can end it in order


@pytest.mark.parametrize("transport", [None, "aiohttp"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of dead loops
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_connections_of_event_loops_that_are_gone_are_let_go(transport: Any) -> None:
    """Seen: one was kept for each asyncio.run, until no file descriptor was left."""
    with raw_server(*[json_answer('{"run_id": "r1"}')] * 30) as server:
        client = AsyncRunsClient(server.url, transport=transport)

        async def ask() -> None:
            await client.get_run("r1")

        for _ in range(30):
            asyncio.run(ask())
            gc.collect()
        pools = len(client._session.io._clients)  # type: ignore[attr-defined]
        asyncio.run(client.aclose())
        gc.collect()
        assert server.all_closed.wait(SOON)
    assert pools == 1


async def test_async_client_makes_connections_anew_behind_a_fork() -> None:
    """Two processes on one inherited connection read each other's answers."""
    with raw_server(json_answer('{"run_id": "r1"}')) as server:
        async with AsyncRunsClient(server.url) as client:
            await client.get_run("r1")
            inherited = list(client._session.io._clients.values())  # type: ignore[attr-defined]
            with as_forked():
                assert (await client.get_run("r1")).run_id == "r1"
                await client.aclose()
            assert not inherited[0].is_closed
            await inherited[0].aclose()
    assert len(server.requests) == 2


def test_what_is_stopped_before_it_waits_does_not_wait() -> None:
    """A stream that another thread closes just before a pause."""
    stop = Stop()
    stop.set()
    stop.wait(3600)
    assert stop.is_set


async def echo(_: AgentRun) -> AsyncGenerator[Values]:
    yield Values({"n": 1})
