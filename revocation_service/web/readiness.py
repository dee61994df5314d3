"""Whether the process can do its job: each component by name, unhealthy until proven well."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from revocation_service.errors import StoreUnavailable
from revocation_service.keys import SigningKeys
from revocation_service.reader import Reader
from revocation_service.store.preflight import preflight
from revocation_service.store.redis import Store
from revocation_service.traffic import Traffic

PREFLIGHT_EVERY_SECONDS: Final = 10.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Component:
    """One thing that the service needs, and how it is."""

    name: str
    status: str
    ready: bool
    warnings: tuple[str, ...] = ()
    replaced: bool = False
    """Whether what it is needed for most goes on without it."""


class Readiness:
    """Asks each component how it is, and remembers the preflight for a while."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        keys: SigningKeys,
        traffic: Traffic,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._reader = reader
        self._traffic = traffic
        self._keys = keys
        self._clock = clock
        self._warnings: tuple[str, ...] = ()
        self._looked_at: float | None = None
        self._looking = asyncio.Lock()

    async def components(self) -> tuple[Component, ...]:
        """How everything is, just now."""
        server = Component("server", "draining" if self._traffic.leaving else "ok", not self._traffic.leaving)
        return server, await self._store_component(), self._mirror_component(), self._keys_component()

    def _mirror_component(self) -> Component:
        """What is known by heart; while Redis answers nobody needs it, unless others know what Redis has lost."""
        status = self._reader.status
        incomplete = ("incomplete",) if self._reader.synced and not self._reader.complete else ()
        lost = ("store_lost_data",) if self._reader.lost_data else ()
        doubt = ("store_in_doubt",) if self._reader.doubt.others_owe else ()
        ready = not self._reader.doubt.doubtful
        return Component("mirror", status.name, ready, warnings=incomplete + lost + doubt)

    def _keys_component(self) -> Component:
        status = self._keys.status
        warnings = (status.error,) if status.error else ()
        return Component("signing_keys", status.state, status.state != "unavailable", warnings)

    async def _store_component(self) -> Component:
        try:
            await self._store.ping()
            warnings = await self.store_warnings()
        except StoreUnavailable:
            self._looked_at = None
            return Component("store", "unavailable", ready=False, replaced=self._reader.fresh)
        if self._store.settings.strict and warnings:
            return Component("store", "refused", ready=False, warnings=warnings)
        return Component("store", "ok", ready=True, warnings=warnings)

    async def store_warnings(self) -> tuple[str, ...]:
        """What preflight finds, at most so often; what is new is logged.

        Raises StoreUnavailable.
        """
        async with self._looking:
            now = self._clock()
            if self._looked_at is None or now - self._looked_at >= PREFLIGHT_EVERY_SECONDS:
                found = await preflight(self._store.connections, self._store.settings)
                for code in sorted(set(found) - set(self._warnings)):
                    _log.warning("store_preflight", code=code)
                self._warnings, self._looked_at = found, now
        short = ("replicas_short",) if self._store.short_of_replicas else ()
        return tuple(sorted({*self._warnings, *short}))
