"""A model of Redis and its Lua scripts in Python, the twin; `test_twin.py` compares it with the real scripts.

Times are Unix times in seconds, on the server's clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from revocation_client.claims import ClaimName
from revocation_client.revocation import Revocation
from revocation_client.schema import Result
from revocation_service.replication.epoch import GRACE_SECONDS, PENDING_SECONDS, Key
from revocation_service.store.cursor import Cursor
from tests.merging import merge

TOLERANCE_SECONDS: Final = 2.0
UNDER_WAY_SECONDS: Final = 1.0
"""How long a request may take to arrive; this is added to the allowed skew of the clocks."""


@dataclass(frozen=True)
class Shared:
    """The arguments that all revocations of one call of merge.lua share; times are in seconds."""

    max_lifetime: float = 2_592_000
    leeway: float = 0
    skew: float = 60
    nonce: str = "n"
    log_max: int = 100_000
    restore: bool = False
    wall: float | None = None
    """The time on the caller's clock."""


@dataclass(frozen=True)
class Asked:
    """One revocation that merge.lua is asked to merge; members that are None are not sent."""

    claim: ClaimName
    value: str
    exp: float | None = None
    expires_in: float | None = None
    issued_before: float | None = None
    cutoff_is_now: bool | None = None
    reason: str | None = None
    revoked_by: str | None = None
    revoked_at: float | None = None
    expires_at: float | None = None

    @property
    def key(self) -> Key:
        """The claim and the value of the revocation."""
        return self.claim, self.value


@dataclass(frozen=True)
class Merged:
    """The reply of merge.lua for one revocation; `record` is None if nothing was stored."""

    result: Result | str
    record: Revocation | None = None
    was_foreign: bool = False
    changed: bool = False


@dataclass(frozen=True)
class LogEntry:
    """One entry of the log; an entry without a change only gives readers a cursor."""

    cursor: Cursor
    change: Revocation | None


@dataclass(frozen=True)
class BeatReply:
    """The reply of beat.lua."""

    epoch: str
    pending: frozenset[str]
    end: Cursor | None
    there: bool
    first: Cursor | None = None
    """The first entry of the log, if the cursor's entry is not in the log."""


