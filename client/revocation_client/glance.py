"""A glance into memory, which is all that nearly every check takes: the token is surely not revoked. Knows no network.

Where a C compiler is found, this file is compiled as the client is installed, with the types that `glance.pxd` states;
else it is run as it stands. Both do the same: it is written once.
"""

import math
from collections.abc import Callable
from typing import Final

from revocation_client.mirror import Mirror
from revocation_client.wire import HASH_PREFIX, VALUE_MAX_CHARACTERS

Clock = Callable[[], float]

_COMPILED: Final = not __file__.endswith(".py")
_printable: Final = str.isprintable


class Glance:
    """Says of claims of the usual kind that a token with them is not revoked, while that may be believed.

    That is judged anew for each question, by two clocks: the one that runs evenly, and the one on the wall, which a
    suspended or moved machine finds far ahead.
    """

    def __init__(self, mirror: Mirror, wall: Clock, monotonic: Clock) -> None:
        self._mirror, self._jtis, self._sieve = mirror, mirror.jtis, mirror.jtis.sieve
        self._others = mirror.others
        self._wall, self._monotonic = wall, monotonic
        self.admitted = 0
        """How often it said so."""
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
        if type(question) is not dict:
            return False
        claims = question
        jti = claims.get("jti")
        if type(jti) is not str:
            return False
        hashed = hash(jti)
        if _COMPILED:
            self._sieve.fetch(hashed)
        sub, sid, client_id = claims.get("sub"), claims.get("sid"), claims.get("client_id")
        if client_id is None:
            client_id = claims.get("azp")
        if not (_names(jti) and _usual_or_none(sub) and _usual_or_none(sid) and _usual_or_none(client_id)):
            return False
        if not self.is_fresh() or (self._sieve.lets_through(hashed) and self._jtis.get(jti) is not None):
            return False
        if self._others and self._mirror.others_may_hold(jti, sid, sub, client_id, ""):
            return False
        self.admitted += 1
        return True


def _names(jti: str) -> bool:
    """Whether this names a token, as no computed name does."""
    return _usual(jti) and not jti.startswith(HASH_PREFIX)


def _usual_or_none(value: object) -> bool:
    return value is None or (type(value) is str and _usual(value))


def _usual(text: str) -> bool:
    """Whether this needs no second look to be a value (`wire.check_value`)."""
    return 0 < len(text) <= VALUE_MAX_CHARACTERS and _printable(text)
