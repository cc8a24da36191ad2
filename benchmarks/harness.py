"""What the cases share: a server, measurements in turns, and the table of what was found."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).parent
K = TypeVar("K")


class ProbeError(RuntimeError):
    """A measurement failed: what its process wrote."""


@dataclass
class Report:
    """What was measured, line by line, and whether it reaches what it shall."""

    rows: list[str] = field(default_factory=list[str])

    def line(self, case: str, value: float, goal: str, *, form: str = "{:.2f}x") -> None:
        """`goal` is a bound such as ">= 1.3"."""
        sign, bound = goal.split()
        is_met = value >= float(bound) if sign == ">=" else value <= float(bound)
        unit = form.split("}")[1]
        row = f"| {case} | {form.format(value)} | {goal}{unit} | {'yes' if is_met else 'no'} |"
        self.rows.append(row)
        print(row, flush=True)

    def note(self, case: str, value: float) -> None:
        """What is measured beside, without a goal."""
        self.rows.append(f"| {case} | {value:.2f}x | | |")
        print(self.rows[-1], flush=True)


@contextmanager
def server() -> Iterator[str]:
    """The base URL of a server in a process of its own."""
    command = [sys.executable, str(HERE / "server.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate("")


def medians(work: Mapping[K, Callable[[], float]], rounds: int) -> dict[K, float]:
    """The median of each, taken in turns; each round begins with the next of them."""
    taken: dict[K, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        first = number % len(work)
        for name in [*work][first:] + [*work][:first]:
            taken[name].append(work[name]())
    return {name: statistics.median(each) for name, each in taken.items()}


def environment(source: Path | None = None) -> dict[str, str]:
    """The variables of a process that imports agentproto from this folder, or as installed."""
    # As installed: what is imported was compiled before.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    # An editable install is a line of a .pth file: Python looks there after PYTHONPATH.
    return env if source is None else {**env, "PYTHONPATH": str(source)}


def probed(
    what: str, client: str, url: str, count: int, *loop: str, env: Mapping[str, str] | None = None
) -> Callable[[], float]:
    """A measurement of `probe.py`; `loop` is `uvloop` or nothing. It may raise ProbeError."""
    command = [sys.executable, str(HERE / "probe.py"), what, client, url, str(count), *loop]

    def measure() -> float:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
        if done.returncode:
            raise ProbeError(done.stderr.strip())
        return float(done.stdout)

    return measure
