"""The composition root of the service: `create_app(settings)`, and `serve(settings)`, which runs it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web

from revocation_service.api.auth import caller_finder, protected_mode
from revocation_service.api.bodies import BATCH_BODY_MAX_BYTES
from revocation_service.api.check import check, check_batch
from revocation_service.api.dependencies import (
    BROADCASTER,
    FIND_CALLER,
    GATEWAY_REFUSED,
    IN_FLIGHT,
    REVOCATIONS,
    SETTINGS,
)
from revocation_service.api.feed import feed
from revocation_service.api.forward_auth import forward_auth_routes
from revocation_service.api.oauth import introspect, revoke as oauth_revoke
from revocation_service.api.openapi import docs, openapi
from revocation_service.api.readiness import Readiness
from revocation_service.api.revocations import look_up
from revocation_service.api.revoke import revoke
from revocation_service.broadcaster import Broadcaster
from revocation_service.http.in_flight import InFlight
from revocation_service.http.middleware import Middleware, Observe
from revocation_service.http.probes import COMPONENTS, EXPOSITION, PROBES
from revocation_service.http.serving import KEEPALIVE_SECONDS, Server, limited_runner, serve as serve_until_stopped
from revocation_service.metrics import Metrics
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.revocations import Revocations
from revocation_service.settings import Settings, StoreSettings
from revocation_service.signing_keys import SigningKeys
from revocation_service.store.embedded import EmbeddedRedis
from revocation_service.store.store import Store
from revocation_service.store.topology import topology
from revocation_service.tasks import begin, end
from revocation_service.telemetry import RepeatedWarning
from revocation_service.tokens import TokenReader

START_SECONDS: Final = 5.0
"""How long the start waits for the first heartbeat."""

_FREQUENT: Final = frozenset({"/check", "/check/batch", "/oauth2/introspect", "/healthz", "/readyz", "/metrics"})
"""Routes whose requests are logged at level debug, beside those of `/forward-auth`."""

DOORS: Final = {
    "/forward-auth/optional": forward_auth_routes("/forward-auth/optional"),
    "/forward-auth": forward_auth_routes("/forward-auth"),
    "/oauth2/revoke": [web.post("/oauth2/revoke", oauth_revoke)],
    "/oauth2/introspect": [web.post("/oauth2/introspect", introspect)],
    "/openapi.json": [web.get("/openapi.json", openapi, allow_head=False)],
    "/docs": [web.get("/docs", docs, allow_head=False)],
}
"""The routes of each optional endpoint. `…/optional` comes first: `/forward-auth` would match its paths too."""

_log = structlog.get_logger()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError if the start fails."""
    service = runner(settings)

    def tell_subscribers() -> None:
        service.app[BROADCASTER].leave()

    variables, in_flight = "REVOCATION_HOST and REVOCATION_PORT", service.app[IN_FLIGHT]
    await serve_until_stopped(
        Server(service, settings.host, settings.port, variables, in_flight, settings.drain_seconds, tell_subscribers)
    )


def runner(settings: Settings, keepalive_seconds: float = KEEPALIVE_SECONDS) -> web.AppRunner:
    """Return a runner of the application, with limits on its connections."""
    return limited_runner(create_app(settings), keepalive_seconds)


def create_app(settings: Settings) -> web.Application:
    """Return the service as an aiohttp application.

    It opens its resources at startup and closes them at cleanup. Raises SettingsError, here or at startup.
    """
    metrics, in_flight = Metrics(), InFlight()
    app = web.Application(client_max_size=BATCH_BODY_MAX_BYTES)
    app[FIND_CALLER], app[IN_FLIGHT] = caller_finder(settings.api_keys), in_flight
    app[SETTINGS], app[EXPOSITION] = settings, metrics.exposition
    app[GATEWAY_REFUSED] = RepeatedWarning("gateway_key_refused")
    if settings.protected:
        app.middlewares.append(protected_mode)
    Middleware(in_flight, _observer(metrics, log_all=settings.log_level == "debug")).install(app)
    app.add_routes(
        [
            web.post("/revoke", revoke),
            web.get("/check", check, allow_head=False),
            web.post("/check", check),
            web.post("/check/batch", check_batch),
            web.get("/revocations", look_up, allow_head=False),
            web.get("/feed", feed, allow_head=False),
            *PROBES,
            *(route for door, routes in DOORS.items() if door in settings.open_doors for route in routes),
        ]
    )
    app.cleanup_ctx.append(_resources(settings, metrics))
    app.on_shutdown.append(_end_streams)
    return app


def _observer(metrics: Metrics, *, log_all: bool) -> Observe:
    """Return a function that counts and logs each request by its route. No label holds free text from a client."""

    @lru_cache(maxsize=256)
    def known(resource: web.AbstractResource | None, method: str, status: int) -> tuple[str, str, bool, Any]:
        """Return the route, the method, whether such requests are frequent, and their series in the metrics."""
        route = resource.canonical if resource else "(none)"
        method = method if resource and method in hdrs.METH_ALL else "(any)"
        frequent = route in _FREQUENT or route.startswith("/forward-auth")
        return route, method, frequent, metrics.requests.labels(route, method, status)

    def observe(request: web.Request, status: int, seconds: float) -> None:
        route, method, frequent, series = known(request.match_info.route.resource, request.method, status)
        series.observe(seconds)
        if log_all or not frequent:
            log = _log.debug if frequent else _log.info
            log("request", method=method, route=route, status=status, duration_ms=round(seconds * 1000, 3))

    return observe


async def _end_streams(app: web.Application) -> None:
    """End the feed before aiohttp waits for requests in flight. From then on no revocation is acknowledged."""
    app[BROADCASTER].end()


def _resources(settings: Settings, metrics: Metrics) -> Callable[[web.Application], AsyncIterator[None]]:
    keys = SigningKeys(settings.signing)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await keys.start()
            stack.push_async_callback(keys.close)
            store_settings = await _start_embedded(settings.store, stack)
            store = Store(topology(store_settings), store_settings, settings.limits, metrics)
            stack.push_async_callback(store.aclose)
            private = settings.store.embedded_directory is not None
            sync = MirrorSync(store, settings.mirror, metrics, private=private)
            await sync.start()
            stack.push_async_callback(sync.aclose)
            with suppress(TimeoutError):
                async with asyncio.timeout(START_SECONDS):
                    await sync.heard.wait()
            app[BROADCASTER] = Broadcaster(sync, settings.mirror.feed_max_subscribers, metrics)
            stack.push_async_callback(app[BROADCASTER].aclose)
            app[REVOCATIONS] = Revocations(store, sync, TokenReader(keys, settings.signing), settings.limits, metrics)
            readiness = Readiness(store, sync, keys, app[IN_FLIGHT])
            await readiness.run_preflight()
            stack.push_async_callback(end, begin("preflight", readiness.repeat_preflight()))
            app[COMPONENTS] = readiness.components
            _log.info("open_doors", paths=settings.open_doors)
            yield

    return resources


async def _start_embedded(settings: StoreSettings, stack: AsyncExitStack) -> StoreSettings:
    """Start the private Redis if the URL is `embedded:`, and return the settings with its address and password."""
    directory = settings.embedded_directory
    if directory is None:
        return settings
    embedded = await stack.enter_async_context(EmbeddedRedis(directory, server_bin=settings.server_bin))
    _log.info("embedded_redis_started", directory=str(directory), pid=embedded.pid)
    return replace(settings, url=f"unix://{quote(embedded.socket_path)}", password=embedded.password)
