"""The errors that a call can end in, and how a status and a body become one of them.

    AgentProtoError
    ├── TransportError                nothing usable came back
    │   └── RequestTimeoutError       a limit of `Timeout` ran out
    ├── StatusError                   the server answered with an error status
    │   ├── BadRequestError           400
    │   ├── AuthenticationError       401
    │   ├── PermissionDeniedError     403
    │   ├── NotFoundError             404
    │   ├── ConflictError             409
    │   ├── UnprocessableRequestError 422
    │   ├── RateLimitError            429
    │   └── ServerError               5xx
    ├── ProtocolError                 the server spoke outside the protocol
    │   └── TooLargeError             an event or a body over the limit
    ├── StreamInterruptedError        the stream was cut and could not be continued
    └── RunFailedError                the run itself failed

Wrong arguments and misuse are not in this tree: they are `ValueError`, `TypeError` and
`RuntimeError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

from ._models import EndEvent, ErrorEvent, ErrorResponse, RunRef, RunStatus, RunWaitResponse
from ._shapes import as_list, as_object

E = TypeVar("E", bound="AgentProtoError")

MAX_ERROR_TEXT = 2_000
"""Characters of an error body that an error keeps."""


class AgentProtoError(Exception):
    """Base of every error of a call. What is not known is None.

    Attributes:
        run_id: the run that was meant, or that the server named.
        thread_id: its thread.
        last_event_id: id of the last event that was handed over, on streams.
        request_id: the server's own id of the request, for its operator.
    """

    run_id: str | None = None
    thread_id: str | None = None
    last_event_id: str | None = None
    request_id: str | None = None
    _status_code: int | None = None

    @property
    def status_code(self) -> int | None:
        """HTTP status of the answer, None where there was none."""
        return self._status_code

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args), self.__dict__

    def about(
        self,
        *,
        run: RunRef | None = None,
        status_code: int | None = None,
        headers: Mapping[str, str] | None = None,
        last_event_id: str | None = None,
    ) -> None:
        """Fill in what is known of the call and not yet in the error."""
        if run is not None:
            self.run_id = self.run_id or run.run_id
            self.thread_id = self.thread_id or run.thread_id
        self._status_code = self._status_code or status_code
        self.last_event_id = self.last_event_id or last_event_id
        if headers is not None:
            self.request_id = self.request_id or request_id_of(headers)


def _rebuild(cls: type[E], args: tuple[Any, ...]) -> E:
    error = cls.__new__(cls, *args)
    error.args = args
    return error


class TransportError(AgentProtoError):
    """Nothing usable came back: refused, reset, cut, TLS, name resolution.

    Attributes:
        was_sent: False if the server cannot have seen the request.
        is_final: True if another attempt would end the same, as with a rejected certificate.
    """

    was_sent: bool = True
    is_final: bool = False


class RequestTimeoutError(TransportError):
    """A limit ran out.

    Attributes:
        limit: `connect`, `pool`, `idle` or `total`.
        seconds: how long was waited.
    """

    def __init__(self, message: str, *, limit: str, seconds: float) -> None:
        super().__init__(message)
        self.limit = limit
        self.seconds = seconds
        self.was_sent: bool = limit not in {"connect", "pool"}


def is_out_of_time(error: AgentProtoError) -> bool:
    """Whether the total limit of a call ran out: then nothing of it is tried again."""
    return isinstance(error, RequestTimeoutError) and error.limit == "total"


class StatusError(AgentProtoError):
    """The server answered with an error status.

    Attributes:
        error: what the server said, from whichever fields it used; None if nothing readable.
        body: the text of the body, cut at 2,000 characters.
        headers: the headers of the answer, names in lower case.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        error: ErrorResponse | None,
        body: str,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(message)
        self.error = error
        self.body = body
        self.headers: dict[str, str] = {name.lower(): v for name, v in headers.items()}
        self._status = status_code
        self.about(status_code=status_code, headers=headers)

    @property
    def status_code(self) -> int:
        """HTTP status of the answer."""
        return self._status


class BadRequestError(StatusError):
    """400: the server could not read the request."""


class AuthenticationError(StatusError):
    """401: credentials are missing or wrong."""


class PermissionDeniedError(StatusError):
    """403: the credentials do not allow this."""


class NotFoundError(StatusError):
    """404: no such run, agent or thread, or no such route at this base URL."""


class ConflictError(StatusError):
    """409: the run or its thread is not in a state that allows this."""


class UnprocessableRequestError(StatusError):
    """422: the server understood the request and finds it invalid."""


