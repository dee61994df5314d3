"""The live revocations in memory. Pure: it does no I/O and is told the time.

Entries are only added and merged. An entry is removed after its expiry, never because it is missing elsewhere, so
order, duplicates and late snapshots do no harm.

Callers pass times of two clocks. An `ExpiryClock` decides whether a revocation has ended: it gives `alive_at` in
`covering`, and `now` in all other methods. The wall clock decides whether a token's `iat` is ahead of the present: it
gives `now` in `covering`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final

from revocation_client.claims import ClaimName, Claims
from revocation_client.revocation import DEFAULT_CLOCK_SKEW_SECONDS, Revocation, issued_at, later

SHARDS: Final = 64
"""Pairs of dictionaries a claim. To grow one copies it, and a sweep walks through one: each takes milliseconds."""

SWEPT_ENTRIES: Final = 10_000
"""How many entries a sweep walks through, about: a millisecond."""

Shard = tuple[dict[str, float], dict[str, float]]
"""When the revocations by some values end (epoch seconds rounded up, or inf), and the cutoffs of those that have one.

Numbers alone take less memory than records, and no garbage collection walks through them.
"""


class Mirror:
    """The revocations of all claims. Any thread may look them up; one thread changes them."""

    def __init__(self, *, skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS, late_seconds: float = 1.0) -> None:
        self.skew_seconds = skew_seconds
        """By how much issuers' clocks may be ahead."""
        self._late_seconds = late_seconds
        """How long after its end a revocation is held: other clocks may be behind, and a thread may be reading it."""
        self.shards: dict[ClaimName, list[Shard]] = {}
        """By claim; a claim of which nothing was held yet is missing."""
        self._swept = 0
        """Index of the shards that were swept last."""

    def __len__(self) -> int:
        return sum(len(ends) for shards in self.shards.values() for ends, _cutoffs in shards)

    def holds(self, claim: ClaimName, value: str) -> bool:
        """Return whether a revocation by this claim and value is held. It may have ended."""
        shards = self.shards.get(claim)
        return shards is not None and value in shards[(hash(value) >> 20) % SHARDS][0]

    def get(self, claim: ClaimName, value: str) -> tuple[float, float | None] | None:
        """Return the end and the cutoff of the revocation by this claim and value. It may have ended."""
        shards = self.shards.get(claim)
        if shards is None:
            return None
        ends, cutoffs = shards[(hash(value) >> 20) % SHARDS]  # dictionaries use the low bits
        end = ends.get(value)
        return None if end is None else (end, cutoffs.get(value))

    def add(self, revocation: Revocation, now: float) -> bool:
        """Merge a revocation into the held one: the later end and cutoff. Return whether that changed anything."""
        claim, value, expires_at = revocation.claim, revocation.value, revocation.expires_at
        end, cutoff = math.inf if expires_at is None else float(math.ceil(expires_at)), revocation.issued_before
        if end < now - self._late_seconds:
            return False
        held = self.get(claim, value)
        if held is not None and held[0] >= now:
            if end < now:  # an ended revocation must not widen a live one
                return False
            end, cutoff = max(end, held[0]), later(cutoff, held[1])
            if (end, cutoff) == held:
                return False
        if claim not in self.shards:
            self.shards[claim] = [({}, {}) for _ in range(SHARDS)]
        ends, cutoffs = self.shards[claim][(hash(value) >> 20) % SHARDS]
        if cutoff is None:
            cutoffs.pop(value, None)
        else:
            cutoffs[value] = cutoff
        ends[value] = end  # last: other threads look for a cutoff only where they find an end
        return True

    def covering(self, claims: Claims, now: float, alive_at: Callable[[], float] | None = None) -> Revocation | None:
        """Return a held revocation that covers a token with these claims (`revocation.covers`); None if none does.

        It must be live at `alive_at()`, by default at `now`. `alive_at` is called only when an entry is found.
        """
        for claim, value in claims.identifiers:
            if (found := self.get(claim, value)) is None:
                continue
            (end, cutoff), alive = found, now if alive_at is None else alive_at()
            if end >= alive and (cutoff is None or issued_at(claims.iat, now, self.skew_seconds) <= cutoff):
                return self.held(claim, value, alive)
        return None

    def held(self, claim: ClaimName, value: str, now: float) -> Revocation | None:
        """Return the live revocation of this claim and value; None if there is none."""
        end, cutoff = self.get(claim, value) or (-math.inf, None)
        return None if end < now else Revocation(claim, value, None if end == math.inf else end, None, cutoff)

    def expire(self, now: float) -> None:
        """Remove ended revocations, shard by shard, until all are swept or enough entries have been seen.

        The next call goes on from there.
        """
        oldest, seen = now - self._late_seconds, 0
        for _ in range(SHARDS):
            self._swept = (self._swept + 1) % SHARDS
            for ends, cutoffs in [shards[self._swept] for shards in self.shards.values()]:
                seen += len(ends)
                for value in [value for value, end in ends.items() if end < oldest]:
                    del ends[value]
                    cutoffs.pop(value, None)
            if seen > SWEPT_ENTRIES:
                return

    def entries(self, now: float) -> Iterator[Revocation]:
        """Yield the live revocations. One that is added meanwhile may be left out."""
        for claim, shards in [*self.shards.items()]:
            for ends, _cutoffs in shards:
                for value in list(ends):
                    if (found := self.held(claim, value, now)) is not None:
                        yield found
