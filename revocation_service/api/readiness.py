"""The state of each component of the service, for `/readyz`."""

import asyncio
import random
from contextlib import suppress
from typing import Final

import structlog

from revocation_service.errors import StoreUnavailable
from revocation_service.http.in_flight import InFlight
from revocation_service.http.probes import Component
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.signing_keys import SigningKeys
from revocation_service.store.preflight import preflight
from revocation_service.store.store import Store

PREFLIGHT_SECONDS: Final = 10.0
CLOCK_OFFSET_SECONDS: Final = 1.0
"""Offset of Redis' clock from which it is a warning."""

_TOLERATED: Final = {"settings_differ"}
"""Warnings that a strict store tolerates: refusing would stop the service at every rolling change of settings."""

_log = structlog.get_logger()


class Readiness:
    """Reports the state of each component without asking Redis: heartbeats and preflight run in the background."""

    def __init__(self, store: Store, sync: MirrorSync, keys: SigningKeys, in_flight: InFlight) -> None:
        self._store = store
        self._sync = sync
        self._keys = keys
        self._in_flight = in_flight
        self._preflight: tuple[str, ...] | None = None
        """The warnings of the last preflight; None before the first that Redis answered."""
        self._logged: set[str] = set()

    async def repeat_preflight(self) -> None:
        """Repeat the preflight until cancelled."""
        while True:
            await asyncio.sleep(PREFLIGHT_SECONDS * random.uniform(0.9, 1.1))  # noqa: S311 - jitter, not a secret
            await self.run_preflight()

    async def run_preflight(self) -> None:
        """Check how Redis is set up, and log new warnings."""
        with suppress(StoreUnavailable):  # the store logs that
            self._preflight = await preflight(self._store, self._sync.clock_offset)
        for code in sorted({*self._warnings()} - self._logged):
            _log.warning("store_preflight", code=code)
        self._logged = {*self._warnings()}

    async def components(self) -> tuple[Component, ...]:
        """Return the state of each component. The mirror is not ready while Redis may lack revocations."""
        draining, reason, (keys, error) = self._in_flight.draining, self._sync.reason(), self._keys.status
        incomplete = () if self._sync.complete else ("incomplete",)
        return (
            Component("server", "draining" if draining else "ok", ready=not draining),
            self._store_component(),
            Component("mirror", reason or "synced", reason not in {"no_heartbeat", "store_in_doubt"}, incomplete),
            Component("signing_keys", keys, keys != "unavailable", (error,) if error else ()),
        )

    def _store_component(self) -> Component:
        warnings = self._warnings()
        if self._store.up is not True:
            replaced = self._sync.mirror_decides()
            return Component("store", "unavailable", ready=False, warnings=warnings, replaced=replaced)
        if self._store.settings.strict and (self._preflight is None or {*warnings} - _TOLERATED):
            return Component("store", "refused", ready=False, warnings=warnings)
        if self._sync.writes_refused:
            return Component("store", "writes_refused", ready=False, warnings=warnings, replaced=True)
        return Component("store", "ok", ready=True, warnings=warnings)

    def _warnings(self) -> tuple[str, ...]:
        short = {"replicas_short"} if self._store.short_of_replicas else set()
        offset = {"clock_offset"} if abs(self._sync.clock_offset) > CLOCK_OFFSET_SECONDS else set()
        return tuple(sorted({*(self._preflight or ()), *short, *offset}))
