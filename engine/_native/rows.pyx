"""Rows of a binary COPY stream kept in memory, batch by batch, and put together again with some fields replaced.

``RowBatches`` takes the stream in pieces of any size and hands out ``Rows``; kernels decode the columns that somebody
wants to see, others encode new values into ``Encoded``, and ``assemble`` copies both into rows of a new stream.  Fields
that nobody decodes are copied as bytes, whatever their type.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

import numpy as np

from engine._native.copybin cimport (
    AFTER_TRAILER, AT_ROW, FAILED, FIELD_COUNT_BYTES, LENGTH_BYTES, NULL_LENGTH, TRAILER_COUNT,
    FrameScanner, is_impossible, load_int16, load_int32, value_bytes,
)

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # the signature, no flags, no extension
TRAILER = b"\xff\xff"

cdef enum:
    MOST_FIELDS = 0x7FFF
    MOST_ROWS = 0x3FFFFFFF
    MOST_BYTES = 0x3FFFFFFF         # of a batch, unless a single row has more
    MOST_ROW_BYTES = 0x7FFFFFFF     # twice what PostgreSQL can send; after a batch still within 32 bits
    SLICE_BYTES = 65536             # a piece is taken in and walked slice by slice, while it is in the cache
    FIRST_STARTS_BYTES = 65536

# What ended a walk.
cdef enum:
    NEEDS_BYTES
    NEEDS_ROOM
    BATCH_FULL
    NO_ROW_HERE
    IMPOSSIBLE_LENGTH
    ROW_TOO_LONG


cdef class Rows:
    """Some rows of a COPY stream, unchangeable: ``count`` rows of ``fields`` fields, ``nbytes`` on the wire.

    ``RowBatches`` makes them, and ``take``.  The memory goes when the last reference does.
    """

    def __init__(self):
        raise TypeError("rows come from RowBatches")

    def __dealloc__(self):
        PyMem_RawFree(self.data)
        PyMem_RawFree(self.starts)

    def __len__(self):
        return self.count

    def value(self, Py_ssize_t row, int field):
        """The wire bytes of one value, None for null."""
        cdef uint32_t start
        cdef int32_t length
        if not (0 <= row < self.count and 0 <= field < self.fields):
            raise IndexError(f"no field {field} of row {row} in {self.count} rows of {self.fields} fields")
        start = self.starts[row * (self.fields + 1) + field]
        length = load_int32(self.data + start)
        if length == NULL_LENGTH:
            return None
        return PyBytes_FromStringAndSize(<char *> self.data + start + LENGTH_BYTES, length)

    def take(self, rows):
        """New ``Rows`` of the rows with these numbers, in their order; a copy.

        ``rows``: integers of shape (n,), 0 to before ``count``, repeated if need be.  IndexError for others.
        """
        numbers = np.asarray(rows)
        if numbers.size and (numbers.ndim != 1 or numbers.dtype.kind not in "iu"):
            raise TypeError(f"row numbers are integers of shape (n,), not {numbers.dtype} of shape {numbers.shape}")
        cdef const int64_t[::1] wanted = np.ascontiguousarray(numbers, dtype=np.int64).reshape(-1)
        cdef Py_ssize_t width = self.fields + 1
        cdef Py_ssize_t i, nbytes = 0
        cdef const uint32_t *row
        cdef Rows taken
        for i in range(wanted.shape[0]):
            if not 0 <= wanted[i] < self.count:
                raise IndexError(f"no row {wanted[i]} among {self.count}")
            row = self.starts + wanted[i] * width
            nbytes += FIELD_COUNT_BYTES + row[self.fields] - row[0]
        if nbytes > MOST_ROW_BYTES:
            raise ValueError(f"{nbytes} bytes are more than one batch may have")
        taken = Rows.__new__(Rows)
        taken.data = <uint8_t *> PyMem_RawMalloc(nbytes)
        taken.starts = <uint32_t *> PyMem_RawMalloc(wanted.shape[0] * width * sizeof(uint32_t))
        if taken.data == NULL or taken.starts == NULL:
            raise MemoryError
        taken.count = wanted.shape[0]
        taken.fields = self.fields
        taken.nbytes = nbytes
        with nogil:
            copy_rows(taken.data, taken.starts, self.data, self.starts, width, wanted)
        return taken


cdef void copy_rows(
    uint8_t *data, uint32_t *starts, const uint8_t *source, const uint32_t *source_starts, Py_ssize_t width,
    const int64_t[::1] wanted,
) noexcept nogil:
    cdef Py_ssize_t i, field, start, nbytes, at = 0
    cdef const uint32_t *row
    for i in range(wanted.shape[0]):
        row = source_starts + wanted[i] * width
        start = <Py_ssize_t> row[0] - FIELD_COUNT_BYTES
        nbytes = <Py_ssize_t> row[width - 1] - start
        memcpy(data + at, source + start, nbytes)
        for field in range(width):
            starts[field] = <uint32_t> (row[field] - start + at)
        starts += width
        at += nbytes


cdef class Encoded:
    """The values of one column in wire form: ``count`` of them.  Kernels make them, and ``Encoded.of``."""

    def __cinit__(self):
        # Even one that ``__new__`` made, past ``__init__``, holds no values and not an address out of nowhere.
        self.starts = <int64_t *> PyMem_RawCalloc(1, sizeof(int64_t))
        if self.starts == NULL:
            raise MemoryError

    def __init__(self):
        raise TypeError("values come from an encoder, or from Encoded.of")

    def __dealloc__(self):
        PyMem_RawFree(self.data)
        PyMem_RawFree(self.starts)

    def __len__(self):
        return self.count

    @property
    def nbytes(self):
        """Bytes of all values, their length words included."""
        return self.starts[self.count]

    @staticmethod
    def of(values):
        """From wire bytes, None for null; any sequence of them."""
        cdef list given = list(values)
        cdef Py_ssize_t i, at = 0
        cdef bytes value
        cdef int32_t length
        cdef Encoded encoded = new_encoded(
            len(given), sum(LENGTH_BYTES + (0 if value is None else len(value)) for value in given))
        for i in range(encoded.count):
            value = given[i]
            if value is not None and len(value) > MOST_BYTES:
                raise ValueError(f"a value of {len(value)} bytes is more than PostgreSQL has")
            length = NULL_LENGTH if value is None else <int32_t> len(value)
            store_int32(encoded.data + at, length)
            at += LENGTH_BYTES
            if length > 0:
                memcpy(encoded.data + at, PyBytes_AS_STRING(value), length)
                at += length
            encoded.starts[i + 1] = at
        return encoded

    def value(self, Py_ssize_t row):
        """The wire bytes of one value, None for null."""
        cdef int32_t length
        if not 0 <= row < self.count:
            raise IndexError(f"no value {row} among {self.count}")
        length = load_int32(self.data + self.starts[row])
        if length == NULL_LENGTH:
            return None
        return PyBytes_FromStringAndSize(<char *> self.data + self.starts[row] + LENGTH_BYTES, length)

    cdef int reserve(self, Py_ssize_t nbytes) except -1:
        """Make room for ``nbytes`` in all, and for some more where that saves moving again; ``data`` may move."""
        cdef uint8_t *data
        cdef Py_ssize_t capacity
        if nbytes <= self.capacity:
            return 0
        capacity = max(nbytes, self.capacity + self.capacity // 2)
        data = <uint8_t *> PyMem_RawRealloc(self.data, capacity)
        if data == NULL:
            raise MemoryError
        self.data = data
        self.capacity = capacity
        return 0


cdef Encoded new_encoded(Py_ssize_t count, Py_ssize_t nbytes):
    cdef Encoded encoded = Encoded.__new__(Encoded)
    cdef Py_ssize_t i
    cdef int64_t *starts = <int64_t *> PyMem_RawRealloc(encoded.starts, (count + 1) * sizeof(int64_t))
    if starts == NULL:
        raise MemoryError
    encoded.starts = starts
    encoded.data = <uint8_t *> PyMem_RawMalloc(nbytes)
    if encoded.data == NULL:
        raise MemoryError
    encoded.capacity = nbytes
    encoded.count = count
    # An encoder that gives up half way leaves values of no bytes, never an address out of nowhere.
    for i in range(count + 1):
        encoded.starts[i] = 0
    return encoded


cdef class RowBatches:
    """Cuts a binary COPY stream into batches of rows.

    ``fields``: how many each row must have, 0..32767.  A batch has at most ``max_rows`` rows and ``max_bytes`` bytes; a
    row that is larger is a batch of its own.  Where the batches end does not depend on how the stream was cut.

    - ``rows``: complete rows so far, those of the batch that is being gathered included.
    - ``bytes``: bytes accepted so far, header and trailer included.
    - ``largest_row_bytes``: wire size of the largest complete row.

    A stream that breaks the format raises ``CopyFormatError`` where ``FrameScanner`` does; rows before the offending
    item may have been handed out by then, and others are lost with the call that raises.  After that further pieces
    are refused.  So is a row of 2 GiB or more, which PostgreSQL never sends.
    """

    def __cinit__(self, int fields, *, Py_ssize_t max_rows=8192, Py_ssize_t max_bytes=1 << 22):
        if not 0 < max_rows <= MOST_ROWS:
            raise ValueError(f"a batch has 1 to {MOST_ROWS} rows, not {max_rows}")
        if not 0 < max_bytes <= MOST_BYTES:
            raise ValueError(f"a batch has 1 to {MOST_BYTES} bytes, not {max_bytes}")
        self._frame = FrameScanner(fields)
        self.fields = fields
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._field = -1

    def __dealloc__(self):
        PyMem_RawFree(self._data)
        PyMem_RawFree(self._starts)

    @property
    def bytes(self):
        """Bytes accepted so far, header and trailer included; after a failure, those before the offending item."""
        return self._frame.bytes

    def feed(self, const uint8_t[::1] piece not None):
        """Take the next piece of the stream; returns the batches that it completes, mostly none.  Keeps no reference
        to the piece."""
        cdef Py_ssize_t length = piece.shape[0]
        cdef Py_ssize_t at = 0, taken
        cdef const uint8_t *data
        cdef FrameScanner frame = self._frame
        cdef list batches = []
        if frame._state == FAILED:
            raise frame._error
        if length == 0:
            return batches
        data = &piece[0]
        try:
            while at < length:
                if frame._state != AT_ROW:
                    frame._step(data, length, &at)
                    continue
                if self._base == 0:
                    self._base = frame.bytes + at
                taken = min(length - at, <Py_ssize_t> SLICE_BYTES)
                self._gather(data + at, taken)
                self._scan(batches)
                at += taken
        except MemoryError as error:
            frame._state = FAILED
            frame._error = error
            raise
        frame.bytes += length
        return batches

    def finish(self):
        """Check that the stream ended where it may, and return the rows of the last batch, None if there are none."""
        if self._frame._state == AT_ROW and self._size > self._end:
            raise self._frame._fail("ends within a row", self._frame.bytes)
        self._frame.finish()
        return self._close() if self._count else None

    cdef int _gather(self, const uint8_t *piece, Py_ssize_t length) except -1:
        """Append to the batch."""
        cdef Py_ssize_t wanted = self._size + length
        cdef Py_ssize_t capacity
        cdef uint8_t *data
        if wanted > self._data_capacity:
            capacity = max(wanted, self._data_capacity + self._data_capacity // 2)
            if self._data_capacity == 0:
                capacity = max(capacity, self._expected_bytes + SLICE_BYTES)
            if wanted <= self._max_bytes + SLICE_BYTES:
                capacity = min(capacity, self._max_bytes + SLICE_BYTES)
            data = <uint8_t *> PyMem_RawRealloc(self._data, capacity)
            if data == NULL:
                raise MemoryError
            self._data = data
            self._data_capacity = capacity
        allow(self._data + self._size, length)
        memcpy(self._data + self._size, piece, length)
        forbid(self._data + wanted, self._data_capacity - wanted)
        self._size = wanted
        return 0

    cdef int _scan(self, list batches) except -1:
        """Walk over what was appended."""
        cdef int outcome
        cdef int16_t count
        while True:
            with nogil:
                outcome = self._walk()
            if outcome == NEEDS_BYTES:
                return 0
            if outcome == NEEDS_ROOM:
                self._make_room_for_rows()
            elif outcome == BATCH_FULL:
                batches.append(self._close())
            elif outcome == NO_ROW_HERE:
                count = load_int16(self._data + self._end)
                if count != TRAILER_COUNT:
                    raise self._frame._fail(f"row of {count} fields instead of {self.fields}", self._base + self._end)
                if self._size > self._end + FIELD_COUNT_BYTES:
                    raise self._frame._fail(
                        "more bytes after the trailer", self._base + self._end + FIELD_COUNT_BYTES)
                self._size = self._end
                self._frame._state = AFTER_TRAILER
                return 0
            elif outcome == IMPOSSIBLE_LENGTH:
                raise self._frame._fail(
                    f"field of {load_int32(self._data + self._at)} bytes", self._base + self._at)
            else:
                raise self._frame._fail(f"row of more than {MOST_ROW_BYTES} bytes", self._base + self._end)

    cdef int _walk(self) noexcept nogil:
        """Find the starts of fields up to what ends the walk, and say what that is."""
        cdef const uint8_t *data = self._data
        cdef Py_ssize_t size = self._size, end = self._end, at = self._at, count = self._count
        cdef Py_ssize_t largest = self.largest_row_bytes
        cdef int field = self._field, fields = self.fields
        cdef int outcome = NEEDS_BYTES
        cdef int32_t length
        cdef uint32_t *row
        while True:
            if field < 0:
                if count == self._max_rows or end >= self._max_bytes:
                    outcome = BATCH_FULL
                    break
                if size - end < FIELD_COUNT_BYTES:
                    break
                if load_int16(data + end) != fields:
                    outcome = NO_ROW_HERE
                    break
                if count == self._starts_capacity:
                    outcome = NEEDS_ROOM
                    break
                field = 0
                at = end + FIELD_COUNT_BYTES
            row = self._starts + count * (fields + 1)
            while field < fields:
                if size - at < LENGTH_BYTES:
                    break
                length = load_int32(data + at)
                if is_impossible(length):
                    outcome = IMPOSSIBLE_LENGTH
                    break
                row[field] = <uint32_t> at
                field += 1
                at += LENGTH_BYTES + value_bytes(length)
                if at - end > MOST_ROW_BYTES:
                    outcome = ROW_TOO_LONG
                    break
            if outcome != NEEDS_BYTES:
                break
            if at > self._max_bytes and count:
                outcome = BATCH_FULL  # the row is the first of the next batch
                break
            if field < fields or at > size:
                break
            row[fields] = <uint32_t> at
            count += 1
            if at - end > largest:
                largest = at - end
            end = at
            field = -1
        self.rows = self.rows + count - self._count
        self.largest_row_bytes = largest
        self._count = count
        self._end = end
        self._at = at
        self._field = field
        return outcome

    cdef Rows _close(self):
        """Hand out the complete rows; what follows them begins the next batch."""
        cdef Rows rows = Rows.__new__(Rows)
        cdef Py_ssize_t end = self._end, width = self.fields + 1
        cdef Py_ssize_t tail_bytes = self._size - end
        cdef uint32_t *walked = self._starts + self._count * width   # of the row that has begun
        cdef int field
        rows.count = self._count
        rows.fields = self.fields
        rows.nbytes = end
        rows.data = self._data
        rows.starts = self._starts
        self._data = NULL
        self._starts = NULL
        self._expected_bytes = min(end, self._max_bytes)
        self._expected_rows = self._count
        self._data_capacity = self._starts_capacity = 0
        self._size = self._end = self._count = 0
        self._base += end
        if tail_bytes:
            self._gather(rows.data + end, tail_bytes)
            forbid(rows.data + end, tail_bytes)
        if self._field >= 0:
            self._make_room_for_rows()
            for field in range(self._field):
                self._starts[field] = walked[field] - <uint32_t> end
            self._at -= end
        return rows

    cdef int _make_room_for_rows(self) except -1:
        """Make room for the starts of more rows, at least one, in proportion to those that there are."""
        cdef Py_ssize_t row_bytes = (self.fields + 1) * <Py_ssize_t> sizeof(uint32_t)
        cdef Py_ssize_t capacity = 2 * self._starts_capacity
        cdef uint32_t *starts
        if capacity == 0:
            capacity = max(self._expected_rows, FIRST_STARTS_BYTES // row_bytes, <Py_ssize_t> 1)
        capacity = min(capacity, self._max_rows)
        starts = <uint32_t *> PyMem_RawRealloc(self._starts, capacity * row_bytes)
        if starts == NULL:
            raise MemoryError
        self._starts = starts
        self._starts_capacity = capacity
        return 0


# Bytes to copy into each output row: fields ``first`` to before ``behind`` of the input row, or a value of ``column``.
cdef struct Span:
    int first
    int behind
    const uint8_t *column        # NULL for fields of the input row
    const int64_t *starts        # of the column's values


def assemble(Rows rows not None, layout, columns, keep=None):
    """Rows in binary COPY form, without header and trailer, whose fields come from ``rows`` and from ``columns``.

    ``layout``: per output field n >= 0 for input field n as it is, or -1-k for ``columns[k]``, an ``Encoded`` of as
    many values as there are rows.  ``keep``: bool array of shape (rows.count,); rows where it is false are left out.
    ValueError when these do not fit each other, or when a column stands nowhere in the layout.
    """
    cdef list columns_given = list(columns)
    cdef list layout_given = list(layout)
    cdef const uint8_t[::1] kept_rows
    cdef const uint8_t *kept = NULL
    cdef Span *spans
    cdef int number, fields
    cdef Py_ssize_t total
    cdef object output
    cdef uint8_t *written
    if keep is not None:
        if not isinstance(keep, np.ndarray) or keep.dtype != np.bool_ or keep.shape != (rows.count,):
            raise ValueError(f"keep is a bool array of shape ({rows.count},)")
        kept_rows = np.ascontiguousarray(keep).view(np.uint8)
        if rows.count:
            kept = &kept_rows[0]
    if len(layout_given) > MOST_FIELDS:
        raise ValueError(f"a row has 0 to {MOST_FIELDS} fields, not {len(layout_given)}")
    fields = <int> len(layout_given)
    spans = <Span *> PyMem_Malloc(fields * sizeof(Span))
    if spans == NULL:
        raise MemoryError
    try:
        number = spans_of(rows, layout_given, columns_given, spans)
        with nogil:
            total = assembled_bytes(rows.count, rows.starts, rows.fields, spans, number, kept)
        output = PyBytes_FromStringAndSize(NULL, total)
        written = <uint8_t *> PyBytes_AS_STRING(output)
        with nogil:
            write_rows(written, fields, rows.count, rows.data, rows.starts, rows.fields, spans, number, kept)
    finally:
        PyMem_Free(spans)
    return output


cdef int spans_of(Rows rows, list layout, list columns, Span *spans) except -1:
    """Fill ``spans``, neighbours joined, and say how many there are."""
    cdef int number = 0, item, column
    cdef Encoded encoded
    cdef set unused = set(range(len(columns)))
    for column in range(len(columns)):
        encoded = columns[column]
        if encoded is None or encoded.count != rows.count:
            raise ValueError(f"column {column} has not as many values as there are rows ({rows.count})")
    for item in layout:
        if item >= rows.fields:
            raise ValueError(f"no field {item} among {rows.fields}")
        if item >= 0:
            if number and spans[number - 1].column == NULL and spans[number - 1].behind == item:
                spans[number - 1].behind = item + 1
                continue
            spans[number].first = item
            spans[number].behind = item + 1
            spans[number].column = NULL
            spans[number].starts = NULL
        else:
            column = -1 - item
            if column >= len(columns):
                raise ValueError(f"no column {column} among {len(columns)}")
            encoded = columns[column]
            spans[number].first = spans[number].behind = -1
            spans[number].column = encoded.data
            spans[number].starts = encoded.starts
            unused.discard(column)
        number += 1
    if unused:
        raise ValueError(f"columns that stand nowhere in the layout: {sorted(unused)}")
    return number


cdef Py_ssize_t assembled_bytes(
    Py_ssize_t count, const uint32_t *row_starts, int fields, const Span *spans, int number, const uint8_t *kept,
) noexcept nogil:
    cdef Py_ssize_t row, total = 0
    cdef int i
    for row in range(count):
        if kept == NULL or kept[row]:
            total += FIELD_COUNT_BYTES
            for i in range(number):
                if spans[i].column == NULL:
                    total += row_starts[spans[i].behind] - row_starts[spans[i].first]
                else:
                    total += spans[i].starts[row + 1] - spans[i].starts[row]
        row_starts += fields + 1
    return total


cdef void write_rows(
    uint8_t *output, int output_fields, Py_ssize_t count, const uint8_t *data, const uint32_t *row_starts, int fields,
    const Span *spans, int number, const uint8_t *kept,
) noexcept nogil:
    cdef Py_ssize_t row, length
    cdef const uint8_t *source
    cdef int i
    for row in range(count):
        if kept == NULL or kept[row]:
            output[0] = <uint8_t> (output_fields >> 8)
            output[1] = <uint8_t> (output_fields & 0xFF)
            output += FIELD_COUNT_BYTES
            for i in range(number):
                if spans[i].column == NULL:
                    source = data + row_starts[spans[i].first]
                    length = row_starts[spans[i].behind] - row_starts[spans[i].first]
                else:
                    source = spans[i].column + spans[i].starts[row]
                    length = spans[i].starts[row + 1] - spans[i].starts[row]
                memcpy(output, source, length)
                output += length
        row_starts += fields + 1
