"""What proves that a request was never sent, and which server or proxy an error names."""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch
from urllib.request import getproxies_environment

import aiohttp
import httpcore
import httpx
import pyreqwest.exceptions
import pytest
import pytest_httpx
import pytest_socket
import python_socks
import respx
import trio
from httpx_aiohttp import AiohttpTransport
from httpx_socks import AsyncProxyTransport, SyncProxyTransport
from hypothesis import given
from hypothesis import strategies as st
from pyreqwest.compatibility.httpx import HttpxTransport, SyncHttpxTransport

from agentproto import (
    AsyncRunsClient,
    AuthenticationError,
    RequestTimeoutError,
    RetryPolicy,
    Timeout,
    TransportError,
)
from agentproto._io import WireRequest
from agentproto._io.failures import as_ours, is_of_network, translated
from agentproto._io.proxies import mounts_from, mounts_from_environment, proxy_for, variable_of

from .both import Async, Blocking, Flavour
from .faults import full_backlog
from .raw_server import Connection, RawServer, Script, answer, events, json_answer, raw_server

FAST = RetryPolicy(attempts=3, first_delay=0)
RUN = '{"run_id": "r1"}'


@pytest.fixture(params=[Async, Blocking], ids=["async", "sync"])
def side(request: pytest.FixtureRequest) -> Flavour:
    made: Flavour = request.param()
    return made


def is_async(side: Flavour) -> bool:
    return isinstance(side, Async)


def dead_url(scheme: str = "http") -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"


async def reset_after_the_request(connection: Connection) -> None:
    sock = connection.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.reset()


async def end_after_the_request(connection: Connection) -> None:
    connection.writer.close()


async def error_of(side: Flavour, url: str, **arguments: Any) -> Any:
    """What creating a run ends in."""
    client = side.client(url, **{"retry": FAST, **arguments})
    with pytest.raises(TransportError) as caught:
        await side.call(client.create_run)
    await side.close(client)
    return caught.value


# What other transports raise, and what it proves


async def test_reset_that_pyreqwest_calls_a_connect_error_is_not_repeated(side: Flavour) -> None:
    """Seen on pyreqwest 0.15.1: ConnectError for a reset after the POST was read."""
    transport = HttpxTransport() if is_async(side) else SyncHttpxTransport()
    with raw_server(reset_after_the_request) as server:
        error = await error_of(side, server.url, transport=transport)
    assert ([r.method for r in server.requests], error.was_sent) == (["POST"], True)
    assert isinstance(error.__cause__, httpx.ConnectError)
    assert isinstance(error.__cause__.__cause__, pyreqwest.exceptions.ConnectError)


async def test_refusal_that_pyreqwest_reports_proves_nothing(side: Flavour) -> None:
    """FAULTS 1: what cannot be told from a reset after the request is not repeated."""
    transport = HttpxTransport() if is_async(side) else SyncHttpxTransport()
    error = await error_of(side, dead_url(), transport=transport)
    assert error.was_sent


async def test_body_that_pyreqwest_sees_cut_is_asked_for_again(side: Flavour) -> None:
    """Seen on pyreqwest 0.15.1: its ReadError comes out of a body as it is."""
    transport = HttpxTransport() if is_async(side) else SyncHttpxTransport()

    async def cut(connection: Connection) -> None:
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n",
            b" " * 2_000_000,
        )
        connection.writer.close()

    with raw_server(cut, json_answer(RUN)) as server:
        client = side.client(server.url, retry=FAST, transport=transport)
        assert (await side.call(client.get_run, "r1")).run_id == "r1"
        await side.close(client)
    assert len(server.requests) == 2


async def test_cut_that_httpx_aiohttp_calls_a_connect_timeout_is_not_repeated() -> None:
    """Seen on httpx-aiohttp 0.2.0: ConnectTimeout for a connection that broke."""
    for script in (reset_after_the_request, end_after_the_request):
        with raw_server(script) as server:
            error = await error_of(Async(), server.url, transport=AiohttpTransport())
        assert (len(server.requests), error.was_sent) == (1, True)


async def test_refusal_that_httpx_aiohttp_reports_is_repeated() -> None:
    """aiohttp 3.14.5 raises ClientConnectorError before it writes: httpx-aiohttp keeps it."""
    error = await error_of(Async(), dead_url(), transport=AiohttpTransport())
    assert not error.was_sent


async def test_refused_connection_was_never_sent(flavour: Flavour) -> None:
    """FAULTS 1a: refused."""
    assert not (await error_of(flavour, dead_url())).was_sent


async def test_full_pool_is_proof_and_a_slow_answer_is_none(side: Flavour) -> None:
    """FAULTS 1a: pool; not a read timeout."""
    kind: Any = httpx.AsyncClient if is_async(side) else httpx.Client
    own = kind(limits=httpx.Limits(max_connections=1))
    with raw_server(events(hold=True)) as server:
        client = side.client(
            server.url, http_client=own, retry=None, timeout=Timeout(connect=0.2, idle=0.2)
        )
        held = client.create_and_stream_run()
        async with side.entered(held):
            with pytest.raises(RequestTimeoutError) as full:
                await side.call(client.create_run)
        with pytest.raises(RequestTimeoutError) as slow:
            await side.call(client.create_and_wait_run)
        await (own.aclose() if is_async(side) else asyncio.to_thread(own.close))
    assert (full.value.limit, full.value.was_sent) == ("pool", False)
    assert (slow.value.limit, slow.value.was_sent) == ("idle", True)


