"""From the feed to the memory: connect, take the snapshot, follow, resume, back off, begin again, as long as it runs.

It never says what is true of a token. It merges what it hears, tells the memory when a heartbeat proves that nothing is
missing, and tells it at once when the service leaves or the connection ends.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from revocation_client.api import Feed, Stream
from revocation_client.counters import Tally
from revocation_client.errors import RequestRefused, RevocationError, ServiceUnavailable, UnexpectedAnswer
from revocation_client.feed import Change, Event, FeedError, Heard, Heartbeat, Parser, Reset, Snapshot, Synced, decode
from revocation_client.freshness import Freshness
from revocation_client.glance import Clock
from revocation_client.memory import Memory
from revocation_client.model import Revocation

BEGIN_SECONDS: Final = 5.0
"""How long a stream may take to begin."""

SILENCE_SECONDS: Final = 3.0
"""How long it may then be without a heartbeat, or a part of the snapshot, until it counts as dead."""

FIRST_BACKOFF_SECONDS: Final = 0.1
LONGEST_BACKOFF_SECONDS: Final = 5.0
HOPELESS_BACKOFF_SECONDS: Final = 60.0
"""After an answer that the next try would most likely hear again: a wrong key, no feed, and repeatedly no sense."""

NONSENSE: Final = 3
"""So many failures in a row make an answer without sense hopeless."""

STEADY_SECONDS: Final = 10.0
"""How long a stream must have been followed for the next pause to be a short one again."""

SLICE_SECONDS: Final = 0.005
"""How long the application's event loop may be held before it has a turn."""

DRIFT_SECONDS: Final = 1.0
DRIFT_AFTER_SECONDS: Final = 60.0
"""From when on a stream whose heartbeats look so much older than they can be is resumed, to compare the clocks anew."""

LATE_AFTER_SECONDS: Final = 2.0
"""The same for a stream that was late to begin, as a frozen service's is, unless the last was late too."""

SLICE_REVOCATIONS: Final = 200
FORGET_SECONDS: Final = 0.25
SET_BACK_SECONDS: Final = 1.0
"""By how much the clock on the wall may be set back and what it let be forgotten still not count as missing."""

_log = logging.getLogger("revocation_client")


