"""Decoding the fields of binary COPY into numpy arrays.

``Cells`` says where the values of one column lie: ``Cells(rows, field)`` for a field of each row, ``elements(…)`` for
the elements of a field that holds arrays.  Each ``decode_…`` takes them and gives ``(values, null, bad)``:

- ``values``: shape (n,), of the dtype that its docstring names; zero, NaT or None where there is no value.
- ``null``: bool of shape (n,), true where there is no value: it is NULL, or bad.
- ``bad``: ``[(i, reason)]`` for values that are not of the type's form, or that the dtype cannot hold.  A reason never
  tells the value.

Nothing outside a value's own bytes is read, whatever they hold.  What makes no Python object loops without the GIL.

The forms are those of the server's ``…send`` functions (``src/backend/utils/adt``: int.c, float.c, date.c,
timestamp.c, uuid.c, varlena.c, jsonb.c, numeric.c, arrayfuncs.c), all numbers big-endian.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from engine._native.copybin cimport LENGTH_BYTES, NULL_LENGTH, is_impossible, load_int32, value_bytes
from engine._native.numeric cimport (
    INFINITY, MINUS_INFINITY, NAN, NEGATIVE, POSITIVE, SCALED_FINER, SCALED_GOOD, SCALED_INFINITE, SCALED_NAN,
    SCALED_OVERFLOW, Numeric, numeric_parts, numeric_text, scaled, text_bytes,
)
from engine._native.rows cimport Rows, value_at

from decimal import Decimal

import numpy as np

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *data, Py_ssize_t size, const char *errors)
    str PyUnicode_FromStringAndSize(const char *data, Py_ssize_t size)

# Why a value is bad.
cdef enum:
    GOOD
    WRONG_LENGTH
    NO_DATE
    NO_TIMESTAMP
    TIMESTAMP_TOO_LATE
    NOT_UTF8
    JSONB_VERSION
    NO_NUMERIC
    NUMERIC_NAN
    NUMERIC_INFINITE
    NUMERIC_OVERFLOW
    NUMERIC_FINER
    NO_ARRAY
    ARRAY_DIMENSIONS
    ARRAY_ELEMENT_TYPE

cdef dict REASONS = {
    WRONG_LENGTH: "not as many bytes as a value of its type has",
    NO_DATE: "no date that the server knows",
    NO_TIMESTAMP: "no timestamp that the server knows",
    TIMESTAMP_TOO_LATE: "later than datetime64[us] can hold (year 294247)",
    NOT_UTF8: "not valid UTF-8",
    JSONB_VERSION: "an unknown version of jsonb",
    NO_NUMERIC: "not in the form of a numeric",
    NUMERIC_NAN: 'NaN, which an integer cannot hold (the form "decimal" can)',
    NUMERIC_INFINITE: 'infinite, which an integer cannot hold (the form "decimal" can)',
    NUMERIC_OVERFLOW: "beyond what int64 can hold at the column's scale",
    NUMERIC_FINER: "finer than the column's scale",
    NO_ARRAY: "not in the form of an array",
    ARRAY_DIMENSIONS: "an array of more than one dimension",
    ARRAY_ELEMENT_TYPE: "an array of another element type",
}

cdef enum:
    UUID_BYTES = 16
    ARRAY_HEADER_BYTES = 12     # dimensions, flags, element type
    ARRAY_DIMENSION_BYTES = 8   # length, lower bound
    MAX_DIMENSIONS = 6          # MAXDIM
    SCRATCH_BYTES = 512
    JSONB_TEXT_VERSION = 1

    EPOCH_DAYS = 10957          # 2000-01-01 in days since 1970-01-01
    FIRST_DATE = -2451545       # 4713-11-24 BC in days since 2000: Julian day 0 (datatype/timestamp.h)
    LAST_DATE = 2145031948      # 5874897-12-31

cdef int64_t EPOCH_MICROSECONDS = 946684800000000     # the same instant in microseconds since 1970
cdef int64_t FIRST_TIMESTAMP = -211813488000000000    # 4713-11-24 BC in microseconds since 2000
cdef int64_t LAST_TIMESTAMP = 9223371331199999999     # 294276-12-31 23:59:59.999999
cdef int64_t LAST_DATETIME64 = INT64_MAX - EPOCH_MICROSECONDS - 1  # the one after it would be infinity
cdef int64_t NOT_A_TIME = INT64_MIN
cdef int64_t INFINITE = INT64_MAX

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint16_t decode_load16(const uint8_t *p) { return (uint16_t)(((uint16_t)p[0] << 8) | p[1]); }
    static inline uint32_t decode_load32(const uint8_t *p) {
        return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | (uint32_t)p[3];
    }
    static inline uint64_t decode_load64(const uint8_t *p) {
        return ((uint64_t)decode_load32(p) << 32) | decode_load32(p + 4);
    }

    /* To the machine's byte order. */
    static inline void decode_swap16(void *to, const uint8_t *p) {
        uint16_t word = decode_load16(p);
        memcpy(to, &word, sizeof word);
    }
    static inline void decode_swap32(void *to, const uint8_t *p) {
        uint32_t word = decode_load32(p);
        memcpy(to, &word, sizeof word);
    }
    static inline void decode_swap64(void *to, const uint8_t *p) {
        uint64_t word = decode_load64(p);
        memcpy(to, &word, sizeof word);
    }
    static inline int64_t decode_int64(const uint8_t *p) { return (int64_t)decode_load64(p); }
    """
    void swap16 "decode_swap16"(void *to, const uint8_t *data) noexcept nogil
    void swap32 "decode_swap32"(void *to, const uint8_t *data) noexcept nogil
    void swap64 "decode_swap64"(void *to, const uint8_t *data) noexcept nogil
    int64_t load_int64 "decode_int64"(const uint8_t *data) noexcept nogil


