"""The life of a stream: lazily sent, consumed once, closed on every way out."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import Mock

import anyio
import httpx
import httpx_sse
import pytest
from pydantic import BaseModel

from agentproto import (
    AgentProtoError,
    AsyncRunsClient,
    CustomEvent,
    EndEvent,
    ErrorEvent,
    Interrupt,
    Message,
    MetadataEvent,
    NotFoundError,
    ProtocolError,
    RequestTimeoutError,
    Run,
    RunFailedError,
    RunRef,
    RunsClient,
    RunStatus,
    RunWaitResponse,
    StreamInterruptedError,
    Timeout,
    TransportError,
    ValuesEvent,
)

from .both import Async, Flavour
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

META = b'event: metadata\ndata: {"run_id":"r1"}\nid: 1\n\n'
VALUES = b'event: values\ndata: {"n":1}\nid: 2\n\n'
CUSTOM = b"event: custom\ndata: 5\n\n"
END = b'event: end\ndata: {"status":"success"}\nid: 3\n\n'
ASKS = b'event: values\ndata: {"n":1,"__interrupt__":[{"id":"i","value":"?"}]}\n\n'
ERROR = b'event: error\ndata: {"error":"ValueError","message":"boom"}\n\n'

METADATA_EVENT = MetadataEvent("metadata", {"run_id": "r1"}, "1")
VALUES_EVENT = ValuesEvent("values", {"n": 1}, "2")
CUSTOM_EVENT = CustomEvent("custom", 5)
END_EVENT = EndEvent("end", {"status": "success"}, "3")


async def test_events_come_typed_and_in_order(flavour: Flavour) -> None:
    """Spec: POST /runs/stream."""
    with raw_server(events(META + VALUES[:9], VALUES[9:] + CUSTOM, END, hold=True)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run(agent_id="a")
        assert (stream.run, stream.run_id, stream.thread_id, stream.ended) == (None,) * 4
        assert await flavour.collect(stream) == [
            METADATA_EVENT,
            VALUES_EVENT,
            CUSTOM_EVENT,
            END_EVENT,
        ]
        # `end` ends the stream: the server holds the connection, and sees it closed.
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        assert (stream.run, stream.run_id, stream.ended) == (RunRef("r1"), "r1", "end")
        assert stream.last_event_id == "3"
        assert stream.response.status_code == 200
        await flavour.close(client)


TOKENS = [
    b'event: messages\ndata: [{"content":"%b","type":"ai","id":"m"},{}]\n\n' % text
    for text in (b"a", b"b", b"c", b"d")
]
ALIKE = b"".join([META, *TOKENS, *[b"event: custom\ndata: %d\n\n" % n for n in range(4)], END])


@pytest.mark.parametrize("size", [1, 40, 10_000])
async def test_events_that_are_alike_come_one_by_one(flavour: Flavour, size: int) -> None:
    """Those that come in one piece are held as one: they are handed over as any other."""
    pieces = [ALIKE[at : at + size] for at in range(0, len(ALIKE), size)]
    stream_of_all = events(*pieces)
    no_values = json_answer("{}", 404)
    with raw_server(stream_of_all, stream_of_all, no_values, stream_of_all) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run(agent_id="a")
        taken = await flavour.take(stream, 7)
        assert [event.data for event in taken[5:]] == [0, 1]
        assert "".join(event.messages[0].text for event in taken[1:5]) == "abcd"
        assert stream.core.delivered == 7
        rest = await flavour.collect(stream)
        assert [event.data for event in rest] == [2, 3, {"status": "success"}]
        stream = client.create_and_stream_run(agent_id="a")
        assert await flavour.text(stream) == ["a", "b", "c", "d"]
        assert (await flavour.call(stream.final)).messages[0].text == "abcd"
        blocks = await flavour.blocks(client.create_and_stream_run(agent_id="a"))
        assert [block.data for block in blocks[5:]] == [*"0123", '{"status":"success"}']
        assert [json.loads(block.data)[0]["content"] for block in blocks[1:5]] == [*"abcd"]
        await flavour.close(client)


def token(of: str, text: str) -> bytes:
    data = json.dumps([{"content": text, "type": "ai", "id": of}, {}])
    return b"event: messages\ndata: %b\n\n" % data.encode()


def interrupted(stream: Any, at: int) -> tuple[list[Any], bool]:
    """The events of a stream that goes on after a signal came at so many steps of taking them."""
    steps, taken, before = 0, list[Any](), sys.gettrace()
    names = {"take", "read", "add", "_said", "append", "append_piece"}
    files = ("agentproto/_stream.py", "agentproto/_events.py")

    def step(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += what == "opcode"
        if steps == at and what == "opcode":
            raise KeyboardInterrupt
        return step

    def enter(frame: FrameType, _: str, __: Any) -> Any:
        code = frame.f_code
        is_meant = code.co_name in names and Path(code.co_filename).as_posix().endswith(files)
        return step(frame, "call", None) if is_meant else None

    sys.settrace(enter)
    try:
        while True:
            try:
                taken.append(next(stream))
            except KeyboardInterrupt:
                continue
            except StopIteration:
                return taken, steps >= at
    finally:
        sys.settrace(before)


def test_signal_loses_one_event_at_most() -> None:
    """Also within several that are alike; and no text comes to belong to another message."""
    sent = [("m", "a"), ("m", "b"), ("n", "c"), ("n", "d"), ("m", "e")]
    body = b"".join([*[token(*each) for each in sent], END])
    at, was_met = 0, True
    with raw_server(events(body)) as server, RunsClient(server.url) as client:
        whole, _ = interrupted(client.create_and_stream_run(), -1)
        while was_met:
            at += 1
            stream = client.create_and_stream_run()
            taken, was_met = interrupted(stream, at)
            assert taken in [whole, *[whole[:n] + whole[n + 1 :] for n in range(len(whole))]], at
            for message in stream.core._transcript.messages:
                texts = "".join(text for of, text in sent if of == message.id)
                assert message.text in {texts, *[texts.replace(text, "") for text in texts]}, at
    assert at > 500


def test_what_a_signal_lost_is_not_taken_for_what_comes_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is like an event that was lost begins a message, where that one did."""
    body = b"".join([token("m", "a"), token("n", "b"), token("n", "c"), END])
    with raw_server(events(body)) as server, RunsClient(server.url) as client:
        stream = client.create_and_stream_run()
        next(stream)
        with monkeypatch.context() as patch:
            patch.setattr(stream.core._transcript, "add", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                next(stream)
        next(stream)
        assert [m.text for m in stream.core._transcript.messages] == ["a", "c"]


async def test_nothing_is_sent_until_the_stream_is_used(flavour: Flavour) -> None:
    """DESIGN: the request goes out on entering or on the first event."""
    with raw_server(events(META, END)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        with pytest.raises(RuntimeError, match="has not started"):
            _ = stream.response
        assert server.requests == []
        async with flavour.entered(stream):
            assert len(server.requests) == 1
            assert stream.response.headers["content-type"] == "text/event-stream"
            assert await flavour.take(stream, 1) == [METADATA_EVENT]
        assert len(server.requests) == 1
        assert stream.ended == "closed"
        await flavour.close(client)


async def test_unused_stream_is_closed_without_a_request(flavour: Flavour) -> None:
    """A stream that is never used sends nothing and warns of nothing."""
    with raw_server(events(META)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        await flavour.close(stream)
        await flavour.close(stream)
        with pytest.raises(RuntimeError, match="this stream is closed"):
            await flavour.collect(stream)
        del stream
        client.create_and_stream_run()
        gc.collect()
        await flavour.close(client)
    assert server.requests == []


async def test_stream_is_consumed_once(flavour: Flavour) -> None:
    """Iterating a stream twice is a RuntimeError that says so."""
    with raw_server(events(META, END)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        await flavour.collect(stream)
        for again in (flavour.collect, flavour.text, flavour.blocks):
            with pytest.raises(RuntimeError, match=r"already consumed by (async )?for"):
                await again(stream)
        await flavour.close(client)


async def test_two_tasks_in_one_stream_are_told() -> None:
    """Two tasks in it at once: RuntimeError."""
    with raw_server(events(META, hold=True)) as server:
        async with AsyncRunsClient(server.url) as client:
            async with client.create_and_stream_run() as stream:
                await anext(stream)
                waiting = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                with pytest.raises(RuntimeError, match="two tasks"):
                    await anext(stream)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            assert await asyncio.to_thread(server.closed.wait, BOUND)


async def test_raw_blocks_are_handed_over_as_they_came(flavour: Flavour) -> None:
    """DESIGN: aiter_sse() decodes nothing, yields error and end, never raises RunFailedError."""
    odd = b"event: values\ndata: {\nretry: 5\n\n"
    with raw_server(events(META, odd, VALUES, ERROR + END)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        blocks = await flavour.blocks(stream)
        with pytest.raises(RunFailedError, match="boom"):
            await flavour.call(stream.final)
        await flavour.close(client)
    assert all(type(block) is httpx_sse.ServerSentEvent for block in blocks)
    assert [(b.event, b.data, b.id, b.retry) for b in blocks] == [
        ("metadata", '{"run_id":"r1"}', "1", None),
        ("values", "{", "1", 5),
        ("values", '{"n":1}', "2", None),
        ("error", '{"error":"ValueError","message":"boom"}', "2", None),
    ]
    assert (stream.run_id, stream.last_event_id, stream.ended) == ("r1", "2", "error")


async def test_final_follows_raw_blocks(flavour: Flavour) -> None:
    """DESIGN: final() may follow any way of consuming, and drains the rest."""
    with raw_server(events(b"event: metadata\ndata: {\n\n", VALUES, CUSTOM, END)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        await flavour.blocks(stream)
        result = await flavour.call(stream.final)
        await flavour.close(client)
    assert (result.values, result.run.status, result.run.run_id) == ({"n": 1}, "success", None)


async def test_text_is_what_the_assistant_says(flavour: Flavour) -> None:
    """DESIGN: text() is only new text."""
    tokens = [
        b'event: messages\ndata: [{"role":"assistant","content":"%b","id":"m"},{}]\n\n' % piece
        for piece in (b"He", b"llo")
    ]
    with raw_server(events(META, *tokens, VALUES, END)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        assert await flavour.text(stream) == ["He", "llo"]
        result = await flavour.call(stream.final)
        await flavour.close(client)
    assert result == RunWaitResponse(
        run=Run(run_id="r1", thread_id=None, status=RunStatus.SUCCESS),
        values={"n": 1},
        messages=[Message(role="assistant", content="Hello", id="m")],
        interrupts=[],
    )


async def test_final_drains_what_was_not_taken(flavour: Flavour) -> None:
    """DESIGN: final() drains, then tells the output."""
    with raw_server(events(META, VALUES, ASKS, END)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        await flavour.take(stream, 1)
        result = await flavour.call(stream.final)
        again = await flavour.call(stream.final)
        assert stream.interrupts == [Interrupt(id="i", value="?")]
        await flavour.close(client)
    assert result == again
    assert result.values == {"n": 1}
    assert result.interrupts == [Interrupt(id="i", value="?")]


async def test_final_asks_the_server_where_no_values_were_streamed(flavour: Flavour) -> None:
    """DESIGN: else asked of the server."""
    run, messages = '{"run_id":"r1","status":"success"}', '[{"role":"a","content":"b"}]'
    told = f'{{"run":{run},"values":{{"n":7}},"messages":{messages}}}'
    with raw_server(events(META, CUSTOM, END), json_answer(told)) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.create_and_stream_run().final)
        await flavour.close(client)
    assert result.values == {"n": 7}
    assert [m.text for m in result.messages] == ["b"]
    assert [(r.method, r.target) for r in server.requests] == [
        ("POST", "/runs/stream"),
        ("GET", "/runs/r1/wait"),
    ]


async def test_final_asks_what_an_interrupted_run_wants_to_know(flavour: Flavour) -> None:
    """Interrupts are read from wherever servers put them."""
    end = b'event: end\ndata: {"status":"interrupted"}\n\n'
    told = '{"run":{"status":"interrupted"},"values":{"n":1,"__interrupt__":[{"id":"i"}]}}'
    with raw_server(events(META, VALUES, end), json_answer(told)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        result = await flavour.call(stream.final)
        await flavour.close(client)
    assert [i.id for i in result.interrupts] == [i.id for i in stream.interrupts] == ["i"]
    assert result.run.status == "interrupted"


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_final_does_without_a_server_that_cannot_tell(flavour: Flavour, status: int) -> None:
    """Seen on langgraph dev: GET /runs/{run_id}/wait does not exist there."""
    with raw_server(events(META, CUSTOM), answer(status)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        result = await flavour.call(stream.final)
        await flavour.close(client)
    assert (result.values, result.run.run_id, result.run.status) == (None, "r1", None)
    assert stream.ended == "eof"


async def test_final_does_without_a_server_that_names_no_run(flavour: Flavour) -> None:
    """Nobody can be asked of a run without a name."""
    with raw_server(events(CUSTOM)) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.create_and_stream_run().final)
        await flavour.close(client)
    assert (result.values, result.run.run_id) == (None, None)


async def test_final_of_a_server_that_fails_is_its_error(flavour: Flavour) -> None:
    """A result that could not be had is not passed over in silence."""
    with raw_server(events(META, CUSTOM, END), answer(500)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        with pytest.raises(AgentProtoError, match="500"):
            await flavour.call(stream.final)
        await flavour.close(client)


@pytest.mark.parametrize(
    ("last", "ended", "status", "code"),
    [
        (ERROR, "error", "error", "ValueError"),
        (b'event: end\ndata: {"status":"error"}\n\n', "end", "error", None),
        (
            b'event: end\ndata: {"status":"timeout","message":"slow"}\n\n',
            "end",
            "timeout",
            None,
        ),
    ],
)
async def test_failed_run_raises_after_the_events_before(
    flavour: Flavour, last: bytes, ended: str, status: str, code: str | None
) -> None:
    """DESIGN: an error event, or an end that tells error or timeout, raises RunFailedError."""
    with raw_server(events(META, VALUES + last, hold=True)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        assert await flavour.take(stream, 2) == [METADATA_EVENT, VALUES_EVENT]
        for again in (flavour.take(stream, 1), flavour.call(stream.final)):
            with pytest.raises(RunFailedError) as caught:
                await again
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        await flavour.close(client)
    error = caught.value
    assert (error.status, error.error.code, error.run_id, error.last_event_id) == (
        status,
        code,
        "r1",
        "2",
    )
    assert error.event is not None
    assert stream.ended == ended


async def test_failure_is_handed_over_where_it_shall_not_raise(flavour: Flavour) -> None:
    """DESIGN: raise_on_failure=False hands it over as ErrorEvent."""
    with raw_server(events(META, ERROR)) as server:
        client = flavour.client(server.url, raise_on_failure=False)
        stream = client.create_and_stream_run()
        found = await flavour.collect(stream)
        assert [type(event) for event in found] == [MetadataEvent, ErrorEvent]
        assert str(found[1].error) == "ValueError: boom"
        assert stream.ended == "error"
        await flavour.close(client)


async def test_orderly_eof_without_end_is_told(flavour: Flavour) -> None:
    """Seen on langgraph dev: no end event; its EOF is not proof of success."""
    with raw_server(events(META, VALUES, b"event: values\ndata: {"), answer(404)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        assert await flavour.collect(stream) == [METADATA_EVENT, VALUES_EVENT]
        assert stream.ended == "eof"
        await flavour.close(client)


@pytest.mark.parametrize("end", [b"", b"zz\r\n", b"5\r\nab"], ids=["no end", "bad", "short"])
async def test_cut_stream_says_what_was_delivered(flavour: Flavour, end: bytes) -> None:
    """FAULTS: FIN without terminator, bad chunk, short chunk."""
    with raw_server(events(META, VALUES, b"event: cus", end=end, x_request_id="q")) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        assert await flavour.take(stream, 2) == [METADATA_EVENT, VALUES_EVENT]
        for again in (flavour.take(stream, 1), flavour.call(stream.final)):
            with pytest.raises(StreamInterruptedError, match="cut after 2 events") as caught:
                await again
        await flavour.close(client)
    error = caught.value
    assert (error.delivered, error.run_id, error.last_event_id) == (2, "r1", "2")
    assert (error.status_code, error.request_id, stream.ended) == (200, "q", "cut")
    assert isinstance(error.__cause__, TransportError)


async def test_reset_stream_is_interrupted(flavour: Flavour) -> None:
    """FAULTS: RST."""

    async def script(connection: Connection) -> None:
        kind = {"content_type": "text/event-stream", "transfer_encoding": "chunked"}
        await connection.send(head(200, **kind), chunk(META))
        connection.reset()

    with raw_server(script) as server:
        client = flavour.client(server.url)
        with pytest.raises(StreamInterruptedError):
            await flavour.collect(client.create_and_stream_run())
        await flavour.close(client)


async def test_stalled_stream_is_interrupted_by_the_idle_limit(flavour: Flavour) -> None:
    """FAULTS: stall."""
    with raw_server(events(META, hold=True)) as server:
        client = flavour.client(server.url, timeout=0.2)
        stream = client.create_and_stream_run()
        with pytest.raises(StreamInterruptedError, match=r"timeout\.idle") as caught:
            await flavour.collect(stream)
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        await flavour.close(client)
    assert isinstance(caught.value.__cause__, RequestTimeoutError)


async def _heartbeats(connection: Connection) -> None:
    kind = {"content_type": "text/event-stream", "transfer_encoding": "chunked"}
    await connection.send(head(200, **kind))
    while not connection.reader.at_eof():
        await connection.send(chunk(b": heartbeat\n\n"))
        await asyncio.sleep(0)


async def test_total_ends_endless_heartbeats(flavour: Flavour) -> None:
    """FAULTS: endless heartbeats; total is always RequestTimeoutError."""
    with raw_server(_heartbeats) as server:
        client = flavour.client(server.url, timeout=Timeout(total=0.3))
        with pytest.raises(RequestTimeoutError, match=r"timeout\.total") as caught:
            await flavour.collect(client.create_and_stream_run())
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        await flavour.close(client)
    assert (caught.value.limit, caught.value.seconds) == ("total", 0.3)


async def test_heartbeats_keep_a_stream_alive(flavour: Flavour) -> None:
    """FAULTS: any byte starts `idle` anew, so a run may take longer than that."""

    async def beats(connection: Connection) -> None:
        await connection.send(head(200, content_type="text/event-stream", connection="close"))
        for _ in range(12):
            await connection.send(b": still there\n\n")
            await asyncio.sleep(0.05)
        await connection.send(END)

    with raw_server(beats) as server:
        client = flavour.client(server.url, timeout=0.4)
        stream = client.create_and_stream_run()
        assert [event.event for event in await flavour.collect(stream)] == ["end"]
        await flavour.close(client)


@pytest.mark.parametrize("timeout", [None, Timeout(total=30)])
async def test_one_byte_at_a_time_works(flavour: Flavour, timeout: Any) -> None:
    """FAULTS: one byte at a time."""
    whole = META + VALUES + CUSTOM + END
    pieces = [whole[i : i + 1] for i in range(len(whole))]
    with raw_server(events(*pieces)) as server:
        client = flavour.client(server.url)
        stream = client.update_and_stream_run("r1", timeout=timeout)
        assert len(await flavour.collect(stream)) == 4
        await flavour.close(client)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (answer(200, b"<html>", content_type="text/html"), "expected text/event-stream .*html"),
        (json_answer("{}"), "got application/json; is base_url the root of the API"),
        (answer(200, b"x", content_type="text/event-streamx"), "got text/event-streamx"),
        (answer(200, b""), "got no content type"),
        (answer(204), "expected a body from POST /runs/stream, got 204"),
        (answer(302, location="/x"), "redirect"),
    ],
)
async def test_answer_that_is_no_stream_is_a_protocol_error(
    flavour: Flavour, script: Script, told: str
) -> None:
    """FAULTS: wrong content type, 204 on POST, redirect."""
    with raw_server(script) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        with pytest.raises(ProtocolError, match=told):
            await flavour.collect(stream)
        with pytest.raises(ProtocolError, match=told):
            await flavour.call(stream.final)
        assert stream.ended == "cut"
        await flavour.close(client)
    assert len(server.requests) == 1


async def test_content_type_is_compared_without_case_and_parameters(flavour: Flavour) -> None:
    """FAULTS: type case and parameters do not matter; charset is ignored."""
    kind = "Text/Event-Stream; charset=iso-8859-1"
    latin = 'event: custom\ndata: "ü"\n\n'.encode()
    with raw_server(events(latin, content_type=kind)) as server:
        client = flavour.client(server.url)
        assert await flavour.collect(client.create_and_stream_run()) == [CustomEvent("custom", "ü")]
        await flavour.close(client)


async def test_bad_event_is_told_after_those_before_it(flavour: Flavour) -> None:
    """FAULTS: bad JSON or shape: ProtocolError with raw, after the earlier events."""
    with raw_server(events(META + VALUES + b"event: values\ndata: {\n\n" + CUSTOM)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        assert await flavour.take(stream, 2) == [METADATA_EVENT, VALUES_EVENT]
        with pytest.raises(ProtocolError, match="'values'") as caught:
            await flavour.take(stream, 1)
        await flavour.close(client)
    assert (caught.value.raw, caught.value.run_id, caught.value.last_event_id) == (b"{", "r1", "2")


@pytest.mark.parametrize("located", ["/runs/r1", "/threads/t1/runs/r1"])
async def test_run_is_known_from_the_header(flavour: Flavour, located: str) -> None:
    """DESIGN: who is running, as soon as a header told it; metadata comes once."""
    with raw_server(events(META, VALUES, META, END, content_location=located)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        async with flavour.entered(stream):
            assert stream.run_id == "r1"
            found = await flavour.collect(stream)
            assert found == [METADATA_EVENT, VALUES_EVENT, END_EVENT]
            assert stream.thread_id == ("t1" if "t1" in located else None)
        await flavour.close(client)


async def test_thread_is_known_from_the_metadata(flavour: Flavour) -> None:
    """Seen on servers that name the thread there."""
    told = b'event: metadata\ndata: {"run_id":"r1","thread_id":"t1"}\n\n'
    with raw_server(events(told, END, content_location="/runs/r1")) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        await flavour.collect(stream)
        assert stream.run == RunRef("r1", "t1")
        await flavour.close(client)


@pytest.mark.parametrize("hostile", ["../x", "", "a\\r\\nb", "x" * 600])
async def test_hostile_run_id_is_not_taken_up(flavour: Flavour, hostile: str) -> None:
    """FAULTS, how a cut stream goes on, 1: a bad id does not kill the stream."""
    told = b"event: metadata\ndata: " + json.dumps({"run_id": hostile}).encode() + b"\n\n"
    with raw_server(events(told, VALUES, END)) as server:
        client = flavour.client(server.url)
        stream = client.update_and_stream_run(RunRef("r1", "t1"))
        assert len(await flavour.collect(stream)) == 3
        expected = RunRef("../x") if hostile == "../x" else RunRef("r1", "t1")
        if "\\" in hostile:
            expected = RunRef(hostile)
        assert stream.run == expected
        await flavour.close(client)


async def test_metadata_of_another_run_is_a_protocol_error(flavour: Flavour) -> None:
    """DESIGN: a metadata that names another run is a ProtocolError."""
    with raw_server(events(META, content_location="/runs/r2")) as server:
        client = flavour.client(server.url)
        with pytest.raises(ProtocolError, match="run r2 says that it is that of run r1"):
            await flavour.collect(client.create_and_stream_run())
        await flavour.close(client)


class State(BaseModel):
    n: int


async def test_values_of_a_stream_are_typed(flavour: Flavour) -> None:
    """values_type types the events and the result."""
    with raw_server(events(META, VALUES, ASKS, END)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run(values_type=State)
        found = await flavour.collect(stream)
        result = await flavour.call(stream.final)
        await flavour.close(client)
    assert [event.data for event in found[1:3]] == [State(n=1), State(n=1)]
    assert (result.values, len(result.interrupts)) == (State(n=1), 1)


async def test_request_of_a_stream_asks_for_identity(flavour: Flavour) -> None:
    """DESIGN, Timeouts: streams ask for identity; a server that compresses is read all the same."""
    import gzip

    body = gzip.compress(META + END)
    zipped = answer(200, body, content_type="text/event-stream", content_encoding="gzip")
    with raw_server(zipped) as server:
        client = flavour.client(server.url)
        assert await flavour.collect(client.create_and_stream_run()) == [METADATA_EVENT, END_EVENT]
        await flavour.close(client)
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_break_inside_the_block_closes_the_connection() -> None:
    """Shown when: seen on the server's side."""
    with raw_server(events(META, VALUES, hold=True)) as server:
        async with AsyncRunsClient(server.url) as client:
            async with client.create_and_stream_run() as stream:
                async for _ in stream:
                    break
            assert await asyncio.to_thread(server.closed.wait, BOUND)
            assert stream.ended == "closed"
            with pytest.raises(RuntimeError, match="closed"):
                await anext(stream)
            with pytest.raises(RuntimeError, match="closed"):
                await stream.final()


async def _fail_inside(client: AsyncRunsClient) -> None:
    async with client.create_and_stream_run() as stream:
        await anext(stream)
        raise KeyError


async def test_exception_inside_the_block_closes_the_connection() -> None:
    """Shown when: seen on the server's side."""
    with raw_server(events(META, hold=True)) as server:
        async with AsyncRunsClient(server.url) as client:
            with pytest.raises(KeyError):
                await _fail_inside(client)
            assert await asyncio.to_thread(server.closed.wait, BOUND)


async def _never_answers(connection: Connection) -> None:
    await connection.client_closes()


@pytest.mark.parametrize("script", [_never_answers, events(hold=True), events(META, hold=True)])
@pytest.mark.parametrize("in_block", [True, False])
async def test_cancellation_passes_untouched_and_closes_the_connection(
    script: Script, in_block: bool
) -> None:
    """FAULTS: task cancelled: the server sees the close; CancelledError passes untouched."""
    with raw_server(script) as server:
        async with AsyncRunsClient(server.url) as client:
            stream = client.create_and_stream_run()

            async def consume() -> None:
                if in_block:
                    async with stream:
                        await collect()
                else:
                    await collect()

            async def collect() -> None:
                async for _ in stream:
                    pass

            task = asyncio.create_task(consume())
            await asyncio.to_thread(server.asked.wait, BOUND)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.closed.wait, BOUND)
            assert stream.ended == "closed"
            assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelled_wait_call_closes_the_connection() -> None:
    """FAULTS: task cancelled."""
    with raw_server(_never_answers) as server:
        async with AsyncRunsClient(server.url) as client:
            task = asyncio.create_task(client.create_and_wait_run())
            await asyncio.to_thread(server.asked.wait, BOUND)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.closed.wait, BOUND)


@pytest.mark.parametrize("own", [False, True], ids=["ours", "the caller's"])
async def test_closing_the_client_ends_its_streams(own: bool) -> None:
    """FAULTS: client closed with streams open: the server sees the close."""
    theirs = httpx.AsyncClient()
    with raw_server(events(META, hold=True)) as server:
        client = AsyncRunsClient(server.url, http_client=theirs if own else None)
        stream = client.create_and_stream_run()
        await anext(stream)
        waiting = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(RuntimeError, match="the client was closed while"):
            await waiting
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        assert stream.ended == "closed"
        assert asyncio.all_tasks() == {asyncio.current_task()}
    await theirs.aclose()


async def test_dropped_stream_warns(recwarn: pytest.WarningsRecorder) -> None:
    """DESIGN: a stream dropped without closing says so with a ResourceWarning."""
    with raw_server(events(META, hold=True)) as server, warnings.catch_warnings():
        warnings.simplefilter("always")
        async with AsyncRunsClient(server.url) as client:
            stream = client.create_and_stream_run()
            await anext(stream)
            del stream
            gc.collect()
            assert await asyncio.to_thread(server.closed.wait, BOUND)
    told = [str(w.message) for w in recwarn if w.category is ResourceWarning]
    assert len(told) == 1
    assert "was not closed; use it in a with block" in told[0]


def _take_one_and_drop(client: RunsClient) -> None:
    for _ in client.create_and_stream_run():
        break
    gc.collect()


def test_dropped_sync_stream_is_freed_and_warns() -> None:
    """DESIGN: a stream left by break outside a with block is freed when collected."""
    with raw_server(events(META, hold=True)) as server, RunsClient(server.url) as client:
        with pytest.warns(ResourceWarning, match=r"BlockingRunStream.*was not closed"):
            _take_one_and_drop(client)
        assert server.closed.wait(BOUND)


def _raise_inside(client: RunsClient, error: type[BaseException]) -> None:
    with client.create_and_stream_run() as stream:
        next(stream)
        raise error


def test_break_and_exceptions_in_a_sync_block_close_the_connection() -> None:
    """DESIGN, sync: closed on every way out, KeyboardInterrupt among them."""
    for error in (KeyError, KeyboardInterrupt):
        with raw_server(events(META, hold=True)) as server, RunsClient(server.url) as client:
            with pytest.raises(error):
                _raise_inside(client, error)
            assert server.closed.wait(BOUND)
    with raw_server(events(META, hold=True)) as server, RunsClient(server.url) as client:
        with client.create_and_stream_run() as stream:
            for _ in stream:
                break
        assert server.closed.wait(BOUND)


def test_both_kinds_of_call_work_on_trio() -> None:
    """DESIGN, Dependencies: anyio; the client is bound to no event loop of its own."""

    async def main() -> list[Any]:
        async with AsyncRunsClient(server.url, timeout=Timeout(total=BOUND)) as client:
            result = await client.create_and_wait_run()
            return [result.values, *[event async for event in client.create_and_stream_run()]]

    with raw_server(json_answer('{"n":1}'), events(META, VALUES), answer(404)) as server:
        told = anyio.run(main, backend="trio")
    assert told == [{"n": 1}, METADATA_EVENT, VALUES_EVENT]


async def test_refused_stream_raises_on_entering(flavour: Flavour) -> None:
    """DESIGN: entering raises what opening the stream ended in."""
    with raw_server(answer(404)) as server:
        client = flavour.client(server.url)
        stream = client.update_and_stream_run("r1")
        with pytest.raises(NotFoundError) as caught:
            await flavour.call(
                stream.__aenter__ if isinstance(flavour, Async) else stream.__enter__
            )
        assert caught.value.run_id == "r1"
        await flavour.close(client)


async def test_empty_metadata_and_end_without_status(flavour: Flavour) -> None:
    """Seen on langrove: end is null."""
    blocks = b"event: metadata\ndata: {}\n\nevent: end\ndata: null\n\n"
    with raw_server(events(blocks)) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        assert await flavour.collect(stream) == [
            MetadataEvent("metadata", {}),
            EndEvent("end", None),
        ]
        assert (stream.run, stream.ended) == (None, "end")
        await flavour.close(client)


async def test_broken_chunk_in_the_packet_of_its_head_is_a_cut_stream(flavour: Flavour) -> None:
    """FAULTS: bad chunk. What came before it is handed over, the run is known."""

    async def script(connection: Connection) -> None:
        kind = {"content_type": "text/event-stream", "transfer_encoding": "chunked"}
        await connection.send(head(200, **kind) + chunk(META) + chunk(VALUES) + b"zz\r\n")

    with raw_server(script) as server:
        client = flavour.client(server.url)
        stream = client.create_and_stream_run()
        assert await flavour.take(stream, 2) == [METADATA_EVENT, VALUES_EVENT]
        with pytest.raises(StreamInterruptedError, match="cut after 2 events") as caught:
            await flavour.take(stream, 1)
        await flavour.close(client)
    assert (caught.value.status_code, caught.value.run_id) == (200, "r1")
