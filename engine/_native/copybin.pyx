"""Scanners that count rows in PostgreSQL's COPY streams while the bytes pass by.

A stream arrives in pieces of any size, from one byte up.  Nothing is copied but key values, and those only while their
row is incomplete, so a field of a gigabyte needs no memory here.  Rows that lie whole in a piece, nearly all of them,
are measured by one loop without the GIL; only a row that crosses the edge of a piece goes through the state machine.

A stream that breaks the format raises ``CopyFormatError`` with the offset of the offending item, at the same offset
however the stream was cut; the scanner then keeps the counts of the rows before it and refuses further pieces.  What
a *value* holds is not looked at.

Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
"""

from libc.stdint cimport int16_t, int32_t, uint8_t, uint64_t

cdef bytes SIGNATURE = b"PGCOPY\n\xff\r\n\0"
cdef int SIGNATURE_BYTES = 11
cdef int CRITICAL_FLAGS_SHIFT = 16  # a reader must refuse flags 16..31 that it does not know; we know none

# Where a row ends depends on what is read, so the processor cannot see the next cache misses coming: told where the
# scan will be soon, it halves the time per row of a stream that is not in the cache.  An address past the end is fine.
cdef enum:
    AHEAD_BYTES = 1024
    CACHE_LINE_BYTES = 64


class CopyFormatError(ValueError):
    """A COPY stream breaks the format.  ``offset``: bytes from the start of the stream to the offending item."""

    def __init__(self, what, offset):
        super().__init__(f"COPY stream: {what} at byte {offset}")
        self.what = what
        self.offset = offset

    def __reduce__(self):
        return type(self), (self.what, self.offset)