cdef inline int reason_of(int outcome) noexcept nogil:
    if outcome == SCALED_GOOD:
        return GOOD
    if outcome == SCALED_NAN:
        return NUMERIC_NAN
    if outcome == SCALED_INFINITE:
        return NUMERIC_INFINITE
    if outcome == SCALED_OVERFLOW:
        return NUMERIC_OVERFLOW
    return NUMERIC_FINER if outcome == SCALED_FINER else NO_NUMERIC


cdef class Cells:
    """Where the values of one column lie: those of field ``field``, from 0, of each of ``rows``.

    ``count``: how many there are.  Raises ``IndexError`` where the rows have no such field.
    """

    cdef readonly Py_ssize_t count
    cdef object _rows                # keeps the data where it is
    cdef object _owned               # and the starts, where they are our own
    cdef const uint8_t *data
    cdef const uint32_t *starts      # where the length word of value i lies: data + starts[i * stride]
    cdef Py_ssize_t stride

    def __cinit__(self, Rows rows not None, Py_ssize_t field=0):
        if not 0 <= field < rows.fields:
            raise IndexError(f"field {field} of rows of {rows.fields}")
        self.count = rows.count
        self._rows = rows
        self.data = rows.data
        self.starts = rows.starts + field
        self.stride = rows.fields + 1


cdef inline const uint8_t *cell(Cells cells, Py_ssize_t i, int32_t *length) noexcept nogil:
    return value_at(cells.data, cells.starts[i * cells.stride], length)


cdef list explained(const uint8_t[::1] codes, Py_ssize_t number):
    """The values whose code is not GOOD, ``number`` of them, and why."""
    cdef Py_ssize_t i
    if number == 0:
        return []
    return [(i, REASONS[codes[i]]) for i in range(codes.shape[0]) if codes[i] != GOOD]


# -- of fixed size, without the GIL -----------------------------------------------------------------------------------


