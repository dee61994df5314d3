"""Send the revocations of one mirror to many subscribers. Knows neither HTTP nor Redis.

Each change is encoded once, into the replay buffer. A subscription is a position there: a slow one takes no memory,
delays no other, and has to resync once the buffer drops its position. Subscribers share one snapshot while it is read.
"""

import asyncio
import itertools
import math
import secrets
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
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
"""A write has no more events once it has so many bytes. A subscriber that reads nothing holds one write in memory."""


def _parts(revocations: Iterable[Revocation]) -> Iterator[list[Revocation]]:
    """Yield the revocations in parts that fit an event, without foreign writers' values that no check can name."""
    rest = (each for each in revocations if len(each.value) <= VALUE_MAX_CHARACTERS)
    while part := [*itertools.islice(rest, EVENT_MAX_REVOCATIONS)]:
        yield part


class SharedSnapshot:
    """The entries of a mirror as text, in chunks. The first reader of a chunk encodes it; it is kept for the others."""

    def __init__(self, revocations: Iterator[Revocation], position: int) -> None:
        self.position = position
        """The position in the replay buffer from which changes complete this snapshot."""
        self._encoder = self._encode(revocations)
        self._chunks: list[bytes] = []

    @staticmethod
    def _encode(revocations: Iterator[Revocation]) -> Iterator[bytes]:
        for part in _parts(revocations):
            yield encode(Snapshot(part))
        yield b""  # the end: without it, an error of another reader would look like the end

    def chunks(self) -> Iterator[bytes]:
        """Yield all chunks. Raises RuntimeError if the encoding failed for another reader."""
        for number in itertools.count():
            if number == len(self._chunks):
                self._chunks.append(next(self._encoder))
            if not self._chunks[number]:
                return
            yield self._chunks[number]


class Subscription:
    """What one subscriber is sent, in order; read by one task."""

    def __init__(self, broadcaster: "Broadcaster", position: int, snapshot: Iterator[bytes]) -> None:
        self.too_slow = False
        """True once the buffer dropped an event that the subscriber lacks."""
        self._broadcaster = broadcaster
        self._position = position
        self._snapshot = snapshot

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the text of the stream, in the order that `feed_events` states. To be called once."""
        feed, synced = self._broadcaster, False
        yield feed.heartbeat(proves=False)
        for chunk in self._snapshot:
            yield chunk
            await asyncio.sleep(0)  # to write need not wait, and a snapshot must not hold the event loop
        self._snapshot = iter(())
        while self._position >= feed.buffer.start:
            chunk, self._position = feed.buffer.read(self._position, CHUNK_BYTES)
            if chunk:
                yield chunk
                await asyncio.sleep(0)
            elif not synced:
                synced = True
                yield feed.synced(self._position) + feed.heartbeat(proves=True)
            elif feed.ended:
                return
            else:
                await feed.news.wait()
        self.too_slow = True
        yield encode(Reset("too_slow"))


class Broadcaster:
    """Accepts subscribers, and passes on what the mirror of this process learns."""

    def __init__(self, sync: MirrorSync, max_subscribers: int, metrics: Metrics) -> None:
        self.buffer = ReplayBuffer(secrets.token_hex(8))
        self.news = asyncio.Event()
        """Wakes those that wait for the next event; it is never left set."""
        self.ended = False
        """True once every stream ends; no revocation may be acknowledged afterwards."""
        self._sync = sync
        self._max_subscribers = max_subscribers
        self._metrics = metrics
        self._subscribers = 0
        self._snapshot: Callable[[], SharedSnapshot | None] = lambda: None
        self._leaving = False
        self._heartbeats: list[asyncio.Task[None]] = []

    async def aclose(self) -> None:
        """End every stream, and the heartbeats."""
        self.end()
        await end(self._heartbeats)

    def leave(self) -> None:
        """Tell subscribers to ask the service, and accept no new one. Changes are still sent until `end`."""
        if not self._leaving:
            self._leaving = True
            self._send(encode(Reset("shutdown")))

    def end(self) -> None:
        """End every stream, behind the changes that it still has to send."""
        if not self.ended:
            self.leave()
            self.ended = True
            self._send(encode(Reset("shutdown")))

    def subscribe(self, cursor: str | None) -> Subscription:
        """Resume from the cursor, or begin with a snapshot. Raises FeedUnavailable, TooManySubscribers."""
        if self._leaving or not self._sync.feeds():
            raise FeedUnavailable("this process is about to stop, or its mirror is not in sync with Redis yet")
        if self._subscribers >= self._max_subscribers:
            raise TooManySubscribers("this process has as many subscribers as REVOCATION_FEED_MAX_SUBSCRIBERS allows")
        if not self._heartbeats:  # this is the first: until now no cursor existed, so no change had to be kept
            self._sync.subscribe(self._learn)
            self._heartbeats = begin("feed-heartbeat", self._send_heartbeats())
        subscription = self._begin(cursor)
        self._subscribers += 1
        self._metrics.feed_subscribers.inc()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Free the place of a subscriber whose stream has ended."""
        self._subscribers -= 1
        self._metrics.feed_subscribers.dec()
        reason = "too_slow" if subscription.too_slow else "shutdown" if self.ended else "left"
        self._metrics.feed_streams_ended.labels(reason).inc()

    def _begin(self, cursor: str | None) -> Subscription:
        position = None if cursor is None else self.buffer.position(cursor)
        kind = "begun" if cursor is None else "reset" if position is None else "resumed"
        self._metrics.feed_streams.labels(kind).inc()
        if position is not None:
            return Subscription(self, position, iter(()))
        snapshot = self._snapshot()
        if snapshot is None or snapshot.position < self.buffer.start:
            snapshot = SharedSnapshot(self._sync.told(), self.buffer.end)
            self._snapshot = weakref.ref(snapshot)  # only its readers keep it alive
        resets = [] if cursor is None else [encode(Reset("unknown_cursor"))]
        return Subscription(self, snapshot.position, itertools.chain(resets, snapshot.chunks()))

    def heartbeat(self, *, proves: bool) -> bytes:
        """Encode a heartbeat. One that proves nothing only tells this process' clock."""
        staleness = self._sync.staleness() if proves else math.inf
        return encode(Heartbeat(staleness, time.monotonic(), self._sync.complete))

    def synced(self, position: int) -> bytes:
        """Encode the event that ends a snapshot, or what was missed."""
        sync = self._sync
        return encode(Synced(self.buffer.cursor(position), sync.complete, sync.mirror.skew_seconds))

    def _learn(self, revocations: list[Revocation]) -> None:
        for part in _parts(revocations):
            self._send(encode(Change(self.buffer.cursor(self.buffer.end + 1), part)))

    def _send(self, event: bytes) -> None:
        self.buffer.append(event)
        self.news.set()  # whatever waits now goes on, also after `clear`
        self.news.clear()

    async def _send_heartbeats(self) -> None:
        """Put a heartbeat behind the changes that it proves, each second."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._send(self.heartbeat(proves=True))
