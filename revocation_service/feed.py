"""The feed: one reader a process, many followers. It knows neither HTTP nor Redis, and never waits for a follower.

Each follower has a queue with a bound, and is ended where it cannot keep up. What is written is encoded once for all.
"""

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from itertools import islice
from typing import Final

from revocation_client.feed import (
    EVENT_MAX_BYTES,
    EVENT_MAX_REVOCATIONS,
    HEARTBEAT_SECONDS,
    Change,
    Heartbeat,
    Reset,
    Synced,
    Why,
    encode,
    snapshots,
)
from revocation_client.mirror import Mirror
from revocation_client.model import Revocation
from revocation_service.errors import FeedUnavailable, TooManySubscribers
from revocation_service.reader import LATE_SECONDS, Reader
from revocation_service.ring import Ring, cost
from revocation_service.tasks import begin, end
from revocation_service.telemetry import Metrics

QUEUE_MAX_BYTES: Final = 16 * 1024 * 1024
"""How much may wait for one follower: twice what the ring holds. The texts are shared by all."""

PIECE_MAX_BYTES: Final = 256 * 1024
"""How much is written at a time."""

TELL_MAX_EVENTS: Final = 2
"""How many full events are made at a time: some milliseconds' work, in which nothing else runs."""

PAUSE_SECONDS: Final = (0.001, 0.025)
PAUSE_SECONDS_A_FOLLOWER: Final = 0.0002
"""From one change to the next, so that writing to all of them leaves time for the rest."""

WAKE_AT_ONCE: Final = 50
"""How many followers are written to before whoever else waits has his turn."""

SNAPSHOTS_MOST: Final = 2
"""How many snapshots are kept at once; whoever still reads an older one is too slow."""

SNAPSHOT_SHARED_SECONDS: Final = 10.0
"""For how long those who come later are given the same snapshot, and what changed since."""

SNAPSHOT_LEFT_SECONDS: Final = 120.0
"""The same while others are still reading the one before it: so long at least they are left to read."""

VALUE_MAX_CHARACTERS: Final = EVENT_MAX_BYTES // EVENT_MAX_REVOCATIONS // 14
"""Of a value that is told. No question can name a longer one; a foreign application's key may have any length, and an
event has to hold as many as it may, of 12 bytes a character, or nobody is told anything.
"""


def _tellable(revocations: Iterable[Revocation]) -> Iterator[Revocation]:
    return (each for each in revocations if len(each.value) <= VALUE_MAX_CHARACTERS)


class Snapshot:
    """What the mirror held when this began, in parts, made once for all; what comes meanwhile is told as a change."""

    def __init__(self, mirror: Mirror, cursor: str, began_at: float) -> None:
        self.cursor = cursor
        self._began_at = began_at
        self._whole = False
        self.over = False
        """Whether nothing more is made of it."""
        self.given_up = False
        """Whether its parts were let go of."""
        self.readers = 0
        self._parts: list[bytes] = []
        self._grown = asyncio.Event()
        self._making = begin("feed-snapshot", self._make(mirror))

    async def _make(self, mirror: Mirror) -> None:
        try:
            for part in snapshots(_tellable(mirror.entries(time.time() - LATE_SECONDS))):
                self._parts.append(part)
                self._wake()
                await asyncio.sleep(0)
                if self.given_up:
                    return
            self._whole = True
        finally:
            self.over = True
            self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    def give_up(self) -> None:
        """Let go of its parts; whoever is reading them gets no more."""
        self.given_up = True
        self._parts = []
        self._wake()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Its parts, as they are made; afterwards it is whole, or could not be made, or was given up."""
        position = 0
        self.readers += 1
        try:
            while not self.given_up and (position < len(self._parts) or not self.over):
                if position == len(self._parts):
                    await self._grown.wait()
                else:
                    position += 1
                    yield self._parts[position - 1]
        finally:
            self.readers -= 1

    def age(self, now: float) -> float:
        """How long ago it was begun, in seconds."""
        return now - self._began_at

    @property
    def failed(self) -> bool:
        """Whether it is not, and will not be, all that the mirror held."""
        return self.given_up or (self.over and not self._whole)

    async def aclose(self) -> None:
        """Make no more of it."""
        await end(self._making)


Opening = Callable[["Stream"], AsyncGenerator[bytes, None]]
"""What a stream begins with, before what waits in its queue."""


class Stream:
    """What one follower is to be told, in order; to be read by one task."""

    def __init__(self, opening: Opening, leave: Callable[["Stream"], None], waiting: Iterable[bytes]) -> None:
        self._opening: Opening | None = opening
        self._leave = leave
        self._queue = deque(waiting)
        self._bytes = sum(map(cost, self._queue))
        self._filled = asyncio.Event()
        self.ended: Why | None = None
        """Why there is nothing more to come."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when it is ended from this side; a reader that is stuck should be, soon."""

    def push(self, event: bytes) -> None:
        """Have one more event told once it is woken; whoever has too much before him is told that, and nothing more."""
        if self.ended is not None:
            return
        self._queue.append(event)
        self._bytes += cost(event)
        if self._bytes > QUEUE_MAX_BYTES:
            self.end("too_slow")

    def wake(self) -> None:
        """Have what waits written."""
        if self._queue:
            self._filled.set()

    def end(self, why: Why) -> None:
        """Say why this is the end. Queued events are dropped, unless the process stops and cannot be resumed from."""
        if self.ended is None:
            self.ended = why
            if why != "shutdown":
                self._queue.clear()
            self._queue.append(encode(Reset(why)))
            self._filled.set()
            self.on_end()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """What is to be written, until the end; to be asked for once."""
        assert self._opening is not None
        opening, self._opening = self._opening(self), None  # who stays would keep a whole snapshot with it
        async with aclosing(opening):
            async for piece in opening:
                if self.ended is not None:
                    break
                yield piece
        self.wake()
        while self.ended is None or self._queue:
            await self._filled.wait()
            yield self._take()

    def _take(self) -> bytes:
        taken = [self._queue.popleft()]
        size = len(taken[0])
        while self._queue and size + len(self._queue[0]) <= PIECE_MAX_BYTES:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        self._bytes -= sum(map(cost, taken))
        if not self._queue:
            self._filled.clear()
        return b"".join(taken)

    def close(self) -> None:
        """Nobody reads it any more."""
        self._leave(self)


