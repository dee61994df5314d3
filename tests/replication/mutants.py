"""Mutants of the protocol: subclasses of SyncState, Worker and Twin that break one rule each.

Each is named after what it does wrong. The rules are those of docs/architecture.md, "Replication".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from revocation_client.revocation import Revocation
from revocation_service.replication.epoch import Heartbeat, Key, Source, SyncState
from revocation_service.store.cursor import Cursor
from tests.replication.twin import Asked, BeatReply, Merged, Shared, Twin
from tests.replication.worker import Steps, Worker

# Mutants of the decisions


class TakesItselfForCompleteForEver(SyncState):
    """Breaks rule 5: once complete, it is complete in every new epoch, however long ago it was in sync."""

    def _enter(self, beat: Heartbeat) -> None:
        witnessed = set(self._witnessed)
        super()._enter(beat)
        if witnessed:
            self._witnessed |= witnessed | {beat.epoch}


class KeepsWhatItWitnessed(SyncState):
    """Breaks rule 5: keeps the set of witnessed epochs although it is joining."""

    def _enter(self, beat: Heartbeat) -> None:
        witnessed = set(self._witnessed)
        super()._enter(beat)
        self._witnessed |= witnessed


class MeasuresFromTheBeginning(SyncState):
    """Breaks rule 5: measures the time since it was in sync at the beginning of the heartbeat, not at its end."""

    def heard(self, beat: Heartbeat) -> None:
        super().heard(replace(beat, ended_at=beat.began_at))


class NeverWitnesses(SyncState):
    """Breaks rule 5: is joining in every new epoch, even if it was just in sync."""

    def _enter(self, beat: Heartbeat) -> None:
        super()._enter(beat)
        self._witnessed.clear()


class RestoresNothing(SyncState):
    """Breaks rule 5: counts a new epoch as restored at once."""

    def _enter(self, beat: Heartbeat) -> None:
        super()._enter(beat)
        self.restored_epoch = beat.epoch


class HidesThatItRestores(SyncState):
    """Breaks rule 8: reports the new epoch as its restored epoch before it has restored anything."""

    def _enter(self, beat: Heartbeat) -> None:
        first = self.restored_epoch is None
        super()._enter(beat)
        self.restored_epoch = beat.epoch
        self._restored_at = -math.inf if first else math.inf

    def restore_due(self) -> bool:
        return self._restored_at == math.inf


class SettlesWithAnEarlierHeartbeat(SyncState):
    """Breaks rule 8: lets a heartbeat that began before the end of a restore settle the restored epoch."""

    def _settle(self, beat: Heartbeat) -> None:
        if self._restored_at != math.inf:
            self.restored_epoch = beat.epoch
        super()._settle(beat)


class CountsARestoreOfAnotherEpoch(SyncState):
    """Breaks rule 6: counts a restore that began in another epoch as one of the present epoch."""

    def restored(self, epoch: str | None, now: float) -> None:
        super().restored(self.epoch, now)


class CountsAReadOfAnotherEpoch(SyncState):
    """Breaks rule 6: counts a read of the tail that began in another epoch."""

    def read(self, cursor: Cursor, epoch: str | None, *, there: bool) -> bool:
        return super().read(cursor, self.epoch, there=there)


class CountsAScanOfAnotherEpoch(SyncState):
    """Breaks rule 6: continues a scan that began in another epoch."""

    def _enter(self, beat: Heartbeat) -> None:
        scanning = self.scanning
        super()._enter(beat)
        self.scanning = scanning


class LetsGoOfTheRecentAtAnyHeartbeat(SyncState):
    """Breaks rule 7: shortens the list of recent revocations although the epoch is not restored yet."""

    def _settle(self, beat: Heartbeat) -> None:
        super()._settle(beat)
        self._forget_before(beat.began_at - self._recent_seconds)


class TakesNoScanForRecent(SyncState):
    """Breaks rule 7: does not count as recent what a complete worker found by a scan."""

    def learned(self, key: Key, now: float, *, by: Source) -> None:
        if by != "scan":
            super().learned(key, now, by=by)


class ReadsOnWithoutItsEntry(SyncState):
    """Breaks rule 9: does not check after a read whether the cursor's entry is still in the log."""

    def read(self, cursor: Cursor, epoch: str | None, *, there: bool) -> bool:
        return super().read(cursor, epoch, there=True)


