"""The agents of langgraph_dev/graphs.py for the reference server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from agentproto.testing import AgentRun, Ask, Custom, Step, Token, Values

TOKENS = ["Hello", " ", "from", " ", "a", " ", "fake", " ", "model"]


async def agent(run: AgentRun) -> AsyncGenerator[Step, Any]:
    yield Custom({"progress": 0, "note": "préparation — ✓"})
    yield Custom({"progress": 100})
    for token in TOKENS:
        yield Token(token, "m1")
    said = {"role": "assistant", "content": "".join(TOKENS), "id": "m1"}
    yield Values({"messages": [*run.input["messages"], said], "steps": ["prepare", "model"]})


async def hitl(run: AgentRun) -> AsyncGenerator[Step, Any]:
    state = {"answers": [], **run.input}
    yield Values(state)
    if run.input.get("parallel"):
        first, second = yield Ask({"question": "first?"}, {"question": "second?"})
        yield Values({**state, "answers": [{"first?": first}, {"second?": second}]})
    else:
        answer = yield Ask({"question": f"Approve {run.input['topic']}?"})
        yield Values({**state, "answers": [answer]})


async def fail(_: AgentRun) -> AsyncGenerator[Step, Any]:
    yield Values({"ticks": 1})
    raise ValueError("boom: this node always fails")


async def slow(run: AgentRun) -> AsyncGenerator[Step, Any]:
    yield Values(run.input)
    for tick in range(1, run.input["n"] + 1):
        yield Custom({"tick": tick})
        await asyncio.sleep(run.input["interval"])
        yield Values({**run.input, "ticks": tick})


async def echo(run: AgentRun) -> AsyncGenerator[Step, Any]:
    yield Values({**run.input, "echoed": run.input["text"]})


AGENTS = {"agent": agent, "hitl": hitl, "fail": fail, "slow": slow, "echo": echo}
