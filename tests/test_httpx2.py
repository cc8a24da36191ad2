"""httpx2 2.16.2: clients of it that a caller gives, and what is refused of it."""

from __future__ import annotations

import asyncio
import base64
import gc
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import httpcore
import httpx
import httpx2
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from agentproto import (
    AgentProtoError,
    AsyncRunsClient,
    NotFoundError,
    RequestTimeoutError,
    RetryPolicy,
    RunsClient,
    Timeout,
    TransportError,
)
from agentproto._io.httpx2 import from_httpx2
from agentproto._io.transports.couplings import put_pool

from .both import Async, Blocking, Flavour
from .faults import (
    IDS,
    RUN,
    bad_chunk,
    breaking,
    broken_gzip,
    endless_headers,
    garbage,
    good,
    no_answer,
    no_terminator,
    redirect,
    reset,
    reset_at_once,
    short_length,
    silence,
    stall,
    stalled_error,
    too_large,
)
from .raw_server import BOUND, RawServer, Script, events, json_answer, raw_server

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to read certificates takes 20 ms each time
FAST = RetryPolicy(attempts=2, first_delay=0, max_delay=0)


class AsyncOver(Async):
    """The async client over a client of this library."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def client(self, url: str, **arguments: Any) -> AsyncRunsClient:
        theirs = self._library.AsyncClient(**{"verify": PLAIN, **arguments.pop("theirs", {})})
        return AsyncRunsClient(url, http_client=theirs, **arguments)

    async def close(self, closable: Any) -> None:
        """Close the client, and then the caller's."""
        theirs = closable._session.io._make({})
        await closable.aclose()
        assert not theirs.is_closed
        await theirs.aclose()


class BlockingOver(Blocking):
    """The sync client over a client of this library."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def client(self, url: str, **arguments: Any) -> RunsClient:
        theirs = self._library.Client(**{"verify": PLAIN, **arguments.pop("theirs", {})})
        return RunsClient(url, http_client=theirs, **arguments)

    async def close(self, closable: Any) -> None:
        """Close the client, and then the caller's."""
        theirs = closable._session.io._make({})
        await asyncio.to_thread(closable.close)
        assert not theirs.is_closed
        await asyncio.to_thread(theirs.close)


SIDES: dict[str, Callable[[Any], Flavour]] = {"async": AsyncOver, "sync": BlockingOver}


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Callable[[Any], Flavour]:
    return SIDES[request.param]


@pytest.fixture
def flavour(side: Callable[[Any], Flavour]) -> Flavour:
    return side(httpx2)


async def test_calls_go_through_the_client(flavour: Flavour) -> None:
    """openai, anthropic and mcp bring such clients: a program has one of them for all."""
    with raw_server(good()) as server:
        client = flavour.client(server.url, theirs={"headers": {"user-agent": "theirs"}})
        assert (await flavour.call(client.create_and_wait_run)).values == {"n": 4}
        stream = client.create_and_stream_run()
        assert [event.id for event in await flavour.collect(stream)] == IDS
        assert isinstance(stream.response, httpx2.Response)
        await flavour.close(client)
    assert {request.headers["user-agent"] for request in server.requests} == {"theirs"}


async def test_its_own_agent_is_not_sent(flavour: Flavour) -> None:
    """As with httpx: what the library puts there by itself is no wish of the caller's."""
    with raw_server(good()) as server:
        client = flavour.client(server.url)
        await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert server.requests[0].headers["user-agent"].startswith("agentproto/")


FAULTS: dict[str, Script] = {
    "no answer": no_answer,
    "reset at once": reset_at_once,
    "garbage": garbage,
    "silence": silence,
    "endless headers": endless_headers,
    "reset": breaking(reset),
    "no terminator": breaking(no_terminator),
    "bad chunk": breaking(bad_chunk),
    "short length": breaking(short_length),
    "stall": breaking(stall),
    "broken gzip": breaking(broken_gzip),
    "too large": breaking(too_large),
    "redirect": redirect(307, "{server}/runs"),
    "redirect to no URL": redirect(302, "http://[x"),
    "stalled error": stalled_error,
}


