"""The one core, asynchronous and synchronous alike: it awaits nothing but the port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast
from urllib.parse import urlencode

from ._coding import ACCEPTED
from ._dialects import Answer, Operation, Request
from ._errors import (
    AgentProtoError,
    ProtocolError,
    RunFailedError,
    StatusError,
    TooLargeError,
    TransportError,
    error_from_json,
    error_from_status,
    is_out_of_time,
    reason,
    run_failed,
)
from ._io import IO, Exchange, WireRequest
from ._models import FAILED, RunRef, RunWaitResponse
from ._retry import RetryPolicy, seconds_until_retry
from ._settings import Timeout

T = TypeVar("T")
JSON = "application/json"
EVENT_STREAM = "text/event-stream"
NOT_OFFERED = frozenset({404, 405, 501})
"""What servers answer that do not have an operation."""

ERROR_SECONDS = 5.0
"""Seconds that the body of an error may take in all."""

MAX_ERROR_BYTES = 64 * 2**10
"""Bytes of an error body that are read; the rest is left with the connection."""


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How a call is made, whatever it asks for: the client's settings with the call's own."""

    headers: Mapping[str, str] = field(repr=False)  # may hold secrets
    timeout: Timeout
    retry: RetryPolicy
    rejoin: bool
    raise_on_failure: bool
    max_event_bytes: int
    max_response_bytes: int


class Session:
    """Sends operations to one base URL through one port."""

    def __init__(self, io: IO, base_url: str) -> None:
        self.io = io
        self.base_url = base_url

    async def call(
        self, operation: Operation[T], settings: CallSettings, deadline: float | None = None
    ) -> T:
        """Ask, and decode the answer; again, where that is safe."""
        wire = self.wire(operation, settings, JSON, deadline)

        async def once() -> T:
            return await self._call_once(operation, wire, settings.max_response_bytes)

        return await self.repeat(once, operation, settings, wire)

    async def wait(
        self,
        operation: Operation[RunWaitResponse[T]],
        settings: CallSettings,
        deadline: float | None = None,
    ) -> RunWaitResponse[T]:
        """Ask for the output of a run; a failed run never passes for a result.

        A call that was cut after its headers is finished by asking again for the same run, where
        that goes on without its caller.

        Raises:
            RunFailedError: if the run failed, unless the settings say otherwise.
        """
        deadline = deadline or self.io.deadline(settings.timeout)

        def decode_unless_failed(answer: Answer) -> RunWaitResponse[T]:
            response = operation.decode(answer)
            if settings.raise_on_failure and response.run.status in FAILED:
                raise _run_failed(response)
            return response

        checked = replace(operation, decode=decode_unless_failed)
        try:
            return await self.call(checked, settings, deadline)
        except TransportError as error:
            finish = await self._finish(operation, error, settings, deadline)
            if finish is None:
                raise
            try:
                return await self.wait(finish, settings, deadline)
            except StatusError as refusal:
                if refusal.status_code in NOT_OFFERED:
                    raise error from error.__cause__
                raise

    async def _finish(
        self,
        operation: Operation[T],
        error: TransportError,
        settings: CallSettings,
        deadline: float | None,
    ) -> Operation[T] | None:
        follow_up = operation.follow_up
        has_begun = error.status_code is not None and error.run_id is not None
        is_over = is_out_of_time(error) or settings.retry.attempts == 1
        if follow_up is None or not has_begun or is_over:
            return None
        run = RunRef(cast("str", error.run_id), error.thread_id)
        continues = operation.continues
        if continues is None:
            with suppress(AgentProtoError):
                told = await self.call(follow_up.status(run), settings, deadline)
                continues = told.on_disconnect == "continue"
        return follow_up.result(run) if continues else None

    async def repeat(
        self,
        once: Callable[[], Awaitable[T]],
        request: Request,
        settings: CallSettings,
        wire: WireRequest,
    ) -> T:
        """Do it, and again after a failure, as the retry policy allows."""
        failures = 0
        while True:
            try:
                return await once()
            except AgentProtoError as error:
                failures += 1
                seconds = self.seconds_until_retry(
                    error, settings, failures, is_idempotent=request.is_idempotent
                )
                if seconds is None:
                    raise
            await self.io.sleep(seconds, wire)

    def seconds_until_retry(
        self,
        error: AgentProtoError,
        settings: CallSettings,
        failures: int,
        *,
        is_idempotent: bool,
        floor: float = 0.0,
    ) -> float | None:
        """Seconds to wait before the next attempt; None if there is to be none."""
        return seconds_until_retry(
            settings.retry,
            error,
            failures=failures,
            is_idempotent=is_idempotent,
            chance=self.io.chance(),
            now=self.io.now(),
            floor=floor,
        )

    async def _call_once(self, operation: Operation[T], wire: WireRequest, most: int) -> T:
        exchange = await self.open(operation, wire)
        run = operation.run_named_by(exchange.response.headers) or operation.run
        try:
            if operation.has_body:
                check_has_body(exchange)
            body = await _read(exchange, most)
            return operation.decode(Answer(exchange.response.headers, body, operation.asked))
        except AgentProtoError as error:
            tell(error, exchange, run)
            raise
        finally:
            await exchange.release()

    def wire(
        self,
        request: Request,
        settings: CallSettings,
        accept: str,
        deadline: float | None = None,
    ) -> WireRequest:
        """The request as it goes on the wire; its total limit begins now, unless it has begun."""
        return WireRequest(
            method=request.method,
            url=_url(self.base_url, request),
            headers=_headers(request, settings, accept),
            content=request.content,
            asked=request.asked,
            timeout=settings.timeout,
            deadline=deadline or self.io.deadline(settings.timeout),
        )

    async def open(self, request: Request, wire: WireRequest) -> Exchange:
        """Send once, and return the exchange when a 2xx has begun.

        Raises:
            TransportError: if nothing usable came back.
            StatusError: for an error status.
            ProtocolError: for a redirect, which is never followed.
        """
        try:
            exchange = await self.io.send(wire)
        except AgentProtoError as error:
            error.about(run=request.run)
            raise
        if not exchange.response.is_success:
            raise await _refused(exchange, request)
        return exchange


