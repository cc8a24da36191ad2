"""One session of each real server, and the table of what they did."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .servers import SERVERS, MissingError, Server, langgraph_dev

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- make e2e writes this table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Target:
    """A server that runs, and how to speak to it."""

    server: Server
    url: str

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def arguments(self) -> dict[str, Any]:
        return {"dialect": self.server.dialect}


@dataclass
class Results:
    """Outcomes by scenario and server: of all its tests together."""

    outcomes: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)

    def titles(self) -> list[str]:
        return list(dict.fromkeys(title for title, _ in self.outcomes))


RESULTS = Results()
SCENARIOS = set(
    re.findall(
        r'@pytest.mark.scenario\(\s*"(.*?)"',
        (Path(__file__).parent / "test_servers.py").read_text(),
    )
)


@pytest.fixture(scope="session", params=SERVERS, ids=lambda server: server.name)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each server in turn."""
    server: Server = request.param
    with ExitStack() as stack:
        try:
            with _told_at_once(request.config):
                url = stack.enter_context(server.started())
        except MissingError as missing:
            pytest.skip(f"{server.name} needs {missing}")
        yield Target(server, url)


@pytest.fixture(scope="session", name="langgraph_dev")
def _langgraph_dev(pytestconfig: pytest.Config) -> Iterator[str]:
    """Base URL of a `langgraph dev`, which ends with the session."""
    with ExitStack() as stack:
        with _told_at_once(pytestconfig):
            url = stack.enter_context(langgraph_dev())
        yield url


@contextmanager
def _told_at_once(config: pytest.Config) -> Iterator[None]:
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        yield


@pytest.fixture
def deviation(request: pytest.FixtureRequest, target: Target) -> Any:
    """What this server does otherwise in this scenario: its second part, else None."""
    told = request.node.get_closest_marker("scenario").kwargs.get(_key(target.name))
    return None if told is None else told[1]


def _key(name: str) -> str:
    return name.replace(" ", "_")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marker = item.get_closest_marker("scenario")
    if marker is not None and (report.when == "call" or not report.passed):
        name = item.callspec.params["target"].name  # type: ignore[attr-defined]  # a parametrized one
        place = (marker.args[0], name)
        RESULTS.outcomes.setdefault(place, set()).add(report.outcome)
        if _key(name) in marker.kwargs:
            RESULTS.notes[place] = marker.kwargs[_key(name)][0]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, where every scenario was played on every server."""
    titles = RESULTS.titles()
    played = {place for place, outcomes in RESULTS.outcomes.items() if "skipped" not in outcomes}
    if played != {(title, server.name) for title in SCENARIOS for server in SERVERS}:
        return
    text = README.read_text()
    table = re.compile(f"(?<={re.escape(BEGIN)}\n).*(?={re.escape(END)})", re.DOTALL)
    README.write_text(table.sub(lambda _: _table(titles), text))


def _table(titles: list[str]) -> str:
    places = [(title, server.name) for title in titles for server in SERVERS]
    notes = list(dict.fromkeys(RESULTS.notes[p] for p in places if p in RESULTS.notes))
    rows = [
        ["", *(server.name for server in SERVERS)],
        ["---", *("---" for _ in SERVERS)],
        ["version", *(server.version for server in SERVERS)],
        *([title, *(_cell(title, server.name, notes) for server in SERVERS)] for title in titles),
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    told = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(["", *lines, "", *told, "", ""])


def _cell(title: str, name: str, notes: list[str]) -> str:
    outcomes = RESULTS.outcomes[title, name]
    if "failed" in outcomes:
        return "no"
    note = RESULTS.notes.get((title, name))
    return "yes" if note is None else f"yes ({notes.index(note) + 1})"
