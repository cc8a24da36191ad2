"""The four calls on the wire: what is sent, and what comes out of every answer."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import math
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID

import httpx
import pytest
import respx
from pydantic import BaseModel
from typing_extensions import TypedDict as ExtendedTypedDict

import agentproto
from agentproto import (
    AgentProtoError,
    AsyncRunsClient,
    Command,
    Interrupt,
    Message,
    NotFoundError,
    ProtocolError,
    RequestTimeoutError,
    RetryPolicy,
    Run,
    RunConfig,
    RunCreate,
    RunFailedError,
    RunRef,
    RunsClient,
    RunStatus,
    RunUpdate,
    RunWaitResponse,
    ServerError,
    StatusError,
    Timeout,
    TransportError,
)

from .both import Async, Flavour
from .faults import SOON
from .raw_server import (
    BOUND,
    Connection,
    Script,
    answer,
    events,
    head,
    json_answer,
    raw_server,
)

RUN = "6f1f4e0c-55c9-4c3d-9d29-8c3c6c3ad0d5"
DONE = json.dumps(
    {
        "run": {"run_id": RUN, "thread_id": "t", "status": "success", "metadata": {}},
        "values": {"n": 1},
        "messages": [{"role": "assistant", "content": "hi"}],
    }
)


@pytest.mark.parametrize("base", ["", "/", "/api/v1", "/api/v1/"])
@pytest.mark.parametrize(
    ("method", "args", "path"),
    [
        ("create_and_wait_run", (), "/runs/wait"),
        ("update_and_wait_run", (RUN,), f"/runs/{RUN}/wait"),
        ("create_and_stream_run", (), "/runs/stream"),
        ("update_and_stream_run", (UUID(RUN),), f"/runs/{RUN}/stream"),
        ("update_and_wait_run", ("a/b",), "/runs/a%2Fb/wait"),
        ("update_and_wait_run", ("a?b",), "/runs/a%3Fb/wait"),
        ("update_and_wait_run", ("../x",), "/runs/..%2Fx/wait"),
        ("update_and_wait_run", ("%2e%2e",), "/runs/%252e%252e/wait"),
        ("update_and_wait_run", ("ü",), "/runs/%C3%BC/wait"),
    ],
)
async def test_call_goes_to_its_path_under_the_base_url(
    flavour: Flavour, base: str, method: str, args: tuple[Any, ...], path: str
) -> None:
    """Spec: paths of the Runs API; an id is exactly one encoded segment."""
    is_stream = "stream" in method
    ended = events(b"event: end\ndata: null\n\n")
    with raw_server(ended if is_stream else json_answer(DONE)) as server:
        client = flavour.client(server.url + base)
        if is_stream:
            await flavour.collect(getattr(client, method)(*args))
        else:
            await flavour.call(getattr(client, method), *args)
        await flavour.close(client)
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", base.rstrip("/") + path)
    assert request.headers["accept"] == ("text/event-stream" if is_stream else "application/json")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"agentproto/{agentproto.__version__}"
    assert request.body == b"{}"


async def test_fields_and_model_send_the_same(flavour: Flavour) -> None:
    """A create takes a RunCreate or its fields as keywords."""
    fields: dict[str, Any] = {
        "agent_id": "a",
        "input": None,
        "messages": [{"role": "user", "content": "hi"}],
        "config": RunConfig(recursion_limit=3),
        "stream_mode": ["values", "updates"],
    }
    with raw_server(json_answer(DONE)) as server:
        client = flavour.client(server.url)
        wait = client.create_and_wait_run
        await flavour.call(wait, **fields, extra_body={"stream_resumable": True})
        await flavour.call(wait, RunCreate(**fields), extra_body={"stream_resumable": True})
        await flavour.call(client.update_and_wait_run, RUN, command={"resume": None})
        await flavour.call(client.update_and_wait_run, RUN, RunUpdate(command=Command(resume=None)))
        await flavour.close(client)
    create, same, update, same_update = (json.loads(r.body) for r in server.requests)
    assert create == same
    assert create == {
        "agent_id": "a",
        "input": None,
        "messages": [{"role": "user", "content": "hi"}],
        "config": {"recursion_limit": 3},
        "stream_mode": ["values", "updates"],
        "stream_resumable": True,
    }
    assert update == same_update == {"command": {"resume": None}}


async def _at_once(call: Any, *args: Any, **arguments: Any) -> Any:
    return call(*args, **arguments)


@pytest.mark.parametrize(
    ("method", "args", "arguments", "error", "told"),
    [
        ("create", (), {"agentid": "a"}, TypeError, "'agentid'; did you mean 'agent_id'"),
        ("create", (), {"value_type": int}, TypeError, "did you mean 'values_type'"),
        ("create", (), {"qqq": "a"}, TypeError, "extra_body="),
        ("create", (), {"stream_mode": 5}, ValueError, "RunCreate: stream_mode"),
        ("create", (), {"input": {"a": math.nan}}, ValueError, r"input\.a"),
        ("create", (), {"input": b"x"}, TypeError, "input: bytes"),
        ("create", (RunCreate(),), {"agent_id": "a"}, TypeError, "'agent_id', too"),
        ("create", ({"agent_id": "a"},), {}, TypeError, "expected RunCreate.*got dict"),
        ("create", (), {"agent_id": "a", "extra_body": {"agent_id": 1}}, ValueError, "agent_id"),
        ("create", (), {"extra_body": [1]}, TypeError, "extra_body: expected a mapping"),
        ("create", (), {"extra_body": {"a": b""}}, TypeError, "a: bytes"),
        ("create", (), {"timeout": -1}, ValueError, r"timeout\.idle"),
        ("create", (), {"headers": {"x": "a\r\nb: c"}}, ValueError, "'x'"),
        ("create", (), {"values_type": object()}, TypeError, "values_type"),
        ("update", (None,), {}, TypeError, "until the stream has started"),
        ("update", ("",), {}, ValueError, "run_id"),
        ("update", (".",), {}, ValueError, "run_id"),
        ("update", (RUN,), {"resume": 1}, TypeError, r"command=Command\(resume=\.\.\.\)"),
        ("update", (RUN,), {"goto": 1}, TypeError, r"command=Command\(goto=\.\.\.\)"),
        ("update", (RUN,), {"command": {"resum": 1}}, ValueError, "command.resum"),
        ("update", (RUN, RunUpdate()), {"command": None}, TypeError, "'command', too"),
    ],
)
@pytest.mark.parametrize("kind", ["wait", "stream"])
async def test_bad_argument_is_refused_before_anything_is_sent(
    flavour: Flavour,
    kind: str,
    method: str,
    args: tuple[Any, ...],
    arguments: dict[str, Any],
    error: type[Exception],
    told: str,
) -> None:
    """Bad input gets a clear error, and no run."""
    with raw_server(json_answer(DONE)) as server:
        client = flavour.client(server.url)
        call = getattr(client, f"{method}_and_{kind}_run")
        # A stream is refused where it is made, not where it is first used.
        make = flavour.call if kind == "wait" else _at_once
        with pytest.raises(error, match=told):
            await make(call, *args, **arguments)
        await flavour.close(client)
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"base_url": "localhost:8000"}, ValueError, "write it like http://localhost:8000"),
        ({"base_url": "ftp://x"}, ValueError, "no http:// or https://"),
        ({"base_url": "http://"}, ValueError, "names no host"),
        ({"base_url": "http://[::1"}, ValueError, "cannot be read"),
        ({"base_url": "http://x:99999"}, ValueError, "cannot be read"),
        ({"base_url": "http://x/?key=secret"}, ValueError, "query"),
        ({"base_url": "http://x y/"}, ValueError, "white space"),
        ({"base_url": "http://a..b"}, ValueError, "a part that is empty or over 63"),
        ({"base_url": f"http://{'x' * 64}.com"}, ValueError, "a part that is empty or over 63"),
        ({"base_url": "user:secret@host"}, ValueError, "^base_url: it has no"),
        ({"headers": {"a b": "c"}}, ValueError, "'a b' is not a header name"),
        ({"headers": {"a": "secret\n"}}, ValueError, "value of 'a'"),
        ({"headers": {"a": "secret\u00fc"}}, ValueError, "value of 'a'"),
        ({"headers": {"a": 5}}, TypeError, "got str and int"),
        ({"auth": "secret"}, TypeError, "got str"),
        ({"auth": ("u", 5)}, TypeError, "got tuple"),
        ({"timeout": "5"}, TypeError, "timeout.idle: expected seconds"),
        ({"timeout": True}, TypeError, "timeout.idle: expected seconds"),
        ({"timeout": 0}, ValueError, "above 0"),
        ({"timeout": math.nan}, ValueError, "above 0"),
        ({"transport": object()}, TypeError, "transport: expected httpx"),
        ({"http_client": object()}, TypeError, "http_client: expected httpx"),
    ],
)
def test_bad_argument_of_a_client_is_refused(
    flavour: Flavour, arguments: dict[str, Any], error: type[Exception], told: str
) -> None:
    """Bad input gets a clear error, which never shows a secret."""
    with pytest.raises(error, match=told) as caught:
        flavour.client(**{"url": "http://x", **_renamed(arguments)})
    assert "secret" not in str(caught.value)


def _renamed(arguments: dict[str, Any]) -> dict[str, Any]:
    return {("url" if name == "base_url" else name): v for name, v in arguments.items()}


def test_transport_and_client_together_are_refused() -> None:
    """A client of the caller's has a transport of its own."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    with pytest.raises(TypeError, match="give one of them"):
        RunsClient(transport=transport, http_client=httpx.Client())
    with pytest.raises(TypeError, match="give one of them"):
        AsyncRunsClient(transport=transport, http_client=httpx.AsyncClient())


