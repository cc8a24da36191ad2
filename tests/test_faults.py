"""The matrix of FAULTS.md: every fault, on every call, async and sync."""

from __future__ import annotations

import ast
import asyncio
import re
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trustme
import uvloop

import agentproto
from agentproto import AgentProtoError, RetryPolicy, Timeout

from . import faults
from .both import Async, Flavour
from .faults import IDS, SOON, breaking, full_backlog, good
from .raw_server import BOUND, RawServer, Script, answer, raw_server

PAGE = (Path(__file__).parent / "FAULTS.md").read_text()
QUICK = RetryPolicy(attempts=100, first_delay=0.01, max_delay=0.01)


@dataclass(frozen=True)
class Call:
    """A call of the client: what it asks for, and whether its result is whole."""

    column: str
    request: str
    arguments: tuple[Any, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        return self.request.endswith("/stream")


GOES_ON = {"on_disconnect": "continue"}
CALLS: dict[str, Call] = {
    "create_and_stream_run": Call("create_and_stream", "POST /runs/stream", (), GOES_ON),
    "create_and_wait_run": Call("create_and_wait", "POST /runs/wait", (), GOES_ON),
    "create_run": Call("create", "POST /runs", (), GOES_ON),
    "update_and_stream_run": Call("update_and_stream", "POST /runs/r1/stream", ("r1",)),
    "update_and_wait_run": Call("update_and_wait", "POST /runs/r1/wait", ("r1",)),
    "stream_run": Call("stream", "GET /runs/r1/stream", ("r1",)),
    "wait_run": Call("wait", "GET /runs/r1/wait", ("r1",)),
    "get_run": Call("get, search", "GET /runs/r1", ("r1",)),
    "search_runs": Call("get, search", "POST /runs/search"),
    "cancel_run": Call(
        "cancel, delete", "POST /runs/r1/cancel?wait=false&action=interrupt", ("r1",)
    ),
    "delete_run": Call("cancel, delete", "DELETE /runs/r1", ("r1",)),
}


@dataclass(frozen=True)
class Fault:
    """What the server does: first this, then that; and how the client is set up."""

    first: Script
    then: Script = field(default_factory=good)
    client: dict[str, Any] = field(default_factory=dict)
    is_unset: bool = False
    is_async_only: bool = False


def redirect(status: int, target: str | None) -> Fault:
    return Fault(faults.redirect(status, target))


def content_type(value: str) -> Fault:
    async def mislabelled(connection: Any, body: faults.Body) -> None:
        headers, pieces = body
        await faults.whole(connection, ({**headers, "content_type": value}, pieces))

    return Fault(breaking(mislabelled))


async def relabelled(connection: Any, body: faults.Body) -> None:
    headers, pieces = body
    kind = f"{headers['content_type'].upper()} ; charset=latin-1"
    await faults.whole(connection, ({**headers, "content_type": kind}, pieces))


SHORT_IDLE = {"timeout": Timeout(idle=0.25)}
SHORT_TOTAL = {"timeout": Timeout(total=0.4)}
SMALL = {"max_event_bytes": 1_000, "max_response_bytes": 1_000}
CUT = breaking(faults.reset)
FAULTS: dict[str, Fault] = {
    "down for a while": Fault(good()),
    "refused": Fault(good(), client={"retry": RetryPolicy(first_delay=0)}),
    "name not known": Fault(good(), client={"retry": RetryPolicy(first_delay=0)}),
    "connect timeout": Fault(
        good(), client={"retry": RetryPolicy(attempts=1), "timeout": Timeout(connect=0.1)}
    ),
    "certificate rejected": Fault(good()),
    "reset before the status line": Fault(faults.reset_at_once),
    "EOF before the status line": Fault(faults.no_answer),
    "garbage for a status line": Fault(faults.garbage),
    "silence before the status line": Fault(faults.silence, client=SHORT_IDLE),
    "429": Fault(answer(429)),
    "429 with Retry-After": Fault(answer(429, retry_after="0.01")),
    "429 with a Retry-After over the cap": Fault(answer(429, retry_after="61")),
    "503 with Retry-After": Fault(answer(503, retry_after="0.01")),
    **{str(code): Fault(answer(code)) for code in (503, 500, 502, 504)},
    **{str(code): Fault(answer(code)) for code in (400, 401, 403, 404, 408, 409, 410, 422)},
    **{
        f"error body: {kind}": Fault(faults.error(body))
        for kind, body in faults.ERROR_BODIES.items()
    },
    "error body: endless": Fault(faults.endless_error),
    "error body: stalled": Fault(faults.stalled_error),
    "cut by RST": Fault(CUT),
    "cut by FIN, no last chunk": Fault(breaking(faults.no_terminator)),
    "cut by FIN, short length": Fault(breaking(faults.short_length)),
    "bad chunk": Fault(breaking(faults.bad_chunk)),
    "cut, on_disconnect unset, run succeeded": Fault(
        CUT, good(on_disconnect="cancel"), is_unset=True
    ),
    "cut, on_disconnect unset, run goes on": Fault(
        CUT, good(on_disconnect="cancel", status="running"), is_unset=True
    ),
    "cut, on_disconnect unset, run failed": Fault(
        CUT, good(on_disconnect="cancel", status="error"), is_unset=True
    ),
    "cut, run not known": Fault(breaking(faults.unnamed)),
    "cut, then the server overlaps": Fault(CUT, good(overlap=2)),
    "cut, then the server replays all": Fault(CUT, good(overlap=99)),
    "stall within the body": Fault(breaking(faults.stall), client=SHORT_IDLE),
    "endless heartbeats, newlines before JSON": Fault(
        breaking(faults.heartbeats), client=SHORT_TOTAL
    ),
    "one byte at a time": Fault(breaking(faults.drip)),
    # A sync client checks its total limit between reads: see Timeout.
    "endless 1xx": Fault(faults.endless_1xx, client=SHORT_TOTAL, is_async_only=True),
    "endless headers": Fault(faults.endless_headers),
    "204": Fault(answer(204)),
    "redirect 301": redirect(301, "{server}/elsewhere"),
    "redirect 302 to a path": redirect(302, "/elsewhere"),
    "redirect 303": redirect(303, "{server}/elsewhere"),
    "redirect 307 to no URL": redirect(307, "http://[nowhere"),
    "redirect 308": redirect(308, "{server}/elsewhere"),
    "redirect without a target": redirect(302, None),
    "content type: text/event-streamx": content_type("text/event-streamx"),
    "content type: text/html": content_type("text/html"),
    "content type: application/json": content_type("application/json"),
    "content type: in capitals, with parameters": Fault(breaking(relabelled)),
    "content type: another charset": Fault(breaking(relabelled)),
    "bad JSON": Fault(breaking(faults.body_of(b'{"values": nope}'))),
    "bad shape": Fault(breaking(faults.body_of(b'"text"'))),
    "empty body": Fault(breaking(faults.body_of(b""))),
    "broken gzip": Fault(breaking(faults.broken_gzip)),
    "gzip twice": Fault(breaking(faults.whole, content_encoding="gzip, gzip")),
    "over the limit of size": Fault(breaking(faults.too_large), client=SMALL),
    "server restarts": Fault(breaking(faults.restart)),
}


def matrix() -> dict[str, dict[str, str]]:
    """The table of the page: fault -> column -> outcome."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("| ")
    ]
    header, *body = (row for row in rows if len(row) == 10)
    for row in body:
        for column, cell in enumerate(row):
            row[column] = row[column - 1] if cell == "same" else cell
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in body}


MATRIX = matrix()
CELLS = [
    (fault, call)
    for fault, outcomes in MATRIX.items()
    for call, made in CALLS.items()
    if outcomes[made.column] != "-"
]


def test_page_and_faults_are_the_same() -> None:
    """Every row of the page is played, and every fault that can be played stands on it."""
    assert sorted(MATRIX) == sorted(FAULTS)
    columns = {call.column for call in CALLS.values()}
    assert all(set(outcomes) == columns for outcomes in MATRIX.values())


@dataclass
class Played:
    """What came out of a call."""

    result: Any = None
    error: BaseException | None = None
    ended: str | None = None

    @property
    def is_whole(self) -> bool:
        match self.result:
            case None | agentproto.Run(run_id="r1") | [agentproto.Run(run_id="r1")]:
                return True
            case agentproto.RunWaitResponse(values={"n": 4}):
                return True
            case _:
                return bool(self.result == IDS and self.ended == "end")


async def play(flavour: Flavour, client: Any, name: str, *, unset: bool = False) -> Played:
    call, method = CALLS[name], getattr(client, name)
    fields = {} if unset else call.fields
    try:
        if not call.is_stream:
            return Played(await flavour.call(method, *call.arguments, **fields))
        stream = method(*call.arguments, **fields)
        ids = [event.id for event in await flavour.collect(stream)]
    except AgentProtoError as error:
        return Played(error=error)
    return Played(ids, ended=stream.ended)


FOLLOW_UPS = {
    "asked": "GET /runs/r1",
    "joined": "GET /runs/r1/stream",
    "finished": "GET /runs/r1/wait",
}


def expected_requests(call: Call, outcome: list[str]) -> list[str]:
    again = [call.request] if outcome == ["again"] else []
    return [call.request, *again, *(FOLLOW_UPS[o] for o in outcome if o in FOLLOW_UPS)]


def check(played: Played, outcome: str, call: Call) -> None:
    if not outcome.endswith("Error"):
        assert played.error is None, played.error
        assert played.is_whole or (outcome, played.ended) == ("stopped", "stopped")
        return
    error = played.error
    assert type(error) is getattr(agentproto, outcome), error
    assert isinstance(error, AgentProtoError)
    assert "r1" not in call.request or error.run_id == "r1"
    told = "".join(traceback.format_exception(error)) + repr(error.__dict__)
    assert "s3cret" not in told


@contextmanager
def unreachable(fault: str, server: RawServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL under which the server cannot be reached, for faults of the connection."""
    with ExitStack() as stack:
        if fault in {"refused", "down for a while"}:
            server.down()
            yield server.url
        elif fault == "connect timeout":
            yield f"http://127.0.0.1:{full_backlog(stack)}"
        elif fault == "name not known":
            monkeypatch.setattr(socket, "getaddrinfo", _nobody)
            monkeypatch.setattr(uvloop.Loop, "getaddrinfo", _nobody_here)  # it has its own
            yield "http://nobody.test:8000"
        else:
            yield server.url


async def _nobody_here(*_: object, **__: object) -> NoReturn:
    _nobody()


def _nobody(*_: object, **__: object) -> NoReturn:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a call has seen an attempt fail, and asks how long to wait before the next."""
    failed = threading.Event()

    def chance(_: object) -> float:
        failed.set()
        return 0.999

    monkeypatch.setattr("agentproto._io.clients.ClientIO.chance", chance)
    return failed


@pytest.mark.parametrize(("fault", "name"), CELLS)
async def test_fault_ends_as_the_page_says(
    flavour: Flavour,
    fault: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    failed: threading.Event,
) -> None:
    """FAULTS.md, Matrix."""
    call, made = CALLS[name], FAULTS[fault]
    if made.is_async_only and not isinstance(flavour, Async):
        return
    monkeypatch.setattr("agentproto._session.ERROR_SECONDS", 0.2)
    outcome = MATRIX[fault][call.column]
    is_tls = fault == "certificate rejected"
    hellos: list[object] = []
    with raw_server(made.first, made.then, tls=certified(hellos) if is_tls else None) as server:
        with unreachable(fault, server, monkeypatch) as url:
            arguments = {"retry": QUICK, "headers": {"x-api-key": "s3cret"}, **made.client}
            client = flavour.client(url, **arguments)
            playing = asyncio.create_task(play(flavour, client, name, unset=made.is_unset))
            if fault == "down for a while":
                assert await asyncio.to_thread(failed.wait, BOUND)
                server.up()
            played = await asyncio.wait_for(playing, BOUND)
        check(played, outcome.split(", ")[-1], call)
        asked = [f"{request.method} {request.target}" for request in server.requests]
        is_reached = fault not in UNREACHED
        assert asked == (expected_requests(call, outcome.split(", ")) if is_reached else [])
        assert not is_reached or await asyncio.to_thread(server.all_closed.wait, SOON)
        await flavour.close(client)
    assert len(hellos) == is_tls


UNREACHED = {"refused", "name not known", "connect timeout", "certificate rejected"}


def certified(hellos: list[object]) -> ssl.SSLContext:
    """A server of a CA that nobody knows; it counts the handshakes that begin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    context.sni_callback = lambda *_: hellos.append(1)
    return context


TESTS = {
    node.name
    for path in Path(__file__).parent.glob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
}
LINES = re.findall(r"^- \*\*(.+?)\*\*(.*?)(?=^- |^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
NUMBERED = [*"1234", *"12345678"]


def test_every_line_of_the_page_has_its_tests() -> None:
    """A line without a test, or whose test is gone, fails here."""
    assert [name for name, _ in LINES if name.isdigit()] == NUMBERED
    assert len(LINES) == len(NUMBERED) + 10
    for name, text in LINES:
        named = re.findall(r"`(test_\w+)`", text)
        assert named, f"no test is named in line {name}"
        assert set(named) <= TESTS, f"line {name}: {sorted(set(named) - TESTS)} do not exist"
