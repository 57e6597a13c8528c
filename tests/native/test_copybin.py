"""The COPY scanners against a plain reading of the format, for any rows and any cut into pieces."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native.copybin import CopyFormatError, FrameScanner, TextScanner

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
TRAILER = struct.pack(">h", -1)
MAX_FIELD_BYTES = 2**30 - 1
MASK = 2**64 - 1

Row = tuple[bytes | None, ...]


# ---------------------------------------------------------------------------------------------------- oracle


@dataclass
class Reading:
    """What a reader of the whole stream sees; ``error_at`` is where it must stop, ``finish_at`` where the end is
    wrong (None: right)."""

    rows: int = 0
    bytes: int = 0
    largest: int = 0
    last_key: tuple[bytes | None, ...] | None = None
    digest: int = 0
    error_at: int | None = None
    finish_at: int | None = None


class End(Exception):
    pass


def fold(a: int, b: int) -> int:
    product = a * b
    return (product & MASK) ^ (product >> 64)


def row_hash(row: bytes) -> int:
    state = 0x9E3779B97F4A7C15
    padded = row + bytes(-len(row) % 16)
    for low, high in struct.iter_unpack("<QQ", padded):
        state = fold(low ^ 0xA0761D6478BD642F, high ^ state)
    return fold(state ^ 0xE7037ED1A0B428DB, len(row) ^ 0x9E3779B97F4A7C15)


def read_stream(stream: bytes, fields: int, key_fields: tuple[int, ...] = ()) -> Reading:
    """The oracle: slow, and as the format's description reads."""
    reading = Reading()
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if at + count > len(stream):
            raise End
        at += count
        return stream[at - count : at]

    def number(form: str) -> int:
        return int(struct.unpack(form, take(struct.calcsize(form)))[0])

    def broken(offset: int) -> Reading:
        reading.bytes = reading.error_at = reading.finish_at = offset
        return reading

    try:
        for offset, (seen, expected) in enumerate(zip(stream, SIGNATURE, strict=False)):
            if seen != expected:
                return broken(offset)
        take(len(SIGNATURE))
        if number(">I") >> 16:
            return broken(at - 4)
        extension = number(">i")
        if extension < 0:
            return broken(at - 4)
        take(extension)
        while True:
            start = at
            count = number(">h")
            if count == -1:
                if at < len(stream):
                    return broken(at)
                reading.bytes = at
                return reading
            if count != fields:
                return broken(start)
            values: list[bytes | None] = []
            for _ in range(fields):
                length = number(">i")
                if length < -1 or length > MAX_FIELD_BYTES:
                    return broken(at - 4)
                values.append(None if length == -1 else take(length))
            row = stream[start:at]
            reading.rows += 1
            reading.largest = max(reading.largest, len(row))
            reading.digest = (reading.digest + row_hash(row)) & MASK
            if key_fields:
                reading.last_key = tuple(values[field] for field in key_fields)
    except End:
        reading.bytes = reading.finish_at = len(stream)
        return reading


# ------------------------------------------------------------------------------------------------- strategies


def encode(rows: list[Row], *, flags: int = 0, extension: bytes = b"", trailer: bytes = TRAILER) -> bytes:
    parts = [SIGNATURE, struct.pack(">Ii", flags, len(extension)), extension]
    for row in rows:
        parts.append(struct.pack(">h", len(row)))
        parts += [struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value for value in row]
    return b"".join(parts) + trailer


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, tuple[int, ...], bytes]:
    """Number of fields, key fields and a right stream."""
    fields = draw(st.integers(0, 5))
    value = st.none() | st.binary(max_size=40) | st.binary(min_size=1, max_size=3).map(lambda b: b * 50)
    rows = draw(st.lists(st.tuples(*[value] * fields), max_size=12))
    key_fields = tuple(draw(st.lists(st.integers(0, fields - 1), unique=True))) if fields else ()
    stream = encode(rows, flags=draw(st.integers(0, 0xFFFF)), extension=draw(st.binary(max_size=6)))
    return fields, key_fields, stream


def cut(data: st.DataObject, stream: bytes) -> list[bytes]:
    """The stream in pieces of any sizes, empty ones included."""
    size = data.draw(st.sampled_from([1, 2, 3, 7, 64, 1 << 16]), label="piece size")
    if data.draw(st.booleans(), label="even pieces"):
        return [stream[i : i + size] for i in range(0, len(stream), size)]
    edges = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12), label="edges"))
    return [stream[a:b] for a, b in zip([0, *edges], [*edges, len(stream)], strict=True)]


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


@given(table=tables(), data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_stream_stops_both_at_the_same_byte(
    table: tuple[int, tuple[int, ...], bytes], data: st.DataObject
) -> None:
    fields, key_fields, stream = table
    damaged = bytearray(stream)
    for position in data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=4), label="flips"):
        damaged[position] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    del damaged[data.draw(st.integers(0, len(damaged)), label="truncated at") :]
    damaged += data.draw(st.binary(max_size=3), label="appended")
    assert scan(cut(data, bytes(damaged)), fields, key_fields) == read_stream(bytes(damaged), fields, key_fields)


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


HEADER = encode([], trailer=b"")


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
