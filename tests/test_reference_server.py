"""The reference server on the wire, by plain httpx: it is tested apart from the client."""

from __future__ import annotations

import asyncio
import json
import runpy
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import httpx
import pytest

import agentproto.testing
from agentproto.testing import (
    AgentRun,
    Ask,
    Custom,
    RunsServer,
    Step,
    Token,
    Updates,
    Values,
    demo_agents,
)
from agentproto.testing.__main__ import main

from .interruptible import interruptible

Steps = AsyncGenerator[Step, Any]
BOUND = 10.0


async def survey(run: AgentRun) -> Steps:
    """Asks two questions at once, and then one more."""
    yield Values({"asked": 2})
    first, second = yield Ask("first?", "second?")
    run.values["mine"] = "not the server's"
    third = yield Ask({"q": 3})
    yield Values({**run.values, "answers": [first, second, third], "goto": run.command.get("goto")})


async def every(_: AgentRun) -> Steps:
    yield Token("He")
    yield Token("llo")
    yield Token("you", "m2")
    yield Updates({"node": {"n": 1}})
    yield Custom("\u2028")
    yield Values({"n": 1})


async def late(_: AgentRun) -> Steps:
    yield Values({})
    raise TimeoutError("too late")


async def wrong(_: AgentRun) -> Steps:
    yield "not a step"  # type: ignore[misc]  # that is what is wrong


async def not_json(_: AgentRun) -> Steps:
    yield Custom({1, 2})


