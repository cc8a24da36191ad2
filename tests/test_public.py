"""The shelf: what is exported, and which way the imports point."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import FunctionType

import pytest

import agentproto

SOURCE = Path(agentproto.__file__).parent


def test_all_is_sorted_and_complete() -> None:
    """What `from agentproto import ...` offers is what `__all__` says."""
    names = agentproto.__all__
    assert names == sorted(names)
    public = {
        name
        for name, value in vars(agentproto).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public | {"__version__"} == set(names)


@pytest.mark.parametrize("name", agentproto.__all__)
def test_exports_live_in_the_package(name: str) -> None:
    """Names are re-homed: reprs, pickles and docs say agentproto, not one of its files."""
    exported = getattr(agentproto, name)
    if inspect.isclass(exported) or inspect.isfunction(exported):
        assert exported.__module__ == "agentproto"


@pytest.mark.parametrize(
    "name", [n for n in agentproto.__all__ if inspect.isclass(getattr(agentproto, n))]
)
def test_public_classes_and_methods_are_documented(name: str) -> None:
    """help() says something of its own for each."""
    kind = getattr(agentproto, name)
    assert kind.__doc__
    for attribute, member in vars(kind).items():
        if not attribute.startswith("_") and isinstance(member, FunctionType | property):
            assert inspect.getdoc(getattr(kind, attribute)), f"{name}.{attribute}"


def test_version_is_that_of_the_distribution() -> None:
    """One version, in one place."""
    assert agentproto.__version__ == version("agentproto")


# Each file may import those after it, never one before: a row is one room.
ROOMS = [
    ["__init__"],
    ["_blocking"],
    ["_client"],
    ["_stream"],
    ["_session"],
    ["_io.asynchronous", "_io.blocking", "_resume", "_retry"],
    ["_io.clients"],
    ["_io.failures", "_io.cancellation"],
    ["_io.transports.aiohttp", "_io.transports.asynchronous", "_io.transports.blocking"],
    ["_io.transports.asyncio_stream"],
    ["_io.frames", "_io.proxies", "_io.transports.pooled"],
    ["_io"],
    ["_dialects.agent_protocol", "_dialects.langgraph"],
    ["_dialects.bodies"],
    ["_dialects"],
    ["_events"],
    ["_coding", "_sse", "_json"],
    ["_errors"],
    ["_models"],
    ["_io.httpx2", "_io.transports", "_io.transports.chunks", "_io.transports.couplings"],
    ["_settings", "_shapes", "_version"],
]
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}


def _room(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imports_of(path: Path) -> set[str]:
    """The rooms of agentproto that a file imports, whether relative or not."""
    package = path.relative_to(SOURCE).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names if a.name.split(".")[0] == "agentproto")
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for name in node.names:
                inner = f"{module}.{name.name}".strip(".")
                found.add(inner if inner in FLOOR else module)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agentproto"):
            found.add(str(node.module))
    return found


CLIENT_FILES = [p for p in SOURCE.rglob("*.py") if "testing" not in p.parts]


def test_every_file_has_its_room() -> None:
    """A new file is drawn in before it is used."""
    assert {_room(path) for path in CLIENT_FILES} == set(FLOOR)


@pytest.mark.parametrize("path", CLIENT_FILES, ids=_room)
def test_imports_point_one_way(path: Path) -> None:
    """DESIGN, Rooms: a test walks the imports and fails on an arrow that points back."""
    upwards = {room for room in _imports_of(path) if FLOOR[room] <= FLOOR[_room(path)]}
    assert upwards == set()


def test_reference_server_shares_nothing_with_the_client() -> None:
    """The reference server must not share the client's mistakes."""
    for path in (SOURCE / "testing").rglob("*.py"):
        outside = {room for room in _imports_of(path) if room.split(".")[0] != "testing"}
        assert outside == set(), path.name


PORT = [name for name in FLOOR if name.split(".")[0] == "_io"]
NETWORK = {"httpx", "anyio", "time", "httpcore", "socket", "asyncio"}


@pytest.mark.parametrize("path", CLIENT_FILES, ids=_room)
def test_only_the_port_names_the_network(path: Path) -> None:
    """DESIGN, Rooms: httpx clients, anyio and time are named in _io; httpx in signatures, too."""
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    allowed = {
        **dict.fromkeys(PORT, NETWORK),
        "_client": {"httpx"},
        "_blocking": {"httpx"},
    }.get(_room(path), set())
    assert imported & NETWORK <= allowed


@pytest.mark.parametrize(
    ("then", "stays_out"),
    [
        ("pass", {"anyio", "httpx_sse", "aiohttp", "agentproto._io.blocking"}),
        ("agentproto.RunsClient('http://127.0.0.1')", {"anyio.lowlevel", "httpx_sse", "aiohttp"}),
        ("agentproto.AsyncRunsClient('http://127.0.0.1')", {"httpx_sse", "aiohttp"}),
    ],
    ids=["nothing", "sync", "async"],
)
def test_nothing_is_imported_that_has_no_use(then: str, stays_out: set[str]) -> None:
    """`import agentproto` costs little more than httpx and pydantic do."""
    script = f"import sys, agentproto; {then}; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    stays_out = stays_out | {"starlette", "uvicorn", "pytest", "trio", "asyncio"}
    assert stays_out & set(told.stdout.split()) == set()
