"""The stream of a run, as both clients drive it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Generic, Literal, NoReturn, TypeAlias, TypeVar, cast

from ._dialects import Request, StreamOperation, run_named_by
from ._errors import (
    AgentProtoError,
    ProtocolError,
    RequestTimeoutError,
    StatusError,
    StreamInterruptedError,
    TooLargeError,
    TransportError,
    error_from_json,
    is_out_of_time,
    run_failed,
)
from ._events import Transcript
from ._io import STREAM_CLOSED, Exchange, Stop, WireRequest
from ._models import (
    FAILED,
    EndEvent,
    ErrorEvent,
    Interrupt,
    MetadataEvent,
    Run,
    RunEvent,
    RunRef,
    RunStatus,
    RunWaitResponse,
    told_ref,
)
from ._resume import LAST, RunCursor
from ._session import (
    EVENT_STREAM,
    GOES_ON,
    NOT_OFFERED,
    CallSettings,
    Outcome,
    Session,
    check_has_body,
    tell,
)
from ._sse import ServerSentEvent, SSEDecoder

T = TypeVar("T")
Ended: TypeAlias = Literal["end", "error", "status", "eof", "stopped", "closed", "cut"]

RAW = "aiter_sse() or iter_sse()"
"""The consumer to whom nothing is decoded, and a failed run no failure of the stream."""

_TELLING = frozenset({MetadataEvent, ErrorEvent, EndEvent})
"""The events that tell of the run as a whole."""

REST_SECONDS = 0.05
"""Seconds that the rest of a body may take after the end of the run was handed over.

