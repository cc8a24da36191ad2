"""Agents to try a client with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast
from uuid import uuid4

from ._agents import Agent, AgentRun, Ask, Custom, Step, Token, Updates, Values


async def echo(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """returns its input"""
    yield Values(_as_values(run.input))


async def chat(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """streams a message token by token"""
    reply, message_id = f"You said: {_last_words(run)}", str(uuid4())
    for token in reply.split(" "):
        yield Token(token if token == "You" else f" {token}", message_id)
    answer = {"role": "assistant", "content": reply, "id": message_id}
    yield Values({"messages": [*run.messages, answer]})


async def trip(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """asks a person, then goes on"""
    yield Values({"to": _setting(run, "to", "Oslo")})
    answer = yield Ask({"question": f"Book the trip to {run.values['to']}?"})
    is_booked = answer in ("yes", True)
    yield Updates({"book": {"booked": is_booked}})
    yield Values({**run.values, "booked": is_booked})


async def fail(_: AgentRun) -> AsyncGenerator[Step, Any]:
    """raises after one good step"""
    yield Values({"step": 1})
    raise RuntimeError("the second step always fails")


async def slow(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """ticks n times, interval seconds apart"""
    ticks = int(_setting(run, "n", 5))
    for tick in range(1, ticks + 1):
        await asyncio.sleep(float(_setting(run, "interval", 0.5)))
        yield Custom({"tick": tick})
    yield Values({"ticks": ticks})


demo_agents: dict[str, Agent] = {
    "echo": echo,
    "chat": chat,
    "trip": trip,
    "fail": fail,
    "slow": slow,
}
"""Agents to try a client with: echo, chat, trip, fail and slow."""


def _as_values(value: Any) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, dict) else {"input": value}


def _setting(run: AgentRun, name: str, default: Any) -> Any:
    return _as_values(run.input).get(name, default)


def _last_words(run: AgentRun) -> str:
    if run.messages:
        return str(run.messages[-1]["content"])
    return str(_setting(run, "input", "nothing"))
