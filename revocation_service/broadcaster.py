"""Send the revocations of one mirror to many subscribers. Knows neither HTTP nor Redis.

Each change is encoded once, into the replay buffer. Each subscriber has a position in this buffer, so a slow one holds
at most one chunk and delays no other. Once the buffer drops its position, the subscriber has to resync. Subscribers
share one snapshot while it is read.
"""

import asyncio
import itertools
import math
import secrets
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Final

from revocation_client.feed_events import Change, Heartbeat, Reset, Snapshot, Synced, encode
from revocation_client.revocation import Revocation
from revocation_client.schema import VALUE_MAX_CHARACTERS
from revocation_service.errors import FeedUnavailable, TooManySubscribers
from revocation_service.metrics import Metrics
from revocation_service.replay_buffer import ReplayBuffer
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.tasks import begin, end

HEARTBEAT_SECONDS: Final = 1.0

EVENT_MAX_REVOCATIONS: Final = 250
"""So few that decoding an event triggers no garbage collection of an application's large heap."""

CHUNK_BYTES: Final = 64 * 1024
"""A chunk of this size takes no more events. A subscriber that does not read holds at most one chunk in memory."""


def _parts(revocations: Iterable[Revocation]) -> Iterator[list[Revocation]]:
    """Yield the revocations in parts that fit an event. Omit values of foreign writers too long for a check."""
    rest = (each for each in revocations if len(each.value) <= VALUE_MAX_CHARACTERS)
    while part := [*itertools.islice(rest, EVENT_MAX_REVOCATIONS)]:
        yield part


def _encoded(revocations: Iterator[Revocation]) -> Iterator[bytes]:
    for part in _parts(revocations):
        yield encode(Snapshot(part))
    yield b""  # without it, an error that another reader caused would look like the end


@dataclass(eq=False)
class SharedSnapshot:
    """The entries of a mirror, encoded as events. Events that one reader has encoded are kept for the others."""

    events: Iterator[bytes]
    """From `itertools.tee`, so that each reader takes a copy. An empty event is the end."""
    position: int
    """The position in the replay buffer from which changes complete this snapshot."""


class Broadcaster:
    """Accepts subscribers, and passes on what the mirror of this process learns."""

    def __init__(self, sync: MirrorSync, max_subscribers: int, metrics: Metrics) -> None:
        self.buffer = ReplayBuffer(secrets.token_hex(8))
        self.ended = False
        """True once every stream ends; no revocation may be acknowledged afterwards."""
        self._news = asyncio.Event()  # wakes the streams that wait for the next event; it is never left set
        self._sync = sync
        self._places = max_subscribers
        self._metrics = metrics
        self._snapshot: Callable[[], SharedSnapshot | None] = lambda: None
        self._leaving = False
        self._heartbeats: list[asyncio.Task[None]] = []

    async def aclose(self) -> None:
        """End every stream, and the heartbeats."""
        self.end()
        await end(self._heartbeats)

    def leave(self) -> None:
        """Tell subscribers to ask the service, and accept no new subscribers. Changes are still sent until `end`."""
        if not self._leaving:
            self._leaving = True
            self._send(encode(Reset("shutdown")))

    def end(self) -> None:
        """End every stream after the changes that it still has to send."""
        if not self.ended:
            self.leave()
            self.ended = True
            self._send(encode(Reset("shutdown")))

    @contextmanager
    def subscription(self, cursor: str | None) -> Iterator[AsyncGenerator[bytes, None]]:
        """Yield a new stream, an iterator of chunks. It resumes from the cursor, or begins with a snapshot.

        Raises FeedUnavailable, TooManySubscribers.
        """
        if self._leaving or not self._sync.feeds():
            raise FeedUnavailable("this process is about to stop, or its mirror is not in sync with Redis yet")
        if not self._places:
            raise TooManySubscribers("this process has as many subscribers as REVOCATION_FEED_MAX_SUBSCRIBERS allows")
        if not self._heartbeats:  # this is the first: until now no cursor existed, so no change had to be kept
            self._sync.subscribe(self._learn)
            self._heartbeats = begin("feed-heartbeat", self._send_heartbeats())
        self._places -= 1
        try:
            with self._metrics.feed_subscribers.track_inprogress():
                yield self._begin(cursor)
        finally:
            self._places += 1

    def _begin(self, cursor: str | None) -> AsyncGenerator[bytes, None]:
        position = None if cursor is None else self.buffer.position(cursor)
        kind = "begun" if cursor is None else "reset" if position is None else "resumed"
        self._metrics.feed_streams.labels(kind).inc()
        if position is not None:
            return self._stream(position)
        snapshot = self._snapshot()
        if snapshot is None or snapshot.position < self.buffer.start:
            snapshot = SharedSnapshot(itertools.tee(_encoded(self._sync.told()), 1)[0], self.buffer.end)
            self._snapshot = weakref.ref(snapshot)  # only its readers keep it alive
        return self._stream(snapshot.position, snapshot, Reset("unknown_cursor") if kind == "reset" else None)

    async def _stream(
        self, position: int, snapshot: SharedSnapshot | None = None, reset: Reset | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a stream, in the order that `feed_events` states."""
        yield self._heartbeat(proves=False) + (encode(reset) if reset else b"")
        if snapshot is not None:
            events = copy(snapshot.events)
            while event := next(events):
                yield event
                await asyncio.sleep(0)  # to write need not wait, and a snapshot must not hold the event loop
            del snapshot, events
        synced = False
        while position >= self.buffer.start:
            chunk, position = self.buffer.read(position, CHUNK_BYTES)
            if chunk:
                yield chunk
                await asyncio.sleep(0)
            elif not synced:
                synced = True
                yield self._synced(position) + self._heartbeat(proves=True)
            elif self.ended:
                return
            else:
                await self._news.wait()
        yield encode(Reset("too_slow"))

    def _heartbeat(self, *, proves: bool) -> bytes:
        """Encode a heartbeat. With `proves=False`, it tells the clock of this process, but no age of the mirror."""
        staleness = self._sync.staleness() if proves else math.inf
        return encode(Heartbeat(staleness, time.monotonic(), self._sync.complete))

    def _synced(self, position: int) -> bytes:
        sync = self._sync
        return encode(Synced(self.buffer.cursor(position), sync.complete, sync.mirror.skew_seconds))

    def _learn(self, revocations: list[Revocation]) -> None:
        for part in _parts(revocations):
            self._send(encode(Change(self.buffer.cursor(self.buffer.end + 1), part)))

    def _send(self, event: bytes) -> None:
        self.buffer.append(event)
        self._news.set()  # whatever waits now goes on, also after `clear`
        self._news.clear()

    async def _send_heartbeats(self) -> None:
        """Append a heartbeat to the buffer every second, after the changes that it covers."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._send(self._heartbeat(proves=True))
