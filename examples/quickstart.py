"""Stream a run, answer what it asks, see it finish; then the same without asyncio.

Starts a server of its own, with an agent that books trips. To use a server of yours:

    python examples/quickstart.py --base-url http://localhost:8000 --agent trip
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import ExitStack
from typing import Any

from agentproto import (
    AsyncRunsClient,
    Command,
    CustomEvent,
    EndEvent,
    ErrorEvent,
    MessagesEvent,
    MetadataEvent,
    RunEvent,
    RunsClient,
    UnknownEvent,
    UpdatesEvent,
    ValuesEvent,
)

MODES = ["values", "messages", "updates", "custom"]


def show(event: RunEvent[dict[str, Any]]) -> None:
    match event:
        case MetadataEvent(run_id=run_id):
            print(f"  metadata  run {run_id}")
        case ValuesEvent(interrupts=[asked, *_]):
            print(f"  values    the agent asks: {json.dumps(asked.value)}")
        case ValuesEvent(data=values):
            print(f"  values    {json.dumps(values)}")
        case MessagesEvent(messages=messages):
            print(f"  messages  {''.join(message.text for message in messages)!r}")
        case UpdatesEvent(data=data) | CustomEvent(data=data) | UnknownEvent(data=data):
            print(f"  {event.event:<9} {json.dumps(data)}")
        case ErrorEvent(error=error):
            print(f"  error     {error}")
        case EndEvent(status=status):
            print(f"  end       {status}")


async def with_asyncio(base_url: str, agent: str, trip: Any, answer: str) -> None:
    async with AsyncRunsClient(base_url) as client:
        print(f"\ncreate_and_stream_run(agent_id={agent!r}, input={trip!r})")
        stream = client.create_and_stream_run(agent_id=agent, input=trip, stream_mode=MODES)
        async with stream:
            async for event in stream:
                show(event)

        while stream.interrupts and stream.run:
            print(f"\nupdate_and_stream_run(run, command=Command(resume={answer!r}))")
            command = Command(resume=answer)
            stream = client.update_and_stream_run(stream.run, command=command)
            async with stream:
                async for event in stream:
                    show(event)

        result = await stream.final()
        print(f"\nfinal values: {json.dumps(result.values)}")


def without_asyncio(base_url: str, agent: str, trip: Any, answer: str) -> None:
    with RunsClient(base_url) as client:
        result = client.create_and_wait_run(agent_id=agent, input=trip)
        while result.interrupts:
            result = client.update_and_wait_run(result, command=Command(resume=answer))
        print(f"the same without asyncio: {json.dumps(result.values)}")


def as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--base-url", help="a server of yours, instead of one in this process")
    parser.add_argument("--agent", default="trip", help="its agent (trip)")
    parser.add_argument("--input", type=as_json, default={"to": "Oslo"}, help="JSON for it")
    parser.add_argument("--answer", default="yes", help="the answer to what it asks (yes)")
    options = parser.parse_args()

    with ExitStack() as stack:
        base_url = options.base_url
        if base_url is None:
            from agentproto.testing import RunsServer, demo_agents

            base_url = stack.enter_context(RunsServer(demo_agents)).url
            print(f"a server with the agents {', '.join(demo_agents)} at {base_url}")
        asyncio.run(with_asyncio(base_url, options.agent, options.input, options.answer))
        without_asyncio(base_url, options.agent, options.input, options.answer)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
