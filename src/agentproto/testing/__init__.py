"""A server of the Runs API for tests and for trying a client; needs `agentproto[testing]`.

An agent is an async generator function:

    async def trip(run):
        yield Values({"to": run.input["to"]})
        answer = yield Ask({"question": "Book it?"})
        yield Values({**run.values, "booked": answer == "yes"})

    with RunsServer({"trip": trip}) as server:
        httpx.post(f"{server.url}/runs/wait", json={"input": {"to": "Oslo"}})

`python -m agentproto.testing` serves a few demo agents.
"""

from __future__ import annotations

try:
    from ._agents import Agent, AgentRun, Ask, Custom, Step, Token, Updates, Values
    from ._demo import demo_agents
    from ._recorder import RecordedRequest
    from ._server import RunsServer
except ImportError as missing:
    raise ImportError(
        'agentproto.testing needs starlette and uvicorn: pip install "agentproto[testing]"'
    ) from missing

__all__ = [
    "Agent",
    "AgentRun",
    "Ask",
    "Custom",
    "RecordedRequest",
    "RunsServer",
    "Step",
    "Token",
    "Updates",
    "Values",
    "demo_agents",
]


for _public in (AgentRun, Ask, Custom, RecordedRequest, RunsServer, Token, Updates, Values):
    _public.__module__ = __name__