cdef class FrameScanner:
    """Scans a binary COPY stream.

    ``fields``: how many fields each row must have, 0..32767.  ``key_fields``: which of them, from 0, make the key, in
    key order.  ``digest``: also hash the rows.  ValueError when these make no sense.

    - ``rows``: complete rows so far.
    - ``bytes``: bytes accepted so far, header and trailer included.
    - ``largest_row_bytes``: wire size of the largest complete row.
    - ``last_key``: key values of the last complete row in their binary form, None for a null; None before the first
      row, and always without key fields.
    - ``digest``: see the property.
    """

    def __cinit__(self, int fields, key_fields=(), bint digest=False):
        if not 0 <= fields <= 0x7FFF:
            raise ValueError(f"a row has 0 to 32767 fields, not {fields}")
        self._key_fields = tuple(key_fields)
        if len(set(self._key_fields)) != len(self._key_fields):
            raise ValueError(f"key fields repeat: {self._key_fields}")
        self._key_slots = [-1] * fields
        for slot, field in enumerate(self._key_fields):
            if not 0 <= field < fields:
                raise ValueError(f"key field {field} is not among {fields} fields")
            self._key_slots[field] = slot
        self._fields = fields
        self._digesting = digest
        self._state = IN_SIGNATURE
        self._slot = -1

    @property
    def digest(self):
        """Sum modulo 2**64 of a 64-bit hash of each complete row's wire bytes, None if not asked for.

        Independent of the order of rows and of how the stream was cut; equal rows do not cancel each other.  The hash
        folds 16-byte blocks by multiplication as wyhash does.  It tells streams apart that differ by accident; it is
        no defence against somebody who constructs rows to collide.
        """
        return self._digest if self._digesting else None

    def feed(self, const uint8_t[::1] piece not None):
        """Scan the next piece of the stream."""
        cdef Py_ssize_t length = piece.shape[0]
        cdef Py_ssize_t at = 0, last_row, extent, rows, largest
        cdef const uint8_t *data
        cdef RowHash hash
        cdef uint64_t digest
        if self._state == FAILED:
            raise self._error
        if length == 0:
            return
        data = &piece[0]
        while at < length:
            if self._state == AT_ROW and self._number_have == 0:
                last_row = -1
                rows = 0
                largest = self.largest_row_bytes
                digest = self._digest
                with nogil:
                    while True:
                        prefetch(data + at + AHEAD_BYTES)
                        prefetch(data + at + AHEAD_BYTES + CACHE_LINE_BYTES)
                        extent = row_extent(data + at, length - at, self._fields)
                        if extent <= 0:
                            break
                        if self._digesting:
                            hash_start(&hash)
                            hash_take(&hash, data + at, extent)
                            digest = add_wrapping(digest, hash_finish(&hash))
                        rows += 1
                        if extent > largest:
                            largest = extent
                        last_row = at
                        at += extent
                self.rows += rows
                self.largest_row_bytes = largest
                self._digest = digest
                if last_row >= 0 and self._key_fields:
                    self.last_key = self._key_of(data + last_row)
                if at == length:
                    break
            self._step(data, length, &at)
        self.bytes += length

    def finish(self):
        """Check that the stream ended where it may: right after its trailer."""
        if self._state == FAILED:
            raise self._error
        if self._state < AT_ROW:
            raise self._fail("ends within its header", self.bytes)
        if self._state != AFTER_TRAILER:
            inside = self._state != AT_ROW or self._number_have > 0
            raise self._fail("ends within a row" if inside else "ends without its trailer", self.bytes)

    cdef int _step(self, const uint8_t *piece, Py_ssize_t length, Py_ssize_t *at) except -1:
        """Take one item of the stream, or the part of it that this piece has."""
        cdef Py_ssize_t taken
        cdef int32_t number
        cdef int16_t count
        if self._state == AT_ROW:
            if self._take_number(piece, length, at, FIELD_COUNT_BYTES):
                count = load_int16(self._number)
                if count == TRAILER_COUNT:
                    self._state = AFTER_TRAILER
                elif count != self._fields:
                    raise self._fail(f"row of {count} fields instead of {self._fields}",
                                     self.bytes + at[0] - FIELD_COUNT_BYTES)
                else:
                    self._begin_row()
        elif self._state == IN_LENGTH:
            if self._take_number(piece, length, at, LENGTH_BYTES):
                number = load_int32(self._number)
                if is_impossible(number):
                    raise self._fail(f"field of {number} bytes", self.bytes + at[0] - LENGTH_BYTES)
                self._row_bytes += LENGTH_BYTES
                if self._digesting:
                    hash_take(&self._hash, self._number, LENGTH_BYTES)
                self._slot = self._key_slots[self._field]
                self._field += 1
                if number > 0:
                    self._remaining = number
                    self._state = IN_VALUE
                if self._slot >= 0:
                    self._key_parts[self._slot] = None if number == NULL_LENGTH else bytearray()
                if number <= 0:
                    self._next_field_or_end()
        elif self._state == IN_VALUE:
            taken = min(self._remaining, length - at[0])
            if self._slot >= 0:
                (<bytearray>self._key_parts[self._slot]).extend(piece[at[0]:at[0] + taken])
            if self._digesting:
                hash_take(&self._hash, piece + at[0], taken)
            at[0] += taken
            self._remaining -= taken
            self._row_bytes += taken
            if self._remaining == 0:
                self._next_field_or_end()
        elif self._state == IN_SIGNATURE:
            if piece[at[0]] != <uint8_t>SIGNATURE[self._remaining]:
                raise self._fail("no signature of binary COPY", self.bytes + at[0])
            at[0] += 1
            self._remaining += 1
            if self._remaining == SIGNATURE_BYTES:
                self._state = IN_FLAGS
        elif self._state == IN_FLAGS:
            if self._take_number(piece, length, at, LENGTH_BYTES):
                number = load_int32(self._number)
                if number >> CRITICAL_FLAGS_SHIFT:
                    raise self._fail(f"unknown critical flags {number & 0xFFFFFFFF:#010x}",
                                     self.bytes + at[0] - LENGTH_BYTES)
                self._state = IN_EXTENSION_LENGTH
        elif self._state == IN_EXTENSION_LENGTH:
            if self._take_number(piece, length, at, LENGTH_BYTES):
                number = load_int32(self._number)
                if number < 0:
                    raise self._fail(f"header extension of {number} bytes", self.bytes + at[0] - LENGTH_BYTES)
                self._remaining = number
                self._state = IN_EXTENSION if number else AT_ROW
        elif self._state == IN_EXTENSION:
            taken = min(self._remaining, length - at[0])
            at[0] += taken
            self._remaining -= taken
            if self._remaining == 0:
                self._state = AT_ROW
        else:
            raise self._fail("more bytes after the trailer", self.bytes + at[0])
        return 0

    cdef int _take_number(self, const uint8_t *piece, Py_ssize_t length, Py_ssize_t *at, int wanted) noexcept:
        """Collect a number of ``wanted`` bytes in ``_number``; true when it is whole."""
        while self._number_have < wanted and at[0] < length:
            self._number[self._number_have] = piece[at[0]]
            self._number_have += 1
            at[0] += 1
        if self._number_have < wanted:
            return False
        self._number_have = 0
        return True

    cdef int _begin_row(self) except -1:
        self._field = 0
        self._row_bytes = FIELD_COUNT_BYTES
        self._key_parts = [None] * len(self._key_fields)
        if self._digesting:
            hash_start(&self._hash)
            hash_take(&self._hash, self._number, FIELD_COUNT_BYTES)
        return self._next_field_or_end()

    cdef int _next_field_or_end(self) except -1:
        if self._field < self._fields:
            self._state = IN_LENGTH
            return 0
        return self._end_row()

    cdef int _end_row(self) except -1:
        self._state = AT_ROW
        self.rows += 1
        self.largest_row_bytes = max(self.largest_row_bytes, self._row_bytes)
        if self._digesting:
            self._digest = add_wrapping(self._digest, hash_finish(&self._hash))
        if self._key_fields:
            self.last_key = tuple([None if part is None else bytes(part) for part in self._key_parts])
        self._key_parts = None
        return 0

    cdef tuple _key_of(self, const uint8_t *row):
        """The key values of a complete row."""
        cdef list values = [None] * len(self._key_fields)
        cdef const uint8_t *field = row + FIELD_COUNT_BYTES
        cdef const uint8_t *following
        cdef int32_t length
        cdef int number, slot
        for number in range(self._fields):
            following = next_field(field, &length)
            slot = self._key_slots[number]
            if slot >= 0 and length != NULL_LENGTH:
                values[slot] = field[LENGTH_BYTES:LENGTH_BYTES + length]
            field = following
        return tuple(values)

    cdef object _fail(self, str what, Py_ssize_t offset):
        self._state = FAILED
        self._error = CopyFormatError(what, offset)
        self.bytes = offset
        self._key_parts = None
        return self._error


