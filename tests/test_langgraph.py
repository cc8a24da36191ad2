"""The dialect of LangGraph servers: what goes out, and one shape for whatever comes back."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from agentproto import (
    Command,
    ErrorResponse,
    Interrupt,
    NotFoundError,
    ProtocolError,
    RequestTimeoutError,
    RetryPolicy,
    Run,
    RunCreate,
    RunFailedError,
    RunRef,
    RunsClient,
    ServerError,
    StreamInterruptedError,
    Timeout,
)
from agentproto._dialects import agent_protocol, langgraph
from agentproto.testing import RunsServer, demo_agents

from .both import Flavour
from .raw_server import (
    Connection,
    RawServer,
    Script,
    answer,
    chunk,
    events,
    head,
    json_answer,
    raw_server,
)

WIRE = Path(__file__).parent / "wire"
FAST = RetryPolicy(first_delay=0, max_delay=0.001)
T = "11111111-1111-4111-8111-111111111111"
R1 = RunRef("r1", "t1")
ID1, ID2 = "a" * 32, "b" * 32
NAMED: Any = {"content_location": "/threads/t1/runs/r1"}


def routed(**answers: Script | list[Script]) -> Script:
    """Answers by the last part of the path; each script of a list once, the last for ever."""
    left = {
        name: [*scripts] if isinstance(scripts, list) else [scripts]
        for name, scripts in answers.items()
    }

    async def script(connection: Connection) -> None:
        place = connection.request.target.partition("?")[0].rpartition("/")[2]
        scripts = left[place]
        await (scripts.pop(0) if len(scripts) > 1 else scripts[0])(connection)

    return script


def run_json(status: str = "success", **fields: Any) -> Script:
    run = {"run_id": "r1", "thread_id": "t1", "assistant_id": "a1", "status": status, **fields}
    return json_answer(json.dumps(run))


def state(*interrupts: dict[str, Any], **fields: Any) -> Script:
    return json_answer(json.dumps({"tasks": [{"interrupts": interrupts}], **fields}))


def asked(server: RawServer) -> list[str]:
    return [f"{request.method} {request.target}" for request in server.requests]


CREATE: Any = {"agent_id": "agent", "input": {"n": 1}}
SENT = {"assistant_id": "agent", "input": {"n": 1}}
CALLS: dict[str, tuple[Callable[[Any], Any], str, Any]] = {
    "wait, stateless": (
        lambda client: client.create_and_wait_run(**CREATE),
        "POST /runs/wait",
        SENT,
    ),
    "wait, on a thread": (
        lambda client: client.create_and_wait_run(thread_id=UUID(T), **CREATE),
        f"POST /threads/{T}/runs/wait",
        SENT,
    ),
    "wait, with every field": (
        lambda client: client.create_and_wait_run(
            RunCreate(
                agent_id="agent",
                thread_id="a/b",
                messages=[{"role": "user", "content": "hi"}],  # type: ignore[list-item]  # parsed
                metadata={"m": 1},
                config={"tags": ["x"]},  # type: ignore[arg-type]  # parsed
                webhook="http://hook.test",
                stream_mode=["values", "messages"],
                on_completion="keep",
                on_disconnect="continue",
                if_not_exists="create",
            ),
            extra_body={"multitask_strategy": "reject"},
        ),
        "POST /threads/a%2Fb/runs/wait",
        {
            "assistant_id": "agent",
            "input": {"messages": [{"role": "user", "content": "hi"}]},
            "metadata": {"m": 1},
            "config": {"tags": ["x"]},
            "webhook": "http://hook.test",
            "stream_mode": ["values", "messages"],
            "on_completion": "keep",
            "on_disconnect": "continue",
            "if_not_exists": "create",
            "multitask_strategy": "reject",
        },
    ),
    "messages beside other input": (
        lambda client: client.create_run(agent_id="a", input={"n": 1}, messages=[]),
        "POST /runs",
        {"assistant_id": "a", "input": {"n": 1, "messages": []}},
    ),
    "the assistant in extra_body": (
        lambda client: client.create_run(extra_body={"assistant_id": "a"}, thread_id="t1"),
        "POST /threads/t1/runs",
        {"assistant_id": "a"},
    ),
    "get": (lambda client: client.get_run(R1), "GET /threads/t1/runs/r1", None),
    "join": (lambda client: client.wait_run(R1), "GET /threads/t1/runs/r1/join", None),
    "search": (
        lambda client: client.search_runs(thread_id="t1", status="error", limit=5, offset=10),
        "GET /threads/t1/runs?limit=15&offset=10&status=error",
        None,
    ),
    "cancel": (
        lambda client: client.cancel_run(R1),
        "POST /threads/t1/runs/r1/cancel?action=interrupt&wait=0",
        None,
    ),
    "cancel and wait": (
        lambda client: client.cancel_run(R1, wait=True, action="rollback"),
        "POST /threads/t1/runs/r1/cancel?action=rollback&wait=1",
        None,
    ),
    "delete": (lambda client: client.delete_run(R1), "DELETE /threads/t1/runs/r1", None),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_goes_out_as_these_servers_have_it(name: str) -> None:
    """Seen on langgraph dev: assistant_id, runs under their thread, messages within the input."""
    call, request, body = CALLS[name]
    answered: object = [] if "status=" in request else {"run_id": "r1", "status": "success"}
    with (
        raw_server(json_answer(json.dumps(answered))) as server,
        RunsClient(server.url, dialect="langgraph") as client,
    ):
        call(client)
    first = server.requests[0]
    path, _, query = first.target.partition("?")
    target = f"{path}{'?' if query else ''}{'&'.join(sorted(query.split('&')))}"
    assert f"{first.method} {target}" == request
    assert (json.loads(first.body) if first.body else None) == body


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda c: c.create_run(input={}), "agent_id: .* no default agent"),
        (lambda c: c.create_and_wait_run(input=1, messages=[], agent_id="a"), "messages: .*input"),
        (
            lambda c: c.create_and_wait_run(input={"messages": []}, messages=[], agent_id="a"),
            "messages: .*input",
        ),
        (lambda c: c.create_run(agent_id="a", extra_body={"assistant_id": "b"}), "'assistant_id'"),
        (lambda c: c.create_run(agent_id="a", thread_id=".."), "thread_id: expected an id"),
        (lambda c: c.get_run("r1"), r"give RunRef\(run_id, thread_id\)"),
        (lambda c: c.get_run(RunRef("r1", "..")), "thread_id: expected an id"),
        (lambda c: c.wait_run("r1"), "under its thread, and that of r1 is not known"),
        (lambda c: c.stream_run("r1"), "under its thread"),
        (lambda c: c.cancel_run("r1"), "under its thread"),
        (lambda c: c.delete_run("r1"), "under its thread"),
        (lambda c: c.update_and_wait_run("r1", command=Command(resume=1)), "under its thread"),
        (lambda c: c.update_and_stream_run("r1", command=Command(resume=1)), "under its thread"),
        (lambda c: c.search_runs(), "thread_id: .*say which one"),
        (lambda c: c.iter_runs(), "thread_id: .*say which one"),
        (lambda c: c.search_runs(thread_id="t", metadata={}), "metadata: .*do not list runs by it"),
        (lambda c: c.search_runs(thread_id="t", agent_id="a"), "agent_id: .*do not list"),
    ],
)
def test_what_these_servers_cannot_be_asked_is_told_at_once(
    call: Callable[[Any], Any], told: str
) -> None:
    """A clear ValueError, and nothing is sent: there is no server at this address."""
    client = RunsClient("http://127.0.0.1:9", dialect="langgraph", retry=None)
    with pytest.raises(ValueError, match=told):
        call(client)


def test_dialect_that_nobody_knows_is_refused() -> None:
    """The names are told."""
    with pytest.raises(ValueError, match="expected 'agent-protocol' or 'langgraph', got 'openai'"):
        RunsClient(dialect="openai")  # type: ignore[arg-type]  # what the type checker refuses, too


def recorded(name: str) -> Script:
    return answer(200, (WIRE / f"{name}.body").read_bytes(), **NAMED)


@pytest.mark.parametrize(
    ("script", "values", "status"),
    [
        (
            recorded("langgraph_dev/heartbeat_wait"),
            {"n": 1, "interval": 12, "ticks": 1},
            "success",
        ),
        (json_answer('{"values":{"n":1},"messages":[]}', **NAMED), {"n": 1}, "success"),
        (
            json_answer('{"run":{"status":"success","run_id":"r1"},"values":{"n":1}}', **NAMED),
            {"n": 1},
            "success",
        ),
        (json_answer('{"values":[1],"n":1}', **NAMED), {"values": [1], "n": 1}, "success"),
        (answer(200, b'\n\n{"n":1}', content_type="text/plain", **NAMED), {"n": 1}, "success"),
    ],
)
async def test_every_form_of_an_output_is_one_response(
    flavour: Flavour, script: Script, values: dict[str, Any], status: str
) -> None:
    """Seen on langgraph dev, LangGraph.js, langrove: bare, wrapped, after line feeds, as text."""
    with raw_server(routed(wait=script, r1=run_json())) as server:
        client = flavour.client(server.url, dialect="langgraph")
        result = await flavour.call(client.create_and_wait_run, agent_id="a", thread_id="t1")
        await flavour.close(client)
    assert (result.values, result.run.status, result.interrupts) == (values, status, [])
    assert (result.run.run_id, result.run.thread_id) == ("r1", "t1")


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ('{"__error__":{"error":"ValueError","message":"boom"}}', "ValueError", "boom"),
        (
            r'{"__error__":{"error":"Error","message":"{\"error\":\"TypeError\",\"message\":\"b\"}"}}',
            "TypeError",
            "b",
        ),
        ('{"__error__":{"error":"Error","message":"{no JSON"}}', "Error", "{no JSON"),
        ('{"__error__":"boom"}', None, "boom"),
        ('{"__error__":{"error":"E","message":3}}', "E", None),
    ],
)
async def test_error_in_a_200_is_a_failed_run(
    flavour: Flavour, body: str, code: str | None, message: str | None
) -> None:
    """Seen on langgraph dev, LangGraph.js (as JSON in the message) and aegra."""
    with raw_server(json_answer(body, **NAMED)) as server:
        client = flavour.client(server.url, dialect="langgraph")
        wait = client.create_and_wait_run
        with pytest.raises(RunFailedError) as caught:
            await flavour.call(wait, agent_id="a")
        kept = await flavour.call(wait, agent_id="a", raise_on_failure=False)
        await flavour.close(client)
    assert caught.value.error == ErrorResponse(code=code, message=message)
    assert (caught.value.run_id, caught.value.thread_id) == ("r1", "t1")
    assert (kept.run.status, kept.values) == ("error", None)
    assert len(server.requests) == 2


ONE, TWO = {"id": ID1, "value": 1}, {"id": ID2, "value": 2}
BOTH = [Interrupt(id=ID1, value=1), Interrupt(id=ID2, value=2)]
VALUES = b'event: values\ndata: {"n":1}\n\n'
META = b'event: metadata\ndata: {"run_id":"r1","attempt":1}\n\n'


def asks(*interrupts: dict[str, Any]) -> bytes:
    return b'event: values\ndata: {"__interrupt__":%b}\n\n' % json.dumps(interrupts).encode()


async def outcome_of(flavour: Flavour, client: Any, call: str, **fields: Any) -> Any:
    """The response of the call, whether it waits or streams."""
    if call.endswith("wait_run"):
        return await flavour.call(getattr(client, call), agent_id="a", thread_id="t1", **fields)
    stream = getattr(client, call)(agent_id="a", thread_id="t1", **fields)
    await flavour.collect(stream)
    assert stream.interrupts == (await flavour.call(stream.final)).interrupts
    return await flavour.call(stream.final)


CREATES = ["create_and_wait_run", "create_and_stream_run"]


@pytest.mark.parametrize("call", CREATES)
@pytest.mark.parametrize(
    ("shown", "pending", "status", "interrupts"),
    [
        pytest.param([], [], "success", [], id="none"),
        pytest.param([ONE], [ONE], "success", BOTH[:1], id="one"),
        pytest.param([TWO], [ONE, TWO], "success", BOTH, id="the last of two"),
        pytest.param([ONE, TWO], [], "success", BOTH, id="two, and no state"),
        pytest.param([], [ONE], "interrupted", BOTH[:1], id="only in the state"),
    ],
)
async def test_whatever_is_asked_becomes_interrupts(
    flavour: Flavour,
    call: str,
    shown: list[dict[str, Any]],
    pending: list[dict[str, Any]],
    status: str,
    interrupts: list[Interrupt],
) -> None:
    """Seen: two questions of which the last is shown; aegra: status interrupted; else success."""
    body = json.dumps({"n": 1, **({"__interrupt__": shown} if shown else {})})
    stream = events(META, VALUES, *([asks(*shown)] if shown else []), **NAMED)
    routes = routed(
        wait=json_answer(body, **NAMED), stream=stream, r1=run_json(status), state=state(*pending)
    )
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph")
        result = await outcome_of(flavour, client, call)
        await flavour.close(client)
    assert result.interrupts == interrupts
    assert result.run.status == ("interrupted" if interrupts else "success")
    assert result.values == {"n": 1}
    must_ask = shown or status == "interrupted"
    assert ("GET /threads/t1/state" in asked(server)) is bool(must_ask)


@pytest.mark.parametrize("call", CREATES)
async def test_question_that_the_stream_mode_hides_is_found(flavour: Flavour, call: str) -> None:
    """Seen: with custom alone nothing tells of an interrupt, and the run's status is success."""
    routes = routed(
        wait=json_answer('{"n":1}', **NAMED),
        stream=events(META, b"event: custom\ndata: 1\n\n", **NAMED),
        r1=run_json(),
        state=state(ONE),
        join=json_answer('{"n":1}', **NAMED),
    )
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph")
        result = await outcome_of(flavour, client, call, stream_mode="custom")
        await flavour.close(client)
    assert (result.interrupts, result.run.status) == (BOTH[:1], "interrupted")


