# The types with which sieve.py is compiled, and what only C can do.
cimport cython

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define revocation_prefetch(bytes, place) __builtin_prefetch(PyByteArray_AS_STRING(bytes) + (place))
    #else
    #define revocation_prefetch(bytes, place) ((void) 0)
    #endif
    """
    void prefetch "revocation_prefetch" (bytearray slots, Py_ssize_t place)

cdef bytes MARKS
cdef int MARK_SHIFT
cdef int PLACE_SHIFT


cdef class Sieve:
    cdef object _hash_of
    cdef readonly bytearray slots
    cdef list _room

    @cython.locals(slots=bytearray)
    cdef void fetch(self, Py_hash_t hashed)

    @cython.locals(slots=bytearray, mark=cython.uchar)
    cpdef bint lets_through(self, Py_hash_t hashed)

    @cython.locals(slots=bytearray, part=Py_ssize_t)
    cpdef add(self, Py_hash_t hashed, held)

    @cython.locals(slots=bytearray, own=bytearray, hashed=Py_hash_t)
    cdef _renew(self, Py_ssize_t part, held)
