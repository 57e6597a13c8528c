from libc.stdint cimport int64_t, uint8_t, uint64_t

# The name C knows; Cython only needs to know that it is an integer, and never turns one into a Python object here.
cdef extern from *:
    ctypedef unsigned long long uint128_t "unsigned __int128"


cdef inline uint128_t load(const uint64_t[:, ::1] codes, Py_ssize_t i) noexcept nogil:
    return (<uint128_t> codes[i, 0] << 64) | codes[i, 1]


cdef inline void store(uint64_t[:, ::1] codes, Py_ssize_t i, uint128_t code) noexcept nogil:
    codes[i, 0] = <uint64_t> (code >> 64)
    codes[i, 1] = <uint64_t> code
