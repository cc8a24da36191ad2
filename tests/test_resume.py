"""How a cut stream goes on: nothing lost, nothing doubled, or an error that says so."""

from __future__ import annotations

import asyncio
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentproto import (
    AuthenticationError,
    NotFoundError,
    ProtocolError,
    RequestTimeoutError,
    RetryPolicy,
    RunFailedError,
    RunsClient,
    StreamInterruptedError,
    Timeout,
    TransportError,
)
from agentproto._resume import WINDOW, RunCursor
from agentproto._sse import ServerSentEvent
from agentproto.testing import RunsServer, demo_agents

from .both import Flavour
from .faults import cutting_proxy
from .raw_server import (
    BOUND,
    Connection,
    Script,
    answer,
    chunk,
    events,
    head,
    json_answer,
    raw_server,
)

FAST = RetryPolicy(first_delay=0, max_delay=0.001)


def block(number: int, event: str = "custom") -> bytes:
    return b"event: %b\ndata: %d\nid: %d\n\n" % (event.encode(), number, number)


META = b'event: metadata\ndata: {"run_id":"r1"}\nid: 0\n\n'
END = b'event: end\ndata: {"status":"success"}\nid: 99\n\n'
RUN = [META, *(block(n) for n in range(1, 9)), END]
IDS = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "99"]
SSE = {"content_type": "text/event-stream", "transfer_encoding": "chunked"}


def ids_in(run: list[bytes]) -> list[str]:
    return [found[-1].decode() for found in (re.findall(rb"(?m)^id: (.*?)\r?$", e) for e in run)]


def kept_run(
    cuts: Sequence[int | None],
    *,
    overlap: int = 0,
    reset: bool = False,
    size: int = 10_000,
    run: list[bytes] = RUN,
) -> Script:
    """A server that keeps the events of a run: each stream is cut after so many bytes."""
    left, ids = list(cuts), ids_in(run)

    async def script(connection: Connection) -> None:
        if not connection.request.target.endswith("/stream"):
            await json_answer('{"status":"success"}')(connection)
            return
        after = connection.request.headers.get("last-event-id")
        start = 0 if after is None else max(0, ids.index(after) + 1 - overlap)
        body = b"".join(run[start:])
        cut = left.pop(0) if left else None
        sent = body[:cut]
        pieces = [sent[i : i + size] for i in range(0, len(sent), size)]
        first = head(200, **SSE, connection="close")
        await connection.send(first, *map(chunk, pieces))
        if cut is None:
            await connection.send(b"0\r\n\r\n")
        elif reset:
            connection.reset()

    return script


async def ids_of(flavour: Flavour, stream: Any) -> list[str]:
    return [event.id for event in await flavour.collect(stream)]


@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("overlap", [0, 1, 99])
async def test_cut_stream_is_joined_after_last_event_id(
    flavour: Flavour, reset: bool, overlap: int
) -> None:
    """FAULTS 2: join behind the last event handed over; repeats are dropped by id."""
    cuts = [len(META + block(1)) + 7, len(block(2) + block(3)) + 20]
    with raw_server(kept_run(cuts, overlap=overlap, reset=reset)) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert await ids_of(flavour, stream) == IDS
        assert (stream.ended, stream.last_event_id, stream.run_id) == ("end", "99", "r1")
        await flavour.close(client)
    assert [(r.method, r.target) for r in server.requests] == [
        ("POST", "/runs/stream"),
        ("GET", "/runs/r1/stream"),
        ("GET", "/runs/r1/stream"),
    ]


async def test_stalled_stream_is_joined(flavour: Flavour) -> None:
    """FAULTS: stall: the idle limit, then as a cut."""

    async def stalls(connection: Connection) -> None:
        await connection.send(head(200, **SSE), chunk(META + block(1)))
        await connection.client_closes()

    with raw_server(stalls, kept_run([])) as server:
        client = flavour.client(server.url, retry=FAST, timeout=0.2)
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert await ids_of(flavour, stream) == IDS
        await flavour.close(client)