class ScansBeforeItFollows(SyncState):
    """Breaks rule 9: does not follow the log during a scan, but from the log's end afterwards."""

    def read(self, cursor: Cursor, epoch: str | None, *, there: bool) -> bool:
        return not self.scanning and super().read(cursor, epoch, there=there)

    def scan_ended(self, now: float) -> None:
        self.cursor = self._beat.end if self._beat else None
        super().scan_ended(now)


class ScansWhilePending(SyncState):
    """Breaks rule 9: scans although an epoch is pending."""

    def scan_due(self) -> bool:
        beat = self._beat
        return self._scanned_at == math.inf and beat is not None and beat.end is not None


class ComparesIdsAlone(SyncState):
    """Breaks rule 10: takes every heartbeat to have found the cursor's entry, so that only ids are compared."""

    def heard(self, beat: Heartbeat) -> None:
        super().heard(replace(beat, there=True))


class ProvesByAHeartbeatWithinTheScan(SyncState):
    """Breaks rule 10: accepts as proof a heartbeat that began before the end of the scan."""

    def _consider(self, beat: Heartbeat) -> None:
        if beat.there and beat.pending <= self._witnessed:
            self._proof = self._proof or beat
        super()._consider(beat)

    def _prove(self) -> None:
        if self._scanned_at != math.inf:
            super()._prove()

    def scan_ended(self, now: float) -> None:
        super().scan_ended(now)
        self._prove()


class ProvesWhilePending(SyncState):
    """Breaks rule 10: accepts as proof a heartbeat that shows a pending epoch which the worker did not witness."""

    def _consider(self, beat: Heartbeat) -> None:
        super()._consider(replace(beat, pending=frozenset()))


class ProvesWithoutTheTail(SyncState):
    """Breaks rule 10: does not wait until the tail has read up to the log's end that the heartbeat showed."""

    def _prove(self) -> None:
        if self._proof and self.cursor:
            self._proof = replace(self._proof, end=self.cursor)
        super()._prove()


class ProvesWithTheNewestHeartbeatOnly(SyncState):
    """Breaks how rule 10 is implemented: a newer heartbeat replaces the proof that waits for the tail."""

    def _consider(self, beat: Heartbeat) -> None:
        self._proof = None
        super()._consider(beat)


class BelievesAnOldHeartbeat(SyncState):
    """Breaks rule 11: trusts reads of Redis however long ago the last heartbeat that counted began."""

    def believes(self, now: float) -> bool:
        return self._beat is not None and not self._in_doubt


class IgnoresWhatIsPending(SyncState):
    """Breaks rule 11: trusts reads of Redis whatever is pending."""

    def believes(self, now: float) -> bool:
        return self.accepts(now)


class BelievesItsMirrorForEver(SyncState):
    """Breaks rule 11: lets the mirror decide however long ago it was in sync."""

    def mirror_decides(self, now: float) -> bool:
        return self.complete


class BelievesItsMirrorWhileJoining(SyncState):
    """Breaks rule 11: lets the mirror decide after a recent heartbeat, even if it was never in sync."""

    def mirror_decides(self, now: float) -> bool:
        return self.accepts(now)


class IgnoresAJumpOfTheClock(SyncState):
    """Breaks the paragraph after rule 12: stays in sync although the wall clock jumped."""

    def clock_jumped(self) -> None:
        pass


# Mutants of the worker


