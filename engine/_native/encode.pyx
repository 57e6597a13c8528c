"""Columns to the values of a binary COPY stream: the opposite of ``decode``.

Each function takes one column and returns ``Encoded``.  Numbers, dates, uuids and scaled numerics are written without
the GIL; only values that are Python objects need it.  ``null``: uint8 of shape (n,), one for a null.

Functions that meet values which the type cannot hold return ``(Encoded, bad)``: ``bad`` is a list of ``(position,
reason)``, no reason shows a value, and in ``Encoded`` a null stands at that position.  ValueError for shapes that do
not fit each other: nothing is read past an end, whatever is handed in.

Wire forms: PostgreSQL's ``…recv`` functions; numeric's is at ``numeric_recv`` in ``src/backend/utils/adt/numeric.c``,
that of arrays at ``array_recv`` in ``arrayfuncs.c``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport INT32_MAX, UINT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy

from decimal import Decimal
from numbers import Integral

from engine._native.copybin cimport LENGTH_BYTES, NULL_LENGTH, load_int32
from engine._native.rows cimport Encoded, new_encoded, store_int32


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* To network order; no alignment needed, and compilers make one swap and one store of each. */
    static inline void encode_store_8(uint8_t *p, uint8_t v) { *p = v; }
    static inline void encode_store_16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
    static inline void encode_store_32(uint8_t *p, uint32_t v) {
        p[0] = (uint8_t)(v >> 24); p[1] = (uint8_t)(v >> 16); p[2] = (uint8_t)(v >> 8); p[3] = (uint8_t)v;
    }
    static inline void encode_store_64(uint8_t *p, uint64_t v) {
        encode_store_32(p, (uint32_t)(v >> 32));
        encode_store_32(p + 4, (uint32_t)v);
    }
    /* The absolute value; of the smallest number too. */
    static inline uint64_t encode_magnitude(int64_t v) { return v < 0 ? 0 - (uint64_t)v : (uint64_t)v; }
    """
    void store_8 "encode_store_8"(uint8_t *data, uint8_t number) noexcept nogil
    void store_16 "encode_store_16"(uint8_t *data, uint16_t number) noexcept nogil
    void store_32 "encode_store_32"(uint8_t *data, uint32_t number) noexcept nogil
    void store_64 "encode_store_64"(uint8_t *data, uint64_t number) noexcept nogil
    uint64_t magnitude "encode_magnitude"(int64_t number) noexcept nogil

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


ctypedef fused word:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

# 1 GB less one byte is PostgreSQL's MaxAllocSize: no value of any type is longer.
cdef Py_ssize_t LONGEST = 0x3FFFFFFF

cdef enum:
    UUID_BYTES = 16
    NUMERIC_HEAD_BYTES = 8    # number of base-10000 digits, weight, sign, dscale: int16 each
    GROUP = 4                 # decimal digits in one of base 10000
    BASE = 10000
    POSITIVE = 0x0000
    NEGATIVE = 0x4000
    NOT_A_NUMBER = 0xC000
    PLUS_INFINITY = 0xD000
    MINUS_INFINITY = 0xF000
    INFINITE_DSCALE = 0x20    # of no meaning, but what the server's own bytes have there
    MOST_SCALE = 18           # the largest power of ten in an int64
    MOST_GROUPS = 10          # of an int64 with that scale: five before the point and five after it
    MOST_DSCALE = 0x3FFF
    MOST_WEIGHT = 0x7FFF
    EMPTY_ARRAY_BYTES = 12    # dimensions, flags, element type: int32 each
    ARRAY_HEAD_BYTES = 20     # and the dimension's length and lower bound
    NO_SCALE = -0x8000        # no typmod's scale: those are -1000 to 1000
    NO_LIMIT = 0x7FFFFFFF     # digits before the point of a numeric without precision

# What put_decimal answers instead of a length.
cdef enum:
    IS_FINER = -2
    IS_OUT_OF_RANGE = -3
    IS_BEYOND_NUMERIC = -4
    IS_SIGNALING = -5
    IS_INFINITE = -6

cdef uint64_t[19] TEN
TEN[0] = 1
cdef int _power
for _power in range(1, 19):
    TEN[_power] = 10 * TEN[_power - 1]