class Follower:
    """Follows one feed into one memory; its tasks are its own, from `start` to `aclose`."""

    def __init__(  # noqa: PLR0913 - two parties, two clocks
        self,
        feed: Feed,
        memory: Memory,
        tally: Tally,
        *,
        wall: Clock,
        monotonic: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.last_error: str | None = None
        self._feed = feed
        self._memory = memory
        self._tally = tally
        self._wall = wall
        self._monotonic = monotonic
        self._jitter = jitter
        self._freshness = Freshness()
        self._cursor: str | None = None
        self._synced = False
        """Whether this stream has come to the present."""
        self._leaving = False
        """Whether the service said on this stream that it shuts down."""
        self._understood = True
        """Whether everything since the last snapshot began was understood; else memory is not complete."""
        self._reported = False
        """True once `revocation_feed_not_understood` was logged."""
        self._ready = asyncio.Event()
        self._answers = asyncio.Event()
        """Set when the service has answered a check since the last stream ended."""
        self._proven = False
        """Whether a heartbeat of this stream has proven that nothing is missing."""
        self._ahead = -math.inf
        """The most that the clock on the wall was ahead of the even one."""
        self._asked_at = 0.0
        self._asked_ahead = 0.0
        """By how much the clock on the wall was ahead of the even one when the stream was asked for."""
        self._slice_ends = 0.0
        self._drift_after = DRIFT_AFTER_SECONDS
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, on the running event loop; nothing is waited for."""
        for name, work in (("follower", self._follow_for_ever()), ("forgetting", self._forget_for_ever())):
            self._tasks.append(asyncio.create_task(work, name=f"revocation-{name}"))

    async def aclose(self) -> None:
        """End; what is known stays with the memory, without a proof that it is all."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        self._memory.mark_unproven()

    async def ready(self, seconds: float | None) -> bool:
        """Whether the memory has answers, waiting so long for the first time that it has; None: for ever."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    def service_answers(self) -> None:
        """Connect soon, instead of after the rest of a long pause: the service answered a check."""
        self._answers.set()

    async def _forget_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FORGET_SECONDS)
            self._ahead = max(self._ahead, self._wall_ahead())
            self._memory.forget()

    async def _follow_for_ever(self) -> None:
        failures = 0
        while True:
            began = self._monotonic()
            try:
                error = await self._follow()
            except Exception as fault:  # noqa: BLE001 - a fault of ours must not end the mirror silently: it is told, and tried again
                _log.error("revocation_mirror_failed error=%s", type(fault).__name__, exc_info=fault)
                error = UnexpectedAnswer(f"a fault of the client itself ({type(fault).__name__})")
            steady = self._synced and self._monotonic() - began >= STEADY_SECONDS
            failures = 1 if steady else failures + 1
            self._ended(error)
            await self._pause(pause_seconds(failures, error, self._jitter), error)

    async def _pause(self, seconds: float, error: RevocationError) -> None:
        """Wait before the next try; where nothing answered the last one, no longer than until the service answers."""
        self._answers.clear()
        away = isinstance(error, ServiceUnavailable) and error.status is None
        least = min(seconds, FIRST_BACKOFF_SECONDS) if away else seconds
        await asyncio.sleep(least)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self._answers.wait()

    def _ended(self, error: RevocationError) -> None:
        """Note the end of a stream. Log a refused key at each try, other errors when the feed was connected before."""
        self._memory.mark_disconnected()
        if isinstance(error, RequestRefused) and error.status in (401, 403):
            _log.error("revocation_mirror_refused status=%d code=%s detail=%s", error.status, error.code, error.detail)
        elif self.last_error is None:
            _log.warning("revocation_mirror_disconnected detail=%s", error)
        self.last_error = str(error)
        self._synced = False

    async def _follow(self) -> RevocationError:
        """One stream, from its beginning to its end; why it ended."""
        self._asked_at, self._asked_ahead = self._monotonic(), self._wall_ahead()
        self._freshness.asked(self._asked_at)
        self._leaving = self._proven = False
        self._understood = self._understood or self._cursor is None
        try:
            stream = await self._feed.feed(self._cursor, seconds=BEGIN_SECONDS)
        except RevocationError as error:
            return error
        late = self._monotonic() - self._asked_at > DRIFT_SECONDS and self._drift_after == DRIFT_AFTER_SECONDS
        self._drift_after = LATE_AFTER_SECONDS if late else DRIFT_AFTER_SECONDS
        self._tally.add("streams")
        try:
            return await self._read(stream)
        except FeedError as error:
            self._cursor = None
            return UnexpectedAnswer(str(error))
        except RevocationError as error:
            return error
        except TimeoutError:
            return ServiceUnavailable(f"the feed was silent for {SILENCE_SECONDS:g} s")
        finally:
            stream.close()

    async def _read(self, stream: Stream) -> RevocationError:
        loop, parser = asyncio.get_running_loop(), Parser()
        async with asyncio.timeout(SILENCE_SECONDS) as patience:
            while chunk := await stream.read():
                self._slice_ends = self._monotonic() + SLICE_SECONDS
                for message in parser.feed(chunk):
                    heard = decode(message)
                    if isinstance(heard.event, Heartbeat | Snapshot):
                        patience.reschedule(loop.time() + SILENCE_SECONDS)
                    self._note_unknown(heard)
                    ended = await self._take(heard.event)
                    if ended is not None:
                        return ended
                    await self._breathe()
        return ServiceUnavailable("the service shut down" if self._leaving else "the feed ended")

    def _note_unknown(self, heard: Heard) -> None:
        """Have memory say only what is revoked, from the next heartbeat on, if part of an event is not understood."""
        if heard.unknown is None:
            return
        if not self._reported:
            _log.warning("revocation_feed_not_understood unknown=%s", heard.unknown)
        self._understood, self._reported = False, True
        self._memory.mark_incomplete()

    async def _breathe(self) -> None:
        """Let the application have its turn, if this has taken long."""
        if self._monotonic() >= self._slice_ends:
            await asyncio.sleep(0)
            self._slice_ends = self._monotonic() + SLICE_SECONDS

    async def _take(self, event: Event | None) -> RevocationError | None:
        """What an event says; an error where the stream ends with it."""
        if isinstance(event, Heartbeat):
            return self._beat(event)
        if isinstance(event, Change):
            await self._merge(event.revocations)
            self._cursor = event.cursor if self._synced or self._cursor else None
        elif isinstance(event, Snapshot):
            self._begin_again()
            await self._merge(event.revocations)
        elif isinstance(event, Synced):
            self._tally.add("snapshots", self._cursor is None)
            self._memory.judge_with(event.clock_skew_seconds)
            self._cursor, self._synced = event.cursor, True
        elif isinstance(event, Reset):
            return self._reset(event)
        return None

    def _begin_again(self) -> None:
        """Forget the cursor: a snapshot comes, and until it is whole there is nothing to resume from."""
        if self._cursor is not None or self._synced:
            self._cursor, self._synced = None, False
            self._memory.mark_disconnected()

    def _reset(self, event: Reset) -> RevocationError | None:
        """Take a reset; on `shutdown` the stream goes on, for what the service still acknowledges."""
        if event.reason == "shutdown":
            self._leaving = True
            self._memory.mark_disconnected()
            return None
        self._begin_again()
        self._understood = True
        return None if event.reason == "unknown_cursor" else ServiceUnavailable(f"the feed was reset: {event.reason}")

    async def _merge(self, revocations: Sequence[Revocation]) -> None:
        for start in range(0, len(revocations), SLICE_REVOCATIONS):
            for revocation in revocations[start : start + SLICE_REVOCATIONS]:
                self._memory.learn(revocation)
            await self._breathe()

    def _beat(self, beat: Heartbeat) -> RevocationError | None:
        """A heartbeat; one before `synced` tells the sender's clock alone."""
        if self._clock_was_set_back():
            self._cursor = None
            self._memory.mark_unproven()
            return ServiceUnavailable("the clock on the wall was set back: all is read anew")
        if self._wall_ahead() - self._asked_ahead > DRIFT_SECONDS:
            self._memory.mark_unproven()
            return ServiceUnavailable("the machine was suspended, or its clock set forward: the feed is resumed")
        now = self._monotonic()
        self._freshness.beat(beat.behind_seconds if self._synced else math.inf, beat.sent_at, now)
        if not self._synced:
            return None
        age = self._freshness.age(now)
        self._proven = self._proven or math.isfinite(beat.behind_seconds)
        self._mark_fresh(age, complete=beat.complete and self._understood)
        if age - beat.behind_seconds > DRIFT_SECONDS and now - self._asked_at > self._drift_after:
            return ServiceUnavailable("its clock and ours have drifted apart: the feed is resumed")
        return None

    def _wall_ahead(self) -> float:
        return self._wall() - self._monotonic()

    def _clock_was_set_back(self) -> bool:
        """Return whether the wall clock was set back since it was last looked at.

        If it was ahead at the start, memory has removed or refused revocations that have not ended (`ExpiryClock`).
        """
        ahead = self._wall_ahead()
        was = max(self._ahead, ahead)
        self._ahead = ahead if was - ahead > SET_BACK_SECONDS else was
        return was - ahead > SET_BACK_SECONDS

    def _mark_fresh(self, age_seconds: float, *, complete: bool) -> None:
        self._memory.mark_fresh(age_seconds, complete=complete, connected=self._proven and not self._leaving)
        if self._memory.synced:
            if self.last_error is not None or not self._ready.is_set():
                _log.info("revocation_mirror_synced entries=%d", self._memory.entries)
            self.last_error = None
            self._ready.set()


def pause_seconds(failures: int, error: RevocationError, jitter: Callable[[], float]) -> float:
    """How long to wait before the next try: exponential with full jitter, the first one short."""
    if isinstance(error, RequestRefused) or (isinstance(error, UnexpectedAnswer) and failures > NONSENSE):
        return HOPELESS_BACKOFF_SECONDS * (0.5 + jitter() / 2)
    asked = error.retry_after_seconds if isinstance(error, ServiceUnavailable) else None
    most: float = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 10))
    return min(asked or 0.0, HOPELESS_BACKOFF_SECONDS) + most * jitter()
