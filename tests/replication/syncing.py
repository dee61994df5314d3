"""A worker's mirror over a real Redis, for the tests of `MirrorSync`."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from revocation_client.claims import ClaimName
from revocation_client.expiry_clock import uptime
from revocation_client.revocation import Revocation
from revocation_service.errors import StoreUnavailable
from revocation_service.replication.clock import Clocks
from revocation_service.replication.epoch import GRACE_SECONDS, PENDING_SECONDS
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.settings import MirrorSettings
from revocation_service.store.exchanges import Exchanges
from revocation_service.store.store import Put, Stored
from tests.redis_processes import Process, eventually
from tests.store.conftest import Opened, logged_values, missing, open_store

CURRENT_SECONDS = 2.0
"""A mirror that was in sync within this time counts as current; a worker proves it every half second."""


@dataclass
class WorkerClocks:
    """The clocks of one worker, which a test may set."""

    wall_ahead: float = 0
    monotonic_ahead: float = 0

    def suspend(self, seconds: float) -> None:
        """Move both clocks ahead, as if the machine had been suspended."""
        self.wall_ahead += seconds
        self.monotonic_ahead += seconds

    def both(self) -> Clocks:
        """Return the clocks as MirrorSync takes them."""
        return Clocks(lambda: time.time() + self.wall_ahead, lambda: uptime() + self.monotonic_ahead)


@dataclass
class Syncing:
    """A worker: its store, its MirrorSync, and its clocks."""

    opened: Opened
    sync: MirrorSync
    clocks: WorkerClocks

    @property
    def log(self) -> str:
        """The key of the change log."""
        return self.opened.store.keyspace.change_log

    def key(self, value: str, claim: ClaimName = "jti") -> str:
        """Return the key of a record."""
        return self.opened.store.keyspace.key(claim, value)

    def held(self, value: str, claim: ClaimName = "jti") -> Revocation | None:
        """Return the revocation in the mirror; None if it holds none."""
        return self.sync.mirror.held(claim, value, self.sync.now())

    def holds(self, values: Iterable[str]) -> bool:
        """Return whether the mirror holds revocations of all these tokens."""
        return all(self.held(value) for value in values)

    def complete(self) -> bool:
        """Return whether every change is in the log, as far as the worker knows."""
        return self.sync.complete

    def counted(self, name: str, **labels: str) -> float:
        """Return the value of a metric; 0 if it was never counted."""
        return self.opened.metrics.registry.get_sample_value(f"revocation_{name}", labels) or 0

    async def revoke(self, value: str) -> Stored:
        """Revoke a token as the service does."""
        return await self.sync.write(Put("jti", value, expires_in=600))

    async def revoke_all(self, values: Sequence[str]) -> None:
        """Revoke many tokens."""
        for value in values:
            await self.revoke(value)

    async def until(self, check: Callable[[], Any], what: str, seconds: float = 30) -> None:
        """Wait until `check` returns something true."""

        async def checked() -> bool:
            return bool(check())

        await eventually(checked, what, seconds)

    async def in_sync(self, seconds: float = 30) -> None:
        """Wait until the mirror is proven to hold all that was acknowledged before this call."""
        monotonic = self.clocks.both().monotonic
        since = monotonic()
        await self.until(lambda: monotonic() - self.sync.staleness() >= since, "a proof that began after this", seconds)

    async def stale(self) -> None:
        """Wait until the last proof that the mirror was in sync is older than CURRENT_SECONDS."""
        await self.until(lambda: self.sync.staleness() > CURRENT_SECONDS, "a mirror that grows old")

    async def in_redis(self, values: Sequence[str], seconds: float = 30) -> None:
        """Wait until Redis has records of all these tokens."""
        await eventually(functools.partial(self._none_missing, values), "all of them in Redis", seconds)

    async def _none_missing(self, values: Sequence[str]) -> bool:
        try:
            return not await missing(self.opened, values)
        except StoreUnavailable:
            return False

    async def logged(self, *nodes: Process) -> list[str]:
        """Return the values that the change log names, in its order."""
        return await logged_values(nodes, self.log)


@contextlib.asynccontextmanager
async def syncing(
    url: str,
    settings: MirrorSettings | None = None,
    clocks: WorkerClocks | None = None,
    *,
    private: bool = False,
    settled: bool = True,
    **store: Any,
) -> AsyncIterator[Syncing]:
    """Run a worker over this URL.

    A new epoch is pending for a grace of 3 s. `settled` skips the grace of a new Redis; `private` skips every grace.
    """
    clocks = clocks or WorkerClocks()
    async with open_store(url, **store) as opened:
        if settled and not private:
            await _settle(opened)
        sync = MirrorSync(opened.store, settings or MirrorSettings(), opened.metrics, clocks.both(), private=private)
        await sync.start()
        try:
            yield Syncing(opened, sync, clocks)
        finally:
            await sync.aclose()


async def _settle(opened: Opened) -> None:
    """Begin an epoch without grace, unless Redis has one for its present life, or does not answer."""
    with contextlib.suppress(StoreUnavailable):
        exchanges = Exchanges(opened.store, pending_seconds=PENDING_SECONDS, grace_seconds=0)
        await exchanges.beat(None, None, must_write=False)


@contextlib.asynccontextmanager
async def owing(worker: Syncing) -> AsyncIterator[None]:
    """Keep an epoch pending, as another worker that has to restore does; until the block ends, no scan begins."""
    exchanges = Exchanges(worker.opened.store, pending_seconds=PENDING_SECONDS, grace_seconds=GRACE_SECONDS)

    async def keep_marking() -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await exchanges.beat("an older epoch", None, must_write=False)
            await asyncio.sleep(0.2)

    marking = asyncio.create_task(keep_marking())
    try:
        yield
    finally:
        marking.cancel()
        await asyncio.wait({marking})


def beside(worker: Syncing, **options: Any) -> contextlib.AbstractAsyncContextManager[Syncing]:
    """Run another worker of the same deployment."""
    settings = worker.opened.settings
    given: dict[str, Any] = {"key_prefix": settings.key_prefix, "wait_replicas": settings.wait_replicas}
    return syncing(settings.url, **given | options)