class RateLimitError(StatusError):
    """429: too many requests."""

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, from the header Retry-After; None if absent or unreadable.

        A date counts from the header Date of the same answer.
        """
        return seconds_to_wait(self.headers)


class ServerError(StatusError):
    """5xx: the server failed."""


class ProtocolError(AgentProtoError):
    """The server spoke outside the protocol: content type, JSON, shape, redirect.

    Attributes:
        raw: the bytes that could not be used, None where there were none.
    """

    def __init__(self, message: str, *, raw: bytes | None = None) -> None:
        super().__init__(message)
        self.raw = raw


class TooLargeError(ProtocolError):
    """An event or a body is larger than the limit."""


class StreamInterruptedError(AgentProtoError):
    """The stream was cut and could not be continued; the run may still be running.

    Attributes:
        delivered: how many events were handed over before.
    """

    def __init__(self, message: str, *, delivered: int) -> None:
        super().__init__(message)
        self.delivered = delivered


class RunFailedError(AgentProtoError):
    """The run itself failed.

    Attributes:
        error: what the server said of it.
        status: status of the run.
        response: the answer of a wait call, else None.
        event: the event that told it on a stream, else None.
    """

    def __init__(
        self,
        message: str,
        *,
        error: ErrorResponse,
        status: RunStatus | str = RunStatus.ERROR,
        response: RunWaitResponse[Any] | None = None,
        event: ErrorEvent | EndEvent | None = None,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.status = status
        self.response = response
        self.event = event


_BY_STATUS: dict[int, type[StatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableRequestError,
    429: RateLimitError,
}

_REQUEST_ID_HEADERS = (
    "x-request-id",
    "request-id",
    "x-correlation-id",
    "x-amzn-requestid",
    "x-trace-id",
)

_NEXT_STEP = {
    401: "check auth= or headers= of the client",
    404: "check the id and that base_url is the root of the API",
    405: "check that base_url is the root of the API and that the server has this operation",
    409: "get the run to see its state",
    429: "wait before the next request",
}


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The server's own id of a request, from the usual headers."""
    return next((headers[name] for name in _REQUEST_ID_HEADERS if name in headers), None)


def seconds_to_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """What Retry-After asks for, in seconds: as sent, or its date less that of the answer.

    `now`, seconds since the epoch, stands in for an answer without a date.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", value):
        seconds = float(value)
    else:
        since = _date_in(headers.get("date", ""))
        since = now if since is None else since
        until = _date_in(value)
        seconds = math.nan if since is None or until is None else until - since
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _date_in(header: str) -> float | None:
    """Seconds since the epoch; None for what is no date."""
    try:
        date = parsedate_to_datetime(header)
        # RFC 9110, 5.6.7: a date without a zone is in UTC.
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def error_from_status(
    status_code: int, headers: Mapping[str, str], body: bytes, *, asked: str
) -> StatusError:
    """The error for an answer with an error status, by its status whatever its body is.

    `asked` is the request, such as `POST /runs/wait`. `body` may be cut.
    """
    text = body.decode("utf-8", "replace")[:MAX_ERROR_TEXT]
    error = error_in_body(body, text, headers.get("content-type", ""))
    said = f": {error}" if error is not None else ""
    step = _NEXT_STEP.get(status_code)
    message = f"{asked} answered {status_code} {reason(status_code)}{said}".rstrip()
    return _class_for(status_code)(
        f"{message}; {step}" if step else message,
        status_code=status_code,
        error=error,
        body=text,
        headers=headers,
    )


def _class_for(status_code: int) -> type[StatusError]:
    if status_code >= 500:
        return ServerError
    return _BY_STATUS.get(status_code, StatusError)


def reason(status_code: int) -> str:
    """The standard phrase of a status, "" where it has none."""
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return ""


def run_failed(
    run: RunRef | None,
    status: RunStatus | str,
    error: ErrorResponse | None,
    *,
    response: RunWaitResponse[Any] | None = None,
    event: ErrorEvent | EndEvent | None = None,
) -> RunFailedError:
    """The error for a run that failed, told by a response or by an event."""
    which = "the run" if run is None else f"run {run.run_id}"
    said = f": {error}" if error is not None and str(error) else ""
    failure = RunFailedError(
        f"{which} ended with status {status}{said}",
        error=error or ErrorResponse(),
        status=status,
        response=response,
        event=event,
    )
    failure.about(run=run)
    return failure


def error_in_body(body: bytes, text: str, content_type: str) -> ErrorResponse | None:
    """What an error body says, None where it says nothing a person could use."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = text.strip()
        if "html" in content_type.lower() or data.startswith("<"):
            return None
    return error_from_json(data)


def error_from_json(data: object) -> ErrorResponse | None:
    """What any of the shapes in use says went wrong.

    Known shapes: the schema's own `{"code", "message"}`; `{"detail"}` with a text or a list of
    validation errors; `{"error", "message"}`; `{"error": {...}}`; a bare text.
    """
    if isinstance(data, str):
        return ErrorResponse(message=_cut(data)) if data else None
    found = as_object(data) or {}
    inner = as_object(found.get("error")) or as_object(found.get("detail"))
    return _error_from_object(inner or found)


def _error_from_object(data: Mapping[str, Any]) -> ErrorResponse | None:
    code = _first_text(data, "code", "error", "name", "type")
    message = _first_text(data, "message", "detail", "msg") or _issues(data)
    if code is None and message is None:
        return None
    return ErrorResponse(code=code, message=message, metadata=as_object(data.get("metadata")))


def _first_text(data: Mapping[str, Any], *names: str) -> str | None:
    found = (data.get(name) for name in names)
    return next((_cut(value) for value in found if isinstance(value, str) and value), None)


def _issues(data: Mapping[str, Any]) -> str | None:
    lists = (as_list(data.get(name)) for name in ("detail", "issues", "errors"))
    issues = next((found for found in lists if found is not None), ())
    told = [said for said in map(_issue, issues) if said is not None]
    return _cut("; ".join(told)) or None


def _issue(issue: object) -> str | None:
    if isinstance(issue, str):
        return issue
    found = as_object(issue) or {}
    said = _first_text(found, "msg", "message")
    where = as_list(found.get("loc") or found.get("path"))
    return f"{'.'.join(map(str, where))}: {said}" if said and where else said


def _cut(text: str) -> str:
    return text if len(text) <= MAX_ERROR_TEXT else f"{text[:MAX_ERROR_TEXT]}..."
