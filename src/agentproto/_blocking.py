"""`RunsClient`: the same calls, driven without an event loop.

The core awaits nothing but its port, and the blocking port never suspends: one `send(None)` runs
a coroutine of the core to its end, in any thread, inside a running event loop or without one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

import httpx

from ._client import (
    AsyncRunsClient,
    CreateArguments,
    CreateStreamArguments,
    DialectName,
    JoinOptions,
    RequestOptions,
    RunCalls,
    RunOptions,
    RunStream,
    SearchArguments,
    StreamState,
    UpdateArguments,
    UpdateStreamArguments,
    as_httpx_sse,
    call_settings,
)
from ._io import AuthTypes, HTTPClient, late_imports
from ._models import (
    Run,
    RunCreate,
    RunEvent,
    RunLike,
    RunSearchRequest,
    RunUpdate,
    RunWaitResponse,
)
from ._retry import RetryPolicy
from ._session import Session
from ._settings import MAX_BYTES, Timeout, checked_headers, split_base_url
from ._stream import RAW

if TYPE_CHECKING:
    import httpx_sse

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the core to its end.

    Raises:
        RuntimeError: if it suspends, which nothing under the blocking port may do.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # what the coroutine returned
    coroutine.close()
    raise RuntimeError(
        "the core of agentproto suspended under the blocking client, which has no event loop: "
        "is an asynchronous transport or auth in use?"
    )


def _documented_as(original: Callable[..., Any]) -> Callable[[F], F]:
    def document(function: F) -> F:
        function.__doc__ = original.__doc__
        return function

    return document


class BlockingRunStream(StreamState[T]):
    """The events of a run: an iterator and a context manager in one.

    The request goes out on `with` or on the first event. Leaving the block, finishing or failing
    closes the connection at once. A stream is consumed once, by one of `for`, `text()` and
    `iter_sse()`; `final()` may follow any of them. One left by `break` outside a `with` block is
    closed when it is collected, with a `ResourceWarning`.
    """

    def __enter__(self) -> Self:
        drive(self.core.start())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        self.core.claim("for")
        return self

    def __next__(self) -> RunEvent[T]:
        while (event := self.core.take()) is None:
            if not drive(self.core.advance()):
                raise StopIteration
        return event

    @_documented_as(RunStream[Any].aiter_sse)
    def iter_sse(self) -> Iterator[httpx_sse.ServerSentEvent]:
        self.core.claim(RAW)
        return self._blocks()

    def _blocks(self) -> Iterator[httpx_sse.ServerSentEvent]:
        while (sse := drive(self.core.next_raw())) is not None:
            yield as_httpx_sse(sse)

    @_documented_as(RunStream[Any].text)
    def text(self) -> Iterator[str]:
        self.core.claim("text()")
        return self._pieces()

    def _pieces(self) -> Iterator[str]:
        while drive(self.core.next()) is not None:
            if self.core.new_text:
                yield self.core.new_text

    @_documented_as(RunStream[Any].final)
    def final(self) -> RunWaitResponse[T]:
        return drive(self.core.final())

    @_documented_as(RunStream[Any].aclose)
    def close(self) -> None:
        drive(self.core.close())


class RunsClient:
    """Client of the Runs API of one server, without an event loop.

    The same as `AsyncRunsClient` without `await`: the same arguments, results and errors. It
    may be used inside a running event loop, which it blocks, and from several threads. In a
    forked process it makes connections of its own.

    A blocked call ends by its timeout, not by cancellation.

    Args:
        base_url: root of the API, with a path where it has one. Credentials in it become `auth`.
        headers: sent with every request.
        auth: what httpx takes: a pair of user and password, an `httpx.Auth`, or a callable.
        dialect: how the server speaks: `agent-protocol`, or `langgraph` for langgraph dev,
            LangGraph Platform, LangGraph.js, aegra and others.
        timeout: limits in seconds; a number is the limit of silence, None is no limit.
        retry: how often and how fast a call is repeated where that is safe; None repeats nothing.
        rejoin: whether a cut stream goes on where nothing can be lost or doubled.
        raise_on_failure: whether a run that ends in `error` or `timeout` raises
            `RunFailedError`, or is returned like any other.
        max_event_bytes: bytes that the data of one event may have, 64 MiB by default.
        max_response_bytes: bytes that any other answer may have, 64 MiB by default. Both count
            after decompression; more is a `TooLargeError`.
        transport: an httpx transport in the place of the network's.
        http_client: the caller's own `httpx.Client`: used, and never closed.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """

    def __init__(
        self,
        base_url: str = "http://localhost",
        *,
        headers: Mapping[str, str] | None = None,
        auth: AuthTypes | None = None,
        dialect: DialectName = "agent-protocol",
        timeout: Timeout | float | None = Timeout(),
        retry: RetryPolicy | None = RetryPolicy(),
        rejoin: bool = True,
        raise_on_failure: bool = True,
        max_event_bytes: int = MAX_BYTES,
        max_response_bytes: int = MAX_BYTES,
        transport: httpx.BaseTransport | None = None,
        http_client: HTTPClient | None = None,
    ) -> None:
        url, credentials = split_base_url(base_url)
        with late_imports:
            from ._io.blocking import blocking_io
            from ._io.clients import checked_auth, headers_of

            auth = checked_auth(credentials if auth is None else auth, http_client)
            io = blocking_io(transport, http_client, auth)
        settings = call_settings(
            {**headers_of(http_client), **checked_headers(headers)},
            timeout=timeout,
            retry=retry,
            rejoin=rejoin,
            raise_on_failure=raise_on_failure,
            max_event_bytes=max_event_bytes,
            max_response_bytes=max_response_bytes,
        )
        self._session = Session(io, url)
        self._calls = RunCalls(self._session, settings, dialect)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._session.base_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @_documented_as(AsyncRunsClient.aclose)
    def close(self) -> None:
        drive(self._session.close())

    @overload
    def create_and_wait_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: None = None,
        **arguments: Unpack[CreateArguments],
    ) -> RunWaitResponse[dict[str, Any]]: ...
    @overload
    def create_and_wait_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: type[T],
        **arguments: Unpack[CreateArguments],
    ) -> RunWaitResponse[T]: ...
    @_documented_as(AsyncRunsClient.create_and_wait_run)
    def create_and_wait_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: type[Any] | None = None,
        **arguments: Unpack[CreateArguments],
    ) -> RunWaitResponse[Any]:
        return drive(
            self._calls.create_and_wait_run(run_create, values_type=values_type, **arguments)
        )

    @overload
    def create_and_stream_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: None = None,
        **arguments: Unpack[CreateStreamArguments],
    ) -> BlockingRunStream[dict[str, Any]]: ...
    @overload
    def create_and_stream_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: type[T],
        **arguments: Unpack[CreateStreamArguments],
    ) -> BlockingRunStream[T]: ...
    @_documented_as(AsyncRunsClient.create_and_stream_run)
    def create_and_stream_run(
        self,
        run_create: RunCreate | None = None,
        /,
        *,
        values_type: type[Any] | None = None,
        **arguments: Unpack[CreateStreamArguments],
    ) -> BlockingRunStream[Any]:
        stream = self._calls.create_and_stream_run(run_create, values_type=values_type, **arguments)
        return BlockingRunStream(stream.core)

    @overload
    def update_and_wait_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: None = None,
        **arguments: Unpack[UpdateArguments],
    ) -> RunWaitResponse[dict[str, Any]]: ...
    @overload
    def update_and_wait_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: type[T],
        **arguments: Unpack[UpdateArguments],
    ) -> RunWaitResponse[T]: ...
    @_documented_as(AsyncRunsClient.update_and_wait_run)
    def update_and_wait_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: type[Any] | None = None,
        **arguments: Unpack[UpdateArguments],
    ) -> RunWaitResponse[Any]:
        return drive(
            self._calls.update_and_wait_run(run, run_update, values_type=values_type, **arguments)
        )

    @overload
    def update_and_stream_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: None = None,
        **arguments: Unpack[UpdateStreamArguments],
    ) -> BlockingRunStream[dict[str, Any]]: ...
    @overload
    def update_and_stream_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: type[T],
        **arguments: Unpack[UpdateStreamArguments],
    ) -> BlockingRunStream[T]: ...
    @_documented_as(AsyncRunsClient.update_and_stream_run)
    def update_and_stream_run(
        self,
        run: RunLike,
        run_update: RunUpdate | None = None,
        /,
        *,
        values_type: type[Any] | None = None,
        **arguments: Unpack[UpdateStreamArguments],
    ) -> BlockingRunStream[Any]:
        stream = self._calls.update_and_stream_run(
            run, run_update, values_type=values_type, **arguments
        )
        return BlockingRunStream(stream.core)

    @_documented_as(AsyncRunsClient.create_run)
    def create_run(
        self, run_create: RunCreate | None = None, /, **arguments: Unpack[CreateArguments]
    ) -> Run:
        return drive(self._calls.create_run(run_create, **arguments))

    @_documented_as(AsyncRunsClient.get_run)
    def get_run(self, run: RunLike, **options: Unpack[RequestOptions]) -> Run:
        return drive(self._calls.get_run(run, **options))

    @_documented_as(AsyncRunsClient.search_runs)
    def search_runs(
        self, request: RunSearchRequest | None = None, /, **arguments: Unpack[SearchArguments]
    ) -> list[Run]:
        return drive(self._calls.search_runs(request, **arguments))

    @_documented_as(AsyncRunsClient.iter_runs)
    def iter_runs(
        self, request: RunSearchRequest | None = None, /, **arguments: Unpack[SearchArguments]
    ) -> Iterator[Run]:
        return _driven(self._calls.iter_runs(request, **arguments))

    @overload
    def wait_run(
        self, run: RunLike, *, values_type: None = None, **options: Unpack[RunOptions]
    ) -> RunWaitResponse[dict[str, Any]]: ...
    @overload
    def wait_run(
        self, run: RunLike, *, values_type: type[T], **options: Unpack[RunOptions]
    ) -> RunWaitResponse[T]: ...
    @_documented_as(AsyncRunsClient.wait_run)
    def wait_run(
        self,
        run: RunLike,
        *,
        values_type: type[Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> RunWaitResponse[Any]:
        return drive(self._calls.wait_run(run, values_type=values_type, **options))

    @overload
    def stream_run(
        self,
        run: RunLike,
        *,
        last_event_id: str | None = None,
        values_type: None = None,
        **options: Unpack[JoinOptions],
    ) -> BlockingRunStream[dict[str, Any]]: ...
    @overload
    def stream_run(
        self,
        run: RunLike,
        *,
        last_event_id: str | None = None,
        values_type: type[T],
        **options: Unpack[JoinOptions],
    ) -> BlockingRunStream[T]: ...
    @_documented_as(AsyncRunsClient.stream_run)
    def stream_run(
        self,
        run: RunLike,
        *,
        last_event_id: str | None = None,
        values_type: type[Any] | None = None,
        **options: Unpack[JoinOptions],
    ) -> BlockingRunStream[Any]:
        stream = self._calls.stream_run(
            run, last_event_id=last_event_id, values_type=values_type, **options
        )
        return BlockingRunStream(stream.core)

    @_documented_as(AsyncRunsClient.cancel_run)
    def cancel_run(
        self,
        run: RunLike,
        *,
        wait: bool = False,
        action: Literal["interrupt", "rollback"] = "interrupt",
        **options: Unpack[RequestOptions],
    ) -> None:
        return drive(self._calls.cancel_run(run, wait=wait, action=action, **options))

    @_documented_as(AsyncRunsClient.delete_run)
    def delete_run(self, run: RunLike, **options: Unpack[RequestOptions]) -> None:
        return drive(self._calls.delete_run(run, **options))


def _driven(runs: AsyncIterator[Run]) -> Iterator[Run]:
    while (run := drive(_next_of(runs))) is not None:
        yield run


async def _next_of(runs: AsyncIterator[Run]) -> Run | None:
    return await anext(runs, None)
