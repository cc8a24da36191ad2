"""The same calls on every server: one scenario for each method and each graph.

What a server does otherwise is named beside its scenario, and checked like everything else.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agentproto import (
    Command,
    ConflictError,
    CustomEvent,
    MetadataEvent,
    NotFoundError,
    RunFailedError,
    RunStatus,
    StatusError,
    UnprocessableRequestError,
    ValuesEvent,
)

from ..both import Flavour
from ..faults import cutting_proxy
from ..raw_server import raw_server
from .conftest import Target

SAID = "Hello from a fake model"
HI = {"agent_id": "agent", "input": {"messages": [{"role": "user", "content": "hi"}]}}
LONG = {"agent_id": "slow", "input": {"n": 100, "interval": 0.1}}
BOUND = 30.0
EXAMPLES = Path(__file__).parents[2] / "examples"


def on_a_thread() -> dict[str, Any]:
    return {"thread_id": str(uuid4()), "if_not_exists": "create"}


@pytest.fixture
async def client(flavour: Flavour, target: Target) -> Any:
    made = flavour.client(target.url, timeout=BOUND, **target.arguments)
    yield made
    await flavour.close(made)


@pytest.mark.scenario("`create_and_wait_run` of `agent`")
async def test_create_and_wait_run(flavour: Flavour, client: Any) -> None:
    for thread in ({}, on_a_thread()):
        result = await flavour.call(client.create_and_wait_run, **HI, **thread)
        assert result.values["steps"] == ["prepare", "model"]
        assert result.messages[-1].text == SAID
        assert result.messages[-1].role == "assistant"
        assert (bool(result.run.run_id), result.interrupts) == (True, [])
    assert result.run.status == "success"


@pytest.mark.scenario("`create_and_stream_run` of `agent`")
async def test_create_and_stream_run(flavour: Flavour, client: Any) -> None:
    modes = ["values", "custom"]
    for thread in ({}, on_a_thread()):
        stream = client.create_and_stream_run(**HI, stream_mode=modes, **thread)
        events = await flavour.collect(stream)
        assert isinstance(events[0], MetadataEvent)
        assert events[0].run_id == stream.run_id
        customs = [event.data for event in events if isinstance(event, CustomEvent)]
        assert customs == [{"progress": 0, "note": "préparation — ✓"}, {"progress": 100}]
        last = [event for event in events if isinstance(event, ValuesEvent)][-1]
        assert last.data["steps"] == ["prepare", "model"]
        result = await flavour.call(stream.final)
        assert (result.values, result.messages[-1].text) == (last.data, SAID)
    assert stream.ended in {"end", "status"}
    assert (stream.thread_id, result.run.status) == (thread["thread_id"], "success")


@pytest.mark.scenario("the same text in every form of messages")
@pytest.mark.parametrize("mode", ["messages", "messages-tuple"])
async def test_text(flavour: Flavour, client: Any, target: Target, mode: str) -> None:
    if target.server.dialect == "agent-protocol":
        mode = "messages"  # the protocol has this one only
    stream = client.create_and_stream_run(**HI, stream_mode=mode, **on_a_thread())
    pieces = await flavour.text(stream)
    assert "".join(pieces) == SAID
    assert len(pieces) > 5
    assert (await flavour.call(stream.final)).messages[-1].text == SAID


@pytest.mark.scenario("`create_run`, `get_run`, `wait_run`")
async def test_background(flavour: Flavour, client: Any) -> None:
    run = await flavour.call(client.create_run, **HI, **on_a_thread())
    known = await flavour.call(client.get_run, run)
    assert (known.run_id, known.thread_id) == (run.run_id, run.thread_id)
    assert known.agent_id is not None
    result = await flavour.call(client.wait_run, run)
    assert (result.messages[-1].text, result.run.status) == (SAID, "success")
    assert (await flavour.call(client.get_run, result)).status == "success"


@pytest.mark.scenario("`stream_run` of a run that goes on")
async def test_stream_run(flavour: Flavour, client: Any) -> None:
    ask = {"agent_id": "slow", "input": {"n": 8, "interval": 0.25}}
    run = await flavour.call(client.create_run, **ask, **on_a_thread())
    stream = client.stream_run(run)
    ticks = [
        event.data.get("ticks", 0)
        for event in await flavour.collect(stream)
        if isinstance(event, ValuesEvent)
    ]
    assert ticks == list(range(ticks[0], 9))
    assert (stream.run_id, stream.ended in {"end", "status"}) == (run.run_id, True)
    assert (await flavour.call(stream.final)).values["ticks"] == 8


@pytest.mark.scenario("`search_runs` and `iter_runs` of a thread")
async def test_search_runs(flavour: Flavour, client: Any) -> None:
    thread = on_a_thread()
    echo = {"agent_id": "echo", "input": {"text": "x"}}
    runs = [(await flavour.call(client.create_and_wait_run, **echo, **thread)).run for _ in "123"]
    search = {"thread_id": thread["thread_id"], "status": "success"}
    page = await flavour.call(client.search_runs, limit=2, **search)
    assert len(page) == 2
    none = await flavour.call(client.search_runs, thread_id=thread["thread_id"], status="error")
    assert none == []
    found = await flavour.all_of(client.iter_runs(limit=2, **search))
    assert sorted(run.run_id for run in found) == sorted(run.run_id for run in runs)


@pytest.mark.scenario(
    "`cancel_run`", langgraphjs_dev=("The run has status `error` then, not `interrupted`.", "error")
)
async def test_cancel_run(flavour: Flavour, client: Any, deviation: str | None) -> None:
    run = await flavour.call(client.create_run, **LONG, **on_a_thread())
    await _until_running(flavour, client, run)
    assert await flavour.call(client.cancel_run, run, wait=True) is None
    assert (await flavour.call(client.get_run, run)).status == (deviation or "interrupted")


async def _until_running(flavour: Flavour, client: Any, run: Any) -> None:
    async with asyncio.timeout(BOUND):
        while (await flavour.call(client.get_run, run)).status == RunStatus.PENDING:
            pass


@pytest.mark.scenario("`delete_run`")
async def test_delete_run(flavour: Flavour, client: Any) -> None:
    run = await flavour.call(client.create_run, **HI, **on_a_thread())
    await flavour.call(client.wait_run, run)
    assert await flavour.call(client.delete_run, run) is None
    for call in (client.get_run, client.delete_run):
        with pytest.raises(NotFoundError):
            await flavour.call(call, run)


ASK: Any = {"agent_id": "hitl", "input": {"topic": "deploy"}}
ASK_TWO: Any = {"agent_id": "hitl", "input": {"topic": "deploy", "parallel": True}}
TWO = ["first?", "second?"]


@pytest.mark.scenario("`update_and_wait_run` of `hitl`, one question")
async def test_update_and_wait_run(flavour: Flavour, client: Any) -> None:
    asked = await flavour.call(client.create_and_wait_run, **ASK, **on_a_thread())
    (interrupt,) = asked.interrupts
    assert interrupt.value == {"question": "Approve deploy?"}
    assert (asked.run.status, bool(interrupt.id)) == ("interrupted", True)
    known = await flavour.call(client.wait_run, asked)
    assert known.interrupts[0].value == interrupt.value
    done = await flavour.call(client.update_and_wait_run, asked, command=Command(resume="yes"))
    assert (done.values["answers"], done.run.status) == (["yes"], "success")
    assert (done.interrupts, done.run.thread_id) == ([], asked.run.thread_id)


@pytest.mark.scenario("`update_and_stream_run` of `hitl`, one question")
async def test_update_and_stream_run(flavour: Flavour, client: Any) -> None:
    stream = client.create_and_stream_run(**ASK, **on_a_thread())
    await flavour.collect(stream)
    (interrupt,) = stream.interrupts
    assert interrupt.value == {"question": "Approve deploy?"}
    command = Command(resume={interrupt.id: "no"})
    going_on = client.update_and_stream_run(stream, command=command)
    events = await flavour.collect(going_on)
    last = [event for event in events if isinstance(event, ValuesEvent)][-1]
    assert last.data["answers"] == ["no"]
    assert (going_on.interrupts, going_on.thread_id) == ([], stream.thread_id)
    assert going_on.ended in {"end", "status"}


@pytest.mark.scenario("`hitl`, two questions, answered one by one by id")
async def test_two_questions(flavour: Flavour, client: Any) -> None:
    asked = await flavour.call(client.create_and_wait_run, **ASK_TWO, **on_a_thread())
    assert [interrupt.value["question"] for interrupt in asked.interrupts] == TWO
    first, second = asked.interrupts
    part = Command(resume={first.id: "yes"})
    partly = await flavour.call(client.update_and_wait_run, asked, command=part)
    assert [interrupt.id for interrupt in partly.interrupts] == [second.id]
    assert partly.run.status == "interrupted"
    rest = Command(resume={second.id: "no"})
    done = await flavour.call(client.update_and_wait_run, partly, command=rest)
    assert done.values["answers"] == [{"first?": "yes"}, {"second?": "no"}]
    assert (done.interrupts, done.run.status) == ([], "success")


@pytest.mark.scenario("`hitl`, two questions, streamed and answered at once")
async def test_two_questions_at_once(flavour: Flavour, client: Any) -> None:
    stream = client.create_and_stream_run(**ASK_TWO, **on_a_thread())
    await flavour.collect(stream)
    assert [interrupt.value["question"] for interrupt in stream.interrupts] == TWO
    command = Command(resume={each.id: each.value["question"] for each in stream.interrupts})
    done = await flavour.call(client.update_and_stream_run(stream, command=command).final)
    assert done.values["answers"] == [{"first?": "first?"}, {"second?": "second?"}]


@pytest.mark.scenario("`hitl`, a question that the stream mode hides")
async def test_hidden_question(flavour: Flavour, client: Any) -> None:
    stream = client.create_and_stream_run(**ASK, stream_mode="custom", **on_a_thread())
    await flavour.collect(stream)
    assert [each.value for each in stream.interrupts] == [{"question": "Approve deploy?"}]
    assert (await flavour.call(stream.final)).run.status == "interrupted"
    hidden = {**ASK, "stream_mode": "custom", **on_a_thread()}
    asked = await flavour.call(client.create_and_wait_run, **hidden)
    assert [each.value for each in asked.interrupts] == [{"question": "Approve deploy?"}]


@pytest.mark.scenario("`examples/approve.py`: stream, ask, resume, until done")
@pytest.mark.parametrize("ask", [ASK, ASK_TWO], ids=["one question", "two questions"])
async def test_approve_loop(target: Target, ask: Any) -> None:
    arguments = [target.url, target.server.dialect, ask["agent_id"], json.dumps(ask["input"])]
    told = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", EXAMPLES / "approve.py", *arguments],
        input="yes\nno\n",
        check=True,
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    _, _, final = told.stdout.rpartition("final values: ")
    answers = [{"first?": "yes"}, {"second?": "no"}] if ask is ASK_TWO else ["yes"]
    assert json.loads(final)["answers"] == answers


@pytest.mark.scenario("an answer to a question that is not asked is refused")
async def test_unknown_question(flavour: Flavour, client: Any) -> None:
    asked = await flavour.call(client.create_and_wait_run, **ASK, **on_a_thread())
    command = Command(resume={"0" * 32: "yes"})
    with pytest.raises(ValueError, match="does not ask '0000"):
        await flavour.call(client.update_and_wait_run, asked, command=command)
    known = await flavour.call(client.wait_run, asked)
    assert [each.value for each in known.interrupts] == [{"question": "Approve deploy?"}]


@pytest.mark.scenario(
    "`fail`, waited for and streamed",
    aegra=("A stream says `ValueError: execution failed`; the text is told by a wait only.", True),
)
async def test_failed_run(flavour: Flavour, client: Any, deviation: bool | None) -> None:
    ask: Any = {"agent_id": "fail", "input": {}}
    for thread in ({}, on_a_thread()):
        with pytest.raises(RunFailedError, match="boom: this node always fails") as caught:
            await flavour.call(client.create_and_wait_run, **ask, **thread)
        assert caught.value.run_id
        stream = client.create_and_stream_run(**ask, **thread)
        told = "execution failed" if deviation else "boom: this node always fails"
        with pytest.raises(RunFailedError, match=told):
            await flavour.collect(stream)
        assert stream.ended == "error"
        kept = await flavour.call(
            client.create_and_wait_run, **ask, raise_on_failure=False, **thread
        )
        assert kept.run.status == "error"


@pytest.mark.scenario("`slow`, cut by a proxy again and again, and joined")
async def test_cut_stream(flavour: Flavour, target: Target) -> None:
    ask: Any = {"agent_id": "slow", "input": {"n": 10, "interval": 0.1}}
    if target.server.dialect == "langgraph":
        ask["extra_body"] = {"stream_resumable": True}
    with raw_server(cutting_proxy(target.url, 400)) as proxy:
        client = flavour.client(proxy.url, timeout=BOUND, **target.arguments)
        stream = client.create_and_stream_run(**ask, on_disconnect="continue", **on_a_thread())
        events = await flavour.collect(stream)
        await flavour.close(client)
    ticks = [event.data.get("ticks", 0) for event in events if isinstance(event, ValuesEvent)]
    assert ticks == list(range(11))
    ids = [event.id for event in events]
    assert len(set(ids)) == len(ids)
    methods = [request.method for request in proxy.requests]
    assert methods.count("POST") == 1
    assert len(methods) > 2


@pytest.mark.scenario("`echo`, U+2028 and 150 kB, waited for and streamed")
@pytest.mark.parametrize("text", ["line\u2028sep\r\n\u2029 😀 data: x\n\nevent: y", "é" * 75_000])
async def test_text_comes_back_as_it_was_sent(flavour: Flavour, client: Any, text: str) -> None:
    ask: Any = {"agent_id": "echo", "input": {"text": text}}
    waited = await flavour.call(client.create_and_wait_run, **ask)
    streamed = await flavour.call(client.create_and_stream_run(**ask).final)
    assert waited.values == streamed.values == {"text": text, "echoed": text}


STOPPED = "Status `interrupted`, which is no failure in the protocol, is returned as it is."


@pytest.mark.scenario(
    "cancelled from outside, while it is waited for", reference_server=(STOPPED, True)
)
async def test_cancelled_while_waiting(
    flavour: Flavour, client: Any, deviation: bool | None
) -> None:
    thread = on_a_thread()
    waiting = asyncio.create_task(flavour.call(client.create_and_wait_run, **LONG, **thread))
    await _cancel_on(flavour, client, thread["thread_id"])
    if deviation:
        assert (await waiting).run.status == "interrupted"
    else:
        with pytest.raises(RunFailedError):
            await waiting


@pytest.mark.scenario(
    "cancelled from outside, while it is streamed", reference_server=(STOPPED, True)
)
async def test_cancelled_while_streaming(
    flavour: Flavour, client: Any, deviation: bool | None
) -> None:
    thread = on_a_thread()
    stream = client.create_and_stream_run(**LONG, **thread)
    reading = asyncio.create_task(flavour.collect(stream))
    await _cancel_on(flavour, client, thread["thread_id"])
    if deviation:
        assert (await reading)[-1].data == {"status": "interrupted"}
    else:
        with pytest.raises(RunFailedError):
            await reading
    assert stream.ended in {"end", "status", "error"}


async def _cancel_on(flavour: Flavour, client: Any, thread_id: str) -> None:
    async with asyncio.timeout(BOUND):
        runs: list[Any] = []
        while not runs:
            try:
                runs = await flavour.call(client.search_runs, thread_id=thread_id, status="running")
            except NotFoundError:  # the thread comes with the run
                continue
    await flavour.call(client.cancel_run, runs[0], wait=True)


@pytest.mark.scenario(
    "unknown agent: `NotFoundError`",
    langgraph_dev=(
        "A name that is no graph: `UnprocessableRequestError`.",
        UnprocessableRequestError,
    ),
)
async def test_unknown_agent(
    flavour: Flavour, client: Any, deviation: type[StatusError] | None
) -> None:
    ask = {"agent_id": "nobody", "input": {}}
    for step in (
        lambda: flavour.call(client.create_and_wait_run, **ask),
        lambda: flavour.collect(client.create_and_stream_run(**ask)),
        lambda: flavour.call(client.create_run, **ask),
    ):
        with pytest.raises(deviation or NotFoundError) as caught:
            await step()
        assert caught.value.error is not None
        assert caught.value.error.message


ANY_THREAD = "Every thread exists, or comes into being when it is named."


@pytest.mark.scenario(
    "missing thread: `NotFoundError`",
    reference_server=(ANY_THREAD, "made"),
    langgraphjs_dev=("`UnprocessableRequestError` that speaks of a busy thread.", "422"),
    aegra=(ANY_THREAD, "made"),
)
async def test_missing_thread(flavour: Flavour, client: Any, deviation: str | None) -> None:
    ask = {"agent_id": "echo", "input": {"text": "x"}, "thread_id": str(uuid4())}
    if deviation == "made":
        result = await flavour.call(client.create_and_wait_run, **ask)
        assert result.values["echoed"] == "x"
        return
    error = UnprocessableRequestError if deviation == "422" else NotFoundError
    with pytest.raises(error):
        await flavour.call(client.create_and_wait_run, **ask)
    with pytest.raises(error):
        await flavour.collect(client.create_and_stream_run(**ask))


@pytest.mark.scenario(
    "busy thread with `reject`: `ConflictError`",
    langgraphjs_dev=("Answers 422: `UnprocessableRequestError`.", "422"),
    aegra=("Runs both at once.", "both"),
)
async def test_busy_thread(flavour: Flavour, client: Any, deviation: str | None) -> None:
    thread = on_a_thread()
    run = await flavour.call(client.create_run, **LONG, **thread)
    second: Any = {"agent_id": "echo", "input": {"text": "x"}, **thread}
    second["extra_body"] = {"multitask_strategy": "reject"}
    if deviation == "both":
        assert await flavour.call(client.create_run, **second)
    else:
        error = UnprocessableRequestError if deviation else ConflictError
        with pytest.raises(error) as caught:
            await flavour.call(client.create_and_wait_run, **second)
        assert caught.value.error is not None
        assert caught.value.error.message
    await flavour.call(client.cancel_run, run, wait=True)
