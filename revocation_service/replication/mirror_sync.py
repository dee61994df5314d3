"""Keep the mirror of one worker in sync with Redis: three tasks that carry out what `epoch.py` decides."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from revocation_client.mirror import Mirror
from revocation_client.revocation import Revocation
from revocation_service.errors import StoreUnavailable
from revocation_service.metrics import Metrics
from revocation_service.replication.clock import Clocks, WorkerClock
from revocation_service.replication.epoch import GRACE_SECONDS, PENDING_SECONDS, Heartbeat, Reason, Source, SyncState
from revocation_service.replication.restore import Repair
from revocation_service.settings import MirrorSettings
from revocation_service.store.exchanges import BeatReply, Exchanges
from revocation_service.store.records import Entry
from revocation_service.store.store import Put, Store, Stored
from revocation_service.tasks import begin, end

HEARTBEAT_SECONDS: Final = 0.5
WRITING_HEARTBEATS: Final = 10
"""Every tenth heartbeat writes, and so finds out whether Redis takes writes."""

LATE_SECONDS: Final = 60.0
"""How long an ended revocation is kept and told: the clocks of clients may be behind."""

PAUSE_SECONDS: Final = (0.02, 0.2)

Listener = Callable[[list[Revocation]], None]

_log = structlog.get_logger()


class MirrorSync:
    """The mirror, and what is known about how current it is."""

    def __init__(
        self,
        store: Store,
        settings: MirrorSettings,
        metrics: Metrics,
        clocks: Clocks | None = None,
        *,
        private: bool = False,
    ) -> None:
        self.mirror = Mirror(skew_seconds=store.limits.clock_skew_seconds, late_seconds=LATE_SECONDS)
        self.state = SyncState(settings.max_staleness_seconds)
        self.heard = asyncio.Event()
        """Set once a heartbeat has counted."""
        self.writes_refused = False
        """Whether Redis refused the last write of a heartbeat: it is full, or a key has the wrong type."""
        self.foreign_met = False
        """Whether a foreign record was met since the last scan here began, or since the last report of a rescan."""
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._clock = WorkerClock(clocks or Clocks())
        exchanges = Exchanges(store, pending_seconds=PENDING_SECONDS, grace_seconds=0 if private else GRACE_SECONDS)
        self._exchanges = exchanges
        self._repair = Repair(self, exchanges, settings.rescan_seconds, metrics, self._clock.monotonic)
        self._beats = 0
        self._foreign_found = False
        self._reason: Reason | None = "no_heartbeat"
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []
        store.on_foreign = partial(self.found_foreign, True)

    async def start(self) -> None:
        """Start the tasks. Connecting happens in the background."""
        steps = self._heartbeat, self._follow, self._repair.step
        self._tasks = begin("replication", *(self._forever(step) for step in steps))

    async def aclose(self) -> None:
        """Stop the tasks, and wait until they have ended."""
        await end(self._tasks)

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step. An unexpected error is logged; it must not end a task that keeps the mirror current."""
        while True:
            try:
                await step()
            except StoreUnavailable:
                await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
            except Exception as error:  # noqa: BLE001 - see above
                _log.error("replication_failed", error=error)
                await asyncio.sleep(HEARTBEAT_SECONDS)

    # What others ask

    @property
    def clock_offset(self) -> float:
        """Offset of Redis' clock from the wall clock here, in seconds."""
        return self._clock.offset

    def now(self) -> float:
        """Return the time that decides whether a record in the mirror has expired, in epoch seconds."""
        return self._clock.now()

    @property
    def complete(self) -> bool:
        """False while a foreign application writes records, by the settings or as was found: the log lacks those."""
        return not (self._foreign_found or self._settings.foreign_writers)

    def believes(self) -> bool:
        """Return whether "no record in Redis" means "not revoked" (rule 11). Call it before the read of Redis."""
        return self.state.believes(self._clock.monotonic())

    def mirror_decides(self) -> bool:
        """Return whether the mirror may say "not revoked" on its own while Redis does not answer (rule 11)."""
        return self.complete and self.state.mirror_decides(self._clock.monotonic())

    def staleness(self) -> float:
        """Return the seconds since the mirror was last proven in sync; infinity if it never was."""
        return self.state.staleness(self._clock.monotonic())

    def feeds(self) -> bool:
        """Return whether a snapshot of the mirror may be served."""
        return self.state.feeds()

    def reason(self) -> Reason | None:
        """Return what limits this worker at present; None if nothing does."""
        return self.state.reason(self._clock.monotonic())

    def told(self) -> Iterator[Revocation]:
        """Return the entries of a snapshot, also those that ended lately, because clients' clocks may be behind."""
        return self.mirror.entries(self.now() - LATE_SECONDS)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` from now on with what is new to the mirror. Return a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def write(self, put: Put) -> Stored:
        """Store a revocation, and add it to the mirror (rules 1, 4 and 6).

        Raises StoreUnavailable, ClocksDiffer, ExpTooFar, IssuedBeforeTooFar.
        """
        while True:
            self._require_heartbeat()
            epoch = self.state.epoch
            stored = await self._store.put(put)
            if epoch == self.state.epoch:  # else Redis may have lost it since
                break
        self._require_heartbeat()
        if stored.record is not None:
            self.add([stored.record], "write")
        return stored

    def _require_heartbeat(self) -> None:
        if not self.state.accepts(self._clock.monotonic()):
            raise StoreUnavailable("no heartbeat has proven lately that this Redis is the master")

    def add(self, revocations: list[Revocation], by: Source) -> None:
        """Add revocations to the mirror, and tell the listeners those that are new to it."""
        now, since = self.now(), self._clock.monotonic()
        news = [each for each in revocations if self.mirror.add(each, now)]
        for each in news:
            self.state.learned((each.claim, each.value), since, by=by)
        if news:
            for listener in [*self._listeners]:
                listener(news)

    def found_foreign(self, found: bool) -> None:
        """Record whether records of a foreign application or a later version were found. The log lacks them."""
        self.foreign_met = self.foreign_met or found
        if found and not self._foreign_found:
            _log.warning(
                "foreign_records_found", detail="the mirror alone only answers revoked until a scan finds none"
            )
        self._foreign_found = found

    # Heartbeats

    async def _heartbeat(self) -> None:
        """Send a heartbeat, then wait until the next one is due, or until `Repair.done` asks for it earlier."""
        began_at = self._clock.monotonic()
        try:
            await self._beat(began_at)
        finally:
            self._note_reason()
            self.mirror.expire(self.now())
            self._metrics.mirror_entries.set(len(self.mirror))
            self._metrics.mirror_age.set(self.staleness())
        with suppress(TimeoutError):
            async with asyncio.timeout(began_at + HEARTBEAT_SECONDS - self._clock.monotonic()):
                await self._repair.done.wait()
        self._repair.done.clear()

    async def _beat(self, began_at: float) -> None:
        cursor, writes = self.state.cursor, self.writes_refused or self._beats % WRITING_HEARTBEATS == 0
        self._beats += 1
        reply = await self._exchanges.beat(self.state.restored_epoch, cursor, must_write=writes)
        ended_at = self._clock.monotonic()
        self._compare_clocks(reply, (began_at + ended_at) / 2)
        if reply.refused or writes:
            self._note_refused(reply.refused)
        if reply.named:
            told = reply.epoch, reply.pending, reply.end
            self.state.heard(Heartbeat(began_at, ended_at, *told, cursor, reply.there, reply.first))
            self.heard.set()
            self._repair.following.set()
        self._repair.wake.set()

    def _compare_clocks(self, reply: BeatReply, at: float) -> None:
        """Measure the offset of Redis' clock. If the wall clock here has jumped, the mirror is no longer in sync."""
        jumped = self._clock.heard(reply.now, at)
        self._metrics.clock_offset.set(self._clock.offset)
        if jumped:
            _log.warning("clock_jumped", seconds=round(jumped, 3))
            self.state.clock_jumped()

    def _note_refused(self, refused: str) -> None:
        if bool(refused) != self.writes_refused:
            self.writes_refused = bool(refused)
            if refused:
                _log.error("writes_refused", reason=_error_code(refused))
            else:
                _log.info("writes_accepted")

    def _note_reason(self) -> None:
        reason = self.reason()
        if reason == self._reason:
            return
        self._reason = reason
        if reason is None:
            _log.info("mirror_synced", entries=len(self.mirror))
        else:
            _log.warning("mirror_not_synced", reason=reason)

    # The log

    async def _follow(self) -> None:
        """Read the log after the cursor once, and add its changes to the mirror (rule 9)."""
        cursor, epoch = self.state.cursor, self.state.epoch
        if cursor is None:
            await self._repair.following.wait()
            self._repair.following.clear()
            return
        entries, there = await self._exchanges.read(cursor)
        if self.state.read(cursor, epoch, there=there):
            self._take(entries)
        elif not there:
            self._repair.done.set()  # a heartbeat has to say what became of the log
        await asyncio.sleep(0)

    def _take(self, entries: list[Entry]) -> None:
        """Add what was read, and move the cursor, with no await in between."""
        if not entries:
            return
        changes = [each.change for each in entries if each.change is not None]
        self.add(changes, "log")
        for entry in entries:
            if entry.foreign_found is not None:  # the rescan may have passed by what was met since the last report
                self.found_foreign(entry.foreign_found or self.foreign_met)
                self.foreign_met = False
        if any(not entry.understood for entry in entries) or any(change.revoked_at is None for change in changes):
            self.found_foreign(True)
        self.state.reached(entries[-1].cursor)
        lag = self._clock.redis_now() - entries[-1].cursor.milliseconds / 1000
        self._metrics.mirror_lag.observe(max(0.0, lag))


def _error_code(refused: str) -> str:
    """Return the code of a Redis error, such as OOM: its first word in capitals. The rest may quote data."""
    return next((word for word in refused.split() if word.isupper()), "ERR")
