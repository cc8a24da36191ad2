"""The README's code runs, and its tables are complete."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import agentproto
from agentproto import AgentProtoError, RunEvent
from agentproto.testing import RunsServer, demo_agents

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "quickstart.py"
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TRIP = "{'to': 'Oslo', 'price': 120, 'booked': True}"
SAID = "{'messages': [{'role': 'assistant', 'content': 'Hello, you said “hi”.'}]}"
PRINTED = [
    ["success {'text': 'hi'}"],
    [f"Hello, you said “hi”.{SAID}", "success"],
    [
        "{'question': 'Book the trip to Oslo for 120?', 'options': ['yes', 'no']}",
        f"success {TRIP}",
        "metadata {'run_id': RUN, 'attempt': 1}",
        "values {'to': 'Rome', 'price': 120, 'booked': False}",
        "end {'status': 'success'}",
    ],
    [
        TRIP,
        "metadata {'run_id': RUN, 'attempt': 1}",
        f"values {SAID}",
        "end {'status': 'success'}",
    ],
    [],
    [TRIP],
    ["4950"],
    [],
]


@pytest.mark.parametrize(
    ("code", "printed"), list(zip(BLOCKS, PRINTED, strict=True)), ids=range(len(BLOCKS))
)
def test_code_of_the_readme_runs(
    code: str, printed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """README: every Python block, against the server that it tells to start."""
    with RunsServer(demo_agents) as server:
        script = tmp_path / "block.py"
        script.write_text(code.replace("http://localhost:8000", server.url))
        runpy.run_path(str(script), run_name="__main__")
    told = re.sub(r"'[0-9a-f-]{36}'", "RUN", capsys.readouterr().out)
    assert told.splitlines() == printed


def test_every_event_is_in_the_table() -> None:
    """README: Events."""
    for kind in get_args(RunEvent):
        name = getattr(kind, "__origin__", kind).__name__
        assert f"| `{name}` |" in README


def test_every_error_is_in_the_table() -> None:
    """README: Errors."""
    exported = [getattr(agentproto, name) for name in agentproto.__all__]
    errors = [e for e in exported if isinstance(e, type) and issubclass(e, AgentProtoError)]
    missing = {e.__name__ for e in errors if f"`{e.__name__}`" not in README}
    assert missing == set()


def test_example_runs_to_its_end() -> None:
    """make demo: examples/quickstart.py, with a server of its own."""
    command = [sys.executable, "-W", "error", str(EXAMPLE)]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stderr == ""
    assert "the agent asks: " in told.stdout
    assert told.stdout.endswith(
        'final values: {"to": "Oslo", "price": 120, "booked": true}\n'
        'the same without asyncio: {"to": "Oslo", "price": 120, "booked": true}\n'
    )


def test_example_of_a_person_who_approves() -> None:
    """examples/approve.py: stream, ask, resume, until done."""
    with RunsServer(demo_agents) as server:
        arguments = [server.url, "agent-protocol", "trip", '{"to": "Oslo"}']
        told = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLE.parent / "approve.py"), *arguments],
            input="yes\n",
            check=True,
            capture_output=True,
            text=True,
        )
    assert "Book the trip to Oslo for 120?" in told.stdout
    assert told.stdout.endswith('final values: {"to": "Oslo", "price": 120, "booked": true}\n')


def test_example_takes_a_server_of_yours() -> None:
    """make demo ARGS="--base-url URL"."""
    with RunsServer(demo_agents) as server:
        command = [sys.executable, str(EXAMPLE), "--base-url", server.url]
        told = subprocess.run(
            [*command, "--agent", "echo", "--input", '{"a": 1}'],
            check=True,
            capture_output=True,
            text=True,
        )
    assert 'final values: {"a": 1}' in told.stdout
    assert len(server.requests) == 2
