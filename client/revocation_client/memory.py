"""What a process can say about tokens from its own memory, and for how long that may be believed. Does no I/O.

"Revoked" may always be believed, because a revocation is final. "Not revoked" needs a recent proof that nothing is
missing. While the feed is connected and the proof is at most `ASK_AFTER_SECONDS` old, memory answers by itself
(`verdict`). Otherwise the service is asked first, and memory decides only where the service does not answer, until
`max_staleness_seconds` after the proof (`fallback`).
"""

import math
from dataclasses import dataclass
from typing import Final

from revocation_client.counters import Tally
from revocation_client.expiry_clock import ExpiryClock
from revocation_client.freshness import Name
from revocation_client.glance import Clock, Glance
from revocation_client.mirror import Mirror
from revocation_client.model import Claims, Revocation, iat_unusable
from revocation_client.questions import Inquiry
from revocation_client.tokens import Problem, read_token
from revocation_client.verdicts import Verdict

ASK_AFTER_SECONDS: Final = 3.0
"""Age of the last proof from which the service is asked, although the feed is connected: it may have gone silent."""

FORGOTTEN_AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """The state of the memory at one moment."""

    name: Name
    """`synced`: the feed is connected and fresh; `stale`: it was, and the service is asked; `connecting`: not yet."""
    since: float
    """When that began, in epoch seconds."""
    last_error: str | None
    """Why the last stream ended, or none could be had; None while one goes on."""
    age_seconds: float | None
    """For how long a revocation may have been acknowledged and not be known here; None: nothing was proven yet."""
    entries: int
    """How many revocations are held, ended ones that are not forgotten yet included."""
    complete: bool
    """False while the feed does not carry everything (foreign writers, or an event that this version does not know).

    Memory then says only what is revoked.
    """


@dataclass(frozen=True, slots=True)
class _Proof:
    """The last proof that memory lacked nothing, by both clocks: a suspended machine finds its wall clock ahead."""

    fresh_at: float = -math.inf
    """Monotonic time for which it was proven."""
    heard_at: float = -math.inf
    """Monotonic time at which the proof arrived."""
    heard_wall: float = math.inf
    """Wall time at which the proof arrived."""

    def holds(self, max_age_seconds: float, now: float, wall: float) -> bool:
        """Return whether it is at most so old by the monotonic clock, and by the wall clock."""
        left = self.fresh_at + max_age_seconds - self.heard_at
        return now <= self.fresh_at + max_age_seconds and self.heard_wall <= wall <= self.heard_wall + left


