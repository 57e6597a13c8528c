# cython: overflowcheck=False
# (Overflow checks know no 128-bit integers; here sums and differences are bounded by the checks at each entry.)
"""Kernels of the key space: positions of typed keys, and the curve that maps them to row counts.

A *code* is an unsigned 128-bit integer that stands for a key value: ``uint64`` arrays of shape ``(n, 2)``, the high
half first.  A *curve* is an array of codes that never falls, and the estimated number of rows up to each of them
(``float64``, never falling).  Between two codes rows are spread evenly; where one code stands twice, all the rows
between its two values sit on that one code: a *step*.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

import numpy as np


cdef Py_ssize_t last_at_or_below(const uint64_t[:, ::1] codes, uint128_t code) noexcept nogil:
    """The last i with ``codes[i] <= code``, or -1."""
    cdef Py_ssize_t low = 0, high = codes.shape[0], middle
    while low < high:
        middle = low + (high - low) // 2
        if load(codes, middle) <= code:
            low = middle + 1
        else:
            high = middle
    return low - 1


cdef Py_ssize_t first_at_or_above(const uint64_t[:, ::1] codes, uint128_t code) noexcept nogil:
    """The first i with ``codes[i] >= code``, or the length."""
    cdef Py_ssize_t low = 0, high = codes.shape[0], middle
    while low < high:
        middle = low + (high - low) // 2
        if load(codes, middle) < code:
            low = middle + 1
        else:
            high = middle
    return low


cdef void locate_all(
    const uint64_t[:, ::1] curve, const double[::1] rows, const uint64_t[:, ::1] wanted,
    double[::1] below, double[::1] upto,
) noexcept nogil:
    cdef Py_ssize_t i, left, right, last = curve.shape[0] - 1
    cdef uint128_t code, start
    cdef double share
    for i in range(wanted.shape[0]):
        code = load(wanted, i)
        left = last_at_or_below(curve, code)
        if left < 0:
            below[i] = 0.0
            upto[i] = 0.0
            continue
        start = load(curve, left)
        if start == code:
            right = first_at_or_above(curve, code)
            below[i] = rows[right]
            upto[i] = rows[left]
        elif left == last:
            below[i] = rows[last]
            upto[i] = rows[last]
        else:
            share = <double> (code - start) / <double> (load(curve, left + 1) - start)
            below[i] = rows[left] + share * (rows[left + 1] - rows[left])
            upto[i] = below[i]


cdef void invert_all(
    const uint64_t[:, ::1] curve, const double[::1] rows, const double[::1] targets,
    uint64_t[:, ::1] codes,
) noexcept nogil:
    cdef Py_ssize_t i, low, high, middle, last = curve.shape[0] - 1
    cdef uint128_t start, width, step
    cdef double target, share, stride
    for i in range(targets.shape[0]):
        target = targets[i]
        # The first point that has as many rows as wanted; "not >=" sends a NaN to the end, as any other excess.
        low = 0
        high = last
        while low < high:
            middle = low + (high - low) // 2
            if rows[middle] >= target:
                high = middle
            else:
                low = middle + 1
        if low == 0 or not rows[low] >= target:
            store(codes, i, load(curve, low))
            continue
        start = load(curve, low - 1)
        width = load(curve, low) - start
        share = (target - rows[low - 1]) / (rows[low] - rows[low - 1])
        # A double holds a wide gap only to 53 bits: rounded up, it steps past the gap's end, or even out of 128 bits.
        stride = share * <double> width
        step = <uint128_t> stride if stride < <double> width else width
        store(codes, i, start + (step if step < width else width))


cdef void encode_all(
    const uint8_t[::1] data, const int64_t[::1] offsets, unsigned int base, int digits, uint64_t[:, ::1] codes,
) noexcept nogil:
    cdef Py_ssize_t i, at, end
    cdef int _n
    cdef uint128_t code
    for i in range(codes.shape[0]):
        code = 0
        at = offsets[i]
        end = offsets[i + 1]
        for _n in range(digits):
            code = code * base
            if at < end:
                code = code + data[at]
                at = at + 1
        store(codes, i, code)


cdef void decode_all(const uint64_t[:, ::1] codes, unsigned int base, uint8_t[:, ::1] data) noexcept nogil:
    cdef Py_ssize_t i, n
    cdef uint128_t code
    for i in range(codes.shape[0]):
        code = load(codes, i)
        for n in range(data.shape[1] - 1, -1, -1):
            data[i, n] = <uint8_t> (code % base)
            code = code // base


def _check_curve(const uint64_t[:, ::1] curve, const double[::1] rows):
    if curve.shape[0] == 0 or curve.shape[1] != 2 or curve.shape[0] != rows.shape[0]:
        raise ValueError("a curve has at least one point, and a row count for each")


def locate(const uint64_t[:, ::1] curve, const double[::1] rows, const uint64_t[:, ::1] wanted):
    """Estimated rows before each wanted code, and up to and with it: two ``float64`` arrays.

    They differ only on a step.  A code outside the curve has the rows of its nearer end, none being below the first.
    """
    _check_curve(curve, rows)
    if wanted.shape[1] != 2:
        raise ValueError("codes have two halves")
    below = np.empty(wanted.shape[0], dtype=np.float64)
    upto = np.empty(wanted.shape[0], dtype=np.float64)
    cdef double[::1] below_view = below, upto_view = upto
    with nogil:
        locate_all(curve, rows, wanted, below_view, upto_view)
    return below, upto


def invert(const uint64_t[:, ::1] curve, const double[::1] rows, const double[::1] targets):
    """The code that each target number of rows leads to.

    Codes stay between the curve's ends and never fall while the targets rise.
    """
    _check_curve(curve, rows)
    codes = np.empty((targets.shape[0], 2), dtype=np.uint64)
    cdef uint64_t[:, ::1] codes_view = codes
    with nogil:
        invert_all(curve, rows, targets, codes_view)
    return codes


def encode_digits(const uint8_t[::1] data, const int64_t[::1] offsets, unsigned int base, int digits):
    """Numbers made of the first ``digits`` digits of each item, missing ones being zero.

    Item i is ``data[offsets[i]:offsets[i + 1]]``, one digit a byte, each below ``base``; ``base ** digits`` must not
    exceed 2**128.  Returns codes.
    """
    cdef Py_ssize_t i, n = offsets.shape[0] - 1
    if n < 0 or offsets[0] < 0 or offsets[n] > data.shape[0]:
        raise ValueError("offsets lie outside the data")
    for i in range(n):
        if offsets[i] > offsets[i + 1]:
            raise ValueError("offsets must not fall")
    _check_digits(base, digits)
    codes = np.empty((n, 2), dtype=np.uint64)
    cdef uint64_t[:, ::1] codes_view = codes
    with nogil:
        encode_all(data, offsets, base, digits, codes_view)
    return codes


def decode_digits(const uint64_t[:, ::1] codes, unsigned int base, int digits):
    """The digits of each code, most significant first: ``uint8`` of shape ``(n, digits)``."""
    _check_digits(base, digits)
    if codes.shape[1] != 2:
        raise ValueError("codes have two halves")
    data = np.empty((codes.shape[0], digits), dtype=np.uint8)
    cdef uint8_t[:, ::1] data_view = data
    with nogil:
        decode_all(codes, base, data_view)
    return data


def _check_digits(base, digits):
    if not 2 <= base <= 256 or digits < 1 or base ** digits > 1 << 128:
        raise ValueError(f"{digits} digits of base {base} do not fit into 128 bits")
