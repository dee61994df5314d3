"""The one place where the gateway is wired: `create_app(settings)`."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web

from revocation_service.gateway.admin import create_admin
from revocation_service.gateway.answers import Answers
from revocation_service.gateway.connection import ClientLimits, Runner
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.proxy import Proxy
from revocation_service.gateway.readiness import Readiness
from revocation_service.gateway.settings import GatewaySettings
from revocation_service.gateway.throttle import Throttle
from revocation_service.gateway.tunnels import Tunnels
from revocation_service.gateway.upstream import Upstream
from revocation_service.traffic import Traffic

KEEPALIVE_SECONDS: Final = 75.0
"""How long a client's idle connection is kept."""

SHUTDOWN_SECONDS: Final = 0.5
"""aiohttp may wait this long twice for what the drain gave up."""

METRICS: Final = web.AppKey("metrics", GatewayMetrics)
READINESS: Final = web.AppKey("readiness", Readiness)
TRAFFIC: Final = web.AppKey("traffic", Traffic)
TUNNELS: Final = web.AppKey("tunnels", Tunnels)


class _Anywhere(web.DynamicResource):
    """Every target, also one that is no path (`OPTIONS *`, a URL)."""

    def _match(self, path: str) -> dict[str, str]:
        return {}


def create_app(settings: GatewaySettings) -> web.Application:
    """The gateway as an aiohttp application; what it owns is opened at its start and closed at its end.

    Raises SettingsError, here or at its start.
    """
    metrics, traffic, tunnels = GatewayMetrics(), Traffic(), Tunnels()
    upstream = Upstream(settings.upstream_url, settings.timeouts)
    throttle = Throttle(settings.throttle, metrics)
    proxy = Proxy(settings, upstream, tunnels, metrics)
    answers = Answers(metrics, traffic, log_all=settings.log_level == "debug")
    app = web.Application()
    app[METRICS], app[TRAFFIC], app[TUNNELS] = metrics, traffic, tunnels
    app[READINESS] = Readiness(upstream, throttle, traffic)
    anywhere = _Anywhere("/{path}")
    anywhere.add_route("*", answers.of(throttle.before(proxy.forward)))
    app.router.register_resource(anywhere)
    app.on_response_prepare.append(answers.prepare)
    app.on_response_prepare.append(throttle.add_headers)
    app.cleanup_ctx.append(_resources(upstream, throttle))
    return app


def _resources(upstream: Upstream, throttle: Throttle) -> Callable[[web.Application], AsyncIterator[None]]:
    async def resources(_app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await upstream.start()
            stack.push_async_callback(upstream.aclose)
            await throttle.start()
            stack.push_async_callback(throttle.aclose)
            yield

    return resources


def runner(settings: GatewaySettings) -> web.AppRunner:
    """The application with the server's own settings: bounded waits, no access log but ours.

    A client that leaves takes its request with it: the handler is cancelled, and the upstream's connection broken.
    """
    return Runner(
        create_app(settings),
        ClientLimits(settings.max_connections, settings.timeouts.head_seconds),
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )


def admin_runner(gateway: web.Application) -> web.AppRunner:
    """Probes and metrics of a gateway, as an application of their own."""
    admin = create_admin(gateway[METRICS], gateway[READINESS])
    return web.AppRunner(admin, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS)
