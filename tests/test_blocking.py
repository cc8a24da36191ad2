"""The sync facade: the same core, without an event loop, a thread or a second implementation."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_overloads

import httpx
import pytest

from agentproto import (
    AsyncRunsClient,
    BlockingRunStream,
    RunsClient,
    RunStream,
)
from agentproto._blocking import drive

from .both import as_forked
from .raw_server import BOUND, events, json_answer, raw_server

DONE = '{"run":{"run_id":"r1","status":"success"},"values":{"n":1}}'
VALUES = b'event: values\ndata: {"n":1}\n\n'
CALLS = [
    "create_and_wait_run",
    "create_and_stream_run",
    "update_and_wait_run",
    "update_and_stream_run",
    "create_run",
    "get_run",
    "search_runs",
    "iter_runs",
    "wait_run",
    "stream_run",
    "cancel_run",
    "delete_run",
]


def _sync_form(annotation: str) -> str:
    return annotation.replace("BlockingRunStream", "RunStream").replace("AsyncIterator", "Iterator")


def _signature(function: Any) -> tuple[list[tuple[str, Any, Any, str]], str]:
    signature = inspect.signature(function)
    parameters = [
        (p.name, p.kind, p.default, str(p.annotation)) for p in signature.parameters.values()
    ]
    return parameters, _sync_form(str(signature.return_annotation))


@pytest.mark.parametrize("name", CALLS)
def test_sync_method_has_signature_and_docstring_of_the_async_one(name: str) -> None:
    """DESIGN, Rooms: a test compares signatures and docstrings with the async ones."""
    asynchronous, blocking = getattr(AsyncRunsClient, name), getattr(RunsClient, name)
    assert _signature(blocking) == _signature(asynchronous)
    assert blocking.__doc__ == asynchronous.__doc__
    assert blocking.__doc__
    overloads = [list(map(_signature, get_overloads(f))) for f in (asynchronous, blocking)]
    assert overloads[0] == overloads[1]
    assert len(overloads[0]) == (2 if "wait" in name or "stream" in name else 0)


def test_sync_client_offers_what_the_async_one_offers() -> None:
    """`RunsClient` is the same without `await`."""
    sync_names = {"aclose": "close", "aiter_sse": "iter_sse"}
    for asynchronous, blocking in ((AsyncRunsClient, RunsClient), (RunStream, BlockingRunStream)):
        public = {name for name in dir(asynchronous) if not name.startswith("_")}
        offered = {name for name in dir(blocking) if not name.startswith("_")}
        assert {sync_names.get(name, name) for name in public} == offered


def test_constructors_take_the_same() -> None:
    """The same arguments; the transports differ by kind."""
    names = [list(inspect.signature(kind).parameters) for kind in (AsyncRunsClient, RunsClient)]
    assert names[0] == names[1]


def test_core_that_suspends_is_told() -> None:
    """DESIGN, The sync facade: the driver raises a clear error if the core ever suspends."""

    async def suspends() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="core of agentproto suspended"):
        drive(suspends())


async def test_sync_client_works_inside_a_running_loop() -> None:
    """Notebooks run one."""
    with raw_server(json_answer(DONE)) as server, RunsClient(server.url) as client:
        assert client.create_and_wait_run().values == {"n": 1}


def test_one_client_serves_several_threads() -> None:
    """From several threads, each with calls and streams of its own."""
    with raw_server(events(VALUES * 50)) as server, RunsClient(server.url) as client:

        def count(_: int) -> int:
            return len(list(client.create_and_stream_run()))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(count, range(40))) == [50] * 40


def in_child(check: Any) -> str:
    """What `check` returns in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover  # the child is another process, which is not measured
        try:
            told = check()
        except BaseException as error:  # whatever it is, the parent asserts on it
            told = f"{type(error).__name__}: {error}"
        os.write(writing, str(told).encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    return told


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_client_makes_connections_of_its_own_after_a_fork() -> None:
    """DESIGN, The sync facade: it abandons its own pool without closing sockets."""
    with raw_server(json_answer(DONE)) as server, RunsClient(server.url) as client:
        client.create_and_wait_run()
        assert in_child(lambda: client.create_and_wait_run().values) == "{'n': 1}"
        assert client.create_and_wait_run().values == {"n": 1}
    assert len(server.requests) == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_client_of_the_caller_is_refused_after_a_fork() -> None:
    """Two processes on one inherited connection read each other's answers."""
    with raw_server(json_answer(DONE)) as server, httpx.Client() as own:
        client = RunsClient(server.url, http_client=own)
        client.create_and_wait_run()
        told = in_child(client.create_and_wait_run)
    assert told.startswith("RuntimeError: this client was made before a fork with http_client=")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_stream_is_refused_after_a_fork() -> None:
    """A stream open across the fork: RuntimeError; the parent's goes on."""
    with raw_server(events(VALUES, hold=True)) as server, RunsClient(server.url) as client:
        with client.create_and_stream_run() as stream:
            next(stream)
            told = in_child(lambda: next(stream))
            assert not server.closed.is_set()
        assert server.closed.wait(BOUND)
    assert told == "RuntimeError: this stream was opened before a fork; open one in this process"


LATE = {
    "agentproto._dialects.agent_protocol": "agentproto.RunsClient(URL)",
    "agentproto._dialects.langgraph": "agentproto.RunsClient(URL, dialect='langgraph')",
    "agentproto._io.blocking": "agentproto.RunsClient(URL)",
    "anyio.lowlevel": "agentproto.AsyncRunsClient(URL)",
    "aiohttp": "agentproto.AsyncRunsClient(URL, transport='aiohttp')",
    "httpcore": "agentproto.RunsClient(URL, retry=None).get_run('r1')",
    "encodings.idna": "agentproto.RunsClient(URL, retry=None).get_run('r1')",
    "certifi": "agentproto.RunsClient(URL, retry=None).get_run('r1')",
    "anyio._backends": "asyncio.run(agentproto.AsyncRunsClient(URL, retry=None).get_run('r1'))",
}
"""Modules that are imported late, and what imports them."""

FORK_MEANWHILE = """
import asyncio, os, signal, sys, threading
from contextlib import suppress
import agentproto

URL = "http://127.0.0.1:9"
begun, forks = threading.Event(), threading.Event()
os.register_at_fork(before=forks.set)

class HeldOpen:
    @staticmethod
    def find_spec(name, *_):
        if name == {module!r}:
            begun.set()
            assert forks.wait({bound})

def use():
    with suppress(agentproto.TransportError):
        {use}

sys.meta_path.insert(0, HeldOpen)
thread = threading.Thread(target=use)
thread.start()
assert begun.wait({bound})
pid = os.fork()
if pid == 0:
    signal.alarm({bound})
    use()
    os._exit(0)
thread.join()
print(os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize(("module", "use"), LATE.items(), ids=LATE)
def test_fork_waits_for_what_is_imported_late(module: str, use: str) -> None:
    """Its child would wait for ever for a module that a thread of the parent imports."""
    script = FORK_MEANWHILE.format(module=module, use=use, bound=int(BOUND))
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout == "0\n"


def _pool_of(client: RunsClient) -> httpx.Client:
    io: Any = client._session.io
    pool: httpx.Client = io._client
    return pool


def test_fork_is_met_by_a_client_in_the_process_itself() -> None:
    """The same decisions, made where they can be measured: the process id changes."""
    with raw_server(json_answer(DONE)) as server, httpx.Client() as own:
        ours, theirs = RunsClient(server.url), RunsClient(server.url, http_client=own)
        ours.create_and_wait_run()
        before = _pool_of(ours)
        with as_forked():
            ours.create_and_wait_run()
            with pytest.raises(RuntimeError, match="before a fork"):
                theirs.create_and_wait_run()
            ours.close()
        assert not before.is_closed
        before.close()


def test_close_in_a_child_leaves_the_pool_of_the_parent() -> None:
    """Closing would shut down TLS sessions that the parent uses."""
    with raw_server(json_answer(DONE)) as server:
        client = RunsClient(server.url)
        client.create_and_wait_run()
        pool = _pool_of(client)
        with as_forked():
            client.close()
        assert not pool.is_closed
        pool.close()


def test_stream_notices_the_fork_itself() -> None:
    """A stream belongs to the process that opened it."""
    held = events(VALUES, hold=True)
    with (
        raw_server(held) as server,
        RunsClient(server.url) as client,
        client.create_and_stream_run() as stream,
    ):
        next(stream)
        with as_forked(), pytest.raises(RuntimeError, match="opened before a fork"):
            next(stream)


@pytest.mark.parametrize("own", [False, True], ids=["ours", "the caller's"])
def test_close_from_another_thread_ends_a_blocked_read(own: bool) -> None:
    """DESIGN, The sync facade: close() shuts the sockets of open streams down first."""
    with raw_server(events(VALUES, hold=True)) as server, httpx.Client() as theirs:
        client = RunsClient(server.url, http_client=theirs if own else None)
        stream = client.create_and_stream_run()
        next(stream)
        reading = threading.Event()

        def close_when_reading() -> None:
            assert reading.wait(BOUND)
            client.close()

        closer = threading.Thread(target=close_when_reading)
        closer.start()
        reading.set()
        with pytest.raises(RuntimeError, match="the client was closed while"):
            next(stream)
        closer.join(BOUND)
        assert server.closed.wait(BOUND)
        assert stream.ended == "closed"


def test_close_with_a_stream_that_is_no_socket() -> None:
    """A transport of the caller's may have none."""
    body = httpx.ByteStream(VALUES * 2)
    kind = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=kind, stream=body))
    client = RunsClient("http://x", transport=transport)
    with client.create_and_stream_run() as stream:
        next(stream)
        client.close()


def test_threads_that_begin_at_once_share_one_pool() -> None:
    """Seen: two first calls at once made two pools, of which one was never closed."""
    made: list[httpx.Client] = []
    another = threading.Event()
    with raw_server(json_answer('{"run_id":"r1"}')) as server:
        client = RunsClient(server.url)
        io: Any = client._session.io
        make = io._make

        def slowly(mounts: Any) -> httpx.Client:
            made.append(make(mounts))
            if len(made) > 1:
                another.set()
            another.wait(0.2)
            return made[-1]

        io._make = slowly
        threads = [threading.Thread(target=client.get_run, args=("r1",)) for _ in "12"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
        client.close()
    assert len(made) == 1
