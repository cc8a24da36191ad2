"""What proves that a request was never sent, and which server or proxy an error names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def output_of(*arguments: str) -> str:
    command = [sys.executable, "-W", "error::ResourceWarning", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# The server for tests

NESTED = """
import asyncio, sys, nest_asyncio
IS_RUNNING = sys.argv[1] == "in a running loop"
if not IS_RUNNING:
    nest_asyncio.apply()
import uvicorn.server
from agentproto import AsyncRunsClient
from agentproto.testing import RunsServer, Token
uvicorn.server.asyncio_run = asyncio.run  # as it does itself from Python 3.12 on
async def spell(run):
    yield Token("a")
    yield Token("b")
async def text_of_a_run(url):
    async with AsyncRunsClient(url) as client:
        stream = client.create_and_stream_run(stream_mode="messages")
        return "".join([piece async for piece in stream.text()])
async def main():
    if IS_RUNNING:
        nest_asyncio.apply()
    with RunsServer({"spell": spell}) as server:
        print(await text_of_a_run(server.url))
    async with RunsServer({"spell": spell}) as server:
        print(await text_of_a_run(server.url))
asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before a loop runs", "in a running loop"])
def test_server_for_tests_runs_after_nest_asyncio(when: str) -> None:
    """Seen on nest_asyncio 1.6.0: its asyncio.run has no loop factory and keeps its loop open."""
    assert output_of("-c", NESTED, when) == "ab\nab\n"
