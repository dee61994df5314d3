"""Deadlines on the event loop's clock that a blocked event loop does not use up.

Where the application holds its loop for seconds, a timer and the answer that came in time are found by the loop in the
same turn. A deadline that runs out late lets the loop first handle what has arrived.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

LATE_SECONDS: Final = 0.05
"""Delay of a timer, in seconds, from which the loop itself counts as blocked."""

TURNS: Final = 10
"""Turns of the loop that a late deadline waits: an answer takes about three from its bytes to its asker."""


class Deadline:
    """Calls back at `when`, on the loop's clock, or some turns of the loop later if the loop was late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        """The time it was set for, in seconds of the loop's clock."""
        self._loop = loop
        self._callback = callback
        self._turns = 0
        self._handle: asyncio.Handle = loop.call_at(when, self._due)

    def cancel(self) -> None:
        """Do not call back."""
        self._handle.cancel()

    def _due(self) -> None:
        if self._loop.time() - self.when > LATE_SECONDS:
            self._turns = TURNS
        self._turn()

    def _turn(self) -> None:
        if self._turns:
            self._turns -= 1
            self._handle = self._loop.call_soon(self._turn)
        else:
            self._callback()


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Cancel the block after so many seconds, as `asyncio.timeout` does.

    Raises TimeoutError.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        deadline = Deadline(loop, loop.time() + seconds, lambda: limit.reschedule(loop.time()))
        try:
            yield
        finally:
            deadline.cancel()
