"""What may be repeated, and after how long; FAULTS, "What may be repeated"."""

from __future__ import annotations

import asyncio
import math
import ssl
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentproto import (
    AgentProtoError,
    ConflictError,
    ProtocolError,
    RateLimitError,
    RequestTimeoutError,
    RetryPolicy,
    ServerError,
    StatusError,
    Timeout,
    TransportError,
)
from agentproto._errors import error_from_status
from agentproto._retry import is_safe_to_repeat, seconds_until_retry

from .both import Flavour
from .raw_server import Connection, Script, answer, events, head, json_answer, raw_server

NOW = 1_800_000_000.0
FAST = RetryPolicy(first_delay=0.001, max_delay=0.002)
DONE = '{"run":{"run_id":"r1","status":"success"},"values":{"n":1}}'
END = b'event: end\ndata: {"status":"success"}\n\n'


def refusal(status: int, **headers: str) -> StatusError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_from_status(status, named, b"", asked="GET /")


def transport(*, was_sent: bool, is_final: bool = False) -> TransportError:
    error = TransportError("cut")
    error.was_sent, error.is_final = was_sent, is_final
    return error


def timeout(limit: str) -> RequestTimeoutError:
    return RequestTimeoutError("slow", limit=limit, seconds=1)


@pytest.mark.parametrize(
    ("error", "when_idempotent", "when_not"),
    [
        (transport(was_sent=False), True, True),
        (transport(was_sent=True), True, False),
        (transport(was_sent=False, is_final=True), False, False),
        (timeout("connect"), True, True),
        (timeout("pool"), True, True),
        (timeout("idle"), True, False),
        (timeout("total"), False, False),
        (refusal(429), True, True),
        (refusal(503, retry_after="1"), True, True),
        (refusal(503, retry_after="nonsense"), True, True),
        (refusal(503), True, False),
        *[(refusal(status), True, False) for status in (500, 502, 504)],
        *[(refusal(s), False, False) for s in (400, 401, 403, 404, 408, 409, 410, 422, 501)],
        (ProtocolError("html"), False, False),
    ],
    ids=lambda v: f"{type(v).__name__}{getattr(v, 'status_code', '') or ''}",
)
def test_only_what_cannot_have_a_second_effect_is_repeated(
    error: AgentProtoError, when_idempotent: bool, when_not: bool
) -> None:
    """FAULTS 1 and 2, and a rejected certificate (4)."""
    assert is_safe_to_repeat(error, is_idempotent=True) is when_idempotent
    assert is_safe_to_repeat(error, is_idempotent=False) is when_not


def seconds(
    error: AgentProtoError, failures: int = 1, policy: RetryPolicy | None = None, **kwargs: Any
) -> float | None:
    arguments = {"is_idempotent": True, "chance": 0.5, "now": NOW, **kwargs}
    return seconds_until_retry(policy or RetryPolicy(), error, failures=failures, **arguments)


@pytest.mark.parametrize(
    ("error", "arguments", "expected"),
    [
        (refusal(500), {"chance": 0.0}, 0.0),
        (refusal(500), {"chance": 1.0}, 0.5),
        (refusal(500), {"failures": 2, "chance": 1.0}, 1.0),
        (refusal(500), {"failures": 3}, None),
        (refusal(500), {"failures": 9, "policy": RetryPolicy(attempts=99), "chance": 1.0}, 8.0),
        (refusal(500), {"failures": 5000, "policy": RetryPolicy(attempts=9999)}, 4.0),
        (refusal(500), {"is_idempotent": False}, None),
        (
            refusal(500),
            {"is_idempotent": False, "policy": RetryPolicy(repeat_unsafe=True)},
            0.25,
        ),
        (refusal(429, retry_after="7"), {}, 7.0),
        (refusal(429, retry_after="0.1"), {"chance": 1.0}, 0.5),
        (refusal(429, retry_after="60"), {}, 60.0),
        (refusal(429, retry_after="60.1"), {}, None),
        (refusal(429, retry_after="nan"), {}, 0.25),
        (refusal(429, retry_after="inf"), {}, 0.25),
        (refusal(429, retry_after="-5"), {}, 0.25),
        (refusal(429, retry_after="Fri, 15 Jan 2027 08:00:09 GMT"), {}, 9.0),
        (refusal(429, retry_after="Fri, 99 Jan 2027 08:00:09 GMT"), {}, 0.25),
        (transport(was_sent=True), {"floor": 0.0}, 0.25),
        (transport(was_sent=True), {"floor": 3.0}, 3.0),
        (transport(was_sent=True), {"floor": 1e15}, 8.0),
    ],
)
def test_delay_is_jittered_bounded_and_never_less_than_asked(
    error: AgentProtoError, arguments: dict[str, Any], expected: float | None
) -> None:
    """FAULTS 3: full jitter from first_delay to max_delay; Retry-After is a minimum, capped."""
    assert seconds(error, **arguments) == expected


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 1e18))
def test_delay_is_always_within_its_bounds(failures: int, chance: float, floor: float) -> None:
    """Property: no delay parks a caller."""
    policy = RetryPolicy(attempts=20_000)
    waits = seconds(refusal(500), failures, policy, chance=chance, floor=floor)
    assert waits is not None
    assert 0 <= waits <= policy.max_delay


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"attempts": 0}, "attempts"),
        ({"first_delay": -1}, "first_delay"),
        ({"max_delay": math.nan}, "max_delay"),
        ({"retry_after_cap": math.inf}, "retry_after_cap"),
    ],
)
def test_policy_that_makes_no_sense_is_refused(arguments: dict[str, Any], told: str) -> None:
    """Bad input gets a clear error."""
    with pytest.raises(ValueError, match=told):
        RetryPolicy(**arguments)


