"""Whether the gateway can do its job: each part of it by name, and what is said of it."""

from dataclasses import dataclass

from revocation_service.gateway.throttle import Throttle
from revocation_service.gateway.upstream import Upstream
from revocation_service.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Component:
    """One part, and how it is."""

    name: str
    status: str
    ready: bool


class Readiness:
    """Looks at every part when asked."""

    def __init__(self, upstream: Upstream, throttle: Throttle, traffic: Traffic) -> None:
        self._upstream = upstream
        self._throttle = throttle
        self._traffic = traffic

    async def components(self) -> tuple[Component, ...]:
        """How each part is, at this moment."""
        reachable = await self._upstream.reachable()
        return (
            Component("process", "draining" if self._traffic.leaving else "ok", not self._traffic.leaving),
            Component("upstream", "ok" if reachable else "unreachable", reachable),
            Component("throttle_store", self._throttle.health(), ready=True),  # it counts by itself while Redis is away
        )
