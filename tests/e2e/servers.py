"""Real servers on free loopback ports, each in an environment of its own under .e2e."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentproto.testing import RunsServer

from .reference import AGENTS

HERE = Path(__file__).parent
WORK = HERE.parents[1] / ".e2e"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
GRAPHS = HERE / "langgraph_dev" / "graphs.py"


class MissingError(Exception):
    """What a server needs is not on this machine."""


@dataclass(frozen=True)
class Server:
    """How to start one; the context gives its base URL."""

    name: str
    version: str
    dialect: Any
    started: Callable[[], AbstractContextManager[str]]


def say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)  # noqa: T201  # installing takes a while


@contextmanager
def reference() -> Iterator[str]:
    with RunsServer(AGENTS) as server:
        yield server.url


@contextmanager
def langgraph_dev() -> Iterator[str]:
    source = HERE / "langgraph_dev"
    binaries = _with_packages(source)
    app = _fresh_app(source, source / "langgraph.json", GRAPHS)
    options = ["--no-browser", "--no-reload", "--n-jobs-per-worker", "10"]
    with _serving([binaries / "langgraph", "dev", *options], app, "/ok") as url:
        yield url


@contextmanager
def langgraphjs_dev() -> Iterator[str]:
    source = HERE / "langgraphjs_dev"
    if shutil.which("npm") is None:
        raise MissingError("Node.js with npm")
    package = source / "package.json"

    def install(work: Path) -> None:
        shutil.copy(package, work)
        npm = ["npm", "install", "--no-fund", "--no-audit", "--silent"]
        subprocess.run(npm, cwd=work, check=True, stdin=subprocess.DEVNULL)

    work = _installed(source.name, package, install)
    app = _fresh_app(source, source / "langgraph.json", source / "graphs.mjs")
    (app / "node_modules").symlink_to(work / "node_modules")
    shutil.copy(package, app)
    command = [work / "node_modules" / ".bin" / "langgraphjs", "dev", "--no-browser"]
    with _serving(command, app, "/ok") as url:
        yield url


@contextmanager
def aegra() -> Iterator[str]:
    source = HERE / "aegra"
    with _postgres() as database:
        # It asks for Python 3.12, and runs on 3.11.
        binaries = _with_packages(source, "--ignore-requires-python")
        app = _fresh_app(source, source / "aegra.json", GRAPHS)
        command = [binaries / "uvicorn", "aegra_api.main:app"]
        with _serving(command, app, "/health", {"DATABASE_URL": database}) as url:
            yield url


def _pinned(folder: str, package: str) -> str:
    lines = (HERE / folder / "requirements.txt").read_text().splitlines()
    return next(line.removeprefix(f"{package}==") for line in lines if line.startswith(package))


SERVERS = [
    Server("reference server", f"agentproto {version('agentproto')}", "agent-protocol", reference),
    Server(
        "langgraph dev",
        f"langgraph-api {_pinned('langgraph_dev', 'langgraph-api')}",
        "langgraph",
        langgraph_dev,
    ),
    Server("langgraphjs dev", "langgraph-cli 2.0.0 (npm)", "langgraph", langgraphjs_dev),
    Server("aegra", f"aegra-api {_pinned('aegra', 'aegra-api')}", "langgraph", aegra),
]


def _with_packages(source: Path, *options: str) -> Path:
    requirements = source / "requirements.txt"

    def install(work: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        pip: list[Any] = [
            work / "venv" / "bin" / "python",
            "-m",
            "pip",
            "--disable-pip-version-check",
            "-q",
        ]
        subprocess.run([*pip, "install", *options, "-r", requirements], check=True)

    return _installed(source.name, requirements, install) / "venv" / "bin"


def _installed(name: str, pins: Path, install: Callable[[Path], None]) -> Path:
    work = WORK / name
    stamp, wanted = work / "installed", hashlib.sha256(pins.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        say(f"installing {name} (some 30 s, once)")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        install(work)
        stamp.write_text(wanted)
    return work


def _fresh_app(source: Path, *files: Path) -> Path:
    # The servers keep their state beside the graphs: each session begins without any.
    app = WORK / source.name / "app"
    shutil.rmtree(app, ignore_errors=True)
    app.mkdir()
    for file in files:
        shutil.copy(file, app)
    return app


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _serving(
    command: Sequence[Any], app: Path, ready: str, more: Mapping[str, str] | None = None
) -> Iterator[str]:
    port = _free_port()
    log = app.parent / "server.log"
    keys = ("LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(keys)}
    environment |= {
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGSMITH_TRACING": "false",
        "LANGCHAIN_TRACING_V2": "false",
        **(more or {}),
    }
    say(f"starting {app.parent.name} on port {port}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=app,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url + ready, log)
        yield url
    finally:
        _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.2)  # between two questions, within the bound above
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise RuntimeError(f"{url} did not answer within {START_SECONDS:g} s; its log ends:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for end in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, end)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def _postgres() -> Iterator[str]:
    """A database cluster of its own, that is gone afterwards."""
    binaries = _postgres_binaries()
    # PostgreSQL refuses to run as root; its own user cannot look into a private folder.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="agentproto-"))
    port = _free_port()
    data, log = folder / "data", folder / "log"
    run: Any = {"check": True, "user": user, "cwd": folder, "stdin": subprocess.DEVNULL}
    quiet: Any = {**run, "stdout": subprocess.DEVNULL}
    try:
        if user is not None:
            shutil.chown(folder, user)
        made: list[Any] = ["-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([binaries / "initdb", *made], **quiet)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control: list[Any] = [binaries / "pg_ctl", "-D", data, "-w", "-l", log]
        subprocess.run([*control, "-o", options, "start"], **quiet)
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_binaries() -> Path:
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "pg_ctl").exists() and (place / "initdb").exists():
            return place
    raise MissingError("PostgreSQL (initdb and pg_ctl)")
