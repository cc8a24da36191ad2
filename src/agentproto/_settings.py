"""What a client is told once: where the server is, headers, limits of time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit


@dataclass(frozen=True, slots=True)
class Timeout:
    """Limits of a call in seconds; None is no limit.

    Attributes:
        connect: for a connection, and for a place in the pool.
        idle: silence: any byte, a heartbeat too, starts it anew.
        total: wall clock of the whole call, the caller's own pauses included. A sync client
            checks it between reads, and does not end a server that sends 1xx responses for ever.
    """

    connect: float | None = 5.0
    idle: float | None = 300.0
    total: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "idle", "total"):
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(
                    f"timeout.{name}: expected seconds or None, got {type(seconds).__name__}"
                )
            if not (seconds > 0 and math.isfinite(seconds)):
                raise ValueError(
                    f"timeout.{name}: expected seconds above 0, or None for no limit, got {seconds}"
                )


def timeout_from(value: Timeout | float | None) -> Timeout:
    """The limits meant: a number is the idle limit, None is no limit at all."""
    if isinstance(value, Timeout):
        return value
    if value is None:
        return Timeout(connect=None, idle=None, total=None)
    return Timeout(idle=value)


MAX_BYTES = 64 * 2**20
"""What one event or one answer may have, unless the caller says otherwise."""


def checked_limit(name: str, limit: int) -> int:
    """A limit of bytes.

    Raises:
        TypeError: for anything but an int.
        ValueError: for one below 1.
    """
    if isinstance(limit, bool) or not isinstance(cast("object", limit), int):
        raise TypeError(f"{name}: expected bytes as an int, got {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"{name}: expected 1 byte or more, got {limit}")
    return limit


def split_base_url(base_url: str) -> tuple[str, tuple[str, str] | None]:
    """A base URL that ends in a slash and holds no credentials, and the credentials.

    Raises:
        TypeError: for anything but text.
        ValueError: for anything but an http or https URL of a host and perhaps a path.
    """
    if not isinstance(cast("object", base_url), str):
        raise TypeError(f"base_url: expected str, got {type(base_url).__name__}")
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise _bad_base_url(base_url, "it cannot be read as a URL") from None
    if parts.scheme not in {"http", "https"}:
        raise _bad_base_url(base_url, "it has no http:// or https:// in front")
    if not parts.hostname:
        raise _bad_base_url(base_url, "it names no host")
    if parts.hostname.isascii() and not re.fullmatch(_HOST, parts.hostname):
        raise _bad_base_url(base_url, "its host has a part that is empty or over 63 characters")
    if parts.query or parts.fragment:
        raise _bad_base_url(base_url, "it has a query or a fragment; send a key in headers=")
    if re.search(r"[\s\x00-\x1f\x7f\\]", base_url):
        raise _bad_base_url(base_url, "it has white space, backslashes or control characters")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    path = parts.path.rstrip("/") + "/"
    return urlunsplit((parts.scheme, netloc, path, "", "")), _credentials(parts)


_HOST = r"([^.]{1,63}\.)*[^.]{1,63}\.?"


def _credentials(parts: SplitResult) -> tuple[str, str] | None:
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def _bad_base_url(base_url: str, problem: str) -> ValueError:
    # What stands before an @ may be a password, what follows a ? a key.
    told = "" if re.search(r"[@?#]", base_url) else f" {base_url!r}"
    return ValueError(
        f"base_url{told}: {problem}; write it like http://localhost:8000 or https://example.com/api"
    )


_HEADER_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEADER_VALUE = r"(?:[!-~](?:[\t -~]*[!-~])?)?"


def checked_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers with their names in lower case. No message shows a value: it may be a secret.

    Raises:
        TypeError: for what is not text.
        ValueError: for what HTTP does not allow in a header.
    """
    checked: dict[str, str] = {}
    if headers is not None and not isinstance(cast("object", headers), Mapping):
        raise TypeError(f"headers: expected a mapping, got {type(headers).__name__}")
    given = cast("dict[object, object]", dict(headers or {}))
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"headers: expected str for name and value, "
                f"got {type(name).__name__} and {type(value).__name__}"
            )
        if not re.fullmatch(_HEADER_NAME, name):
            raise ValueError(f"headers: {name!r} is not a header name")
        if not re.fullmatch(_HEADER_VALUE, value):
            raise ValueError(f"headers: the value of {name!r} has characters HTTP does not allow")
        checked[name.lower()] = value
    return checked