cdef Py_ssize_t copy_fixed(
    Cells cells, int32_t size, uint8_t[::1] values, uint8_t[::1] null, uint8_t[::1] codes,
) noexcept nogil:
    """Numbers to the machine's byte order, other sizes as they are; returns how many are bad."""
    cdef Py_ssize_t i, bad = 0
    cdef int32_t length
    cdef const uint8_t *value
    for i in range(cells.count):
        value = cell(cells, i, &length)
        if length != size:
            null[i] = 1
            if length != NULL_LENGTH:
                codes[i] = WRONG_LENGTH
                bad += 1
        elif size == 8:
            swap64(&values[i * 8], value)
        elif size == 4:
            swap32(&values[i * 4], value)
        elif size == 2:
            swap16(&values[i * 2], value)
        else:
            memcpy(&values[i * size], value, size)
    return bad


cdef tuple fixed(Cells cells, int32_t size, str dtype):
    values = np.zeros(cells.count, dtype)
    null = np.zeros(cells.count, np.bool_)
    cdef uint8_t[::1] to = values.view(np.uint8)
    cdef uint8_t[::1] null_bytes = null.view(np.uint8)
    cdef uint8_t[::1] codes = np.zeros(cells.count, np.uint8)
    cdef Py_ssize_t bad
    with nogil:
        bad = copy_fixed(cells, size, to, null_bytes, codes)
    return values, null, explained(codes, bad)


def decode_int2(Cells cells not None):
    """int16.  int2send."""
    return fixed(cells, 2, "i2")


def decode_int4(Cells cells not None):
    """int32.  int4send."""
    return fixed(cells, 4, "i4")


def decode_int8(Cells cells not None):
    """int64.  int8send."""
    return fixed(cells, 8, "i8")


def decode_float4(Cells cells not None):
    """float32, the bits of a NaN as they are.  float4send."""
    return fixed(cells, 4, "f4")


def decode_float8(Cells cells not None):
    """float64, the bits of a NaN as they are.  float8send."""
    return fixed(cells, 8, "f8")


def decode_uuid(Cells cells not None):
    """void of 16 bytes.  uuid_send."""
    return fixed(cells, UUID_BYTES, "V16")


def decode_bool(Cells cells not None):
    """bool; as boolrecv does, any byte but 0 is true.  boolsend."""
    values = np.zeros(cells.count, np.bool_)
    null = np.zeros(cells.count, np.bool_)
    cdef uint8_t[::1] to = values.view(np.uint8)
    cdef uint8_t[::1] null_bytes = null.view(np.uint8)
    cdef uint8_t[::1] codes = np.zeros(cells.count, np.uint8)
    cdef Py_ssize_t i, bad = 0
    cdef int32_t length
    cdef const uint8_t *value
    with nogil:
        for i in range(cells.count):
            value = cell(cells, i, &length)
            if length == 1:
                to[i] = value[0] != 0
                continue
            null_bytes[i] = 1
            if length != NULL_LENGTH:
                codes[i] = WRONG_LENGTH
                bad += 1
    return values, null, explained(codes, bad)


cdef inline int date_of(const uint8_t *value, int64_t *to) noexcept nogil:
    cdef int32_t days = load_int32(value)
    if days == INT32_MAX:
        to[0] = INFINITE
    elif days == INT32_MIN:
        to[0] = -INFINITE
    elif FIRST_DATE <= days <= LAST_DATE:
        to[0] = <int64_t> days + EPOCH_DAYS
    else:
        return NO_DATE
    return GOOD


cdef inline int timestamp_of(const uint8_t *value, int64_t *to) noexcept nogil:
    cdef int64_t microseconds = load_int64(value)
    if microseconds == INT64_MAX:
        to[0] = INFINITE
    elif microseconds == INT64_MIN:
        to[0] = -INFINITE
    elif microseconds < FIRST_TIMESTAMP or microseconds > LAST_TIMESTAMP:
        return NO_TIMESTAMP
    elif microseconds > LAST_DATETIME64:
        return TIMESTAMP_TOO_LATE
    else:
        to[0] = microseconds + EPOCH_MICROSECONDS
    return GOOD


