"""Again, and after how many seconds? Pure decisions: clock and chance come in as arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from ._errors import (
    AgentProtoError,
    StatusError,
    TransportError,
    is_out_of_time,
    seconds_to_wait,
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast a call is repeated, where repeating it is safe.

    A create or update is repeated only if it cannot have reached the server, or if the server
    says that it was not processed (429, or 503 with Retry-After).

    Attributes:
        attempts: how often a call is made in all. On a stream: failures in a row, joins among
            them, without a new event between them.
        first_delay: seconds before the second attempt, at most; each further one waits up to
            twice as long.
        max_delay: seconds between two attempts, at most.
        retry_after_cap: seconds; a server that asks for more gets no further attempt.
        repeat_unsafe: repeat creates and updates as if they had no effects. They may then run,
            and cost, twice.
    """

    attempts: int = 3
    first_delay: float = 0.5
    max_delay: float = 8.0
    retry_after_cap: float = 60.0
    repeat_unsafe: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(cast("object", self.attempts), int):
            raise TypeError(f"retry.attempts: expected an int, got {type(self.attempts).__name__}")
        if self.attempts < 1:
            raise ValueError(f"retry.attempts: expected 1 or more, got {self.attempts}")
        for name in ("first_delay", "max_delay", "retry_after_cap"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(f"retry.{name}: expected seconds, got {type(seconds).__name__}")
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"retry.{name}: expected seconds, 0 or more, got {seconds}")


NO_RETRIES = RetryPolicy(attempts=1)


def is_safe_to_repeat(error: AgentProtoError, *, is_idempotent: bool) -> bool:
    """Whether a call that ended in this error may be made again without a second effect."""
    match error:
        case TransportError():
            is_over = error.is_final or is_out_of_time(error)
            return not is_over and (is_idempotent or not error.was_sent)
        case StatusError(status_code=429):
            return True
        case StatusError(status_code=503) if error.headers.get("retry-after"):
            return True
        case StatusError(status_code=status_code):
            return is_idempotent and status_code in {500, 502, 503, 504}
        case _:
            return False


def seconds_until_retry(
    policy: RetryPolicy,
    error: AgentProtoError,
    *,
    failures: int,
    is_idempotent: bool,
    chance: float,
    now: float,
    floor: float = 0.0,
) -> float | None:
    """Seconds to wait before the next attempt; None if there is to be none.

    `failures` in a row so far, this one among them. `chance` is in [0, 1), `now` seconds since
    the epoch. `floor` is the least to wait, as far as `max_delay` allows.
    """
    safe = is_safe_to_repeat(error, is_idempotent=is_idempotent or policy.repeat_unsafe)
    if failures >= policy.attempts or not safe:
        return None
    asked = seconds_to_wait(error.headers, now) or 0.0 if isinstance(error, StatusError) else 0.0
    if asked > policy.retry_after_cap:
        return None
    backoff = chance * min(policy.max_delay, policy.first_delay * 2.0 ** min(failures - 1, 64))
    return max(backoff, asked, min(floor, policy.max_delay))
