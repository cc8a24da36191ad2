"""A process that Ctrl-C reaches, however the tests were started."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


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