async def test_answer_is_parsed(flavour: Flavour) -> None:
    """Spec: schema RunWaitResponse."""
    with raw_server(json_answer(b"\n\n" + DONE.encode())) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    run = Run.model_validate(
        {"run_id": RUN, "thread_id": "t", "status": RunStatus.SUCCESS, "metadata": {}}
    )
    assert result == RunWaitResponse(
        run=run,
        values={"n": 1},
        messages=[Message(role="assistant", content="hi")],
        interrupts=[],
    )


class Model(BaseModel):
    n: int


class Dict(ExtendedTypedDict):
    n: int


class OldDict(TypedDict):
    n: int


@pytest.mark.parametrize(("kind", "values"), [(Model, Model(n=1)), (Dict, {"n": 1})])
async def test_values_are_of_the_type_asked_for(flavour: Flavour, kind: Any, values: Any) -> None:
    """values_type types the output."""
    with raw_server(json_answer(DONE)) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.create_and_wait_run, values_type=kind)
        await flavour.close(client)
    assert result.values == values
    assert type(result.values) is type(values)


@pytest.mark.parametrize(
    ("body", "kind", "values", "interrupts"),
    [
        ('{"values":{"n":1,"__interrupt__":[{"id":"i","value":2}]}}', None, {"n": 1}, ["i"]),
        ('{"values":{"n":1,"__interrupt__":[{"id":"i"}]}}', Model, Model(n=1), ["i"]),
        ('{"__interrupt__":[{"id":"i"},{"id":"j"}]}', Model, None, ["i", "j"]),
        ('{"__interrupt__":[{"id":"i"}]}', None, {}, ["i"]),
        ('{"run":null,"values":null,"messages":null}', None, None, []),
        ('{"run":{},"interrupts":[{"id":"i"}]}', None, None, ["i"]),
        ('{"n":1}', Model, Model(n=1), []),
        ("{}", None, {}, []),
    ],
)
async def test_values_and_interrupts_are_found_wherever_they_stand(
    flavour: Flavour, body: str, kind: Any, values: Any, interrupts: list[str]
) -> None:
    """Any JSON object is a body: the spec's triple, or the bare values."""
    with raw_server(json_answer(body)) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.create_and_wait_run, values_type=kind)
        await flavour.close(client)
    assert result.values == values
    assert [interrupt.id for interrupt in result.interrupts] == interrupts


