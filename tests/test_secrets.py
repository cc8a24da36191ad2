"""No secret where errors are looked at: with the reporters that people use, and in each frame."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx
import pytest
import rich.console
import rich.traceback
import sentry_sdk
import structlog
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from agentproto import AsyncRunsClient, Timeout

from .both import Async, Blocking, Flavour
from .faults import breaking, reset, reset_at_once, silence, stall
from .raw_server import Script, answer, raw_server

KEY = "s3cret-of-the-caller"
PASSWORD = "pa55word-of-the-caller"
PAIR = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
SECRETS = [KEY, PASSWORD, PAIR]


class Kept(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.sent.append(envelope.serialize().decode("utf-8", "replace"))


def reported_by_sentry(error: BaseException) -> str:
    kept = Kept()
    client = sentry_sdk.Client(
        dsn="http://key@127.0.0.1:9/1", transport=kept, max_value_length=10**6
    )
    with sentry_sdk.isolation_scope() as scope:
        scope.set_client(client)
        scope.capture_exception(error)
    assert kept.sent, "nothing was reported"
    return "".join(kept.sent)


def shown_by_rich(error: BaseException) -> str:
    page = io.StringIO()
    console = rich.console.Console(file=page, width=500)
    shown = rich.traceback.Traceback.from_exception(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_max_string=10**6,
        locals_max_length=10**6,
    )
    console.print(shown)
    return page.getvalue()


def logged_by_structlog(error: BaseException) -> str:
    form = structlog.tracebacks.ExceptionDictTransformer(
        show_locals=True, locals_max_string=10**6, locals_max_length=10**6
    )
    return str(form((type(error), error, error.__traceback__)))


REPORTERS: dict[str, Callable[[BaseException], str]] = {
    "sentry": reported_by_sentry,
    "rich": shown_by_rich,
    "structlog": logged_by_structlog,
    "traceback": lambda error: "".join(
        traceback.TracebackException.from_exception(error, capture_locals=True).format()
    ),
}


def locals_of(error: BaseException) -> list[str]:
    """The text of each local of each frame that can be reached from this error."""
    found: list[str] = []
    left: list[BaseException] = [error]
    seen: set[int] = set()
    while left:
        link = left.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        found.append(repr(link))
        step: TracebackType | None = link.__traceback__
        while step is not None:
            if "/tests/" not in step.tb_frame.f_code.co_filename:
                found.extend(repr(value) for value in step.tb_frame.f_locals.values())
            step = step.tb_next
        if isinstance(link, BaseExceptionGroup):
            left.extend(link.exceptions)
        left.extend(each for each in (link.__cause__, link.__context__) if each is not None)
    return found


FAULTS: dict[str, Script] = {
    "reset before the status line": reset_at_once,
    "silence": silence,
    "server error": answer(500),
    "cut": breaking(reset),
    "stall": breaking(stall),
}
CALLS = ["create_and_wait_run", "create_and_stream_run", "get_run"]


async def failure_of(flavour: Flavour, client: Any, name: str) -> BaseException:
    arguments = ["r1"] if name == "get_run" else []
    try:
        if name.endswith("stream_run"):
            await flavour.collect(client.create_and_stream_run())
        else:
            await flavour.call(getattr(client, name), *arguments)
    except Exception as error:
        return error
    raise AssertionError("it has not failed")


def checked(error: BaseException) -> None:
    told = [*locals_of(error), *(report(error) for report in REPORTERS.values())]
    assert not [text for text in told if any(secret in text for secret in SECRETS)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_reporter_shows_a_secret(flavour: Flavour, fault: str, name: str) -> None:
    """README: an error shows no secret, whoever looks into its frames."""
    with raw_server(FAULTS[fault]) as server:
        client = flavour.client(
            server.url.replace("http://", f"http://me:{PASSWORD}@"),
            headers={"x-api-key": KEY},
            retry=None,
            timeout=Timeout(idle=0.2),
        )
        error = await failure_of(flavour, client, name)
        await flavour.close(client)
    checked(error)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", ["silence", "stall"])
async def test_limit_of_the_caller_shows_no_secret(flavour: Flavour, fault: str, name: str) -> None:
    """Seen: the frames of aiohttp, with all headers, stood behind asyncio's own TimeoutError."""
    if isinstance(flavour, Blocking):
        return
    with raw_server(FAULTS[fault]) as server:
        client = flavour.client(
            server.url, headers={"x-api-key": KEY}, auth=("me", PASSWORD), retry=None
        )
        error: BaseException
        try:
            async with asyncio.timeout(0.2):
                error = await failure_of(flavour, client, name)
        except TimeoutError as exc:
            error = exc
        await flavour.close(client)
    checked(error)


@pytest.mark.parametrize("kind", ["refused", "reset"])
async def test_proxy_that_fails_shows_no_secret(
    flavour: Flavour, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: httpcore keeps the headers for a proxy as plain pairs in its frames."""
    with raw_server(reset_at_once) as proxy, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        address = proxy.url if kind == "reset" else f"http://127.0.0.1:{port}"
        monkeypatch.setenv("http_proxy", address.replace("http://", f"http://me:{PASSWORD}@"))
        client = flavour.client("http://agents.test", headers={"x-api-key": KEY}, retry=None)
        error = await failure_of(flavour, client, "create_and_wait_run")
        await flavour.close(client)
    checked(error)


async def test_frames_of_what_the_caller_handles_are_left_alone(flavour: Flavour) -> None:
    """Its own error is the context of ours, and it is the caller's to look into."""
    with raw_server(reset_at_once, breaking(reset)) as server:
        client = flavour.client(server.url, retry=None)
        for name in CALLS[:2]:
            theirs = ValueError("theirs")
            try:
                raise theirs
            except ValueError:
                await failure_of(flavour, client, name)
            assert theirs.__traceback__ is not None
        await flavour.close(client)


async def test_wrapper_of_send_sees_no_pair() -> None:
    """elastic-apm, ddtrace and newrelic show the arguments of `client.send`."""
    seen: list[dict[str, Any]] = []
    send = httpx.AsyncClient.send

    async def wrapped(self: httpx.AsyncClient, *args: Any, **kwargs: Any) -> httpx.Response:
        seen.append(kwargs)
        return await send(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, raw_server(answer(404)) as server:
        patch.setattr(httpx.AsyncClient, "send", wrapped)
        async with AsyncRunsClient(server.url, auth=("me", PASSWORD)) as client:
            await failure_of(Async(), client, "get_run")
            await failure_of(Async(), client, "create_and_wait_run")
        assert server.requests[0].headers["authorization"] == f"Basic {PAIR}"
    assert not [text for text in map(repr, seen) if PASSWORD in text]
    assert seen[0]["auth"] is seen[1]["auth"]
