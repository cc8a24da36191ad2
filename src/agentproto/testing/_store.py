"""All runs of a server, in memory."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

from ._agents import Agent
from ._problems import conflict, not_found
from ._runs import HostedRun

CLOSING_SECONDS = 0.3
"""How long agents may clean up when the server stops."""


class RunStore:
    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._agents = _checked(agents)
        self._runs: dict[str, HostedRun] = {}

    def create(self, fields: Mapping[str, Any]) -> HostedRun:
        agent_id = fields.get("agent_id", next(iter(self._agents)))
        if agent_id not in self._agents:
            raise not_found(f"no agent {agent_id!r}; the agents are {', '.join(self._agents)}")
        self._refuse_busy_thread(fields.get("thread_id"))
        run = HostedRun(self._agents[agent_id], agent_id, fields)
        self._runs[run.context.run_id] = run
        return run

    def get(self, run_id: str) -> HostedRun:
        if run_id not in self._runs:
            raise not_found(f"no run {run_id!r}")
        return self._runs[run_id]

    def search(self, request: Mapping[str, Any]) -> list[HostedRun]:
        """The runs that match every field of the request, newest first."""
        found = [run for run in reversed(self._runs.values()) if _is_match(run, request)]
        offset = request.get("offset", 0)
        return found[offset : offset + request.get("limit", 10)]

    def cancel(self, run_id: str) -> HostedRun:
        run = self.get(run_id)
        if run.is_over:
            raise conflict(f"run {run_id} has already ended with status {run.status!r}")
        run.cancel()
        return run

    def delete(self, run_id: str) -> None:
        """Forget the run, and stop it if it goes on."""
        run = self.get(run_id)
        if not run.is_over:
            run.cancel()
        self._runs.pop(run_id, None)

    async def close(self) -> None:
        """Stop every agent, which ends every open response."""
        unfinished = [run for run in self._runs.values() if not run.is_over]
        for run in unfinished:
            run.cancel()
        stopping = [asyncio.create_task(run.stopped()) for run in unfinished]
        if stopping:
            await asyncio.wait(stopping, timeout=CLOSING_SECONDS)

    def _refuse_busy_thread(self, thread_id: str | None) -> None:
        for run in self._runs.values():
            if run.is_active and run.context.thread_id == thread_id:
                raise conflict(f"thread {thread_id} is busy with run {run.context.run_id}")


def _checked(agents: Mapping[str, Agent]) -> dict[str, Agent]:
    if not agents:
        raise ValueError("expected at least one agent, got none")
    for agent_id, agent in agents.items():
        if inspect.iscoroutinefunction(agent):
            raise TypeError(
                f"expected agent {agent_id!r} to be an async generator function, got a coroutine "
                f"function; does it yield?"
            )
    return dict(agents)


def _is_match(run: HostedRun, request: Mapping[str, Any]) -> bool:
    described = run.described()
    return request.get("metadata", {}).items() <= described["metadata"].items() and all(
        described[name] == request[name]
        for name in ("status", "thread_id", "agent_id")
        if name in request
    )