async def test_interrupts_without_the_usual_shape_are_kept(flavour: Flavour) -> None:
    """Nothing a server asks is lost."""
    with raw_server(json_answer('{"__interrupt__":["why?",{"id":5}]}')) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert result.interrupts == [Interrupt(value="why?"), Interrupt(value={"id": 5})]


async def test_bare_values_with_messages_give_messages(flavour: Flavour) -> None:
    """Seen on langgraph dev: wait answers with the state alone."""
    bodies = ['{"messages":[{"type":"ai","content":"a"}]}', '{"messages":[{"x":1}]}']
    with raw_server(*map(json_answer, bodies)) as server:
        client = flavour.client(server.url)
        good = await flavour.call(client.create_and_wait_run)
        odd = await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert [message.text for message in good.messages] == ["a"]
    assert odd.messages == []
    assert odd.values == {"messages": [{"x": 1}]}


@pytest.mark.parametrize(
    ("headers", "run_id", "thread_id"),
    [
        ({"content_location": f"/runs/{RUN}"}, RUN, None),
        ({"content_location": f"/threads/t1/runs/{RUN}"}, RUN, "t1"),
        ({"location": f"https://evil.example/x/threads/t1/runs/{RUN}/stream"}, RUN, "t1"),
        ({"content_location": "/runs/..", "location": f"/runs/{RUN}"}, RUN, None),
        ({"content_location": "/runs/%2e%2e"}, None, None),
        ({"content_location": "/runs/a%0d%0ab"}, None, None),
        ({"content_location": "/runs"}, None, None),
        ({"content_location": f"/runs/{RUN}/other"}, None, None),
    ],
)
async def test_run_is_named_by_headers_where_the_body_does_not(
    flavour: Flavour, headers: dict[str, str], run_id: str | None, thread_id: str | None
) -> None:
    """FAULTS, how a cut stream goes on, 1: only the ids are read out of the URL."""
    with raw_server(json_answer('{"n":1}', 200, **headers)) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert (result.run.run_id, result.run.thread_id) == (run_id, thread_id)


async def test_run_of_an_update_is_that_of_the_call(flavour: Flavour) -> None:
    """What the server leaves out, the call knows."""
    with raw_server(json_answer('{"n":1}')) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.update_and_wait_run, RunRef(RUN, "t"))
        again = await flavour.call(client.update_and_wait_run, result)
        await flavour.close(client)
    assert (again.run.run_id, again.run.thread_id) == (RUN, "t")


FAILED = (
    '{"run":{"run_id":"r","status":"error","error":{"code":"ValueError","message":"boom"}},'
    '"values":{"half":1}}'
)


async def test_failed_run_is_no_result(flavour: Flavour) -> None:
    """DESIGN: a run that ended in error or timeout raises RunFailedError."""
    with raw_server(json_answer(FAILED)) as server:
        client = flavour.client(server.url)
        with pytest.raises(RunFailedError, match="run r ended with status error: ValueError: boom"):
            await flavour.call(client.create_and_wait_run, values_type=Model)
        with pytest.raises(RunFailedError) as caught:
            await flavour.call(client.create_and_wait_run)
        result = await flavour.call(client.create_and_wait_run, raise_on_failure=False)
        await flavour.close(client)
    assert caught.value.response == result
    assert (caught.value.run_id, caught.value.status_code) == ("r", 200)
    assert (result.run.status, result.values) == ("error", {"half": 1})


async def test_failed_run_without_an_id_is_no_result(flavour: Flavour) -> None:
    """DESIGN: what the server left out is None."""
    with raw_server(json_answer('{"run":{"status":"timeout"}}')) as server:
        client = flavour.client(server.url, raise_on_failure=False)
        with pytest.raises(RunFailedError, match="the run ended with status timeout") as caught:
            await flavour.call(client.create_and_wait_run, raise_on_failure=True)
        await flavour.close(client)
    assert caught.value.run_id is None


