"""Follow the feed and keep the local mirror current: connect, take the snapshot, follow, resume, back off."""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Final

from revocation_client.counters import Tally
from revocation_client.errors import RequestRefused, RevocationError, ServiceUnavailable, UnexpectedAnswer
from revocation_client.feed_events import Change, Event, Heartbeat, Reset, Snapshot, Synced, decode
from revocation_client.http import Feed, Stream
from revocation_client.local_mirror import Clock, LocalMirror
from revocation_client.retry import FEED_BACKOFF_SECONDS, backoff_seconds
from revocation_client.revocation import Revocation
from revocation_client.sender_clock import SenderClock
from revocation_client.sse import FeedError, Parser

BEGIN_SECONDS: Final = 5.0
"""Timeout for a stream to begin."""

SILENCE_SECONDS: Final = 3.0
"""How long a stream may then be without a heartbeat or a part of the snapshot."""

REFUSED_BACKOFF_SECONDS: Final = 60.0
"""Backoff after a 4xx, or the fourth nonsense in a row: the next answer would most likely be the same."""

STEADY_SECONDS: Final = 10.0
"""How long a stream must be synced for the next backoff to be a short one again."""

CLOCK_STEP_SECONDS: Final = 1.0
"""By how much two clocks may move against each other before the stream is begun again."""

_log = logging.getLogger("revocation_client")


