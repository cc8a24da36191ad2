"""A process that Ctrl-C reaches, however the tests were started."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def interruptible(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command with pipes; it is killed if it is still there at the end."""
    # A shell that starts the tests in the background has them ignore SIGINT, and their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_asleep(process: subprocess.Popen[str], seconds: float) -> None:
    """Until the system call that waits has begun.

    Between Python's last look for a signal and that call, one is met only when it returns: with a
    plain socket, too.
    """
    stat = Path(f"/proc/{process.pid}/stat")
    until = time.monotonic() + seconds
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < until
        time.sleep(0.001)
