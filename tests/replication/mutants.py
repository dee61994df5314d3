"""The protocol with one rule left out: subclasses of the decisions, of the worker and of the twin.

Each is named after what it does wrong; its docstring names the rule.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from revocation_client.revocation import Revocation
from revocation_service.replication.epoch import Heartbeat, Key, Source, SyncState
from revocation_service.store.cursor import Cursor
from tests.replication.twin import Asked, BeatReply, Merged, Shared, Twin
from tests.replication.worker import Steps, Worker

# Decisions


class TakesItselfForCompleteForEver(SyncState):
    """Rule 5: keeps what it witnessed, however long ago it was in sync."""

    def _enter(self, beat: Heartbeat) -> None:
        witnessed = set(self._witnessed)
        super()._enter(beat)
        if witnessed:
            self._witnessed |= witnessed | {beat.epoch}


class KeepsWhatItWitnessed(SyncState):
    """Rule 5: does not empty the set, though it is joining."""

    def _enter(self, beat: Heartbeat) -> None:
        witnessed = set(self._witnessed)
        super()._enter(beat)
        self._witnessed |= witnessed


class MeasuresFromTheBeginning(SyncState):
    """Rule 5: measures how long ago it was in sync at the beginning of the heartbeat that shows the new epoch."""

    def heard(self, beat: Heartbeat) -> None:
        super().heard(replace(beat, ended_at=beat.began_at))


class NeverWitnesses(SyncState):
    """Rule 5: is joining in every new epoch."""

    def _enter(self, beat: Heartbeat) -> None:
        super()._enter(beat)
        self._witnessed.clear()


class RestoresNothing(SyncState):
    """Rule 5: takes a new epoch for restored at once."""

    def _enter(self, beat: Heartbeat) -> None:
        super()._enter(beat)
        self.restored_epoch = beat.epoch


class HidesThatItRestores(SyncState):
    """Rule 8: names the new epoch as restored before it has restored anything."""

    def _enter(self, beat: Heartbeat) -> None:
        first = self.restored_epoch is None
        super()._enter(beat)
        self.restored_epoch = beat.epoch
        self._restored_at = -math.inf if first else math.inf

    def restore_due(self) -> bool:
        return self._restored_at == math.inf


class SettlesWithAnEarlierHeartbeat(SyncState):
    """Rule 8: lets a heartbeat settle the restored epoch that began before everything was restored."""

    def _settle(self, beat: Heartbeat) -> None:
        if self._restored_at != math.inf:
            self.restored_epoch = beat.epoch
        super()._settle(beat)


class CountsARestoreOfAnotherEpoch(SyncState):
    """Rule 6: takes a restore that began in another epoch for one of this epoch."""

    def restored(self, epoch: str | None, now: float) -> None:
        super().restored(self.epoch, now)


class CountsAReadOfAnotherEpoch(SyncState):
    """Rule 6: takes what the tail read in another epoch."""

    def read(self, cursor: Cursor, epoch: str | None, *, there: bool) -> bool:
        return super().read(cursor, self.epoch, there=there)


class CountsAScanOfAnotherEpoch(SyncState):
    """Rule 6: goes on with a scan that began in another epoch."""

    def _enter(self, beat: Heartbeat) -> None:
        scanning = self.scanning
        super()._enter(beat)
        self.scanning = scanning


class LetsGoOfTheRecentAtAnyHeartbeat(SyncState):
    """Rule 7: lets go of the recent list although its epoch is not restored yet."""

    def _settle(self, beat: Heartbeat) -> None:
        super()._settle(beat)
        self._forget_before(beat.began_at - self._recent_seconds)


class TakesNoScanForRecent(SyncState):
    """Rule 7: does not count what a complete worker found by a scan as recent."""

    def learned(self, key: Key, now: float, *, by: Source) -> None:
        if by != "scan":
            super().learned(key, now, by=by)


class ReadsOnWithoutItsEntry(SyncState):
    """Rule 9: does not look whether the cursor's entry is still there when it reads."""

    def read(self, cursor: Cursor, epoch: str | None, *, there: bool) -> bool:
        return super().read(cursor, epoch, there=True)


class ScansBeforeItFollows(SyncState):
    """Rule 9: follows from the log's end as it is when the scan has ended."""

    def read(self, cursor: Cursor, epoch: str | None, *, there: bool) -> bool:
        return not self.scanning and super().read(cursor, epoch, there=there)

    def scan_ended(self, now: float) -> None:
        self.cursor = self._beat.end if self._beat else None
        super().scan_ended(now)


class ScansWhilePending(SyncState):
    """Rule 9: does not wait until nothing is pending."""

    def scan_due(self) -> bool:
        beat = self._beat
        return self._scanned_at == math.inf and beat is not None and beat.end is not None


class ComparesIdsAlone(SyncState):
    """Rule 10: does not need the cursor's entry for a proof, nor lose a cursor at a heartbeat."""

    def heard(self, beat: Heartbeat) -> None:
        super().heard(replace(beat, there=True))


class ProvesByAHeartbeatWithinTheScan(SyncState):
    """Rule 10: accepts a heartbeat as proof that began before the scan had ended."""

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
    """Rule 10: accepts a heartbeat as proof that shows an epoch as pending which it did not witness."""

    def _consider(self, beat: Heartbeat) -> None:
        super()._consider(replace(beat, pending=frozenset()))


