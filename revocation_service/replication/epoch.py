"""What one worker concludes from what Redis tells it: the decisions of the replication protocol.

Pure: no I/O and no clock. All times are seconds on the worker's monotonic clock. The rules that the docstrings name are
those of docs/architecture.md, "Replication".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from revocation_client.claims import ClaimName
from revocation_service.store.cursor import Cursor

WITNESS_SECONDS: Final = 60.0
"""A worker that was in sync this recently still counts as complete in a new epoch (rule 5)."""

RECENT_SECONDS: Final = 90.0
"""How long a revocation counts as recently learned (rule 7); more than WITNESS_SECONDS, as rule 5 relies on it."""

PENDING_SECONDS: Final = 5.0
"""How long one heartbeat keeps the pending restore of an older epoch marked (rule 3)."""

GRACE_SECONDS: Final = 3.0
"""How long a new epoch itself stays pending, so that others can report (rule 3); 0 for the private embedded Redis."""

LEAST_HEARTBEAT_SECONDS: Final = 2.0
"""A heartbeat counts at least this long, also where a smaller staleness limit is set for the mirror."""

Key = tuple[ClaimName, str]
"""The claim and the value of a revocation."""

Source = Literal["write", "log", "scan"]
"""How the worker learned of a revocation: it wrote it itself, read it in the log, or found it by a scan."""

Reason = Literal["no_heartbeat", "store_in_doubt", "joining", "mirror_stale"]
"""What limits a worker, for /readyz.

- no_heartbeat: no heartbeat has counted within the staleness limit, so no read of Redis can mean "not revoked";
- store_in_doubt: another worker may have to write something back, so no read of Redis can mean "not revoked";
- joining: Redis decides; the mirror is not complete yet, and would not answer if Redis went away;
- mirror_stale: Redis decides; the mirror is complete, but was last in sync longer ago than the staleness limit.
"""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The reply to a heartbeat that counts (rule 4)."""

    began_at: float
    """When the worker began to send it; what it proves, it proves as of this moment."""
    ended_at: float
    """When the worker had the reply."""
    epoch: str
    pending: frozenset[str]
    """The epochs for which some worker may not have restored yet what it held."""
    end: Cursor | None
    """The last entry of the log; None only where Redis is full or read-only and the log is empty."""
    cursor: Cursor | None
    """The cursor that was sent with it."""
    there: bool
    """Whether the entry of that cursor was still in the log."""
    first: Cursor | None = None
    """The first entry of the log, where it was not."""


