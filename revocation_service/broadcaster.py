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
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator
from typing import Final, Protocol

from revocation_client.feed_events import Change, Heartbeat, Reset, Snapshot, Synced, Why, encode
from revocation_client.mirror import Mirror
from revocation_client.revocation import Revocation
from revocation_client.schema import VALUE_MAX_CHARACTERS
from revocation_service.errors import FeedUnavailable, TooManySubscribers
from revocation_service.metrics import Metrics
from revocation_service.replay_buffer import ReplayBuffer
from revocation_service.tasks import begin, end

HEARTBEAT_SECONDS: Final = 1.0

EVENT_MAX_REVOCATIONS: Final = 250
"""So few that decoding an event triggers no garbage collection of an application's large heap."""

CHUNK_MAX_BYTES: Final = 64 * 1024
"""Bytes of changes in one write. A subscriber that reads nothing holds one chunk in memory."""

WRITERS_PER_TURN: Final = 25
"""Subscribers that write in one iteration of the event loop, in a millisecond. The rest wait, and send more then."""


class Source(Protocol):
    """What the broadcaster needs of the component that keeps the mirror in sync."""

    mirror: Mirror

    @property
    def complete(self) -> bool: ...  # every change is in the log: no foreign writers
    def told(self) -> Iterator[Revocation]: ...  # what a snapshot has
    def feeds(self) -> bool: ...  # a snapshot may be served
    def staleness(self) -> float: ...  # seconds since the mirror was last proven in sync; inf if unknown
    def subscribe(self, listener: Callable[[list[Revocation]], None]) -> Callable[[], None]: ...  # call to undo


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

    def __init__(self, broadcaster: "Broadcaster", position: int, snapshot: Iterator[bytes] | None) -> None:
        self.ended: Why | None = None
        self.on_end: Callable[[], None] = lambda: None
        """Called when the stream is ended; a blocked write should then be given up soon."""
        self.turn = asyncio.Event()
        self._broadcaster = broadcaster
        self._position = position
        self._snapshot = snapshot

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the text of the stream. To be called once."""
        for chunk in self._events():
            if chunk:
                yield chunk
                self._broadcaster.give_turns([self])
            if self.ended is None:
                await self.turn.wait()
                self.turn.clear()

    def _events(self) -> Iterator[bytes]:
        """Yield the events in the order that `feed_events` states; b"" while there is nothing to send."""
        yield self._broadcaster.heartbeat(proves=False)
        opening = self._snapshot or iter(self._next_chunk, b"")
        while self._is_open() and (chunk := next(opening, b"")):
            yield chunk
        if self._is_open():
            synced = self._broadcaster.synced(self._position) + self._next_chunk()
            caught_up = self._position == self._broadcaster.buffer.end
            yield synced + (self._broadcaster.heartbeat(proves=True) if caught_up else b"")
        while (chunk := self._next_chunk()) or self.ended is None:
            yield chunk
        yield encode(Reset(self.ended))

    def _next_chunk(self) -> bytes:
        """Return the next events; b"" if there are none, or the buffer dropped one."""
        if not self._is_open() and self.ended == "too_slow":
            return b""
        chunk, self._position = self._broadcaster.buffer.read(self._position, CHUNK_MAX_BYTES)
        return chunk

    def _is_open(self) -> bool:
        self.end_if_too_slow()
        return self.ended is None

    def end_if_too_slow(self) -> None:
        """End the stream if the buffer dropped an event that the subscriber lacks."""
        if self._position < self._broadcaster.buffer.start:
            self.end("too_slow")

    def end(self, why: Why) -> None:
        """Send the remaining changes, unless some were dropped, and end the stream with this reason."""
        if self.ended is None:
            self.ended = why
            self.turn.set()
            self.on_end()


class Broadcaster:
    """Accepts subscribers, and passes on what the source of this process learns."""

    def __init__(self, source: Source, max_subscribers: int, metrics: Metrics) -> None:
        self.buffer = ReplayBuffer(secrets.token_hex(8))
        self.ended = False
        """True once every stream was ended; no revocation may be acknowledged afterwards."""
        self._source = source
        self._max_subscribers = max_subscribers
        self._metrics = metrics
        self._subscriptions: set[Subscription] = set()
        self._waiting: dict[Subscription, None] = {}  # for a turn, in this order
        self._snapshot: Callable[[], SharedSnapshot | None] = lambda: None
        self._leaving = False
        self._stop_listening: Callable[[], None] = lambda: None
        self._heartbeats: list[asyncio.Task[None]] = []

    async def aclose(self) -> None:
        self.end()
        self._stop_listening()
        await end(self._heartbeats)

    def leave(self) -> None:
        """Tell subscribers to ask the service, and accept no new one. Changes are still sent until `end`."""
        if not self._leaving:
            self._leaving = True
            self._send(encode(Reset("shutdown")))

    def end(self) -> None:
        self.leave()
        self.ended = True
        for subscription in [*self._subscriptions]:
            subscription.end("shutdown")

    def subscribe(self, cursor: str | None) -> Subscription:
        """Resume from the cursor, or begin with a snapshot. Raises FeedUnavailable, TooManySubscribers."""
        if self._leaving or not self._source.feeds():
            raise FeedUnavailable("this process is about to stop, or its mirror is not in sync with Redis yet")
        if len(self._subscriptions) >= self._max_subscribers:
            raise TooManySubscribers("this process has as many subscribers as REVOCATION_FEED_MAX_SUBSCRIBERS allows")
        if not self._heartbeats:  # this is the first: until now no cursor existed, so no change had to be kept
            self._stop_listening = self._source.subscribe(self._learn)
            self._heartbeats = begin("feed-heartbeat", self._send_heartbeats())
        subscription = self._begin(cursor)
        self._subscriptions.add(subscription)
        self._metrics.feed_subscribers.set(len(self._subscriptions))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.remove(subscription)
        self._metrics.feed_subscribers.set(len(self._subscriptions))
        self._metrics.feed_streams_ended.labels(subscription.ended or "left").inc()

    def _begin(self, cursor: str | None) -> Subscription:
        position = None if cursor is None else self.buffer.position(cursor)
        kind = "begun" if cursor is None else "reset" if position is None else "resumed"
        self._metrics.feed_streams.labels(kind).inc()
        if position is not None:
            return Subscription(self, position, None)
        snapshot = self._snapshot()
        if snapshot is None or snapshot.position < self.buffer.start:
            snapshot = SharedSnapshot(self._source.told(), self.buffer.end)
            self._snapshot = weakref.ref(snapshot)  # only its readers keep it alive
        resets = [] if cursor is None else [encode(Reset("unknown_cursor"))]
        return Subscription(self, snapshot.position, itertools.chain(resets, snapshot.chunks()))

    def heartbeat(self, *, proves: bool) -> bytes:
        """Encode a heartbeat. One that proves nothing only tells this process' clock."""
        staleness = self._source.staleness() if proves else math.inf
        return encode(Heartbeat(staleness, time.monotonic(), self._source.complete))

    def synced(self, position: int) -> bytes:
        """Encode the end of a snapshot, or of what was missed."""
        source = self._source
        return encode(Synced(self.buffer.cursor(position), source.complete, source.mirror.skew_seconds))

    def _learn(self, revocations: list[Revocation]) -> None:
        for part in _parts(revocations):
            self._send(encode(Change(self.buffer.cursor(self.buffer.end + 1), part)))

    def _send(self, event: bytes) -> None:
        self.buffer.append(event)
        self.give_turns(self._subscriptions)

    def give_turns(self, subscriptions: Collection[Subscription]) -> None:
        """Let these write, in later iterations of the event loop; one that waits already keeps its place."""
        if subscriptions and not self._waiting:
            asyncio.get_running_loop().call_soon(self._give_next)
        self._waiting.update(dict.fromkeys(subscriptions))

    def _give_next(self) -> None:
        for subscription in [*itertools.islice(self._waiting, WRITERS_PER_TURN)]:
            del self._waiting[subscription]
            subscription.turn.set()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._give_next)

    async def _send_heartbeats(self) -> None:
        """Put a heartbeat behind the changes that it proves, each second."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._send(self.heartbeat(proves=True))
            for subscription in self._subscriptions:
                subscription.end_if_too_slow()
