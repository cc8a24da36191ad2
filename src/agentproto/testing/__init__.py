"""An in-memory server of the Runs API, for which an agent is an async generator function.

    async def trip(run):
        answer = yield Ask({"question": f"Book {run.input['to']}?"})
        yield Values({"to": run.input["to"], "booked": answer == "yes"})

    with RunsServer({"trip": trip}) as server:
        client = RunsClient(server.url)

It serves the seven background operations and the four of the Runs API; it shares no code with
the client. A run that failed carries an `error` beside the fields of the schema. An interrupted
run can be updated until its questions are answered. `GET /runs/{run_id}/stream` begins after
`Last-Event-ID`, or without one at the first event. `webhook` is not called, and `if_not_exists`
and `on_completion` change nothing: every thread exists, and runs are kept.

Needs the extra: pip install "agentproto[testing]"
"""

try:
    import starlette as _starlette
    import uvicorn as _uvicorn
except ImportError as _missing:
    raise ImportError(
        'agentproto.testing needs starlette and uvicorn: pip install "agentproto[testing]"'
    ) from _missing

from ._agents import Agent, AgentRun, Ask, Custom, Step, Token, Updates, Values
from ._demo import demo_agents
from ._server import RecordedRequest, RunsServer

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

del _starlette, _uvicorn

for _class in (AgentRun, Ask, Custom, RecordedRequest, RunsServer, Token, Updates, Values):
    _class.__module__ = __name__
