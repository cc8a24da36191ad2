"""Two builds side by side, each measurement in a process of its own: `run.py --against REV`."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import starts
from harness import HERE, ProbeError, environment, medians, probed

Env: TypeAlias = Mapping[str, str]
Case: TypeAlias = Callable[[Env], Callable[[], float]]
SLOWER = 1.15
STREAMS = {
    "ours": "typed events",
    "ours_messages": "each `Message` read",
    "ours_aiohttp": "[aiohttp]",
    "sync": "sync",
}
BODIES = {
    "150 B tokens, one per chunk": ("token", 1),
    "150 B tokens, 16 KiB chunks": ("token", 16_384),
    "real tokens, one per chunk": ("real", 1),
}


@contextmanager
def source_of(revision: str) -> Iterator[Path]:
    """The folder `src` as it was at this revision of git."""
    command = ["git", "-C", str(HERE.parent), "archive", revision, "src"]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder, "src")


def checked_environment(source: Path) -> dict[str, str]:
    """The variables of a process that imports agentproto from this folder: one has done so."""
    env = environment(source)
    command = [sys.executable, "-c", "import agentproto; print(agentproto.__file__)"]
    found = subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE, text=True).stdout
    if not Path(found.strip()).is_relative_to(source):
        raise RuntimeError(f"expected agentproto of {source}, got {found.strip()}")
    return env


def cases(url: str) -> dict[str, Case]:
    """What is measured of each build; each case says its unit."""
    found: dict[str, Case] = {}

    def probe(case: str, what: str, client: str, path: str, count: int, *loop: str) -> None:
        found[case] = lambda env: probed(what, client, f"{url}/{path}", count, *loop, env=env)

    def start(case: str, script: str) -> None:
        def measurement(env: Env) -> Callable[[], float]:
            measure = starts.started(script, url, env)
            return lambda: (measure() - nothing) * 1e3

        found[case] = measurement

    count = 3_000
    for body, (kind, size) in BODIES.items():
        for client, label in STREAMS.items():
            case = f"one stream, {label}, {body}, us an event"
            probe(case, "stream", client, f"{kind}-{count}-{size}", count)
    for kind in ("async", "aiohttp", "sync"):
        probe(f"wait call, {kind}, us", "wait", kind, "", 1)
    for client, loop in [("ours", "asyncio"), ("ours_aiohttp", "asyncio"), ("ours", "uvloop")]:
        case = f"100 streams of real tokens, {STREAMS[client]}, {loop}, us of CPU a token"
        probe(case, "token", client, "realpaced-20-2", 100, loop)
    for client in ("ours", "ours_aiohttp"):
        case = f"memory of 300 streams at once, {STREAMS[client]}, KiB each"
        probe(case, "memory", client, "held-1-60", 300)
    case = "peak memory of one event of 60 MB, over its size"
    probe(case, "large", "ours", "large-1-65536", 60_000_000)
    nothing = medians({"": starts.started("", url)}, 5)[""]
    for name, script in starts.SCRIPTS.items():
        if name.startswith("agentproto"):
            start(f"fresh process, {name}, ms", script)
    return found


def row(case: Case, envs: Mapping[str, Env], rounds: int) -> list[str]:
    """The cells of one case behind its name: each build, the ratio, whether it is slower."""
    work = {name: case(env) for name, env in envs.items()}
    cells: dict[str, str] = {}
    for name, measure in [*work.items()]:
        try:
            measure()
        except ProbeError as exc:
            cells[name] = f"fails: {str(exc).splitlines()[-1]}"
            del work[name]
    found = medians(work, rounds)
    cells |= {name: f"{value:.4g}" for name, value in found.items()}
    now, before = envs
    if len(found) < len(envs):
        return [cells[now], cells[before], "", "FAILS" if now not in found else ""]
    ratio = found[now] / found[before]
    return [cells[now], cells[before], f"{ratio:.2f}", "SLOWER" if ratio > SLOWER else ""]


def compare(url: str, revision: str, rounds: int, only: str) -> None:
    """Print the table of this build and that of a revision: those cases that contain `only`."""
    with source_of(revision) as source:
        folders = {"now": HERE.parent / "src", revision: source}
        envs = {name: checked_environment(folder) for name, folder in folders.items()}
        print(f"Medians of {rounds} interleaved rounds, each in a process of its own.\n")
        print(
            f"| case | now | {revision} | ratio | over {SLOWER} |",
            "|---|---|---|---|---|",
            sep="\n",
        )
        for name, case in cases(url).items():
            if only in name:
                print(f"| {' | '.join([name, *row(case, envs, rounds)])} |", flush=True)
