"""httpx2, which succeeds httpx: its classes have the names that they have there.

A client of it that a caller gives serves as one of httpx does. It is never imported here: who has
a client of it has imported it.
"""

from __future__ import annotations

import httpx


def names_in_httpx2(value: object) -> list[str]:
    """The names of the classes of httpx2 that a value is of, the nearest first."""
    kinds = type(value).__mro__
    return [kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] == "httpx2"]


def from_httpx2(exc: Exception) -> Exception:
    """The error of httpx that says what one of httpx2 says; any other error as it is."""
    for name in names_in_httpx2(exc):
        kind = getattr(httpx, name, None)
        if kind is not None:
            error: Exception = kind.__new__(kind, *exc.args)
            vars(error).update(vars(exc))  # its request, and its response
            error.__cause__ = exc.__cause__
            return error.with_traceback(exc.__traceback__)
    return exc