@pytest.mark.parametrize("status", ["interrupted", "success", "running", "odd"])
async def test_run_that_did_not_fail_is_a_result(flavour: Flavour, status: str) -> None:
    """DESIGN: interrupted is no failure; statuses that are not known survive."""
    with raw_server(json_answer(f'{{"run":{{"status":"{status}"}}}}')) as server:
        client = flavour.client(server.url)
        result = await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert result.run.status == status


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (answer(200, b"<html>hi</html>", content_type="text/html"), "got text/html"),
        (answer(200, b""), "got no content type"),
        (json_answer("{"), "expected a JSON object"),
        (json_answer("[1]"), "got list"),
        (json_answer('"x"'), "got str"),
        (json_answer('{"run":{"run_id":5}}'), "run_id"),
        (json_answer('{"run":5}'), "Run"),
        (json_answer('{"values":5}'), "valid dictionary"),
        (json_answer('{"values":{},"messages":5}'), "messages"),
        (json_answer('{"values":{},"messages":[{}]}'), "messages.0"),
        (answer(204), "204 No Content"),
        (answer(205), "205"),
        (answer(307, location="https://evil.example/"), "https://evil.example/"),
        (answer(302, location="http://["), "redirect"),
        (answer(304), "a redirect to 'nowhere'"),
        (answer(302, location="http://x:nan/"), "a redirect to 'http://x:nan/'"),
    ],
)
@pytest.mark.parametrize("method", ["create_and_wait_run", "update_and_wait_run"])
async def test_answer_outside_the_protocol_is_a_protocol_error(
    flavour: Flavour, method: str, script: Script, told: str
) -> None:
    """FAULTS: wrong content type, bad JSON or shape, 204 on POST, redirects."""
    args = (RUN,) if method.startswith("update") else ()
    with raw_server(script) as server:
        client = flavour.client(server.url)
        with pytest.raises(ProtocolError, match=told):
            await flavour.call(getattr(client, method), *args)
        await flavour.close(client)
    assert len(server.requests) == 1


async def test_values_of_another_type_are_a_protocol_error(flavour: Flavour) -> None:
    """FAULTS: bad shape, with the raw bytes."""
    body = '{"values":{"n":"many"}}'
    with raw_server(json_answer(body, content_location="/runs/r1", x_request_id="q1")) as server:
        client = flavour.client(server.url)
        with pytest.raises(
            ProtocolError, match="do not fit values_type: n: Input should be"
        ) as caught:
            await flavour.call(client.create_and_wait_run, values_type=Model)
        await flavour.close(client)
    error = caught.value
    assert error.raw == body.encode()
    assert (error.run_id, error.request_id, error.status_code) == ("r1", "q1", 200)


async def test_redirect_reaches_nobody(flavour: Flavour) -> None:
    """FAULTS: a redirect is not followed, also on a client that would; no header leaves."""
    kind = httpx.AsyncClient if isinstance(flavour, Async) else httpx.Client
    with raw_server(json_answer(DONE)) as target:
        moved = answer(308, location=f"{target.url}/runs/wait")
        with raw_server(moved) as server:
            own = kind(follow_redirects=True)
            client = flavour.client(server.url, http_client=own, headers={"x-key": "secret"})
            with pytest.raises(ProtocolError, match="make it the base_url"):
                await flavour.call(client.create_and_wait_run)
            await _close(own)
    assert target.requests == []


@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
async def test_redirect_is_told_as_it_was_asked_for(flavour: Flavour, own: bool) -> None:
    """An id stays one segment there, too."""
    kind = httpx.AsyncClient if isinstance(flavour, Async) else httpx.Client
    given = {} if own else {"http_client": kind()}
    with raw_server(answer(307, location="/caf\u00e9")) as server:
        client = flavour.client(server.url, **given)
        with pytest.raises(ProtocolError, match=r"GET /runs/r%C3%BC%2Fx was answered 307 .* '/caf"):
            await flavour.call(client.get_run, "r\u00fc/x")
        await flavour.close(client)
        for http_client in given.values():
            await _close(http_client)


async def _close(own: httpx.AsyncClient | httpx.Client) -> None:
    if isinstance(own, httpx.AsyncClient):
        await own.aclose()
    else:
        await asyncio.to_thread(own.close)


@pytest.mark.parametrize("status", [404, 409, 422, 500])
@pytest.mark.parametrize(
    ("body", "kind", "shown"),
    [
        (b'{"code":"c","message":"said so"}', "application/json", '{"code":"c"'),
        (b"<html>", "text/html", "<html>"),
        (b"", "", ""),
        (b"x" * (20 * 2**20), "text/plain", "xxx"),
    ],
    ids=["json", "html", "nothing", "20 MB"],
)
async def test_refusal_is_typed_by_its_status(
    flavour: Flavour, status: int, body: bytes, kind: str, shown: str
) -> None:
    """FAULTS: 4xx and 5xx are typed with one request; text cut at 2 kB, bodies read bounded."""
    with raw_server(answer(status, body, content_type=kind, x_request_id="q")) as server:
        client = flavour.client(server.url)
        with pytest.raises(StatusError) as wait:
            await flavour.call(client.update_and_wait_run, RunRef("r", "t"))
        with pytest.raises(StatusError) as stream:
            await flavour.collect(client.update_and_stream_run(RunRef("r", "t")))
        await flavour.close(client)
    for error in (wait.value, stream.value):
        assert error.status_code == status
        assert error.body.startswith(shown)
        assert len(error.body) <= 2000
        assert (error.run_id, error.thread_id, error.request_id) == ("r", "t", "q")
    assert len(server.requests) == 2


