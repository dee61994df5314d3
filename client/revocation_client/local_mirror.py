"""What a process can say about tokens from its own memory, and for how long that may be believed. Does no I/O.

"Revoked" may always be believed, because a revocation is final. "Not revoked" needs a recent proof that nothing is
missing. While the feed is connected and the proof is at most `ASK_AFTER_SECONDS` old, memory answers by itself
(`verdict`). Otherwise the service is asked first. If it does not answer, memory decides until
`max_staleness_seconds` after the proof (`verdict` with `alone=False`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from revocation_client.claims import CLAIMS
from revocation_client.counters import Counters
from revocation_client.expiry_clock import ExpiryClock
from revocation_client.jwt_reader import HASH_PREFIX
from revocation_client.mirror import SHARDS, Mirror
from revocation_client.questions import CheckRequest
from revocation_client.results import Verdict
from revocation_client.revocation import Revocation, iat_unusable
from revocation_client.schema import VALUE_MAX_CHARACTERS

ASK_AFTER_SECONDS: Final = 3.0
"""Age of the last proof from which the service is asked, although the feed is connected: it may have gone silent."""

Clock = Callable[[], float]
"""Returns seconds."""


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """The state of the memory at one moment."""

    name: Literal["connecting", "synced", "stale"]
    """`synced`: the feed is connected and fresh; `stale`: it was, and the service is asked; `connecting`: not yet."""
    since: float
    """When that began, in epoch seconds."""
    last_error: str | None
    """Why the last stream ended, or could not be opened; None while one goes on."""
    age_seconds: float | None
    """For how long a revocation may have been acknowledged and be missing here; None if nothing was proven yet."""
    entries: int
    """Number of revocations held, including ended ones that are not removed yet."""
    complete: bool
    """False while the feed does not carry everything (foreign writers), or was not understood.

    Memory then says only what is revoked.
    """


class _Proof(NamedTuple):
    """What is proven of the mirror. It is replaced as a whole, so every thread sees one consistent state."""

    since: float
    """Wall time at which the feed was connected or disconnected."""
    monotonic: float = -math.inf
    wall: float = -math.inf
    """The time until which nothing is missing, by both clocks."""
    connected: bool = False
    complete: bool = True


class LocalMirror:
    """The revocations that this process knows of. Any thread may look them up; one thread adds them."""

    def __init__(
        self,
        max_staleness_seconds: float,
        counters: Counters,
        wall: Clock,
        monotonic: Clock,
        *,
        expiry_clock: ExpiryClock | None = None,
    ) -> None:
        self.revocations = Mirror()
        self.last_error: str | None = None
        """Why the last stream ended or could not be opened; None once a later one is synced."""
        self._expiry_clock = expiry_clock or ExpiryClock(wall, monotonic)
        self._max_staleness_seconds = max_staleness_seconds
        self._ask_after_seconds = min(ASK_AFTER_SECONDS, max_staleness_seconds)
        self._counters = counters
        self._wall = wall
        self._monotonic = monotonic
        self._proof = _Proof(wall())
        self._members = [(member, name) for name, claim in CLAIMS.items() for member in claim.members]
        self._every_token = [name for name, claim in CLAIMS.items() if not claim.members]

    def _holds(self, proof: _Proof, max_age_seconds: float) -> bool:
        """Return whether a proof is recent enough by both clocks: one may stop while the machine is suspended."""
        wall = self._wall() - proof.wall
        return self._monotonic() - proof.monotonic <= max_age_seconds and 0 <= wall <= max_age_seconds

    def _is_synced(self, proof: _Proof) -> bool:
        return proof.connected and self._holds(proof, self._ask_after_seconds)

    @property
    def synced(self) -> bool:
        """True while the feed is connected and its last proof is at most `ASK_AFTER_SECONDS` old."""
        return self._is_synced(self._proof)

    def admits(self, question: object) -> bool:
        """Return whether memory alone says that a token with these claims is not revoked: the fast path.

        False if memory cannot tell, or if anything about the claims is unusual: `verdict` then checks them in full.
        This repeats the code of `_is_synced` and `Mirror.holds`, because calling them took a fifth of the time.
        """
        _since, monotonic, wall, connected, complete = self._proof  # before the lookups: a later proof must not count
        age, wall_age, most = self._monotonic() - monotonic, self._wall() - wall, self._ask_after_seconds
        if type(question) is not dict or not (connected and complete and age <= most and 0 <= wall_age <= most):
            return False
        held = self.revocations.shards
        for member, name in self._members:
            value = question.get(member)
            if value is None:
                if name == "jti":
                    return False
                continue
            if type(value) is not str or not value.isprintable() or not 0 < len(value) <= VALUE_MAX_CHARACTERS:
                return False
            if name in held and value in held[name][(hash(value) >> 20) % SHARDS][0]:
                return False
        if question["jti"].startswith(HASH_PREFIX):
            return False
        for name in self._every_token:
            if name in held and self.revocations.holds(name, ""):
                return False
        self._counters.mirror_not_revoked += 1
        return True

    def can_decide(self, asked: CheckRequest, *, alone: bool = False) -> bool:
        """Return whether memory may say "not revoked" if the service does not answer; with `alone`, before it is asked.

        Memory never says so of a whole token, because only the service can tell whether the token is genuine.
        """
        proof = self._proof
        if asked.token is not None or not proof.complete:
            return False
        return self._is_synced(proof) if alone else self._holds(proof, self._max_staleness_seconds)

    def verdict(self, asked: CheckRequest, *, alone: bool = True) -> Verdict | None:
        """Return the verdict of memory; None if it knows no revocation and may not say "not revoked" (`can_decide`)."""
        return self._verdict(asked, may_deny=self.can_decide(asked, alone=alone))

    def compared(self, asked: CheckRequest, said: Verdict) -> Verdict:
        """Learn from the service's verdict. Return it, or "revoked" if memory meanwhile knows a covering revocation."""
        if said.revocation is not None:
            self.learn(said.revocation)
        return said if said.revoked else self._verdict(asked, may_deny=False) or said

    def _verdict(self, asked: CheckRequest, *, may_deny: bool) -> Verdict | None:
        """Look the token up. `may_deny` is decided before the lookup: a proof that arrives meanwhile must not count."""
        wall, claims = self._wall(), asked.claims
        found = self.revocations.covering(claims, wall, self._expiry_clock.now)
        if found is None and not may_deny:
            return None
        self._counters.mirror_revoked += found is not None
        self._counters.mirror_not_revoked += found is None
        return Verdict(
            revoked=found is not None,
            source="mirror",
            revocation=found,
            considered=claims.considered,
            expired=None if asked.token is None else asked.token.exp is not None and asked.token.exp <= wall,
            stale_seconds=self._age_seconds(),
            iat_unusable=iat_unusable(found, claims, wall, self.revocations.skew_seconds),
        )

    def learn(self, *revocations: Revocation) -> None:
        """Add revocations; none is removed before its end."""
        for revocation in revocations:
            self.revocations.add(revocation, self._expiry_clock.now())

    def expire(self) -> None:
        """Remove some of the revocations that have ended."""
        self.revocations.expire(self._expiry_clock.now())

    def mark_fresh(self, age_seconds: float, *, complete: bool, connected: bool) -> None:
        """Record a proof that memory holds everything acknowledged until `age_seconds` ago.

        `complete=False` means that the feed does not carry everything. `connected=False` means that the service has to
        be asked although the feed goes on: it is shutting down, or does not know how far it is behind.
        """
        proof, monotonic, wall = self._proof, self._monotonic(), self._wall()
        since = proof.since if connected == proof.connected else wall
        times = max(proof[1:3], (monotonic - age_seconds, wall - age_seconds))
        self._proof = _Proof(since, *times, connected, complete)

    def mark_disconnected(self) -> None:
        """Record that the feed is not current: memory now decides only if the service does not answer."""
        if self._proof.connected:
            self._proof = self._proof._replace(since=self._wall(), connected=False)

    def mark_unproven(self) -> None:
        """Take back every proof: from now on memory says only what is revoked."""
        self._proof = _Proof(self._wall())

    def _age_seconds(self) -> float | None:
        age = self._monotonic() - self._proof.monotonic
        return age if math.isfinite(age) else None

    def status(self) -> MirrorStatus:
        """Return the state at this moment."""
        proof, age, since = self._proof, self._age_seconds(), self._proof.since
        name: Literal["connecting", "synced", "stale"] = "connecting" if age is None else "stale"
        if self._is_synced(proof):
            name = "synced"
        elif proof.connected:  # and silent
            since = max(since, proof.wall + self._ask_after_seconds)
        return MirrorStatus(name, since, self.last_error, age, len(self.revocations), proof.complete)