cdef class TextScanner:
    """Counts the rows of a text COPY stream, for types without a binary form.

    In text format each row is one line: a newline inside a value is written as backslash-n.  The surface is that of
    ``FrameScanner``, but ``last_key`` is always None, and there is nothing to recognise as corrupt except an end in
    the middle of a line.  ``digest`` hashes each line, its newline included.
    """

    def __cinit__(self, bint digest=False):
        self._digesting = digest
        hash_start(&self._hash)

    @property
    def last_key(self):
        """None: lines are counted, not read."""
        return None

    @property
    def digest(self):
        """As of ``FrameScanner``; a stream has another digest in text than in binary."""
        return self._digest if self._digesting else None

    def feed(self, const uint8_t[::1] piece not None):
        """Scan the next piece of the stream."""
        cdef Py_ssize_t length = piece.shape[0]
        cdef Py_ssize_t at = 0, extent, taken
        cdef Py_ssize_t rows = 0, row_bytes = self._row_bytes, largest = self.largest_row_bytes
        cdef uint64_t digest = self._digest
        cdef const uint8_t *data
        if length == 0:
            return
        data = &piece[0]
        with nogil:
            while at < length:
                extent = line_extent(data + at, length - at)
                taken = extent if extent > 0 else length - at
                row_bytes += taken
                if self._digesting:
                    hash_take(&self._hash, data + at, taken)
                at += taken
                if extent > 0:
                    rows += 1
                    if row_bytes > largest:
                        largest = row_bytes
                    row_bytes = 0
                    if self._digesting:
                        digest = add_wrapping(digest, hash_finish(&self._hash))
                        hash_start(&self._hash)
        self.rows += rows
        self.largest_row_bytes = largest
        self._row_bytes = row_bytes
        self._digest = digest
        self.bytes += length

    def finish(self):
        """Check that the stream ended with a line's end (an empty one is right)."""
        if self._row_bytes > 0:
            raise CopyFormatError("ends within a row", self.bytes)
