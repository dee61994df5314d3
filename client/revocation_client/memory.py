"""What a process can say of tokens from its own memory, and while when that may be believed. Knows no network.

"Revoked" may always be believed, because a revocation is final. "Not revoked" may be, until `max_staleness_seconds`
after the last moment for which it was proven that nothing is missing.
"""

import math
from dataclasses import dataclass
from typing import Final

from revocation_client.counters import Tally
from revocation_client.freshness import Name
from revocation_client.glance import Clock, Glance
from revocation_client.mirror import Mirror
from revocation_client.model import Claims, Revocation
from revocation_client.questions import Inquiry
from revocation_client.tokens import Problem, read_token
from revocation_client.verdicts import Verdict

FORGOTTEN_AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """What the memory is good for just now."""

    name: Name
    """`synced`: it answers; `stale`: it did, and now says only what is revoked; `connecting`: not yet."""
    since: float
    """When that began, in epoch seconds."""
    last_error: str | None
    """Why the last stream ended, or none could be had; None while one goes on."""
    age_seconds: float | None
    """For how long a revocation may have been acknowledged and not be known here; None: nothing was proven yet."""
    entries: int
    """How many revocations are held, ended ones that are not forgotten yet included."""
    complete: bool
    """False while others write to the same Redis by themselves: then it says only what is revoked."""


class Memory:
    """The revocations that this process knows of. It may be asked in any thread; it learns in one."""

    def __init__(self, max_staleness_seconds: float, tally: Tally, wall: Clock, monotonic: Clock) -> None:
        self._mirror = Mirror()
        self._max_staleness_seconds = max_staleness_seconds
        self._tally = tally
        self._wall = wall
        self._monotonic = monotonic
        self._fresh_at = -math.inf
        self._complete = True
        self._since = wall()
        self.glance = Glance(self._mirror, wall, monotonic)
        """Says "not revoked" at once, of nearly all tokens; what it does not say, `verdict` does."""

    @property
    def entries(self) -> int:
        """How many revocations are held."""
        return len(self._mirror)

    @property
    def in_step(self) -> bool:
        """Whether it is proven that nothing older than `max_staleness_seconds` is missing."""
        return self.age() <= self._max_staleness_seconds

    def verdict(self, asked: Inquiry) -> Verdict | None:
        """Whether a token is revoked; None: memory cannot say.

        Of a whole token it only ever says that it is: what is to be said of a forged one is the service's.
        """
        fresh, wall = self.glance.is_fresh(), self._wall()
        claims, exp = _read(asked)
        found = None if claims is None else self._mirror.covering(claims, wall)
        if claims is None or (found is None and (not fresh or asked.claims is None)):
            return None
        self._tally.add("mirror_not_revoked" if found is None else "mirror_revoked")
        return Verdict(
            revoked=found is not None,
            source="mirror",
            revocation=found,
            considered=tuple([claim for claim, _value in claims.identifiers()]),
            expired=None if asked.token is None else exp is not None and exp <= wall,
            stale_seconds=_known(self.age()),
        )

    def covers(self, asked: Inquiry) -> bool:
        """Whether the token is known here to be revoked."""
        claims, _exp = _read(asked)
        return claims is not None and self._mirror.covering(claims, self._wall()) is not None

    def judge_with(self, clock_skew_seconds: float) -> None:
        """Take the clocks of issuers to be ahead by so much at most, as the service does."""
        self._mirror.skew_seconds = clock_skew_seconds

    def learn(self, revocation: Revocation) -> None:
        """Have this too; everything only adds."""
        self._mirror.add(revocation, self._wall())

    def vouch(self, age_seconds: float, *, complete: bool) -> None:
        """All that was acknowledged until so long ago is here; `complete`: and none of it bypasses this."""
        now, wall = self._monotonic(), self._wall()
        if not self.in_step:
            self._since = wall
        self._complete = complete
        self._fresh_at = max(self._fresh_at, now - age_seconds)
        left = self._fresh_at + self._max_staleness_seconds - now if complete else -math.inf
        self.glance.trust(now, wall, left)

    def doubt(self) -> None:
        """What was vouched for is so no more: from now on only what is revoked is said."""
        self._fresh_at = -math.inf
        self._since = self._wall()
        self.glance.trust(self._monotonic(), self._since, -math.inf)

    def age(self) -> float:
        """For how long, in seconds, a revocation may have been acknowledged and not be known here."""
        return self._monotonic() - self._fresh_at

    def forget(self) -> None:
        """Let go of some of what has ended."""
        self._mirror.expire(self._wall(), FORGOTTEN_AT_ONCE)

    def status(self, last_error: str | None) -> MirrorStatus:
        """As it is now."""
        age, since = self.age(), self._since
        name: Name = "connecting"
        if age <= self._max_staleness_seconds:
            name = "synced"
        elif math.isfinite(age):
            name, since = "stale", self._wall() - (age - self._max_staleness_seconds)
        return MirrorStatus(name, since, last_error, _known(age), self.entries, self._complete)


def _known(age_seconds: float) -> float | None:
    return age_seconds if math.isfinite(age_seconds) else None


def _read(asked: Inquiry) -> tuple[Claims | None, float | None]:
    """What the rule looks at, and a whole token's end; None for a token that cannot be read here."""
    if asked.token is None:
        return asked.claims, None
    try:
        token = read_token(asked.token)
    except Problem:
        return None, None
    return token.claims, token.exp