@dataclass
class Twin:
    """One Redis master. A record without `revoked_at` is foreign."""

    life: str
    records: dict[Key, Revocation] = field(default_factory=dict)
    log: list[LogEntry] = field(default_factory=list)
    epoch: str | None = None
    epoch_life: str | None = None
    pending: dict[str, float] = field(default_factory=dict)
    """When the mark of each pending epoch ends."""
    last_id: tuple[int, int] = (0, 0)

    def copy(self) -> "Twin":
        """Return a copy of the data, as a snapshot or a replica has it."""
        return replace(self, records=dict(self.records), log=list(self.log), pending=dict(self.pending))

    # beat.lua

    def beat(
        self,
        now: float,
        name: str,
        restored_epoch: str | None,
        cursor: Cursor | None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> BeatReply:
        """Answer a heartbeat."""
        if self.epoch is None or self.epoch_life != self.life:
            self._begin_epoch(now, name, grace_seconds)
        assert self.epoch is not None
        if restored_epoch is not None and restored_epoch != self.epoch:
            self.pending[restored_epoch] = now + PENDING_SECONDS
        latest = now + PENDING_SECONDS
        self.pending = {epoch: min(ends, latest) for epoch, ends in self.pending.items() if ends > now}
        if not self.log:
            self.append(now, name, None)
        end = self.log[-1].cursor if self.log else None
        there = self.holds(cursor)
        first = self.log[0].cursor if self.log and not there else None
        return BeatReply(self.epoch, frozenset(self.pending), end, there, first)

    def _begin_epoch(self, now: float, name: str, grace_seconds: float) -> None:
        self.epoch, self.epoch_life = name, self.life
        self.pending = {name: now + grace_seconds} if grace_seconds else {}

    # The log

    def append(self, now: float, nonce: str, change: Revocation | None, log_max: int | None = None) -> None:
        """Append an entry, with an id greater than that of the last one."""
        milliseconds, sequence = self.last_id
        clock = int(now * 1000)
        self.last_id = (clock, 0) if clock > milliseconds else (milliseconds, sequence + 1)
        self.log.append(LogEntry(Cursor(*self.last_id, nonce), change))
        if log_max is not None:
            del self.log[:-log_max]

    def holds(self, cursor: Cursor | None) -> bool:
        """Return whether the log has the entry of this cursor."""
        return any(entry.cursor == cursor for entry in reversed(self.log))

    def behind(self, cursor: Cursor) -> list[LogEntry]:
        """Return the entries with a greater id, as XREAD does."""
        return [entry for entry in self.log if entry.cursor[:2] > cursor[:2]]

    # ask.lua

    def missing(self, now: float, told: Iterable[tuple[Key, float | None]]) -> list[Key]:
        """Return which of these keys are absent, or end more than 2 s earlier than told."""
        return [key for key, ends in told if self._lacks(now, key, ends)]

    def _lacks(self, now: float, key: Key, ends: float | None) -> bool:
        stored = self._live(now, key)
        if stored is None:
            return True
        return ends is not None and stored.expires_at is not None and stored.expires_at < ends - TOLERANCE_SECONDS

    def _live(self, now: float, key: Key) -> Revocation | None:
        stored = self.records.get(key)
        if stored is None or (stored.expires_at is not None and stored.expires_at <= now):
            return None
        return stored

    # merge.lua

    def merge(self, now: float, shared: Shared, asked: Sequence[Asked]) -> list[Merged]:
        """Merge each revocation into its record, and append the changes to the log."""
        return [self._merge(now, shared, each) for each in asked]

    def _merge(self, now: float, shared: Shared, asked: Asked) -> Merged:
        record = requested(now, shared, asked)
        if isinstance(record, str):
            return Merged(record)
        stored, result = self._live(now, asked.key), "revoked"
        if stored is not None:
            if shared.restore:
                record = _rounded_down(record, stored)
            result = "revoked" if covers_more(stored, record) else "already_revoked"
            record = merge(stored, record)
        changed = record != stored
        if record.revoked_at is None:
            record = record._replace(revoked_at=now)
        if changed:
            self.append(now, shared.nonce, record._replace(reason=None, revoked_by=None), shared.log_max)
        if changed or not shared.restore:
            self.records[asked.key] = record
        return Merged(result, record, stored is not None and stored.revoked_at is None, changed)


def requested(now: float, shared: Shared, asked: Asked) -> Revocation | str:
    """Return the record that is asked for, or the result that says why there is none."""
    wall = now if shared.wall is None else shared.wall
    if abs(wall - now) > shared.skew + UNDER_WAY_SECONDS:
        return "clocks_differ"
    present = max(now, wall)
    cutoff = present if asked.issued_before is None and asked.cutoff_is_now else asked.issued_before
    if cutoff is not None and cutoff > present + shared.skew and not shared.restore:
        return "issued_before_too_far"
    ends = asked.expires_at if asked.expires_at is not None else _end(now, shared, asked, cutoff)
    if ends is None:
        return "exp_too_far"
    if ends <= now:
        return "expired"
    revoked_at = asked.revoked_at if asked.revoked_at is not None or shared.restore else now
    return Revocation(asked.claim, asked.value, ends, revoked_at, cutoff, asked.reason, asked.revoked_by)


def _end(now: float, shared: Shared, asked: Asked, cutoff: float | None) -> float | None:
    dies_at = asked.exp
    if asked.expires_in is not None:
        dies_at = max(dies_at or 0, now + asked.expires_in)
    if dies_at is None:
        return max(now, cutoff or now) + shared.max_lifetime + shared.leeway
    return None if dies_at > now + shared.max_lifetime + shared.skew else dies_at + shared.leeway


def _rounded_down(record: Revocation, stored: Revocation) -> Revocation:
    """Return a restored record with the stored end, if its own is at most 2 s later, as mirrors round ends up."""
    ends, ended = record.expires_at, stored.expires_at
    rounded = ends is not None and ended is not None and ends <= ended + TOLERANCE_SECONDS
    return record._replace(expires_at=ended) if rounded else record


def covers_more(stored: Revocation, record: Revocation) -> bool:
    """Return whether the record revokes any token that the stored one does not."""
    before, after = stored.issued_before, record.issued_before
    return before is not None and (after is None or after > before)