class AcknowledgesFirst(Worker):
    """Breaks rule 1: acknowledges a revocation without adding it to the mirror."""

    def acknowledge(self, revocation: Revocation, acknowledge: Callable[[Key], None]) -> None:
        acknowledge((revocation.claim, revocation.value))


class AcceptsBeforeItsFirstHeartbeat(Worker):
    """Breaks rule 1: acknowledges a revocation although no heartbeat has counted recently."""

    def accepts(self) -> bool:
        return True


class CountsAnyHeartbeat(Worker):
    """Breaks rule 4: counts a heartbeat although no majority of the sentinels names its master."""

    def counts(self, named: bool) -> bool:
        return True


class AcknowledgesAWriteOfAnotherEpoch(Worker):
    """Breaks rule 6: does not repeat a write during which the epoch changed."""

    def safe(self, epoch: str | None) -> bool:
        return True


class RestoresTheRecentInTurn(Worker):
    """Breaks rule 7: restores recent revocations only together with all others."""

    def restore_recent(self) -> Steps:
        yield None


class RestoresTheRecentOnly(Worker):
    """Breaks rule 7: restores only recent revocations."""

    def restore_rest(self, epoch: str | None) -> Steps:
        yield None
        self.state.restored(epoch, self.clock())


class LooksAtWhatIsPendingLate(Worker):
    """Breaks rule 11: looks at what is pending after Redis has answered, not before it is asked."""

    def believed(self, before: bool) -> bool:
        return self.state.believes(self.clock())


class NeverRescans(Worker):
    """Breaks rule 12: neither restores nor scans periodically."""

    def rescan(self) -> Steps:
        yield None


class RescansWithoutTellingOthers(Worker):
    """Breaks rule 12: does not append to the log what a rescan found."""

    def rescan(self) -> Steps:
        yield from self.restore()
        yield from self.scan([])


# Mutants of Redis


class LogsNoRestore(Twin):
    """Breaks rule 2: logs no record that a restore changes."""

    def merge(self, now: float, shared: Shared, asked: Sequence[Asked]) -> list[Merged]:
        log = list(self.log)
        merged = super().merge(now, shared, asked)
        if shared.restore:
            self.log = log
        return merged


class KnowsNoLife(Twin):
    """Breaks rule 3: keeps the epoch of its data when its life changes, as after a restart with an older copy."""

    def beat(
        self, now: float, name: str, restored_epoch: str | None, cursor: Cursor | None, grace_seconds: float = 3.0
    ) -> BeatReply:
        if self.epoch is not None:
            self.epoch_life = self.life
        return super().beat(now, name, restored_epoch, cursor, grace_seconds)


class GivesNoGrace(Twin):
    """Breaks rule 3: does not mark a new epoch itself as pending."""

    def beat(
        self, now: float, name: str, restored_epoch: str | None, cursor: Cursor | None, grace_seconds: float = 3.0
    ) -> BeatReply:
        return super().beat(now, name, restored_epoch, cursor, 0)


class MarksNothing(Twin):
    """Breaks rule 3: never marks the restored epoch of a worker as pending."""

    def beat(
        self, now: float, name: str, restored_epoch: str | None, cursor: Cursor | None, grace_seconds: float = 3.0
    ) -> BeatReply:
        return super().beat(now, name, None, cursor, grace_seconds)


class DropsNoMark(Twin):
    """Breaks rule 3: lets no mark end."""

    def beat(
        self, now: float, name: str, restored_epoch: str | None, cursor: Cursor | None, grace_seconds: float = 3.0
    ) -> BeatReply:
        self.pending = dict.fromkeys(self.pending, math.inf)
        return super().beat(now, name, restored_epoch, cursor, grace_seconds)


class LeavesTheLogEmpty(Twin):
    """Breaks rule 3: puts no entry into an empty log, so that a reader has no cursor."""

    def append(self, now: float, nonce: str, change: Revocation | None, log_max: int | None = None) -> None:
        if change is not None:
            super().append(now, nonce, change, log_max)