async def test_cut_error_body_is_still_typed_by_status(flavour: Flavour) -> None:
    """FAULTS: error body stalled or cut."""

    async def cut(connection: Connection) -> None:
        await connection.send(head(503, content_length="100"), b"{")
        connection.reset()

    with raw_server(cut) as server:
        client = flavour.client(server.url)
        with pytest.raises(ServerError, match="503 Service Unavailable") as caught:
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert caught.value.body == "{"


async def _stalled_error(connection: Connection) -> None:
    await connection.send(head(500, content_length="100"), b'{"detail"')
    await connection.client_closes()


async def _dripped_error(connection: Connection) -> None:
    await connection.send(head(500, content_length="1000000"))
    while not connection.reader.at_eof():
        await connection.send(b" ")
        await asyncio.sleep(0)


@pytest.mark.parametrize("script", [_stalled_error, _dripped_error])
async def test_error_body_is_read_within_bounds_of_time(
    flavour: Flavour, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS: error body stalled or endless: 64 KiB and 5 s in all, typed by status."""
    assert agentproto._session.ERROR_SECONDS == 5
    monkeypatch.setattr("agentproto._session.ERROR_SECONDS", 0.2)
    with raw_server(script) as server:
        client = flavour.client(server.url, timeout=Timeout(total=60))
        with pytest.raises(ServerError):
            await flavour.call(client.create_and_wait_run)
        assert await asyncio.to_thread(server.closed.wait, BOUND)
        await flavour.close(client)


async def test_refused_connection_says_where(flavour: Flavour) -> None:
    """FAULTS: refused."""
    with raw_server(json_answer(DONE)) as server:
        url = server.url
    client = flavour.client(url + "/api")
    with pytest.raises(TransportError, match=f"could not connect to {url}/.*server running"):
        await flavour.call(client.update_and_wait_run, "r")
    await flavour.close(client)


async def test_connection_that_is_not_accepted_ends_by_its_limit(flavour: Flavour) -> None:
    """FAULTS: connect timeout; a full backlog leaves a connection unanswered."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        client = flavour.client(f"http://127.0.0.1:{address[1]}", timeout=Timeout(connect=0.2))
        with pytest.raises(RequestTimeoutError, match=r"timeout\.connect") as caught:
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert (caught.value.limit, caught.value.seconds) == ("connect", 0.2)


async def _cut_body(connection: Connection) -> None:
    await connection.send(head(200, content_length="100", content_location="/runs/r1"), b"{")


async def _reset_before_status(connection: Connection) -> None:
    connection.reset()


async def _garbage(connection: Connection) -> None:
    await connection.send(b"SSH-2.0-nope\r\n\r\n")


@pytest.mark.parametrize(
    ("script", "run_id"), [(_cut_body, "r1"), (_reset_before_status, None), (_garbage, None)]
)
async def test_cut_wait_is_a_transport_error_and_one_request(
    flavour: Flavour, script: Script, run_id: str | None
) -> None:
    """FAULTS: reset, EOF and garbage raise, with one request; the run is named where known."""
    with raw_server(script) as server:
        client = flavour.client(server.url)
        with pytest.raises(TransportError) as caught:
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    assert caught.value.run_id == run_id
    assert caught.value.__cause__ is not None
    assert len(server.requests) == 1


async def _silent(connection: Connection) -> None:
    await connection.client_closes()


async def _stalled(connection: Connection) -> None:
    await connection.send(head(200, content_length="100"), b"{")
    await connection.client_closes()


@pytest.mark.parametrize("script", [_silent, _stalled])
@pytest.mark.parametrize(
    ("timeout", "limit"),
    [(Timeout(idle=0.2), "idle"), (0.2, "idle"), (Timeout(idle=None, total=0.3), "total")],
)
async def test_silence_ends_in_a_timeout_that_names_its_limit(
    flavour: Flavour, script: Script, timeout: Any, limit: str
) -> None:
    """FAULTS: stall. Each timeout error says which limit, how many seconds, what to change."""
    with raw_server(script) as server:
        client = flavour.client(server.url)
        with pytest.raises(RequestTimeoutError, match=rf"timeout\.{limit}") as caught:
            await flavour.call(client.create_and_wait_run, timeout=timeout)
        assert await asyncio.to_thread(server.closed.wait, SOON)
        await flavour.close(client)
    assert caught.value.limit == limit
    assert f"{caught.value.seconds:g} s" in str(caught.value)


async def _early_hints_for_ever(connection: Connection) -> None:
    while not connection.reader.at_eof():
        await connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0)


async def test_endless_1xx_ends_by_idle() -> None:
    """FAULTS: endless 1xx; each starts httpx's own timer anew."""
    with raw_server(_early_hints_for_ever) as server:
        async with AsyncRunsClient(server.url, timeout=0.2) as client:
            with pytest.raises(RequestTimeoutError, match=r"timeout\.idle"):
                await client.create_and_wait_run()
        assert await asyncio.to_thread(server.closed.wait, BOUND)


async def test_sync_total_is_checked_between_reads() -> None:
    """DESIGN, Timeouts: sync clients check the total limit between port calls."""

    async def drip(connection: Connection) -> None:
        await connection.send(head(200, content_length="1000000"))
        while not connection.reader.at_eof():
            await connection.send(b" ")
            await asyncio.sleep(0)

    def call() -> None:
        with RunsClient(server.url, timeout=Timeout(total=0.2)) as client:
            client.create_and_wait_run()

    with raw_server(drip) as server:
        with pytest.raises(RequestTimeoutError, match=r"timeout\.total"):
            await asyncio.to_thread(call)
        assert server.closed.wait(BOUND)


