"""A glance into memory, which is all that nearly every check takes: the token is surely not revoked. Knows no network.

Where a C compiler is found, this file is compiled as the client is installed, with the types that `glance.pxd` states;
else it is run as it stands. Both do the same: it is written once.
"""

import math
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from threading import get_ident
from typing import Final

from revocation_client.mirror import Mirror, Table
from revocation_client.sieve import Sieve
from revocation_client.wire import HASH_PREFIX, VALUE_MAX_CHARACTERS

Clock = Callable[[], float]

LOOKED_UP: Final = frozenset({"jti", "sid", "sub", "client_id", "all"})
"""The claims that `Glance.admits` looks up. With any other claim in the table it admits no token."""

_COMPILED: Final = str(globals().get("__file__")).endswith(tuple(EXTENSION_SUFFIXES))
_printable: Final = str.isprintable


class Values:
    """Those of one claim that are held."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._sieve: Sieve = table.sieve

    def fetch(self, value: str | None) -> None:
        """Have the processor fetch what `may_hold` will look at (`Sieve.fetch`)."""
        if value is not None:
            self._sieve.fetch(hash(value))

    def may_hold(self, value: str | None) -> bool:
        """False: there is none of `value`, as `Table.may_hold` says."""
        return value is not None and self._sieve.lets_through(hash(value)) and self._table.get(value) is not None


class Glance:
    """Says of claims of the usual kind that a token with them is not revoked, while that may be believed.

    That is judged anew for each question, by two clocks: the one that runs evenly, and the one on the wall, which a
    suspended or moved machine finds far ahead.
    """

    def __init__(self, mirror: Mirror, wall: Clock, monotonic: Clock) -> None:
        tables, self._others = mirror.tables, mirror.others
        self._looks_up_all = LOOKED_UP.issuperset(tables)
        self._jtis, self._sids, self._subs = Values(tables["jti"]), Values(tables["sid"]), Values(tables["sub"])
        self._client_ids, self._alls = Values(tables["client_id"]), Values(tables["all"])
        self._wall, self._monotonic = wall, monotonic
        self.admitted = 0
        """How often it said so."""
        self.thread = 0
        """The one in which `admits_here` speaks; 0: none."""
        self._until = self._not_after = -math.inf
        self._not_before = math.inf

    def trust(self, monotonic: float, wall: float, seconds: float) -> None:
        """From now, which both clocks state, it may be believed for so long."""
        self._until, self._not_before, self._not_after = monotonic + seconds, wall, wall + seconds

    def is_fresh(self) -> bool:
        """Whether what memory does not know of may be taken for not revoked."""
        return self._monotonic() <= self._until and self._not_before <= self._wall() <= self._not_after

    def admits(self, question: object) -> bool:
        """Whether a token with these claims is surely not revoked; False: it has to be looked at properly.

        Fresh is looked at before what is held: what another thread merges and vouches for meanwhile must not vouch for
        what was looked up before.
        """
        if type(question) is not dict or not self._looks_up_all:
            return False
        claims = question
        jti = claims.get("jti")
        if type(jti) is not str:
            return False
        if _COMPILED:
            self._jtis.fetch(jti)
        sub, sid, client_id = claims.get("sub"), claims.get("sid"), claims.get("client_id")
        if client_id is None:
            client_id = claims.get("azp")
        if not (_names(jti) and _usual_or_none(sub) and _usual_or_none(sid) and _usual_or_none(client_id)):
            return False
        if _COMPILED and self._others:
            self._sids.fetch(sid)
            self._subs.fetch(sub)
        if not self.is_fresh() or self._jtis.may_hold(jti):
            return False
        if self._others and (
            self._sids.may_hold(sid)
            or self._subs.may_hold(sub)
            or self._client_ids.may_hold(client_id)
            or self._alls.may_hold("")
        ):
            return False
        self.admitted += 1
        return True

    def admits_here(self, question: object) -> bool:
        """The same, in the thread of the event loop alone: that is known sooner than which loop is running."""
        here = get_ident() if not _COMPILED else PyThread_get_thread_ident()  # type: ignore[name-defined]  # noqa: F821
        return here == self.thread and self.admits(question)


def _names(jti: str) -> bool:
    """Whether this names a token, as no computed name does."""
    return _usual(jti) and not jti.startswith(HASH_PREFIX)


def _usual_or_none(value: object) -> bool:
    return value is None or (type(value) is str and _usual(value))


def _usual(text: str) -> bool:
    """Whether this needs no second look to be a value (`wire.check_value`)."""
    return 0 < len(text) <= VALUE_MAX_CHARACTERS and _printable(text)
