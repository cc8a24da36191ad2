"""The background operations: runs without a connection, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentproto import (
    AsyncRunsClient,
    NotFoundError,
    ProtocolError,
    Run,
    RunFailedError,
    RunRef,
    RunsClient,
    RunSearchRequest,
    ValuesEvent,
)
from agentproto.testing import RunsServer, demo_agents

from .both import Async, Flavour
from .raw_server import Script, answer, events, json_answer, raw_server


@pytest.fixture(scope="module")
def server() -> Iterator[RunsServer]:
    with RunsServer(demo_agents, heartbeat=0.05) as running:
        yield running


async def listed(flavour: Flavour, client: Any, **arguments: Any) -> list[Run]:
    if isinstance(flavour, Async):
        return [run async for run in client.iter_runs(**arguments)]
    runs: list[Run] = await flavour.call(lambda: list(client.iter_runs(**arguments)))
    return runs


async def test_run_is_created_awaited_streamed_and_deleted(
    flavour: Flavour, server: RunsServer
) -> None:
    """Spec: POST /runs, GET /runs/{run_id}, /wait, /stream, DELETE /runs/{run_id}."""
    client = flavour.client(server.url)
    run = await flavour.call(client.create_run, agent_id="echo", input={"n": 1}, metadata={"m": 1})
    assert (type(run), run.agent_id, run.metadata) == (Run, "echo", {"m": 1})
    done = await flavour.call(client.wait_run, run)
    assert (done.values, done.run.run_id) == ({"n": 1}, run.run_id)
    assert (await flavour.call(client.get_run, run)).status == "success"
    joined = await flavour.collect(client.stream_run(run))
    assert [event.event for event in joined] == ["metadata", "values", "end"]
    behind = client.stream_run(run.run_id, last_event_id=joined[0].id, values_type=dict)
    assert [event.event for event in await flavour.collect(behind)] == ["values", "end"]
    assert await flavour.call(client.delete_run, run) is None
    with pytest.raises(NotFoundError):
        await flavour.call(client.get_run, run)
    await flavour.close(client)


@pytest.mark.parametrize(("action", "gone"), [("interrupt", False), ("rollback", True)])
async def test_run_is_cancelled(
    flavour: Flavour, server: RunsServer, action: Any, gone: bool
) -> None:
    """Spec: POST /runs/{run_id}/cancel."""
    client = flavour.client(server.url)
    run = await flavour.call(client.create_run, agent_id="slow", input={"n": 100})
    assert await flavour.call(client.cancel_run, run, wait=True, action=action) is None
    if gone:
        with pytest.raises(NotFoundError):
            await flavour.call(client.get_run, run)
    else:
        assert (await flavour.call(client.get_run, run)).status == "interrupted"
    await flavour.close(client)


async def test_failed_run_raises_when_awaited(flavour: Flavour, server: RunsServer) -> None:
    """DESIGN: a failed run never passes for a result."""
    client = flavour.client(server.url)
    run = await flavour.call(client.create_run, agent_id="fail")
    with pytest.raises(RunFailedError, match="boom"):
        await flavour.call(client.wait_run, run)
    told = await flavour.call(client.wait_run, run, raise_on_failure=False)
    assert told.run.status == "error"
    await flavour.close(client)


async def test_runs_are_found_on_all_pages(flavour: Flavour) -> None:
    """Spec: POST /runs/search; all filters, and every page once."""
    with RunsServer(demo_agents) as server:
        client = flavour.client(server.url)
        made = [
            await flavour.call(client.create_run, agent_id="echo", metadata={"n": n % 2})
            for n in range(7)
        ]
        for run in made:
            await flavour.call(client.wait_run, run)
        ids = [run.run_id for run in reversed(made)]
        page = await flavour.call(client.search_runs, limit=2, offset=1)
        assert [run.run_id for run in page] == ids[1:3]
        request = RunSearchRequest(
            metadata={"n": 0}, status="success", agent_id="echo", thread_id=made[0].thread_id
        )
        found = await flavour.call(client.search_runs, request)
        assert [run.run_id for run in found] == [made[0].run_id]
        assert [run.run_id for run in await listed(flavour, client, limit=3)] == ids
        assert [run.run_id for run in await listed(flavour, client, offset=5)] == ids[5:]
        assert await listed(flavour, client, status="error") == []
        await flavour.close(client)


async def test_run_that_moves_to_a_later_page_comes_once(flavour: Flavour) -> None:
    """Runs created meanwhile push others on; those without an id cannot be told apart."""
    pages: list[list[str | None]] = [["a", "b"], ["b", "c"], [None, None], [None]]
    scripts = [json_answer(json.dumps([{"run_id": i} for i in page])) for page in pages]
    with raw_server(*scripts) as server:
        client = flavour.client(server.url)
        found = await listed(flavour, client, limit=2, extra_body={"more": 1})
        await flavour.close(client)
    assert [run.run_id for run in found] == ["a", "b", "c", None, None, None]
    assert [json.loads(request.body) for request in server.requests] == [
        {"limit": 2, "offset": offset, "more": 1} for offset in (0, 2, 4, 6)
    ]


@pytest.mark.parametrize(
    ("method", "arguments", "sent"),
    [
        ("get_run", {}, ("GET", "/runs/a%2Fb")),
        ("wait_run", {}, ("GET", "/runs/a%2Fb/wait")),
        ("cancel_run", {}, ("POST", "/runs/a%2Fb/cancel?wait=false&action=interrupt")),
        (
            "cancel_run",
            {"wait": True, "action": "rollback"},
            ("POST", "/runs/a%2Fb/cancel?wait=true&action=rollback"),
        ),
        ("delete_run", {}, ("DELETE", "/runs/a%2Fb")),
    ],
)
async def test_call_of_a_run_goes_to_its_path(
    flavour: Flavour, method: str, arguments: dict[str, Any], sent: tuple[str, str]
) -> None:
    """Spec: paths and queries."""
    with raw_server(json_answer("{}")) as server:
        client = flavour.client(server.url)
        await flavour.call(getattr(client, method), RunRef("a/b"), **arguments)
        await flavour.close(client)
    (request,) = server.requests
    assert (request.method, request.target, request.body) == (*sent, b"")
    assert "content-type" not in request.headers


@pytest.mark.parametrize("status", [200, 202, 204])
async def test_answer_without_a_body_is_fine_where_none_is_due(
    flavour: Flavour, status: int
) -> None:
    """FAULTS: 204 is fine for cancel and delete; seen: 202 and 204 for a cancel."""
    with raw_server(answer(status)) as server:
        client = flavour.client(server.url)
        assert await flavour.call(client.cancel_run, "r") is None
        assert await flavour.call(client.delete_run, "r") is None
        await flavour.close(client)


@pytest.mark.parametrize(
    ("method", "args", "script", "told"),
    [
        ("get_run", ("r",), answer(204), "204"),
        ("wait_run", ("r",), answer(204), "204"),
        ("get_run", ("r",), json_answer("[]"), "describes a run from GET /runs/r, .*got list"),
        ("get_run", ("r",), json_answer('{"run_id":5}'), "run_id"),
        ("create_run", (), json_answer("nope"), "describes a run"),
        ("search_runs", (), json_answer("{}"), "array of runs .*got dict"),
        ("search_runs", (), json_answer("[5]"), "array of runs"),
    ],
)
async def test_answer_outside_the_protocol_is_told(
    flavour: Flavour, method: str, args: Any, script: Script, told: str
) -> None:
    """FAULTS: bad JSON or shape, 204 where a body is due."""
    with raw_server(script) as server:
        client = flavour.client(server.url)
        with pytest.raises(ProtocolError, match=told):
            await flavour.call(getattr(client, method), *args)
        await flavour.close(client)


async def test_last_event_id_is_sent_as_utf_8(flavour: Flavour) -> None:
    """FAULTS: non-ASCII in Last-Event-ID is sent as UTF-8 bytes."""
    values = b'event: values\ndata: {"n":1}\n\n'
    with raw_server(events(values), answer(404)) as server:
        client = flavour.client(server.url)
        stream = client.stream_run("r", last_event_id="7-é")
        assert await flavour.collect(stream) == [ValuesEvent("values", {"n": 1})]
        await flavour.close(client)
    assert server.requests[0].headers["last-event-id"].encode("latin-1").decode() == "7-é"
    assert server.requests[0].target == "/runs/r/stream"


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda c: c.stream_run("r", last_event_id="a\r\nb: c"), ValueError, "last_event_id"),
        (lambda c: c.stream_run("r", last_event_id=""), ValueError, "last_event_id"),
        (lambda c: c.stream_run("r", last_event_id=" a"), ValueError, "last_event_id"),
        (lambda c: c.stream_run("r", last_event_id="\ud800"), ValueError, "last_event_id"),
        (lambda c: c.stream_run(None), TypeError, "until the stream has started"),
        (lambda c: c.iter_runs(limit=0), ValueError, "limit"),
        (lambda c: c.iter_runs(limt=1), TypeError, "did you mean 'limit'"),
        (lambda c: c.stream_run("r", timout=1), TypeError, "unexpected argument 'timout'"),
        (lambda c: c.stream_run("r", extra_body={}), TypeError, "argument 'extra_body'"),
    ],
)
def test_bad_argument_is_refused_at_once(
    call: Any, error: type[Exception], told: str, flavour: Flavour
) -> None:
    """Bad input gets a clear error before anything is sent."""
    client: AsyncRunsClient | RunsClient = flavour.client("http://127.0.0.1:9")
    with pytest.raises(error, match=told):
        call(client)


async def test_unknown_action_is_refused(flavour: Flavour) -> None:
    """Spec: action is interrupt or rollback."""
    client = flavour.client("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="action: expected 'interrupt' or 'rollback'"):
        await flavour.call(client.cancel_run, "r", action="kill")
    await flavour.close(client)


HOSTILE = st.sampled_from(
    ["../x", "..", ".", "a?b", "a/b", "a#b", "%2e%2e", "", "a\r\nb", "x" * 100_000, "a b", "é", ";"]
)


@given(st.text(max_size=20) | st.text("./%?#\\\r\n2eE:@;&= ", max_size=8) | HOSTILE)
def test_any_run_id_is_one_segment_or_refused(run_id: str) -> None:
    """FAULTS: a hostile run id is a ValueError, or exactly one encoded segment of the path."""
    asked: list[bytes] = []

    def note(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return httpx.Response(200, json={"run_id": "r1"})

    transport = httpx.MockTransport(note)
    with RunsClient("http://x/api", transport=transport) as client, suppress(ValueError):
        client.get_run(run_id)
    for path in asked:
        prefix, _, segment = path.rpartition(b"/")
        assert prefix == b"/api/runs"
        assert unquote(segment.decode(), errors="strict") == run_id
        assert segment not in {b"", b".", b".."}
        assert not set(segment) & set(b"?#/\\ \r\n")
