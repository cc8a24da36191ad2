"""The questions a run waits with, and how a resume value answers them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

from ._problems import unprocessable


@dataclass
class _Question:
    id: str
    value: Any
    is_open: bool = True
    answer: Any = None


class Questions:
    """The questions of one `Ask`, in order; without any, nothing waits for a person."""

    def __init__(self, values: tuple[Any, ...] = ()) -> None:
        self._questions = [_Question(uuid4().hex, value) for value in values]

    @property
    def open(self) -> list[dict[str, Any]]:
        return [{"id": each.id, "value": each.value} for each in self._questions if each.is_open]

    @property
    def answers(self) -> Any:
        """What the agent receives: one answer, or a tuple for several questions."""
        match self._questions:
            case []:
                return None
            case [only]:
                return only.answer
            case several:
                return tuple(each.answer for each in several)

    def resume(self, command: dict[str, Any]) -> None:
        """Answer from `command.resume`: a map of interrupt ids, or one plain value.

        A command without `resume` answers every open question with None.
        """
        waiting = {each.id: each for each in self._questions if each.is_open}
        for interrupt_id, answer in _answers_by_id(command, list(waiting)).items():
            waiting[interrupt_id].answer = answer
            waiting[interrupt_id].is_open = False


def _answers_by_id(command: dict[str, Any], open_ids: list[str]) -> dict[str, Any]:
    if "resume" not in command:
        return dict.fromkeys(open_ids)
    resume = command["resume"]
    if isinstance(resume, dict) and resume and set(cast(dict[str, Any], resume)) <= set(open_ids):
        return cast(dict[str, Any], resume)
    if len(open_ids) == 1:
        return {open_ids[0]: resume}
    raise unprocessable(
        f"expected command.resume to map interrupt ids to answers, because {len(open_ids)} "
        f"questions are open: {', '.join(open_ids)}"
    )
