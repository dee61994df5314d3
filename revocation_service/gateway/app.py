"""The composition root of the gateway: `create_app(settings)`, and `serve(settings)`, which runs it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware as WebMiddleware

from revocation_service.gateway.connection import ClientLimits, Runner
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.proxy import Proxy
from revocation_service.gateway.readiness import components
from revocation_service.gateway.settings import GatewaySettings
from revocation_service.gateway.throttle import Throttle
from revocation_service.gateway.tunnels import Tunnels
from revocation_service.gateway.upstream import Upstream
from revocation_service.http.in_flight import InFlight
from revocation_service.http.middleware import Handler, Middleware, Observe
from revocation_service.http.probes import COMPONENTS, EXPOSITION, PROBES, Component
from revocation_service.http.problems import HttpError
from revocation_service.http.serving import OPTIONS, Drain, Listener, limited_runner, serve as serve_until_stopped

CLIENT_KEEPALIVE_SECONDS: Final = 75.0
"""How long a client's idle connection is kept."""

ADMIN_HOST: Final = "127.0.0.1"

ADMIN: Final = web.AppKey("admin", web.Application)
IN_FLIGHT: Final = web.AppKey("in_flight", InFlight)
METRICS: Final = web.AppKey("metrics", GatewayMetrics)
TUNNELS: Final = web.AppKey("tunnels", Tunnels)

_log = structlog.get_logger()


async def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError if the start fails."""
    gateway = runner(settings)
    admin = Listener(
        admin_runner(gateway.app), ADMIN_HOST, settings.admin_port, "GATEWAY_ADMIN_PORT", logged_as="admin_addresses"
    )
    public = Listener(gateway, settings.host, settings.port, "GATEWAY_HOST and GATEWAY_PORT")
    drain = Drain(gateway.app[IN_FLIGHT], settings.drain_seconds, on_closed=gateway.app[TUNNELS].leave)
    await serve_until_stopped([admin, public], drain)


def runner(settings: GatewaySettings) -> web.AppRunner:
    """Return the application with the limits of its connections.

    When a client leaves, its request ends: the handler is cancelled, and the connection to the upstream is closed.
    """
    limits = ClientLimits(settings.max_connections, settings.timeouts.head_seconds)
    app = create_app(settings)
    return Runner(app, limits, **OPTIONS, handler_cancellation=True, keepalive_timeout=CLIENT_KEEPALIVE_SECONDS)


def admin_runner(gateway: web.Application) -> web.AppRunner:
    """Return the application of a gateway's probes and metrics, which listens on an address of its own."""
    return limited_runner(gateway[ADMIN])


def create_app(settings: GatewaySettings) -> web.Application:
    """Return the gateway as an aiohttp application, which opens its resources at its start and closes them at its end.

    Raises SettingsError, here or at its start.
    """
    metrics, in_flight, tunnels = GatewayMetrics(), InFlight(), Tunnels()
    metrics.in_flight.set_function(lambda: in_flight.count)
    upstream = Upstream(settings.upstream_url, settings.timeouts)
    throttle = Throttle(settings.throttle, metrics)
    proxy = Proxy(settings, upstream, tunnels, metrics)
    app = web.Application(middlewares=[_for_every_target(throttle.before(proxy.forward))])
    Middleware(in_flight, _observer(metrics, log_all=settings.log_level == "debug"), {}).install(app)
    app.on_response_prepare.append(throttle.add_headers)
    app.cleanup_ctx.append(_resources(upstream, throttle))
    app[IN_FLIGHT], app[TUNNELS] = in_flight, tunnels
    app[METRICS], app[ADMIN] = metrics, _admin(metrics)

    async def state() -> Sequence[Component]:
        return await components(upstream, throttle, in_flight)

    app[ADMIN][COMPONENTS] = state
    return app


def _for_every_target(forward: Handler) -> WebMiddleware:
    """Forward every request: the application has no routes, because some targets are not paths (`OPTIONS *`)."""

    @web.middleware
    async def passing(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await forward(request)
        except HttpError as error:
            log = _log.warning if error.status >= 500 else _log.info
            log("request_failed", method=request.method, code=error.code, error=error)
            raise

    return passing


def _observer(metrics: GatewayMetrics, *, log_all: bool) -> Observe:
    def observe(request: web.Request, status: int, seconds: float) -> None:
        metrics.requests.labels(f"{status // 100}xx").inc()
        metrics.seconds.observe(seconds)
        if log_all:
            _log.debug("request", method=request.method, status=status, duration_ms=round(seconds * 1000, 3))

    return observe


def _admin(metrics: GatewayMetrics) -> web.Application:
    admin = web.Application()
    admin.add_routes(PROBES)
    admin[EXPOSITION] = metrics.exposition
    Middleware(InFlight(), lambda _request, _status, _seconds: None).install(admin)
    return admin


def _resources(upstream: Upstream, throttle: Throttle) -> Callable[[web.Application], AsyncIterator[None]]:
    async def resources(_app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await upstream.start()
            stack.push_async_callback(upstream.aclose)
            await throttle.start()
            stack.push_async_callback(throttle.aclose)
            yield

    return resources