async def test_full_pool_says_what_to_do() -> None:
    """DESIGN, Timeouts: a pool wait that times out says what to do."""
    own = httpx.AsyncClient(limits=httpx.Limits(max_connections=1))
    with raw_server(events(b": hi\n\n", hold=True)) as server:
        client = AsyncRunsClient(server.url, http_client=own, timeout=Timeout(connect=0.1))
        async with client.create_and_stream_run():
            with pytest.raises(RequestTimeoutError, match="max_connections") as caught:
                await client.create_and_wait_run()
        await own.aclose()
    assert caught.value.limit == "pool"


async def test_no_limit_is_none(flavour: Flavour) -> None:
    """None is no limit."""
    with raw_server(json_answer(DONE)) as server:
        client = flavour.client(server.url, timeout=None)
        assert (await flavour.call(client.create_and_wait_run)).values == {"n": 1}
        await flavour.close(client)


async def test_client_of_the_caller_is_used_and_not_closed() -> None:
    """DESIGN: its headers and auth apply unless ours are given; its base_url is ignored."""
    own = httpx.AsyncClient(
        base_url="http://elsewhere.example", headers={"x-own": "1"}, auth=("u", "p")
    )
    with raw_server(json_answer(DONE)) as server:
        async with AsyncRunsClient(server.url, http_client=own, headers={"x-ours": "2"}) as client:
            await client.create_and_wait_run()
            await client.create_and_wait_run(headers={"X-Ours": "3"})
        assert not own.is_closed
        agent = httpx.AsyncClient(headers={"user-agent": "mine/1"})
        async with AsyncRunsClient(server.url, http_client=agent, auth=("a", "b")) as client:
            await client.create_and_wait_run()
        await own.aclose()
        await agent.aclose()
    first, second, third = (request.headers for request in server.requests)
    assert (first["x-own"], first["x-ours"], second["x-ours"]) == ("1", "2", "3")
    assert first["authorization"] == "Basic " + base64.b64encode(b"u:p").decode()
    assert first["user-agent"] == f"agentproto/{agentproto.__version__}"
    assert third["user-agent"] == "mine/1"
    assert third["authorization"] == "Basic " + base64.b64encode(b"a:b").decode()


class Bearer(httpx.Auth):
    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["authorization"] = "Bearer t"
        yield request


def sign(request: httpx.Request) -> httpx.Request:
    request.headers["authorization"] = "Signed"
    return request


@pytest.mark.parametrize(
    ("url_auth", "auth", "sent"),
    [
        ("us%40er:p%3Aw@", None, "Basic " + base64.b64encode(b"us@er:p:w").decode()),
        ("user@", None, "Basic " + base64.b64encode(b"user:").decode()),
        ("user:pw@", ("a", "b"), "Basic " + base64.b64encode(b"a:b").decode()),
        ("", Bearer(), "Bearer t"),
        ("", sign, "Signed"),
    ],
)
async def test_auth_is_what_httpx_takes(
    flavour: Flavour, url_auth: str, auth: Any, sent: str
) -> None:
    """Userinfo in base_url becomes auth and leaves the URL."""
    with raw_server(json_answer(DONE)) as server:
        url = server.url.replace("http://", f"http://{url_auth}")
        client = flavour.client(url, auth=auth)
        await flavour.call(client.create_and_wait_run)
        assert repr(client) == f"<{type(client).__name__} {server.url}/>"
        await flavour.close(client)
    (request,) = server.requests
    assert request.headers["authorization"] == sent
    assert "@" not in request.headers["host"]


async def test_secrets_are_told_nobody(flavour: Flavour, caplog: pytest.LogCaptureFixture) -> None:
    """Header values that hold secrets never show in a repr, an error or a log."""
    caplog.set_level(logging.DEBUG)
    with raw_server(answer(500, b"no")) as server:
        url = server.url.replace("http://", "http://user:s3cret1@")
        client = flavour.client(url, headers={"x-api-key": "s3cret2"})
        with pytest.raises(ServerError) as caught:
            await flavour.call(client.create_and_wait_run, headers={"x-other": "s3cret3"})
        stream = client.create_and_stream_run()
        told = [repr(client), repr(stream), str(caught.value), repr(caught.value), caplog.text]
        told.append(repr(caught.value.__dict__))
        await flavour.close(client)
    assert "s3cret" not in "".join(told)
    assert "HTTP Request" in caplog.text


ASKED: dict[str, Callable[[Flavour, Any], Awaitable[Any]]] = {
    "wait": lambda flavour, client: flavour.call(client.create_and_wait_run),
    "stream": lambda flavour, client: flavour.collect(client.create_and_stream_run()),
}


@pytest.mark.parametrize("body", [b"no", b"{"])
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
async def test_secrets_are_in_no_plain_local_of_a_frame(
    flavour: Flavour, ask: Callable[[Flavour, Any], Awaitable[Any]], body: bytes
) -> None:
    """Who reports errors walks through the mappings and sequences of every frame's locals."""
    status = 500 if body == b"no" else 200
    cookie = {"set_cookie": "sid=s3cret1; Path=/"}
    with raw_server(answer(status, body, content_type="application/json", **cookie)) as server:
        client = flavour.client(server.url, headers={"x-api-key": "s3cret2"}, auth=("u", "s3cret3"))
        with pytest.raises(AgentProtoError) as caught:
            await ask(flavour, client)
        await flavour.close(client)
    package = Path(agentproto.__file__).parent
    ours = [each for each in caught.traceback if package in Path(each.path).parents]
    assert len(ours) > 4
    held = [(each.name, *found) for each in ours for found in _plain_in(each.frame.f_locals, ())]
    assert [at for *at, text in held if "s3cret" in text] == []
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    of_ours = [frame for frame in shown.stack if package in Path(frame.filename).parents]
    assert "s3cret" not in str([frame.locals for frame in of_ours])


