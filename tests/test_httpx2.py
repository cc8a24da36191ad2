"""httpx2 2.16: clients of it that a caller gives, and what is refused of it."""

from __future__ import annotations

from typing import Any

import httpx
import httpx2
import pytest

from agentproto import AsyncRunsClient, RunsClient


EXPECTED_AUTH = "auth: expected a pair of user and password, an "


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
            {"transport": httpx2.MockTransport(lambda _: httpx2.Response(200))},
            "transport: expected httpx.AsyncBaseTransport, got httpx2.MockTransport",
        ),
        (
            RunsClient,
            {"transport": HTTPTransport()},
            f"transport: expected httpx.BaseTransport, got {__name__}.HTTPTransport",
        ),
        (
            RunsClient,
            {"auth": httpx2.DigestAuth("user", "secret")},
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