def test_policy_of_another_type_is_refused(flavour: Flavour) -> None:
    """Bad input gets a clear error."""
    with pytest.raises(TypeError, match="expected a RetryPolicy or None, got int"):
        flavour.client("http://x", retry=3)


async def _cut_body(connection: Connection) -> None:
    await connection.send(head(200, content_length="100"), b"{")
    connection.reset()


async def test_stream_is_opened_again_where_nothing_began(flavour: Flavour) -> None:
    """FAULTS: 429 and 503 with Retry-After on a create and stream."""
    with raw_server(answer(429), answer(503, retry_after="0"), events(END)) as server:
        client = flavour.client(server.url, retry=FAST)
        assert len(await flavour.collect(client.create_and_stream_run())) == 1
        await flavour.close(client)
    assert len(server.requests) == 3


async def test_server_that_asks_for_too_long_is_not_waited_for(flavour: Flavour) -> None:
    """FAULTS 3: above the cap the error is raised at once."""
    with raw_server(answer(429, retry_after="3600")) as server:
        client = flavour.client(server.url)
        with pytest.raises(RateLimitError) as caught:
            await flavour.call(client.get_run, "r")
        await flavour.close(client)
    assert caught.value.retry_after == 3600
    assert len(server.requests) == 1


async def test_retries_can_be_switched_off_and_on(flavour: Flavour) -> None:
    """DESIGN: retry=None repeats nothing, for a client or a call; a call may opt in."""
    with raw_server(answer(500)) as server:
        off = flavour.client(server.url, retry=None)
        with pytest.raises(ServerError):
            await flavour.call(off.get_run, "r")
        assert len(server.requests) == 1
        with pytest.raises(ServerError):
            await flavour.call(off.get_run, "r", retry=FAST)
        assert len(server.requests) == 4
        unsafe = RetryPolicy(attempts=2, first_delay=0, repeat_unsafe=True)
        with pytest.raises(ServerError):
            await flavour.call(off.create_run, retry=unsafe)
        assert len(server.requests) == 6
        await flavour.close(off)


async def test_refused_connection_is_tried_again(flavour: Flavour) -> None:
    """FAULTS: refused: retry, then TransportError."""
    tried: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        tried.append(request.method)
        raise httpx.ConnectError("refused", request=request)

    client = flavour.client("http://x", transport=httpx.MockTransport(refuse), retry=FAST)
    with pytest.raises(TransportError) as caught:
        await flavour.call(client.create_run)
    await flavour.close(client)
    assert (tried, caught.value.was_sent) == (["POST"] * 3, False)


async def test_rejected_certificate_is_final(flavour: Flavour) -> None:
    """FAULTS 4: a rejected certificate is not retried."""
    tried: list[str] = []

    def reject(request: httpx.Request) -> httpx.Response:
        tried.append(request.method)
        raise httpx.ConnectError("bad", request=request) from ssl.SSLCertVerificationError(1, "no")

    client = flavour.client("https://x", transport=httpx.MockTransport(reject), retry=FAST)
    with pytest.raises(TransportError):
        await flavour.call(client.get_run, "r")
    await flavour.close(client)
    assert tried == ["GET"]