cdef str HAS_NUL = "text with a NUL character, which PostgreSQL cannot store"
cdef str HAS_SURROGATE = "text with a surrogate, which has no UTF-8 form"
cdef str TOO_LONG = "a value of 1 GB or more"
cdef str FINER = "more digits after the decimal point than the column's type keeps: round it in the transform"
cdef str TOO_MANY_DIGITS = "more digits than numeric holds (131072 before and 16383 after the decimal point)"
cdef str OUT_OF_RANGE = "more digits before the decimal point than the column's type holds"
cdef str SIGNALING = "a signaling NaN"
cdef str INFINITE = "infinity, which a numeric of declared precision cannot hold"
cdef dict OBJECTIONS = {
    IS_FINER: FINER, IS_OUT_OF_RANGE: OUT_OF_RANGE, IS_BEYOND_NUMERIC: TOO_MANY_DIGITS, IS_SIGNALING: SIGNALING,
    IS_INFINITE: INFINITE,
}


def encode_words(const word[::1] values not None, const uint8_t[::1] null not None):
    """Fixed-width values by their bits: uint8 for bool, uint16, uint32 and uint64 for integers, floats, dates and
    timestamps as PostgreSQL counts them.  Shapes (n,)."""
    cdef Py_ssize_t i, count = values.shape[0], at = 0, width = sizeof(word)
    cdef int32_t length
    cdef Encoded encoded
    cdef uint8_t *data
    cdef int64_t *starts
    _same_length(count, null)
    encoded = new_encoded(count, count * (LENGTH_BYTES + width))
    data = encoded.data
    starts = encoded.starts
    with nogil:
        for i in range(count):
            # Read once: another thread may write to the mask yet, and both lengths must be the same one.
            length = NULL_LENGTH if null[i] else <int32_t> width
            # The bits are written for a null too, and then written over: nulls come as they like, a branch is dearer.
            store_int32(data + at, length)
            if word is uint8_t:
                store_8(data + at + LENGTH_BYTES, values[i])
            elif word is uint16_t:
                store_16(data + at + LENGTH_BYTES, values[i])
            elif word is uint32_t:
                store_32(data + at + LENGTH_BYTES, values[i])
            else:
                store_64(data + at + LENGTH_BYTES, values[i])
            at += LENGTH_BYTES + (length if length > 0 else 0)
            starts[i + 1] = at
    return encoded


def encode_blocks(const uint8_t[:, ::1] values not None, const uint8_t[::1] null not None):
    """Values of one width as they are, such as uuids.  ``values``: shape (n, width)."""
    cdef Py_ssize_t i, count = values.shape[0], width = values.shape[1], at = 0
    cdef Encoded encoded
    cdef uint8_t *data
    cdef int64_t *starts
    _same_length(count, null)
    if width > LONGEST:
        raise ValueError(TOO_LONG)
    encoded = new_encoded(count, count * (LENGTH_BYTES + width))
    data = encoded.data
    starts = encoded.starts
    with nogil:
        for i in range(count):
            if null[i]:
                store_int32(data + at, NULL_LENGTH)
                at += LENGTH_BYTES
            else:
                store_int32(data + at, <int32_t> width)
                if width > 0:
                    memcpy(data + at + LENGTH_BYTES, &values[i, 0], width)
                at += LENGTH_BYTES + width
            starts[i + 1] = at
    return encoded


