"""Side by side, interleaved, in one run: ratios of medians. `make bench` runs it.

Absolute figures of a shared machine are noise; what counts is the ratio to the client beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import httpx
import inmemory
import streams

from agentproto import AsyncRunsClient, RunsClient

HERE = Path(__file__).parent
PACKAGES = ["httpx", "httpx-sse", "pydantic", "langgraph-sdk", "openai", "aiohttp"]
IMPORTS = {
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


def medians(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, measure in work.items():
            taken[name].append(measure())
    return {name: statistics.median(each) for name, each in taken.items()}


def per_event(client: streams.Client, url: str, count: int) -> Callable[[], float]:
    def measure() -> float:
        taken = client(url)
        seen, seconds = asyncio.run(taken) if inspect.iscoroutine(taken) else taken  # type: ignore[arg-type, misc]
        assert seen >= count, f"{client.__name__} took {seen} of {count}"
        return seconds / count * 1e6

    return measure


CLIENTS: list[streams.Client] = [
    streams.ours,
    streams.ours_messages,
    streams.ours_aiohttp,
    streams.ours_aiohttp_messages,
    streams.bare,
    streams.langgraph_sdk,
    streams.with_httpx_sse,
    streams.openai,
    streams.with_aiohttp,
    streams.sync,
    streams.sync_by_hand,
]


def stream_cases(report: Report, url: str, count: int, rounds: int) -> list[str]:
    """The lines of the table about one stream; returns the table of all clients."""
    by_size: dict[int, dict[str, float]] = {}
    for size in (1, 16_384):
        work = {
            client.__name__: per_event(
                client,
                f"{url}/{'completion' if client is streams.openai else 'token'}-{count}-{size}",
                count,
            )
            for client in CLIENTS
        }
        by_size[size] = medians(work, rounds)
    one, many = by_size[1], by_size[16_384]
    sdk = "langgraph_sdk"
    for name, label in [("ours", "typed events"), ("ours_messages", "and each `Message` read")]:
        case = f"{label}, one event per chunk, over"
        report.line(f"{case} langgraph-sdk", one[sdk] / one[name], ">= 1.3")
        report.line(f"{case} bare `aiter_raw`", one["bare"] / one[name], ">= 0.75")
        report.line(f"{label}, 16 KiB chunks, over langgraph-sdk", many[sdk] / many[name], ">= 1.6")
    for name, label in [
        ("ours_aiohttp", "[aiohttp], typed events"),
        ("ours_aiohttp_messages", "[aiohttp], and each `Message` read"),
    ]:
        case = f"{label}, one event per chunk, over"
        report.line(f"{case} langgraph-sdk", one[sdk] / one[name], ">= 4.5")
        report.line(f"{case} bare `aiter_raw`", one["bare"] / one[name], ">= 2.4")
    by_hand, sync = "sync_by_hand", "sync"
    report.line("sync over by hand, one event per chunk", one[by_hand] / one[sync], ">= 0.9")
    report.line("sync over by hand, 16 KiB chunks", many[by_hand] / many[sync], ">= 0.75")
    table = ["| client | one event per chunk, us | 16 KiB chunks, us |", "|---|---|---|"]
    for client in CLIENTS:
        name = (client.__doc__ or "").rstrip(".")
        table.append(f"| {name} | {one[client.__name__]:.1f} | {many[client.__name__]:.1f} |")
    return table


def probed(what: str, client: str, url: str, count: int) -> Callable[[], float]:
    command = [sys.executable, str(HERE / "probe.py"), what, client, url, str(count)]
    return lambda: float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def process_cases(report: Report, url: str, *, quick: bool) -> None:
    """The lines of the table that take a process each."""
    names = ["ours", "ours_aiohttp", "langgraph_sdk"]
    paced = f"{url}/paced-20-{2 if quick else 4}"
    found = medians({n: probed("cpu", n, paced, 200) for n in names}, 1 if quick else 7)
    sdk = found["langgraph_sdk"]
    case = "CPU of 200 streams, 20 events/s each, of langgraph-sdk's"
    report.line(f"{case}, with [aiohttp]", found["ours_aiohttp"] / sdk, "<= 0.5")
    report.line(f"{case}, stock httpx", found["ours"] / sdk, "<= 1.0")
    held = f"{url}/held-1-60"
    count = 200 if quick else 1_000
    found = medians({n: probed("memory", n, held, count) for n in names}, 1 if quick else 3)
    sdk = found["langgraph_sdk"]
    case = f"memory of {count} streams at once, of langgraph-sdk's {sdk:.0f} KiB each"
    report.line(f"{case}, stock httpx", found["ours"] / sdk, "<= 1.0")
    report.line(f"{case}, with [aiohttp]", found["ours_aiohttp"] / sdk, "<= 0.6")
    count = 100_000 if quick else 1_000_000
    grown = probed("growth", "ours", f"{url}/counted-{count}-16384", count)()
    report.line(
        f"growth of memory over {count:,} events with ids", grown, "<= 1", form="{:.2f} MiB"
    )
    times = probed("large", "ours", f"{url}/large-1-65536", 60_000_000)()
    report.line("peak memory of one event of 60 MB, over its size", times, "<= 2.3")


def memory_cases(report: Report, rounds: int) -> None:
    """The lines of the table that need no network."""
    for (size, (kind, count)), goal in zip(
        inmemory.SIZES.items(), [">= 1.8", ">= 4.5", ">= 5.5"], strict=True
    ):
        found = medians(inmemory.decoding(kind, count), rounds)
        report.line(f"decoding {size}, over httpx-sse", found["peer"] / found["ours"], goal)
    for kind, goal in [("token", ">= 15"), ("update", ">= 10")]:
        found = medians(inmemory.typing(kind), rounds)
        report.line(f"typing one {kind}, over openai", found["peer"] / found["ours"], goal)
    counts = {str(n): inmemory.per_event(n) for n in (1_000, 10_000, 100_000)}
    found = medians(counts, rounds)
    flat = max(found.values()) / min(found.values())
    report.line("time per event, 10^3 to 10^5 events, largest over smallest", flat, "<= 1.15")
    sizes = {str(n): inmemory.per_byte(n) for n in (1_000, 100_000, 1_000_000, 10_000_000)}
    found = medians(sizes, rounds)
    flat = max(found.values()) / min(found.values())
    report.line("time per byte, 1 KB to 10 MB events in 1 KB chunks", flat, "<= 1.15")


def wait_cases(report: Report, url: str, rounds: int) -> None:
    """Wait calls on a kept-alive connection."""
    count, body = 200, {"agent_id": "a", "input": {"n": 1}}

    def sync() -> float:
        with RunsClient(url) as client:
            client.create_and_wait_run(**body)  # type: ignore[arg-type]
            began = perf_counter()
            for _ in range(count):
                client.create_and_wait_run(**body)  # type: ignore[arg-type]
            return perf_counter() - began

    def bare_sync() -> float:
        with httpx.Client() as client:
            client.post(f"{url}/runs/wait", json=body)
            began = perf_counter()
            for _ in range(count):
                client.post(f"{url}/runs/wait", json=body).raise_for_status().json()
            return perf_counter() - began

    async def wait() -> float:
        async with AsyncRunsClient(url) as client:
            await client.create_and_wait_run(**body)  # type: ignore[arg-type]
            began = perf_counter()
            for _ in range(count):
                await client.create_and_wait_run(**body)  # type: ignore[arg-type]
            return perf_counter() - began

    async def bare_wait() -> float:
        async with httpx.AsyncClient() as client:
            await client.post(f"{url}/runs/wait", json=body)
            began = perf_counter()
            for _ in range(count):
                (await client.post(f"{url}/runs/wait", json=body)).raise_for_status().json()
            return perf_counter() - began

    found = medians(
        {
            "sync": sync,
            "bare sync": bare_sync,
            "async": lambda: asyncio.run(wait()),
            "bare async": lambda: asyncio.run(bare_wait()),
        },
        rounds,
    )
    for kind in ("sync", "async"):
        ratio = found[kind] / found[f"bare {kind}"]
        report.line(f"{kind} wait call, time over bare httpx", ratio, "<= 1.1")


def import_cases(report: Report, url: str, rounds: int) -> None:
    """Fresh processes; what the interpreter itself takes is taken off."""

    def run(script: str) -> Callable[[], float]:
        command = [sys.executable, "-c", f"URL = {url!r}\n{script}"]
        # As installed: what is imported was compiled before.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run(command, check=True, env=env)

        def measure() -> float:
            began = perf_counter()
            subprocess.run(command, check=True, env=env)
            return perf_counter() - began

        return measure

    found = medians({"": run(""), **{name: run(s) for name, s in IMPORTS.items()}}, rounds)
    cost = {name: seconds - found[""] for name, seconds in found.items()}
    base = cost["httpx and pydantic"]
    case = "over importing httpx and pydantic with one model"
    report.line(f"`import agentproto` {case}", cost["agentproto"] / base, "<= 1.1")
    report.note(f"`import langgraph_sdk` {case}", cost["langgraph-sdk"] / base)
    report.line(f"first client ready, {case}", cost["agentproto, client ready"] / base, "<= 1.3")
    answered = cost["agentproto, answered"] / cost["httpx and pydantic, answered"]
    report.note("first call answered, over bare httpx that has its answer", answered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing written")
    quick = parser.parse_args().quick
    count, rounds = (4_000, 3) if quick else (20_000, 15)
    report = Report()
    with server() as url:
        clients = stream_cases(report, url, count, rounds)
        process_cases(report, url, quick=quick)
        memory_cases(report, rounds)
        # These take little time, and vary more.
        wait_cases(report, url, 2 * rounds)
        import_cases(report, url, 5 if quick else 2 * rounds)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    lines = [
        "# How fast agentproto is, beside what one would use instead",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {python}: agentproto {version('agentproto')}, {versions}.",
        f"Medians of {rounds} interleaved rounds, streams of {count:,} events of 150 B; the server",
        "is a process of its own on loopback. `make bench` writes this page.",
        "",
        "| case | measured | to reach | reached |",
        "|---|---|---|---|",
        *report.rows,
        "",
        "Microseconds per event, of one stream:",
        "",
        *clients,
        "",
    ]
    print("\n".join(["", *clients]))
    if not quick:
        (HERE / "RESULTS.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
