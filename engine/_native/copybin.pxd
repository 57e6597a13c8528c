"""Scanning PostgreSQL's COPY streams: declarations shared by the scanners here and by kernels that decode columns.

Wire form of one row (all integers big-endian)::

    int16 number of fields, then per field: int32 length (-1: null) and that many bytes

``row_extent`` measures a row that lies whole in memory, ``next_field`` walks its fields.  Neither allocates, raises or
needs the GIL.
"""

from libc.stdint cimport int16_t, int32_t, uint8_t, uint64_t


cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    /* Byte-wise loads: compilers turn them into one load and one swap, and they need no alignment. */
    static inline int32_t copybin_load_int32(const uint8_t *p) {
        return (int32_t)(((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | (uint32_t)p[3]);
    }
    static inline int16_t copybin_load_int16(const uint8_t *p) {
        return (int16_t)(uint16_t)(((uint32_t)p[0] << 8) | (uint32_t)p[1]);
    }

    /* Nulls come as they like, and a branch on them would be guessed wrong: these two compile to none.  1 GB less one
       byte is PostgreSQL's MaxAllocSize: no value of any type is longer. */
    static inline int copybin_is_impossible(int32_t length) { return (uint32_t)length + 1u > 0x3FFFFFFFu + 1u; }
    static inline int32_t copybin_value_bytes(int32_t length) { return length < 0 ? 0 : length; }

    /* A row's hash: 16-byte blocks folded by a 64 x 64 -> 128 bit multiplication, as in wyhash.  In C, because it
       overflows on purpose and debug builds check the arithmetic of Cython code for just that. */
    #define COPYBIN_SEED  0x9E3779B97F4A7C15u
    #define COPYBIN_FIRST 0xA0761D6478BD642Fu
    #define COPYBIN_LAST  0xE7037ED1A0B428DBu
    #define COPYBIN_BLOCK 16

    typedef struct {
        uint64_t state;
        uint64_t length;                 /* bytes taken in so far, those in pending included */
        uint8_t pending[COPYBIN_BLOCK];  /* the block that is not full yet */
    } copybin_row_hash;

    static inline uint64_t copybin_load_word(const uint8_t *p) {
        uint64_t word;
        memcpy(&word, p, 8);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
    #endif
        return word;
    }

    static inline uint64_t copybin_fold(uint64_t a, uint64_t b) {
    #ifdef __SIZEOF_INT128__
        __extension__ typedef unsigned __int128 wide;
        wide product = (wide)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    #else
        uint64_t a_low = (uint32_t)a, a_high = a >> 32, b_low = (uint32_t)b, b_high = b >> 32;
        uint64_t low = a_low * b_low;
        uint64_t middle = a_high * b_low + (low >> 32);
        uint64_t other = a_low * b_high + (uint32_t)middle;
        return ((other << 32) | (uint32_t)low) ^ (a_high * b_high + (middle >> 32) + (other >> 32));
    #endif
    }

    static inline void copybin_hash_block(copybin_row_hash *hash, const uint8_t *block) {
        hash->state = copybin_fold(copybin_load_word(block) ^ COPYBIN_FIRST,
                                   copybin_load_word(block + 8) ^ hash->state);
    }

    static inline void copybin_hash_start(copybin_row_hash *hash) {
        hash->state = COPYBIN_SEED;
        hash->length = 0;
    }

    /* Any cut of a row into calls gives the same hash. */
    static inline void copybin_hash_take(copybin_row_hash *hash, const uint8_t *data, size_t length) {
        size_t have = (size_t)(hash->length % COPYBIN_BLOCK);
        hash->length += length;
        if (have) {
            size_t missing = COPYBIN_BLOCK - have;
            if (length < missing) {
                memcpy(hash->pending + have, data, length);
                return;
            }
            memcpy(hash->pending + have, data, missing);
            copybin_hash_block(hash, hash->pending);
            data += missing;
            length -= missing;
        }
        for (; length >= COPYBIN_BLOCK; data += COPYBIN_BLOCK, length -= COPYBIN_BLOCK)
            copybin_hash_block(hash, data);
        if (length)
            memcpy(hash->pending, data, length);
    }

    static inline uint64_t copybin_hash_finish(copybin_row_hash *hash) {
        size_t have = (size_t)(hash->length % COPYBIN_BLOCK);
        if (have) {
            memset(hash->pending + have, 0, COPYBIN_BLOCK - have);
            copybin_hash_block(hash, hash->pending);
        }
        return copybin_fold(hash->state ^ COPYBIN_LAST, hash->length ^ COPYBIN_SEED);
    }

    static inline ptrdiff_t copybin_line_extent(const uint8_t *data, ptrdiff_t available) {
        const uint8_t *newline = memchr(data, '\\n', (size_t)available);
        return newline ? newline - data + 1 : 0;
    }

    static inline uint64_t copybin_add(uint64_t a, uint64_t b) { return a + b; }
    """
    ctypedef struct RowHash "copybin_row_hash":
        uint64_t state

    int32_t load_int32 "copybin_load_int32"(const uint8_t *data) noexcept nogil
    int16_t load_int16 "copybin_load_int16"(const uint8_t *data) noexcept nogil
    bint is_impossible "copybin_is_impossible"(int32_t length) noexcept nogil
    int32_t value_bytes "copybin_value_bytes"(int32_t length) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil
    Py_ssize_t line_extent "copybin_line_extent"(const uint8_t *data, Py_ssize_t available) noexcept nogil
    void hash_start "copybin_hash_start"(RowHash *hash) noexcept nogil
    void hash_take "copybin_hash_take"(RowHash *hash, const uint8_t *data, size_t length) noexcept nogil
    uint64_t hash_finish "copybin_hash_finish"(RowHash *hash) noexcept nogil
    uint64_t add_wrapping "copybin_add"(uint64_t a, uint64_t b) noexcept nogil


# What row_extent says of bytes that are no complete row.
cdef enum:
    INCOMPLETE = 0   # the row goes on in the next piece, and is right so far
    NO_ROW = -1      # the trailer, another number of fields, or an impossible length

cdef enum:
    FIELD_COUNT_BYTES = 2
    LENGTH_BYTES = 4
    NULL_LENGTH = -1
    TRAILER_COUNT = -1


cdef inline const uint8_t *next_field(const uint8_t *field, int32_t *length) noexcept nogil:
    """Read the length of the field whose length word ``field`` points at (``NULL_LENGTH`` for null); its value starts
    at ``field + LENGTH_BYTES``.  Returns the length word of the field after it.  The row must be complete."""
    length[0] = load_int32(field)
    return field + LENGTH_BYTES + value_bytes(length[0])


cdef inline Py_ssize_t row_extent(const uint8_t *row, Py_ssize_t available, int fields) noexcept nogil:
    """Bytes of the row that starts at ``row``, its field count included, if all of it is among the ``available``
    bytes and it has ``fields`` fields; else ``INCOMPLETE`` or ``NO_ROW``."""
    cdef Py_ssize_t at = FIELD_COUNT_BYTES
    cdef int32_t length
    cdef int _field
    if available < FIELD_COUNT_BYTES:
        return INCOMPLETE
    if load_int16(row) != fields:
        return NO_ROW
    for _field in range(fields):
        if available - at < LENGTH_BYTES:
            return INCOMPLETE
        length = load_int32(row + at)
        if is_impossible(length):
            return NO_ROW
        at += LENGTH_BYTES + value_bytes(length)
    return at if at <= available else INCOMPLETE


# Where in the stream a scanner is; a state that is below AT_ROW is within the header.
cdef enum:
    IN_SIGNATURE
    IN_FLAGS
    IN_EXTENSION_LENGTH
    IN_EXTENSION
    AT_ROW
    IN_LENGTH
    IN_VALUE
    AFTER_TRAILER
    FAILED


cdef class FrameScanner:
    cdef readonly Py_ssize_t rows
    cdef readonly Py_ssize_t bytes
    cdef readonly Py_ssize_t largest_row_bytes
    cdef readonly tuple last_key
    cdef uint64_t _digest
    cdef int _fields
    cdef int _state
    cdef bint _digesting
    cdef tuple _key_fields
    cdef list _key_slots             # per field: its place in the key, or -1
    cdef object _error

    # The number that is being read, which may lie in several pieces.
    cdef uint8_t _number[4]
    cdef int _number_have

    # The row that started in an earlier piece, or does not end in this one.
    cdef int _field                  # fields begun
    cdef Py_ssize_t _remaining       # bytes to come of the header extension or of the field's value
    cdef int _slot                   # the field's place in the key, or -1
    cdef Py_ssize_t _row_bytes
    cdef list _key_parts             # per place in the key: bytearray, or None for null
    cdef RowHash _hash

    cdef int _step(self, const uint8_t *piece, Py_ssize_t length, Py_ssize_t *at) except -1
    cdef int _take_number(self, const uint8_t *piece, Py_ssize_t length, Py_ssize_t *at, int wanted) noexcept
    cdef int _begin_row(self) except -1
    cdef int _end_row(self) except -1
    cdef int _next_field_or_end(self) except -1
    cdef tuple _key_of(self, const uint8_t *row)
    cdef object _fail(self, str what, Py_ssize_t offset)


cdef class TextScanner:
    cdef readonly Py_ssize_t rows
    cdef readonly Py_ssize_t bytes
    cdef readonly Py_ssize_t largest_row_bytes
    cdef uint64_t _digest
    cdef bint _digesting
    cdef Py_ssize_t _row_bytes
    cdef RowHash _hash