class Gate:
    """An agent that waits until it is let through, and tells when it was stopped."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.may_end = threading.Event()
        self.tidied = threading.Event()
        self.cleanup_fails = False

    async def __call__(self, run: AgentRun) -> Steps:
        try:
            yield Values({"waiting": True})
            await asyncio.Event().wait()
        finally:
            self.stopped.set()

    async def tidy(self, run: AgentRun) -> Steps:
        try:
            yield Values({})
            await asyncio.Event().wait()
        finally:
            self.stopped.set()
            await asyncio.to_thread(self.may_end.wait, BOUND)
            self.tidied.set()

    async def asking(self, run: AgentRun) -> Steps:
        try:
            yield Ask("?")
        finally:
            self.stopped.set()
            if self.cleanup_fails:
                raise ValueError


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def server(gate: Gate) -> Iterator[RunsServer]:
    agents = {
        **demo_agents,
        "survey": survey,
        "every": every,
        "late": late,
        "wrong": wrong,
        "not_json": not_json,
        "gate": gate.__call__,
        "asking": gate.asking,
        "tidy": gate.tidy,
    }
    with RunsServer(agents, heartbeat=0.05) as running:
        yield running


@pytest.fixture
def http(server: RunsServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=BOUND) as client:
        yield client


def events_of(response: httpx.Response) -> list[tuple[str, str, Any]]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = [b for b in response.text.split("\n\n") if b and not b.startswith(":")]
    return [_event(block) for block in blocks]


def _event(block: str) -> tuple[str, str, Any]:
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    return fields["id"], fields["event"], json.loads(fields["data"])


def names_of(response: httpx.Response) -> list[str]:
    return [name for _, name, _ in events_of(response)]


def test_wait_answers_with_run_values_and_messages(http: httpx.Client) -> None:
    """Spec: POST /runs/wait."""
    thread, meta = str(uuid4()), {"m": 1}
    body = {"agent_id": "every", "thread_id": thread, "metadata": meta, "input": [1], "new": True}
    response = http.post("/runs/wait", json=body)
    answer = response.json()
    run = answer["run"]
    assert response.headers["content-location"] == f"/runs/{run['run_id']}"
    assert answer["values"] == {"n": 1}
    assert [m["content"] for m in answer["messages"]] == ["Hello", "you"]
    expected = {"agent_id": "every", "thread_id": thread, "metadata": meta, "input": [1]}
    assert {name: run[name] for name in (*expected, "status")} == {**expected, "status": "success"}
    assert set(run) == {*expected, "status", "run_id", "created_at", "updated_at"}
    assert http.get(f"/runs/{run['run_id']}").json() == run
    assert http.get(f"/runs/{run['run_id']}/wait").json() == answer


def test_stream_sends_what_was_asked_for_with_ids(http: httpx.Client) -> None:
    """Spec: POST /runs/stream."""
    modes = ["values", "messages", "updates", "custom"]
    response = http.post("/runs/stream", json={"agent_id": "every", "stream_mode": modes})
    run_id = response.headers["content-location"].removeprefix("/runs/")
    events = events_of(response)
    assert [event_id for event_id, _, _ in events] == [str(n) for n in range(1, 9)]
    assert [(name, data) for _, name, data in events if name != "messages"] == [
        ("metadata", {"run_id": run_id, "attempt": 1}),
        ("updates", {"node": {"n": 1}}),
        ("custom", "\u2028"),
        ("values", {"n": 1}),
        ("end", {"status": "success"}),
    ]
    pieces = [data[0] for _, name, data in events if name == "messages"]
    assert [piece["content"] for piece in pieces] == ["He", "llo", "you"]
    assert pieces[0]["id"] == pieces[1]["id"] != pieces[2]["id"] == "m2"


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (None, ["metadata", "values", "end"]),
        ("custom", ["metadata", "custom", "end"]),
        (["updates"], ["metadata", "updates", "end"]),
        ([], ["metadata", "end"]),
    ],
)
def test_stream_mode_chooses_events(http: httpx.Client, mode: Any, names: list[str]) -> None:
    """Spec: RunCreate.stream_mode, values by default."""
    body = {"agent_id": "every"} | ({} if mode is None else {"stream_mode": mode})
    assert names_of(http.post("/runs/stream", json=body)) == names


def test_first_agent_is_the_default(http: httpx.Client) -> None:
    """Spec: RunCreate.agent_id."""
    answer = http.post("/runs/wait", json={"input": {"a": 1}}).json()
    assert (answer["run"]["agent_id"], answer["values"]) == ("echo", {"a": 1})


@pytest.mark.parametrize(
    ("agent", "status", "code"),
    [
        ("fail", "error", "ValueError"),
        ("late", "timeout", "TimeoutError"),
        ("wrong", "error", "TypeError"),
        ("not_json", "error", "TypeError"),
    ],
)
def test_agent_that_raises_fails_its_run(
    http: httpx.Client, agent: str, status: str, code: str
) -> None:
    """Spec: RunStatus; a stream tells the error, and then its end."""
    events = events_of(http.post("/runs/stream", json={"agent_id": agent}))
    assert [name for _, name, _ in events][-2:] == ["error", "end"]
    assert events[-2][2]["error"] == code
    assert events[-1][2] == {"status": status}
    run = http.post("/runs/wait", json={"agent_id": agent}).json()["run"]
    assert (run["status"], run["error"]["code"]) == (status, code)


def test_interrupted_run_goes_on_with_an_answer(http: httpx.Client) -> None:
    """Spec: POST /runs/{run_id}/stream; an interrupt is told whatever the stream mode."""
    body = {"agent_id": "trip", "input": {"to": "Oslo"}, "stream_mode": "messages"}
    response = http.post("/runs/stream", json=body)
    run_url = response.headers["content-location"]
    *_, (_, name, data), (_, _, end) = events_of(response)
    assert (name, end) == ("values", {"status": "interrupted"})
    (interrupt,) = data["__interrupt__"]
    assert set(interrupt) == {"id", "value"}
    assert http.get(f"{run_url}/wait").json()["values"] == data
    resumed = http.post(f"{run_url}/stream", json={"command": {"resume": "yes"}})
    assert names_of(resumed) == ["metadata", "end"]
    done = http.get(f"{run_url}/wait").json()
    assert done["values"] == {"to": "Oslo", "price": 120, "booked": True}
    again = http.post(f"{run_url}/wait", json={"command": {"resume": "yes"}})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


def test_questions_are_answered_one_by_one_or_together(http: httpx.Client) -> None:
    """Spec: RunUpdate.command; several interrupts are answered by their ids."""
    answer = http.post("/runs/wait", json={"agent_id": "survey"}).json()
    wait = f"/runs/{answer['run']['run_id']}/wait"
    first, second = (each["id"] for each in answer["values"]["__interrupt__"])
    refused = http.post(wait, json={"command": {"resume": "both"}})
    assert refused.status_code == 422
    rest = http.post(wait, json={"command": {"resume": {first: 1}}}).json()["values"]
    assert [each["id"] for each in rest["__interrupt__"]] == [second]
    third = http.post(wait, json={"command": {"resume": {second: 2}, "update": {"u": 1}}}).json()
    assert [each["value"] for each in third["values"]["__interrupt__"]] == [{"q": 3}]
    assert third["values"]["u"] == 1
    done = http.post(wait, json={"command": {"update": [1], "goto": "end"}}).json()
    assert done["values"]["answers"] == [1, 2, None]
    assert done["values"]["goto"] == "end"
    assert done["run"]["status"] == "success"


def test_join_replays_after_the_last_event_id(http: httpx.Client) -> None:
    """Spec: GET /runs/{run_id}/stream; the ends of earlier turns are left out."""
    url = http.post("/runs/stream", json={"agent_id": "trip"}).headers["content-location"]
    http.post(f"{url}/wait", json={"command": {"resume": "no"}})
    whole = events_of(http.get(f"{url}/stream"))
    assert [name for _, name, _ in whole].count("end") == 1
    assert [name for _, name, _ in whole].count("metadata") == 2
    middle = whole[3][0]
    after = http.get(f"{url}/stream", headers={"last-event-id": middle})
    assert events_of(after) == whole[4:]
    unknown = http.get(f"{url}/stream", headers={"last-event-id": "x"})
    assert events_of(unknown) == whole
    last = http.get(f"{url}/stream", headers={"last-event-id": whole[-1][0]})
    assert last.text == ""


def test_background_run_is_created_found_and_deleted(http: httpx.Client) -> None:
    """Spec: POST /runs, GET and DELETE /runs/{run_id}, POST /runs/search."""
    kept = {"agent_id": "echo", "metadata": {"team": "a", "n": 1}}
    ids = [http.post("/runs", json=kept).json()["run_id"] for _ in range(3)]
    for run_id in ids:
        http.get(f"/runs/{run_id}/wait")

    def found(**request: Any) -> list[str]:
        return [run["run_id"] for run in http.post("/runs/search", json=request).json()]

    assert found() == ids[::-1]
    assert found(metadata={"team": "a"}, status="success", agent_id="echo") == ids[::-1]
    assert found(metadata={"team": "b"}) == found(status="error") == found(agent_id="x") == []
    assert found(limit=1, offset=1) == [ids[1]]
    assert http.delete(f"/runs/{ids[0]}").status_code == 204
    assert http.delete(f"/runs/{ids[0]}").status_code == 404
    assert found() == ids[:0:-1]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "told"),
    [
        ("POST", "/runs/wait", b"{", 422, "JSON"),
        ("POST", "/runs/wait", b"[1]", 422, "object"),
        ("POST", "/runs/wait", b'{"input":NaN}', 422, "NaN"),
        ("POST", "/runs/wait", b"[" * 100_000, 422, "nested too deeply"),
        ("POST", "/runs/wait", b'{"agent_id":5}', 422, "agent_id"),
        ("POST", "/runs/wait", b'{"agent_id":"nobody"}', 404, "nobody"),
        ("POST", "/runs/stream", b'{"stream_mode":"all"}', 422, "stream_mode"),
        ("POST", "/runs/stream", b'{"stream_mode":[5]}', 422, "stream_mode"),
        ("POST", "/runs", b'{"on_disconnect":"stay"}', 422, "on_disconnect"),
        ("POST", "/runs", b'{"messages":[{"role":"user"}]}', 422, "messages"),
        ("POST", "/runs", b'{"messages":[{"role":"u","content":[5]}]}', 422, "messages"),
        ("POST", "/runs", b'{"messages":[{"role":"u","content":[{"type":"text"}]}]}', 422, "mess"),
        ("POST", "/runs", b'{"config":{"recursion_limit":true}}', 422, "config"),
        ("POST", "/runs", b'{"webhook":"' + b"x" * 99 + b'","config":1}', 422, "config"),
        ("POST", "/runs/search", b'{"limit":0}', 422, "limit"),
        ("POST", "/runs/none/wait", b"{}", 404, "none"),
        ("POST", "/runs/none/stream", b"{}", 404, "none"),
        ("GET", "/runs/none", b"", 404, "none"),
        ("POST", "/runs/none/cancel?wait=maybe", b"", 422, "wait"),
        ("POST", "/runs/none/cancel?action=kill", b"", 422, "action"),
        ("POST", "/runs/none/cancel", b"", 404, "none"),
        ("GET", "/elsewhere", b"", 404, "/elsewhere"),
        ("PUT", "/runs", b"", 405, "Not Allowed"),
    ],
)
def test_request_that_is_wrong_is_answered_with_an_error_response(
    http: httpx.Client, method: str, path: str, content: bytes, status: int, told: str
) -> None:
    """Spec: schema ErrorResponse with 404, 409 and 422."""
    response = http.request(method, path, content=content)
    assert response.status_code == status
    assert set(response.json()) == {"code", "message"}
    assert told in response.json()["message"]


def test_bad_command_is_refused_and_the_question_stays(http: httpx.Client) -> None:
    """Spec: schema RunUpdate."""
    url = http.post("/runs/stream", json={"agent_id": "trip"}).headers["content-location"]
    long = {"command": {"goto": ["x" * 200, 5]}}
    for body in ({"command": 5}, {"command": {"update": 5}}, long):
        assert http.post(f"{url}/wait", json=body).status_code == 422
    assert http.post(f"{url}/wait", json={"command": {"resume": 1}}).status_code == 200


def test_run_is_cancelled_when_its_caller_leaves(
    http: httpx.Client, server: RunsServer, gate: Gate
) -> None:
    """Spec: RunCreate.on_disconnect, cancel by default."""
    with http.stream("POST", "/runs/stream", json={"agent_id": "gate"}) as response:
        url = response.headers["content-location"]
        pieces = response.iter_raw()  # kept: an iterator that is dropped closes its connection
        next(pieces)
        assert server.open_requests == 1
        assert not server.wait_until_idle(0)
    assert gate.stopped.wait(BOUND)
    assert server.wait_until_idle()
    assert http.get(f"{url}/wait").json()["run"]["status"] == "interrupted"
    update = http.post(f"{url}/wait", json={"command": {"resume": 1}})
    assert update.status_code == 409


def test_run_goes_on_when_it_shall(http: httpx.Client, server: RunsServer, gate: Gate) -> None:
    """Spec: RunCreate.on_disconnect continue; whoever joins does not own the run."""
    body = {"agent_id": "gate", "on_disconnect": "continue"}
    with http.stream("POST", "/runs/stream", json=body) as response:
        url = response.headers["content-location"]
    with http.stream("GET", f"{url}/stream") as response:
        next(response.iter_raw())
    with http.stream("GET", f"{url}/wait") as response:
        assert next(response.iter_raw()) == b"\n"
    assert server.wait_until_idle()
    assert http.get(url).json()["status"] == "running"
    assert not gate.stopped.is_set()
    assert http.post(f"{url}/cancel?wait=true").status_code == 204
    assert gate.stopped.is_set()
    assert http.get(url).json()["status"] == "interrupted"
    assert http.post(f"{url}/cancel").status_code == 409


def test_streams_and_waits_keep_alive(http: httpx.Client) -> None:
    """Seen on langgraph dev: comments on streams, line feeds before the JSON of waits."""
    body = {"agent_id": "gate"}
    with http.stream("POST", "/runs/stream", json=body) as response:
        beats = (piece for piece in response.iter_raw() if piece == b": heartbeat\n\n")
        assert [next(beats), next(beats)] == [b": heartbeat\n\n"] * 2
    with http.stream("POST", "/runs/wait", json=body) as response:
        assert next(response.iter_raw()) == b"\n"


def test_cancelled_run_ends_its_streams(http: httpx.Client) -> None:
    """Spec: POST /runs/{run_id}/cancel."""
    seen: list[str] = []
    with http.stream("POST", "/runs/stream", json={"agent_id": "gate"}) as response:
        url = response.headers["content-location"]
        for line in response.iter_lines():
            seen.append(line)
            if line.startswith('data: {"waiting"'):
                httpx.post(http.base_url.join(f"{url}/cancel"))
    assert 'data: {"status": "interrupted"}' in seen


def test_rollback_forgets_the_run(http: httpx.Client, gate: Gate) -> None:
    """Spec: POST /runs/{run_id}/cancel, action rollback."""
    run_id = http.post("/runs", json={"agent_id": "gate"}).json()["run_id"]
    assert http.post(f"/runs/{run_id}/cancel?action=rollback&wait=1").status_code == 204
    assert http.get(f"/runs/{run_id}").status_code == 404


@pytest.mark.parametrize("cleanup_fails", [True, False])
def test_open_questions_are_dropped_with_their_run(
    http: httpx.Client, gate: Gate, cleanup_fails: bool
) -> None:
    """A run that waits for an answer is cancelled like one at work; its agent is closed."""
    gate.cleanup_fails = cleanup_fails
    run = http.post("/runs/wait", json={"agent_id": "asking"}).json()["run"]
    assert run["status"] == "interrupted"
    assert http.post(f"/runs/{run['run_id']}/cancel?wait=true").status_code == 204
    assert gate.stopped.is_set()
    assert "__interrupt__" not in http.get(f"/runs/{run['run_id']}/wait").json()["values"]


def test_second_cancel_leaves_the_cleanup_alone(http: httpx.Client, gate: Gate) -> None:
    """An agent may need a while to clean up."""
    run_id = http.post("/runs", json={"agent_id": "tidy"}).json()["run_id"]
    http.post(f"/runs/{run_id}/cancel")
    assert gate.stopped.wait(BOUND)
    http.post(f"/runs/{run_id}/cancel")
    gate.may_end.set()
    assert http.get(f"/runs/{run_id}/wait").json()["run"]["status"] == "interrupted"
    assert gate.tidied.is_set()


def test_deleting_a_run_stops_it(http: httpx.Client, gate: Gate) -> None:
    """Spec: DELETE /runs/{run_id}."""
    run_id = http.post("/runs", json={"agent_id": "gate"}).json()["run_id"]
    assert http.delete(f"/runs/{run_id}").status_code == 204
    assert gate.stopped.wait(BOUND)


def test_busy_thread_takes_no_second_run(http: httpx.Client) -> None:
    """Spec: 409 Conflict."""
    thread = str(uuid4())
    first = http.post("/runs", json={"agent_id": "gate", "thread_id": thread}).json()
    second = http.post("/runs", json={"agent_id": "echo", "thread_id": thread})
    assert (second.status_code, second.json()["code"]) == (409, "conflict")
    http.post(f"/runs/{first['run_id']}/cancel?wait=true")
    assert http.post("/runs", json={"thread_id": thread}).status_code == 200


def test_demo_agents_do_what_they_say(http: httpx.Client) -> None:
    """What `python -m agentproto.testing` serves."""
    body: dict[str, Any] = {"agent_id": "chat", "input": {"text": "hi", "interval": 0}}
    said = http.post("/runs/wait", json=body).json()["messages"][0]["content"]
    assert said == "Hello, you said “hi”."
    body = {"agent_id": "slow", "input": {"n": 2, "interval": 0}, "stream_mode": "custom"}
    events = events_of(http.post("/runs/stream", json=body))
    assert [data for _, name, data in events if name == "custom"] == [{"tick": 1}, {"tick": 2}]
    plain = http.post("/runs/wait", json={"agent_id": "echo", "input": "a\u2028b"}).json()
    assert plain["values"] == {"input": "a\u2028b"}


def test_lone_surrogate_comes_back(http: httpx.Client) -> None:
    """RFC 8259 allows the escape; UTF-8 has no form for it."""
    content = b'{"agent_id":"echo","input":{"a":"\\ud83d"}}'
    assert rb"\ud83d" in http.post("/runs/wait", content=content).content


def test_requests_are_recorded(http: httpx.Client, server: RunsServer) -> None:
    """For tests of a client."""
    http.post("/runs/search?x=%20", content=b'{"limit":1}', headers={"X-Key": "k"})
    whole = json.dumps({"input": "x" * 2**20}).encode()
    http.post("/runs", content=whole)
    request, large = server.requests
    assert large.body == whole
    assert (request.method, request.path) == ("POST", "/runs/search?x=%20")
    assert (request.headers["x-key"], request.body) == ("k", b'{"limit":1}')


def test_server_that_does_not_run_has_no_url() -> None:
    """Misuse says so."""
    server = RunsServer(demo_agents)
    with pytest.raises(RuntimeError, match="use it in a with block"):
        _ = server.url


def test_agents_are_checked() -> None:
    """Misuse says so."""

    async def coroutine(_: AgentRun) -> None: ...

    with pytest.raises(ValueError, match="at least one agent"):
        RunsServer({})
    with pytest.raises(TypeError, match="does it yield"):
        RunsServer({"a": coroutine})  # type: ignore[dict-item]  # that is what is wrong
    with pytest.raises(ValueError, match="heartbeat: expected seconds above 0"):
        RunsServer(demo_agents, heartbeat=0)
    with pytest.raises(ValueError, match="at least one question"):
        Ask()


async def test_server_is_an_async_context_manager_too() -> None:
    """Stopping does not wait for runs and streams that are still open."""
    gate = Gate()
    async with RunsServer({"gate": gate.__call__, "asking": gate.asking}) as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            await http.post("/runs/wait", json={"agent_id": "asking"})
            async with http.stream("POST", "/runs/stream", json={}) as response:
                await anext(response.aiter_raw())
                await asyncio.to_thread(server.__exit__, None, None, None)
        assert gate.stopped.is_set()
        await asyncio.to_thread(server.__enter__)


def test_server_that_cannot_stop_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that swallows its cancellation is not waited for without end."""
    release = threading.Event()

    async def stubborn(_: AgentRun) -> Steps:
        yield Values({})
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    server = RunsServer({"stubborn": stubborn}).__enter__()
    httpx.post(f"{server.url}/runs", json={})
    monkeypatch.setattr("agentproto.testing._server.START_SECONDS", 0.5)
    with pytest.raises(RuntimeError, match="swallows its cancellation"):
        server.__exit__(None, None, None)
    release.set()
    server._thread.join(BOUND)
    assert not server._thread.is_alive()