async def test_raw_blocks_are_joined_and_not_doubled(flavour: Flavour) -> None:
    """DESIGN: aiter_sse() rejoins and drops repeats like the others."""
    with raw_server(kept_run([150], overlap=2)) as server:
        client = flavour.client(server.url, retry=FAST)
        blocks = await flavour.blocks(client.stream_run("r1"))
        await flavour.close(client)
    assert [sse.id for sse in blocks] == IDS


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cuts=st.lists(st.integers(0, len(b"".join(RUN)) - 1), max_size=6),
    overlap=st.integers(0, 12),
    size=st.sampled_from([1, 7, 64, 10_000]),
    reset=st.booleans(),
)
def test_any_cut_gives_the_whole_run_or_a_prefix_and_an_error(
    cuts: list[int], overlap: int, size: int, reset: bool
) -> None:
    """Property: a prefix of the true events, without a gap or a double, whatever is cut."""
    script = kept_run(cuts, overlap=overlap, size=size, reset=reset)
    seen: list[str | None] = []
    policy = RetryPolicy(attempts=9, first_delay=0)
    with raw_server(script) as server, RunsClient(server.url, retry=policy) as client:
        failure = None
        stream = client.create_and_stream_run(on_disconnect="continue")
        try:
            for event in stream:
                seen.append(event.id)
        except StreamInterruptedError as error:
            failure = error
        assert seen == (IDS if failure is None else IDS[: len(seen)])
        if failure is not None:
            assert failure.delivered == len(seen)
            assert failure.last_event_id == (seen[-1] if seen else None)
    assert [r.method for r in server.requests].count("POST") == 1


def recorded(name: str) -> list[bytes]:
    stream = (Path(__file__).parent / "wire" / name).read_bytes()
    return re.findall(rb"(?s).+?\r?\n\r?\n", stream)


RUNS = {
    "spec": RUN,
    "langgraph dev": recorded("langgraph_dev/resumable_full.sse"),
    "langgraphjs dev": recorded("langgraphjs_dev/hitl_stream.sse"),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_cut_point_of_a_run_is_joined(name: str) -> None:
    """Property, exhaustive: each byte of a stream, as recorded, as the point of one cut."""
    run = RUNS[name]
    ids, size = ids_in(run), len(b"".join(run))
    # A line that ends in CRLF is whole at its CR.
    named = len(run[0]) - run[0].endswith(b"\r\n")
    cuts = [place for cut in range(named, size) for place in (cut, None)]
    policy = RetryPolicy(attempts=2, first_delay=0)
    with (
        raw_server(kept_run([*range(named), *cuts], run=run)) as server,
        RunsClient(server.url, retry=policy) as client,
    ):
        for cut in range(size):
            stream = client.create_and_stream_run(on_disconnect="continue")
            if cut < named:  # before anything told the run
                with pytest.raises(StreamInterruptedError):
                    list(stream)
                assert stream.core.delivered == 0
            else:
                assert [event.id for event in stream] == ids, cut
    assert sum(request.method == "POST" for request in server.requests) == size


async def test_attempts_start_afresh_after_progress(flavour: Flavour) -> None:
    """FAULTS 3: after an event not seen before, not after a 200."""
    one_each = [len(META + block(1))] + [len(block(n)) for n in range(2, 8)]
    with raw_server(kept_run(one_each)) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert await ids_of(flavour, stream) == IDS
        await flavour.close(client)
    assert len(server.requests) == 8


async def test_joins_without_progress_use_up_the_attempts(flavour: Flavour) -> None:
    """FAULTS 3: one budget for joins and their retries."""
    with raw_server(kept_run([len(META), 0, 5, 0, 0])) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        with pytest.raises(StreamInterruptedError, match="cut after 1 events") as caught:
            await flavour.collect(stream)
        await flavour.close(client)
    assert len(server.requests) == 3
    assert (caught.value.run_id, caught.value.last_event_id) == ("r1", "0")
    assert stream.ended == "cut"


@pytest.mark.parametrize("fault", [answer(503), answer(429), answer(500)])
async def test_join_is_repeated_as_a_get_is(flavour: Flavour, fault: Script) -> None:
    """FAULTS: server restart: join inside the budget."""
    with raw_server(kept_run([len(META)]), fault, kept_run([])) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert await ids_of(flavour, stream) == IDS
        await flavour.close(client)


@pytest.mark.parametrize(
    ("refusal", "cause"),
    [
        (answer(404), NotFoundError),
        (answer(401), AuthenticationError),
        (json_answer("{}"), ProtocolError),
    ],
)
async def test_refused_join_ends_the_attempts(
    flavour: Flavour, refusal: Script, cause: type[Exception]
) -> None:
    """FAULTS 6: 404 after a cut: typed, no more attempts."""
    with raw_server(kept_run([len(META)]), refusal) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        with pytest.raises(StreamInterruptedError) as caught:
            await flavour.collect(stream)
        await flavour.close(client)
    assert isinstance(caught.value.__cause__, cause)
    assert len(server.requests) == 2


async def test_join_answered_204_means_stop(flavour: Flavour) -> None:
    """FAULTS 6: a join answered 204 means stop."""
    with raw_server(kept_run([len(META)]), answer(204)) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert await ids_of(flavour, stream) == ["0"]
        assert stream.ended == "stopped"
        await flavour.close(client)


@pytest.mark.parametrize("arguments", [{"rejoin": False}, {"retry": None}])
async def test_joining_can_be_switched_off(flavour: Flavour, arguments: dict[str, Any]) -> None:
    """DESIGN: rejoin=False, or nothing repeated at all."""
    with raw_server(kept_run([len(META)])) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run(on_disconnect="continue", **arguments)
        with pytest.raises(StreamInterruptedError) as caught:
            await flavour.collect(stream)
        behind = client.stream_run("r1", last_event_id=caught.value.last_event_id)
        assert await ids_of(flavour, behind) == IDS[1:]
        await flavour.close(client)
    assert isinstance(caught.value.__cause__, TransportError)


PLAIN = b"event: custom\ndata: 5\n\n"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b": hi\n\n", "did not name the run"),
        (b"event: custom\ndata: 5\nid: 1\n\n", "did not name the run"),
        (b'event: metadata\ndata: {"run_id":"r1"}\n\n', "gave its events no ids"),
        (META + PLAIN, "the last event had no id"),
        (META + block(1) + b"event: custom\ndata: 5\nid\n\n", "the last event had no id"),
    ],
)
async def test_stream_that_could_lose_or_double_is_not_joined(
    flavour: Flavour, sent: bytes, told: str
) -> None:
    """FAULTS 2 and 3: without a run or ids a join could double or lose."""
    with raw_server(events(sent, end=b"")) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        with pytest.raises(StreamInterruptedError, match=told):
            await flavour.collect(stream)
        await flavour.close(client)
    assert len(server.requests) == 1


