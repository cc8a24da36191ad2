"""A real `langgraph dev` on a free loopback port, in an environment of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WORK = HERE.parents[1] / ".e2e"
START_SECONDS = 120.0
STOP_SECONDS = 10.0


@pytest.fixture(scope="session")
def langgraph_dev(pytestconfig: pytest.Config) -> Iterator[str]:
    """Base URL of the server, which ends with the session."""
    with _told_at_once(pytestconfig):
        binaries = _installed(HERE / "langgraph_dev", WORK / "langgraph_dev")
        port = _free_port()
        process, log = _started(binaries, port)
    try:
        with _told_at_once(pytestconfig):
            _wait_until_ready(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(process)


@contextmanager
def _told_at_once(config: pytest.Config) -> Iterator[None]:
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # installing takes a while


def _installed(source: Path, work: Path) -> Path:
    requirements = source / "requirements.txt"
    stamp = work / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    binaries = work / "venv" / "bin"
    if not stamp.exists() or stamp.read_text() != wanted:
        _say(f"\ninstalling {requirements.name} of {source.name} (some 25 s, once)")
        shutil.rmtree(work, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        pip = [str(binaries / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", "-r", str(requirements)], check=True)
        stamp.write_text(wanted)
    # The server keeps its state beside the graphs: each session begins without any.
    shutil.rmtree(work / "app", ignore_errors=True)
    shutil.copytree(source, work / "app")
    return binaries


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _started(binaries: Path, port: int) -> tuple[subprocess.Popen[bytes], Path]:
    app = binaries.parents[1] / "app"
    log = binaries.parents[1] / "server.log"
    keys = ("LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(keys)}
    environment |= {
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGSMITH_TRACING": "false",
        "LANGCHAIN_TRACING_V2": "false",
    }
    where = ["--host", "127.0.0.1", "--port", str(port)]
    options = ["--no-browser", "--no-reload", "--n-jobs-per-worker", "10"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binaries / "langgraph", "dev", *where, *options],
            cwd=app,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, log


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    _say(f"\nstarting langgraph dev on port {port}")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ok", timeout=1):
                return
        except OSError:
            time.sleep(0.2)  # between two questions, within the bound above
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    pytest.fail(f"langgraph dev did not start within {START_SECONDS:g} s; its log ends:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for end in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, end)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