class Memory:
    """The revocations that this process knows of. It may be asked in any thread; it learns in one."""

    def __init__(
        self,
        max_staleness_seconds: float,
        tally: Tally,
        wall: Clock,
        monotonic: Clock,
        *,
        expiry_clock: ExpiryClock | None = None,
    ) -> None:
        self._mirror = Mirror()
        self._expiry_clock = expiry_clock or ExpiryClock(wall, monotonic)
        self._max_staleness_seconds = max_staleness_seconds
        self._ask_after_seconds = min(ASK_AFTER_SECONDS, max_staleness_seconds)
        self._tally = tally
        self._wall = wall
        self._monotonic = monotonic
        self._proof = _Proof()
        self._connected = False
        self._complete = True
        self._since = wall()
        self.glance = Glance(self._mirror, wall, monotonic)
        """Says "not revoked" at once, of nearly all tokens; what it does not say, `verdict` does."""

    @property
    def entries(self) -> int:
        """Number of revocations held."""
        return len(self._mirror)

    @property
    def synced(self) -> bool:
        """True while the feed is connected and its last proof is at most `ASK_AFTER_SECONDS` old."""
        return self._connected and self._proof.holds(self._ask_after_seconds, self._monotonic(), self._wall())

    def verdict(self, asked: Inquiry) -> Verdict | None:
        """Return the verdict of memory alone; None if the service has to be asked.

        About a whole token memory only ever says that it is revoked: whether it is genuine is for the service to say.
        """
        return self._verdict(asked, may_deny=self.glance.is_fresh())

    def can_decide(self, asked: Inquiry) -> bool:
        """Return whether `fallback` would give a verdict now."""
        wall = self._wall()
        recent = self._proof.holds(self._max_staleness_seconds, self._monotonic(), wall)
        return asked.claims is not None and self._complete and recent

    def revoked(self, asked: Inquiry) -> Verdict | None:
        """Return the verdict "revoked" if memory knows that; None otherwise."""
        return self._verdict(asked, may_deny=False)

    def fallback(self, asked: Inquiry) -> Verdict | None:
        """Return the verdict of memory where the service does not answer; None where the policy has to decide."""
        return self._verdict(asked, may_deny=self.can_decide(asked))

    def _verdict(self, asked: Inquiry, *, may_deny: bool) -> Verdict | None:
        """Look the token up. `may_deny` was settled before: what another thread proves meanwhile must not count."""
        wall = self._wall()
        claims, exp = _read(asked)
        found = None if claims is None else self._mirror.covering(claims, wall, alive_at=self._expiry_clock.now())
        if claims is None or (found is None and (not may_deny or asked.claims is None)):
            return None
        self._tally.add("mirror_not_revoked" if found is None else "mirror_revoked")
        return Verdict(
            revoked=found is not None,
            source="mirror",
            revocation=found,
            considered=tuple([claim for claim, _value in claims.identifiers()]),
            expired=None if asked.token is None else exp is not None and exp <= wall,
            stale_seconds=_known(self.age()),
            iat_unusable=iat_unusable(found, claims, wall, self._mirror.skew_seconds),
        )

    def judge_with(self, clock_skew_seconds: float) -> None:
        """Take issuers' clocks to be at most so many seconds ahead, as the service does."""
        self._mirror.skew_seconds = clock_skew_seconds

    def learn(self, revocation: Revocation) -> None:
        """Add a revocation; nothing is ever taken back."""
        self._mirror.add(revocation, self._expiry_clock.now())

    def mark_fresh(self, age_seconds: float, *, complete: bool, connected: bool) -> None:
        """Note a proof that everything acknowledged until `age_seconds` ago is here.

        With `complete=False` some revocations do not come by the feed; with `connected=False` the service is leaving,
        so that it has to be asked although its feed still goes on.
        """
        now, wall, was_synced = self._monotonic(), self._wall(), self.synced
        self._complete, self._connected = complete, connected
        self._proof = _Proof(max(self._proof.fresh_at, now - age_seconds), now, wall)
        left = self._proof.fresh_at + self._ask_after_seconds - now if complete and connected else -math.inf
        self.glance.trust(now, wall, left)
        if self.synced != was_synced:
            self._since = wall

    def mark_incomplete(self) -> None:
        """Say only what is revoked until the next proof: the feed carried what this version does not understand."""
        self._complete = False
        self.glance.trust(self._monotonic(), self._wall(), -math.inf)

    def mark_disconnected(self) -> None:
        """Have the service asked from now on; memory decides only where the service does not answer."""
        if self.synced:
            self._since = self._wall()
        self._connected = False
        self.glance.trust(self._monotonic(), self._wall(), -math.inf)

    def mark_unproven(self) -> None:
        """Take back every proof: from now on memory says only what is revoked."""
        self.mark_disconnected()
        self._proof, self._since = _Proof(), self._wall()

    def age(self) -> float:
        """Return for how many seconds a revocation may have been acknowledged and be unknown here; inf if unproven."""
        return self._monotonic() - self._proof.fresh_at

    def forget(self) -> None:
        """Drop some of the revocations that have ended."""
        self._mirror.expire(self._expiry_clock.now(), FORGOTTEN_AT_ONCE)

    def status(self, last_error: str | None) -> MirrorStatus:
        """Return the state at this moment."""
        age, since = self.age(), self._since
        name: Name = "synced" if self.synced else "stale" if math.isfinite(age) else "connecting"
        if name == "stale" and self._connected:
            since = max(since, self._wall() - (age - self._ask_after_seconds))
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