@pytest.mark.parametrize("bad", ["a\x00b", "a\x7fb"])
async def test_id_that_no_header_can_hold_is_not_sent(flavour: Flavour, bad: str) -> None:
    """FAULTS: CR/LF and the like in Last-Event-ID: refused typed."""
    odd = b"event: custom\ndata: 5\nid: a\x7fb\n\n"
    with raw_server(events(META + odd, end=b"")) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        with pytest.raises(StreamInterruptedError, match="no header can hold"):
            await flavour.collect(stream)
        with pytest.raises(ValueError, match="no header can hold"):
            client.stream_run("r1", last_event_id=bad)
        await flavour.close(client)


@pytest.mark.parametrize(
    ("status", "joined"),
    [
        ('{"status":"success"}', True),
        ('{"status":"running","on_disconnect":"continue"}', True),
        ('{"status":"running"}', False),
        ('{"status":"pending","on_disconnect":"cancel"}', False),
        ('{"status":"interrupted"}', False),
        ("{}", False),
    ],
)
@pytest.mark.parametrize("call", ["create_and_stream_run", "update_and_stream_run"])
async def test_run_that_may_be_cancelled_is_asked_for_first(
    flavour: Flavour, call: str, status: str, joined: bool
) -> None:
    """FAULTS 4: on_disconnect unset or cancel: ask get_run."""
    cut = kept_run([len(META)])
    with raw_server(cut, json_answer(status), kept_run([])) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = getattr(client, call)(*(["r1"] if call.startswith("update") else []))
        if joined:
            assert await ids_of(flavour, stream) == IDS
        else:
            with pytest.raises(StreamInterruptedError, match="on_disconnect='continue'"):
                await flavour.collect(stream)
        await flavour.close(client)
    assert server.requests[1].target == "/runs/r1"
    assert len(server.requests) == (3 if joined else 2)


