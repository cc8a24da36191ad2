"""How long a fresh process takes until it has imported, made a client, or has its first answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from time import perf_counter

from harness import environment

SCRIPTS = {
    "nothing": "",
    "httpx and pydantic": (
        "import httpx, pydantic\nclass M(pydantic.BaseModel):\n    a: int\nM(a=1)\n"
    ),
    "agentproto": "import agentproto\n",
    "langgraph-sdk": "import langgraph_sdk\n",
    "agentproto, client ready": "from agentproto import AsyncRunsClient\nAsyncRunsClient(URL)\n",
    "agentproto, answered": (
        "import asyncio, agentproto\n"
        "async def main():\n"
        "    async with agentproto.AsyncRunsClient(URL) as c: await c.create_and_wait_run()\n"
        "asyncio.run(main())\n"
    ),
    "httpx and pydantic, answered": (
        "import asyncio, httpx, pydantic\n"
        "class M(pydantic.BaseModel):\n    values: dict\n"
        "async def main():\n"
        "    async with httpx.AsyncClient() as c:\n"
        "        M.model_validate((await c.post(URL + '/runs/wait', json={})).json())\n"
        "asyncio.run(main())\n"
    ),
}


def started(script: str, url: str, env: Mapping[str, str] | None = None) -> Callable[[], float]:
    """A measurement: the seconds that a process takes for this script."""
    command = [sys.executable, "-c", f"URL = {url!r}\n{script}"]
    env = env or environment()
    subprocess.run(command, check=True, env=env)  # once, so that it is compiled

    def measure() -> float:
        began = perf_counter()
        subprocess.run(command, check=True, env=env)
        return perf_counter() - began

    return measure
