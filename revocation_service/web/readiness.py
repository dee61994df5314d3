"""Whether the process can do its job: each component by name."""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from revocation_service.errors import StoreUnavailable
from revocation_service.keys import SigningKeys
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.store.preflight import preflight
from revocation_service.store.store import Store
from revocation_service.tasks import begin, end
from revocation_service.traffic import Traffic

PREFLIGHT_SECONDS: Final = 10.0
CLOCK_OFFSET_SECONDS: Final = 1.0
"""Offset of Redis' clock from which it is a warning."""

_HARMLESS: Final = {"settings_differ"}
"""Warnings that do not refuse a strict store: every rolling change of the settings would end the service."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Component:
    """One thing that the service needs, and its state."""

    name: str
    status: str
    ready: bool
    warnings: tuple[str, ...] = ()
    replaced: bool = False
    """Whether most of what it is needed for goes on without it."""


class Readiness:
    """Knows the state of each component without asking Redis: heartbeats and preflight run in the background."""

    def __init__(self, store: Store, sync: MirrorSync, keys: SigningKeys, traffic: Traffic) -> None:
        self._store = store
        self._sync = sync
        self._keys = keys
        self._traffic = traffic
        self._preflight: tuple[str, ...] | None = None
        """The warnings of the last preflight; None before the first that Redis answered."""
        self._logged: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look once, then every few seconds."""
        try:
            await self.look()
        except StoreUnavailable as error:
            _log.warning("store_unavailable_at_start", error=error)
        self._tasks = begin("preflight", self._keep_looking())

    async def aclose(self) -> None:
        """Stop looking."""
        await end(self._tasks)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(PREFLIGHT_SECONDS * random.uniform(0.9, 1.1))  # noqa: S311 - jitter, not a secret
            with suppress(StoreUnavailable):  # it is asked again soon
                await self.look()

    async def look(self) -> None:
        """Ask Redis how it is set up, and log what is new. Raises StoreUnavailable."""
        self._preflight = await preflight(self._store, self._sync.clock_offset)
        for code in sorted({*self._warnings()} - self._logged):
            _log.warning("store_preflight", code=code)
        self._logged = {*self._warnings()}

    def components(self) -> tuple[Component, ...]:
        """Return the state of everything at present."""
        server = Component("server", "draining" if self._traffic.leaving else "ok", not self._traffic.leaving)
        return server, self._store_component(), self._mirror_component(), self._keys_component()

    def _mirror_component(self) -> Component:
        """Return the state of the mirror. While Redis answers it is not needed, unless Redis may have lost data."""
        reason = self._sync.reason()
        warnings = () if self._sync.complete else ("incomplete",)
        return Component("mirror", reason or "synced", reason not in {"no_heartbeat", "store_in_doubt"}, warnings)

    def _store_component(self) -> Component:
        warnings = self._warnings()
        if self._store.up is not True:
            replaced = self._sync.mirror_decides()
            return Component("store", "unavailable", ready=False, warnings=warnings, replaced=replaced)
        if self._store.settings.strict and (self._preflight is None or {*warnings} - _HARMLESS):
            return Component("store", "refused", ready=False, warnings=warnings)
        if self._sync.writes_refused:
            return Component("store", "writes_refused", ready=False, warnings=warnings, replaced=True)
        return Component("store", "ok", ready=True, warnings=warnings)

    def _warnings(self) -> tuple[str, ...]:
        short = {"replicas_short"} if self._store.short_of_replicas else set()
        offset = {"clock_offset"} if abs(self._sync.clock_offset) > CLOCK_OFFSET_SECONDS else set()
        return tuple(sorted({*(self._preflight or ()), *short, *offset}))

    def _keys_component(self) -> Component:
        status = self._keys.status
        warnings = (status.error,) if status.error else ()
        return Component("signing_keys", status.state, status.state != "unavailable", warnings)