A body that ends leaves its connection free for another request."""

_NOTED = frozenset({"values", "end", "error"})


class EventStream(Generic[T]):
    """A stream to `take` from what has arrived, and to `fill` when nothing has.

    Events are decoded as they are taken: one that cannot be decoded is told after all those
    before it, and buffered ones cost no coroutine.
    """

    def __init__(
        self, session: Session, operation: StreamOperation[T], settings: CallSettings
    ) -> None:
        self._session = session
        self._operation = operation
        self._stop = Stop()
        self._settings = replace(settings, stop=self._stop)
        self._decoder = self._decoder_after(operation.last_event_id)
        self._cursor = RunCursor(operation.last_event_id, begins_run=operation.begins_run)
        self._failures = 0
        self._delivered_before_failure = 0
        self._deadline: float | None = None
        # In reverse, the next to take at the end: an empty deque takes 0.7 KiB.
        self._pending: list[ServerSentEvent] = []
        self._passed_raw: dict[str, ServerSentEvent] = {}
        self._failure: AgentProtoError | None = None
        self._problem = ""
        self._named: str | None = None
        self._consumer: str | None = None
        self._busy = False
        self._all_arrived = False
        self._has_last = False
        self._had_metadata = False
        self._is_concluded = False
        self._is_joined = False
        self._has_failed = False
        self._transcript: Transcript[T] = Transcript()
        self.exchange: Exchange | None = None
        self.run: RunRef | None = operation.run
        self.last_event_id = operation.last_event_id
        self.delivered: int = 0
        self.new_text: str = ""
        self.ended: Ended | None = None

    @property
    def holds_connection(self) -> bool:
        """Whether the stream was started and is neither at its end nor closed."""
        return self.exchange is not None and not self._all_arrived

    @property
    def interrupts(self) -> list[Interrupt]:
        """What the run asks a person, as far as it was seen."""
        return self._transcript.interrupts

    def claim(self, consumer: str) -> None:
        """A stream is consumed once.

        Raises:
            RuntimeError: if something consumes it already.
        """
        if self._consumer is not None:
            raise RuntimeError(
                f"this stream was already consumed by {self._consumer}, and a stream is consumed "
                "once: keep the events, or start another run"
            )
        self._consumer = consumer

    def take(self) -> RunEvent[T] | None:
        """The next event that has arrived; None if there is none."""
        pending = self._pending
        while pending:
            sse = pending[-1]
            more = sse.more
            if more:
                # One step takes it off, wherever a signal interrupts: what is left stays there.
                sse.data = more.pop()
            else:
                pending.pop()
                if more is not None:
                    continue
            try:
                event = self._operation.decode(sse)
                if type(event) in _TELLING:
                    if isinstance(event, EndEvent) and self._is_to_be_looked_into(event):
                        self._pending.append(sse)
                        return None
                    if not self._account(event):
                        continue
                    if sse.event in LAST:
                        self._end_by(sse.event)
                        self._limit_rest()
                else:
                    self.new_text = self._transcript.add(event)
            except AgentProtoError as error:
                self._pending.clear()
                self._failure = error
                return None
            except BaseException:
                self._transcript.lose_place()
                raise
            self.delivered += 1
            self.last_event_id = sse.id or None
            return event
        return None

    def take_raw(self) -> ServerSentEvent | None:
        """The next block that has arrived, not decoded; None if there is none."""
        while self._pending:
            sse = self._pending.pop()
            if sse.more is not None:
                self._pending.extend(reversed(sse.each()))
                continue
            if sse.event == "metadata":
                had_metadata = self._had_metadata
                self._learn_run_quietly(sse)
                if had_metadata and self._is_joined:
                    continue
            elif sse.event in _NOTED:
                self._passed_raw[sse.event] = sse
            if sse.event in LAST:
                self._end_by(sse.event)
                self._limit_rest()
            self.delivered += 1
            self.last_event_id = sse.id or None
            return sse
        return None

    async def start(self) -> None:
        """Send the request, unless it was sent.

        Raises:
            AgentProtoError: if the stream could not be opened.
        """
        await self.advance(only_open=True)

    async def advance(self, *, only_open: bool = False) -> bool:
        """Wait until something has arrived that was not taken; False at the end of the stream.

        Raises:
            AgentProtoError: what the stream ended in.
            RuntimeError: if it was closed, or another task waits here.
        """
        if self._busy:
            raise RuntimeError("two tasks use one stream at once; give each its own")
        if self._failure is None and self.ended in {"closed", "cut"}:
            raise RuntimeError(STREAM_CLOSED)
        self._busy = True
        try:
            self._check_not_failed()
            exchange = self.exchange or await self._open()
            if only_open:
                return True
            if self._pending:
                await self._look_into_end()
            # Here and not in a coroutine of its own: most chunks bring one event.
            while not self._pending and not self._all_arrived:
                if self._problem or self._decoder.is_over:
                    self._refuse_more(exchange)
                try:
                    piece = await exchange.read()
                except TransportError as error:
                    self._check_open()
                    exchange = await self._go_on_after(error)
                    continue
                if self._stop.is_set:
                    self._check_open()
                if not piece:
                    exchange = await self._settle_end(exchange)
                else:
                    self._take_in(piece)
            if not self._pending:
                await self._let_go()
            return bool(self._pending)
        except AgentProtoError as error:
            self._failure = self._with_details(error)
            await self._give_up("cut")
            raise
        except BaseException:
            self._has_last = False  # who is cancelled does not wait for more
            await self._give_up("closed")
            raise
        finally:
            self._busy = False

    async def next(self) -> RunEvent[T] | None:
        """The next event, None at the end of the stream."""
        while (event := self.take()) is None and await self.advance():
            pass
        return event

    async def next_raw(self) -> ServerSentEvent | None:
        """The next block, None at the end of the stream."""
        while (sse := self.take_raw()) is None and await self.advance():
            pass
        return sse

    async def final(self) -> RunWaitResponse[T]:
        """Take the rest, then tell the output of the run.

        Raises:
            AgentProtoError: what the stream ended in.
        """
        while await self.next() is not None:
            pass
        for sse in self._passed_raw.values():
            self._account(self._operation.decode(sse))
        self._passed_raw.clear()
        status = self._transcript.status
        has_failed = self._has_failed or status in FAILED
        if self._consumer == RAW and self._settings.raise_on_failure and has_failed:
            raise run_failed(self.run, status or RunStatus.ERROR, None)
        return await self._result()

    def abandon(self) -> None:
        """Let the server see that nobody listens any more, where nothing can be awaited."""
        if self.exchange is not None and (self._has_last or not self._all_arrived):
            self.exchange.leave = self.exchange.release
            self.exchange.drop()

    async def close(self) -> None:
        """Stop now, also from another task or thread. More than once is fine."""
        if self._busy:
            # Whoever reads finds it closed, and releases what it has by then.
            self._stop.set()
            self.ended = self.ended or "closed"
            if not self._all_arrived:  # here: by then the client may be closed
                await self._cancel_left()
            return
        await self._give_up("closed")

    def _check_open(self) -> None:
        self._session.io.check_not_stopped(self._stop)

    async def _give_up(self, how: Ended) -> None:
        self.ended = self.ended or how
        is_left = not self._all_arrived and (how == "closed" or _is_left_by(self._failure))
        self._pending.clear()
        self._all_arrived = True
        await self._let_go()
        if is_left:
            await self._cancel_left()

    async def _cancel_left(self) -> None:
        if self.exchange is not None:
            operation = self._operation
            await self._session.cancel_left(
                self.exchange, operation, operation.follow_up, self._settings
            )

    async def _let_go(self) -> None:
        """Release the connection; of one whose run has ended, the rest of the body is taken."""
        if self.exchange is None:
            return
        if self._has_last:
            self._has_last = False
            await self.exchange.finish(REST_SECONDS)
        else:
            await self.exchange.release()

    def _limit_rest(self) -> None:
        # A caller may take its time with the last event, and the server keep the body open.
        cast("Exchange", self.exchange).expire_in(REST_SECONDS)

    async def _open(self) -> Exchange:
        self._deadline = self._session.io.deadline(self._settings.timeout)
        if self._operation.needs is not None:
            self._operation = await self._session.whole(
                self._operation, self._settings, self._deadline
            )
            self._check_open()
        wire = self._wire(self._operation)

        async def once() -> Exchange:
            return await self._session.open(self._operation, wire)

        self.exchange = await self._session.repeat(once, self._operation, self._settings, wire)
        self._check_open()
        await self._begin(self.exchange, is_join=self._operation.is_idempotent)
        return self.exchange

    def _wire(self, request: Request) -> WireRequest:
        return self._session.wire(request, self._settings, EVENT_STREAM, self._deadline)

    async def _begin(self, exchange: Exchange, *, is_join: bool) -> None:
        if is_join and exchange.response.status_code == 204:
            # SSE standard, 9.2.3: the server tells its client to stop.
            self.ended, self._all_arrived = "stopped", True
            await exchange.release()
            return
        exchange.leave = self.close
        self._learn_run(run_named_by(exchange.response.headers))
        check_has_body(exchange)
        _check_is_event_stream(exchange)

    def _check_not_failed(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _take_in(self, piece: bytes) -> None:
        arrived: list[ServerSentEvent] = []
        try:
            for sse in self._cursor.take_in(self._decoder.feed_runs(piece)):
                arrived.append(sse)
                if sse.event in LAST:
                    self._all_arrived = self._has_last = True
                    break
        except LookupError as problem:
            self._problem = str(problem)
        arrived.reverse()
        self._pending = arrived  # none is left, or nobody would have read

    def _refuse_more(self, exchange: Exchange) -> NoReturn:
        # After the events that came before it: they were taken already.
        if self._problem:
            raise self._cut(self._problem)
        raise TooLargeError(
            f"{exchange.request.asked} sent an event of more than "
            f"{self._settings.max_event_bytes} bytes (max_event_bytes)"
        )

    async def _settle_end(self, exchange: Exchange) -> Exchange:
        """The connection ended in order and no event told the end of the run: ask for it."""
        may_join = self._settings.rejoin and self._operation.continues
        if self._decoder.is_within_event and may_join and self._why_not_joinable() is None:
            error = TransportError("its connection ended within an event")
            return await self._go_on_after(error)
        try:
            self._cursor.check_is_whole()
        except LookupError as problem:
            raise self._cut(problem) from None
        await exchange.release()  # its place in the pool may be needed
        run = await self._ask_for_status()
        status = None if run is None else run.status
        if status in GOES_ON:
            error = TransportError(f"its connection ended, its run is {status}")
            return await self._go_on_after(error, run)
        self._all_arrived = True
        if status is None:
            self.ended, self._is_concluded = "eof", True
        else:
            await self._conclude(status, run, "status")
        return exchange

    def _is_to_be_looked_into(self, event: EndEvent) -> bool:
        """Whether this end does not tell it all, or may be that of an earlier part of the run."""
        if self.run is None or self._is_concluded:
            return False
        asks = self._operation.follow_up.questions(self.run) is not None
        return event.status == RunStatus.INTERRUPTED and (asks or self._cursor.is_doubtful)

    async def _look_into_end(self) -> None:
        if self._cursor.is_doubtful:
            run = await self._ask_for_status()
            if run is not None and run.status in GOES_ON:
                raise self._cut(f"its server repeats an earlier end, its run is {run.status}")
        await self._conclude(RunStatus.INTERRUPTED, None, "end")

    async def _conclude(self, status: RunStatus | str, run: Run | None, how: Ended) -> None:
        """Learn what the events need not have told: what the run asks, or that it was stopped."""
        seen = self._transcript
        try:
            outcome = await self._session.outcome(
                self._operation.follow_up,
                cast("RunRef", self.run),
                Outcome(status, seen.interrupts),
                self._settings,
                self._deadline,
                is_all_shown=self._operation.shows_interrupts and seen.shows_state,
            )
        except AgentProtoError as error:
            raise self._cut(error) from error
        self._check_open()
        self._is_concluded, self._has_failed = True, outcome.has_failed
        seen.settle(outcome.status, outcome.interrupts)
        if how == "status" or outcome.has_failed:
            self.ended = how
        if outcome.has_failed:
            self._check_status(status, run)

    def _check_status(self, status: RunStatus | str, run: Run | None) -> None:
        if self._settings.raise_on_failure and self._consumer != RAW:
            said = None if run is None else error_from_json((run.model_extra or {}).get("error"))
            raise run_failed(self.run, status, said)

    async def _ask_for_status(self) -> Run | None:
        if self.run is None:
            return None
        ask = self._operation.follow_up.status(self.run)
        try:
            run = await self._session.optional(ask, self._settings, self._deadline)
        except AgentProtoError as error:
            raise self._cut(error) from error
        self._check_open()
        return run

    async def _go_on_after(self, error: AgentProtoError, run: Run | None = None) -> Exchange:
        """Join the run behind the last event that was handed over.

        Raises:
            StreamInterruptedError: if that could lose or double events, or does not succeed.
        """
        if is_out_of_time(error):
            raise error
        await cast("Exchange", self.exchange).release()
        if not self._settings.rejoin:
            raise self._cut(error) from error
        await self._check_joinable(error, run)
        if self.delivered > self._delivered_before_failure:
            self._failures, self._delivered_before_failure = 0, self.delivered
        while True:
            self._failures += 1
            seconds = self._session.seconds_until_retry(
                error,
                self._settings,
                self._failures,
                is_idempotent=True,
                floor=(self._decoder.retry or 0) / 1000,
            )
            if seconds is None:
                raise self._cut(error) from error
            try:
                return await self._join_after(seconds)
            except AgentProtoError as again:
                if is_out_of_time(again):
                    raise
                error = again

    async def _check_joinable(self, error: AgentProtoError, run: Run | None) -> None:
        problem = None if self.run is None else await self._why_perhaps_cancelled(run)
        problem = problem or self._why_not_joinable()
        if problem is not None:
            raise self._cut(f"{error}; not joined: {problem}") from error

    def _why_not_joinable(self) -> str | None:
        if self.run is None:
            return "the server did not name the run"
        can_replay = self._operation.replay_from is not None
        return self._operation.why_not_kept or self._cursor.why_not_joinable(can_replay=can_replay)

    async def _why_perhaps_cancelled(self, run: Run | None) -> str | None:
        if self._operation.continues:
            return None
        run = run or await self._ask_for_status()
        if run is None:
            return "nobody tells how the run stands"
        if run.status in FAILED:
            self._check_status(run.status, run)
        if run.on_disconnect == "continue" or run.status == RunStatus.SUCCESS:
            return None
        return (
            "without on_disconnect='continue' the server may have cancelled the run, its status "
            f"is {run.status}"
        )

    async def _join_after(self, seconds: float) -> Exchange:
        behind = self._cursor.last_event_id
        try:
            request = self._operation.join(
                cast("RunRef", self.run), cast("str", behind or self._operation.replay_from)
            )
        except ValueError as problem:
            raise self._cut(str(problem)) from None
        wire = self._wire(request)
        await self._session.io.sleep(seconds, wire)
        self._check_open()
        self.exchange = await self._session.open(request, wire)
        self._check_open()
        await self._begin(self.exchange, is_join=True)
        self._cursor.joined()
        self._is_joined = True
        floor, self._decoder = self._decoder.retry, self._decoder_after(behind)
        self._decoder.retry = floor
        return self.exchange

    def _decoder_after(self, last_event_id: str | None) -> SSEDecoder:
        most = self._settings.max_event_bytes
        return SSEDecoder(last_event_id or "", max_event_bytes=most)

    def _cut(self, why: object) -> AgentProtoError:
        if isinstance(why, AgentProtoError) and is_out_of_time(why):
            return why
        return StreamInterruptedError(
            f"the stream was cut after {self.delivered} events; the run may be going on; {why}",
            delivered=self.delivered,
        )

    def _end_by(self, name: str) -> None:
        self.ended = "end" if name == "end" else "error"

    def _account(self, event: RunEvent[T]) -> bool:
        if isinstance(event, MetadataEvent) and not event.namespace:
            self._learn_run(_run_in(event))
            is_first, self._had_metadata = not self._had_metadata, True
            self.new_text = ""
            return is_first
        if isinstance(event, ErrorEvent | EndEvent) and self._settings.raise_on_failure:
            self._check_run_not_failed(event)
        self.new_text = self._transcript.add(event)
        return True

    def _check_run_not_failed(self, event: ErrorEvent | EndEvent) -> None:
        match event:
            case ErrorEvent(error=error):
                self.ended = "error"
                raise run_failed(self.run, RunStatus.ERROR, error, event=event)
            case EndEvent(status=str(status)) if status in FAILED:
                self.ended = "end"
                raise run_failed(self.run, status, error_from_json(event.data), event=event)
            case _:
                pass

    def _learn_run(self, named: RunRef | None) -> None:
        if named is None:
            return
        if self._named not in {None, named.run_id}:
            raise ProtocolError(
                f"the stream of run {self._named} says that it is that of run {named.run_id}"
            )
        self._named = named.run_id
        if self.run is None or self.run.run_id != named.run_id or self.run.thread_id is None:
            self.run = replace(named, thread_id=named.thread_id or self._operation.thread_id)
        cast("Exchange", self.exchange).run = self.run

    def _learn_run_quietly(self, sse: ServerSentEvent) -> None:
        # Whoever wants the wire gets it, also where it is wrong.
        with suppress(ProtocolError):
            self._account(self._operation.decode(sse))

    def _with_details(self, error: AgentProtoError) -> AgentProtoError:
        if self.exchange is not None:
            tell(error, self.exchange, self.run)
        error.about(last_event_id=self.last_event_id)
        return error

    async def _result(self) -> RunWaitResponse[T]:
        seen = self._transcript
        told = await self._ask_for_result() if self._lacks_result() else None
        if told is not None:
            seen.ask(told.interrupts)
        run = _run_of(self.run, seen.status) if told is None else told.run
        if run.status is None:
            run = run.model_copy(update={"status": seen.status})
        return RunWaitResponse(
            run=run,
            values=seen.values if told is None else told.values,
            messages=seen.messages or (told.messages if told is not None else []),
            interrupts=seen.interrupts,
        )

    def _lacks_result(self) -> bool:
        seen = self._transcript
        asks = seen.status == RunStatus.INTERRUPTED and not seen.interrupts
        return not seen.has_values or (asks and not self._is_concluded)

    async def _ask_for_result(self) -> RunWaitResponse[T] | None:
        if self.run is None:
            return None
        result = self._operation.follow_up.result(self.run)
        if result is None:
            return None
        try:
            return await self._session.wait(result, self._settings, self._deadline)
        except StatusError as error:
            if error.status_code in NOT_OFFERED:
                return None
            raise


def _is_left_by(error: AgentProtoError | None) -> bool:
    """Whether the connection may be whole, and its server know nothing of the error."""
    if isinstance(error, ProtocolError | RequestTimeoutError):
        return True
    return error is not None and isinstance(error.__cause__, RequestTimeoutError)


def _run_of(ref: RunRef | None, status: RunStatus | str | None) -> Run:
    if ref is None:
        return Run(status=status)
    return Run(run_id=ref.run_id, thread_id=ref.thread_id, status=status)


def _run_in(event: MetadataEvent) -> RunRef | None:
    thread_id = event.data.get("thread_id")
    return told_ref(event.run_id, thread_id if isinstance(thread_id, str) else None)


def _check_is_event_stream(exchange: Exchange) -> None:
    content_type = exchange.response.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != EVENT_STREAM:
        raise ProtocolError(
            f"expected {EVENT_STREAM} from {exchange.request.asked}, "
            f"got {content_type or 'no content type'}; is base_url the root of the API?"
        )