def _plain_in(value: object, at: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], str]]:
    """Each text in there that needs no attribute to come to, and where."""
    if isinstance(value, str | bytes):
        yield at, str(value)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _plain_in(each, (*at, name))
    elif isinstance(value, Sequence | AbstractSet):
        for place, each in enumerate(value):
            yield from _plain_in(each, (*at, place))


async def test_closed_client_says_so(flavour: Flavour) -> None:
    """Using a closed client is a RuntimeError that says so; closing twice is fine."""
    client = flavour.client("http://127.0.0.1:9")
    await flavour.close(client)
    await flavour.close(client)
    with pytest.raises(RuntimeError, match="this client is closed"):
        await flavour.call(client.create_and_wait_run)
    with pytest.raises(RuntimeError, match="this client is closed"):
        await flavour.collect(client.create_and_stream_run())


async def test_cookie_is_kept(flavour: Flavour) -> None:
    """Load balancers find the server of a session by one, whichever call had set it."""
    set_by = [json_answer(DONE, set_cookie=told) for told in ("node=a; Path=/", "b=caf\u00e9")]
    with raw_server(json_answer(DONE), *set_by, json_answer(DONE)) as server:
        client = flavour.client(server.url)
        for _ in range(4):
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    sent = [request.headers.get("cookie") for request in server.requests]
    assert sent == [None, None, "node=a", "node=a"]


async def test_connection_is_asked_for_unless_the_caller_does_not_want_it(flavour: Flavour) -> None:
    """As httpx asks by itself; a server of HTTP/1.0 keeps none without."""
    with raw_server(json_answer(DONE)) as server:
        client = flavour.client(server.url)
        await flavour.call(client.create_and_wait_run)
        await flavour.call(client.create_and_wait_run, headers={"Connection": "close"})
        await flavour.close(client)
    asked = [request.headers["connection"].lower() for request in server.requests]
    assert asked == ["keep-alive", "close"]


class Signing(httpx.Client):
    """A client of a caller's, as companies have one."""

    def build_request(self, method: str, url: Any, **options: Any) -> httpx.Request:
        assert url.endswith("/runs/wait")
        assert options["timeout"].read == 7
        options["extensions"] = {"sni_hostname": "x"}
        return super().build_request(method, url, **options)


def test_client_of_the_caller_may_build_requests_itself() -> None:
    """It is asked as always; what it adds stays, and so do the limits."""
    built: list[httpx.Request] = []
    with raw_server(json_answer(DONE)) as server, Signing() as own:
        own.event_hooks = {"request": [built.append]}
        RunsClient(server.url, http_client=own, timeout=7).create_and_wait_run()
    assert built[0].extensions.keys() >= {"sni_hostname", "timeout", "trace"}


def test_sync_client_is_a_context_manager() -> None:
    """Both clients work with and without `with`."""
    with raw_server(json_answer(DONE)) as server:
        with RunsClient(server.url) as client:
            assert client.create_and_wait_run().values == {"n": 1}
        with pytest.raises(RuntimeError, match="closed"):
            client.create_and_wait_run()


@respx.mock
async def test_default_base_url_is_that_of_the_spec() -> None:
    """Spec: RunsApi, defaults to http://localhost."""
    route = respx.post("http://localhost/runs/wait").respond(json={"values": {}})
    async with AsyncRunsClient() as client:
        await client.create_and_wait_run()
    assert route.called


async def test_transport_of_the_caller_is_used() -> None:
    """An httpx transport in the place of the network's."""
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json={"values": {"n": 2}})

    transport = httpx.MockTransport(handle)
    async with AsyncRunsClient("http://x/p", transport=transport) as client:
        assert (await client.create_and_wait_run()).values == {"n": 2}
    with RunsClient("https://[::1]:8/p/", transport=transport) as sync:
        assert sync.create_and_wait_run().values == {"n": 2}
    assert seen == ["http://x/p/runs/wait", "https://[::1]:8/p/runs/wait"]


