"""Follow the feed and keep the local mirror current: connect, take the snapshot, follow, resume, back off."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Final

from revocation_client.counters import Counters
from revocation_client.errors import RequestRefused, RevocationError, ServiceUnavailable, UnexpectedAnswer
from revocation_client.feed_events import Change, Event, FeedError, Heartbeat, Parser, Reset, Snapshot, Synced
from revocation_client.local_mirror import Clock, LocalMirror
from revocation_client.log_limit import Warnings
from revocation_client.retry import FEED_BACKOFF_SECONDS, backoff_seconds

BEGIN_SECONDS: Final = 5.0
"""Timeout for the first event of a stream."""

SILENCE_SECONDS: Final = 3.0
"""How long a stream may then be without a heartbeat or a part of the snapshot."""

STEADY_SECONDS: Final = 10.0
"""How long a stream must be synced for the next backoff to be a short one again."""

CLOCK_STEP_SECONDS: Final = 1.0
"""By how much two clocks may move against each other before the stream is begun again."""

TURN_SECONDS: Final = 0.005
"""How long events are applied at a stretch, before the application gets a turn of the event loop."""

Feed = Callable[[str | None], AsyncGenerator[bytes]]
"""Returns the bytes of a stream that resumes at a cursor: `Http.feed`."""

_log = logging.getLogger("revocation_client")


class Follower:
    """Follows one feed into one mirror, in a task of its own from `start` to `aclose`."""

    def __init__(self, feed: Feed, mirror: LocalMirror, counters: Counters, *, wall: Clock, monotonic: Clock) -> None:
        self._feed = feed
        self._mirror = mirror
        self._counters = counters
        self._progress = _Progress(mirror, wall, monotonic)
        self._warnings = Warnings(monotonic)
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start following, on the running event loop. Returns immediately: connecting happens in the background."""
        self._task = asyncio.create_task(self._follow_forever(), name="revocation-follower")
        self._task.add_done_callback(self._ended)

    def _ended(self, _task: object) -> None:
        """Mark the mirror as disconnected, and wake `ready`, for whatever reason the task ended."""
        self._mirror.mark_disconnected()
        self._ready.set()

    async def aclose(self) -> None:
        """Stop following. The mirror keeps its revocations, but without a proof that none is missing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._mirror.mark_unproven()

    async def ready(self, timeout_seconds: float | None) -> bool:
        """Wait until the mirror was synced for the first time. Return whether it was, and the follower still runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._ready.wait()
        return self._ready.is_set() and self._task is not None and not self._task.done()

    async def _follow_forever(self) -> None:
        failures = 0
        while True:
            error = await self._follow()
            failures = 1 if self._progress.steady else failures + 1
            self._note_end(error)
            self._mirror.expire()  # without a stream there are no heartbeats to do it
            if failures > 1 or not self._progress.leaving:
                await asyncio.sleep(backoff_seconds(failures, FEED_BACKOFF_SECONDS))

    def _note_end(self, error: RevocationError) -> None:
        self._mirror.mark_disconnected()
        self._mirror.last_error = str(error)
        if isinstance(error, RequestRefused) and error.status in (401, 403):
            fields = f"status={error.status} code={error.code} detail={error.detail}"
            self._warnings.warn("revocation_mirror_refused", fields, logging.ERROR)
        else:
            self._warnings.warn("revocation_mirror_disconnected", f"detail={error}")

    async def _follow(self) -> RevocationError:
        """Follow one stream to its end; return why it ended."""
        self._progress.begin_stream()
        try:
            await self._read()
            return ServiceUnavailable("the service shut down" if self._progress.leaving else "the feed ended")
        except RevocationError as error:
            return error
        except TimeoutError:
            return ServiceUnavailable("the feed was silent for too long")
        except FeedError as error:
            self._progress.cursor = None
            return UnexpectedAnswer(str(error))
        except Exception as fault:  # noqa: BLE001 - a fault of ours must not end the mirror silently
            _log.error("revocation_mirror_failed error=%s", type(fault).__name__, exc_info=fault)
            return UnexpectedAnswer(f"a fault of the client itself ({type(fault).__name__})")

    async def _read(self) -> None:
        """Apply the events of a stream until it ends. Raises RevocationError, TimeoutError, FeedError."""
        loop, parser, begun = asyncio.get_running_loop(), Parser(), False
        monotonic = self._progress.monotonic
        async with asyncio.timeout(BEGIN_SECONDS) as silence, aclosing(self._feed(self._progress.cursor)) as chunks:
            async for chunk in chunks:
                self._counters.streams += not begun
                begun, turn_began = True, monotonic()
                for event, unknown in parser.feed(chunk):
                    silence.reschedule(loop.time() + SILENCE_SECONDS)
                    self._counters.snapshots += isinstance(event, Synced) and self._progress.cursor is None
                    self._progress.apply(event, unknown)
                    if self._mirror.synced:
                        self._mirror.last_error = None
                        self._ready.set()
                    if monotonic() - turn_began >= TURN_SECONDS:
                        await asyncio.sleep(0)
                        turn_began = monotonic()