def encode_scaled(
    const int64_t[::1] values not None, const uint8_t[::1] null not None, int scale, precision=None, declared=None
):
    """numeric, from ``values * 10**-scale``, ``scale`` 0..18.  ``precision`` and ``declared``: precision and scale of
    the column's type, None when it has none.  Values are written with the scale of the type, else with their own.
    Bad: a value that the server would round or refuse."""
    cdef Py_ssize_t i, count = values.shape[0], at = 0, length
    cdef int shown = scale if declared is None else declared
    cdef int wire_scale = shown if shown > 0 else 0
    cdef int whole_digits                # that |value| may have
    cdef uint64_t finer = 1, below = UINT64_MAX
    cdef int64_t value
    cdef bint only_zero = False
    cdef list bad = []
    cdef Encoded encoded
    cdef uint8_t *data
    cdef int64_t *starts
    _same_length(count, null)
    if not 0 <= scale <= MOST_SCALE:
        raise ValueError(f"the scale of scaled integers is 0 to {MOST_SCALE}, not {scale}")
    if wire_scale > MOST_DSCALE:
        raise ValueError(f"numeric has no scale {shown}")
    if shown < scale:
        if scale - shown > MOST_SCALE:
            only_zero = True
        else:
            finer = TEN[scale - shown]
    if precision is not None:
        whole_digits = precision - shown + scale
        if whole_digits <= MOST_SCALE:
            below = TEN[whole_digits if whole_digits > 0 else 0]
    encoded = new_encoded(count, count * (LENGTH_BYTES + NUMERIC_HEAD_BYTES + 2 * MOST_GROUPS))
    data = encoded.data
    starts = encoded.starts
    with nogil:
        for i in range(count):
            value = values[i]  # read once: what was looked at is what is written
            if null[i]:
                length = NULL_LENGTH
            elif magnitude(value) >= below:
                length = IS_OUT_OF_RANGE
            elif (only_zero and value != 0) or (finer > 1 and magnitude(value) % finer != 0):
                length = IS_FINER
            else:
                length = put_scaled(data + at + LENGTH_BYTES, value, scale, wire_scale)
            if length < NULL_LENGTH:
                with gil:
                    bad.append((i, OBJECTIONS[length]))
                length = NULL_LENGTH
            store_int32(data + at, <int32_t> length)
            at += LENGTH_BYTES + (length if length > 0 else 0)
            starts[i + 1] = at
    return encoded, bad


cdef Py_ssize_t put_scaled(uint8_t *out, int64_t value, int scale, int dscale) noexcept nogil:
    """Write the numeric ``value * 10**-scale``; returns its bytes."""
    cdef uint64_t whole = magnitude(value)
    cdef uint64_t fraction = 0
    cdef uint16_t[MOST_GROUPS] groups    # from the last to the first
    cdef int have = 0, before = 0, skipped = 0, last = scale % GROUP
    if scale > 0:
        fraction = whole % TEN[scale]
        whole = whole // TEN[scale]
        if last > 0:                     # the last group is filled up with zeros
            groups[have] = <uint16_t> (fraction % TEN[last] * TEN[GROUP - last])
            fraction = fraction // TEN[last]
            have += 1
        while have < (scale + GROUP - 1) // GROUP:
            groups[have] = <uint16_t> (fraction % BASE)
            fraction = fraction // BASE
            have += 1
    while whole > 0:
        groups[have] = <uint16_t> (whole % BASE)
        whole = whole // BASE
        have += 1
        before += 1
    while have > 0 and groups[have - 1] == 0:   # only after the point, when nothing is before it
        have -= 1
        before -= 1
    while skipped < have and groups[skipped] == 0:
        skipped += 1
    store_16(out, <uint16_t> (have - skipped))
    store_16(out + 2, <uint16_t> (before - 1) if have > 0 else 0)
    store_16(out + 4, NEGATIVE if value < 0 else POSITIVE)
    store_16(out + 6, <uint16_t> dscale)
    out += NUMERIC_HEAD_BYTES
    for last in range(have - 1, skipped - 1, -1):
        store_16(out, groups[last])
        out += 2
    return NUMERIC_HEAD_BYTES + 2 * (have - skipped)


