"""Write back what Redis may have lost, and scan Redis for what this worker may lack (rules 7, 9 and 12)."""

import asyncio
import random
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

import structlog

from revocation_client.mirror import Mirror
from revocation_client.revocation import Revocation
from revocation_service.metrics import Metrics
from revocation_service.replication.epoch import Source, SyncState
from revocation_service.store.exchanges import Exchanges, batches

BATCH: Final = 100
"""How many records one call of `merge.lua` restores: about 1.5 ms of Redis."""

ASKED: Final = 1_000
"""How many records are looked up with one call of `ask.lua`."""

TURN_PAUSE_SECONDS: Final = (0.05, 0.3)
RENEW_SECONDS: Final = 1.0
RESCAN_TRIES: Final = 20
"""How often a worker tries to get the rescan within `REVOCATION_RESCAN_SECONDS`."""

_log = structlog.get_logger()


class Repaired(Protocol):
    """The worker that a repair works for: a restore reads its mirror, and a scan adds to it."""

    mirror: Mirror
    state: SyncState
    foreign_met: bool
    """Set by the worker whenever it meets a record of a foreign application."""

    def now(self) -> float:
        """Return the time that decides whether a record has expired, in epoch seconds."""

    def add(self, revocations: list[Revocation], by: Source) -> None:
        """Add revocations to the mirror."""

    def found_foreign(self, found: bool) -> None:
        """Record whether a scan has found records of a foreign application."""


class Repair:
    """Restores, then scans, whenever either is due. One `step` does what is due, or waits until `wake` is set."""

    def __init__(
        self,
        worker: Repaired,
        exchanges: Exchanges,
        rescan_seconds: float,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self.wake = asyncio.Event()
        """Set after each heartbeat."""
        self.done = asyncio.Event()
        """Set after each restore and scan, and when the cursor is lost: a heartbeat is needed."""
        self.following = asyncio.Event()
        """Set when the worker may have got a cursor."""
        self._worker = worker
        self._state = worker.state
        self._exchanges = exchanges
        self._rescan_seconds = rescan_seconds
        self._metrics = metrics
        self._clock = clock
        self._rescan_at = clock() + rescan_seconds / RESCAN_TRIES

    async def step(self) -> None:
        """Do what is due. Raises StoreUnavailable."""
        if not self._state.accepts(self._clock()):  # this may be no master
            await self._woken()
        elif self._state.restore_due():
            await self._restore()
        elif self._state.scan_due():
            await self._scan("lost" if self._state.complete else "start")
        elif self._state.complete and await self._gets_the_rescan():
            await self._rescan()
        else:
            await self._woken()

    async def _woken(self) -> None:
        await self.wake.wait()
        self.wake.clear()

    async def _restore(self) -> None:
        epoch, changed = self._state.epoch, 0
        try:
            changed += await self._restore_recent(epoch)
            changed += await self._restore_rest(epoch)
        finally:
            if changed:
                _log.warning("store_restored", entries=changed)
        self.done.set()

    def _same(self, epoch: str | None) -> bool:
        """Return whether an exchange that began in this epoch counts (rule 6)."""
        return epoch == self._state.epoch

    async def _restore_recent(self, epoch: str | None) -> int:
        """Write back what was learned recently, newest first. Wait for no lease, and do not ask what is missing."""
        recent, changed = list(self._state.recent()), 0
        for keys in batches(recent, BATCH):
            if not self._same(epoch):
                break
            now = self._worker.now()
            held = [self._worker.mirror.held(claim, value, now) for claim, value in keys]
            changed += await self._write([each for each in held if each is not None])
        return changed

    async def _restore_rest(self, epoch: str | None) -> int:
        """Write back everything else that Redis lacks, in turn with the other workers."""
        while self._same(epoch) and not await self._exchanges.take_turn():  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(random.uniform(*TURN_PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
        entries, changed = self._worker.mirror.entries(self._worker.now()), 0
        renew_at = self._clock() + RENEW_SECONDS
        while self._same(epoch) and (some := list(islice(entries, ASKED))):
            if self._clock() >= renew_at:
                renew_at = self._clock() + RENEW_SECONDS
                await self._exchanges.take_turn()
            changed += await self._restore_some(some)
        self._state.restored(epoch, self._clock())
        await self._exchanges.release_turn()
        return changed

    async def _restore_some(self, some: list[Revocation]) -> int:
        """Write back what Redis lacks of these. `ask.lua` compares only ends, so cutoffs are always merged."""
        tokens = [each for each in some if each.claim == "jti"]
        missing = await self._exchanges.missing(tokens) if tokens else []
        lacking = [*missing, *(each for each in some if each.claim != "jti")]
        changed = 0
        for batch in batches(lacking, BATCH):
            changed += await self._write(batch)
        await asyncio.sleep(0)
        return changed

    async def _write(self, held: list[Revocation]) -> int:
        changed = await self._exchanges.restore(held) if held else 0
        self._metrics.restored.inc(changed)
        return changed

    async def _scan(self, why: str, lacked: list[Revocation] | None = None) -> bool | None:
        """Read all records into the mirror (rule 9). `lacked`, if given, gets those that the mirror did not have.

        Return whether any record was foreign; None if the scan ended early and cannot tell.
        """
        state, mirror = self._state, self._worker.mirror
        self._metrics.mirror_scans.labels(why).inc()
        state.scan_began()
        self.following.set()
        self._worker.foreign_met = foreign = False

        def take(found: list[Revocation]) -> bool:
            nonlocal foreign
            if state.scanning:
                now = self._worker.now()
                foreign = foreign or any(each.revoked_at is None for each in found)
                if lacked is not None:  # only for a rescan: a first scan would keep a second copy of everything
                    lacked.extend(each for each in found if mirror.held(each.claim, each.value, now) is None)
                self._worker.add(found, "scan")
            return state.scanning

        foreign = await self._exchanges.scan(take) or foreign
        if not state.scanning:
            return None
        foreign = foreign or self._worker.foreign_met  # SCAN may pass by what was written in the meantime
        state.scan_ended(self._clock())
        self._worker.found_foreign(foreign)
        self.done.set()
        return foreign

    async def _gets_the_rescan(self) -> bool:
        if self._clock() < self._rescan_at:
            return False
        self._rescan_at = self._clock() + self._rescan_seconds / RESCAN_TRIES
        return await self._exchanges.take_rescan(self._rescan_seconds)

    async def _rescan(self) -> None:
        """Restore deleted records, and log those that others wrote (rule 12). A new epoch ends a rescan at once."""
        epoch, lacked = self._state.epoch, list[Revocation]()
        await self._restore()
        if self._same(epoch):
            foreign = await self._scan("rescan", lacked)
            await self._exchanges.append(lacked, foreign_found=foreign)
