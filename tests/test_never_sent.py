"""What proves that a request was never sent, and which server or proxy an error names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from urllib.request import getproxies_environment

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentproto._io.proxies import mounts_from, mounts_from_environment, proxy_for, variable_of

SECRET = "s3cret"


def output_of(*arguments: str) -> str:
    command = [sys.executable, "-W", "error::ResourceWarning", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# Proxies

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