class Follower:
    """Follows one feed into one mirror, in a task of its own from `start` to `aclose`."""

    def __init__(self, feed: Feed, mirror: LocalMirror, tally: Tally, *, wall: Clock, monotonic: Clock) -> None:
        self.last_error: str | None = None
        """Why the last stream ended or could not be opened; None once a later one is synced."""
        self._feed = feed
        self._mirror = mirror
        self._tally = tally
        self._progress = _Progress(mirror, wall, monotonic)
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running event loop. Returns immediately: connecting happens in the background."""
        self._task = asyncio.create_task(self._follow_forever(), name="revocation-follower")
        self._task.add_done_callback(self._ended)

    def _ended(self, _task: object) -> None:
        """Have the service asked, and end `ready`; the application, or the loop's end, may have cancelled the task."""
        self._mirror.mark_disconnected()
        self._ready.set()

    async def aclose(self) -> None:
        """End. The mirror keeps what it knows, without a proof that it is everything."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._mirror.mark_unproven()

    async def ready(self, timeout_seconds: float | None) -> bool:
        """Wait until the mirror has been synced for the first time; return whether it has, and still follows."""
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
                await asyncio.sleep(pause_seconds(failures, error))

    def _note_end(self, error: RevocationError) -> None:
        """Log a refused key each time, and other errors only when the feed was synced before."""
        self._mirror.mark_disconnected()
        if isinstance(error, RequestRefused) and error.status in (401, 403):
            _log.error("revocation_mirror_refused status=%d code=%s detail=%s", error.status, error.code, error.detail)
        elif self.last_error is None:
            _log.warning("revocation_mirror_disconnected detail=%s", error)
        self.last_error = str(error)

    async def _follow(self) -> RevocationError:
        """Follow one stream to its end; return why it ended."""
        self._progress.begin_stream()
        try:
            with closing(await self._feed.feed(self._progress.cursor, seconds=BEGIN_SECONDS)) as stream:
                self._tally.add("streams")
                await self._read(stream)
            return ServiceUnavailable("the service shut down" if self._progress.leaving else "the feed ended")
        except RevocationError as error:
            return error
        except TimeoutError:
            return ServiceUnavailable(f"the feed was silent for {SILENCE_SECONDS:g} s")
        except FeedError as error:
            self._progress.cursor = None
            return UnexpectedAnswer(str(error))
        except Exception as fault:  # noqa: BLE001 - a fault of ours must not end the mirror silently
            _log.error("revocation_mirror_failed error=%s", type(fault).__name__, exc_info=fault)
            return UnexpectedAnswer(f"a fault of the client itself ({type(fault).__name__})")

    async def _read(self, stream: Stream) -> None:
        """Apply the events of a stream until it ends. Raises RevocationError, TimeoutError, FeedError."""
        loop, parser = asyncio.get_running_loop(), Parser()
        async with asyncio.timeout(SILENCE_SECONDS) as silence:
            while chunk := await stream.read():
                for event, unknown in map(decode, parser.feed(chunk)):
                    silence.reschedule(loop.time() + SILENCE_SECONDS)
                    if isinstance(event, Synced):
                        self._tally.add("snapshots", self._progress.cursor is None)
                    self._progress.apply(event, unknown)
                    self._note_synced()
                    await asyncio.sleep(0)  # the application's turn: a snapshot may be long

    def _note_synced(self) -> None:
        if (self.last_error is not None or not self._ready.is_set()) and self._mirror.synced:
            _log.info("revocation_mirror_synced entries=%d", len(self._mirror.revocations))
            self.last_error = None
            self._ready.set()


class _Progress:
    """Applies events to the mirror, and knows how far it is in the feed."""

    def __init__(self, mirror: LocalMirror, wall: Clock, monotonic: Clock) -> None:
        self.cursor: str | None = None
        """Where a stream can be resumed; None if a whole snapshot is needed."""
        self.leaving = False
        """True once the service has said on this stream that it is shutting down."""
        self._synced_at: float | None = None
        """When this stream reached the present."""
        self._mirror = mirror
        self._wall = wall
        self._monotonic = monotonic
        self._wall_offset = wall() - monotonic()
        self._sender = SenderClock(monotonic())
        self._understood = True

    @property
    def steady(self) -> bool:
        """True once this stream has been synced for `STEADY_SECONDS`."""
        return self._synced_at is not None and self._monotonic() - self._synced_at >= STEADY_SECONDS

    def begin_stream(self) -> None:
        """Note that a stream is requested from `cursor`."""
        self.leaving, self._synced_at = False, None
        self._sender = SenderClock(self._monotonic())
        self._note_clock_step()

    def apply(self, event: Event | None, unknown: str | None) -> None:
        """Apply an event, and what in it is unknown. Raises ServiceUnavailable if the stream ends with it."""
        if unknown is not None:
            self._note_unknown(unknown)
        match event:
            case Heartbeat():
                self._beat(event)
            case Snapshot(revocations):
                self._start_over()
                self._learn(revocations)
            case Change(cursor, revocations):
                self._learn(revocations)
                self.cursor = self.cursor and cursor  # in the middle of a snapshot there is none
            case Synced(cursor, _complete, skew_seconds):
                self._mirror.revocations.skew_seconds = skew_seconds
                self.cursor, self._synced_at = cursor, self._monotonic()
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

    def _learn(self, revocations: Sequence[Revocation]) -> None:
        for revocation in revocations:
            self._mirror.learn(revocation)

    def _note_unknown(self, unknown: str) -> None:
        """Have memory say only what is revoked until the client is restarted. Logged once."""
        if self._understood:
            _log.warning("revocation_feed_not_understood unknown=%s", unknown)
            self._understood = False
            self._mirror.mark_unproven()

    def _beat(self, beat: Heartbeat) -> None:
        """Take a heartbeat. One before `synced` only tells the sender's clock."""
        if self._note_clock_step():
            raise ServiceUnavailable("the wall clock was changed, or the machine was suspended")
        now, complete = self._monotonic(), beat.complete and self._understood
        late_seconds = now - self._sender.to_local(beat.sent_at, now)
        self._mirror.expire()
        if self._synced_at is None:
            return
        if math.isfinite(beat.behind_seconds):
            age_seconds = late_seconds + beat.behind_seconds
            self._mirror.mark_fresh(age_seconds, complete=complete, connected=not self.leaving)
        elif not complete:
            self._mirror.mark_unproven()
        if late_seconds > CLOCK_STEP_SECONDS and self.steady:
            raise ServiceUnavailable("the sender's clock has drifted, or the stream began late: it is resumed")

    def _note_clock_step(self) -> bool:
        """Return whether the wall clock has moved against the monotonic clock: what was proven may not hold any more.

        If it was set back, revocations may have seemed to end too early: a whole snapshot is needed.
        """
        before, self._wall_offset = self._wall_offset, self._wall() - self._monotonic()
        if abs(self._wall_offset - before) <= CLOCK_STEP_SECONDS:
            return False
        self._mirror.mark_unproven()
        if self._wall_offset < before:
            self.cursor = None
        return True


def pause_seconds(failures: int, error: RevocationError, jitter: Callable[[], float] = random.random) -> float:
    """Return how long to wait before the next try; longer if the service refuses the key, or is not understood."""
    if isinstance(error, RequestRefused) or (isinstance(error, UnexpectedAnswer) and failures > 3):
        return REFUSED_BACKOFF_SECONDS * (0.5 + jitter() / 2)
    asked = error.retry_after_seconds if isinstance(error, ServiceUnavailable) else None
    return backoff_seconds(failures, FEED_BACKOFF_SECONDS, min(asked or 0.0, REFUSED_BACKOFF_SECONDS), jitter)