@pytest.mark.parametrize("call", CREATES)
@pytest.mark.parametrize("status", ["interrupted", "cancelled", "error", "timeout"])
async def test_run_that_was_stopped_does_not_pass_for_success(
    flavour: Flavour, call: str, status: str
) -> None:
    """Seen on langgraph dev: a cancelled run ends its stream in order, its wait with a state."""
    routes = routed(
        wait=json_answer('{"n":1}', **NAMED),
        stream=events(META, VALUES, **NAMED),
        r1=run_json(status),
        state=state(),
    )
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph")
        with pytest.raises(RunFailedError, match=f"run r1 ended with status {status}") as caught:
            await outcome_of(flavour, client, call)
        assert (caught.value.status, caught.value.thread_id) == (status, "t1")
        kept = await outcome_of(flavour, client, call, raise_on_failure=False)
        assert (kept.run.status, kept.values, kept.interrupts) == (status, {"n": 1}, [])
        await flavour.close(client)


END = b'event: end\ndata: {"status":"interrupted"}\n\n'


@pytest.mark.parametrize("pending", [[ONE], []])
async def test_end_that_says_interrupted_is_looked_into(
    flavour: Flavour, pending: list[dict[str, Any]]
) -> None:
    """Seen on aegra: end says interrupted for a run that asks, and for one that was cancelled."""
    routes = routed(stream=events(META, VALUES, END, **NAMED), state=state(*pending))
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph")
        stream = client.create_and_stream_run(agent_id="a", thread_id="t1")
        if pending:
            assert [e.event for e in await flavour.collect(stream)] == ["metadata", "values", "end"]
            assert stream.interrupts == BOTH[:1]
        else:
            with pytest.raises(RunFailedError, match="run r1 ended with status interrupted"):
                await flavour.collect(stream)
        assert stream.ended == "end"
        await flavour.close(client)
    assert asked(server) == ["POST /threads/t1/runs/stream", "GET /threads/t1/state"]


