"""Content codings: whatever the pieces, the bytes that were compressed, or an error."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentproto import ProtocolError
from agentproto._coding import PIECE, Inflater, inflater_for


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate ": raw_deflate,
}


def inflate(coding: str, pieces: list[bytes]) -> tuple[bytes, bool]:
    """What comes out, and whether it was whole."""
    inflater = inflater_for(coding)
    assert isinstance(inflater, Inflater)
    decoded = bytearray()
    for piece in pieces:
        inflater.feed(piece)
        while some := inflater.take():
            assert len(some) <= PIECE
            decoded += some
    return bytes(decoded), inflater.is_whole


def cut(data: bytes, points: list[int]) -> list[bytes]:
    places = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[start:stop] for start, stop in pairwise(places)]


DATA = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda byte, count: byte * count, st.binary(min_size=1, max_size=3), st.integers(0, 200_000)
    ),
)


@given(
    coding=st.sampled_from(sorted(CODINGS)),
    data=DATA,
    points=st.lists(st.integers(0, 10**6), max_size=8),
)
def test_any_pieces_give_what_was_compressed(coding: str, data: bytes, points: list[int]) -> None:
    """Property: against zlib and gzip themselves, over any chunking."""
    assert inflate(coding, cut(CODINGS[coding](data), points)) == (data, True)


@given(coding=st.sampled_from(sorted(CODINGS)), data=DATA, at=st.integers(0, 10**6))
def test_a_body_that_ends_too_early_is_not_whole(coding: str, data: bytes, at: int) -> None:
    """Property: a prefix of the data, and never passed for whole."""
    compressed = CODINGS[coding](data)
    decoded, is_whole = inflate(coding, [compressed[: at % len(compressed)]])
    assert data.startswith(decoded)
    assert is_whole == (at % len(compressed) == 0)


@given(coding=st.sampled_from(sorted(CODINGS)), junk=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(coding: str, junk: bytes) -> None:
    """Property: nothing but zlib's own error comes out of bytes that are no body."""
    with suppress(zlib.error):
        inflate(coding, [junk])


def test_gzip_members_follow_one_another() -> None:
    """RFC 1952, 2.2: a body may have several members."""
    body = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")
    for size in (1, 2, len(body)):
        pieces = [body[i : i + size] for i in range(0, len(body), size)]
        assert inflate("x-gzip", pieces) == (b"one two", True)


@pytest.mark.parametrize("coding", sorted(CODINGS))
def test_bytes_after_the_end_are_an_error(coding: str) -> None:
    """Nothing is left out silently."""
    with pytest.raises(zlib.error):
        inflate(coding, [CODINGS[coding](b"data") + b"more"])


@pytest.mark.parametrize("coding", ["", "identity", " Identity , "])
def test_body_as_it_is_needs_no_decoding(coding: str) -> None:
    """RFC 9110, 8.4.1: identity is no coding."""
    assert inflater_for(coding) is None


@pytest.mark.parametrize("coding", ["gzip, gzip", "gzip,deflate", "br", "zstd", "x" * 10_000])
def test_other_codings_are_refused(coding: str) -> None:
    """FAULTS: what was compressed twice, or in a way not asked for, is a ProtocolError."""
    with pytest.raises(ProtocolError, match="compressed once with gzip or deflate") as caught:
        inflater_for(coding)
    assert len(str(caught.value)) < 400
