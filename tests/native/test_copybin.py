"""The COPY scanners against a plain reading of the format, for any rows and any cut into pieces."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native.copybin import CopyFormatError, FrameScanner, TextScanner
from tests.support.copystream import (
    HEADER,
    MASK,
    MAX_FIELD_BYTES,
    SIGNATURE,
    TRAILER,
    Reading,
    Row,
    cut,
    damaged_tables,
    encode,
    read_stream,
    row_hash,
    tables,
)


def feed_all(scanner: FrameScanner | TextScanner, pieces: list[bytes]) -> None:
    for piece in pieces:
        scanner.feed(piece)


def scan(pieces: list[bytes], fields: int, key_fields: tuple[int, ...], digest: bool = True) -> Reading:
    """What the scanner sees, in the oracle's terms."""
    scanner = FrameScanner(fields, key_fields, digest)
    error_at = finish_at = None
    try:
        feed_all(scanner, pieces)
    except CopyFormatError as error:
        error_at = error.offset
    try:
        scanner.finish()
    except CopyFormatError as error:
        finish_at = error.offset
    return Reading(
        scanner.rows,
        scanner.bytes,
        scanner.largest_row_bytes,
        scanner.last_key,
        scanner.digest or 0,
        error_at,
        finish_at,
    )


# ------------------------------------------------------------------------------------------------------ tests


@given(table=tables(), data=st.data())
@settings(deadline=None)
def test_reads_any_rows_in_any_pieces_as_the_oracle_does(
    table: tuple[int, tuple[int, ...], bytes], data: st.DataObject
) -> None:
    fields, key_fields, stream = table
    expected = read_stream(stream, fields, key_fields)
    assert (expected.error_at, expected.finish_at) == (None, None)
    assert scan(cut(data, stream), fields, key_fields) == expected


