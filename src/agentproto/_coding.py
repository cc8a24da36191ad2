"""Bodies as they were before their content coding, in pieces of bounded size.

httpx decodes a piece whole: 1,827 bytes of twice compressed zeros came out as one piece of 1 GiB.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from ._errors import ProtocolError

ACCEPTED = "gzip, deflate"
"""What is asked for, in the words of Accept-Encoding."""

PIECE = 64 * 2**10
"""Decoded bytes that come out at a time, at most."""

_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS


class _Decompressor(Protocol):
    """What `zlib.decompressobj` returns; its type has no public name."""

    @property
    def eof(self) -> bool: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes: ...


class Inflater:
    """Decodes a body that was compressed once. Feed it, and take until nothing comes."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._left = b""
        self._inflate: _Decompressor | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the body may end here."""
        return not self._left and (self._inflate is None or self._inflate.eof)

    def feed(self, piece: bytes) -> None:
        """Add the next bytes of the body."""
        self._left += piece

    def take(self) -> bytes:
        """The next decoded bytes; b"" if more have to be fed.

        Raises:
            zlib.error: if the body is not what its coding says.
        """
        decoded = b""
        while not decoded and (inflate := self._current()) is not None:
            decoded = inflate.decompress(self._left, PIECE)
            self._left = inflate.unconsumed_tail or inflate.unused_data
            if not inflate.eof:
                break
        return decoded

    def _current(self) -> _Decompressor | None:
        if self._inflate is None or self._inflate.eof:
            if self._inflate is not None:  # as gzip itself, which lets zeros follow a body
                self._left = self._left.lstrip(b"\0")
            # The first two bytes tell what follows.
            if len(self._left) < 2:
                return None
            self._inflate = self._begin()
        return self._inflate

    def _begin(self) -> _Decompressor:
        if self._is_gzip:
            return zlib.decompressobj(_GZIP)  # RFC 1952, 2.2: one member may follow another
        if self._inflate is not None:
            raise zlib.error("bytes after the end")
        return zlib.decompressobj(_ZLIB if _is_zlib(self._left) else _RAW)


def _is_zlib(start: bytes) -> bool:
    # RFC 1950, 2.2. Some servers send deflate without that header.
    return start[0] & 15 == zlib.DEFLATED and int.from_bytes(start[:2], "big") % 31 == 0


def inflater_for(content_encoding: str) -> Inflater | None:
    """What decodes such a body; None if nothing has to.

    Raises:
        ProtocolError: if it was compressed twice, or in a way that was not asked for.
    """
    named = [coding.strip().lower() for coding in content_encoding.split(",")]
    match [coding for coding in named if coding not in {"", "identity"}]:
        case []:
            return None
        case ["gzip" | "x-gzip"]:
            return Inflater(is_gzip=True)
        case ["deflate"]:
            return Inflater(is_gzip=False)
        case _:
            raise ProtocolError(
                "expected a body as it is, or compressed once with gzip or deflate, "
                f"got Content-Encoding {content_encoding[:200]!r}"
            )