class SyncState:
    """What one worker knows of the epochs, of its mirror and of its place in the log."""

    def __init__(
        self,
        max_staleness_seconds: float,
        *,
        witness_seconds: float = WITNESS_SECONDS,
        recent_seconds: float = RECENT_SECONDS,
    ) -> None:
        self.cursor: Cursor | None = None
        """The entry up to which the tail has read; None: a scan has to begin first."""
        self.restored_epoch: str | None = None
        """The epoch for which this worker has restored everything it held (rule 8)."""
        self.scanning = False
        """True while the scan under way still counts; where it turns false, the scan has to start again (rule 6)."""
        self._max_staleness_seconds = max_staleness_seconds
        self._witness_seconds = witness_seconds
        self._recent_seconds = recent_seconds
        self._beat: Heartbeat | None = None
        self._is_outdated = False
        """Whether the cursor was lost since the last heartbeat: the log's end that it showed may be gone too."""
        self._witnessed: set[str] = set()
        self._restored_at = math.inf
        self._scanned_at = math.inf
        self._proof: Heartbeat | None = None
        self._in_sync_at = -math.inf
        self._recent: dict[Key, float] = {}

    @property
    def epoch(self) -> str | None:
        """The epoch that the last heartbeat showed; None before the first."""
        return self._beat.epoch if self._beat else None

    @property
    def complete(self) -> bool:
        """True if the worker witnessed this epoch (rules 5 and 10); otherwise it is joining."""
        return self.epoch in self._witnessed

    # Heartbeats

    def heard(self, beat: Heartbeat) -> None:
        """Process the reply to a heartbeat. Call this only for a heartbeat that counts (rule 4)."""
        if beat.epoch != self.epoch:
            self._enter(beat)
        self._beat, self._is_outdated = beat, False
        self._settle(beat)
        if beat.cursor == self.cursor and not beat.there:
            self._lose_cursor()
        if self.cursor is None and self.complete:
            self.cursor = beat.first  # what others revoke is read at once; the scan waits until nothing is pending
        self._consider(beat)

    def _enter(self, beat: Heartbeat) -> None:
        """Enter a new epoch (rule 5). What began before it counts for nothing (rule 6).

        The time since the worker was in sync is measured at the end of the heartbeat, because Redis may have run the
        heartbeat that late.
        """
        if beat.ended_at - self._in_sync_at <= self._witness_seconds:
            self._witnessed.add(beat.epoch)
        else:
            self._witnessed.clear()
        self._restored_at = math.inf
        self._proof = None
        self.scanning = False
        if self.restored_epoch is None:
            self.restored_epoch = beat.epoch  # rule 8: this worker has held nothing so far

    def _settle(self, beat: Heartbeat) -> None:
        """Record whether this epoch is restored (rule 8). If it is, forget what is no longer recent (rule 7)."""
        if beat.began_at > self._restored_at:
            self.restored_epoch = beat.epoch
        if self.restored_epoch == beat.epoch:
            self._forget_before(beat.began_at - self._recent_seconds)

    def _consider(self, beat: Heartbeat) -> None:
        """Keep the heartbeat as a proof until the tail reaches the log's end that the heartbeat showed (rule 10).

        A waiting proof is not replaced: under steady writes the tail would never catch up with the newest one.
        """
        if not beat.pending <= self._witnessed:
            self._proof = None
        elif beat.there and beat.began_at > self._scanned_at:
            self._proof = self._proof or beat
        self._prove()

    def _prove(self) -> None:
        proof = self._proof
        if proof and proof.end and self.cursor and self.cursor.reaches(proof.end):
            self._in_sync_at = proof.began_at
            self._witnessed.add(proof.epoch)
            self._proof = None

    # The tail (rule 9)

    def read(self, cursor: Cursor, epoch: str | None, *, there: bool) -> bool:
        """Return whether the entries of a read count (rule 6). The read started from `cursor`, and in `epoch`.

        `there` is whether the cursor's entry was still in the log after the read. If it was not, the cursor is lost.
        """
        if cursor != self.cursor or epoch != self.epoch:
            return False
        if not there:
            self._lose_cursor()
            self._is_outdated = True
        return there

    def reached(self, cursor: Cursor) -> None:
        """Record that the mirror has the entries up to this one. Do not await between `read` and this call."""
        self.cursor = cursor
        self._prove()

    def _lose_cursor(self) -> None:
        self.cursor = None
        self.scan_again()

    # Restoring and scanning

    def learned(self, key: Key, now: float, *, by: Source) -> None:
        """Add a revocation to the recently learned ones: it is new to the mirror or covers more than before (rule 7).

        If a scan found it, it is added only if the worker is complete.
        """
        if by != "scan" or self.complete:
            self._recent.pop(key, None)
            self._recent[key] = now

    def recent(self) -> Iterator[Key]:
        """Return the keys of what was learned recently, newest first."""
        return reversed(self._recent)

    def _forget_before(self, moment: float) -> None:
        while self._recent and self._recent[oldest := next(iter(self._recent))] < moment:
            del self._recent[oldest]

    def restore_due(self) -> bool:
        """Return whether what the mirror holds has to be written back (rule 5)."""
        return self.restored_epoch != self.epoch and self._restored_at == math.inf

    def restored(self, epoch: str | None, now: float) -> None:
        """Record that everything was written back by a restore that began in `epoch` (rules 6 and 8)."""
        if epoch == self.epoch:
            self._restored_at = now

    def scan_due(self) -> bool:
        """Return whether a scan is needed and may begin: the log has an end, and nothing is pending (rule 9)."""
        beat = self._beat
        if beat is None or beat.end is None or self._is_outdated:
            return False
        return self._scanned_at == math.inf and not beat.pending and self.restored_epoch == beat.epoch

    def scan_began(self) -> None:
        """Begin a scan. A worker without a cursor takes the log's end that the last heartbeat showed."""
        if self.cursor is None and self._beat is not None:
            self.cursor = self._beat.end
        self.scanning = True

    def scan_ended(self, now: float) -> None:
        """Record that the mirror has all that the scan found. Only later heartbeats can prove it in sync (rule 10)."""
        if self.scanning:
            self._scanned_at = now
        self.scanning = False

    def scan_again(self) -> None:
        """Record that the mirror may lack records: nothing proves it in sync before another scan has ended."""
        self._scanned_at = math.inf
        self._proof = None
        self.scanning = False

    def clock_jumped(self) -> None:
        """Record that the wall clock jumped: the mirror may have dropped live records, so it is not in sync."""
        self._in_sync_at = -math.inf
        self.scan_again()

    # Verdicts (rule 11)

    def accepts(self, now: float) -> bool:
        """Return whether a revocation may be acknowledged: a heartbeat has counted lately (rules 1 and 4)."""
        limit = max(self._max_staleness_seconds, LEAST_HEARTBEAT_SECONDS)
        return self._beat is not None and now - self._beat.began_at <= limit

    def believes(self, now: float) -> bool:
        """Return whether "no record in Redis" means "not revoked". Call it before the read of Redis."""
        return self.accepts(now) and not self._in_doubt

    @property
    def _in_doubt(self) -> bool:
        return self._beat is None or not self._beat.pending <= self._witnessed

    def staleness(self, now: float) -> float:
        """Return the seconds since the mirror was last proven in sync; infinity for a worker that is joining."""
        return now - self._in_sync_at if self.complete else math.inf

    def mirror_decides(self, now: float) -> bool:
        """Return whether the mirror may say "not revoked" on its own while Redis does not answer."""
        return self.staleness(now) <= self._max_staleness_seconds

    def feeds(self) -> bool:
        """Return whether the mirror may be served as a snapshot: complete, and no pending restore can add to it."""
        return self.complete and not self._in_doubt

    def reason(self, now: float) -> Reason | None:
        """Return what limits this worker at present; None if nothing does."""
        if not self.accepts(now):
            return "no_heartbeat"
        if self._in_doubt:
            return "store_in_doubt"
        if not self.complete:
            return "joining"
        return None if self.mirror_decides(now) else "mirror_stale"