async def _error_of(flavour: Flavour, call: str, server: RawServer) -> dict[str, Any]:
    client = flavour.client(
        server.url,
        retry=None,
        rejoin=False,
        timeout=Timeout(idle=0.2, total=5),
        max_event_bytes=1000,
        max_response_bytes=1000,
    )
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "stream": lambda: flavour.collect(client.create_and_stream_run()),
        "wait": lambda: flavour.call(client.create_and_wait_run),
    }
    with pytest.raises(AgentProtoError) as caught:
        await calls[call]()
    await flavour.close(client)
    error = caught.value
    cause = error.__cause__
    return {
        "error": type(error),
        "message": str(error),
        "cause": None if cause is None else type(cause).__name__,
        **{name: value for name, value in vars(error).items() if name != "headers"},
    }


@pytest.mark.parametrize("call", ["stream", "wait"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_failure_is_reported_as_over_httpx(
    side: Callable[[Any], Flavour], fault: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS: each ends in one of our errors, the same over both libraries."""
    monkeypatch.setattr("agentproto._session.ERROR_SECONDS", 0.2)
    with raw_server(FAULTS[fault]) as server:
        over_httpx = await _error_of(side(httpx), call, server)
        over_httpx2 = await _error_of(side(httpx2), call, server)
    assert over_httpx2 == over_httpx


async def test_request_that_was_never_sent_is_sent_again(flavour: Flavour) -> None:
    """FAULTS 1: a refused connection is proof, and httpcore2 stands behind it."""
    with raw_server(good()) as server:
        server.down()
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(TransportError, match="could not connect to http://127") as caught:
            await flavour.call(client.create_and_wait_run)
        server.up()
        assert (await flavour.call(client.create_and_wait_run)).values == {"n": 4}
        await flavour.close(client)
    refused = caught.value.__cause__
    assert (caught.value.was_sent, caught.value.is_final) == (False, False)
    assert isinstance(refused, httpx2.ConnectError)
    assert type(refused.__cause__).__module__ == "httpcore2"


async def test_rejected_certificate_is_final(flavour: Flavour) -> None:
    """FAULTS: a rejected certificate is not retried."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with raw_server(good(), tls=context) as server:
        verify = httpx2.create_ssl_context()
        client = flavour.client(server.url, retry=FAST, theirs={"verify": verify})
        with pytest.raises(TransportError, match="certificate") as caught:
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert (caught.value.was_sent, caught.value.is_final) == (False, True)


async def test_full_pool_says_what_to_do(flavour: Flavour) -> None:
    """DESIGN, Timeouts: a pool wait that times out says what to do."""
    limits = httpx2.Limits(max_connections=1)
    with raw_server(events(RUN[0], hold=True)) as server:
        client = flavour.client(
            server.url, timeout=Timeout(connect=0.1), retry=None, theirs={"limits": limits}
        )
        async with flavour.entered(client.create_and_stream_run()) as stream:
            await flavour.take(stream, 1)
            with pytest.raises(RequestTimeoutError, match="open here: the streams of r1") as caught:
                await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert (caught.value.limit, caught.value.was_sent) == ("pool", False)


async def test_cut_stream_is_joined(flavour: Flavour) -> None:
    """FAULTS: reset in the middle of an event: the run is joined, each event comes once."""
    with raw_server(breaking(reset), good(overlap=2)) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert [event.id for event in await flavour.collect(stream)] == IDS
        await flavour.close(client)
    assert [request.method for request in server.requests] == ["POST", "GET"]


async def test_left_stream_closes_its_connection(flavour: Flavour) -> None:
    """FAULTS: caller leaves: the server sees the close, and the pool has room again."""
    limits = httpx2.Limits(max_connections=1)
    with raw_server(events(*RUN[:2], hold=True), good()) as server:
        client = flavour.client(server.url, theirs={"limits": limits})
        async with flavour.entered(client.create_and_stream_run()) as stream:
            await flavour.take(stream, 1)
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        assert (await flavour.call(client.create_and_wait_run)).values == {"n": 4}
        await flavour.close(client)
    assert server.ends[0] == "client"


@pytest.mark.parametrize("script", [silence, events(hold=True), events(RUN[0], hold=True)])
async def test_cancelled_call_closes_its_connection(script: Script) -> None:
    """FAULTS: task cancelled: CancelledError passes untouched, and the pool has room again."""
    flavour = AsyncOver(httpx2)
    limits = httpx2.Limits(max_connections=1)
    with raw_server(script, good()) as server:
        client = flavour.client(server.url, theirs={"limits": limits})
        task = asyncio.create_task(flavour.collect(client.create_and_stream_run()))
        await asyncio.to_thread(server.asked.wait, BOUND)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        assert (await client.create_and_wait_run()).values == {"n": 4}
        await flavour.close(client)


def test_streams_are_left_and_cancelled_under_trio() -> None:
    """httpx2 2.16.2 ends its generators itself: nothing is left to the collector."""
    flavour = AsyncOver(httpx2)

    async def main() -> list[str | None]:
        client = flavour.client(server.url)
        async with client.create_and_stream_run() as stream:
            await anext(stream)
        with anyio.move_on_after(0.1) as scope:
            await flavour.collect(client.create_and_stream_run())
        assert scope.cancelled_caught
        ids = [event.id for event in await flavour.collect(client.create_and_stream_run())]
        await flavour.close(client)
        return ids

    left = events(*RUN[:2], hold=True)
    with raw_server(left, left, good()) as server:
        assert anyio.run(main, backend="trio") == IDS
        gc.collect()


async def test_closing_ends_a_stream_that_waits(flavour: Flavour) -> None:
    """FAULTS: client closed with streams open: the server sees the close."""
    with raw_server(events(RUN[0], hold=True)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        await flavour.take(stream, 1)
        await flavour.close(client)
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        with pytest.raises(RuntimeError, match="closed"):
            await flavour.take(stream, 1)


async def test_hook_that_raises_for_a_status_gives_the_error_of_the_status(
    flavour: Flavour,
) -> None:
    """The documented idiom, whether the hook has read the body or not."""

    async def raise_for_status(response: httpx2.Response) -> None:
        response.raise_for_status()

    async def read_and_raise(response: httpx2.Response) -> None:
        await response.aread()
        response.raise_for_status()

    hooks: list[Callable[..., Any]] = [raise_for_status, read_and_raise]
    if isinstance(flavour, Blocking):
        hooks = [lambda r: r.raise_for_status(), lambda r: (r.read(), r.raise_for_status())]
    messages: list[bool] = []
    for hook in hooks:
        with raw_server(json_answer('{"message":"gone"}', 404)) as server:
            client = flavour.client(server.url, theirs={"event_hooks": {"response": [hook]}})
            with pytest.raises(NotFoundError) as caught:
                await flavour.call(client.get_run, "r1")
            await flavour.close(client)
        messages.append("gone" in str(caught.value))
    assert messages == [False, True]


async def test_mistake_of_a_hook_comes_out_as_it_is(flavour: Flavour) -> None:
    """Only what tells of the network becomes one of our errors."""

    async def broken(_: object) -> None:
        raise KeyError("hook")

    def broken_too(_: object) -> None:
        raise KeyError("hook")

    hook = broken_too if isinstance(flavour, Blocking) else broken
    with raw_server(good()) as server:
        client = flavour.client(server.url, theirs={"event_hooks": {"response": [hook]}})
        with pytest.raises(KeyError, match="hook"):
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)


def _bearer(request: httpx2.Request) -> httpx2.Request:
    request.headers["authorization"] = "Bearer t"
    return request


BASIC = "Basic " + base64.b64encode(b"user:s3cret").decode()


@pytest.mark.parametrize(
    ("auth", "sent"),
    [
        (("user", "s3cret"), BASIC),
        ((b"user", b"s3cret"), BASIC),
        (httpx2.BasicAuth("user", "s3cret"), BASIC),
        (_bearer, "Bearer t"),
    ],
)
async def test_auth_is_what_httpx2_takes(flavour: Flavour, auth: Any, sent: str) -> None:
    """DESIGN: auth is that of the library whose client sends."""
    with raw_server(good()) as server:
        client = flavour.client(server.url, auth=auth)
        await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert server.requests[0].headers["authorization"] == sent


async def test_credentials_of_the_url_are_sent(flavour: Flavour) -> None:
    """DESIGN: they become `auth`, and stand in no argument of `client.send`."""
    with raw_server(good()) as server:
        client = flavour.client(server.url.replace("//", "//user:s3cret@"))
        await flavour.call(client.create_and_wait_run)
        assert "s3cret" not in repr(client._session.io._send_options())
        await flavour.close(client)
    assert server.requests[0].headers["authorization"] == BASIC


async def test_header_that_cannot_be_written_is_not_shown(flavour: Flavour) -> None:
    """h11 quotes it: nothing of its error is kept."""

    def auth(request: httpx2.Request) -> httpx2.Request:
        request.headers["authorization"] = "s3cret\n"
        return request

    with raw_server(good()) as server:
        client = flavour.client(server.url, auth=auth, retry=None)
        with pytest.raises(TransportError, match="could not be written as HTTP") as caught:
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
        assert await asyncio.to_thread(server.closed.wait, BOUND)
    assert caught.value.__cause__ is None


async def _event_stream() -> AsyncIterator[bytes]:
    for piece in RUN:
        yield piece


def test_client_of_starlette_for_tests_is_taken() -> None:
    """Starlette 1.10: its TestClient is a client of httpx2 where that is installed."""

    async def stream(_: Request) -> StreamingResponse:
        return StreamingResponse(_event_stream(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/runs/stream", stream, methods=["POST"])])
    with TestClient(app) as theirs, RunsClient("http://test", http_client=theirs) as client:
        assert httpx2.Client in type(theirs).__mro__
        assert [event.id for event in client.create_and_stream_run()] == IDS


def test_transport_of_the_caller_may_raise_what_it_likes() -> None:
    """An error goes by its nearest class that httpx has, too: `SSEError` is new in httpx2."""

    class OwnError(httpx2.ConnectTimeout):
        pass

    class ReadError(Exception):
        __module__ = "httpx2_of_another"

    errors = [httpx2.SSEError("no"), OwnError("late"), httpx2.InvalidURL("odd")]
    expected = [httpx.TransportError, httpx.ConnectTimeout, httpx.InvalidURL]
    assert [type(from_httpx2(error)) for error in errors] == expected
    others = [ValueError(), ReadError()]
    assert list(map(from_httpx2, others)) == others


EXPECTED_AUTH = "auth: expected a pair of user and password, an "
NEXT = "; give a client of httpx2 that has this transport as http_client"


class HTTPTransport(httpx2.BaseTransport):
    """A class of a caller's, whose name alone would say that it is right."""


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            AsyncRunsClient,
            {"http_client": httpx.Client()},
            "http_client: expected httpx.AsyncClient, got httpx.Client",
        ),
        (
            AsyncRunsClient,
            {"http_client": httpx2.Client()},
            "http_client: expected httpx.AsyncClient, got httpx2.Client",
        ),
        (
            RunsClient,
            {"http_client": httpx2.AsyncClient()},
            "http_client: expected httpx.Client, got httpx2.AsyncClient",
        ),
        (
            AsyncRunsClient,
            {"transport": httpx2.MockTransport(lambda _: httpx2.Response(200))},
            "transport: expected httpx.AsyncBaseTransport, got httpx2.MockTransport" + NEXT,
        ),
        (
            RunsClient,
            {"transport": HTTPTransport()},
            f"transport: expected httpx.BaseTransport, got {__name__}.HTTPTransport" + NEXT,
        ),
        (
            RunsClient,
            {"auth": httpx2.DigestAuth("user", "secret")},
            EXPECTED_AUTH + "httpx.Auth or a callable, got httpx2.DigestAuth",
        ),
        (
            RunsClient,
            {"auth": httpx.DigestAuth("user", "secret"), "http_client": httpx2.Client()},
            EXPECTED_AUTH + "httpx2.Auth or a callable, got httpx.DigestAuth",
        ),
        (
            RunsClient,
            {"auth": httpx2.DigestAuth("user", "secret"), "http_client": httpx.Client()},
            EXPECTED_AUTH + "httpx.Auth or a callable, got httpx2.DigestAuth",
        ),
        (RunsClient, {"http_client": "x"}, "http_client: expected httpx.Client, got str"),
    ],
)
def test_refusal_names_the_module(kind: type, arguments: dict[str, Any], message: str) -> None:
    """Seen with httpx2: "expected httpx.AsyncClient, got AsyncClient" names no difference."""
    with pytest.raises(TypeError) as caught:
        kind("http://x", **arguments)
    assert str(caught.value) == message


IN_THE_PLACE_OF_HTTPX = {
    "alias_httpx": "httpx2.alias_httpx()",
    "by hand": "sys.modules['httpx'] = httpx2",  # as alias_httpx of 2.9.0: httpcore stays
}


@pytest.mark.parametrize("alias", IN_THE_PLACE_OF_HTTPX.values(), ids=IN_THE_PLACE_OF_HTTPX)
def test_our_connections_stand_over_the_httpcore_of_httpx(alias: str) -> None:
    """An httpcore that httpx2 does not know would let its errors out as they are."""
    script = f"""
import asyncio, sys, httpx2
{alias}
from agentproto import AsyncRunsClient, RunsClient, TransportError

async def main(url):
    async with AsyncRunsClient(url, retry=None, rejoin=False) as client:
        print((await client.create_and_wait_run()).values["n"])
        try:
            await client.create_and_wait_run()
        except TransportError as exc:
            print(type(exc.__cause__).__module__, type(exc.__cause__.__cause__).__module__)
    with RunsClient(url, retry=None, rejoin=False) as client:
        print(client.create_and_wait_run().values["n"])
        try:
            client.create_and_wait_run()
        except TransportError as exc:
            print(type(exc.__cause__).__module__, type(exc.__cause__.__cause__).__module__)

asyncio.run(main(sys.argv[1]))
"""
    with raw_server(good(), garbage, good(), garbage) as server:
        arguments = [sys.executable, "-W", "error", "-c", script, server.url]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=BOUND)
    assert (done.stdout, done.stderr) == ("4\nhttpx2 httpcore2\n" * 2, "")


def test_pool_over_another_httpcore_is_refused() -> None:
    """What stands in the place of httpx might be a third library."""
    transport: Any = httpx2.HTTPTransport(verify=PLAIN)
    with pytest.raises(RuntimeError, match="httpx stands over httpcore2 here"):
        put_pool(transport, httpcore.ConnectionPool())


def typed(client: httpx2.Client, async_client: httpx2.AsyncClient) -> None:
    """Read by mypy, not run: what users' type checkers see."""
    RunsClient(http_client=client, auth=httpx2.BasicAuth("user", "password"))
    AsyncRunsClient(http_client=async_client, auth=_bearer)
    RunsClient(http_client=async_client)  # type: ignore[arg-type]  # it is async
    AsyncRunsClient(http_client=client)  # type: ignore[arg-type]  # it is sync


def test_it_is_not_imported_by_this_package() -> None:
    """It is no dependency: who gives a client of it has it."""
    script = """
import sys
import agentproto
agentproto.RunsClient(auth=("user", "password"))
agentproto.AsyncRunsClient()
print("httpx2" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False"]
