"""Side by side, interleaved, in one run: ratios of medians. `make bench` runs it.

Absolute figures of a shared machine are noise; what counts is the ratio to the client beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import streams

HERE = Path(__file__).parent
PEERS = [
    streams.bare,
    streams.langgraph_sdk,
    streams.with_httpx_sse,
    streams.openai,
    streams.with_aiohttp,
    streams.sync_by_hand,
]
CASES = {"one event per HTTP chunk": 1, "16 KiB chunks": 16_384}
PACKAGES = ["agentproto", "httpx", "httpx-sse", "pydantic", "langgraph-sdk", "openai", "aiohttp"]


@contextmanager
def server() -> Iterator[str]:
    """The base URL of a server in a process of its own."""
    command = [sys.executable, str(HERE / "server.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate("")


def seconds(client: Callable[[str], Any], url: str) -> float:
    """How long it takes one stream, its connection included."""
    began = time.perf_counter()
    asyncio.run(client(url)) if inspect.iscoroutinefunction(client) else client(url)
    return time.perf_counter() - began


def medians(url: str, size: int, count: int, rounds: int) -> dict[str, float]:
    """Microseconds per event, by client."""
    clients = [streams.ours, streams.sync, *PEERS]
    taken: dict[str, list[float]] = {client.__name__: [] for client in clients}
    for _ in range(rounds):
        for client in clients:
            kind = "completion" if client is streams.openai else "token"
            taken[client.__name__].append(seconds(client, f"{url}/{kind}-{count}-{size}"))
    return {name: statistics.median(each) / count * 1e6 for name, each in taken.items()}


def table(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """A row a client: microseconds per event, and how many times as fast agentproto is."""
    yield "| client | " + " | ".join(f"{case}: us | agentproto" for case in found) + " |"
    yield "|---" * (1 + 2 * len(found)) + "|"
    for client in [streams.ours, streams.sync, *PEERS]:
        is_sync = client in {streams.sync, streams.sync_by_hand}
        own = streams.sync.__name__ if is_sync else streams.ours.__name__
        name = client.__name__
        cells = [f"{us[name]:.1f} | {us[name] / us[own]:.2f}x" for us in found.values()]
        yield f"| {client.__doc__.rstrip('.') if client.__doc__ else name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing written")
    quick = parser.parse_args().quick
    count, rounds = (5_000, 3) if quick else (20_000, 7)
    with server() as url:
        found = {case: medians(url, size, count, rounds) for case, size in CASES.items()}
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    lines = [
        "# Typed events from a stream",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {python}: {versions}.",
        f"Medians of {rounds} interleaved rounds of {count} tokens; the server is another process.",
        "",
        *table(found),
        "",
    ]
    print("\n".join(lines))
    if not quick:
        (HERE / "RESULTS.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
