"""The one core, asynchronous and synchronous alike: it awaits nothing but the port."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import urlencode, urlsplit

from ._coding import ACCEPTED
from ._dialects import Answer, FollowUp, Operation, Request, StreamOperation, run_named_by
from ._errors import (
    AgentProtoError,
    ProtocolError,
    RequestTimeoutError,
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
from ._events import merged_interrupts
from ._io import IO, LEAVE_SECONDS, Exchange, Stop, WireRequest
from ._io.failures import redirected
from ._models import FAILED, Interrupt, Run, RunRef, RunStatus, RunWaitResponse, told_ref
from ._retry import NO_RETRIES, RetryPolicy, seconds_until_retry
from ._settings import Timeout

T = TypeVar("T")
R = TypeVar("R", Operation[Any], StreamOperation[Any])
JSON = "application/json"
EVENT_STREAM = "text/event-stream"
NOT_OFFERED = frozenset({404, 405, 501})
"""What servers answer that do not have an operation."""

GOES_ON = frozenset({"pending", "running"})
"""Statuses of a run that is not over."""

STOPPED = frozenset({"interrupted", "cancelled", "canceled"})
"""Statuses of a run that was stopped, by a question or otherwise; some servers' own among them."""

ERROR_SECONDS = 5.0
"""Seconds that the body of an error may take in all."""

MAX_ERROR_BYTES = 64 * 2**10
"""Bytes of an error body that are read; the rest is left with the connection."""