class ProvesWithoutTheTail(SyncState):
    """Rule 10: does not wait until the tail has read up to the end that the heartbeat showed."""

    def _prove(self) -> None:
        if self._proof and self.cursor:
            self._proof = replace(self._proof, end=self.cursor)
        super()._prove()


class ProvesWithTheNewestHeartbeatOnly(SyncState):
    """Not a rule, but how rule 10 is carried out: a newer heartbeat replaces the proof that waits for the tail."""

    def _consider(self, beat: Heartbeat) -> None:
        self._proof = None
        super()._consider(beat)


class BelievesAnOldHeartbeat(SyncState):
    """Rule 11: believes Redis however long ago the last heartbeat began that counted."""

    def believes(self, now: float) -> bool:
        return self._beat is not None and not self._in_doubt


class IgnoresWhatIsPending(SyncState):
    """Rule 11: believes Redis whatever is pending."""

    def believes(self, now: float) -> bool:
        return self.accepts(now)


class BelievesItsMirrorForEver(SyncState):
    """Rule 11: lets the mirror decide however long ago it was in sync."""

    def mirror_decides(self, now: float) -> bool:
        return self.complete


class BelievesItsMirrorWhileJoining(SyncState):
    """Rule 11: lets the mirror decide because a heartbeat came lately, though it was never in sync."""

    def mirror_decides(self, now: float) -> bool:
        return self.accepts(now)


class IgnoresAJumpOfTheClock(SyncState):
    """Stays in sync though the wall clock jumped."""

    def clock_jumped(self) -> None:
        pass


# Carrying out


class AcknowledgesFirst(Worker):
    """Rule 1: answers before the revocation is in its mirror."""

    def acknowledge(self, revocation: Revocation, acknowledge: Callable[[Key], None]) -> None:
        acknowledge((revocation.claim, revocation.value))


class AcceptsBeforeItsFirstHeartbeat(Worker):
    """Rule 1: acknowledges a revocation though no heartbeat has counted lately."""

    def accepts(self) -> bool:
        return True


class CountsAnyHeartbeat(Worker):
    """Rule 4: counts a heartbeat of a master that no majority of the sentinels names."""

    def counts(self, named: bool) -> bool:
        return True


class AcknowledgesAWriteOfAnotherEpoch(Worker):
    """Rule 6: does not write again what straddled the epochs."""

    def safe(self, epoch: str | None) -> bool:
        return True


class RestoresTheRecentInTurn(Worker):
    """Rule 7: restores the recent only with the rest."""

    def restore_recent(self) -> Steps:
        yield None


class RestoresTheRecentOnly(Worker):
    """Rule 7: restores nothing but the recent."""

    def restore_rest(self, epoch: str | None) -> Steps:
        yield None
        self.state.restored(epoch, self.clock())


class LooksAtWhatIsPendingLate(Worker):
    """Rule 11: looks at what is pending when Redis has answered."""

    def believed(self, before: bool) -> bool:
        return self.state.believes(self.clock())


class NeverRescans(Worker):
    """Rule 12: neither restores nor scans again."""

    def rescan(self) -> Steps:
        yield None


class RescansWithoutTellingOthers(Worker):
    """Rule 12: keeps to itself what a rescan found."""

    def rescan(self) -> Steps:
        yield from self.restore()
        yield from self.scan([])


# Redis


class LogsNoRestore(Twin):
    """Rule 2: a restore changes records and logs nothing."""

    def merge(self, now: float, shared: Shared, asked: Sequence[Asked]) -> list[Merged]:
        log = list(self.log)
        merged = super().merge(now, shared, asked)
        if shared.restore:
            self.log = log
        return merged


class KnowsNoLife(Twin):
    """Rule 3: keeps the epoch of its data, also where they are an older copy."""

    def beat(
        self, now: float, name: str, restored_epoch: str | None, cursor: Cursor | None, grace_seconds: float = 3.0
    ) -> BeatReply:
        if self.epoch is not None:
            self.epoch_life = self.life
        return super().beat(now, name, restored_epoch, cursor, grace_seconds)


class GivesNoGrace(Twin):
    """Rule 3: does not mark a new epoch as pending itself."""

    def beat(
        self, now: float, name: str, restored_epoch: str | None, cursor: Cursor | None, grace_seconds: float = 3.0
    ) -> BeatReply:
        return super().beat(now, name, restored_epoch, cursor, 0)


class MarksNothing(Twin):
    """Rule 3: marks no restored epoch of a worker as pending."""

    def beat(
        self, now: float, name: str, restored_epoch: str | None, cursor: Cursor | None, grace_seconds: float = 3.0
    ) -> BeatReply:
        return super().beat(now, name, None, cursor, grace_seconds)


class DropsNoMark(Twin):
    """Rule 3: marks do not end."""

    def beat(
        self, now: float, name: str, restored_epoch: str | None, cursor: Cursor | None, grace_seconds: float = 3.0
    ) -> BeatReply:
        self.pending = dict.fromkeys(self.pending, math.inf)
        return super().beat(now, name, restored_epoch, cursor, grace_seconds)


class LeavesTheLogEmpty(Twin):
    """Rule 3: puts no entry into an empty log, so that a reader has no cursor."""

    def append(self, now: float, nonce: str, change: Revocation | None, log_max: int | None = None) -> None:
        if change is not None:
            super().append(now, nonce, change, log_max)