async def test_total_covers_the_waiting_between_attempts(flavour: Flavour) -> None:
    """DESIGN, Timeouts: waiting between retries is included."""
    with raw_server(answer(429, retry_after="30")) as server:
        client = flavour.client(server.url, timeout=Timeout(total=0.2))
        with pytest.raises(RequestTimeoutError, match=r"timeout\.total"):
            await flavour.call(client.get_run, "r")
        await flavour.close(client)
    assert len(server.requests) == 1


async def test_cancellation_while_waiting_to_retry_passes() -> None:
    """FAULTS: task cancelled, also while waiting to retry."""
    from .both import Async

    with raw_server(answer(429, retry_after="30")) as server:
        client = Async().client(server.url)
        task = asyncio.create_task(client.get_run("r"))
        await asyncio.to_thread(server.asked.wait)
        await asyncio.to_thread(server.closed.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.aclose()


async def _cut_wait(connection: Connection) -> None:
    located = head(200, content_length="100", content_location="/threads/t1/runs/r1")
    await connection.send(located, b"\n{")
    connection.reset()


RUN_CONTINUES = json_answer('{"run_id":"r1","status":"running","on_disconnect":"continue"}')


async def test_cut_wait_is_finished_by_wait_run(flavour: Flavour) -> None:
    """FAULTS, how a cut stream goes on, 7: with a run id from a header, never a second POST."""
    with raw_server(_cut_wait, _cut_body, json_answer(DONE)) as server:
        client = flavour.client(server.url, retry=FAST)
        result = await flavour.call(client.create_and_wait_run, on_disconnect="continue")
        await flavour.close(client)
    assert result.values == {"n": 1}
    assert [(r.method, r.target) for r in server.requests] == [
        ("POST", "/runs/wait"),
        ("GET", "/runs/r1/wait"),
        ("GET", "/runs/r1/wait"),
    ]


async def test_cut_update_is_finished_where_its_run_goes_on(flavour: Flavour) -> None:
    """FAULTS 7: whether the run goes on without its caller, the server is asked."""
    with raw_server(_cut_wait, RUN_CONTINUES, json_answer(DONE)) as server:
        client = flavour.client(server.url, retry=FAST)
        assert (await flavour.call(client.update_and_wait_run, "r1")).values == {"n": 1}
        await flavour.close(client)
    assert [r.target for r in server.requests] == ["/runs/r1/wait", "/runs/r1", "/runs/r1/wait"]


@pytest.mark.parametrize(
    ("method", "args", "arguments", "scripts", "requests"),
    [
        ("create_and_wait_run", (), {}, (_cut_wait,), 1),
        ("create_and_wait_run", (), {"on_disconnect": "cancel"}, (_cut_wait,), 1),
        ("create_and_wait_run", (), {"on_disconnect": "continue"}, (_cut_body,), 1),
        ("create_and_wait_run", (), {"on_disconnect": "continue", "retry": None}, (_cut_wait,), 1),
        ("create_and_wait_run", (), {"on_disconnect": "continue"}, (_cut_wait, answer(404)), 2),
        ("update_and_wait_run", ("r1",), {}, (_cut_wait, json_answer("{}")), 2),
        ("update_and_wait_run", ("r1",), {}, (_cut_wait, answer(404)), 2),
    ],
)
async def test_cut_wait_that_cannot_be_finished_is_typed(
    flavour: Flavour,
    method: str,
    args: Any,
    arguments: dict[str, Any],
    scripts: tuple[Script, ...],
    requests: int,
) -> None:
    """FAULTS 7: otherwise typed, with the run that is known."""
    with raw_server(*scripts) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(TransportError) as caught:
            await flavour.call(getattr(client, method), *args, **arguments)
        await flavour.close(client)
    assert caught.value.run_id == ("r1" if _cut_wait in scripts else None)
    assert len(server.requests) == requests


async def test_failure_of_the_finishing_call_is_its_own(flavour: Flavour) -> None:
    """FAULTS 7: a server that serves it and refuses says why."""
    with raw_server(_cut_wait, answer(409)) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(ConflictError):
            await flavour.call(client.create_and_wait_run, on_disconnect="continue")
        await flavour.close(client)
