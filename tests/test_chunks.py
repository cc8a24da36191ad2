"""Joined chunks: whatever arrives, however it is cut, h11 reads the same body and finds the same
faults, in fewer chunks.
"""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentproto._chunks import AsyncJoiningRead, ChunkJoiner, JoiningRead, join_chunks

from .both import Flavour
from .raw_server import Connection, chunk, head, raw_server

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
HEADS = [
    HEAD,
    HEAD.replace(b"\r", b""),
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD,
    HEAD.replace(b"1.1", b"1.0"),
    HEAD.replace(b"200", b"204"),
    HEAD.replace(b"chunked\r\n", b"chunked\r\ncontent-length: 9\r\n"),
    HEAD.replace(b"transfer-encoding: chunked", b"content-length: 9"),
    HEAD.replace(b"transfer-encoding", b"x: y\r\n transfer-encoding"),
    HEAD.replace(b"chunked", b"gzip, chunked"),
]


def read_by_h11(pieces: list[bytes], joiner: ChunkJoiner | None) -> tuple[bytes, list[object], int]:
    """The body, what h11 said of it and how much of it was known when, and in how many chunks."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    body, told, chunks = bytearray(), list[object](), 0
    try:
        for piece in [*pieces, b""]:
            connection.receive_data(piece if joiner is None else joiner.take(piece))
            event = connection.next_event()
            while event is not h11.NEED_DATA and event is not h11.PAUSED:
                if isinstance(event, h11.Data):
                    body += event.data
                    chunks += 1
                elif isinstance(event, h11.EndOfMessage):
                    told.append(list(event.headers))
                elif isinstance(event, h11.ConnectionClosed):
                    break
                event = connection.next_event()
            told.append(len(body))
    except h11.RemoteProtocolError as error:
        told.append(str(error))
    return bytes(body), told, chunks


def cut(data: bytes, points: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:stop] for start, stop in pairwise(places)]


BODY = st.lists(st.sampled_from([b"\r", b"\n", b"0", b"a", b"Z"]), min_size=1, max_size=40).map(
    b"".join
)
SIZES = st.sampled_from(
    [b"%x", b"%X", b"000%x", b"%x;a=b", b"%x ", b" %x", b"0x%x", b"+%x", b"%x_0", b"0%013x"]
)
LINE_ENDS = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b"", b"xx"])


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    """Chunks, most of the plainest form; the others are rare ones and wrong ones."""
    sent = bytearray()
    for data in draw(st.lists(BODY, max_size=12)):
        size = draw(SIZES) if draw(st.integers(0, 9)) == 9 else b"%x"
        sent += size % len(data) + draw(LINE_ENDS) + data + draw(LINE_ENDS)
    return bytes(sent) + draw(
        st.sampled_from([b"0\r\n\r\n", b"0\r\na: b\r\n\r\n", b"00\r\n\r\n", b""])
    )


@given(
    start=st.sampled_from(HEADS),
    body=chunked(),
    is_apart=st.booleans(),
    points=st.lists(st.integers(0, 10**4), max_size=8),
)
def test_what_is_joined_is_read_the_same(
    start: bytes, body: bytes, is_apart: bool, points: list[int]
) -> None:
    """The same body, the same faults, and each byte as soon as without."""
    pieces = [start, *cut(body, points)] if is_apart else cut(start + body, points)
    *plainly, many = read_by_h11(pieces, None)
    *joined, few = read_by_h11(pieces, ChunkJoiner())
    assert joined == plainly
    assert few <= many


def test_chunks_that_come_together_are_one() -> None:
    """Also where the pieces are cut within a chunk, within its size, and within its end."""
    parts = [b"event %d" % number for number in range(100)]
    sent = b"".join(map(chunk, parts)) + b"0\r\n\r\n"
    for at in range(1, 60):
        body, told, chunks = read_by_h11([HEAD, sent[:at], sent[at:]], ChunkJoiner())
        assert body == b"".join(parts)
        assert [] in told
        assert chunks <= 8, at


def test_head_that_comes_in_pieces_is_left_alone() -> None:
    """Nobody says where in the last piece it ends."""
    pieces = [HEAD[:20], HEAD[20:], chunk(b"a") + chunk(b"b") + b"0\r\n\r\n"]
    assert read_by_h11(pieces, ChunkJoiner()) == read_by_h11(pieces, None)


async def test_each_answer_of_a_connection_is_joined(flavour: Flavour) -> None:
    """A connection is used again, and an answer of another kind came in between."""

    sent = b"".join(chunk(b"data: %d\n\n" % number) for number in range(50)) + b"0\r\n\r\n"
    stream = head(200, content_type="text/event-stream", transfer_encoding="chunked") + sent
    body = b'{"run": {"status": "success"}}'
    plain = head(200, content_type="application/json", content_length=str(len(body))) + body

    async def script(connection: Connection) -> None:
        for answer in (stream, plain, stream, plain):
            await connection.send(answer[:300], answer[300:])
            await connection.reader.readuntil(b"\r\n\r\n")
            await connection.reader.readexactly(2)

    with raw_server(script) as server:
        client = flavour.client(server.url)
        for _ in range(2):
            blocks = await flavour.blocks(client.create_and_stream_run())
            assert [sse.data for sse in blocks] == [str(number) for number in range(50)]
            response = await flavour.call(client.create_and_wait_run)
            assert response.run.status == "success"
        await flavour.close(client)
        assert server.all_closed.wait(5)
        assert len(server.ends) == 1


@pytest.mark.parametrize("kind", [JoiningRead, AsyncJoiningRead])
def test_stream_that_does_not_let_itself_be_changed_is_left_alone(
    kind: type[JoiningRead | AsyncJoiningRead],
) -> None:
    """A network backend of the caller's."""

    class Fixed:
        __slots__ = ()

        def read(self) -> None: ...

    stream = Fixed()
    join_chunks(stream, kind)
    assert not isinstance(stream.read, ChunkJoiner)
