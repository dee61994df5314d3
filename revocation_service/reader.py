"""The one reader of a process: it keeps a mirror of the store, knows how old that is, and looks for what was lost.

It takes the log's end first, then scans, and follows from that end meanwhile. Fresh is only what was proven by a
heartbeat of its own: written as a revocation is written, acknowledged, and read back. It knows no command of Redis.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from revocation_client.freshness import Status
from revocation_client.mirror import Mirror
from revocation_client.model import DEFAULT_CLOCK_SKEW_SECONDS, Revocation
from revocation_service.doubt import Doubt
from revocation_service.errors import StoreUnavailable
from revocation_service.heartbeats import Heartbeats
from revocation_service.refilling import RefillFailed, Refilling
from revocation_service.settings import MirrorSettings
from revocation_service.store.change_log import NOWHERE, place_of
from revocation_service.store.changes import Changes, CursorLost, Entry, History, PartlyAway, Standing
from revocation_service.tasks import begin, end, until_one_ends
from revocation_service.telemetry import Metrics

BEAT_SECONDS: Final = 1.0
MISSED_SECONDS: Final = 2.5
"""How long no heartbeat may be proven before everything is looked at anew."""

LONGEST_PAUSE_SECONDS: Final = 0.5
SHORTEST_PAUSE_SECONDS: Final = 0.05
REFILL_AGAIN_SECONDS: Final = 2.0
LESS_MAX: Final = 50_000
"""How many records that the store has for less are given back after one scan."""

LATE_SECONDS: Final = 60.0
"""By how much this machine's clock may be ahead of Redis' without anything that lives being left out."""

JUMP_SECONDS: Final = 1.0
"""How far the clock on the wall and the even one may part from one heartbeat to the next: a machine that was suspended
finds the first ahead, one whose clock was set right finds it elsewhere.
"""

Reason = Literal[
    "start", "disconnected", "cursor_lost", "missed_heartbeat", "masters_changed", "clock_jumped", "error", "periodic"
]

Listener = Callable[[str, list[Revocation]], None]

_log = structlog.get_logger()


class Lost(Exception):
    """Something may have been missed: what is known is to be compared with the store anew."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Session:
    """What holds from one beginning to the next loss."""

    standing: Standing
    beats: Heartbeats
    whole: bool
    """Whether the mirror has all that there was when the session began."""