@pytest.mark.parametrize("how", ["cut", "EOF"])
async def test_failed_run_is_told_by_its_status(flavour: Flavour, how: str) -> None:
    """FAULTS 4 and 5: error, timeout: RunFailedError."""
    failed = json_answer('{"status":"error","error":{"code":"ValueError","message":"boom"}}')
    first = events(META + block(1), end=b"" if how == "cut" else b"0\r\n\r\n")
    with raw_server(first, failed) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(RunFailedError, match="r1 ended with status error: ValueError: boom"):
            await flavour.collect(client.create_and_stream_run())
        await flavour.close(client)


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ('{"status":"success"}', "status"),
        ('{"status":"interrupted"}', "status"),
        ('{"status":"cancelled"}', "status"),
        ("{}", "eof"),
    ],
)
async def test_eof_without_end_is_settled_by_the_status(
    flavour: Flavour, status: str, ended: str
) -> None:
    """FAULTS 5: EOF is not success: the run's status is asked for once."""
    with raw_server(events(META + block(1)), json_answer(status)) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.create_and_stream_run()
        assert await ids_of(flavour, stream) == ["0", "1"]
        assert stream.ended == ended
        await flavour.close(client)
    assert [r.target for r in server.requests] == ["/runs/stream", "/runs/r1"]


async def test_failed_status_is_no_error_where_it_shall_not_raise(flavour: Flavour) -> None:
    """DESIGN: raise_on_failure=False."""
    told = '{"run":{"run_id":"r1","status":"error"},"values":{}}'
    scripts = (events(META), json_answer('{"status":"error"}'), json_answer(told))
    with raw_server(*scripts) as server:
        client = flavour.client(server.url, retry=FAST, raise_on_failure=False)
        stream = client.create_and_stream_run()
        result = await flavour.call(stream.final)
        assert (stream.ended, result.run.status) == ("status", "error")
        await flavour.close(client)


@pytest.mark.parametrize("status", ["pending", "running"])
async def test_eof_of_a_run_that_goes_on_is_joined(flavour: Flavour, status: str) -> None:
    """FAULTS 5: pending, running: as a cut."""
    going_on = json_answer(f'{{"status":"{status}"}}')
    with raw_server(events(META), going_on, kept_run([])) as server:
        client = flavour.client(server.url, retry=FAST)
        assert await ids_of(flavour, client.stream_run("r1")) == IDS
        await flavour.close(client)


@pytest.mark.parametrize(
    ("refusal", "cause"), [(answer(401), AuthenticationError), (json_answer("["), ProtocolError)]
)
async def test_eof_whose_status_cannot_be_had_is_interrupted(
    flavour: Flavour, refusal: Script, cause: type[Exception]
) -> None:
    """FAULTS 5: get_run failing otherwise: StreamInterruptedError from it."""
    with raw_server(events(META), refusal) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(StreamInterruptedError) as caught:
            await flavour.collect(client.create_and_stream_run())
        await flavour.close(client)
    assert isinstance(caught.value.__cause__, cause)


async def test_cut_run_that_nobody_tells_of_is_interrupted(flavour: Flavour) -> None:
    """FAULTS 4: 404, 405."""
    with raw_server(events(META, end=b""), answer(404)) as server:
        client = flavour.client(server.url, retry=FAST)
        with pytest.raises(StreamInterruptedError, match="nobody tells how the run stands"):
            await flavour.collect(client.create_and_stream_run())
        await flavour.close(client)


async def test_total_ends_the_joining_too(flavour: Flavour) -> None:
    """DESIGN, Timeouts: total covers the whole call."""
    asked = answer(429, retry_after="30")
    with raw_server(kept_run([len(META)]), asked) as server:
        limits = Timeout(total=1.0)
        client = flavour.client(server.url, retry=RetryPolicy(first_delay=0), timeout=limits)
        stream = client.create_and_stream_run(on_disconnect="continue")
        with pytest.raises(RequestTimeoutError, match=r"timeout\.total") as caught:
            await flavour.collect(stream)
        await flavour.close(client)
    assert (caught.value.run_id, caught.value.last_event_id) == ("r1", "0")


async def test_caller_may_leave_while_a_join_waits() -> None:
    """FAULTS: caller leaves, also while waiting to retry."""
    from .both import Async

    with raw_server(kept_run([len(META)]), answer(429, retry_after="30")) as server:
        client = Async().client(server.url, retry=RetryPolicy(first_delay=0))
        stream = client.create_and_stream_run(on_disconnect="continue")
        task = asyncio.create_task(Async().collect(stream))
        async with asyncio.timeout(BOUND):
            while len(server.requests) < 2:  # noqa: ASYNC110  # the server is another thread
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stream.ended == "closed"
        await client.aclose()