class Feed:
    """What the reader of this process learns, told to all who follow."""

    def __init__(
        self, reader: Reader, max_subscribers: int, metrics: Metrics, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._reader = reader
        self._monotonic = monotonic
        self._max_subscribers = max_subscribers
        self._metrics = metrics
        self._streams: set[Stream] = set()
        self._to_wake: dict[Stream, None] = {}
        self._ring = Ring(secrets.token_hex(8))
        self._untold: deque[list[Revocation]] = deque()
        self._told_at = -math.inf
        self._tell_later: asyncio.TimerHandle | None = None
        self._snapshots: list[Snapshot] = []
        """Those that are kept, or still being made; the newest is the last."""
        self._leaving = False
        self.ended = False
        """True once every stream has ended."""
        self._unsubscribe: Callable[[], None] = lambda: None
        self._beating: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen to the reader, and beat."""
        self._unsubscribe = self._reader.subscribe(self._learn)
        self._beating = begin("feed-heartbeat", self._beat())

    def leave(self) -> None:
        """Tell every follower that the process is about to stop, and accept no new one.

        They ask the service from then on, and still hear of what this process acknowledges until `end`: there may be no
        other instance to ask.
        """
        if not self._leaving:
            self._leaving = True
            self._tell_all(encode(Reset("shutdown")))

    def end(self) -> None:
        """End every stream, with all that was learned until now; no revocation may be acknowledged afterwards."""
        self.leave()
        while self._untold:
            self._tell()
        self.ended = True
        for stream in [*self._streams]:
            stream.end("shutdown")

    async def aclose(self) -> None:
        """End everything."""
        self.end()
        self._unsubscribe()
        if self._tell_later is not None:
            self._tell_later.cancel()
        for snapshot in [*self._snapshots]:
            await snapshot.aclose()
        await end(self._beating)

    def follow(self, cursor: str | None) -> Stream:
        """A new follower's stream: all there is, or what he has missed since `cursor`, and then what comes.

        Raises FeedUnavailable, TooManySubscribers.
        """
        if self._leaving or not self._reader.synced or self._reader.doubt.doubtful:
            raise FeedUnavailable("this process is about to stop, or its mirror is not in step with Redis yet")
        if len(self._streams) >= self._max_subscribers:
            raise TooManySubscribers("as many mirrors follow this process as REVOCATION_FEED_MAX_SUBSCRIBERS allows")
        self._tell()
        missed = None if cursor is None else self._ring.since(cursor)
        kind = "resumed" if missed is not None else "begun" if cursor is None else "reset"
        self._metrics.feed_streams.labels(kind).inc()
        stream = self._resumed(missed) if missed is not None else self._begun(reset=cursor is not None)
        self._streams.add(stream)
        self._metrics.feed_subscribers.set(len(self._streams))
        return stream

    def _leave(self, stream: Stream) -> None:
        if stream in self._streams:
            self._streams.discard(stream)
            self._metrics.feed_subscribers.set(len(self._streams))
            self._metrics.feed_streams_ended.labels(stream.ended or "left").inc()

    def _resumed(self, missed: list[bytes]) -> Stream:
        """Synced is said last, with the cursor that holds when all that was missed has been told."""
        synced = self._synced(self._ring.cursor)

        async def opening(stream: Stream) -> AsyncGenerator[bytes, None]:
            yield self._heartbeat(vouches=False)
            stream.push(self._proof())

        return Stream(opening, self._leave, [*missed, synced])

    def _begun(self, *, reset: bool) -> Stream:
        """From a snapshot on; heartbeats between its parts only tell that there is more to come."""
        snapshot, since = self._shared_snapshot()
        synced = self._synced(snapshot.cursor)

        async def opening(stream: Stream) -> AsyncGenerator[bytes, None]:
            yield self._heartbeat(vouches=False)
            if reset:
                yield encode(Reset("unknown_cursor"))
            beaten_at = self._monotonic()
            async with aclosing(snapshot.parts()) as parts:
                async for part in parts:
                    yield part
                    if self._monotonic() - beaten_at >= HEARTBEAT_SECONDS:
                        beaten_at = self._monotonic()
                        yield self._heartbeat(vouches=False)
            if snapshot.failed:
                stream.end("too_slow" if snapshot.given_up else "lost")
                return
            yield synced
            stream.push(self._proof())

        return Stream(opening, self._leave, since)

    def _synced(self, cursor: str) -> bytes:
        return encode(Synced(cursor, self._reader.complete, self._reader.mirror.skew_seconds))

    def _shared_snapshot(self) -> tuple[Snapshot, list[bytes]]:
        """One that was begun a moment ago, and what changed since; or one that begins now."""
        kept = self._kept_snapshots()
        if kept and kept[-1].age(self._monotonic()) <= (SNAPSHOT_LEFT_SECONDS if kept[1:] else SNAPSHOT_SHARED_SECONDS):
            since = self._ring.since(kept[-1].cursor)
            if since is not None and not kept[-1].failed:
                return kept[-1], since
        for late in kept[: 1 - SNAPSHOTS_MOST]:
            late.give_up()
        self._snapshots.append(Snapshot(self._reader.mirror, self._ring.cursor, self._monotonic()))
        return self._snapshots[-1], []

    def _kept_snapshots(self) -> list[Snapshot]:
        """Those that somebody reads, or the next who comes may be given; of the others this lets go."""
        now = self._monotonic()
        young = [each for each in self._snapshots[-1:] if each.age(now) <= SNAPSHOT_SHARED_SECONDS]
        self._snapshots = [each for each in self._snapshots if each.readers or each in young or not each.over]
        return [each for each in self._snapshots if not each.given_up]

    def _learn(self, _cursor: str, revocations: list[Revocation]) -> None:
        """Something was learned; while nobody can follow yet, it is for the snapshot to tell."""
        if not self._reader.synced:
            return
        news = list(_tellable(revocations))
        for first in range(0, len(news), EVENT_MAX_REVOCATIONS):
            self._untold.append(news[first : first + EVENT_MAX_REVOCATIONS])
        if self._tell_later is None:
            self._tell_after(self._told_at + self._pause_seconds() - asyncio.get_running_loop().time())

    def _pause_seconds(self) -> float:
        shortest, longest = PAUSE_SECONDS
        return min(max(shortest, PAUSE_SECONDS_A_FOLLOWER * len(self._streams)), longest)

    def _tell_after(self, seconds: float) -> None:
        if seconds > 0:
            self._tell_later = asyncio.get_running_loop().call_later(seconds, self._tell)
        else:
            self._tell()

    def _tell(self) -> None:
        """Tell what is untold, as few events as it takes; if it is very much, the rest a little later."""
        if self._tell_later is not None:
            self._tell_later.cancel()
            self._tell_later = None
        for _ in range(TELL_MAX_EVENTS):
            if self._untold:
                self._tell_one()
        self._told_at = asyncio.get_running_loop().time()
        if self._untold:
            self._tell_after(self._pause_seconds())

    def _tell_one(self) -> None:
        together = self._untold.popleft()
        while self._untold and len(together) + len(self._untold[0]) <= EVENT_MAX_REVOCATIONS:
            together += self._untold.popleft()
        event = encode(Change(self._ring.next_cursor, together))
        self._ring.add(event)
        self._tell_all(event)

    def _tell_all(self, event: bytes) -> None:
        for stream in [*self._streams]:
            stream.push(event)
        pending = bool(self._to_wake)
        self._to_wake.update(dict.fromkeys(self._streams))
        if not pending:
            self._wake_some()

    def _wake_some(self) -> None:
        """Those who have waited longest; a loop that woke them all would do nothing else until all are written to."""
        for stream in [*islice(self._to_wake, WAKE_AT_ONCE)]:
            del self._to_wake[stream]
            stream.wake()
        if self._to_wake:
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _heartbeat(self, *, vouches: bool) -> bytes:
        behind = self._reader.age(self._monotonic()) if vouches else math.inf
        return encode(Heartbeat(behind, self._monotonic(), self._reader.complete))

    def _proof(self) -> bytes:
        """A heartbeat that vouches for all that was told before it; where something is untold, it does not."""
        self._tell()
        return self._heartbeat(vouches=not self._untold)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._kept_snapshots()
            self._tell_all(self._proof())
