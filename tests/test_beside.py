"""What people put in the place of httpx's transports sees the requests of clients of ours."""

from __future__ import annotations

import pytest
from pytest_httpx import HTTPXMock

from agentproto import AsyncRunsClient, RunsClient, ServerError

RESULT = {"run": {"run_id": "r1", "status": "success"}, "values": {"n": 1}}


async def test_async_client_is_mocked_by_pytest_httpx(httpx_mock: HTTPXMock) -> None:
    """Seen: a transport beside httpx's would let a mocked call reach a real server."""
    httpx_mock.add_response(url="http://agents.test/runs/wait", json=RESULT)
    httpx_mock.add_response(url="http://agents.test/runs", status_code=500)
    async with AsyncRunsClient("http://agents.test") as client:
        assert (await client.create_and_wait_run(agent_id="a")).values == {"n": 1}
        with pytest.raises(ServerError):
            await client.create_run(agent_id="a")


def test_sync_client_is_mocked_by_pytest_httpx(httpx_mock: HTTPXMock) -> None:
    """Seen: a transport beside httpx's would let a mocked call reach a real server."""
    httpx_mock.add_response(url="http://agents.test/runs/wait", json=RESULT)
    with RunsClient("http://agents.test") as client:
        assert client.create_and_wait_run(agent_id="a").values == {"n": 1}
