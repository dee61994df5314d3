"""The composition root of the gateway: `create_app(settings)`, and `serve(settings)`, which runs it."""

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

import structlog
from aiohttp import web

from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.proxy import Proxy, drop_added
from revocation_service.gateway.settings import GatewaySettings
from revocation_service.gateway.throttle import Throttle
from revocation_service.gateway.websocket import WebSockets
from revocation_service.http.in_flight import InFlight
from revocation_service.http.middleware import Handler, Middleware
from revocation_service.http.probes import COMPONENTS, EXPOSITION, PROBES, Component
from revocation_service.http.serving import Server, limited_runner, listen, serve as serve_until_stopped

KEEPALIVE_SECONDS: Final = 75.0
"""Time for the head of a request, and for silence between requests. Longer than the 60 s after which nginx and cloud
load balancers close their idle connections, so that they do not send a request on one that is just being closed."""

HEAD_LIMITS: Final = {"max_field_size": 8190, "max_headers": 100}
"""Those of Apache's httpd: browsers send longer cookies than the clients of the service."""

ADMIN_HOST: Final = "127.0.0.1"

ADMIN: Final = web.AppKey("admin", web.Application)
"""Probes and metrics, which listen on an address of their own."""

IN_FLIGHT: Final = web.AppKey("in_flight", InFlight)
WEBSOCKETS: Final = web.AppKey("websockets", WebSockets)

_log = structlog.get_logger()


async def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError if the start fails."""
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)  # it warns if the upstream takes no subprotocol
    gateway = runner(settings)
    admin = limited_runner(gateway.app[ADMIN])

    async def administration(_app: web.Application) -> AsyncIterator[None]:
        try:
            await listen(admin, ADMIN_HOST, settings.admin_port, "GATEWAY_ADMIN_PORT")
            yield
        finally:
            await admin.cleanup()

    gateway.app.cleanup_ctx.append(administration)  # last: it answers once the gateway has started
    variables, in_flight = "GATEWAY_HOST and GATEWAY_PORT", gateway.app[IN_FLIGHT]
    close = gateway.app[WEBSOCKETS].close
    await serve_until_stopped(
        Server(gateway, settings.host, settings.port, variables, in_flight, settings.drain_seconds, on_closed=close)
    )


def runner(settings: GatewaySettings, keepalive_seconds: float = KEEPALIVE_SECONDS) -> web.AppRunner:
    """Return the application with the limits of its connections.

    A client that leaves ends its request: the handler is cancelled, and the connection to the upstream is closed.
    """
    return limited_runner(create_app(settings), keepalive_seconds, handler_cancellation=True, **HEAD_LIMITS)


def create_app(settings: GatewaySettings) -> web.Application:
    """Return the gateway as an aiohttp application. It opens its resources at startup and closes them at cleanup.

    Raises SettingsError, here or at startup.
    """
    metrics, in_flight = GatewayMetrics(), InFlight()
    metrics.in_flight.set_function(lambda: in_flight.count)
    throttle, proxy = Throttle(settings.throttle, metrics), Proxy(settings, metrics)

    async def throttling(_app: web.Application) -> AsyncIterator[None]:
        await throttle.start()
        yield
        await throttle.aclose()

    async def components() -> Sequence[Component]:
        return (
            Component("process", "draining" if in_flight.draining else "ok", ready=not in_flight.draining),
            Component("throttle_store", throttle.health(), ready=True),  # without Redis the gateway counts in memory
        )

    def observe(request: web.Request, status: int, seconds: float) -> None:
        metrics.requests.labels(f"{status // 100}xx").inc()
        metrics.seconds.observe(seconds)
        _log.debug("request", method=request.method, status=status, duration_ms=round(seconds * 1000, 3))

    limited = throttle.before(proxy.forward)

    @web.middleware
    async def forward(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await limited(request)

    app, admin = web.Application(middlewares=[forward]), web.Application()  # no routes: they would decode the path
    Middleware(in_flight, observe, {}).install(app)
    Middleware(InFlight(), lambda _request, _status, _seconds: None).install(admin)
    app.on_response_prepare.extend([drop_added, throttle.add_headers])
    app.cleanup_ctx.extend([proxy.run, throttling])
    app[IN_FLIGHT], app[WEBSOCKETS], app[ADMIN] = in_flight, proxy.websockets, admin
    admin.add_routes(PROBES)
    admin[COMPONENTS], admin[EXPOSITION] = components, metrics.exposition
    return app
