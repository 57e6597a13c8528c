"""Rows in memory against a plain reading of the format: the same rows, errors and offsets for any cut into pieces."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native.copybin import CopyFormatError, FrameScanner
from engine._native.rows import HEADER, TRAILER, Encoded, RowBatches, Rows, assemble
from tests.support.copystream import MAX_FIELD_BYTES, Row, cut, damaged_tables, encode, read_stream, tables

MEGABYTE = 1 << 20

values = st.none() | st.binary(max_size=12)


def row_bytes(row: Row) -> int:
    return 2 + sum(4 + len(value or b"") for value in row)


def values_of(rows: Rows) -> list[Row]:
    return [tuple(rows.value(row, field) for field in range(rows.fields)) for row in range(rows.count)]


def batches_of(pieces: list[bytes], fields: int, **limits: int) -> list[Rows]:
    """All batches of a right stream."""
    batches = RowBatches(fields, **limits)
    gathered = [rows for piece in pieces for rows in batches.feed(piece)]
    last = batches.finish()
    return gathered if last is None else [*gathered, last]


def rows_of(rows: list[Row], fields: int) -> Rows:
    """All of them in one batch, of which there must be at least one."""
    [batch] = batches_of([encode(rows)], fields)
    return batch


def feed(reader: RowBatches | FrameScanner, stream: bytes, size: int) -> None:
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])


def failure(call: Callable[[], object]) -> CopyFormatError | None:
    try:
        call()
    except CopyFormatError as error:
        return error
    return None


def split(rows: list[Row], max_rows: int, max_bytes: int) -> list[list[Row]]:
    """The oracle of where batches end."""
    batches: list[list[Row]] = []
    for row in rows:
        if not batches or len(batches[-1]) == max_rows or sum(map(row_bytes, batches[-1])) + row_bytes(row) > max_bytes:
            batches.append([])
        batches[-1].append(row)
    return batches


# ------------------------------------------------------------------------------------------------------ batches


@given(
    table=tables(),
    data=st.data(),
    max_rows=st.integers(1, 6) | st.just(8192),
    max_bytes=st.integers(1, 200) | st.just(MEGABYTE),
)
@settings(deadline=None)
def test_any_rows_in_any_pieces_come_out_in_the_batches_of_the_oracle(
    table: tuple[int, tuple[int, ...], bytes], data: st.DataObject, max_rows: int, max_bytes: int
) -> None:
    fields, _, stream = table
    expected = read_stream(stream, fields).values
    got = batches_of(cut(data, stream), fields, max_rows=max_rows, max_bytes=max_bytes)
    assert [values_of(rows) for rows in got] == split(expected, max_rows, max_bytes)
    assert [rows.nbytes for rows in got] == [
        sum(map(row_bytes, batch)) for batch in split(expected, max_rows, max_bytes)
    ]


@given(table=tables() | damaged_tables(), data=st.data(), max_rows=st.integers(1, 3), max_bytes=st.integers(1, 99))
@settings(deadline=None, max_examples=300)
def test_a_damaged_stream_stops_it_and_the_frame_scanner_and_the_oracle_at_the_same_byte(
    table: tuple[int, tuple[int, ...], bytes], data: st.DataObject, max_rows: int, max_bytes: int
) -> None:
    fields, _, stream = table
    pieces = cut(data, stream)
    expected = read_stream(stream, fields)
    batches = RowBatches(fields, max_rows=max_rows, max_bytes=max_bytes)
    scanner = FrameScanner(fields)
    got: list[Rows] = []
    for piece in pieces:
        error = failure(lambda piece=piece: scanner.feed(piece))
        assert repr(error) == repr(failure(lambda piece=piece: got.extend(batches.feed(piece))))
        assert error is None or error.offset == expected.error_at
        assert (batches.rows, batches.bytes) == (scanner.rows, scanner.bytes)
        assert batches.largest_row_bytes == scanner.largest_row_bytes
        if error:
            break
    assert (batches.rows, batches.bytes, batches.largest_row_bytes) == (expected.rows, expected.bytes, expected.largest)
    error = failure(scanner.finish)
    assert repr(error) == repr(failure(lambda: got.extend(last for last in [batches.finish()] if last)))
    assert (error and error.offset) == expected.finish_at
    handed_out = [row for rows in got for row in values_of(rows)]
    assert handed_out == expected.values[: None if error is None else len(handed_out)]
    if expected.error_at is not None:
        assert repr(failure(lambda: batches.feed(b"x"))) == repr(error)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 19, 64, 1000, 65536, 65537, 200_000])
def test_every_piece_size_gives_the_same_batches(size: int) -> None:
    rows: list[Row] = [(struct.pack(">q", i), None if i % 3 else b"note", b"x" * (i % 97)) for i in range(3000)]
    stream = encode(rows)
    got = batches_of([stream[i : i + size] for i in range(0, len(stream), size)], 3, max_rows=700, max_bytes=40_000)
    assert [values_of(batch) for batch in got] == split(rows, 700, 40_000)


def test_a_batch_is_handed_out_with_the_byte_that_completes_it() -> None:
    stream = encode([(b"a",), (b"b",), (b"c",)])
    batches = RowBatches(1, max_rows=2)
    end_of_second = len(HEADER) + 2 * 7
    assert batches.feed(stream[: end_of_second - 1]) == []
    [rows] = batches.feed(stream[end_of_second - 1 : end_of_second])
    assert values_of(rows) == [(b"a",), (b"b",)]
    assert batches.feed(stream[end_of_second:]) == []
    last = batches.finish()
    assert last is not None
    assert values_of(last) == [(b"c",)]
    assert batches.finish() is None  # handed out once


def test_a_batch_is_full_with_exactly_the_bytes_it_may_have() -> None:
    stream = encode([(b"a",), (b"b",), (b"c",)])
    batches = RowBatches(1, max_bytes=2 * 7)
    [rows] = batches.feed(stream[: len(HEADER) + 2 * 7])
    assert values_of(rows) == [(b"a",), (b"b",)]


def test_every_end_of_a_stream_is_told_as_the_frame_scanner_tells_it() -> None:
    stream = encode([(b"ab", None), (b"", b"c")], extension=b"e") + b"xy"
    for length in range(len(stream) + 1):
        for size in (1, 4, len(stream)):
            batches, scanner = RowBatches(2), FrameScanner(2)
            for reader in (batches, scanner):
                failure(lambda reader=reader, length=length, size=size: feed(reader, stream[:length], size))
            assert repr(failure(batches.finish)) == repr(failure(scanner.finish))
            assert (batches.rows, batches.bytes) == (scanner.rows, scanner.bytes)


def test_a_row_larger_than_a_batch_may_be_is_a_batch_of_its_own() -> None:
    small: Row = (b"s",)
    large: Row = (b"l" * 300_000,)
    got = batches_of([encode([small, small, large, small, large])], 1, max_bytes=1000)
    assert [values_of(batch) for batch in got] == [[small, small], [large], [small], [large]]


def test_an_empty_stream_has_no_batch() -> None:
    assert batches_of([encode([])], 3) == []


def test_rows_without_fields_are_rows() -> None:
    got = batches_of([encode([()] * 5)], 0, max_rows=3)
    assert [(batch.count, batch.fields, batch.nbytes) for batch in got] == [(3, 0, 6), (2, 0, 4)]
    assert assemble(got[0], [-1], [Encoded.of([b"a", None, b""])]) == encode([(b"a",), (None,), (b"",)])[19:-2]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_reads_any_buffer_and_keeps_none(kind: type) -> None:
    piece = bytearray(encode([(b"k",)]))
    batches = RowBatches(1)
    batches.feed(kind(piece))
    piece[:] = bytes(len(piece))
    piece.clear()  # raises BufferError while somebody holds the buffer
    last = batches.finish()
    assert last is not None
    assert values_of(last) == [(b"k",)]


def test_the_widest_row_and_the_smallest_pieces_take_time_in_proportion() -> None:
    wide: Row = (b"v",) * 32767
    stream = encode([wide]) + b""
    long = encode([(b"x" * (2 * MEGABYTE),)])
    started = time.process_time()
    assert values_of(batches_of([stream[i : i + 1] for i in range(len(stream))], 32767)[0]) == [wide]
    assert batches_of([long[i : i + 1] for i in range(len(long))], 1)[0].nbytes == 2 + 4 + 2 * MEGABYTE
    # A second in all; walking the row anew for each of its bytes would take half a minute, moving it an hour.
    assert time.process_time() - started < 10.0


# ------------------------------------------------------------------------------------------------------- memory


def test_a_batchs_memory_goes_with_its_last_reference() -> None:
    rows: list[Row] = [(b"x" * 1000,)] * 8000
    stream = encode(rows)
    tracemalloc.start()
    try:
        batches = RowBatches(1, max_bytes=MEGABYTE)
        held: Rows | None = None
        count = 0
        for start in range(0, len(stream), 50_000):
            for batch in batches.feed(stream[start : start + 50_000]):
                count += 1
                held = held or batch
        peak = tracemalloc.get_traced_memory()[1]
        assert count >= 7
        assert held is not None
        assert held.value(0, 0) == b"x" * 1000  # still there, whatever came after it
        # The one that is held, the two last ones handed out, and the one being gathered, each a sixteenth larger.
        assert peak < 4.6 * MEGABYTE
        before = tracemalloc.get_traced_memory()[0]
        del held
        assert before - tracemalloc.get_traced_memory()[0] > 0.9 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_a_length_that_nobody_backs_with_bytes_takes_no_memory() -> None:
    stream = HEADER + struct.pack(">hi", 1, MAX_FIELD_BYTES) + b"and no more"
    tracemalloc.start()
    try:
        batches = RowBatches(1)
        assert batches.feed(stream) == []
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    finally:
        tracemalloc.stop()


def test_wide_rows_take_room_for_as_many_as_there_are() -> None:
    stream = encode([(None,) * 32767] * 3)
    tracemalloc.start()
    try:
        RowBatches(32767).feed(stream)
        assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE
    finally:
        tracemalloc.stop()


# ----------------------------------------------------------------------------------------------------- assembly


@st.composite
def assemblies(draw: st.DrawFn) -> tuple[int, list[Row], list[int], list[list[bytes | None]], list[bool] | None]:
    """Fields, rows, a layout, its columns, and which rows to keep."""
    fields = draw(st.integers(0, 4))
    rows = draw(st.lists(st.tuples(*[values] * fields), min_size=1, max_size=8))
    number = draw(st.integers(0, 3))
    columns = [draw(st.lists(values, min_size=len(rows), max_size=len(rows))) for _ in range(number)]
    others = draw(st.lists(st.integers(-number, fields - 1), max_size=8)) if number or fields else []
    layout = draw(st.permutations([*others, *(-1 - k for k in range(number))]))
    keep = draw(st.none() | st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    return fields, rows, layout, columns, keep


@given(assembly=assemblies())
@settings(deadline=None)
def test_any_layout_gives_the_rows_that_the_oracle_writes(
    assembly: tuple[int, list[Row], list[int], list[list[bytes | None]], list[bool] | None],
) -> None:
    fields, rows, layout, columns, keep = assembly
    expected = [
        tuple(row[item] if item >= 0 else columns[-1 - item][number] for item in layout)
        for number, row in enumerate(rows)
        if keep is None or keep[number]
    ]
    mask = None if keep is None else np.array(keep, np.bool_)
    got = assemble(rows_of(rows, fields), layout, [Encoded.of(column) for column in columns], mask)
    assert HEADER + got + TRAILER == encode(expected)


@given(table=tables(), data=st.data(), max_rows=st.integers(1, 6))
@settings(deadline=None)
def test_untouched_rows_are_the_same_byte_for_byte(
    table: tuple[int, tuple[int, ...], bytes], data: st.DataObject, max_rows: int
) -> None:
    fields, _, stream = table
    got = [assemble(rows, range(fields), []) for rows in batches_of(cut(data, stream), fields, max_rows=max_rows)]
    assert HEADER + b"".join(got) + TRAILER == encode(read_stream(stream, fields).values)


def test_rows_may_get_more_fields_than_a_byte_counts() -> None:
    rows = rows_of([(b"a",), (None,)], 1)
    assert HEADER + assemble(rows, [0] * 700, []) + TRAILER == encode([(b"a",) * 700, (None,) * 700])


def test_a_mask_may_be_a_slice_of_another() -> None:
    rows = rows_of([(b"%d" % i,) for i in range(4)], 1)
    mask = np.array([True, False, False, False, True, False, True, False])[::2]
    assert assemble(rows, [0], [], mask) == encode([(b"0",), (b"2",), (b"3",)])[19:-2]


@pytest.mark.parametrize(
    ("layout", "columns", "keep", "words"),
    [
        ([2], [], None, "no field 2 among 2"),
        ([-1], [], None, "no column 0 among 0"),
        ([0, -3], [[b"a"] * 3] * 2, None, "no column 2 among 2"),
        ([0, -1], [[b"a"] * 2], None, "not as many values"),
        ([0, -1], [[b"a"] * 3] * 2, None, r"nowhere in the layout: \[1\]"),
        ([0] * 32768, [], None, "32768"),
        ([0], [], np.ones(2, np.bool_), "keep is a bool array"),
        ([0], [], np.ones(3, np.int8), "keep is a bool array"),
        ([0], [], np.ones((3, 1), np.bool_), "keep is a bool array"),
    ],
)
def test_refuses_a_layout_that_does_not_fit(
    layout: list[int], columns: list[list[bytes | None]], keep: np.ndarray | None, words: str
) -> None:
    rows = rows_of([(b"a", None)] * 3, 2)
    with pytest.raises(ValueError, match=words):
        assemble(rows, layout, [Encoded.of(column) for column in columns], keep)


def test_refuses_columns_that_are_not_encoded() -> None:
    rows = rows_of([(b"a",)], 1)
    with pytest.raises(TypeError):
        assemble(rows, [-1], [[b"a"]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="not as many values"):
        assemble(rows, [-1], [None])  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        assemble(rows, [1 << 40], [])


# --------------------------------------------------------------------------------------------- rows and columns


@given(rows=st.lists(st.tuples(values, values), min_size=1, max_size=9), data=st.data())
@settings(deadline=None)
def test_rows_that_are_taken_are_copies_in_the_order_asked_for(rows: list[Row], data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    batch = rows_of(rows, 2)
    taken = batch.take(numbers)
    again = taken.take(np.arange(len(numbers), dtype=np.int32)[::-1])
    del batch
    assert values_of(taken) == [rows[number] for number in numbers]
    assert values_of(again) == [rows[number] for number in numbers[::-1]]
    assert HEADER + assemble(taken, [1, 0], []) + TRAILER == encode([rows[number][::-1] for number in numbers])
    assert taken.nbytes == sum(row_bytes(rows[number]) for number in numbers)


@pytest.mark.parametrize("numbers", [[3], [-1], [0, 1, 2, 3], [2**40]])
def test_rows_that_are_not_there_cannot_be_taken(numbers: list[int]) -> None:
    with pytest.raises(IndexError):
        rows_of([(b"a",)] * 3, 1).take(numbers)


@pytest.mark.parametrize("numbers", [np.ones(3, np.bool_), np.ones(3), np.ones((3, 1), np.int64), ["0"]])
def test_row_numbers_are_integers_not_a_mask(numbers: np.ndarray) -> None:
    with pytest.raises(TypeError):
        rows_of([(b"a",)] * 3, 1).take(numbers)


@pytest.mark.parametrize(("row", "field"), [(2, 0), (-1, 0), (0, 2), (0, -1)])
def test_a_value_that_is_not_there_cannot_be_had(row: int, field: int) -> None:
    with pytest.raises(IndexError):
        rows_of([(b"a", b"b")] * 2, 2).value(row, field)


@given(column=st.lists(values, max_size=9))
def test_encoded_values_are_those_given(column: list[bytes | None]) -> None:
    encoded = Encoded.of(column)
    assert [encoded.value(row) for row in range(encoded.count)] == column
    assert encoded.nbytes == sum(4 + len(value or b"") for value in column)
    for row in (-1, len(column)):
        with pytest.raises(IndexError):
            encoded.value(row)


@pytest.mark.parametrize("kind", [Rows, Encoded])
def test_neither_is_made_out_of_nothing(kind: type) -> None:
    with pytest.raises(TypeError):
        kind()


@pytest.mark.parametrize(
    ("fields", "limits"),
    [(-1, {}), (40000, {}), (2, {"max_rows": 0}), (2, {"max_bytes": 0}), (2, {"max_bytes": 1 << 30})],
)
def test_refuses_limits_that_make_no_sense(fields: int, limits: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        RowBatches(fields, **limits)


def test_refuses_what_is_no_buffer() -> None:
    for piece in (None, "text"):
        with pytest.raises(TypeError):
            RowBatches(1).feed(piece)  # type: ignore[arg-type]
