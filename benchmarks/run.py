"""Side by side, interleaved, in one run: ratios of medians. `make bench` runs it.

Absolute figures of a shared machine are noise; what counts is the ratio to the client beside it.
`--against REV` sets this build beside that of a revision of git instead.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import against
import inmemory
import starts
import streams
from harness import HERE, Report, environment, medians, probed, server
from waits import WAITS

PACKAGES = ["httpx", "httpx-sse", "pydantic", "langgraph-sdk", "openai", "aiohttp", "uvloop"]
BEFORE = "7f93c2d"
"""The last build whose connections were made by httpcore's own backend."""


CLIENTS: list[streams.Client] = [
    streams.ours,
    streams.ours_messages,
    streams.ours_on_client,
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


BODIES = {
    "one event per chunk": ("token", 1),
    "16 KiB chunks": ("token", 16_384),
    "real tokens, one per chunk": ("real", 1),
}


def stream_cases(report: Report, url: str, count: int, rounds: int) -> list[str]:
    """The lines of the table about one stream; returns the table of all clients."""
    one, many, real = (by_client(url, *body, count, rounds) for body in BODIES.values())
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
    # Lost if the transport joins no chunks: these were 1.0 and 0.8 without, 2.6 and 2.1 with it.
    case = "real tokens, one per chunk, over"
    report.line(f"{case} langgraph-sdk", real[sdk] / real["ours"], ">= 1.6")
    report.line(f"sync, {case} by hand", real[by_hand] / real[sync], ">= 1.3")
    table = [f"| client | {', us | '.join(BODIES)}, us |", "|---|---|---|---|"]
    for client in CLIENTS:
        label, name = (client.__doc__ or "").rstrip("."), client.__name__
        cells = [f"{found[name]:.1f}" if name in found else "" for found in (one, many, real)]
        table.append(f"| {label} | {' | '.join(cells)} |")
    return table


def by_client(url: str, kind: str, size: int, count: int, rounds: int) -> dict[str, float]:
    """Microseconds for an event of one stream, by each client that can read its events."""
    count = count // 4 if kind == "real" else count
    work: dict[str, Callable[[], float]] = {}
    for client in CLIENTS:
        path, events = f"{url}/{kind}-{count}-{size}", count
        if client is streams.openai:
            events = count // 4
            path = f"{url}/completion-{events}-{size}"
        if client is not streams.openai or kind == "token":
            work[client.__name__] = partial(streams.microseconds, client, path, events)
    return medians(work, rounds)


PACED = {
    "ours": "agentproto",
    "ours_aiohttp": "agentproto[aiohttp]",
    "before": f"agentproto as it was at {BEFORE}",
    "langgraph_sdk": "langgraph-sdk",
    "httpx": "httpx `aiter_raw`: bytes that nobody looks at",
    "socket": "asyncio `StreamReader.read`: bytes of which nobody parses the HTTP either",
}
LOOPS = {"asyncio": "<= 0.7", "uvloop": "<= 0.75"}
"""And what of the CPU of langgraph-sdk ours may take there."""


def paced_cases(report: Report, url: str, rounds: int) -> list[str]:
    """The lines of the table about many paced streams; returns the table of all clients."""
    path, count = f"{url}/realpaced-20-3", 100
    work = {
        (client, loop): probed("token", client, path, count, loop)
        for client in PACED
        for loop in LOOPS
        if client != "before"
    }
    with ExitStack() as stack:
        with suppress(OSError, subprocess.CalledProcessError):  # without git, or its whole history
            env = environment(stack.enter_context(against.source_of(BEFORE)))
            # Only under asyncio: under uvloop every stream of that build ended in an error.
            work["before", "asyncio"] = probed("token", "ours", path, count, env=env)
        found = medians(work, rounds)
    case = "CPU of 100 streams, 20 real tokens/s each, of langgraph-sdk's"
    for loop, goal in LOOPS.items():
        report.line(f"{case}, {loop}", found["ours", loop] / found["langgraph_sdk", loop], goal)
    table = [f"| client | {' | '.join(LOOPS)} |", "|---|---|---|"]
    for client, label in PACED.items():
        cells = [f"{found[client, loop]:.0f}" if (client, loop) in found else "" for loop in LOOPS]
        table.append(f"| {label} | {' | '.join(cells)} |")
    return table


def process_cases(report: Report, url: str, *, quick: bool) -> None:
    """The lines of the table that take a process each."""
    names = ["ours", "ours_aiohttp", "langgraph_sdk"]
    paced = f"{url}/paced-20-{2 if quick else 4}"
    found = medians({n: probed("cpu", n, paced, 200) for n in names}, 1 if quick else 5)
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
    kinds = ("sync", "async")
    work = {kind: partial(WAITS[kind], url) for kind in (*kinds, *(f"bare {k}" for k in kinds))}
    found = medians(work, rounds)
    for kind in kinds:
        ratio = found[kind] / found[f"bare {kind}"]
        report.line(f"{kind} wait call, time over bare httpx", ratio, "<= 1.1")


def import_cases(report: Report, url: str, rounds: int) -> None:
    """Fresh processes; what the interpreter itself takes is taken off."""
    work = {name: starts.started(script, url) for name, script in starts.SCRIPTS.items()}
    found = medians(work, rounds)
    cost = {name: seconds - found["nothing"] for name, seconds in found.items()}
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
    parser.add_argument(
        "--against", metavar="REV", help="only compare with the build of a git revision"
    )
    parser.add_argument("--only", default="", help="of that, only the cases that contain this")
    options = parser.parse_args()
    rounds = 3 if options.quick else 15
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"The load of this machine is {load:.1f}: figures of a busy one are noise.")
    with server() as url:
        if options.against:
            against.compare(url, options.against, rounds, options.only)
        else:
            measure_all(url, rounds, quick=options.quick)


def measure_all(url: str, rounds: int, *, quick: bool) -> None:
    count = 4_000 if quick else 20_000
    report = Report()
    clients = stream_cases(report, url, count, rounds)
    process_cases(report, url, quick=quick)
    paced = paced_cases(report, url, 1 if quick else 7)
    memory_cases(report, rounds)
    # These take little time, and vary more.
    wait_cases(report, url, 2 * rounds)
    import_cases(report, url, 5 if quick else 2 * rounds)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    tables = [
        "Microseconds per event, of one stream:",
        "",
        *clients,
        "",
        "Microseconds of CPU per event, of 100 streams of 20 real tokens a second each:",
        "",
        *paced,
        "",
    ]
    lines = [
        "# How fast agentproto is, beside what one would use instead",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {python}: agentproto {version('agentproto')}, {versions}.",
        f"Medians of {rounds} interleaved rounds, streams of {count:,} events of 150 B. Real",
        "tokens are those of `langgraph dev`: 1 KB each, of which 900 bytes repeat. The server",
        "is a process of its own on loopback. `make bench` writes this page.",
        "",
        "| case | measured | to reach | reached |",
        "|---|---|---|---|",
        *report.rows,
        "",
        *tables,
    ]
    print("\n".join(["", *tables]))
    if not quick:
        (HERE / "RESULTS.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
