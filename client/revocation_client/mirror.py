"""The live revocations in memory: what they cover, and when they end. Pure: it does no I/O and is told the time.

Entries are only added and merged. An entry is removed after its expiry, never because it is missing somewhere, so
order, duplicates and late snapshots do no harm.

Two times are told. `now` in `add`, `held`, `entries` and `expire`, and `alive_at` in `covering`, decide whether a
revocation has ended: callers pass the time of an `ExpiryClock`. `now` in `covering` decides whether a token's `iat` is
ahead of the present: callers pass the wall clock's time.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final

from revocation_client.model import (
    CLAIM_NAMES,
    DEFAULT_CLOCK_SKEW_SECONDS,
    ClaimName,
    Claims,
    Revocation,
    issued_at,
)
from revocation_client.sieve import SHARD_BITS, SHARDS, Sieve

DUE_SECONDS: Final = 300
"""How far apart two ends may be and still be looked at together."""

NEVER: Final = 1 << 40
"""The end, in epoch seconds, of what has none."""

PIECE: Final = 64

SHARED_ENDS: Final = 4096
"""How many ends are remembered, so that revocations that end in the same second share one object."""

Entry = int | tuple[int, float]
"""The epoch second, rounded up, in which a revocation ends; with its cutoff, where it has one."""

HASH_BITS: Final = (1 << 60) - 1
"""The bits of a hash that are kept: as many as an int of Python holds in two of its digits."""


class Due:
    """Keys to be looked at together, in pieces that the garbage collector need not look through again and again."""

    __slots__ = ("_open", "_pieces")

    def __init__(self) -> None:
        self._open: list[Hashable] = []
        self._pieces: list[tuple[Hashable, ...]] = []
        """It leaves tuples of nothing but texts and numbers alone once it has seen them; lists it never does."""

    def __bool__(self) -> bool:
        return bool(self._open or self._pieces)

    def append(self, key: Hashable) -> None:
        """One more."""
        self._open.append(key)
        if len(self._open) == PIECE:
            self._pieces.append(tuple(self._open))
            self._open = []

    def pop(self) -> Hashable:
        """One less."""
        if not self._open:
            self._open = list(self._pieces.pop())
        return self._open.pop()


class Table:
    """The revocations of one claim, by value.

    With `whole_values` it can say what it holds. Without, it keeps 60 bits of hash of each value, and takes two values
    of one hash for one another: among a million, once in a million million questions about a value that is not there.
    Python's hash of a text is keyed by the process (PEP 456), so nobody can look for such a pair.
    """

    __slots__ = ("_due", "_ends", "_hash_of", "_shards", "_whole_values", "sieve")

    def __init__(self, *, whole_values: bool) -> None:
        self._whole_values = whole_values
        self._shards: list[dict[Hashable, Entry]] = [{} for _ in range(SHARDS)]
        self._hash_of: Callable[[Any], int] = hash if whole_values else int
        self.sieve = Sieve(self._hash_of)
        self._due: dict[int, Due] = {}
        """Each key once: at the time of its end, or of an earlier end that it had."""
        self._ends: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def may_hold(self, value: str) -> bool:
        """False: there is none of `value`, not even one that has ended."""
        return self.sieve.lets_through(hash(value)) and self.get(value) is not None

    def get(self, value: str) -> Entry | None:
        """The revocation of `value`, which may have ended."""
        hashed = hash(value)
        return self._shards[hashed & SHARD_BITS].get(value if self._whole_values else hashed & HASH_BITS)

    def put(self, value: str, end: int, cutoff: float | None) -> None:
        """Have this, and nothing else, under `value`; no end may be earlier than one that lives there."""
        hashed = hash(value)
        key: Hashable = value if self._whole_values else hashed & HASH_BITS
        shard = self._shards[hashed & SHARD_BITS]
        if key not in shard:  # what fails here, for want of memory, is done again when this comes again
            self.sieve.add(hashed, shard)
            self._look_again(key, end)
        end = self._shared(end)
        shard[key] = end if cutoff is None else (end, cutoff)

    def _look_again(self, key: Hashable, end: int) -> None:
        due = self._due.get(end // DUE_SECONDS)
        if due is None:
            due = self._due[end // DUE_SECONDS] = Due()
        due.append(key)

    def _shared(self, end: int) -> int:
        if len(self._ends) >= SHARED_ENDS:
            self._ends.clear()
        return self._ends.setdefault(end, end)

    def expire(self, now: float, most: int) -> int:
        """Forget what ended some minutes ago, looking at no more than `most`; how many more it could have been."""
        present = int(now) // DUE_SECONDS
        for past in [each for each in self._due if each < present]:
            due = self._due[past]
            while due and most > 0:
                self._forget(due.pop(), present)
                most -= 1
            if not due:
                del self._due[past]
        return most

    def _forget(self, key: Hashable, present: int) -> None:
        """Forget a key, or look again later where its life was made longer."""
        shard = self._shards[self._hash_of(key) & SHARD_BITS]
        entry = shard.get(key)
        if entry is None:  # it was to be put, and that failed
            return
        if _end(entry) // DUE_SECONDS < present:
            del shard[key]
        else:
            self._look_again(key, _end(entry))

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """What is there, if it has whole values; what is put meanwhile may be left out."""
        for shard in self._shards:
            for key in list(shard):
                entry = shard.get(key)
                if entry is not None and isinstance(key, str):
                    yield key, entry


class Mirror:
    """The revocations of all claims."""

    def __init__(
        self,
        *,
        whole_values: bool = False,
        skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS,
        late_seconds: float = 0,
    ) -> None:
        self.skew_seconds = skew_seconds
        """By how much issuers' clocks may be ahead."""
        self._late_seconds = late_seconds
        """For how long after its end a revocation is still taken and told: the clock here may be ahead of others'."""
        self._whole_values = whole_values
        self.tables: dict[ClaimName, Table] = {claim: Table(whole_values=whole_values) for claim in CLAIM_NAMES}
        self.others: list[tuple[int, Table]] = []
        """Where values of the other `CLAIM_NAMES` may be found: only what was ever put in is looked at."""

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def add(self, revocation: Revocation, now: float) -> bool:
        """Merge a revocation into the held one (`model.merge`). Return whether that changed anything."""
        claim, cutoff = revocation.claim, revocation.issued_before
        end = _rounded_up(revocation.expires_at)
        if end < now - self._late_seconds:
            return False
        table = self.tables[claim]
        held = table.get(revocation.value)
        if held is not None and _end(held) >= now:
            merged = max(end, _end(held)), _later(cutoff, _cutoff(held))
            if merged == (_end(held), _cutoff(held)):
                return False
            end, cutoff = merged
        if claim != "jti":
            self._look_for(claim)
        table.put(revocation.value, end, cutoff)
        return True

    def _look_for(self, claim: ClaimName) -> None:
        here = CLAIM_NAMES.index(claim), self.tables[claim]
        if here not in self.others:
            self.others.append(here)

    def covering(self, claims: Claims, now: float, *, alive_at: float | None = None) -> Revocation | None:
        """Return a held revocation that covers a token with these claims (`model.covers`); None if there is none.

        `alive_at` decides which revocations have ended, and defaults to `now`.
        """
        jti, sid, sub, client_id, _iat, considers_all = claims
        alive_at = now if alive_at is None else alive_at
        if jti is not None and self.tables["jti"].may_hold(jti):
            return self._covering(claims, now, alive_at)
        if self.others and self._others_may_hold(jti, sid, sub, client_id, "" if considers_all else None):
            return self._covering(claims, now, alive_at)
        return None

    def _others_may_hold(self, *values: str | None) -> bool:
        """Whether one of these, given in the order of `CLAIM_NAMES`, may be held under another claim than `jti`."""
        for claim, table in self.others:
            value = values[claim]
            if value is not None and table.may_hold(value):
                return True
        return False

    def _covering(self, claims: Claims, now: float, alive_at: float) -> Revocation | None:
        for claim, value in claims.identifiers():
            entry = self.tables[claim].get(value)
            if entry is None or _end(entry) < alive_at:
                continue
            cutoff = _cutoff(entry)
            if cutoff is None or issued_at(claims.iat, now, self.skew_seconds) <= cutoff:
                return _revocation(claim, value, entry)
        return None

    def held(self, claim: ClaimName, value: str, now: float) -> Revocation | None:
        """Return the live revocation of this claim and value; None if there is none."""
        entry = self.tables[claim].get(value)
        return None if entry is None or _end(entry) < now else _revocation(claim, value, entry)

    def expire(self, now: float, most: int = 10_000) -> None:
        """Remove revocations that have ended, looking at no more than `most`. Call it about once a second."""
        for table in self.tables.values():
            most = table.expire(now - self._late_seconds, most)

    def entries(self, now: float) -> Iterator[Revocation]:
        """Yield the live revocations of a mirror with `whole_values`. One that is added meanwhile may be left out."""
        for claim, table in self.tables.items():
            for value, entry in table.entries():
                if _end(entry) >= now:
                    yield _revocation(claim, value, entry)


def _rounded_up(expires_at: float | None) -> int:
    return NEVER if expires_at is None or expires_at >= NEVER else math.ceil(expires_at)


def _end(entry: Entry) -> int:
    return entry if isinstance(entry, int) else entry[0]


def _cutoff(entry: Entry) -> float | None:
    return None if isinstance(entry, int) else entry[1]


def _later(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _revocation(claim: ClaimName, value: str, entry: Entry) -> Revocation:
    end = _end(entry)
    expires_at = None if end == NEVER else float(end)
    return Revocation(claim, value, expires_at=expires_at, revoked_at=None, issued_before=_cutoff(entry))