class Pieces(httpx.AsyncByteStream, httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield from [b"", DONE.encode(), b""]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


class Silent:
    def get_extra_info(self, _: str) -> None: ...


@pytest.mark.parametrize("is_known", [True, False])
async def test_empty_pieces_of_a_body_are_not_its_end(flavour: Flavour, is_known: bool) -> None:
    """A transport may yield them, whether it tells of its connection or not."""
    told: dict[str, Any] = {"http_version": b"HTTP/1.1", "network_stream": Silent()}
    answered = httpx.Response(
        200,
        headers={"content-type": "application/json"},
        stream=Pieces(),
        extensions=told if is_known else {},
    )
    transport = httpx.MockTransport(lambda _: answered)
    client = flavour.client("http://x", transport=transport)
    assert (await flavour.call(client.create_and_wait_run)).values == {"n": 1}
    await flavour.close(client)


async def test_compressed_answer_is_read(flavour: Flavour) -> None:
    """A server may compress what it answers to a wait call."""
    import gzip

    body = gzip.compress(DONE.encode())
    with raw_server(json_answer(body, content_encoding="gzip")) as server:
        client = flavour.client(server.url)
        assert (await flavour.call(client.create_and_wait_run)).values == {"n": 1}
        await flavour.close(client)


async def test_response_that_a_hook_has_read_is_read_again() -> None:
    """A client of the caller's may have hooks that read every response."""

    async def read(response: httpx.Response) -> None:
        await response.aread()

    own = httpx.AsyncClient(event_hooks={"response": [read]})
    with raw_server(json_answer(DONE)) as server:
        client = AsyncRunsClient(server.url, http_client=own)
        assert (await client.create_and_wait_run()).values == {"n": 1}
        await own.aclose()


@pytest.mark.parametrize("value", ["s3cret\x00", "s3cret\n", " s3cret"])
async def test_header_that_cannot_be_written_is_not_told(
    flavour: Flavour, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An auth callable may put in what HTTP does not allow; h11 quotes it, and httpcore logs it."""

    def spoil(request: httpx.Request) -> httpx.Request:
        request.headers["x-key"] = value
        return request

    caplog.set_level(logging.DEBUG)
    with raw_server(json_answer(DONE)) as server:
        client = flavour.client(server.url, auth=spoil)
        with pytest.raises(ValueError, match="auth: the value of 'x-key'") as caught:
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
    told = caplog.text + "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in told
    assert server.requests == []


async def test_cause_that_quotes_a_header_is_left_out(flavour: Flavour) -> None:
    """A client of the caller's has its own auth: ours do not tell what h11 says of it."""
    kind = httpx.AsyncClient if isinstance(flavour, Async) else httpx.Client
    own = kind(headers={"x-key": "s3cret\x00"})
    with raw_server(json_answer(DONE)) as server:
        client = flavour.client(server.url, http_client=own)
        with pytest.raises(TransportError, match="could not be written as HTTP") as caught:
            await flavour.call(client.create_and_wait_run)
        await _close(own)
        # Otherwise the server could end while it lets the connection in.
        assert await asyncio.to_thread(server.closed.wait, BOUND)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("host", ["ä..b", "\u0378"])
async def test_host_that_is_none_says_so(flavour: Flavour, host: str) -> None:
    """What httpx finds wrong with a host name is told at the first call."""
    client = flavour.client(f"http://{host}")
    with pytest.raises(TransportError, match="check the base_url"):
        await flavour.call(client.create_and_wait_run)
    await flavour.close(client)


async def test_missing_route_is_not_found(flavour: Flavour) -> None:
    """Seen on langgraph dev: POST /runs/{run_id}/wait does not exist there."""
    with raw_server(json_answer('{"detail":"Not Found"}', 404)) as server:
        client = flavour.client(server.url)
        with pytest.raises(NotFoundError, match="Not Found; check the id and that base_url"):
            await flavour.call(client.update_and_wait_run, RUN)
        await flavour.close(client)
    gc.collect()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: _made(AsyncRunsClient, None), "base_url: expected str, got NoneType"),
        (lambda: _made(AsyncRunsClient, b"http://x"), "base_url: expected str, got bytes"),
        (lambda: _made(AsyncRunsClient, headers=3), "headers: expected a mapping, got int"),
        (lambda: _made(RetryPolicy, attempts="3"), "retry.attempts: expected an int, got str"),
        (lambda: _made(RetryPolicy, attempts=1.5), "retry.attempts: expected an int, got float"),
        (
            lambda: _made(RetryPolicy, max_delay=None),
            "retry.max_delay: expected seconds, got NoneType",
        ),
        (lambda: _client().stream_run("r", last_event_id=3), "last_event_id: expected str or None"),
        (lambda: _client().create_and_stream_run(values_type="Echo"), "values_type: expected a py"),
        (lambda: _client().create_and_stream_run(values_type=[]), "values_type: expected a py"),
        (lambda: _client().create_and_stream_run(values_type=Timeout()), "values_type: expected"),
        (
            lambda: _client().create_and_stream_run(run_create=RunCreate()),
            "no field 'run_create'; give it as it is, without its name",
        ),
        (
            lambda: _client().stream_run("r", stream_mode="x"),
            "'stream_mode'; .*headers=, retry=, t",
        ),
    ],
)
def test_argument_of_a_wrong_type_is_named(made: Callable[[], Any], told: str) -> None:
    """A beginner's mistakes, told in the words of the call."""
    with pytest.raises(TypeError, match=told):
        made()


def _made(kind: Any, *arguments: Any, **keywords: Any) -> Any:
    return kind(*arguments, **keywords)


def _client() -> Any:
    return AsyncRunsClient("http://127.0.0.1:9")


def test_empty_event_id_says_what_is_expected() -> None:
    """The id of a stored cursor that was never set."""
    with pytest.raises(ValueError, match="expected the id of an event, or None, got ''"):
        _client().stream_run("r", last_event_id="")


async def test_path_of_the_base_url_is_told(flavour: Flavour) -> None:
    """A base URL that is not the root of the API shows in what was asked."""
    with raw_server(answer(404)) as server:
        client = flavour.client(f"{server.url}/api/v1")
        with pytest.raises(NotFoundError, match="POST /api/v1/runs/wait answered 404"):
            await flavour.call(client.create_and_wait_run)
        await flavour.close(client)
