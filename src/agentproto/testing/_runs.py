"""One run: its agent at work, its state and its events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from ._agents import Agent, AgentRun, Ask, Custom, Step, Token, Updates, Values
from ._json import copied, dump
from ._log import EventLog
from ._problems import conflict
from ._questions import Questions

_logger = logging.getLogger("agentproto.testing")

ACTIVE = frozenset({"pending", "running"})

# A wait ends with the outcome of the turn it began, also when an update follows at once.
Turn = asyncio.Future[dict[str, Any]]


class HostedRun:
    """A run goes in turns: from its creation or an update to an `end` event."""

    def __init__(self, agent: Agent, agent_id: str, fields: Mapping[str, Any]) -> None:
        self.context = _context(agent_id, copied(fields))
        self.fields = fields
        self.log = EventLog()
        self.status = "pending"
        self._modes = _modes(fields)
        self._values: dict[str, Any] = {}
        self._messages: dict[str, str] = {}
        self._message_id = uuid4().hex
        self._error: dict[str, str] | None = None
        self._questions = Questions()
        self._created_at = self._updated_at = _now()
        self._steps = agent(self.context)
        self.turn = self._begin_turn()

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE

    @property
    def is_over(self) -> bool:
        """Neither at work nor waiting for an answer."""
        return not self.is_active and not self._questions.open

    def described(self) -> dict[str, Any]:
        """The run as schema Run; `error` is an addition for a failed run."""
        described: dict[str, Any] = {
            "run_id": self.context.run_id,
            "thread_id": self.context.thread_id,
            "agent_id": self.context.agent_id,
            "created_at": self._created_at,
            "updated_at": self._updated_at,
            "status": self.status,
            "metadata": {},
            **self.fields,
        }
        return described if self._error is None else {**described, "error": self._error}

    def update(self, command: dict[str, Any]) -> None:
        """Answer the open questions and begin the next turn."""
        if not self._questions.open:
            raise conflict(
                f"run {self.context.run_id} has nothing to answer: its status is "
                f"{self.status!r}, expected an interrupted run with open questions"
            )
        self._questions.resume(command)
        self.context.command = command
        if isinstance(command.get("update"), dict):
            self._set_values({**self._values, **command["update"]})
        self._set_status("pending")
        self.turn = self._begin_turn()

    def cancel(self) -> None:
        """Stop the agent, or drop the questions it waits with."""
        if not self.is_active:
            self._questions = Questions()
            self.turn = _done(self._outcome())
            self._task = asyncio.create_task(self._close_agent())
        elif not self._task.cancelling():  # a second cancel would interrupt the agent's cleanup
            self._task.cancel()

    async def stopped(self) -> None:
        """Wait until the agent is at rest: the turn ended, or its cleanup did."""
        await asyncio.wait({self._task})

    def _begin_turn(self) -> Turn:
        self.log.append("metadata", {"run_id": self.context.run_id, "attempt": 1})
        self._task = asyncio.create_task(self._work())
        # Not the end of _work itself: a task that is cancelled before its first step has none.
        self._task.add_done_callback(self._end_turn)
        return asyncio.get_running_loop().create_future()

    async def _work(self) -> None:
        self._set_status("running")
        if self._questions.open:
            return
        answers = self._questions.answers
        self._questions = Questions()
        try:
            await self._step_until_asked(answers)
        finally:
            if not self._questions.open:
                await self._steps.aclose()

    async def _step_until_asked(self, answers: Any) -> None:
        with suppress(StopAsyncIteration):
            while not self._questions.open:
                self._apply(await self._steps.asend(answers))
                answers = None
                # An agent that never awaits would keep its events from going out.
                await asyncio.sleep(0)

    def _apply(self, step: Step) -> None:
        match step:
            case Values(values):
                self._set_values(values)
                self._emit("values", self._values)
            case Token(text, message_id):
                self._emit("messages", self._message_piece(text, message_id))
            case Updates(updates):
                self._emit("updates", updates)
            case Custom(data):
                self._emit("custom", data)
            case Ask(questions):
                self._questions = Questions(tuple(copied(each) for each in questions))
            case _:
                raise TypeError(
                    f"expected the agent to yield Ask, Custom, Token, Updates or Values, "
                    f"got {type(step).__name__}"
                )

    def _emit(self, mode: str, data: Any) -> None:
        if mode in self._modes:
            self.log.append(mode, data)
        else:
            dump(data)  # what is not JSON fails the run in whatever stream_mode

    def _message_piece(self, text: str, message_id: str | None) -> list[dict[str, Any]]:
        self._message_id = message_id or self._message_id
        self._messages[self._message_id] = self._messages.get(self._message_id, "") + text
        origin = {"run_id": self.context.run_id, "agent_id": self.context.agent_id}
        return [_message(self._message_id, text), origin]

    def _end_turn(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._questions = Questions()
            status = "interrupted"
        elif error := task.exception():
            status = self._fail(error)
        elif self._questions.open:
            self.log.append("values", self._output())
            status = "interrupted"
        else:
            status = "success"
        self._set_status(status)
        self.log.append("end", {"status": status})
        self.turn.set_result(self._outcome())

    def _fail(self, error: BaseException) -> str:
        _logger.info("agent %r failed", self.context.agent_id, exc_info=error)
        name, message = type(error).__name__, str(error)
        self._error = {"code": name, "message": message}
        self.log.append("error", {"error": name, "message": message})
        return "timeout" if isinstance(error, TimeoutError) else "error"

    def _output(self) -> dict[str, Any]:
        if not self._questions.open:
            return self._values
        return {**self._values, "__interrupt__": self._questions.open}

    def _outcome(self) -> dict[str, Any]:
        return {
            "run": self.described(),
            "values": self._output(),
            "messages": [_message(*each) for each in self._messages.items()],
        }

    def _set_values(self, values: Mapping[str, Any]) -> None:
        self._values = copied(values)
        self.context.values = copied(values)  # the agent may change its copy

    def _set_status(self, status: str) -> None:
        self.status = status
        self._updated_at = _now()

    async def _close_agent(self) -> None:
        with suppress(Exception):  # the run is over: nobody is left to hear of a failing cleanup
            await self._steps.aclose()


def _done(outcome: dict[str, Any]) -> Turn:
    turn: Turn = asyncio.get_running_loop().create_future()
    turn.set_result(outcome)
    return turn


def _context(agent_id: str, fields: dict[str, Any]) -> AgentRun:
    return AgentRun(
        run_id=str(uuid4()),
        thread_id=fields.get("thread_id", str(uuid4())),
        agent_id=agent_id,
        input=fields.get("input"),
        messages=fields.get("messages", []),
        config=fields.get("config", {}),
        metadata=fields.get("metadata", {}),
    )


def _modes(fields: Mapping[str, Any]) -> set[str]:
    modes = fields.get("stream_mode", ["values"])
    return {modes} if isinstance(modes, str) else set(modes)


def _message(message_id: str, content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "id": message_id}


def _now() -> str:
    return datetime.now(UTC).isoformat()
