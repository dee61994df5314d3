# The types with which glance.py is compiled; it is complete without them.
cimport cython

from revocation_client.sieve cimport Sieve

cdef str HASH_PREFIX
cdef Py_ssize_t VALUE_MAX_CHARACTERS
cdef bint _COMPILED
cdef object _printable

cdef bint _names(str jti)
cdef bint _usual_or_none(object value)
cdef bint _usual(str text)


@cython.final
cdef class Glance:
    cdef object _mirror, _jtis, _wall, _monotonic
    cdef Sieve _sieve
    cdef list _others
    cdef readonly long long admitted
    cdef double _until, _not_before, _not_after

    cpdef bint is_fresh(self)

    @cython.locals(claims=dict, hashed=Py_hash_t)
    cpdef bint admits(self, question)