async def test_real_run_goes_on_behind_a_cut(flavour: Flavour) -> None:
    """A real server, whose connection a proxy of the tests cuts."""
    with RunsServer(demo_agents) as upstream, raw_server(cutting_proxy(upstream.url, 160)) as proxy:
        client = flavour.client(proxy.url, retry=FAST)
        ask = {"n": 6, "interval": 0.02}
        stream = client.create_and_stream_run(
            agent_id="slow", input=ask, stream_mode="custom", on_disconnect="continue"
        )
        found = await flavour.collect(stream)
        await flavour.close(client)
    assert [event.data for event in found[1:-1]] == [{"tick": n} for n in range(1, 7)]
    assert [r.method for r in proxy.requests].count("POST") == 1
    assert len(proxy.requests) > 1


def seen(event_id: str | None, event: str = "custom") -> ServerSentEvent:
    return ServerSentEvent(event, b"1", event_id or "", event_id, None)


def cursor_after(count: int) -> RunCursor:
    cursor = RunCursor()
    list(cursor.take_in([seen(str(n)) for n in range(count)]))
    cursor.joined()
    return cursor


def test_replay_from_the_first_event_is_skipped_beyond_the_window() -> None:
    """FAULTS 2: the first id and the last 4,096 are remembered."""
    count = WINDOW + 100
    cursor = cursor_after(count)
    replay = [seen(str(n)) for n in range(count)]
    replay.insert(50, seen(None))
    assert list(cursor.take_in(replay)) == []
    new = [seen("new"), seen(None), seen("newer")]
    assert list(cursor.take_in([*new, seen("new")])) == new
    assert cursor.last_event_id == "newer"


def test_replay_from_elsewhere_beyond_the_window_is_told() -> None:
    """FAULTS 2: one that begins elsewhere outside the window is a StreamInterruptedError."""
    cursor = cursor_after(WINDOW + 100)
    with pytest.raises(LookupError, match="before those that are remembered"):
        list(cursor.take_in([seen(str(n)) for n in range(50, WINDOW + 100)]))