cdef tuple times(Cells cells, bint dates, str dtype):
    values = np.full(cells.count, NOT_A_TIME, np.int64)
    null = np.zeros(cells.count, np.bool_)
    cdef int64_t[::1] to = values
    cdef uint8_t[::1] null_bytes = null.view(np.uint8)
    cdef uint8_t[::1] codes = np.zeros(cells.count, np.uint8)
    cdef Py_ssize_t i, bad = 0
    cdef int32_t length, size = 4 if dates else 8
    cdef const uint8_t *value
    cdef int code
    with nogil:
        for i in range(cells.count):
            value = cell(cells, i, &length)
            if length == size:
                code = date_of(value, &to[i]) if dates else timestamp_of(value, &to[i])
                if code == GOOD:
                    continue
            elif length == NULL_LENGTH:
                code = GOOD
            else:
                code = WRONG_LENGTH
            null_bytes[i] = 1
            if code != GOOD:
                codes[i] = code
                bad += 1
    return values.view(dtype), null, explained(codes, bad)


def decode_date(Cells cells not None):
    """datetime64[D]; infinity is 2**63 - 1 of int64, -infinity the negative of that.  date_send: days since 2000."""
    return times(cells, True, "M8[D]")


def decode_timestamp(Cells cells not None):
    """datetime64[us], in UTC where the type knows zones; infinities as for dates.  timestamp_send and
    timestamptz_send: microseconds since 2000.  Bad: what the server knows beyond the end of datetime64."""
    return times(cells, False, "M8[us]")


def decode_scaled(Cells cells not None, int scale):
    """int64: a numeric times ``10**scale``, where that is an integer of 64 bits.  numeric_send.

    ValueError unless ``scale`` is 0 to 18.
    """
    if not 0 <= scale <= 18:
        raise ValueError(f"a scale of scaled integers is 0 to 18, not {scale}")
    values = np.zeros(cells.count, np.int64)
    null = np.zeros(cells.count, np.bool_)
    cdef int64_t[::1] to = values
    cdef uint8_t[::1] null_bytes = null.view(np.uint8)
    cdef uint8_t[::1] codes = np.zeros(cells.count, np.uint8)
    cdef Py_ssize_t i, bad = 0
    cdef int32_t length
    cdef const uint8_t *value
    cdef int code
    with nogil:
        for i in range(cells.count):
            value = cell(cells, i, &length)
            if length != NULL_LENGTH:
                code = reason_of(scaled(value, length, scale, &to[i]))
                if code == GOOD:
                    continue
                codes[i] = code
                bad += 1
            null_bytes[i] = 1
    return values, null, explained(codes, bad)


# -- objects ----------------------------------------------------------------------------------------------------------


cdef object new_decimal = Decimal
cdef object DECIMAL_NAN = Decimal("NaN")
cdef object DECIMAL_INFINITY = Decimal("Infinity")
cdef object DECIMAL_MINUS_INFINITY = Decimal("-Infinity")


cdef object decimal_of(const uint8_t *value, int32_t length):
    """The Decimal, or None where the bytes are no numeric."""
    cdef Numeric number
    cdef char scratch[SCRATCH_BYTES]
    cdef char *room = scratch
    cdef Py_ssize_t needed, written
    if not numeric_parts(value, length, &number):
        return None
    if number.sign == NAN:
        return DECIMAL_NAN
    if number.sign == INFINITY:
        return DECIMAL_INFINITY
    if number.sign == MINUS_INFINITY:
        return DECIMAL_MINUS_INFINITY
    if number.sign != POSITIVE and number.sign != NEGATIVE:
        return None
    needed = text_bytes(&number)
    if needed > SCRATCH_BYTES:
        room = <char *> PyMem_Malloc(needed)
        if room == NULL:
            raise MemoryError
    try:
        written = numeric_text(&number, room)
        return None if written < 0 else new_decimal(PyUnicode_FromStringAndSize(room, written))
    finally:
        if room != scratch:
            PyMem_Free(room)