@pytest.mark.parametrize("call", CREATES)
async def test_state_that_cannot_be_had_is_no_silent_success(flavour: Flavour, call: str) -> None:
    """FAULTS 5: asked, and failing otherwise than by not being there."""
    routes = routed(
        wait=json_answer('{"__interrupt__":[]}', **NAMED),
        stream=events(META, VALUES, END, **NAMED),
        r1=run_json("interrupted"),
        state=answer(500),
    )
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph", retry=FAST)
        error = ServerError if call == CREATES[0] else StreamInterruptedError
        with pytest.raises(error) as caught:
            await outcome_of(flavour, client, call)
        assert (caught.value.run_id, caught.value.thread_id) == ("r1", "t1")
        await flavour.close(client)


async def test_stateless_run_is_asked_nothing_where_its_thread_is_not_told(
    flavour: Flavour,
) -> None:
    """Seen on langgraph dev: a stateless stream names its run only, at a route that is a 404."""
    told: Any = {"content_location": "/runs/r1", "location": "/runs/r1/stream"}
    with raw_server(events(META, VALUES, **told)) as server:
        client = flavour.client(server.url, dialect="langgraph", retry=FAST)
        stream = client.create_and_stream_run(agent_id="a")
        await flavour.collect(stream)
        result = await flavour.call(stream.final)
        await flavour.close(client)
    assert (stream.ended, stream.run, result.values) == ("eof", RunRef("r1"), {"n": 1})
    assert asked(server) == ["POST /runs/stream"]


