"""Read by mypy and pyright, not run: what users' type checkers see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never, assert_type

from pydantic import BaseModel
from typing_extensions import TypedDict

from agentproto import (
    AsyncRunsClient,
    BlockingRunStream,
    Command,
    CustomEvent,
    EndEvent,
    ErrorEvent,
    MessagesEvent,
    MetadataEvent,
    RunEvent,
    RunsClient,
    RunStream,
    RunWaitResponse,
    UnknownEvent,
    UpdatesEvent,
    ValuesEvent,
)


class Model(BaseModel):
    n: int


class Dict(TypedDict):
    n: int


@dataclass
class Data:
    n: int


async def asynchronous(client: AsyncRunsClient) -> None:
    plain = await client.create_and_wait_run(agent_id="a", input={"x": 1}, timeout=5)
    assert_type(plain, RunWaitResponse[dict[str, Any]])
    typed = await client.update_and_wait_run(
        plain, values_type=Model, command=Command(resume="yes")
    )
    assert_type(typed, RunWaitResponse[Model])
    assert_type(typed.values, Model | None)
    stream = client.create_and_stream_run(values_type=Dict, stream_mode=["values"])
    assert_type(stream, RunStream[Dict])
    async with stream as entered:
        async for event in entered:
            assert_type(event, RunEvent[Dict])
            exhaustive(event)
    assert_type(await stream.final(), RunWaitResponse[Dict])
    async for piece in client.update_and_stream_run("r", values_type=Data).text():
        assert_type(piece, str)


def blocking(client: RunsClient) -> None:
    assert_type(client.create_and_wait_run(), RunWaitResponse[dict[str, Any]])
    assert_type(client.update_and_wait_run("r", values_type=Data), RunWaitResponse[Data])
    with client.create_and_stream_run(values_type=Model) as stream:
        assert_type(stream, BlockingRunStream[Model])
        for event in stream:
            assert_type(event, RunEvent[Model])
    assert_type(client.update_and_stream_run("r").final(), RunWaitResponse[dict[str, Any]])


def exhaustive(event: RunEvent[Dict]) -> str:
    match event:
        case ValuesEvent(data=values):
            assert_type(values, Dict)
            return str(values["n"])
        case MetadataEvent() | UpdatesEvent() | MessagesEvent() | CustomEvent():
            return event.event
        case ErrorEvent(error=error):
            return str(error)
        case EndEvent() | UnknownEvent():
            return event.event
        case _:
            assert_never(event)


def refused(client: RunsClient) -> None:
    client.create_and_wait_run(agentid="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]  # a misspelt field
    client.create_and_wait_run(on_disconnect="stay")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # not a value of the schema
