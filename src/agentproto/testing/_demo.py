"""Agents to look at, and to try a client on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

from ._agents import Agent, AgentRun, Ask, Custom, Step, Token, Updates, Values


async def echo(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """Returns its input, which is an object."""
    yield Values(_object(run.input))


async def chat(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """Answers token by token."""
    asked = str(_object(run.input).get("text", "you"))
    tokens = ["Hello", ", ", "you", " ", "said", " ", "“", asked, "”", "."]
    for token in tokens:
        yield Token(token)
        await asyncio.sleep(_object(run.input).get("interval", 0.02))
    said = {"role": "assistant", "content": "".join(tokens)}
    yield Values({"messages": [*run.messages, said]})


async def trip(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """Asks a person before it books."""
    to = _object(run.input).get("to", "Oslo")
    yield Values({"to": to})
    yield Custom({"progress": "looking for flights"})
    yield Updates({"search": {"price": 120}})
    yield Values({"to": to, "price": 120})
    answer = yield Ask({"question": f"Book the trip to {to} for 120?", "options": ["yes", "no"]})
    yield Updates({"book": {"booked": answer == "yes"}})
    yield Values({"to": to, "price": 120, "booked": answer == "yes"})


async def fail(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """Fails after one good step."""
    yield Values({"steps": 1})
    raise ValueError("boom: this agent always fails")


async def slow(run: AgentRun) -> AsyncGenerator[Step, Any]:
    """Ticks `n` times, `interval` seconds apart."""
    ticks = _object(run.input).get("n", 5)
    for tick in range(1, ticks + 1):
        await asyncio.sleep(_object(run.input).get("interval", 0.5))
        yield Custom({"tick": tick})
        yield Values({"ticks": tick})


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {"input": value}


demo_agents: dict[str, Agent] = {
    "echo": echo,
    "chat": chat,
    "trip": trip,
    "fail": fail,
    "slow": slow,
}
"""The agents that `python -m agentproto.testing` serves."""
