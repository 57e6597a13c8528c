"""Reading PostgreSQL's numeric: its binary form to scaled integers and to decimal text.

numeric_send (``src/backend/utils/adt/numeric.c``), all 16 bits, big-endian: how many base-10000 digits; the weight of
the first of them, a power of 10000 (signed); the sign; the display scale; then the digits.

Nothing here allocates, raises or needs the GIL.  In C, because overflow is looked for where debug builds of Cython code
would raise it.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t


cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>

    #define NUMERIC_POSITIVE 0x0000
    #define NUMERIC_NEGATIVE 0x4000
    #define NUMERIC_NAN      0xC000
    #define NUMERIC_INFINITY 0xD000
    #define NUMERIC_MINUS_INFINITY 0xF000
    #define NUMERIC_MAX_DISPLAY_SCALE 0x3FFF

    typedef struct {
        const uint8_t *digits;
        int count;          /* without the zeros at both ends */
        int weight;         /* of the first of them: the power of 10000 */
        int sign;
        int display_scale;
    } numeric;

    static inline int numeric_load16(const uint8_t *p) { return (p[0] << 8) | p[1]; }

    /* True if the bytes have the form of a numeric; its digits may still be any. */
    static inline int numeric_parts(const uint8_t *p, int32_t length, numeric *number) {
        if (length < 8) return 0;
        int count = numeric_load16(p);  /* uint16, as numeric_recv reads it */
        number->weight = (int16_t)numeric_load16(p + 2);
        number->sign = numeric_load16(p + 4);
        number->display_scale = numeric_load16(p + 6);
        if (length != 8 + 2 * count || number->display_scale > NUMERIC_MAX_DISPLAY_SCALE) return 0;
        p += 8;
        while (count && !(p[0] | p[1])) { p += 2; count--; number->weight--; }
        while (count && !(p[2 * count - 2] | p[2 * count - 1])) count--;
        number->digits = p;
        number->count = count;
        return 1;
    }

    static const uint64_t numeric_powers[20] = {
        1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u, 10000000000u,
        100000000000u, 1000000000000u, 10000000000000u, 100000000000000u, 1000000000000000u, 10000000000000000u,
        100000000000000000u, 1000000000000000000u, 10000000000000000000u,
    };

    /* False on overflow. */
    static inline int numeric_append(uint64_t *sum, uint64_t power, uint64_t digits) {
        return !__builtin_mul_overflow(*sum, power, sum) && !__builtin_add_overflow(*sum, digits, sum);
    }

    enum { NUMERIC_GOOD, NUMERIC_NO_NUMERIC, NUMERIC_OVERFLOW, NUMERIC_FINER, NUMERIC_IS_NAN, NUMERIC_IS_INFINITE };

    /* The number times 10**scale, if that is an integer of 64 bits.  No step makes more than the result, so that an
       overflow of a step is one of the result. */
    static inline int numeric_scaled(const uint8_t *p, int32_t length, int scale, int64_t *to) {
        numeric number;
        uint64_t sum = 0, last;
        int i, exponent;
        if (!numeric_parts(p, length, &number)) return NUMERIC_NO_NUMERIC;
        if (number.sign != NUMERIC_POSITIVE && number.sign != NUMERIC_NEGATIVE) {
            if (number.sign == NUMERIC_NAN) return NUMERIC_IS_NAN;
            if (number.sign == NUMERIC_INFINITY || number.sign == NUMERIC_MINUS_INFINITY) return NUMERIC_IS_INFINITE;
            return NUMERIC_NO_NUMERIC;
        }
        if (number.count == 0) { *to = 0; return NUMERIC_GOOD; }
        for (i = 0; i < number.count; i++)
            if (numeric_load16(number.digits + 2 * i) > 9999) return NUMERIC_NO_NUMERIC;
        exponent = 4 * (number.weight - number.count + 1) + scale;  /* of ten, for the last digit */
        if (exponent <= -4) return NUMERIC_FINER;
        if (exponent > 19) return NUMERIC_OVERFLOW;
        for (i = 0; i < number.count - 1; i++) {
            if (!numeric_append(&sum, 10000, numeric_load16(number.digits + 2 * i))) return NUMERIC_OVERFLOW;
        }
        last = numeric_load16(number.digits + 2 * i);
        if (exponent < 0) {  /* the last decimals of the last digit are beyond the scale */
            if (last % numeric_powers[-exponent]) return NUMERIC_FINER;
            if (!numeric_append(&sum, numeric_powers[4 + exponent], last / numeric_powers[-exponent]))
                return NUMERIC_OVERFLOW;
        } else if (!numeric_append(&sum, 10000, last) || !numeric_append(&sum, numeric_powers[exponent], 0)) {
            return NUMERIC_OVERFLOW;
        }
        if (number.sign == NUMERIC_NEGATIVE) {
            if (sum > (uint64_t)INT64_MAX + 1) return NUMERIC_OVERFLOW;
            *to = (int64_t)(0 - sum);
        } else {
            if (sum > (uint64_t)INT64_MAX) return NUMERIC_OVERFLOW;
            *to = (int64_t)sum;
        }
        return NUMERIC_GOOD;
    }

    static inline int numeric_digit_at(const numeric *number, int weight) {
        int i = number->weight - weight;
        return i >= 0 && i < number->count ? numeric_load16(number->digits + 2 * i) : 0;
    }

    /* Room that the number's text needs. */
    static inline ptrdiff_t numeric_text_bytes(const numeric *number) {
        return 16 + (number->weight >= 0 ? 4 * ((ptrdiff_t)number->weight + 1) : 0) + number->display_scale;
    }

    /* The number as the server's own text has it, all digits of its display scale and no exponent; returns its length,
       or -1 where the digits are none, or finer than the display scale. */
    static inline ptrdiff_t numeric_text(const numeric *number, char *to) {
        char *at = to;
        int weight, digit, place, written = 0, left = number->display_scale;
        for (place = 0; place < number->count; place++)
            if (numeric_load16(number->digits + 2 * place) > 9999) return -1;
        if (number->count) {
            int decimals = 4 * (number->count - 1 - number->weight);
            digit = numeric_load16(number->digits + 2 * (number->count - 1));
            for (; digit % 10 == 0; digit /= 10) decimals--;
            if (decimals > left) return -1;
        }
        if (number->sign == NUMERIC_NEGATIVE && number->count) *at++ = '-';
        for (weight = number->weight; number->count && weight >= 0; weight--) {
            digit = numeric_digit_at(number, weight);
            for (place = 1000; place; place /= 10) {
                if (!written && digit < place) continue;
                *at++ = (char)('0' + digit / place % 10);
                written = 1;
            }
        }
        if (!written) *at++ = '0';
        if (left) *at++ = '.';
        for (weight = -1; left; weight--) {
            digit = number->count ? numeric_digit_at(number, weight) : 0;
            for (place = 1000; place && left; place /= 10, left--) *at++ = (char)('0' + digit / place % 10);
        }
        return at - to;
    }
    """
    ctypedef struct Numeric "numeric":
        int sign

    # What may stand in ``sign``.
    enum:
        POSITIVE "NUMERIC_POSITIVE"
        NEGATIVE "NUMERIC_NEGATIVE"
        NAN "NUMERIC_NAN"
        INFINITY "NUMERIC_INFINITY"
        MINUS_INFINITY "NUMERIC_MINUS_INFINITY"

    # What ``scaled`` answers.
    enum:
        SCALED_GOOD "NUMERIC_GOOD"
        SCALED_NO_NUMERIC "NUMERIC_NO_NUMERIC"
        SCALED_OVERFLOW "NUMERIC_OVERFLOW"
        SCALED_FINER "NUMERIC_FINER"
        SCALED_NAN "NUMERIC_IS_NAN"
        SCALED_INFINITE "NUMERIC_IS_INFINITE"

    bint numeric_parts(const uint8_t *data, int32_t length, Numeric *number) noexcept nogil
    int scaled "numeric_scaled"(const uint8_t *data, int32_t length, int scale, int64_t *to) noexcept nogil
    Py_ssize_t text_bytes "numeric_text_bytes"(const Numeric *number) noexcept nogil
    Py_ssize_t numeric_text(const Numeric *number, char *to) noexcept nogil