def test_server_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs at its start is not waited for without end."""
    monkeypatch.setattr("agentproto.testing._server.START_SECONDS", 0.01)
    monkeypatch.setattr("agentproto.testing._server._Server.run", lambda *_: None)
    with pytest.raises(RuntimeError, match="did not start within"):
        RunsServer(demo_agents).__enter__()


def test_ipv6_loopback_is_served() -> None:
    """Any loopback address will do."""
    with RunsServer(demo_agents, host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert httpx.post(f"{server.url}/runs/wait", json={}).status_code == 200


def test_command_serves_until_it_is_interrupted() -> None:
    """`python -m agentproto.testing`; Ctrl-C exits without a traceback."""
    command = [sys.executable, "-m", "agentproto.testing", "--port", "0"]
    with interruptible(command) as process:
        assert process.stdout is not None
        told = list(iter(process.stdout.readline, "Ctrl-C stops it.\n"))
        url = told[0].split()[3].rstrip(",")
        assert httpx.post(f"{url}/runs/wait", json={"agent_id": "echo"}).status_code == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, err) == (0, "")
    assert out == "\nstopped\n"
    assert "  trip   Asks a person before it books.\n" in told


def test_command_says_what_it_serves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same in this process, where it can be measured."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentproto.testing.__main__.sleep", interrupted)
    main(["--port", "0"])
    assert capsys.readouterr().out.endswith("Ctrl-C stops it.\n\nstopped\n")


def test_taken_port_is_told(server: RunsServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A beginner's first mistake has no traceback."""
    port = server.url.rsplit(":", 1)[1]
    with pytest.raises(SystemExit) as caught:
        main(["--port", port])
    assert caught.value.code == 1
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named where it is missing."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    init = agentproto.testing.__file__
    assert init is not None
    with pytest.raises(ImportError, match=r'pip install "agentproto\[testing\]"'):
        runpy.run_path(init, run_name="agentproto.testing")


def test_exports_are_sorted_and_re_homed() -> None:
    """The shelf of the server."""
    names = agentproto.testing.__all__
    assert names == sorted(names)
    classes = [getattr(agentproto.testing, n) for n in names]
    homes = {c.__module__ for c in classes if isinstance(c, type)}
    assert homes == {"agentproto.testing"}
