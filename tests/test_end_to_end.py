"""The client against the reference server, as users would use both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from agentproto import (
    AsyncRunsClient,
    Command,
    ConflictError,
    CustomEvent,
    EndEvent,
    MetadataEvent,
    NotFoundError,
    RunFailedError,
    RunRef,
    RunsClient,
    UnprocessableRequestError,
    UpdatesEvent,
    ValuesEvent,
)
from agentproto.testing import RunsServer, demo_agents

from .both import Flavour


@pytest.fixture(scope="module")
def server() -> Iterator[RunsServer]:
    with RunsServer(demo_agents, heartbeat=0.05) as running:
        yield running


async def test_run_asks_is_answered_and_finishes(flavour: Flavour, server: RunsServer) -> None:
    """Spec: the four calls, together."""
    client = flavour.client(server.url)
    asked = await flavour.call(client.create_and_wait_run, agent_id="trip", input={"to": "Oslo"})
    assert asked.run.status == "interrupted"
    (question,) = asked.interrupts
    assert question.value["question"] == "Book the trip to Oslo for 120?"
    answer = Command(resume={question.id: "yes"})
    done = await flavour.call(client.update_and_wait_run, asked, command=answer)
    assert done.run.status == "success"
    assert done.values == {"to": "Oslo", "price": 120, "booked": True}
    assert (done.run.run_id, done.interrupts) == (asked.run.run_id, [])
    with pytest.raises(ConflictError, match="has nothing to answer"):
        await flavour.call(client.update_and_wait_run, done, command=answer)
    await flavour.close(client)


async def test_streamed_run_asks_is_answered_and_finishes(
    flavour: Flavour, server: RunsServer
) -> None:
    """Spec: POST /runs/stream, POST /runs/{run_id}/stream."""
    client = flavour.client(server.url)
    modes = ["values", "messages", "updates", "custom"]
    stream = client.create_and_stream_run(agent_id="trip", stream_mode=modes)
    first = await flavour.collect(stream)
    assert [type(event) for event in first] == [
        MetadataEvent,
        ValuesEvent,
        CustomEvent,
        UpdatesEvent,
        ValuesEvent,
        ValuesEvent,
        EndEvent,
    ]
    assert [event.id for event in first] == [str(n) for n in range(1, 8)]
    assert stream.interrupts == list(first[5].interrupts)
    again = client.update_and_stream_run(stream.run, command=Command(resume="no"))
    second = await flavour.collect(again)
    assert [type(event) for event in second] == [MetadataEvent, UpdatesEvent, ValuesEvent, EndEvent]
    assert again.run == RunRef(stream.run_id)
    assert (await flavour.call(again.final)).values["booked"] is False
    await flavour.close(client)


async def test_text_of_a_chat_is_streamed(flavour: Flavour, server: RunsServer) -> None:
    """Spec: stream mode messages."""
    client = flavour.client(server.url)
    ask: dict[str, Any] = {"text": "hi", "interval": 0}
    stream = client.create_and_stream_run(agent_id="chat", input=ask, stream_mode="messages")
    pieces = await flavour.text(stream)
    assert "".join(pieces) == "Hello, you said “hi”."
    assert len(pieces) == 10
    # No values were streamed: the server is asked for them.
    result = await flavour.call(stream.final)
    assert result.values["messages"][-1]["content"] == "Hello, you said “hi”."
    assert [message.text for message in result.messages] == ["Hello, you said “hi”."]
    await flavour.close(client)


async def test_failed_run_raises_in_both_ways(flavour: Flavour, server: RunsServer) -> None:
    """DESIGN: a failed run never passes for a result."""
    client = flavour.client(server.url)
    with pytest.raises(RunFailedError, match="ValueError: boom: this agent always fails") as wait:
        await flavour.call(client.create_and_wait_run, agent_id="fail")
    with pytest.raises(RunFailedError, match="ValueError: boom: this agent always fails") as stream:
        await flavour.collect(client.create_and_stream_run(agent_id="fail"))
    assert wait.value.response is not None
    assert wait.value.response.values == {"steps": 1}
    assert stream.value.event is not None
    await flavour.close(client)


async def test_refusals_say_what_is_wrong(flavour: Flavour, server: RunsServer) -> None:
    """Spec: 404 and 422 with ErrorResponse."""
    client = flavour.client(server.url)
    with pytest.raises(NotFoundError, match="no agent 'nobody'"):
        await flavour.call(client.create_and_wait_run, agent_id="nobody")
    with pytest.raises(UnprocessableRequestError, match='"stream_mode"'):
        await flavour.collect(client.create_and_stream_run(stream_mode="all"))
    with pytest.raises(NotFoundError, match="no run 'x%2Fy'"):
        await flavour.call(client.update_and_wait_run, "x%2Fy", command=Command(resume=1))
    await flavour.close(client)


@dataclass
class Echo:
    text: str


async def test_values_are_typed(flavour: Flavour, server: RunsServer) -> None:
    """values_type, over both kinds of call; odd line separators survive."""
    client = flavour.client(server.url)
    ask = {"agent_id": "echo", "input": Echo("a\u2028b\r\nc\x85"), "values_type": Echo}
    result = await flavour.call(client.create_and_wait_run, **ask)
    streamed = await flavour.call(client.create_and_stream_run(**ask).final)
    assert result.values == streamed.values == Echo("a\u2028b\r\nc\x85")
    await flavour.close(client)


@pytest.mark.parametrize("leave", ["break", "exception", "cancel"])
async def test_server_sees_the_caller_leave(server: RunsServer, leave: str) -> None:
    """Shown when: a stream that is left leaves no open connection, seen on the server's side."""
    entered = asyncio.Event()

    async def consume(client: AsyncRunsClient) -> None:
        async with client.create_and_stream_run(agent_id="slow", input={"n": 9}) as stream:
            async for _ in stream:
                entered.set()
                if leave == "break":
                    break
                if leave == "exception":
                    raise KeyError

    async with AsyncRunsClient(server.url) as client:
        task = asyncio.create_task(consume(client))
        await entered.wait()
        assert server.open_requests <= 1
        if leave == "cancel":
            task.cancel()
        await asyncio.wait({task})
        assert await asyncio.to_thread(server.wait_until_idle)
        assert (task.cancelled(), leave == "exception") == (
            leave == "cancel",
            not (task.cancelled() or task.exception() is None),
        )


def test_hundreds_of_sync_calls_leave_nothing_open(server: RunsServer) -> None:
    """Connections are reused and none is left."""
    with RunsClient(server.url) as client:
        for n in range(100):
            assert client.create_and_wait_run(agent_id="echo", input={"n": n}).values == {"n": n}
    assert server.wait_until_idle()


async def test_many_streams_at_once_on_one_client(server: RunsServer) -> None:
    """DESIGN, pool: there is no cap of 100."""
    async with AsyncRunsClient(server.url) as client:

        async def count() -> int:
            stream = client.create_and_stream_run(agent_id="slow", input={"n": 2, "interval": 0.1})
            return len([event async for event in stream])

        assert await asyncio.gather(*(count() for _ in range(150))) == [4] * 150