def encode_decimals(list values not None, const uint8_t[::1] null not None, precision=None, declared=None):
    """numeric, from Decimal (or int) objects, exactly: digits and, unless the type has a scale of its own, the display
    scale too.  ``precision``, ``declared`` and what is bad: as of ``encode_scaled``.  None is null too."""
    cdef Py_ssize_t i, count = len(values), at = 0, size
    cdef int scale = NO_SCALE if declared is None else declared
    cdef int most_before = NO_LIMIT if precision is None or declared is None else precision - declared
    cdef list bad = []
    cdef Encoded encoded = new_encoded(count, count * 24)
    cdef const char *digits
    cdef object value, text
    cdef type kind
    cdef Py_ssize_t length
    _same_length(count, null)
    for i in range(count):
        value = values[i]
        length = NULL_LENGTH
        if not null[i] and value is not None:
            kind = type(value)
            if kind is not Decimal:
                if isinstance(value, Decimal):
                    value = Decimal(value)
                elif isinstance(value, Integral) and kind is not bool:
                    value = Decimal(int(value))
                else:
                    value = None
                    bad.append((i, f"{kind.__name__} instead of Decimal or int"))
            if value is not None:
                text = str(value)       # exact; the only form of a Decimal that C can read at once
                digits = PyUnicode_AsUTF8AndSize(text, &size)
                _make_room(encoded, at + LENGTH_BYTES + NUMERIC_HEAD_BYTES + size + 2 * GROUP)
                length = put_decimal(encoded.data + at + LENGTH_BYTES, digits, size, scale, most_before)
                if length < 0:
                    bad.append((i, OBJECTIONS[length]))
                    length = NULL_LENGTH
        _make_room(encoded, at + LENGTH_BYTES)
        store_int32(encoded.data + at, <int32_t> length)
        at += LENGTH_BYTES + (length if length > 0 else 0)
        encoded.starts[i + 1] = at
    return encoded, bad


cdef Py_ssize_t put_decimal(
    uint8_t *out, const char *text, Py_ssize_t size, int declared, int most_before
) noexcept nogil:
    """Write the numeric that ``str(Decimal)`` shows; returns its bytes, or which reason speaks against it."""
    cdef Py_ssize_t i = 0, end, point = -1, first = -1, last = -1, place = 0, digits = 0, groups = 0, weight
    cdef int64_t exponent = 0, dscale, before
    cdef bint negative = False, exponent_negative = False
    cdef uint32_t group = 0
    cdef uint16_t sign = POSITIVE
    cdef uint8_t *to = out + NUMERIC_HEAD_BYTES
    cdef char c
    if i < size and text[i] == c'-':
        negative = True
        i += 1
    if i < size and text[i] == c's':
        return IS_SIGNALING
    if i < size and (text[i] == c'N' or text[i] == c'I'):
        if text[i] == c'I':
            if declared != NO_SCALE:
                return IS_INFINITE
            sign = MINUS_INFINITY if negative else PLUS_INFINITY
        else:
            sign = NOT_A_NUMBER
        store_16(out, 0)
        store_16(out + 2, 0)
        store_16(out + 4, sign)
        store_16(out + 6, 0 if sign == NOT_A_NUMBER else INFINITE_DSCALE)
        return NUMERIC_HEAD_BYTES
    # Where the digits are: the first and last that are not zero, by their number among the digits.
    end = size
    for i in range(i, size):
        c = text[i]
        if c == c'E' or c == c'e':
            end = i
            break
        if c == c'.':
            point = digits
        elif c != c'-':
            if c != c'0':
                if first < 0:
                    first = digits
                last = digits
            digits += 1
    for i in range(end + 1, size):
        c = text[i]
        if c == c'-':
            exponent_negative = True
        elif c != c'+':
            exponent = exponent * 10 + (c - c'0')  # Decimal's own limit is 18 digits
    if exponent_negative:
        exponent = -exponent
    before = (digits if point < 0 else point) + exponent      # digits before the decimal point; may be negative
    dscale = digits - before
    if dscale < 0:
        dscale = 0
    if declared != NO_SCALE:
        if last >= 0 and last + 1 - before > declared:
            return IS_FINER
        if first >= 0 and before - first > most_before:
            return IS_OUT_OF_RANGE
        dscale = declared if declared > 0 else 0
    if dscale > MOST_DSCALE:
        return IS_BEYOND_NUMERIC
    if first < 0:
        store_16(out, 0)
        store_16(out + 2, 0)
        store_16(out + 4, POSITIVE)
        store_16(out + 6, <uint16_t> dscale)
        return NUMERIC_HEAD_BYTES
    weight = floor_div(before - 1 - first, GROUP)
    if weight > MOST_WEIGHT:
        return IS_BEYOND_NUMERIC
    digits = 0
    for i in range(1 if negative else 0, end):
        c = text[i]
        if c == c'.':
            continue
        if digits > last:
            break
        if digits >= first:
            group = group * 10 + <uint32_t> (c - c'0')
            place = before - 1 - digits
            if place - GROUP * floor_div(place, GROUP) == 0:
                store_16(to, <uint16_t> group)
                to += 2
                groups += 1
                group = 0
        digits += 1
    if group > 0:  # the last group is filled up with zeros
        place = before - 1 - last
        store_16(to, <uint16_t> (group * TEN[place - GROUP * floor_div(place, GROUP)]))
        groups += 1
    store_16(out, <uint16_t> groups)
    store_16(out + 2, <uint16_t> weight)
    store_16(out + 4, NEGATIVE if negative else POSITIVE)
    store_16(out + 6, <uint16_t> dscale)
    return NUMERIC_HEAD_BYTES + 2 * groups


