"""Rows in memory: declarations shared with the kernels that decode and encode columns.

``Rows`` holds rows as they came over the wire.  ``starts`` is a matrix of shape ``(count, fields + 1)``: where each
field's length word lies in ``data``, and last where the row ends.  So fields ``a`` to ``b`` of a row, with their length
words, are the bytes from ``starts[a]`` to ``starts[b + 1]``, and the value of field ``a`` starts ``LENGTH_BYTES``
after ``starts[a]``.  Every row is whole and its lengths are checked: a kernel need check only what a value holds.

``Encoded`` holds one column's values in the same form, one after the other: each its length word (``NULL_LENGTH`` for
null) and its bytes.  Value ``i`` lies from ``starts[i]`` to ``starts[i + 1]``.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from engine._native.copybin cimport FrameScanner, load_int32


cdef extern from *:
    """
    #include <stdint.h>

    static inline void rows_store_int32(uint8_t *p, int32_t number) {
        uint32_t word = (uint32_t)number;
        p[0] = (uint8_t)(word >> 24); p[1] = (uint8_t)(word >> 16); p[2] = (uint8_t)(word >> 8); p[3] = (uint8_t)word;
    }

    /* Room that holds nothing yet belongs to nobody: a kernel that reads there is seen under the address sanitizer. */
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    #define rows_forbid(address, nbytes) ASAN_POISON_MEMORY_REGION(address, nbytes)
    #define rows_allow(address, nbytes) ASAN_UNPOISON_MEMORY_REGION(address, nbytes)
    #else
    #define rows_forbid(address, nbytes) ((void)0)
    #define rows_allow(address, nbytes) ((void)0)
    #endif
    """
    void store_int32 "rows_store_int32"(uint8_t *data, int32_t number) noexcept nogil
    void forbid "rows_forbid"(const void *address, Py_ssize_t nbytes) noexcept nogil
    void allow "rows_allow"(const void *address, Py_ssize_t nbytes) noexcept nogil


cdef inline const uint8_t *value_at(const uint8_t *data, uint32_t start, int32_t *length) noexcept nogil:
    """The value whose length word lies at ``start``; ``length`` is ``NULL_LENGTH`` for null."""
    length[0] = load_int32(data + start)
    return data + start + 4


cdef class Rows:
    cdef readonly Py_ssize_t count
    cdef readonly int fields
    cdef readonly Py_ssize_t nbytes      # of all the rows, their field counts included
    cdef uint8_t *data
    cdef uint32_t *starts                # (count, fields + 1), row after row


cdef class Encoded:
    cdef readonly Py_ssize_t count
    cdef uint8_t *data
    cdef int64_t *starts                 # (count + 1,); starts[0] is 0
    cdef Py_ssize_t capacity             # bytes that data has room for

    cdef int reserve(self, Py_ssize_t nbytes) except -1


# Room for ``count`` values of ``nbytes`` in all, length words included.  Whoever asks for it fills ``data`` and
# ``starts`` from 1 on; ``reserve`` makes more room (``data`` then moves).
cdef Encoded new_encoded(Py_ssize_t count, Py_ssize_t nbytes)


cdef class RowBatches:
    cdef readonly int fields
    cdef readonly Py_ssize_t largest_row_bytes
    cdef readonly Py_ssize_t rows
    cdef Py_ssize_t _max_rows
    cdef Py_ssize_t _max_bytes
    cdef FrameScanner _frame             # reads the header, keeps the state of the stream and its error

    # The batch that is being gathered; data[0] is the first byte of its first row.
    cdef Py_ssize_t _base                # where in the stream that is; 0 while the header is not read
    cdef uint8_t *_data
    cdef uint32_t *_starts
    cdef Py_ssize_t _data_capacity       # bytes
    cdef Py_ssize_t _starts_capacity     # rows
    cdef Py_ssize_t _size                # bytes gathered
    cdef Py_ssize_t _count               # complete rows
    cdef Py_ssize_t _end                 # where the complete rows end
    cdef Py_ssize_t _expected_bytes      # size of the batch before: room for that much is made at once
    cdef Py_ssize_t _expected_rows       # the same of its rows

    # The row after those: its fields whose length is known, and where the next length word lies, maybe past the size.
    cdef int _field                      # -1 while its field count is not known
    cdef Py_ssize_t _at

    cdef int _gather(self, const uint8_t *piece, Py_ssize_t length) except -1
    cdef int _scan(self, list batches) except -1
    cdef int _walk(self) noexcept nogil
    cdef Rows _close(self)
    cdef int _make_room_for_rows(self) except -1
