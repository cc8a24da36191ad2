"""The protocol's own calls against a server that nobody here wrote.

langgraph dev speaks a variant of the protocol: it wants `assistant_id`, answers a wait with the
bare values, and ends a stream without `end`. None of that may crash anything.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentproto import (
    AsyncRunsClient,
    CustomEvent,
    MessagesEvent,
    MetadataEvent,
    NotFoundError,
    RunFailedError,
    UnprocessableRequestError,
    UpdatesEvent,
    ValuesEvent,
)

from ..both import Flavour

AGENT = {"assistant_id": "agent"}
HI = {"messages": [{"role": "user", "content": "hi"}]}
SAID = "Hello from a fake model"


async def test_wait_returns_the_bare_values(flavour: Flavour, langgraph_dev: str) -> None:
    """Seen on langgraph dev: the state alone, after keep-alive line feeds."""
    client = flavour.client(langgraph_dev)
    result = await flavour.call(client.create_and_wait_run, input=HI, extra_body=AGENT)
    assert result.values["steps"] == ["prepare", "model"]
    assert [(m.role, m.text) for m in result.messages] == [("user", "hi"), ("assistant", SAID)]
    assert result.run.run_id is not None
    assert (result.run.status, result.interrupts) == (None, [])
    await flavour.close(client)


async def test_stream_is_typed_and_ends_without_end(flavour: Flavour, langgraph_dev: str) -> None:
    """Seen on langgraph dev: success is just EOF."""
    client = flavour.client(langgraph_dev)
    modes = ["values", "messages", "updates", "custom"]
    stream = client.create_and_stream_run(input=HI, stream_mode=modes, extra_body=AGENT)
    events = await flavour.collect(stream)
    kinds = [type(event) for event in events if not isinstance(event, MessagesEvent)]
    assert kinds == [
        MetadataEvent,
        ValuesEvent,
        CustomEvent,
        CustomEvent,
        UpdatesEvent,
        ValuesEvent,
        UpdatesEvent,
        ValuesEvent,
    ]
    assert events[2].data == {"progress": 0, "note": "préparation — ✓"}
    messages = [event for event in events if isinstance(event, MessagesEvent)]
    assert messages[0].kind == "metadata"
    assert {event.kind for event in messages[1:]} == {"partial"}
    assert messages[-1].messages[0].text == SAID
    assert (stream.ended, stream.run_id) == ("eof", events[0].run_id)
    result = await flavour.call(stream.final)
    assert result.values["steps"] == ["prepare", "model"]
    await flavour.close(client)


@pytest.mark.parametrize("mode", ["messages", "messages-tuple"])
async def test_text_is_the_same_in_both_forms(
    flavour: Flavour, langgraph_dev: str, mode: str
) -> None:
    """Seen on langgraph dev: cumulative partials, or tuples of chunks."""
    client = flavour.client(langgraph_dev)
    stream = client.create_and_stream_run(input=HI, stream_mode=mode, extra_body=AGENT)
    pieces = await flavour.text(stream)
    assert "".join(pieces) == SAID
    assert len(pieces) == 9
    # This server has no GET /runs/{run_id}/wait to ask for the values.
    result = await flavour.call(stream.final)
    assert result.values is None
    assert [message.text for message in result.messages] == [SAID]
    await flavour.close(client)


async def test_raw_blocks_are_what_the_server_sent(flavour: Flavour, langgraph_dev: str) -> None:
    """The same stream as httpx-sse's own events."""
    client = flavour.client(langgraph_dev)
    stream = client.create_and_stream_run(input=HI, stream_mode="custom", extra_body=AGENT)
    blocks = await flavour.blocks(stream)
    assert [block.event for block in blocks] == ["metadata", "custom", "custom"]
    assert [block.json() for block in blocks[2:]] == [{"progress": 100}]
    await flavour.close(client)