cdef inline int64_t floor_div(int64_t a, int64_t b) noexcept nogil:
    return a // b if a >= 0 else -((b - 1 - a) // b)


def encode_texts(list values not None, const uint8_t[::1] null not None, bytes prefix=b""):
    """text, json, jsonb from str objects, each after ``prefix`` (jsonb's version).  None is null too."""
    cdef Py_ssize_t i, count = len(values), at = 0, size, prefix_bytes = len(prefix)
    cdef const char *characters
    cdef const char *front = PyBytes_AS_STRING(prefix)
    cdef object value
    cdef list bad = []
    cdef Encoded encoded = new_encoded(count, count * 24)
    _same_length(count, null)
    for i in range(count):
        value = values[i]
        size = NULL_LENGTH
        characters = NULL
        if null[i] or value is None:
            pass
        elif not PyUnicode_Check(value):
            bad.append((i, f"{type(value).__name__} instead of str"))
        else:
            try:
                characters = PyUnicode_AsUTF8AndSize(value, &size)
            except UnicodeEncodeError:
                size = NULL_LENGTH
                bad.append((i, HAS_SURROGATE))
            else:
                if memchr(characters, 0, size) != NULL:
                    size = NULL_LENGTH
                    bad.append((i, HAS_NUL))
                elif size + prefix_bytes > LONGEST:
                    size = NULL_LENGTH
                    bad.append((i, TOO_LONG))
        at = _put(encoded, i, at, front, prefix_bytes, characters, size)
    return encoded, bad


def encode_bytes(list values not None, const uint8_t[::1] null not None):
    """bytea from bytes objects (bytearray and memoryview too).  None is null too."""
    cdef Py_ssize_t i, count = len(values), at = 0, size
    cdef const char *content
    cdef object value
    cdef list bad = []
    cdef Encoded encoded = new_encoded(count, count * 24)
    _same_length(count, null)
    for i in range(count):
        value = values[i]
        size = NULL_LENGTH
        content = NULL
        if not null[i] and value is not None:
            if isinstance(value, (bytearray, memoryview)):
                value = bytes(value)
            if not PyBytes_Check(value):
                bad.append((i, f"{type(value).__name__} instead of bytes"))
            elif PyBytes_GET_SIZE(value) > LONGEST:
                bad.append((i, TOO_LONG))
            else:
                content = PyBytes_AS_STRING(value)
                size = PyBytes_GET_SIZE(value)
        at = _put(encoded, i, at, NULL, 0, content, size)
    return encoded, bad


