"""Whether the gateway can do its job: the state of each component."""

from collections.abc import Sequence

from revocation_service.gateway.throttle import Throttle
from revocation_service.gateway.upstream import Upstream
from revocation_service.http.in_flight import InFlight
from revocation_service.http.probes import Component


async def components(upstream: Upstream, throttle: Throttle, in_flight: InFlight) -> Sequence[Component]:
    """Return the state of each component at present."""
    reachable = await upstream.reachable()
    return (
        Component("process", "draining" if in_flight.draining else "ok", ready=not in_flight.draining),
        Component("upstream", "ok" if reachable else "unreachable", ready=reachable),
        Component("throttle_store", throttle.health(), ready=True),  # the gateway counts in memory while Redis is away
    )