def _url(base_url: str, request: Request) -> str:
    return f"{base_url}{request.path}{'?' if request.query else ''}{urlencode(request.query)}"


def _headers(request: Request, settings: CallSettings, accept: str) -> dict[str, str | bytes]:
    coding = "identity" if accept == EVENT_STREAM else ACCEPTED
    headers: dict[str, str | bytes] = {"accept": accept, "accept-encoding": coding}
    if request.content is not None:
        headers["content-type"] = "application/json"
    return {**headers, **settings.headers, **request.headers}


async def _read(exchange: Exchange, most: int) -> bytes:
    body = bytearray()
    while piece := await exchange.read():
        body += piece
        if len(body) > most:
            raise TooLargeError(
                f"{exchange.request.asked} was answered with more than {most} bytes "
                "(max_response_bytes)"
            )
    return bytes(body)


async def _refused(exchange: Exchange, request: Request) -> AgentProtoError:
    response = exchange.response
    error: AgentProtoError
    if response.is_redirect:
        target = response.headers.get("location", "nowhere")[:500]
        error = ProtocolError(
            f"{request.asked} was answered {response.status_code} with a redirect to {target!r}, "
            "which is not followed; if that is the server, make it the base_url"
        )
        await exchange.release()
    else:
        body = await _error_body(exchange)
        error = error_from_status(response.status_code, response.headers, body, asked=request.asked)
    tell(error, exchange, request.run)
    return error


async def _error_body(exchange: Exchange) -> bytes:
    body = bytearray()
    exchange.hurry(ERROR_SECONDS)
    try:
        while len(body) < MAX_ERROR_BYTES and (piece := await exchange.read()):
            body += piece
    except AgentProtoError:
        pass  # the status is known, and what came of the body
    finally:
        await exchange.release()
    return bytes(body)


def check_has_body(exchange: Exchange) -> None:
    """Refuse an answer without a body, where one is what was asked for."""
    status_code = exchange.response.status_code
    if status_code in {204, 205}:
        raise ProtocolError(
            f"expected a body from {exchange.request.asked}, "
            f"got {status_code} {reason(status_code)}"
        )


def tell(error: AgentProtoError, exchange: Exchange, run: RunRef | None) -> None:
    """Fill in what the exchange and the call know."""
    response = exchange.response
    error.about(run=run, status_code=response.status_code, headers=response.headers)


def _run_failed(response: RunWaitResponse[T]) -> RunFailedError:
    run = response.run
    ref = None if run.run_id is None else RunRef(run.run_id, run.thread_id)
    said = error_from_json((run.model_extra or {}).get("error"))
    return run_failed(ref, run.status or "error", said, response=response)