def encode_lists(
    Encoded elements not None, const int64_t[::1] offsets not None, const uint8_t[::1] null not None,
    const int32_t[::1] lower not None, uint32_t element_oid
):
    """One-dimensional arrays: list i has the elements ``offsets[i]`` to ``offsets[i + 1]`` and the lower bound
    ``lower[i]`` (of no matter when it is empty).  Bad: a list whose upper bound PostgreSQL could not count.  Offsets
    are read again after they are checked: nobody else may write to them meanwhile."""
    cdef Py_ssize_t i, j, count = null.shape[0], at = 0, length
    cdef int64_t first, last, nbytes
    cdef int32_t lowest
    cdef bint has_null, fits
    cdef uint8_t reason
    cdef list bad = []
    cdef Encoded encoded
    cdef uint8_t *data
    cdef const uint8_t *from_data = elements.data
    cdef int64_t *starts
    cdef const int64_t *from_starts = elements.starts
    if offsets.shape[0] != count + 1 or lower.shape[0] != count:
        raise ValueError(f"{count} lists have {count + 1} offsets and {count} lower bounds, "
                         f"not {offsets.shape[0]} and {lower.shape[0]}")
    fits = offsets[0] >= 0 and offsets[count] <= elements.count
    for i in range(count):
        fits = fits and offsets[i] <= offsets[i + 1]
    if not fits:
        raise ValueError(f"offsets of lists must rise from 0 to at most {elements.count}, the number of elements")
    nbytes = count * (LENGTH_BYTES + ARRAY_HEAD_BYTES) + from_starts[offsets[count]] - from_starts[offsets[0]]
    encoded = new_encoded(count, nbytes)
    data = encoded.data
    starts = encoded.starts
    with nogil:
        for i in range(count):
            first = offsets[i]
            last = offsets[i + 1]
            lowest = lower[i]
            nbytes = from_starts[last] - from_starts[first]
            reason = 0
            if null[i]:
                length = NULL_LENGTH
            elif first == last:
                length = EMPTY_ARRAY_BYTES
                store_int32(data + at + LENGTH_BYTES, 0)
                store_int32(data + at + LENGTH_BYTES + 4, 0)
                store_32(data + at + LENGTH_BYTES + 8, element_oid)
            elif lowest + (last - first) > INT32_MAX:
                length = NULL_LENGTH
                reason = 1
            elif nbytes + ARRAY_HEAD_BYTES > LONGEST:
                length = NULL_LENGTH
                reason = 2
            else:
                length = ARRAY_HEAD_BYTES + nbytes
                has_null = False
                for j in range(first, last):
                    has_null |= load_int32(from_data + from_starts[j]) == NULL_LENGTH
                store_int32(data + at + LENGTH_BYTES, 1)
                store_int32(data + at + LENGTH_BYTES + 4, has_null)
                store_32(data + at + LENGTH_BYTES + 8, element_oid)
                store_int32(data + at + LENGTH_BYTES + 12, <int32_t> (last - first))
                store_int32(data + at + LENGTH_BYTES + 16, lowest)
                memcpy(data + at + LENGTH_BYTES + ARRAY_HEAD_BYTES, from_data + from_starts[first], nbytes)
            if reason:
                with gil:
                    bad.append((i, TOO_LONG if reason == 2 else "an array whose upper bound is beyond 2147483647"))
            store_int32(data + at, <int32_t> length)
            at += LENGTH_BYTES + (length if length > 0 else 0)
            starts[i + 1] = at
    return encoded, bad


cdef int _same_length(Py_ssize_t count, const uint8_t[::1] null) except -1:
    if null.shape[0] != count:
        raise ValueError(f"{count} values and {null.shape[0]} marks of null")
    return 0


cdef inline int _make_room(Encoded encoded, Py_ssize_t nbytes) except -1:
    """Room for ``nbytes`` in all, and for half as much again, so that growing costs no more than writing."""
    if nbytes > encoded.capacity:
        encoded.reserve(nbytes + nbytes // 2)
    return 0


cdef inline Py_ssize_t _put(
    Encoded encoded, Py_ssize_t i, Py_ssize_t at, const char *front, Py_ssize_t front_bytes, const char *rest,
    Py_ssize_t rest_bytes
) except -1:
    """Value ``i`` at ``at``: null when ``rest_bytes`` is negative.  Returns where the next one goes."""
    cdef Py_ssize_t end = at + LENGTH_BYTES + (front_bytes + rest_bytes if rest_bytes >= 0 else 0)
    cdef uint8_t *data
    _make_room(encoded, end)
    data = encoded.data + at
    if rest_bytes < 0:
        store_int32(data, NULL_LENGTH)
    else:
        store_int32(data, <int32_t> (front_bytes + rest_bytes))
        if front_bytes > 0:
            memcpy(data + LENGTH_BYTES, front, front_bytes)
        if rest_bytes > 0:
            memcpy(data + LENGTH_BYTES + front_bytes, rest, rest_bytes)
    encoded.starts[i + 1] = end
    return end