def test_errors_of_httpcore2_are_proof() -> None:
    """httpx2 2.16.2 in the place of httpx: the causes of its errors are of httpcore2."""
    program = """
import asyncio, httpx2
httpx2.alias_httpx()
from agentproto import AsyncRunsClient, RunsClient, TransportError
async def main():
    async with AsyncRunsClient(URL, retry=None) as client:
        try:
            await client.create_run()
        except TransportError as error:
            print(type(error.__cause__.__cause__).__module__, error.was_sent, error)
asyncio.run(main())
with RunsClient(URL, retry=None) as client:
    try:
        client.create_run()
    except TransportError as error:
        print(type(error.__cause__.__cause__).__module__, error.was_sent, error)
"""
    url = dead_url()
    printed = output_of("-c", program.replace("URL", repr(url)))
    said = f"could not connect to {url}/: Connection refused [Errno {errno.ECONNREFUSED}]"
    line = f"httpcore2 False POST /runs: {said}; is the server running there?\n"
    assert printed == line * 2


def output_of(*arguments: str) -> str:
    command = [sys.executable, "-W", "error::ResourceWarning", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# Mocks


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


async def refuse_later(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectTimeout("refused", request=request)


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
@pytest.mark.parametrize(
    "effect",
    [httpx.ConnectError("one and the same"), httpx.PoolTimeout, refuse],
    ids=["instance", "class", "function"],
)
async def test_refusal_that_respx_plays_is_repeated(side: Flavour, using: str, effect: Any) -> None:
    """respx 0.23.1: it has its own error as the cause, in a circle where a function raised it."""
    with respx.mock(using=using) as router:
        route = router.post("http://agents.test/runs").mock(side_effect=effect)
        error = await error_of(side, "http://agents.test")
    assert (route.call_count, error.was_sent) == (3, False)


async def test_refusal_behind_a_route_that_respx_passes_through_is_repeated(side: Flavour) -> None:
    """respx 0.23.1: what is passed through fails with the errors of httpcore."""
    url = dead_url()
    with respx.mock(assert_all_mocked=False) as router:
        route = router.post(f"{url}/runs").pass_through()
        error = await error_of(side, url)
    # Each attempt meets it twice: in the pool, and in the connection.
    assert (route.call_count, error.was_sent) == (6, False)


async def test_refusal_that_pytest_httpx_plays_is_repeated(
    side: Flavour, httpx_mock: pytest_httpx.HTTPXMock
) -> None:
    """pytest-httpx 0.36.2: it raises one error again and again."""
    httpx_mock.add_exception(httpx.ConnectError("one and the same"), is_reusable=True)
    error = await error_of(side, "http://agents.test")
    assert (len(httpx_mock.get_requests()), error.was_sent) == (3, False)


async def test_refusal_in_a_callback_of_pytest_httpx_is_repeated(
    side: Flavour, httpx_mock: pytest_httpx.HTTPXMock
) -> None:
    """pytest-httpx 0.36.2."""
    httpx_mock.add_callback(refuse, is_reusable=True)
    error = await error_of(side, "http://agents.test")
    assert (len(httpx_mock.get_requests()), error.was_sent) == (3, False)


async def test_refusal_of_a_mock_transport_is_repeated(side: Flavour) -> None:
    """httpx 0.28.1: MockTransport."""
    handlers: list[Any] = [refuse, refuse_later] if is_async(side) else [refuse]
    for handler in handlers:
        error = await error_of(side, "http://x", transport=httpx.MockTransport(handler))
        assert not error.was_sent


class Refusing(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """A transport that says it could not connect; who knows what it did before?"""

    def __init__(self) -> None:
        self.calls = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        return refuse(request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


async def test_word_of_another_transport_is_no_proof(side: Flavour) -> None:
    """FAULTS 1: repeated only where it is proven, also where a mock passes the request on."""
    transport = Refusing()
    error = await error_of(side, "http://x", transport=transport)
    passed_on: Any = transport.handle_async_request if is_async(side) else transport.handle_request
    behind = await error_of(side, "http://x", transport=httpx.MockTransport(passed_on))
    assert (transport.calls, error.was_sent, behind.was_sent) == (2, True, True)


async def test_error_that_a_mock_raises_from_another_is_no_proof(side: Flavour) -> None:
    """FAULTS 1: a handler that posts by other means may have reached a server."""

    def post(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("reset", request=request) from ConnectionResetError()

    error = await error_of(side, "http://x", transport=httpx.MockTransport(post))
    assert error.was_sent


async def test_connection_that_an_application_could_not_make_is_none_of_ours(side: Flavour) -> None:
    """FAULTS 1: the application has read the POST when its own call is refused."""
    elsewhere, calls = dead_url(), []

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        calls.append(await receive())
        async with httpx.AsyncClient() as other:
            await other.post(elsewhere)

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        calls.append(environ["wsgi.input"].read())
        httpx.post(elsewhere)
        return []

    transport: Any = httpx.ASGITransport(asgi) if is_async(side) else httpx.WSGITransport(wsgi)
    error = await error_of(side, "http://x", transport=transport)
    assert (len(calls), error.was_sent) == (1, True)


async def test_connection_that_an_application_wanted_by_other_means_is_none_of_ours() -> None:
    """The same with aiohttp in the application, whose errors are proof elsewhere."""
    elsewhere = dead_url()

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        async with aiohttp.ClientSession() as other, other.post(elsewhere):
            pass

    error = await error_of(Async(), "http://x", transport=httpx.ASGITransport(asgi))
    assert error.was_sent


async def test_client_within_a_transport_proves_nothing(side: Flavour) -> None:
    """A transport that asks two servers: the second is refused."""
    elsewhere = dead_url()

    async def pass_on(request: httpx.Request) -> httpx.Response:
        async with httpx.AsyncClient() as other:
            return await other.post(elsewhere)

    def pass_on_sync(request: httpx.Request) -> httpx.Response:
        return httpx.post(elsewhere)

    handler: Any = pass_on if is_async(side) else pass_on_sync
    error = await error_of(side, "http://x", transport=httpx.MockTransport(handler))
    assert error.was_sent


# Errors that are none of httpx's


async def nonsense(connection: Connection) -> None:
    await connection.send(b"nonsense, and no SOCKS at all")


class SocksServer(RawServer):
    """It plays its scripts without waiting for the head of a request."""

    async def _read_request(self, reader: asyncio.StreamReader) -> Any:
        await reader.read(3)


def socks(side: Flavour, proxy: str) -> Any:
    kind: Any = AsyncProxyTransport if is_async(side) else SyncProxyTransport
    return kind.from_url(proxy)


@pytest.mark.parametrize(
    ("script", "causes"),
    [
        (nonsense, ["ProxyError", "ProxyError"]),
        (end_after_the_request, ["ProxyError", "ProxyError"]),
        (reset_after_the_request, ["BrokenResourceError", "ConnectionResetError"]),
    ],
    ids=["nonsense", "end", "reset"],
)
async def test_failure_of_a_socks_proxy_is_typed_and_not_repeated(
    side: Flavour, script: Script, causes: list[str]
) -> None:
    """Seen on httpx-socks 0.13.1: errors of python-socks and anyio come out as they are."""
    with SocksServer([script]) as proxy:
        url = proxy.url.replace("http", "socks5")
        error = await error_of(side, "http://agents.test", transport=socks(side, url))
    assert type(error.__cause__).__name__ == causes[0 if is_async(side) else 1]
    assert (len(proxy.requests), error.was_sent) == (1, True)


async def test_socks_proxy_that_is_down_is_named_by_its_library(side: Flavour) -> None:
    """Seen on httpx-socks 0.13.1: ProxyConnectionError."""
    url = dead_url("socks5")
    error = await error_of(side, "http://agents.test", transport=socks(side, url))
    assert isinstance(error.__cause__, python_socks.ProxyConnectionError)
    assert url.removeprefix("socks5://") in str(error)


def test_reset_of_a_socks_proxy_is_typed_under_trio() -> None:
    """Seen on httpx-socks 0.13.1: trio.BrokenResourceError."""

    async def main(url: str) -> TransportError:
        transport = AsyncProxyTransport.from_url(url)
        async with AsyncRunsClient("http://agents.test", transport=transport) as client:
            with pytest.raises(TransportError) as caught:
                await client.create_run()
        return caught.value

    with SocksServer([reset_after_the_request]) as proxy:
        error = trio.run(main, proxy.url.replace("http", "socks5"))
    assert isinstance(error.__cause__, trio.BrokenResourceError)


ON_SOCKS = """
import asyncio, httpx, sys
from agentproto import AsyncRunsClient, RunsClient, RetryPolicy, TransportError
PROXY, FAST = sys.argv[1], RetryPolicy(attempts=2, first_delay=0)
def report(error):
    cause = error.__cause__
    print(f"{type(cause).__module__}.{type(cause).__name__}", error.was_sent, error, sep="|")
async def main():
    transport = httpx.AsyncHTTPTransport(proxy=PROXY)
    async with AsyncRunsClient("http://agents.test", transport=transport, retry=FAST) as client:
        try:
            await client.create_run()
        except TransportError as error:
            report(error)
asyncio.run(main())
transport = httpx.HTTPTransport(proxy=PROXY)
with RunsClient("http://agents.test", transport=transport, retry=FAST) as client:
    try:
        client.create_run()
    except TransportError as error:
        report(error)
"""


def errors_on_socks(proxy: SocksServer) -> list[list[str]]:
    """Of both clients, in a process of their own: httpcore 1.0.9 leaves the socket open."""
    url = proxy.url.replace("http", "socks5")
    printed = output_of("-W", "ignore::ResourceWarning", "-c", ON_SOCKS, url)
    return [line.split("|") for line in printed.splitlines()]


def test_nonsense_of_a_socks_proxy_of_httpx_is_typed() -> None:
    """Seen on httpx 0.28.1 with socksio 1.0.0, whose ProtocolError comes out as it is."""
    with SocksServer([nonsense]) as proxy:
        errors = errors_on_socks(proxy)
    said = "POST /runs: the connection broke: Malformed reply"
    assert errors == [["socksio.exceptions.ProtocolError", "True", said]] * 2
    assert len(proxy.requests) == 2


def test_socks_proxy_of_httpx_that_refuses_is_quoted() -> None:
    """httpcore 1.0.9: ProxyError without a status; whether it would refuse again is not known."""

    async def no_method(connection: Connection) -> None:
        await connection.send(b"\x05\xff")

    with SocksServer([no_method]) as proxy:
        errors = errors_on_socks(proxy)
    assert [error[:2] for error in errors] == [["httpx.ProxyError", "False"]] * 2
    said = "POST /runs: the proxy refused the connection to http://agents.test: Requested NO"
    assert all(error[2].startswith(said) for error in errors)
    assert len(proxy.requests) == 4


class OnHttpcore(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport that leaves the errors of httpcore as they are."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with httpcore.ConnectionPool() as pool:
            pool.request(request.method, str(request.url))
        raise AssertionError("somebody listens there")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async with httpcore.AsyncConnectionPool() as pool:
            await pool.request(request.method, str(request.url))
        raise AssertionError("somebody listens there")


async def test_errors_of_httpcore_itself_are_understood(side: Flavour) -> None:
    """A caller's transport over httpcore, without httpx's translation."""
    url = dead_url()
    error = await error_of(side, url, transport=OnHttpcore())
    assert isinstance(error.__cause__, httpcore.ConnectError)
    assert not error.was_sent
    assert f"could not connect to {url}/: Connection refused" in str(error)


@contextmanager
def sockets_disabled() -> Iterator[None]:
    pytest_socket.disable_socket()
    try:
        yield
    finally:
        pytest_socket.enable_socket()


@pytest.mark.filterwarnings("ignore:A test tried to use:UserWarning")
async def test_forbidden_socket_comes_out_as_it_is(side: Flavour) -> None:
    """pytest-socket 0.8.1: a test without a network has made a mistake, not met a failure."""
    client = side.client("http://127.0.0.1:1", retry=FAST)
    with sockets_disabled(), pytest.raises(Exception, match=r"TaskGroup|tried to use") as caught:
        await side.call(client.create_run)
    await side.close(client)
    error = caught.value
    if isinstance(error, ExceptionGroup):  # anyio 4.16 connects in a task group
        (error,) = error.exceptions
    assert type(error) is pytest_socket.SocketBlockedError


class OurOwnError(Exception):
    """Of a caller's transport."""


@pytest.mark.parametrize(
    "error",
    [
        OurOwnError("mine"),
        RuntimeError("misuse"),
        TypeError("a mistake"),
        pyreqwest.exceptions.BuilderError("a bad URL", {"causes": []}),
        httpcore.ConnectionNotAvailable("an inner affair"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_mistake_comes_out_as_it_is(side: Flavour, error: Exception) -> None:
    """FAULTS: an error is typed where it reports a failure, not where it reports a mistake."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    client = side.client("http://x", retry=FAST, transport=httpx.MockTransport(fail))
    with pytest.raises(type(error)) as caught:
        await side.call(client.create_run)
    assert caught.value is error
    await side.close(client)


# What the system says


async def test_refusal_keeps_what_the_system_says(flavour: Flavour) -> None:
    """Seen: anyio and asyncio hide it behind "All connection attempts failed"."""
    url = dead_url()
    error = await error_of(flavour, url, retry=None)
    assert str(error) == (
        f"POST /runs: could not connect to {url}/: Connection refused "
        f"[Errno {errno.ECONNREFUSED}]; is the server running there?"
    )


async def test_unknown_name_keeps_what_the_system_says(flavour: Flavour) -> None:
    """FAULTS: DNS."""
    error = await error_of(flavour, "http://no-such-host.invalid:8000", retry=None)
    said = r"could not connect to http://no-such-host\.invalid:8000/: [A-Z].* \[Errno -?\d+\]; is"
    assert re.search(said, str(error))
    assert not error.was_sent


def wire_request(url: str = "http://agents.test/runs", **limits: float | None) -> WireRequest:
    return WireRequest("POST", url, {}, None, "POST /runs", Timeout(**limits), None)


def raised(error: BaseException, cause: BaseException | None) -> Any:
    error.__cause__ = cause
    return error


REFUSED = ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)")
NO_ROUTE = OSError(113, "No route to host")


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (ExceptionGroup("", [REFUSED, REFUSED]), "Connection refused [Errno 111]"),
        (
            ExceptionGroup("", [NO_ROUTE, ExceptionGroup("", [REFUSED, OSError("odd")])]),
            "No route to host [Errno 113]; Connection refused [Errno 111]",
        ),
        (OSError("Multiple exceptions"), "all failed"),
        (ssl.SSLError(1, "[SSL] bad"), "all failed"),
        (None, "all failed"),
    ],
    ids=["both refused", "nested", "no number", "TLS", "none"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the numbers are those of Linux")
def test_each_address_of_a_host_is_heard_once(cause: BaseException | None, said: str) -> None:
    """anyio 4.16: a host with several addresses fails with a group."""
    exc = raised(httpx.ConnectError("all failed"), raised(OSError("all failed"), cause))
    assert f"could not connect to http://agents.test/: {said}; is" in str(
        translated(exc, wire_request())
    )


def test_limit_of_the_system_is_no_limit_of_ours() -> None:
    """ETIMEDOUT is a TimeoutError of Python, which httpcore takes for a limit that ran out."""
    exc = raised(httpx.ConnectTimeout(""), TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    error = translated(exc, wire_request(connect=None))
    assert type(error) is TransportError
    assert f"Connection timed out [Errno {errno.ETIMEDOUT}]" in str(error)


def test_failure_without_a_word_is_named_by_its_class() -> None:
    """Seen on httpx 0.28.1: ReadError has no text."""
    assert str(translated(httpx.ReadError(""), wire_request())) == (
        "POST /runs: the connection broke: ReadError"
    )


def test_failure_while_a_body_is_read_is_of_a_request_that_was_sent() -> None:
    """FAULTS 1: there was an answer."""
    exc = raised(httpx.ConnectError("reset"), httpcore.ConnectError("reset"))
    error = as_ours(exc, wire_request())
    assert isinstance(error, TransportError)
    assert error.was_sent


def test_network_is_what_the_class_says() -> None:
    """The classes that come out of transports of httpx, and those of Python."""
    assert is_of_network(ConnectionResetError())
    assert is_of_network(httpx.ReadError(""))
    assert not is_of_network(KeyError())


# Proxies


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One without proxies."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return monkeypatch


SECRET = "s3cret"


def with_user(url: str) -> str:
    return url.replace("://", f"://user:{SECRET}@")


@pytest.mark.parametrize(
    ("status", "said", "attempts"),
    [
        (403, "403 Forbidden; allow this host and port there, or name the host in NO_PROXY", 1),
        (407, "407 Proxy Authentication Required; put user and password into the URL", 1),
        (429, "429 Too Many Requests", 3),
        (503, "503 Service Unavailable", 3),
        (599, "599", 3),
    ],
)
async def test_tunnel_that_a_proxy_refused_was_never_sent(
    side: Flavour, environment: pytest.MonkeyPatch, status: int, said: str, attempts: int
) -> None:
    """FAULTS 1a: a CONNECT that a forward proxy refused."""
    with raw_server(answer(status)) as proxy:
        environment.setenv("HTTPS_PROXY", with_user(proxy.url))
        error = await error_of(side, "https://agents.test:8443")
    assert [r.target for r in proxy.requests] == ["agents.test:8443"] * attempts
    assert error.was_sent is False
    assert str(error).startswith(
        f"POST /runs: the proxy {proxy.url} (HTTPS_PROXY) refused the connection to "
        f"https://agents.test:8443: {said}"
    )
    assert SECRET not in str(error)


async def test_proxy_of_the_callers_own_client_that_refuses_is_called_a_proxy(
    side: Flavour,
) -> None:
    """FAULTS 1a, where only the caller knows which proxy it is."""
    kind: Any = httpx.AsyncClient if is_async(side) else httpx.Client
    with raw_server(answer(503)) as proxy:
        own = kind(proxy=with_user(proxy.url))
        error = await error_of(side, "https://agents.test", http_client=own)
        await (own.aclose() if is_async(side) else asyncio.to_thread(own.close))
    assert (len(proxy.requests), error.was_sent) == (3, False)
    assert str(error) == (
        "POST /runs: the proxy refused the connection to https://agents.test: "
        "503 Service Unavailable"
    )


async def test_tunnel_that_a_proxy_refused_to_aiohttp_was_never_sent() -> None:
    """aiohttp 3.14.5: ClientHttpProxyError, which httpx-aiohttp 0.2.0 makes a ProxyError."""
    with raw_server(answer(403)) as proxy:
        headers = {"Proxy-Authorization": SECRET}
        transport = AiohttpTransport(proxy=httpx.Proxy(proxy.url, headers=headers))
        error = await error_of(Async(), "https://agents.test", transport=transport)
    assert [r.headers["proxy-authorization"] for r in proxy.requests] == [SECRET]
    assert (error.was_sent, error.is_final) == (False, True)
    assert error.__cause__ is None  # its repr shows the headers
    assert "the proxy refused the connection to https://agents.test: 403 Forbidden" in str(error)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
async def test_proxy_that_is_down_is_named_instead_of_the_server(
    side: Flavour, environment: pytest.MonkeyPatch, variable: str
) -> None:
    """Seen: "could not connect to https://agents.example" while the proxy was down."""
    scheme = "https" if variable == "https_proxy" else "http"
    proxy = dead_url()
    environment.setenv(variable, with_user(proxy))
    error = await error_of(side, f"{scheme}://agents.test:8000", retry=None)
    assert str(error) == (
        f"POST /runs: could not connect to the proxy {proxy} ({variable}): Connection refused "
        f"[Errno {errno.ECONNREFUSED}]; is the proxy running there?"
    )
    assert not error.was_sent


async def test_proxy_that_does_not_accept_is_named(
    side: Flavour, environment: pytest.MonkeyPatch
) -> None:
    """FAULTS: connect timeout."""
    with ExitStack() as stack:
        port = full_backlog(stack)
        environment.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        error = await error_of(
            side, "https://agents.test", retry=None, timeout=Timeout(connect=0.2)
        )
    assert str(error) == (
        f"POST /runs: no connection to the proxy http://127.0.0.1:{port} (HTTPS_PROXY) within "
        "0.2 s (timeout.connect); is the proxy running there?"
    )
    assert (error.limit, error.was_sent) == ("connect", False)


async def test_server_behind_a_proxy_is_named_where_tls_fails(
    side: Flavour, environment: pytest.MonkeyPatch
) -> None:
    """The proxy has done its part: what answers in the tunnel speaks no TLS."""

    async def tunnel(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await connection.reader.read(1)
        await connection.send(b"this is no TLS at all")
        await connection.client_closes()

    with raw_server(tunnel) as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url)
        error = await error_of(side, "https://agents.test", retry=None)
    assert str(error).startswith(
        "POST /runs: could not connect to https://agents.test/ through the proxy "
        f"{proxy.url} (HTTPS_PROXY): [SSL"
    )
    assert not error.was_sent


async def test_host_that_needs_no_proxy_is_named_itself(
    side: Flavour, environment: pytest.MonkeyPatch
) -> None:
    """NO_PROXY."""
    url = dead_url()
    environment.setenv("HTTP_PROXY", dead_url())
    environment.setenv("NO_PROXY", "127.0.0.1")
    assert f"could not connect to {url}/: " in str(await error_of(side, url, retry=None))


async def test_transport_of_the_caller_asks_no_proxy_of_the_environment(
    side: Flavour, environment: pytest.MonkeyPatch
) -> None:
    """httpx takes them only for transports of its own."""
    environment.setenv("HTTP_PROXY", dead_url())
    url = dead_url()
    kind: Any = httpx.AsyncHTTPTransport if is_async(side) else httpx.HTTPTransport
    error = await error_of(side, url, retry=None, transport=kind())
    assert f"could not connect to {url}/: " in str(error)


HOSTS = ["agents.test", "www.agents.test", "localhost", "127.0.0.1", "10.0.0.1", "[::1]", "test"]
ADDRESSES = st.builds(
    lambda scheme, host, port: f"{scheme}://{host}{port}/runs",
    st.sampled_from(["http", "https"]),
    st.sampled_from(HOSTS),
    st.sampled_from(["", ":80", ":443", ":8000"]),
)
EXCLUDED = st.lists(
    st.one_of(
        st.sampled_from(["*", "", " ", "::1", "10.0.0.0/8", "LOCALHOST", "all://*", "https://"]),
        st.builds(
            lambda scheme, dot, host, port: scheme + dot + host + port,
            st.sampled_from(["", "http://", "all://", "all://*"]),
            st.sampled_from(["", "."]),
            st.sampled_from([host for host in HOSTS if host != "[::1]"]),
            st.sampled_from(["", ":443", ":8000"]),
        ),
    ),
    max_size=4,
).map(",".join)
PROXIES = st.sampled_from(["", "proxy.test:3128", f"http://user:{SECRET}@proxy.test:3128"])


@given(url=ADDRESSES, http=PROXIES, https=PROXIES, every=PROXIES, excluded=EXCLUDED)
def test_proxy_is_the_one_that_httpx_takes(
    url: str, http: str, https: str, every: str, excluded: str
) -> None:
    """httpx 0.28.1: the proxies of the environment, by the transport that its client takes."""
    variables = {
        "HTTP_PROXY": http,
        "HTTPS_PROXY": https,
        "ALL_PROXY": every,
        "NO_PROXY": excluded,
    }
    with patch.dict(os.environ, variables, clear=True):
        mounts = mounts_from_environment()
        with patched_transport() as made:
            client = httpx.Client()
        found = proxy_for(httpx.URL(url), mounts)
    taken: Any = client._transport_for_url(httpx.URL(url))
    expected = made[taken]
    assert (None if found is None else found[0]) == expected
    theirs = {p.pattern: made.get(t) for p, t in client._mounts.items()}
    assert {pattern: proxy and httpx.URL(proxy) for pattern, proxy in mounts.items()} == theirs
    if found is not None:
        assert variables[found[1]] in {str(expected), str(expected).removeprefix("http://")}


@contextmanager
def patched_transport() -> Iterator[dict[Any, httpx.URL | None]]:
    """Transports of httpx without the certificates, which take their time; and their proxies."""
    made: dict[Any, httpx.URL | None] = {}

    class Noted(httpx.HTTPTransport):
        def __init__(self, *, proxy: httpx.Proxy | None = None, **options: Any) -> None:
            made[self] = None if proxy is None else httpx.URL(proxy.url, userinfo=_userinfo(proxy))

    with patch("httpx._client.HTTPTransport", Noted):
        yield made


def _userinfo(proxy: httpx.Proxy) -> bytes:
    return b"" if proxy.raw_auth is None else b":".join(proxy.raw_auth)


def test_hosts_without_a_proxy_become_patterns() -> None:
    """httpx 0.28.1: names match their subdomains, addresses and localhost only themselves."""
    excluded = "agents.test, .local, localhost, 10.0.0.0/8, ::1, http://one.test:8000,"
    assert mounts_from({"all": "proxy.test:3128", "no": excluded}) == {
        "all://": "http://proxy.test:3128",
        "all://*agents.test": None,
        "all://*.local": None,
        "all://localhost": None,
        "all://10.0.0.0/8": None,
        "all://[::1]": None,
        "http://one.test:8000": None,
    }
    assert mounts_from({"all": "proxy.test:3128", "no": "agents.test,*"}) == {}


def test_variable_is_the_one_that_python_reads() -> None:
    """urllib: lower case wins; macOS and Windows have settings beside the environment."""
    both = {"HTTP_PROXY": "http://upper", "http_proxy": "http://lower"}
    assert variable_of("http", both) == "http_proxy"
    assert variable_of("http", {"Http_Proxy": "x", "HTTP_PROXY": "y"}) == "HTTP_PROXY"
    assert variable_of("http", {"Http_Proxy": "x"}) == "Http_Proxy"
    assert variable_of("http", {"http_proxy": ""}) == "system settings"
    with patch.dict(os.environ, both, clear=True):
        assert mounts_from(getproxies_environment()) == {"http://": "http://lower"}


# Requests that are none of ours


class TokenFirst(httpx.Auth):
    """Asks for a token by a request that httpx sends."""

    def __init__(self, url: str) -> None:
        self.url = url

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token = yield httpx.Request("POST", self.url)
        token.raise_for_status()
        yield request


class TokenByAClient(TokenFirst):
    """Asks for a token with a client of its own."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        httpx.post(self.url, timeout=0.2)
        yield request


@pytest.mark.parametrize("kind", [TokenFirst, TokenByAClient])
async def test_token_endpoint_that_is_down_is_named(
    flavour: Flavour, kind: type[TokenFirst]
) -> None:
    """Seen: "could not connect to" the server of the runs, which was up."""
    elsewhere = dead_url()
    with raw_server(json_answer(RUN)) as server:
        auth = kind(f"{with_user(elsewhere)}/token/{SECRET}?key={SECRET}")
        error = await error_of(flavour, server.url, auth=auth)
    assert (server.requests, error.was_sent) == ([], True)
    assert str(error) == (
        f"POST {elsewhere} (by auth= or a hook, for POST /runs): could not connect to "
        f"{elsewhere}/: Connection refused [Errno {errno.ECONNREFUSED}]; "
        "is the server running there?"
    )


async def test_token_endpoint_that_does_not_answer_is_named(side: Flavour) -> None:
    """Its limit is its own."""

    async def silence(connection: Connection) -> None:
        await connection.client_closes()

    with raw_server(silence) as elsewhere, raw_server(json_answer(RUN)) as server:
        error = await error_of(side, server.url, auth=TokenByAClient(elsewhere.url))
    assert (server.requests, error.was_sent, error.limit) == ([], True, "idle")
    assert str(error).startswith(
        f"POST {elsewhere.url} (by auth= or a hook, for POST /runs): not a byte within 0.2 s"
    )


async def test_token_endpoint_that_fails_is_no_answer_to_the_call(side: Flavour) -> None:
    """FAULTS 1: a 429 for another request says nothing of ours: it is not repeated."""
    for status in (429, 503):
        with raw_server(answer(status)) as elsewhere, raw_server(json_answer(RUN)) as server:
            error = await error_of(side, server.url, auth=TokenFirst(elsewhere.url))
        assert (len(elsewhere.requests), server.requests, error.was_sent) == (1, [], True)
        assert str(error).startswith(
            f"POST {elsewhere.url} (by auth= or a hook, for POST /runs) answered {status} "
        )


async def test_token_endpoint_that_refuses_the_credentials_is_named(side: Flavour) -> None:
    """401: AuthenticationError."""
    with raw_server(answer(401)) as elsewhere, raw_server(json_answer(RUN)) as server:
        client = side.client(server.url, auth=TokenFirst(elsewhere.url))
        named = re.escape(f"POST {elsewhere.url} (by auth= or a hook, for POST /runs) answered 401")
        with pytest.raises(AuthenticationError, match=named):
            await side.call(client.create_run)
        await side.close(client)


class TokenByAiohttp(httpx.Auth):
    """Asks for a token by other means than httpx."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        async with aiohttp.ClientSession() as session, session.post(self.url):
            pass
        yield request


async def test_failure_of_auth_by_other_means_says_nothing_of_ours() -> None:
    """FAULTS 1: aiohttp's refusal is proof where a transport meets it, not where auth does."""
    elsewhere = dead_url()
    with raw_server(json_answer(RUN)) as server:
        error = await error_of(Async(), server.url, auth=TokenByAiohttp(elsewhere))
    assert (server.requests, error.was_sent) == ([], True)
    assert str(error) == (
        f"POST /runs: auth= or a hook failed: Connection refused [Errno {errno.ECONNREFUSED}]"
    )


class WithoutARequest(httpx.Auth):
    """Fails with an error of httpx that names no request."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        yield from ()
        raise httpx.ConnectError("no token")


async def test_error_that_names_no_request_is_no_proof(side: Flavour) -> None:
    """FAULTS 1: no transport and no mock has raised it."""
    with raw_server(json_answer(RUN)) as server:
        error = await error_of(side, server.url, auth=WithoutARequest())
    assert (server.requests, error.was_sent) == ([], True)


class TokenInTheQuery(httpx.Auth):
    """Sends another object, as authlib 1.9.10 does."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        yield httpx.Request(
            request.method,
            request.url.copy_merge_params({"access_token": SECRET}),
            headers=request.headers,
            content=request.content,
            extensions=request.extensions,
        )


async def test_request_that_auth_has_made_anew_is_ours(flavour: Flavour) -> None:
    """FAULTS 1a: its refused connection is that of the call."""
    url = dead_url()
    error = await error_of(flavour, url, auth=TokenInTheQuery())
    assert not error.was_sent
    assert str(error).startswith(f"POST /runs: could not connect to {url}/: ")


# authlib


@pytest.fixture(scope="module")
def authlib() -> Any:
    """Its clients of httpx: it takes httpx2 where that is installed."""
    # AuthlibDeprecationWarning asks for httpx2.
    with patch.dict(sys.modules, {"httpx2": None}), warnings.catch_warnings(record=True):
        return importlib.import_module("authlib.integrations.httpx_client")


class AuthlibToken(httpx.Auth):
    """The token of an authlib client, refreshed before it expires."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        self.client.ensure_active_token(self.client.token)
        request.headers["Authorization"] = f"Bearer {self.client.token['access_token']}"
        yield request

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        await self.client.ensure_active_token(self.client.token)
        request.headers["Authorization"] = f"Bearer {self.client.token['access_token']}"
        yield request


async def test_authlib_gives_its_token_through_auth(side: Flavour, authlib: Any) -> None:
    """authlib 1.9.10: it signs in `request` and `stream`, which `send` passes by."""
    fresh = '{"access_token": "new", "token_type": "Bearer", "expires_in": 3600}'
    with raw_server(json_answer(fresh)) as issuer, raw_server(json_answer(RUN)) as server:
        kind = authlib.AsyncOAuth2Client if is_async(side) else authlib.OAuth2Client
        oauth = kind(
            "id",
            "secret",
            token_endpoint=f"{issuer.url}/token",
            grant_type="client_credentials",
            token={"access_token": "old", "token_type": "Bearer", "expires_at": 1},
        )
        client = side.client(server.url, auth=AuthlibToken(oauth))
        for _ in range(2):
            await side.call(client.create_run)
        await side.close(client)
        await (oauth.aclose() if is_async(side) else asyncio.to_thread(oauth.close))
    assert [r.target for r in issuer.requests] == ["/token"]
    assert [r.headers["authorization"] for r in server.requests] == ["Bearer new"] * 2


async def test_token_auth_of_authlib_signs_without_refreshing(side: Flavour, authlib: Any) -> None:
    """authlib 1.9.10: `token_auth` is an httpx.Auth; it sends an expired token all the same."""
    with raw_server(json_answer(RUN)) as server:
        kind = authlib.AsyncOAuth2Client if is_async(side) else authlib.OAuth2Client
        oauth = kind(token={"access_token": "old", "token_type": "Bearer", "expires_at": 1})
        client = side.client(server.url, http_client=oauth, auth=oauth.token_auth)
        await side.call(client.create_run)
        await (oauth.aclose() if is_async(side) else asyncio.to_thread(oauth.close))
    assert [r.headers["authorization"] for r in server.requests] == ["Bearer old"]


# The server for tests

NESTED = """
import asyncio, sys, nest_asyncio
IS_RUNNING = sys.argv[1] == "in a running loop"
if not IS_RUNNING:
    nest_asyncio.apply()
import uvicorn.server
from agentproto import AsyncRunsClient
from agentproto.testing import RunsServer, Token
uvicorn.server.asyncio_run = asyncio.run  # as it does itself from Python 3.12 on
async def spell(run):
    yield Token("a")
    yield Token("b")
async def text_of_a_run(url):
    async with AsyncRunsClient(url) as client:
        stream = client.create_and_stream_run(stream_mode="messages")
        return "".join([piece async for piece in stream.text()])
async def main():
    if IS_RUNNING:
        nest_asyncio.apply()
    with RunsServer({"spell": spell}) as server:
        print(await text_of_a_run(server.url))
    async with RunsServer({"spell": spell}) as server:
        print(await text_of_a_run(server.url))
asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before a loop runs", "in a running loop"])
def test_server_for_tests_runs_after_nest_asyncio(when: str) -> None:
    """Seen on nest_asyncio 1.6.0: its asyncio.run has no loop factory and keeps its loop open."""
    assert output_of("-c", NESTED, when) == "ab\nab\n"