class _Progress:
    """Applies events to the mirror, and knows how far it is in the feed."""

    def __init__(self, mirror: LocalMirror, wall: Clock, monotonic: Clock) -> None:
        self.cursor: str | None = None
        """Where a stream can be resumed; None if a whole snapshot is needed."""
        self.leaving = False
        """True once the service has said on this stream that it is shutting down."""
        self.monotonic = monotonic
        self._synced_at: float | None = None
        """When this stream reached the present."""
        self._mirror = mirror
        self._wall = wall
        self._wall_offset = wall() - monotonic()
        self._sender = SenderClock(monotonic())
        self._understood = True

    @property
    def steady(self) -> bool:
        """True once this stream has been synced for `STEADY_SECONDS`."""
        return self._synced_at is not None and self.monotonic() - self._synced_at >= STEADY_SECONDS

    def begin_stream(self) -> None:
        """Record that a stream is requested from `cursor`."""
        self.leaving, self._synced_at = False, None
        self._sender = SenderClock(self.monotonic())
        self._note_clock_step()

    def apply(self, event: Event | None, unknown: str | None) -> None:
        """Apply an event, and note the unknown part of it. Raises ServiceUnavailable if the stream ends with it."""
        if unknown is not None:
            self._note_unknown(unknown)
        match event:
            case Heartbeat():
                self._beat(event)
            case Snapshot(revocations):
                self._start_over()
                self._mirror.learn(*revocations)
            case Change(cursor, revocations):
                self._mirror.learn(*revocations)
                self.cursor = self.cursor and cursor  # in the middle of a snapshot there is none
            case Synced(cursor, _complete, skew_seconds):
                self._mirror.revocations.skew_seconds = skew_seconds
                self.cursor, self._synced_at = cursor, self.monotonic()
            case Reset("shutdown"):  # the stream goes on, with what the service still acknowledges
                self.leaving = True
                self._mirror.mark_disconnected()
            case Reset(reason):
                self._start_over()
                if reason != "unknown_cursor":
                    raise ServiceUnavailable(f"the feed was reset: {reason}")

    def _start_over(self) -> None:
        """Forget the cursor: until the next snapshot is whole there is nothing to resume from."""
        self.cursor, self._synced_at = None, None
        self._mirror.mark_disconnected()

    def _note_unknown(self, unknown: str) -> None:
        """Let memory say only what is revoked, until the client is started again. Log this once."""
        if self._understood:
            _log.warning("revocation_feed_not_understood unknown=%s", unknown)
            self._understood = False
            self._mirror.mark_unproven()

    def _beat(self, beat: Heartbeat) -> None:
        """Apply a heartbeat. Before `synced`, a heartbeat only tells the time of the sender's clock."""
        if self._note_clock_step():
            raise ServiceUnavailable("the wall clock was changed, or the machine was suspended")
        now = self.monotonic()
        late_seconds = now - self._sender.to_local(beat.sent_at, now)
        self._mirror.expire()
        if self._synced_at is None:
            return
        age_seconds, complete = late_seconds + beat.behind_seconds, beat.complete and self._understood
        connected = not self.leaving and math.isfinite(age_seconds)
        self._mirror.mark_fresh(age_seconds, complete=complete, connected=connected)
        if late_seconds > CLOCK_STEP_SECONDS and self.steady:
            raise ServiceUnavailable("the sender's clock has drifted, or the stream began late: it is resumed")

    def _note_clock_step(self) -> bool:
        """Drop all proofs if the wall clock has moved against the monotonic clock. Return whether it has.

        A whole snapshot is then needed: while the wall clock was ahead, revocations may have seemed to end too early.
        """
        before, self._wall_offset = self._wall_offset, self._wall() - self.monotonic()
        if abs(self._wall_offset - before) <= CLOCK_STEP_SECONDS:
            return False
        self._mirror.mark_unproven()
        self.cursor = None
        return True


class SenderClock:
    """Converts times of a sender's monotonic clock to the local monotonic clock, for one stream.

    The offset between the clocks is estimated as the smallest one seen on the stream. The first heartbeat counts as
    sent when the stream was requested. A heartbeat may therefore seem too old, but not too new. So the heartbeats
    that a frozen process finds in its buffer do not count as fresh.
    """

    def __init__(self, asked_at: float) -> None:
        self._asked_at = asked_at
        self._distance: float | None = None

    def to_local(self, sent_at: float, now: float) -> float:
        """Return the local time at which a heartbeat read at `now` was sent, or an earlier time."""
        first = self._asked_at if self._distance is None else sent_at + self._distance
        self._distance = min(first, now) - sent_at
        return sent_at + self._distance