def test_places_of_many_joins_are_remembered_in_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS 2: what a replay pushes out of the window is known where it was joined behind."""
    monkeypatch.setattr("agentproto._resume.WINDOW", 2)
    cursor = RunCursor()
    for number in range(1, 6):
        list(cursor.take_in([seen(str(number))]))
        cursor.joined()
    assert list(cursor.take_in([seen("6")])) == [seen("6")]
    with pytest.raises(LookupError, match="before those that are remembered"):
        list(cursor.take_in([seen("7"), seen("8"), seen("4")]))


async def test_stream_says_when_a_replay_cannot_be_told(flavour: Flavour) -> None:
    """FAULTS 2: doubles are never silent."""
    many = b"".join(block(n) for n in range(1, WINDOW + 100))
    elsewhere = b"".join(block(n) for n in range(50, WINDOW + 100))
    with raw_server(events(META + many, end=b""), events(elsewhere)) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.stream_run("r1")
        with pytest.raises(StreamInterruptedError, match="before those that are remembered"):
            await flavour.collect(stream)
        await flavour.close(client)


def test_nothing_is_dropped_on_the_first_connection() -> None:
    """FAULTS 2: ids are opaque; a server may use one twice."""
    cursor = RunCursor()
    twice = [seen("1"), seen("1"), seen(""), seen(None)]
    assert list(cursor.take_in(twice)) == twice


def test_events_that_are_alike_are_looked_at_one_by_one() -> None:
    """FAULTS 3: those without ids are repeats before the last one, and new behind it."""

    def alike(*data: bytes) -> ServerSentEvent:
        return ServerSentEvent("custom", b"", "2", None, None, [*reversed(data)])

    cursor = RunCursor()
    list(cursor.take_in([seen("1"), seen("2")]))
    cursor.joined()
    events_seen = [alike(b"a", b"b"), seen("2"), alike(b"c", b"d")]
    assert [event.data for event in cursor.take_in(events_seen)] == [b"c", b"d"]


def test_long_ids_are_remembered_in_little_memory() -> None:
    """FAULTS 2: ids are hostile: 4,096 of a megabyte each must not be kept."""
    cursor = RunCursor()
    long = [seen(f"{n:0>100000}") for n in range(200)]
    tracemalloc.start()
    try:
        assert list(cursor.take_in(long)) == long
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100_000
    assert cursor.last_event_id == long[-1].own_id
    cursor.joined()
    assert list(cursor.take_in([*long[50:], seen("new")])) == [seen("new")]


@pytest.mark.parametrize(
    ("events_seen", "why"),
    [
        ([], "the server gave its events no ids"),
        ([seen(None, "metadata")], "the server gave its events no ids"),
        ([seen("1"), seen(None)], "the last event had no id"),
        ([seen("1"), seen(None, "metadata")], None),
        ([seen("1", "metadata")], None),
    ],
)
def test_cursor_says_why_it_cannot_go_on(events_seen: list[ServerSentEvent], why: Any) -> None:
    """FAULTS 2 and 3."""
    cursor = RunCursor()
    list(cursor.take_in(events_seen))
    assert cursor.why_not_joinable(can_replay=False) == why


connections = st.lists(
    st.tuples(
        st.sampled_from(["exact", "overlap", "all"]),
        st.integers(1, 5),  # how many old events an overlap has
        st.booleans(),  # whether metadata stands at the head
        st.integers(0, 40),  # how many events come before the cut
    ),
    min_size=1,
    max_size=6,
)


@given(without_id=st.sets(st.integers(1, 12)), connections=connections)
def test_any_replay_gives_a_prefix_without_gap_or_double(
    without_id: set[int], connections: list[tuple[str, int, bool, int]]
) -> None:
    """Property: whatever is replayed, and whichever events have no ids, or it is told."""
    run = [seen("m", "metadata")]
    run += [seen(None if n in without_id else str(n)) for n in range(1, 13)]
    run += [seen("end", "end")]
    cursor, taken, had_metadata = RunCursor(), list[int](), False
    for number, (mode, back, has_head, count) in enumerate(connections):
        start = 0
        if number:
            if cursor.why_not_joinable(can_replay=False) is not None:
                return
            cursor.joined()
            behind = next(i for i, e in enumerate(run) if e.own_id == cursor.last_event_id) + 1
            start = {"exact": behind, "overlap": max(0, behind - back), "all": 0}[mode]
        sent = run[start : start + count]
        sent = [run[0], *sent] if number and has_head and start else sent
        try:
            for event in cursor.take_in(sent):
                if event.event != "metadata" or not had_metadata:
                    taken.append(next(i for i, e in enumerate(run) if e is event))
                had_metadata = had_metadata or event.event == "metadata"
        except LookupError:
            break
        if run[-1] in sent:
            break
    assert taken == list(range(len(taken)))


async def test_stream_goes_on_behind_the_event_it_was_asked_for(flavour: Flavour) -> None:
    """FAULTS 2: a join that is cut before its first event loses neither its place nor an event."""

    async def nothing(connection: Connection) -> None:
        await connection.send(head(200, **SSE))
        connection.reset()

    with raw_server(nothing, kept_run([])) as server:
        client = flavour.client(server.url, retry=FAST)
        stream = client.stream_run("r1", last_event_id="4")
        assert await ids_of(flavour, stream) == ["5", "6", "7", "8", "99"]
        await flavour.close(client)
    assert [r.headers["last-event-id"] for r in server.requests] == ["4", "4"]
    with raw_server(nothing) as server:
        client = flavour.client(server.url, rejoin=False)
        with pytest.raises(StreamInterruptedError) as caught:
            await flavour.collect(client.stream_run("r1", last_event_id="4"))
        assert (caught.value.last_event_id, caught.value.delivered) == ("4", 0)
        await flavour.close(client)


@pytest.mark.parametrize(
    "located",
    [
        "/runs/r1",
        "http://evil.test/runs/r1",
        "//evil.test/x/runs/r1",
        "/../../runs/r1",
        "/runs/r1?x",
    ],
)
async def test_join_stays_under_the_base_url(flavour: Flavour, located: str) -> None:
    """FAULTS 8: only the ids are read out of a header; the URL itself is never followed."""

    async def cut(connection: Connection) -> None:
        start = head(200, **SSE, content_location=located, location=located)
        await connection.send(start, chunk(META + block(1)))
        connection.reset()

    with raw_server(cut, kept_run([])) as server:
        client = flavour.client(f"{server.url}/api/v1", retry=FAST)
        stream = client.create_and_stream_run(on_disconnect="continue")
        assert await ids_of(flavour, stream) == IDS
        await flavour.close(client)
    assert [r.target for r in server.requests] == ["/api/v1/runs/stream", "/api/v1/runs/r1/stream"]
    assert {r.headers["host"] for r in server.requests} == {server.url.removeprefix("http://")}