@given(table=damaged_tables(), data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_stream_stops_both_at_the_same_byte(
    table: tuple[int, tuple[int, ...], bytes], data: st.DataObject
) -> None:
    fields, key_fields, damaged = table
    assert scan(cut(data, damaged), fields, key_fields) == read_stream(damaged, fields, key_fields)


@given(noise=st.binary(max_size=300), data=st.data())
@settings(deadline=None)
def test_noise_after_a_right_header_is_read_as_the_oracle_does(noise: bytes, data: st.DataObject) -> None:
    stream = encode([], trailer=noise)
    assert scan(cut(data, stream), 2, (1,)) == read_stream(stream, 2, (1,))


@pytest.mark.parametrize("size", range(1, 40))
def test_every_piece_size_gives_the_same_reading(size: int) -> None:
    rows: list[Row] = [(struct.pack(">q", i), None if i % 3 else b"note", b"x" * (i % 37)) for i in range(50)]
    stream = encode(rows)
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert scan(pieces, 3, (0,)) == read_stream(stream, 3, (0,))


def test_counts_rows_bytes_and_keeps_the_last_key_in_key_order() -> None:
    stream = encode([(b"a", b"b", b"c"), (b"d", None, b"ff")])
    scanner = FrameScanner(3, (2, 0))
    assert scanner.last_key is None
    scanner.feed(stream)
    scanner.finish()
    assert (scanner.rows, scanner.bytes, scanner.last_key) == (2, len(stream), (b"ff", b"d"))
    assert scanner.largest_row_bytes == 2 + 3 * 4 + 3
    assert scanner.digest is None


def test_the_last_key_is_that_of_the_last_complete_row_only() -> None:
    stream = encode([(b"first",), (b"second",)])
    scanner = FrameScanner(1, (0,))
    scanner.feed(stream[:-4])  # the second row lacks its last two bytes
    assert (scanner.rows, scanner.last_key) == (1, (b"first",))
    scanner.feed(stream[-4:])
    assert (scanner.rows, scanner.last_key) == (2, (b"second",))


def test_the_digest_ignores_order_and_sees_everything_else() -> None:
    def digest(rows: list[Row]) -> int | None:
        scanner = FrameScanner(2, (), True)
        scanner.feed(encode(rows))
        return scanner.digest

    rows: list[Row] = [(b"1", b"one"), (b"2", b"two"), (b"3", None)]
    assert digest(rows) == digest(rows[::-1])
    others: list[list[Row]] = [
        rows[:2],
        [*rows, rows[0]],
        [*rows, rows[0], rows[0]],  # a xor would lose this pair
        [(b"1", b"two"), (b"2", b"one"), (b"3", None)],
        [(b"1o", b"ne"), *rows[1:]],  # same bytes, other edges
        [*rows[:2], (b"3", b"")],  # null is not empty
        [],
    ]
    digests = {digest(other) for other in others} | {digest(rows)}
    assert len(digests) == len(others) + 1


def test_a_field_longer_than_any_piece_takes_no_memory() -> None:
    import tracemalloc

    megabyte = bytes(1 << 20)
    scanner = FrameScanner(2, (0,))
    scanner.feed(encode([], trailer=b"") + struct.pack(">hi", 2, 3) + b"key" + struct.pack(">i", MAX_FIELD_BYTES))
    tracemalloc.start()
    for _ in range(1023):
        scanner.feed(megabyte)
    scanner.feed(memoryview(megabyte)[:-1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    scanner.feed(TRAILER)
    scanner.finish()
    assert (scanner.rows, scanner.last_key) == (1, (b"key",))
    assert scanner.largest_row_bytes == 2 + 4 + 3 + 4 + MAX_FIELD_BYTES
    assert peak < 100_000


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_reads_any_buffer_and_keeps_none(kind: type) -> None:
    stream = encode([(b"k",)])
    scanner = FrameScanner(1, (0,))
    piece = bytearray(stream)
    scanner.feed(kind(piece))
    piece[:] = bytes(len(piece))
    piece.clear()  # raises BufferError while somebody holds the buffer
    scanner.finish()
    assert scanner.last_key == (b"k",)


@pytest.mark.parametrize(
    ("stream", "offset", "words"),
    [
        (b"PGCOPY\r\n\xff", 6, "no signature"),
        (b"id,amount\n", 0, "no signature"),
        (encode([], flags=1 << 16), 11, "critical flags 0x00010000"),
        (SIGNATURE + struct.pack(">Ii", 0, -5), 15, "extension of -5 bytes"),
        (HEADER + struct.pack(">h", 3), 19, "row of 3 fields instead of 2"),
        (HEADER + struct.pack(">h", -2), 19, "row of -2 fields"),
        (HEADER + struct.pack(">hi", 2, -2), 21, "field of -2 bytes"),
        (HEADER + struct.pack(">hi", 2, 2**30), 21, "field of 1073741824 bytes"),
        (HEADER + TRAILER + b"x", 21, "more bytes after the trailer"),
    ],
)
def test_says_what_is_wrong_and_where(stream: bytes, offset: int, words: str) -> None:
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        scanner = FrameScanner(2)
        with pytest.raises(CopyFormatError, match=words) as caught:
            feed_all(scanner, pieces)
        assert caught.value.offset == offset
        with pytest.raises(CopyFormatError, match=words):
            scanner.feed(b"x")
        with pytest.raises(CopyFormatError, match=words):
            scanner.finish()


@pytest.mark.parametrize(
    ("length", "words"), [(0, "header"), (18, "header"), (19, "trailer"), (20, "within a row"), (27, "within a row")]
)
def test_an_end_that_comes_too_early_is_seen_at_finish(length: int, words: str) -> None:
    stream = encode([(b"ab",)])
    scanner = FrameScanner(1)
    scanner.feed(stream[:length])
    if length == 27:
        assert scanner.rows == 1  # whole, but the trailer is not
        words = "trailer"
    with pytest.raises(CopyFormatError, match=words):
        scanner.finish()


@pytest.mark.parametrize("arguments", [(-1,), (40000,), (2, (2,)), (2, (-1,)), (2, (0, 0))])
def test_refuses_fields_that_make_no_sense(arguments: tuple[int]) -> None:
    with pytest.raises(ValueError):
        FrameScanner(*arguments)


def test_refuses_what_is_no_buffer() -> None:
    with pytest.raises(TypeError):
        FrameScanner(1).feed(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        FrameScanner(1).feed("text")  # type: ignore[arg-type]


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(CopyFormatError("nonsense", 7)))
    assert (str(error), error.offset) == ("COPY stream: nonsense at byte 7", 7)


@given(lines=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"\\n"))), data=st.data())
@settings(deadline=None)
def test_text_rows_are_lines(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    scanner = TextScanner(digest=True)
    feed_all(scanner, cut(data, stream))
    scanner.finish()
    assert (scanner.rows, scanner.bytes) == (len(lines), len(stream))
    assert scanner.largest_row_bytes == max((len(line) + 1 for line in lines), default=0)
    assert scanner.digest == sum(row_hash(line + b"\n") for line in lines) & MASK
    assert scanner.last_key is None


def test_text_that_ends_within_a_line_is_seen_at_finish() -> None:
    scanner = TextScanner()
    scanner.feed(b"1\ta\n2\t")
    with pytest.raises(CopyFormatError, match="within a row"):
        scanner.finish()
    assert scanner.rows == 1
