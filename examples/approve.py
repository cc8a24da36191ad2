"""An agent that asks: stream, ask a person, resume, until done; the same in both dialects.

python examples/approve.py http://localhost:8000 agent-protocol trip '{"to": "Oslo"}'
python examples/approve.py http://localhost:2024 langgraph my_graph '{"topic": "deploy"}'
"""

from __future__ import annotations

import json
import sys
from typing import Any
from uuid import uuid4

from agentproto import Command, RunsClient


def approve(client: RunsClient, agent_id: str, ask: Any) -> Any:
    thread_id = str(uuid4())
    stream = client.create_and_stream_run(
        agent_id=agent_id, input=ask, thread_id=thread_id, if_not_exists="create"
    )
    while True:
        for event in stream:
            print(event.event, event.data)
        if not stream.interrupts:
            return stream.final().values
        answers = {each.id: input(f"{each.value} ") for each in stream.interrupts}
        stream = client.update_and_stream_run(stream, command=Command(resume=answers))


if __name__ == "__main__":
    url, dialect, agent_id, ask = sys.argv[1:]
    with RunsClient(url, dialect="langgraph" if dialect == "langgraph" else "agent-protocol") as c:
        print("final values:", json.dumps(approve(c, agent_id, json.loads(ask))))
