"""JSON in both directions: Python values to a body, checked with their path, and bytes to JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time
from enum import Enum
from typing import Any, cast
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import from_json

from ._models import WireModel


def to_json(fields_of_body: Mapping[str, Any]) -> bytes:
    """The body of a request, as UTF-8.

    Raises:
        TypeError: for what JSON does not have (bytes, sets, keys that are no text), with its path.
        ValueError: for NaN, infinity, lone surrogates and cycles, with their path.
    """
    plain = {name: _plain(value, name, 0) for name, value in fields_of_body.items()}
    return _ENCODER.encode(plain).encode()


# Not that of pydantic: it writes what subclasses of str, int and float say they are.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def parse_json(raw: bytes) -> Any:
    """The JSON value in these bytes.

    Raises:
        ValueError: if there is none.
    """
    try:
        return from_json(raw)
    except ValueError as exc:
        return _parse_plainly(raw, exc)


def _parse_plainly(raw: bytes, problem: ValueError) -> Any:
    # The fast parser refuses escaped lone surrogates, which are JSON and which servers echo.
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise problem from None


_MAX_DEPTH = 200


def _plain(value: object, path: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"{path[:80]}...: nested more than {_MAX_DEPTH} levels deep; does it contain itself?"
        )
    match value:
        case None | bool():
            return value
        case Enum():
            return _plain(value.value, path, depth)
        case str():
            return _text(value, path)
        case int():
            return value
        case float():
            return _number(value, path)
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {_key(k, path): _plain(item, f"{path}.{k}", depth + 1) for k, item in items}
        case list() | tuple():
            each = enumerate(cast("Sequence[object]", value))
            return [_plain(item, f"{path}[{i}]", depth + 1) for i, item in each]
        case UUID():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case _:
            return {
                name: _plain(item, f"{path}.{name}", depth + 1)
                for name, item in _fields_of(value, path)
            }


def _fields_of(value: object, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, WireModel):
        yield from value.fields_to_send().items()
    elif isinstance(value, BaseModel):
        yield from value.model_dump(by_alias=True).items()
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield field.name, getattr(value, field.name)
    else:
        raise TypeError(f"{path}: {type(value).__name__} is not JSON; convert it before the call")


def _text(value: str, path: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{path}: a lone surrogate is not JSON text") from None
    return value


def _key(key: object, path: str) -> str:
    if isinstance(key, str):
        return _text(key, f"{path} (a key)")
    raise TypeError(f"{path}: keys of a JSON object are str, got {type(key).__name__}: {key!r}")


def _number(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{path}: {value} is not JSON")
    return value