@pytest.mark.parametrize("fields", [{"extra_body": {"assistant_id": "nobody"}}, {"agent_id": "a"}])
async def test_refusal_is_readable(
    flavour: Flavour, langgraph_dev: str, fields: dict[str, Any]
) -> None:
    """Seen on langgraph dev: 422 {"detail"} for an unknown assistant, and for agent_id alone."""
    client = flavour.client(langgraph_dev)
    with pytest.raises(UnprocessableRequestError) as wait:
        await flavour.call(client.create_and_wait_run, input=HI, **fields)
    with pytest.raises(UnprocessableRequestError) as stream:
        await flavour.collect(client.create_and_stream_run(input=HI, **fields))
    for error in (wait.value, stream.value):
        assert error.error is not None
        assert error.error.message
        assert error.error.message in str(error)
    await flavour.close(client)


async def test_failed_run_raises_on_a_stream(flavour: Flavour, langgraph_dev: str) -> None:
    """Seen on langgraph dev: an error event, and then EOF."""
    client = flavour.client(langgraph_dev)
    stream = client.create_and_stream_run(input={}, extra_body={"assistant_id": "fail"})
    with pytest.raises(RunFailedError, match="ValueError: boom: this node always fails") as caught:
        await flavour.collect(stream)
    assert (caught.value.error.code, stream.ended) == ("ValueError", "error")
    await flavour.close(client)


@pytest.mark.parametrize("mode", ["values", "updates"])
async def test_interrupt_is_found(flavour: Flavour, langgraph_dev: str, mode: str) -> None:
    """Seen on langgraph dev: __interrupt__ in values or updates."""
    client = flavour.client(langgraph_dev)
    ask = {"input": {"topic": "deploy"}, "extra_body": {"assistant_id": "hitl"}}
    result = await flavour.call(client.create_and_wait_run, **ask)
    stream = client.create_and_stream_run(stream_mode=mode, **ask)
    await flavour.collect(stream)
    for interrupts in (result.interrupts, stream.interrupts):
        (interrupt,) = interrupts
        assert interrupt.value == {"question": "Approve deploy?"}
        assert interrupt.id
    await flavour.close(client)


async def test_missing_update_is_not_found(flavour: Flavour, langgraph_dev: str) -> None:
    """Seen on langgraph dev: it has no POST /runs/{run_id}/wait; a resume is a new run there."""
    client = flavour.client(langgraph_dev)
    with pytest.raises(NotFoundError, match="base_url is the root of the API"):
        await flavour.call(client.update_and_wait_run, "some-run", command={"resume": 1})
    await flavour.close(client)


@pytest.mark.parametrize("text", ["line\u2028sep\r\n\u2029 😀 data: x\n\nevent: y", "é" * 75_000])
async def test_text_comes_back_as_it_was_sent(
    flavour: Flavour, langgraph_dev: str, text: str
) -> None:
    """Seen on langgraph dev: U+2028 is sent raw; a 150 kB event comes in several reads."""
    client = flavour.client(langgraph_dev)
    ask = {"input": {"text": text}, "extra_body": {"assistant_id": "echo"}}
    result = await flavour.call(client.create_and_wait_run, **ask)
    streamed = await flavour.call(client.create_and_stream_run(**ask).final)
    assert result.values == streamed.values == {"text": text, "echoed": text}
    await flavour.close(client)


async def test_events_of_a_subgraph_carry_its_namespace(
    flavour: Flavour, langgraph_dev: str
) -> None:
    """Seen on langgraph dev: updates|child:<id> with stream_subgraphs."""
    client = flavour.client(langgraph_dev)
    body = {"assistant_id": "nested", "stream_subgraphs": True}
    stream = client.create_and_stream_run(input={}, stream_mode="updates", extra_body=body)
    _, inner, outer = await flavour.collect(stream)
    ((name, _, task),) = [part.partition(":") for part in inner.namespace]
    assert (type(inner), name, inner.data) == (
        UpdatesEvent,
        "child",
        {"step": {"trail": ["child"]}},
    )
    assert task
    assert outer.namespace == ()
    await flavour.close(client)


async def test_leaving_a_stream_does_not_wait_for_the_run(langgraph_dev: str) -> None:
    """A stream left by break is closed; this server lets the run go on."""
    slow = {"assistant_id": "slow"}
    async with AsyncRunsClient(langgraph_dev) as client, asyncio.timeout(20):
        ask = {"n": 100, "interval": 1}
        async with client.create_and_stream_run(input=ask, extra_body=slow) as stream:
            async for event in stream:
                if isinstance(event, ValuesEvent):
                    break
        assert stream.ended == "closed"
