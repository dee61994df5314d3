# The types with which glance.py is compiled; it is complete without them.
cimport cython
from cpython.pythread cimport PyThread_get_thread_ident

from revocation_client.sieve cimport Sieve

cdef str HASH_PREFIX
cdef Py_ssize_t VALUE_MAX_CHARACTERS
cdef bint _COMPILED
cdef object _printable

cdef bint _names(str jti)
cdef bint _usual_or_none(object value)
cdef bint _usual(str text)


@cython.final
cdef class Values:
    cdef object _table
    cdef Sieve _sieve

    cdef void fetch(self, value)
    cdef bint may_hold(self, value)


@cython.final
cdef class Glance:
    cdef Values _jtis, _sids, _subs, _client_ids, _alls
    cdef list _others
    cdef bint _looks_up_all
    cdef object _wall, _monotonic
    cdef readonly long long admitted
    cdef public unsigned long thread
    cdef double _until, _not_before, _not_after

    cpdef bint is_fresh(self)

    @cython.locals(claims=dict)
    cpdef bint admits(self, question)

    @cython.locals(here=cython.ulong)
    cpdef bint admits_here(self, question)
