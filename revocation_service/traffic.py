"""The requests in flight, and whether the server is leaving: it goes when there are none."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Traffic:
    """Counts requests as they come and go."""

    def __init__(self) -> None:
        self.leaving = False
        """Whether the server drains: /readyz fails, and every answer asks for another connection."""
        self._in_flight = 0
        self._none = asyncio.Event()

    def came(self) -> None:
        """One more is in flight."""
        self._in_flight += 1

    def went(self) -> None:
        """One less is in flight."""
        self._in_flight -= 1
        if self.leaving and not self._in_flight:
            self._none.set()

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Do not count the current request while it streams: a stream ends when the server does, not before."""
        self.went()
        try:
            yield
        finally:
            self.came()

    async def over(self) -> None:
        """Wait, once leaving, until none is in flight."""
        while self._in_flight:
            self._none.clear()
            await self._none.wait()
