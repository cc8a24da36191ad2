"""Status and body become one of our errors, whichever server wrote them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentproto
from agentproto import (
    AgentProtoError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ErrorResponse,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RequestTimeoutError,
    Run,
    RunFailedError,
    RunRef,
    RunWaitResponse,
    ServerError,
    StatusError,
    StreamInterruptedError,
    TransportError,
    UnprocessableRequestError,
)
from agentproto._errors import error_from_json, error_from_status, run_failed

WIRE = Path(__file__).parent / "wire"
REFUSALS = [row for row in json.loads((WIRE / "bodies.json").read_text()) if row[2] >= 400]


def refused(
    status: int,
    body: bytes = b"",
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> StatusError:
    all_headers = {"content-type": content_type, **(headers or {})}
    return error_from_status(status, all_headers, body, asked="POST /runs/wait")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, UnprocessableRequestError),
        (429, RateLimitError),
        (500, ServerError),
        (503, ServerError),
        (599, ServerError),
        (405, StatusError),
        (418, StatusError),
        (499, StatusError),
    ],
)
@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"<html>", b"[" * 9999])
def test_status_alone_decides_the_class(status: int, kind: type[StatusError], body: bytes) -> None:
    """FAULTS: error body of any shape, typed by status."""
    error = refused(status, body)
    assert type(error) is kind
    assert error.status_code == status
    assert str(error).startswith(f"POST /runs/wait answered {status}")


SHAPES: list[tuple[Any, str | None, str | None]] = [
    ({"code": "c", "message": "m"}, "c", "m"),
    ({"detail": "m"}, None, "m"),
    (
        {"detail": [{"type": "t", "loc": ["body", "x", 0], "msg": "bad"}, "also", {"msg": "too"}]},
        None,
        "body.x.0: bad; also; too",
    ),
    ({"detail": [{"loc": ["x"]}, 5]}, None, None),
    ({"detail": []}, None, None),
    ({"detail": {"code": "c", "message": "m"}}, "c", "m"),
    ({"error": "conflict", "message": "m", "details": {}}, "conflict", "m"),
    ({"error": {"code": "c", "message": "m"}}, "c", "m"),
    (
        {
            "success": False,
            "error": {"issues": [{"path": ["a"], "message": "bad"}], "name": "ZodError"},
        },
        "ZodError",
        "a: bad",
    ),
    ("just text", None, "just text"),
    ({"code": 5, "message": ""}, None, None),
    ("", None, None),
    (None, None, None),
    ([1], None, None),
    (5, None, None),
    ({}, None, None),
]


@pytest.mark.parametrize(("data", "code", "message"), SHAPES)
def test_every_shape_in_use_is_read(data: Any, code: str | None, message: str | None) -> None:
    """Seen on langgraph dev, langgraphjs dev, aegra, langrove; FastAPI; the schema's own."""
    error = error_from_json(data)
    if code is None and message is None:
        assert error is None
    else:
        assert error is not None
        assert (error.code, error.message) == (code, message)


def test_metadata_of_an_error_is_kept() -> None:
    """Spec: schema ErrorResponse."""
    error = error_from_json({"code": "c", "message": "m", "metadata": {"a": 1}})
    assert error == ErrorResponse(code="c", message="m", metadata={"a": 1})
    assert str(error) == "c: m"


@pytest.mark.parametrize(
    ("server", "case", "status", "content_type"), REFUSALS, ids=lambda v: str(v)[:40]
)
def test_refusal_of_a_real_server_says_what_is_wrong(
    server: str, case: str, status: int, content_type: str
) -> None:
    """Seen on langgraph dev and langgraphjs dev: every refusal that was recorded."""
    body = (WIRE / server / f"{case}.body").read_bytes()
    error = refused(status, body, content_type)
    assert error.error is not None
    assert error.error.message
    assert error.error.message in str(error)
    assert error.body == body.decode()[:2000]


def test_html_is_not_read_as_a_message() -> None:
    """FAULTS: error body HTML."""
    for content_type in ("text/html", "text/plain"):
        error = refused(502, b"<html><body>Bad gateway</body></html>", content_type)
        assert error.error is None
        assert str(error) == "POST /runs/wait answered 502 Bad Gateway"
        assert error.body.startswith("<html>")