_log = logging.getLogger("agentproto")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CallSettings:
    """How a call is made, whatever it asks for: the client's settings with the call's own.

    Its headers may hold secrets: it has no repr.
    """

    headers: Mapping[str, str]
    timeout: Timeout
    retry: RetryPolicy
    rejoin: bool
    raise_on_failure: bool
    max_event_bytes: int
    max_response_bytes: int
    stop: Stop | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Outcome:
    """How a run ended, as far as that was told."""

    status: RunStatus | str | None
    interrupts: list[Interrupt]
    is_cancelled: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether this is no result."""
        return self.is_cancelled or self.status in FAILED


@dataclass(slots=True)
class _Leave:
    """How the cancelling of a run that was left went, as far as that is known."""

    is_cancelled: bool = False
    problem: str | None = f"no answer within {LEAVE_SECONDS:g} s"


class Session:
    """Sends operations to one base URL through one port."""

    def __init__(self, io: IO, base_url: str) -> None:
        self.io = io
        self.base_url = base_url
        self._is_closing = False

    async def call(
        self,
        operation: Operation[T],
        settings: CallSettings,
        deadline: float | None = None,
        check: Callable[[T], None] | None = None,
    ) -> T:
        """Ask, decode the answer and check it; again, where that is safe."""
        deadline = deadline or self.io.deadline(settings.timeout)
        whole = await self.whole(operation, settings, deadline)
        wire = self.wire(whole, settings, JSON, deadline)

        async def once() -> T:
            return await self._call_once(whole, wire, settings, check)

        return await self.repeat(once, whole, settings, wire)

    async def whole(self, operation: R, settings: CallSettings, deadline: float | None) -> R:
        """The operation, once what it needs to know has been asked."""
        while operation.needs is not None:
            told = await self.call(operation.needs.ask, settings, deadline)
            operation = operation.needs.then(told)
        return operation

    async def optional(
        self, operation: Operation[T] | None, settings: CallSettings, deadline: float | None
    ) -> T | None:
        """The answer; None where the server cannot be asked."""
        if operation is None:
            return None
        try:
            return await self.call(operation, settings, deadline)
        except StatusError as error:
            if error.status_code in NOT_OFFERED:
                return None
            raise

    async def wait(
        self,
        operation: Operation[RunWaitResponse[T]],
        settings: CallSettings,
        deadline: float | None = None,
    ) -> RunWaitResponse[T]:
        """Ask for the output of a run; a failed run never passes for a result.

        What the answer does not tell is asked for: how the run stands, and what it asks. A call
        that was cut after its headers is finished by asking again for the same run, where that
        goes on without its caller.

        Raises:
            RunFailedError: if the run failed, unless the settings say otherwise.
        """
        deadline = deadline or self.io.deadline(settings.timeout)
        operation = await self.whole(operation, settings, deadline)

        check = _raise_if_failed if settings.raise_on_failure else None
        try:
            response = await self.call(operation, settings, deadline, check)
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
        return await self._completed(response, operation, settings, deadline)

    async def _completed(
        self,
        response: RunWaitResponse[T],
        operation: Operation[RunWaitResponse[T]],
        settings: CallSettings,
        deadline: float | None,
    ) -> RunWaitResponse[T]:
        run, follow_up = run_ref_of(response.run), operation.follow_up
        if run is None or follow_up is None:
            return response
        if response.run.status is None and not response.interrupts:
            found = await self.optional(follow_up.status(run), settings, deadline)
            if found is not None and found.status in GOES_ON:
                raise _not_over(run, found)
            response = response.model_copy(update={"run": found or response.run})
        told = Outcome(response.run.status, response.interrupts)
        outcome = await self.outcome(
            follow_up,
            run,
            told,
            settings,
            deadline,
            is_all_shown=operation.shows_interrupts,
        )
        if outcome is not told:
            known = response.run.model_copy(update={"status": outcome.status})
            response = response.model_copy(update={"run": known, "interrupts": outcome.interrupts})
        if outcome.has_failed and settings.raise_on_failure:
            raise _run_failed(response)
        return response

    async def outcome(
        self,
        follow_up: FollowUp[Any],
        run: RunRef,
        told: Outcome,
        settings: CallSettings,
        deadline: float | None,
        *,
        is_all_shown: bool,
    ) -> Outcome:
        """How a run ended, with what it asks where its answer need not have told that.

        `is_all_shown` is whether a question would have been told.
        """
        is_stopped = told.status in STOPPED
        may_ask = is_stopped or (told.status == RunStatus.SUCCESS and not is_all_shown)
        ask = follow_up.questions(run) if told.interrupts or may_ask else None
        if ask is None or told.has_failed:
            return told
        pending = await self.optional(ask, settings, deadline) or []
        interrupts = merged_interrupts(told.interrupts, pending)
        order = {interrupt.id: place for place, interrupt in enumerate(pending)}
        interrupts.sort(key=lambda interrupt: order.get(interrupt.id, len(order)))
        if interrupts:
            return Outcome(RunStatus.INTERRUPTED, interrupts)
        # Stopped, and not by a question: cancelled, or pushed aside by another run.
        return Outcome(told.status, interrupts, is_cancelled=is_stopped)

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
        if follow_up is None or operation.is_idempotent or not has_begun or is_over:
            return None
        run = RunRef(cast("str", error.run_id), error.thread_id)
        continues = operation.continues
        if continues is None:
            with suppress(AgentProtoError):
                told = await self.optional(follow_up.status(run), settings, deadline)
                continues = told is not None and told.on_disconnect == "continue"
        return follow_up.result(run) if continues else None

    async def close(self) -> None:
        """Leave what is still open, and close the connections."""
        self._is_closing = True
        try:
            await self.io.leave([exchange.leave for exchange in self.io.shared()])
        finally:
            await self.io.close()

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

    async def _call_once(
        self,
        operation: Operation[T],
        wire: WireRequest,
        settings: CallSettings,
        check: Callable[[T], None] | None,
    ) -> T:
        exchange = await self.open(operation, wire)
        left = partial(self.cancel_left, exchange, operation, operation.follow_up, settings)
        if exchange.is_shared:
            exchange.leave = left
        is_left = True
        try:
            if operation.has_body:
                check_has_body(exchange)
            body = await _read(exchange, settings.max_response_bytes)
            answer = operation.decode(
                Answer(exchange.response.headers, body, wire.asked, exchange.run)
            )
            if check is not None:
                check(answer)
        except AgentProtoError as error:
            is_left = isinstance(error, RequestTimeoutError)
            tell(error, exchange, exchange.run)
            raise
        else:
            is_left = False
            return answer
        finally:
            await exchange.release()
            if is_left:
                await left()

    async def cancel_left(
        self,
        exchange: Exchange,
        request: Request,
        follow_up: FollowUp[Any] | None,
        settings: CallSettings,
    ) -> None:
        """Cancel a run that was left on a connection of other runs, if its server would have.

        The server cannot see it there: httpcore sends nothing when an HTTP/2 stream is left. It is
        done once, and a failure is logged: nothing is raised where a stream is left.
        """
        if exchange.was_left or exchange.is_inherited or not exchange.is_shared:
            return
        exchange.was_left = True
        run = exchange.run
        if follow_up is None or run is None or request.is_cancelled_when_left is False:
            return
        limits = replace(settings.timeout, idle=self._idle_limit(settings), total=None)
        brief = replace(settings, timeout=limits, retry=NO_RETRIES, stop=None)
        is_certain = request.is_cancelled_when_left is True
        outcome = _Leave()
        cancel = partial(self._cancel, run, follow_up, brief, outcome, is_certain=is_certain)
        await self.io.shielded(cancel, LEAVE_SECONDS)
        if outcome.is_cancelled:
            self.io.forget_left(run)
            _log.info("run %s was left, and is cancelled", run.run_id)
        elif outcome.problem is not None:
            problem = outcome.problem
            _log.warning("run %s was left and could not be cancelled: %s", run.run_id, problem)

    def _idle_limit(self, settings: CallSettings) -> float | None:
        """What a cancel has for each read: httpcore ends all streams of a connection with it."""
        idle = settings.timeout.idle
        if self.io.shared() and not self._is_closing:
            return idle
        return LEAVE_SECONDS if idle is None else min(idle, LEAVE_SECONDS)

    async def _cancel(
        self,
        run: RunRef,
        follow_up: FollowUp[Any],
        settings: CallSettings,
        outcome: _Leave,
        *,
        is_certain: bool,
    ) -> None:
        try:
            if not is_certain:
                found = await self.optional(follow_up.status(run), settings, None)
                if (
                    found is None
                    or found.on_disconnect == "continue"
                    or found.status not in GOES_ON
                ):
                    outcome.problem = None
                    return
            await self.call(follow_up.cancel(run), settings)
            outcome.is_cancelled = True
        except (AgentProtoError, RuntimeError, ValueError) as error:
            outcome.problem = str(error)
        except Exception as error:  # of the caller's transport or hooks: it may show a secret
            outcome.problem = type(error).__name__

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
            asked=f"{request.method} {urlsplit(self.base_url).path}{request.path}",
            timeout=settings.timeout,
            deadline=deadline or self.io.deadline(settings.timeout),
            stop=settings.stop or Stop(),
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
        exchange.run = run_named_by(exchange.response.headers) or request.run
        if not exchange.response.is_success:
            raise await _refused(exchange, request)
        return exchange


def _url(base_url: str, request: Request) -> str:
    query = f"?{urlencode(request.query)}" if request.query else ""
    return f"{base_url}{request.path}{query}"


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
    response, asked = exchange.response, exchange.request.asked
    error: AgentProtoError
    if response.is_redirect:
        error = redirected(asked, response.status_code, response.headers.get("location", "nowhere"))
        await exchange.release()
    else:
        body = await _error_body(exchange)
        error = error_from_status(response.status_code, response.headers, body, asked=asked)
    tell(error, exchange, request.run)
    return error


async def _error_body(exchange: Exchange) -> bytes:
    body = bytearray()
    exchange.hurry(ERROR_SECONDS)
    most = MAX_ERROR_BYTES
    if exchange.response.status_code >= 500:
        # uvicorn closes after an exception in a handler, and says so to nobody. Whose last read is
        # left out, no client uses again.
        exchange.retire()
        most = min(most, _length(exchange))
    try:
        while len(body) < most and (piece := await exchange.read()):
            body += piece
    except AgentProtoError:
        pass  # the status is known, and what came of the body
    finally:
        await exchange.release()
    return bytes(body)


def _length(exchange: Exchange) -> int:
    """Bytes of a body as it is read, where its headers say so; else more than any has."""
    headers = exchange.response.headers
    length = headers.get("content-length", "")
    is_known = length.isdecimal() and "content-encoding" not in headers
    return int(length[:20]) if is_known else sys.maxsize


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


def _raise_if_failed(response: RunWaitResponse[Any]) -> None:
    if response.run.status in FAILED:
        raise _run_failed(response)


def run_ref_of(run: Run) -> RunRef | None:
    """Which run it is, where the server said so."""
    return told_ref(run.run_id, run.thread_id)


def _not_over(run: RunRef, told: Run) -> TransportError:
    error = TransportError(
        f"the server answered while run {run.run_id} is {told.status}; wait_run waits on"
    )
    error.about(run=run)
    return error


def _run_failed(response: RunWaitResponse[T]) -> RunFailedError:
    run = response.run
    ref = run_ref_of(run)
    said = error_from_json((run.model_extra or {}).get("error"))
    return run_failed(ref, run.status or "error", said, response=response)
