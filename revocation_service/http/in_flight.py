"""The number of requests in flight, and whether the process is draining."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """Counts the requests that are being answered. Use it as a context manager around each request."""

    def __init__(self) -> None:
        self.draining = False
        """True from the stop signal on: /readyz fails, and each response closes its connection."""
        self.count = 0
        self._none = asyncio.Event()

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self._none.set()

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Do not count the current request. A stream may last until shutdown, so the drain must not wait for it."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    async def none(self) -> None:
        """Wait until no request is in flight."""
        while self.count:
            self._none.clear()
            await self._none.wait()