def test_text_is_cut_at_2_kb() -> None:
    """FAULTS: text cut at 2 kB."""
    error = refused(500, b"x" * 60_000, "text/plain")
    assert len(error.body) == 2000
    assert len(str(error)) < 2200
    issues = json.dumps({"detail": ["y" * 900] * 5}).encode()
    assert len(str(refused(422, issues))) < 2200


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (401, "auth="),
        (404, "base_url is the root of the API"),
        (405, "the server has this operation"),
        (409, "get the run"),
        (429, "wait before"),
    ],
)
def test_message_says_the_next_step(status: int, step: str) -> None:
    """An error names what was expected, what came, and a next step."""
    assert step in str(refused(status, b'{"detail":"no"}'))
    assert ": no; " in str(refused(status, b'{"detail":"no"}'))


@pytest.mark.parametrize(
    "name", ["x-request-id", "request-id", "x-correlation-id", "x-amzn-requestid", "x-trace-id"]
)
def test_request_id_comes_from_the_usual_headers(name: str) -> None:
    """The server's operator asks for it."""
    assert refused(500, headers={name: "r-1"}).request_id == "r-1"
    assert refused(500).request_id is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", None),
        ("nan", None),
        ("inf", None),
        ("-1", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_nothing(value: str, seconds: float | None) -> None:
    """RFC 9110, 10.2.3; FAULTS 3: what cannot be read is as if absent."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    error = refused(429, headers={"retry-after": value, "date": date})
    assert isinstance(error, RateLimitError)
    assert error.retry_after == seconds


def test_retry_after_as_a_date_needs_the_date_of_the_answer() -> None:
    """RFC 9110, 10.2.3."""
    error = refused(429, headers={"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"})
    assert isinstance(error, RateLimitError)
    assert error.retry_after is None


def examples() -> list[AgentProtoError]:
    run = RunWaitResponse(run=Run(run_id="r"), values={"a": 1})
    return [
        TransportError("m"),
        RequestTimeoutError("m", limit="idle", seconds=5.0),
        refused(429, b'{"code":"c","message":"m"}', headers={"retry-after": "5"}),
        ProtocolError("m", raw=b"x"),
        StreamInterruptedError("m", delivered=3),
        run_failed(RunRef("r", "t"), "timeout", ErrorResponse(message="m"), response=run),
    ]


@pytest.mark.parametrize("error", examples(), ids=lambda e: type(e).__name__)
def test_errors_pickle(error: AgentProtoError) -> None:
    """All pickle: pools of processes hand them back."""
    error.about(run=RunRef("r1", "t1"), status_code=200, last_event_id="7")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.__dict__ == error.__dict__
    assert (back.run_id, back.last_event_id) == (error.run_id, "7")


def test_failed_run_reads_well() -> None:
    """An error names what came."""
    error = run_failed(RunRef("r"), "error", ErrorResponse(code="ValueError", message="boom"))
    assert str(error) == "run r ended with status error: ValueError: boom"
    assert isinstance(error, RunFailedError)
    assert (error.status, error.run_id) == ("error", "r")
    assert str(run_failed(None, "timeout", None)) == "the run ended with status timeout"


def test_one_tree() -> None:
    """DESIGN, Errors: one tree, and misuse is not in it."""
    exported = [getattr(agentproto, name) for name in agentproto.__all__]
    errors = [e for e in exported if isinstance(e, type) and issubclass(e, Exception)]
    assert len(errors) == 16
    assert all(issubclass(error, AgentProtoError) for error in errors)


@given(st.binary(max_size=200), st.integers(400, 599), st.sampled_from(["text/html", "", "a/json"]))
def test_any_body_gives_a_typed_error(body: bytes, status: int, content_type: str) -> None:
    """Property: whatever the bytes are, only our error comes out."""
    assert refused(status, body, content_type).status_code == status


json_bodies = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["detail", "error", "message", "code", "issues", "loc", "msg", "metadata"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_bodies)
def test_any_json_body_gives_a_typed_error(data: Any) -> None:
    """Property: whatever the JSON is, only our error comes out."""
    assert refused(400, json.dumps(data).encode()).status_code == 400