def decode_decimal(Cells cells not None):
    """Objects of ``decimal.Decimal``: exact, with the zeros of the display scale; NaN and infinities as Decimal's.
    numeric_send."""
    values = np.empty(cells.count, object)
    null = np.zeros(cells.count, np.bool_)
    cdef object[::1] to = values
    cdef uint8_t[::1] null_bytes = null.view(np.uint8)
    cdef uint8_t[::1] codes = np.zeros(cells.count, np.uint8)
    cdef Py_ssize_t i, bad = 0
    cdef int32_t length
    cdef const uint8_t *value
    cdef object number
    for i in range(cells.count):
        value = cell(cells, i, &length)
        number = None if length == NULL_LENGTH else decimal_of(value, length)
        if number is not None:
            to[i] = number
            continue
        null_bytes[i] = 1
        if length != NULL_LENGTH:
            codes[i] = NO_NUMERIC
            bad += 1
    return values, null, explained(codes, bad)


cdef tuple texts(Cells cells, bint versioned):
    values = np.empty(cells.count, object)
    null = np.zeros(cells.count, np.bool_)
    cdef object[::1] to = values
    cdef uint8_t[::1] null_bytes = null.view(np.uint8)
    cdef uint8_t[::1] codes = np.zeros(cells.count, np.uint8)
    cdef Py_ssize_t i, bad = 0
    cdef int32_t length
    cdef const uint8_t *value
    cdef int code
    for i in range(cells.count):
        value = cell(cells, i, &length)
        if length == NULL_LENGTH:
            null_bytes[i] = 1
            continue
        code = GOOD
        if versioned:
            if length == 0 or value[0] != JSONB_TEXT_VERSION:
                code = JSONB_VERSION
            else:
                value += 1
                length -= 1
        if code == GOOD:
            try:
                to[i] = PyUnicode_DecodeUTF8(<const char *> value, length, NULL)
                continue
            except UnicodeDecodeError:
                code = NOT_UTF8
        null_bytes[i] = 1
        codes[i] = code
        bad += 1
    return values, null, explained(codes, bad)


def decode_text(Cells cells not None):
    """Objects of ``str``.  textsend, bpcharsend, namesend and json_send: UTF-8."""
    return texts(cells, False)


def decode_jsonb(Cells cells not None):
    """Objects of ``str``: the JSON text.  jsonb_send: a version, 1, and the text."""
    return texts(cells, True)


def decode_bytea(Cells cells not None):
    """Objects of ``bytes``; none is bad.  byteasend: the bytes."""
    values = np.empty(cells.count, object)
    null = np.zeros(cells.count, np.bool_)
    cdef object[::1] to = values
    cdef uint8_t[::1] null_bytes = null.view(np.uint8)
    cdef Py_ssize_t i
    cdef int32_t length
    cdef const uint8_t *value
    for i in range(cells.count):
        value = cell(cells, i, &length)
        if length == NULL_LENGTH:
            null_bytes[i] = 1
        else:
            to[i] = PyBytes_FromStringAndSize(<const char *> value, length)
    return values, null, []


# -- arrays -----------------------------------------------------------------------------------------------------------


