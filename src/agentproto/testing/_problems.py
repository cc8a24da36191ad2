"""The answers of the server that are not 2xx."""

from __future__ import annotations


class ProblemError(Exception):
    """A request that is answered with an ErrorResponse of the spec."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def not_found(message: str) -> ProblemError:
    return ProblemError(404, "not_found", message)


def conflict(message: str) -> ProblemError:
    return ProblemError(409, "conflict", message)


def unprocessable(message: str) -> ProblemError:
    return ProblemError(422, "validation_error", message)