class Reader:
    """Keeps the mirror of one process; every time is passed in, or of the monotonic clock."""

    def __init__(
        self,
        changes: Changes,
        settings: MirrorSettings,
        metrics: Metrics,
        *,
        clock_skew_seconds: float = DEFAULT_CLOCK_SKEW_SECONDS,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wall = wall
        self.mirror = Mirror(whole_values=True, skew_seconds=clock_skew_seconds, late_seconds=LATE_SECONDS)
        self.synced = False
        """Whether the mirror was ever complete; how old it is, is for `age` to say."""
        self.cursor = ""
        """The newest entry of the change log that the mirror has, and all before it."""
        self.status = Status("connecting", self._wall())
        self.refilling = Refilling(changes.refill, self.mirror, metrics, wall)
        self.doubt = Doubt(changes)
        self._changes = changes
        self._settings = settings
        self._metrics = metrics
        self._number = 0
        self._newest = NOWHERE
        """Where the newest revocation stands that the log told of; at first, where it was begun to listen."""
        self._fresh_at = -math.inf
        self._ahead = self._wall() - time.monotonic()
        """By how much the clock on the wall was ahead of the even one when they were last compared."""
        self._histories: frozenset[History] = frozenset()
        """Of the masters, when a session last began."""
        self._trusted: frozenset[History] | None = None
        """The histories of the masters while everything up to the cursor was known."""
        self._lacked = False
        self._written_before = 0
        """How many were written back before the scan that goes on, or is to come."""
        self._foreign_found = False
        self._foreign_met = 0
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin; nothing is waited for."""
        self._tasks = begin("reader", self._keep_following(), self._keep_time())

    async def aclose(self) -> None:
        """End, and wait for the end."""
        await end(self._tasks)

    def age(self, now: float) -> float:
        """For how long, at `now` on the monotonic clock, a revocation may have been acknowledged and not be here.

        A suspended machine's monotonic clock stands still: what the clock on the wall is further on counts as well.
        """
        if self.doubt.doubtful:
            return math.inf
        return now - self._fresh_at + max(0.0, self._wall() - time.monotonic() - self._ahead)

    @property
    def fresh(self) -> bool:
        """Whether the mirror may say "not revoked" by itself; one that was never whole is infinitely old."""
        return self.complete and self.age(time.monotonic()) <= self._settings.max_staleness_seconds

    @property
    def _young(self) -> bool:
        """Whether all was known a moment ago, whatever may have been lost since."""
        return self.synced and self.age(time.monotonic()) <= MISSED_SECONDS

    @property
    def complete(self) -> bool:
        """Whether everybody who revokes says so in the change log, as far as is known."""
        met = self._foreign_found or self._changes.foreign_met != self._foreign_met
        return self.synced and not met and not self._settings.foreign_writers

    @property
    def lost_data(self) -> bool:
        """Whether something had to be written back, or must be still, since a scan last found all in the store."""
        return self._lacked or self.refilling.written > self._written_before

    def add_own(self, revocation: Revocation) -> None:
        """Know what this process has just written, before it is acknowledged."""
        self.refilling.add_own(revocation)
        if self.mirror.add(revocation, self._wall()):
            self._tell([revocation])

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have every change told, once, with the cursor up to which all are told then; call the answer to end that.

        What this process wrote itself, or a scan found, is told with the cursor of before.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self, revocations: list[Revocation]) -> None:
        if revocations:
            for listener in [*self._listeners]:
                listener(self.cursor, revocations)

    async def _keep_time(self) -> None:
        while True:
            self.mirror.expire(self._wall())
            self._metrics.mirror_entries.set(len(self.mirror))
            self._metrics.mirror_age.set(self.age(time.monotonic()))
            await asyncio.sleep(BEAT_SECONDS)

    async def _keep_following(self) -> None:
        reason: Reason = "start"
        failures = 0
        while True:
            was_at = self._fresh_at
            try:
                await self._follow_once(reason)
            except Lost as lost:
                reason = lost.reason
            except CursorLost:
                reason = "cursor_lost"
            except StoreUnavailable:
                reason = "disconnected" if reason != "start" or self.synced else "start"
            except Exception as error:  # noqa: BLE001 - whatever it was: a mirror that nobody feeds helps nobody
                _log.error("mirror_reader_failed", error=error)
                reason = "error"
            self.doubt.looked.set()
            failures = 0 if self._fresh_at > was_at else failures + 1
            self._note_stale(reason)
            longest = min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2 ** min(failures, 10))
            longest = LONGEST_PAUSE_SECONDS if reason == "error" else longest
            await asyncio.sleep(random.uniform(0, longest))  # noqa: S311 - jitter, not a secret

    def _note_stale(self, reason: Reason) -> None:
        if self.status.name == "synced":
            _log.warning("mirror_stale", reason=reason)
            self.status = Status("stale", self._wall(), reason)
        else:
            self.status = Status(self.status.name, self.status.since, reason)

    async def _follow_once(self, reason: Reason) -> None:
        """One session: until something is lost, or may have been."""
        session = await self._begin()
        self._metrics.mirror_rescans.labels(reason).inc()
        try:
            await until_one_ends(
                "reader-session",
                self._follow(session),
                self._beat(session),
                self._watch(session),
                self._rescan(session),
            )
        finally:
            self._trusted = session.standing.histories if session.whole and session.standing.certain else None

    async def _begin(self) -> _Session:
        """Go on from the cursor where that is sure to lose nothing; else the log's end is where an own heartbeat is."""
        owed = self.doubt.owes
        if len(self.mirror):
            await self.doubt.come(self._newest)
        try:
            standing = await self._changes.begin(self.doubt.mark)
        except PartlyAway as away:
            await self._begin_nothing(away.histories, owed=owed)
            raise
        begun = time.monotonic()
        nothing_lost = standing.certain and standing.histories == self._histories
        goes_on = bool(self.cursor) and await self._still_there()
        whole = goes_on and standing.histories == self._trusted
        if goes_on:
            self.doubt.know(place_of(self.cursor))
        if whole or (nothing_lost and not owed):
            await self.doubt.settle()
        await self.doubt.begin(knows_all=self._young or nothing_lost)
        self._histories = standing.histories
        if goes_on:
            return _Session(standing, Heartbeats(), whole=whole)
        self.cursor = await self._changes.beat(self._name())
        self._newest = self._newest if self._newest > NOWHERE else place_of(self.cursor)
        return _Session(standing, Heartbeats(begun), whole=False)

    async def _begin_nothing(self, told: frozenset[History], *, owed: bool) -> None:
        """A part of the store is away, perhaps no more than that, and of the rest what can be read is an answer.

        Where nothing of it could be asked, nothing is learned. Who knows no other of those that answered owes nothing
        for that they are fewer.
        """
        if not told:
            return
        if not owed and told <= self._histories:
            await self.doubt.settle()
        await (self.doubt.begin(knows_all=False) if self.doubt.doubtful else self.doubt.look())

    async def _still_there(self) -> bool:
        try:
            async with self._changes.tail(self.cursor) as tail:
                self._take(await tail.next(0), None)
        except CursorLost:
            return False
        return True

    def _name(self) -> str:
        self._number += 1
        return f"{self._changes.process}.{self._number}"

    async def _follow(self, session: _Session) -> None:
        async with self._changes.tail(self.cursor) as tail:
            while True:
                self._take(await tail.next(), session)
                await asyncio.sleep(0)

    def _take(self, entries: list[Entry], session: _Session | None) -> None:
        if not entries:
            return
        now = self._wall()
        revocations = [entry.revocation for entry in entries if entry.revocation is not None]
        news = [revocation for revocation in revocations if self.mirror.add(revocation, now)]
        self.cursor = entries[-1].cursor
        if revocations:
            self._newest = place_of(next(entry.cursor for entry in reversed(entries) if entry.revocation is not None))
        if session is not None and session.whole:
            self.doubt.know(place_of(self.cursor))
        self._tell(news)
        for entry in entries:
            process, _, number = (entry.heartbeat or "").partition(".")
            if session is not None and process == self._changes.process:
                self._read_back(int(number), session)

    def _read_back(self, number: int, session: _Session) -> None:
        begun = session.beats.begun.get(number)
        if begun is not None:
            self._metrics.mirror_lag.observe(time.monotonic() - begun)
            session.beats.read.add(number)
            self._prove(session)

    def _prove(self, session: _Session) -> None:
        if session.beats.prove() and session.whole:
            self._compare_clocks(session)
            self._freshen(session)

    def _compare_clocks(self, session: _Session) -> None:
        """Nothing proves anything across a jump; what was forgotten by a clock that was ahead is to be read anew."""
        ahead = self._wall() - time.monotonic()
        jumped, self._ahead = abs(ahead - self._ahead) > JUMP_SECONDS, ahead
        if jumped:
            self._fresh_at, session.whole = -math.inf, False
            raise Lost("clock_jumped")

    def _freshen(self, session: _Session) -> None:
        self._fresh_at = max(self._fresh_at, session.beats.proven_at)
        self.doubt.know(place_of(self.cursor))
        self.refilling.forget_own(self._fresh_at)
        proven = session.beats.proven_at > -math.inf and not self.doubt.doubtful
        if self.status.name != "synced" and proven:
            _log.info("mirror_synced", entries=len(self.mirror))
            self.status = Status("synced", self._wall())

    async def _beat(self, session: _Session) -> None:
        while True:
            self._compare_clocks(session)
            begun = time.monotonic()
            name, number = self._name(), self._number
            session.beats.begun[number] = begun
            with suppress(StoreUnavailable):  # whether too many were missed is for `_watch` to say
                await self._changes.beat(name)
                if number in session.beats.begun:
                    session.beats.acknowledged.add(number)
                    self._prove(session)
            await asyncio.sleep(max(0.0, begun + BEAT_SECONDS - time.monotonic()))

    async def _watch(self, session: _Session) -> None:
        begun, noted = time.monotonic(), False
        while True:
            await self._watch_masters(session)
            with suppress(StoreUnavailable):
                await self.doubt.look()
                if session.whole and self.doubt.sure and not noted:
                    await self._changes.note_lives(session.standing)
                    noted = True
            now = time.monotonic()
            if now - max(begun, session.beats.proven_at) > MISSED_SECONDS:
                raise Lost("missed_heartbeat")
            await asyncio.sleep(BEAT_SECONDS / 2)

    async def _watch_masters(self, session: _Session) -> None:
        """Where some say nothing, the others tell all the same: one of them may have lost something meanwhile."""
        try:
            changed = await self._changes.standing() != session.standing
        except PartlyAway as away:
            changed = not away.histories <= session.standing.histories
        if changed:
            raise Lost("masters_changed")

    async def _rescan(self, session: _Session) -> None:
        failures = 0
        while True:
            self._written_before = self.refilling.written
            try:
                if not session.whole:
                    with suppress(RefillFailed):
                        await self.refilling.own()
                await self._scan(session)
                await self.refilling.own()  # what was under way when it was lost has come by now
                await self.refilling.all()
                await self.doubt.settle()
                self._lacked = self.refilling.written > self._written_before
                failures = 0
            except RefillFailed:  # what is known stays known, and fresh: it is the store that lacks something
                _log.warning("store_refill_failed")
                self._lacked = True
                failures += 1
            except StoreUnavailable:  # the log goes on, so nothing new is missed: a shard alone is away
                if not session.whole:
                    raise
                _log.warning("mirror_rescan_failed")
                failures += 1
            pause = self._settings.rescan_seconds
            if failures:
                pause = min(REFILL_AGAIN_SECONDS * 2 ** (min(failures, 20) - 1), pause)
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, not a secret
            self._metrics.mirror_rescans.labels("periodic").inc()

    async def _scan(self, session: _Session) -> None:
        """Learn what the store has; give back what it has for less."""
        met, foreign = self._changes.foreign_met, False

        less: list[Revocation] = []

        async def take(some: list[Revocation]) -> None:
            nonlocal foreign
            begun, now = time.monotonic(), self._wall()
            news = [each for each in some if self.mirror.add(each, now)]
            self._tell(news)
            foreign = foreign or any(each.revoked_at is None for each in some)
            if len(news) < len(some):
                less.extend(self.refilling.held_for_more(some, now)[: LESS_MAX - len(less)])
            await asyncio.sleep(time.monotonic() - begun if session.whole else 0)

        await self._changes.scan(take)
        if await self._changes.standing() != session.standing:
            raise Lost("masters_changed")
        if foreign and not self._foreign_found and not self._settings.foreign_writers:
            _log.warning("foreign_records_found", setting="REVOCATION_FOREIGN_WRITERS")
        self._foreign_found, self._foreign_met = foreign, met
        session.whole = self.synced = True
        self._freshen(session)
        await self.refilling.give_back(less)
        if len(less) == LESS_MAX:
            raise RefillFailed
