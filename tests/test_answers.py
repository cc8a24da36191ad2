"""Whatever a server answers, a model or one of our errors comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentproto import ProtocolError, Run, RunRef, RunWaitResponse
from agentproto._dialects import Answer, Operation, agent_protocol, run_named_by
from agentproto._models import RunSearchRequest

FIELDS = [
    *Run.model_fields,
    *RunWaitResponse.model_fields,
    *("run", "__interrupt__", "__error__", "role", "content", "type", "text", "error", "message"),
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=12,
)
bodies = json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60)
PARTS = ["/", "runs", "threads", "%2e", "..", "r1", "stream", "?", "#", "\t"]
urls = st.lists(st.sampled_from(PARTS), max_size=9).map("".join)
headers = st.dictionaries(st.sampled_from(["content-location", "location"]), urls)
OPERATIONS: dict[str, Operation[Any]] = {
    "get": agent_protocol.get_run(RunRef("r1")),
    "search": agent_protocol.search_runs(RunSearchRequest(), {}),
    "wait": agent_protocol.wait_run(RunRef("r1"), None),
    "wait, typed": agent_protocol.wait_run(RunRef("r1"), dict[str, int]),
}


def check(found: object) -> None:
    match found:
        case list() as runs:
            assert all(isinstance(run, Run) for run in runs)
        case RunWaitResponse():
            assert isinstance(found.run, Run)
        case _:
            assert isinstance(found, Run)


@pytest.mark.parametrize("name", OPERATIONS)
@given(body=bodies, told=headers)
def test_any_answer_gives_a_model_or_our_error(
    name: str, body: bytes, told: dict[str, str]
) -> None:
    """FAULTS: fuzzing of the models: only our errors come out."""
    decode: Callable[[Answer], object] = OPERATIONS[name].decode
    with suppress(ProtocolError):
        check(decode(Answer(told, body, "GET /runs/r1", run_named_by(told) or RunRef("r1"))))