OLD: Any = {
    "kwargs": {"stream_mode": ["custom"], "subgraphs": True, "resumable": False, "input": 5}
}


@pytest.mark.parametrize("call", ["update_and_wait_run", "update_and_stream_run"])
@pytest.mark.parametrize(
    ("extra", "sent"),
    [
        ({}, {"assistant_id": "a1", "stream_mode": ["custom"], "stream_subgraphs": True}),
        (
            {"stream_mode": "values", "stream_resumable": True},
            {
                "assistant_id": "a1",
                "stream_mode": "values",
                "stream_subgraphs": True,
                "stream_resumable": True,
            },
        ),
        ({"assistant_id": "a2"}, {"assistant_id": "a2"}),
    ],
)
async def test_resume_is_a_new_run_of_the_same_assistant(
    flavour: Flavour, call: str, extra: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Seen: POST /threads/{t}/runs/... with the command; a stream has the modes of the old one."""
    is_wait = call.endswith("wait_run")
    new: Any = {"content_location": "/threads/t1/runs/r2"}
    routes = routed(
        wait=json_answer('{"n":1}', **new),
        stream=events(b'event: metadata\ndata: {"run_id":"r2"}\n\n', VALUES, **new),
        r1=run_json(**OLD),
        r2=json_answer('{"run_id":"r2","status":"success"}'),
        state=state(),
    )
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph")
        made = getattr(client, call)
        arguments = {"command": Command(resume="yes"), "extra_body": extra}
        if is_wait:
            run = (await flavour.call(made, R1, **arguments)).run
        else:
            stream = made(R1, **arguments)
            await flavour.collect(stream)
            run = stream.run
        await flavour.close(client)
    assert (run.run_id, run.thread_id) == ("r2", "t1")
    if is_wait and not extra:
        sent = {"assistant_id": "a1"}
    if is_wait and "stream_mode" in extra:
        sent = {name: sent[name] for name in sent if name != "stream_subgraphs"}
    (post,) = [request for request in server.requests if request.method == "POST"]
    assert post.target == f"/threads/t1/runs/{'wait' if is_wait else 'stream'}"
    assert json.loads(post.body) == {"command": {"resume": "yes"}, **sent}


async def test_remaining_question_is_found_after_one_was_answered(flavour: Flavour) -> None:
    """Seen on LangGraph.js: one of two answered, and the answer does not show the other."""
    routes = routed(
        wait=json_answer('{"n":1}', **NAMED),
        stream=events(META, VALUES, **NAMED),
        r1=run_json(),
        state=state(TWO),
    )
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph")
        command = Command(resume={ID2: "yes"})
        waited = await flavour.call(client.update_and_wait_run, R1, command=command)
        stream = client.update_and_stream_run(R1, command=command)
        await flavour.collect(stream)
        await flavour.close(client)
    assert waited.interrupts == stream.interrupts == BOTH[1:]


@pytest.mark.parametrize("pending", [[ONE], []])
@pytest.mark.parametrize("call", ["update_and_wait_run", "update_and_stream_run"])
async def test_answer_to_what_is_not_asked_is_not_sent(
    flavour: Flavour, call: str, pending: list[dict[str, Any]]
) -> None:
    """Seen: a resume by an unknown id is taken for nothing, and on LangGraph.js for success."""
    told = f"does not ask '{ID2}'; it asks {ID1 if pending else 'nothing'}"
    with raw_server(routed(state=state(*pending))) as server:
        client = flavour.client(server.url, dialect="langgraph")
        resume = {"command": Command(resume={ID2: "yes"})}
        update = getattr(client, call)
        is_wait = call.endswith("wait_run")
        with pytest.raises(ValueError, match=told):
            await (
                flavour.call(update, R1, **resume)
                if is_wait
                else flavour.collect(update(R1, **resume))
            )
        await flavour.close(client)
    assert asked(server) == ["GET /threads/t1/state"]


async def test_run_without_an_assistant_cannot_be_resumed(flavour: Flavour) -> None:
    """What the server leaves out is asked of the caller."""
    with raw_server(json_answer('{"run_id":"r1"}')) as server:
        client = flavour.client(server.url, dialect="langgraph")
        with pytest.raises(ProtocolError, match=r"give it: extra_body=\{'assistant_id'"):
            await flavour.call(client.update_and_wait_run, R1, command=Command(resume=1))
        await flavour.close(client)
    assert asked(server) == ["GET /threads/t1/runs/r1"]


def kept(*blocks: bytes, cut: int) -> list[Script]:
    """A stream that is cut in the middle, and the rest of it for whoever asks for that."""
    ids = [re.findall(rb"(?m)^id: (.*)$", block)[0].decode() for block in blocks]

    async def first(connection: Connection) -> None:
        start = head(200, content_type="text/event-stream", transfer_encoding="chunked", **NAMED)
        await connection.send(start, chunk(b"".join(blocks)[:cut]))

    async def joined(connection: Connection) -> None:
        after = connection.request.headers.get("last-event-id")
        rest = blocks if after == "-1" else blocks[ids.index(str(after)) + 1 :]
        await events(*rest)(connection)

    return [first, joined]


KEPT = [
    b'event: metadata\ndata: {"run_id":"r1"}\nid: 5-0\n\n',
    b'event: values\ndata: {"n":1}\nid: 6-0\n\n',
    b'event: values\ndata: {"n":2}\nid: 7-0\n\n',
]
RESUMABLE: Any = {"on_disconnect": "continue", "extra_body": {"stream_resumable": True}}


@pytest.mark.parametrize("cut", range(1, len(b"".join(KEPT)), 3))
def test_resumable_stream_is_joined_wherever_it_is_cut(cut: int) -> None:
    """Seen: exact continuation; -1 replays everything, for a cut before the first id."""
    with (
        raw_server(routed(stream=kept(*KEPT, cut=cut), r1=run_json())) as server,
        RunsClient(server.url, dialect="langgraph", retry=FAST) as client,
    ):
        stream = client.create_and_stream_run(agent_id="a", thread_id="t1", **RESUMABLE)
        assert [event.id for event in stream] == ["5-0", "6-0", "7-0"]
        assert (stream.ended, stream.last_event_id) == ("status", "7-0")
    assert asked(server) == [
        "POST /threads/t1/runs/stream",
        "GET /threads/t1/runs/r1/stream",
        "GET /threads/t1/runs/r1",
    ]
    assert (server.requests[1].headers["last-event-id"] == "-1") is (cut < len(KEPT[0]))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"on_disconnect": "continue"}, r"extra_body=\{'stream_resumable': True\}"),
        ({"extra_body": {"stream_resumable": True}}, "its status is running"),
    ],
)
async def test_stream_that_is_not_kept_is_an_error_when_cut(
    flavour: Flavour, fields: dict[str, Any], told: str
) -> None:
    """Seen on LangGraph.js: ids prove nothing; asked to go on after 1, it went on with 8."""
    routes = routed(stream=kept(*KEPT, cut=len(b"".join(KEPT[:2]))), r1=run_json("running"))
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph", retry=FAST)
        stream = client.create_and_stream_run(agent_id="a", thread_id="t1", **fields)
        with pytest.raises(StreamInterruptedError, match=told) as caught:
            await flavour.collect(stream)
        assert (caught.value.run_id, caught.value.thread_id) == ("r1", "t1")
        assert (caught.value.delivered, caught.value.last_event_id) == (2, "6-0")
        await flavour.close(client)


async def test_joined_stream_is_joined_again_only_where_the_caller_says_it_is_kept(
    flavour: Flavour,
) -> None:
    """FAULTS: stream_run rejoins by itself only with rejoin=True given."""
    for arguments in ({}, {"rejoin": True}):
        routes = routed(stream=kept(*KEPT, cut=len(b"".join(KEPT[:2]))), r1=run_json())
        with raw_server(routes) as server:
            client = flavour.client(server.url, dialect="langgraph", retry=FAST)
            stream = client.stream_run(R1, **arguments)
            if arguments:
                assert [e.id for e in await flavour.collect(stream)] == ["5-0", "6-0", "7-0"]
            else:
                with pytest.raises(StreamInterruptedError, match="rejoin=True"):
                    await flavour.collect(stream)
            await flavour.close(client)


@pytest.mark.parametrize("options", [{"resumable": False}, {"resumable": True}, {}])
async def test_gap_is_refused_where_the_server_keeps_nothing(
    flavour: Flavour, options: dict[str, bool]
) -> None:
    """Seen: Last-Event-ID on a run that is not resumable gives live events, and loses the gap."""
    routes = routed(stream=events(KEPT[2]), r1=run_json(kwargs=options), state=state())
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph")
        stream = client.stream_run(R1, last_event_id="6-0")
        if options == {"resumable": False}:
            with pytest.raises(ValueError, match="r1 was created without stream_resumable=True"):
                await flavour.collect(stream)
            assert asked(server) == ["GET /threads/t1/runs/r1"]
        else:
            assert [event.id for event in await flavour.collect(stream)] == ["7-0"]
            assert server.requests[1].headers["last-event-id"] == "6-0"
        await flavour.close(client)


@pytest.mark.parametrize(
    "error",
    [b'{"error":"HTTPException","message":"404: Run not found"}', b'"Run not found"'],
    ids=["langgraph dev", "langgraphjs dev"],
)
async def test_joining_a_run_that_is_not_there_is_not_found(flavour: Flavour, error: bytes) -> None:
    """Seen: 200, and an error event, where other calls answer 404."""
    with raw_server(events(b"event: error\ndata: %b\n\n" % error)) as server:
        client = flavour.client(server.url, dialect="langgraph")
        with pytest.raises(NotFoundError, match="Run not found") as caught:
            await flavour.collect(client.stream_run(R1))
        assert (caught.value.status_code, caught.value.run_id) == (404, "r1")
        await flavour.close(client)


async def test_cut_wait_is_finished_by_joining(flavour: Flavour) -> None:
    """FAULTS 7: never a second POST."""

    async def cut(connection: Connection) -> None:
        await connection.send(head(200, content_length="100", **NAMED) + b"\n{")

    routes = routed(wait=cut, join=json_answer('{"n":1}', **NAMED), r1=run_json(), state=state())
    with raw_server(routes) as server:
        client = flavour.client(server.url, dialect="langgraph", retry=FAST)
        call = client.create_and_wait_run
        result = await flavour.call(call, agent_id="a", thread_id="t1", on_disconnect="continue")
        await flavour.close(client)
    assert (result.values, result.run.status) == ({"n": 1}, "success")
    assert asked(server)[:2] == ["POST /threads/t1/runs/wait", "GET /threads/t1/runs/r1/join"]


async def test_total_covers_the_questions_afterwards(flavour: Flavour) -> None:
    """DESIGN: total is always a RequestTimeoutError, also while the end is being settled."""

    async def silent(connection: Connection) -> None:
        await connection.client_closes()

    with raw_server(routed(stream=events(META, VALUES, **NAMED), r1=silent)) as server:
        client = flavour.client(server.url, dialect="langgraph", timeout=Timeout(total=0.5))
        stream = client.create_and_stream_run(agent_id="a", thread_id="t1")
        with pytest.raises(RequestTimeoutError) as caught:
            await flavour.collect(stream)
        assert caught.value.limit == "total"
        await flavour.close(client)


def test_run_is_that_of_the_schema() -> None:
    """Seen on langgraph dev: assistant_id, and what was asked for within kwargs."""
    body = (WIRE / "langgraph_dev/cancelled_while_stream_run_after.body").read_bytes()
    with (
        raw_server(answer(200, body)) as server,
        RunsClient(server.url, dialect="langgraph") as client,
    ):
        run = client.get_run(R1)
    assert isinstance(run, Run)
    assert run.agent_id == "cad1b5ad-d177-59d1-ab39-5e327188ed3a"
    assert (run.status, run.input, run.stream_mode) == (
        "interrupted",
        {"n": 20, "interval": 0.3},
        ["values"],
    )


@pytest.mark.parametrize("resume", [{"left": 1, "right": 2}, "yes", None, [ID2], {ID1: 1}])
def test_answer_that_may_be_meant_is_sent(resume: Any) -> None:
    """A mapping of anything else is one answer; an id that is asked is fine."""
    body = {"run": {"run_id": "r1"}, "values": {"__interrupt__": [ONE]}}
    with raw_server(json_answer(json.dumps(body))) as server, RunsClient(server.url) as client:
        response = client.create_and_wait_run()
        client.update_and_wait_run(response, command=Command(resume=resume))
    assert asked(server) == ["POST /runs/wait", "POST /runs/r1/wait"]


@pytest.mark.parametrize("resume", [{ID2: 1}, "mixed"])
def test_answer_to_another_question_is_refused_in_both_dialects(resume: Any) -> None:
    """An id that is not pending is told before anything is sent, where that is known here."""
    with RunsServer(demo_agents) as server, RunsClient(server.url) as client:
        response = client.create_and_wait_run(agent_id="trip", input={"to": "Oslo"})
        stream = client.create_and_stream_run(agent_id="trip", input={"to": "Oslo"})
        list(stream)
        for known in (response, stream):
            answers = {str(known.interrupts[0].id): 1, "other": 2} if resume == "mixed" else resume
            with pytest.raises(ValueError, match=r"the run does not ask '(other|b+)'; it asks"):
                client.update_and_wait_run(known, command=Command(resume=answers))
        done = client.update_and_wait_run(stream, command=Command(resume="yes"))
    assert done.values == {"to": "Oslo", "price": 120, "booked": True}


def test_dialects_have_the_same_operations() -> None:
    """Eleven pure functions each, and nothing beside them for the session to know."""
    names = {
        *("create_and_wait_run", "create_and_stream_run", "update_and_wait_run"),
        *("update_and_stream_run", "create_run", "get_run", "search_runs", "wait_run"),
        *("stream_run", "cancel_run", "delete_run"),
    }
    for module in (agent_protocol, langgraph):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = {name for name, made in functions if made.__module__ == module.__name__}
        assert {name for name in own if not name.startswith("_")} == names


def test_pages_are_whole_however_a_server_counts() -> None:
    """Seen on LangGraph.js: limit is the end of a page, on langgraph dev its length."""
    runs = [{"run_id": str(number)} for number in range(7)]

    def page_of(connection: Connection, *, is_end: bool) -> Script:
        asked_for = parse_qs(urlsplit(connection.request.target).query)
        offset, limit = int(asked_for.get("offset", ["0"])[0]), int(asked_for["limit"][0])
        return json_answer(json.dumps(runs[offset : limit if is_end else offset + limit]))

    for is_end in (True, False):

        async def script(connection: Connection, is_end: bool = is_end) -> None:
            await page_of(connection, is_end=is_end)(connection)

        with raw_server(script) as server, RunsClient(server.url, dialect="langgraph") as client:
            assert [r.run_id for r in client.iter_runs(thread_id="t1", limit=3)] == list("0123456")
            assert [r.run_id for r in client.search_runs(thread_id="t1", offset=5)] == ["5", "6"]
            page = client.search_runs(thread_id="t1", limit=2, offset=1)
            assert [run.run_id for run in page] == ["1", "2"]


def test_question_that_was_answered_is_asked_no_more() -> None:
    """Seen on LangGraph.js: its task has a result, and the interrupt still stands there."""
    tasks = [{"interrupts": [ONE], "result": {"n": 1}}, {"interrupts": [TWO], "result": None}]
    routes = routed(
        wait=json_answer('{"n":1}', **NAMED),
        r1=run_json(),
        state=json_answer(json.dumps({"tasks": tasks})),
    )
    with raw_server(routes) as server, RunsClient(server.url, dialect="langgraph") as client:
        result = client.update_and_wait_run(R1, command=Command(resume="yes"))
    assert result.interrupts == BOTH[1:]


async def test_output_of_a_stateless_stream_is_what_was_streamed(flavour: Flavour) -> None:
    """Nobody can be asked for values where the server told no thread."""
    with raw_server(events(META, b"event: custom\ndata: 1\n\n")) as server:
        client = flavour.client(server.url, dialect="langgraph")
        result = await flavour.call(client.create_and_stream_run(agent_id="a").final)
        await flavour.close(client)
    assert (result.values, result.run.run_id) == (None, "r1")
    assert asked(server) == ["POST /runs/stream"]


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.create_run(agent_id="a", extra_body={"thread_id": "t2"}),
        lambda c: c.create_run(agent_id="a", extra_body={"agent_id": "b"}),
        lambda c: c.create_run(agent_id="a", extra_body={"messages": []}),
        lambda c: c.update_and_wait_run(R1, extra_body={"command": {"resume": 1}}),
        lambda c: c.search_runs(thread_id="t1", extra_body={"limit": 50}),
    ],
)
def test_field_of_the_call_is_refused_in_extra_body(call: Callable[[Any], Any]) -> None:
    """Sent as it is, it would mean nothing to these servers, or pass by what is checked."""
    client = RunsClient("http://127.0.0.1:9", dialect="langgraph", retry=None)
    with pytest.raises(ValueError, match=r"extra_body: '\w+' is a field of the call"):
        call(client)


@pytest.mark.parametrize(
    ("modes", "read"),
    [(["values", 5], ["values", "5"]), ("values", "values"), (5, None), (None, None)],
)
def test_odd_option_of_a_run_does_not_hide_its_status(modes: Any, read: Any) -> None:
    """What a server keeps of a request is a bonus; and what it adds to a search is JSON."""
    kwargs = {"stream_mode": modes, "webhook": 3, "config": "x"}
    with (
        raw_server(run_json(kwargs=kwargs), json_answer("[]")) as server,
        RunsClient(server.url, dialect="langgraph") as client,
    ):
        run = client.get_run(R1)
        assert client.search_runs(thread_id="t1", extra_body={"x": True}) == []
    assert (run.status, run.webhook, run.config) == ("success", None, None)
    assert run.stream_mode == read
    assert "x=true" in server.requests[1].target