cdef int array_shape(
    const uint8_t *value, int32_t length, uint32_t element_type, int32_t *number, int32_t *lower,
) noexcept nogil:
    """Check a value of an array type to its last byte; how many elements it has, and the number of the first."""
    cdef int32_t dimensions, flags, size, _element
    cdef int32_t at = ARRAY_HEADER_BYTES + ARRAY_DIMENSION_BYTES
    number[0] = 0
    lower[0] = 1
    if length < ARRAY_HEADER_BYTES:
        return NO_ARRAY
    dimensions = load_int32(value)
    flags = load_int32(value + 4)
    if not 0 <= dimensions <= MAX_DIMENSIONS or not 0 <= flags <= 1:
        return NO_ARRAY
    if <uint32_t> load_int32(value + 8) != element_type:
        return ARRAY_ELEMENT_TYPE
    if dimensions == 0:
        return GOOD if length == ARRAY_HEADER_BYTES else NO_ARRAY
    if dimensions > 1:
        return ARRAY_DIMENSIONS
    if length < at:
        return NO_ARRAY
    size = load_int32(value + 12)
    lower[0] = load_int32(value + 16)
    if size < 0 or <int64_t> lower[0] + size > <int64_t> INT32_MAX:
        return NO_ARRAY
    number[0] = size
    for _element in range(number[0]):
        if length - at < LENGTH_BYTES:
            return NO_ARRAY
        size = load_int32(value + at)
        at += LENGTH_BYTES
        if is_impossible(size) or value_bytes(size) > length - at:
            return NO_ARRAY
        at += value_bytes(size)
    return GOOD if at == length else NO_ARRAY


cdef void place_elements(
    Cells cells, const int64_t[::1] offsets, uint32_t[::1] starts,
) noexcept nogil:
    """Where the length word of each element lies, in arrays that are checked."""
    cdef Py_ssize_t i
    cdef int64_t element
    cdef uint32_t start
    for i in range(cells.count):
        start = cells.starts[i * cells.stride] + LENGTH_BYTES + ARRAY_HEADER_BYTES + ARRAY_DIMENSION_BYTES
        for element in range(offsets[i], offsets[i + 1]):
            starts[element] = start
            start += LENGTH_BYTES + <uint32_t> value_bytes(load_int32(cells.data + start))


def elements(Cells cells not None, uint32_t element_type):
    """The elements of one-dimensional arrays, for another ``decode_…`` to decode.

    ``element_type``: the OID that the arrays must name for their elements.  array_send: dimensions, flags, element
    type; per dimension its length and lower bound; then the elements, each with its length.  Returns
    ``(elements, offsets, null, lower, bad)``:

    - ``elements``: ``Cells``, m of them, those of all arrays one after the other.
    - ``offsets``: int64 of shape (n + 1,); array i has the elements from ``offsets[i]`` to ``offsets[i + 1]``.
    - ``null``: bool of shape (n,), true where there is no array: it is NULL, or bad.
    - ``lower``: int32 of shape (n,), the number of the first element.
    - ``bad``: as everywhere; an array of more than one dimension is.
    """
    null = np.zeros(cells.count, np.bool_)
    lower = np.ones(cells.count, np.int32)
    offsets = np.zeros(cells.count + 1, np.int64)
    cdef uint8_t[::1] null_bytes = null.view(np.uint8)
    cdef int32_t[::1] lowers = lower
    cdef int64_t[::1] ends = offsets
    cdef uint8_t[::1] codes = np.zeros(cells.count, np.uint8)
    cdef Py_ssize_t i, bad = 0
    cdef int32_t length, number, first
    cdef int64_t total = 0
    cdef const uint8_t *value
    cdef int code
    with nogil:
        for i in range(cells.count):
            value = cell(cells, i, &length)
            if length == NULL_LENGTH:
                null_bytes[i] = 1
            else:
                code = array_shape(value, length, element_type, &number, &first)
                if code == GOOD:
                    total += number
                    lowers[i] = first
                else:
                    null_bytes[i] = 1
                    codes[i] = code
                    bad += 1
            ends[i + 1] = total
    starts = np.zeros(max(total, 1), np.uint32)  # one at least: an empty memoryview has no address
    cdef uint32_t[::1] places = starts
    with nogil:
        place_elements(cells, ends, places)
    cdef Cells found = Cells.__new__(Cells, cells._rows)
    found.count = total
    found._owned = starts
    found.starts = &places[0]
    found.stride = 1
    return found, offsets, null, lower, explained(codes, bad)
