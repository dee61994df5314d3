"""What the store has lost and the mirror still holds is written back: differences only, in turns, as often as needed.

It decides nothing about what is true: the merge does, so it is safe when two do it at once, or one dies midway.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from itertools import islice
from typing import Final

import structlog

from revocation_client.mirror import Mirror
from revocation_client.model import ClaimName, Revocation
from revocation_service.errors import StoreUnavailable
from revocation_service.store.refill import Refill, is_less
from revocation_service.telemetry import Metrics

PIECE: Final = 1_000
RECENT_SECONDS: Final = 5.0
RECENT_MAX: Final = 10_000
"""What this process wrote shortly before the last proof is given back first: others may not have heard it in time."""

ENDING_SECONDS: Final = 1.0
"""What ends as soon as that is not worth writing."""

BREATH_SECONDS: Final = 0.01

_log = structlog.get_logger()


class RefillFailed(Exception):
    """The store took back not all that it lost, or not yet."""


@contextmanager
def _as_failure() -> Iterator[None]:
    """The store is away: what is known stays known, so that this is told from a scan that fails."""
    try:
        yield
    except StoreUnavailable as error:
        raise RefillFailed from error


class Refilling:
    """Writes back to one store what one mirror holds."""

    def __init__(self, refill: Refill, mirror: Mirror, metrics: Metrics, wall: Callable[[], float]) -> None:
        self.written = 0
        """How many revocations were written back so far."""
        self._refill = refill
        self._mirror = mirror
        self._metrics = metrics
        self._wall = wall
        self._own: deque[tuple[float, ClaimName, str]] = deque(maxlen=RECENT_MAX)
        """What this process wrote of late, and when."""

    def add_own(self, revocation: Revocation) -> None:
        """Remember that this process wrote that just now."""
        self._own.append((time.monotonic(), revocation.claim, revocation.value))

    def forget_own(self, proven_at: float) -> None:
        """Let go of what was written well before that moment on the monotonic clock: all others have it by now."""
        while self._own and self._own[0][0] < proven_at - RECENT_SECONDS:
            self._own.popleft()

    async def own(self) -> None:
        """Before all else, and in nobody's turn, what others may lack and will soon vouch for: all of it takes long.

        Raises RefillFailed.
        """
        now = self._wall()
        held = [self._mirror.held(claim, value, now) for _at, claim, value in self._own]
        self._tell(await self.give_back([each for each in held if each is not None]))

    async def all(self) -> None:
        """All that the mirror has and the store has not.

        Raises RefillFailed.
        """
        entries = self._mirror.entries(self._wall() + ENDING_SECONDS)
        written, taken = 0, False
        async with AsyncExitStack() as stack:
            while some := list(islice(entries, PIECE)):
                begun = time.monotonic()
                with _as_failure():
                    absent = await self._refill.absent(some)
                    if absent and not taken:
                        await stack.enter_async_context(self._refill.turn())
                        taken = True
                written += await self.give_back(absent)
                await asyncio.sleep(min(time.monotonic() - begun, BREATH_SECONDS))
        self._tell(written)

    def held_for_more(self, stored: Sequence[Revocation], now: float) -> list[Revocation]:
        """What the mirror holds that covers more tokens, or for longer, than these."""
        found = []
        for each in stored:
            held = self._mirror.held(each.claim, each.value, now)
            if held is not None and is_less(each, held):
                found.append(held)
        return found

    async def give_back(self, revocations: Sequence[Revocation]) -> int:
        """These, where the store lacks them; how many that were.

        Raises RefillFailed.
        """
        if not revocations:
            return 0
        with _as_failure():
            written = await self._refill.offer(revocations, self._wall())
        self._metrics.mirror_refilled.inc(written)
        self.written += written
        return written

    def _tell(self, written: int) -> None:
        if written:
            _log.warning("store_refilled", entries=written)
