"""The stand-in: `RevocationClient` with a service in memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from revocation_client.api import Feed, Service
from revocation_client.client import RevocationClient
from revocation_client.model import Revocation
from revocation_client.testing.service import MemoryService

URL = "http://in-memory.invalid"


class InMemoryRevocationClient(RevocationClient):
    """A `RevocationClient` without a network: give it to the application under test in place of the real one.

    It takes the real one's options, and `clock`, which tells the service's time in epoch seconds. What was revoked
    stays with the client when it is closed and started again. Tokens are read, and not verified.

    It has no feed: memory holds only what was revoked through this client, which `outage` does not take away, and every
    other check asks the service in memory, so that `outage` and `latency_seconds` show.
    """

    def __init__(self, url: str = URL, *, clock: Callable[[], float] = time.time, **options: Any) -> None:
        self._wall = self._uptime = clock
        super().__init__(url, **options)
        self._service = MemoryService(clock)

    def _connect(self) -> Service:
        return self._service

    def _feed(self, service: Service) -> Feed | None:
        return None

    async def mirror_ready(self, timeout_seconds: float | None = None) -> bool:
        """There is nothing to wait for."""
        self._started()
        return True

    @property
    def revocations(self) -> tuple[Revocation, ...]:
        """All that is revoked and has not expired."""
        return tuple(self._service.records.alive(self._service.records.now()))

    @property
    def latency_seconds(self) -> float:
        """How long the service takes for an answer; may be set."""
        return self._service.latency_seconds

    @latency_seconds.setter
    def latency_seconds(self, seconds: float) -> None:
        self._service.latency_seconds = seconds

    @contextmanager
    def outage(self, status: int | None = None) -> Iterator[None]:
        """The service is away for the time of the block: nobody answers, or everything is answered with `status`."""
        before = self._service.outage
        self._service.outage = status or "no answer"
        try:
            yield
        finally:
            self._service.outage = before
