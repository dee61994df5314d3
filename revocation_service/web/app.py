"""The one place where all is wired: `create_app(settings)`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Final
from urllib.parse import quote

import structlog
from aiohttp import web

from revocation_service.broadcaster import Broadcaster
from revocation_service.keys import SigningKeys
from revocation_service.replication.mirror_sync import MirrorSync
from revocation_service.revocations import Revocations
from revocation_service.settings import Settings, StoreSettings
from revocation_service.store.embedded import EmbeddedRedis
from revocation_service.store.store import Store
from revocation_service.store.topology import topology
from revocation_service.telemetry import Metrics
from revocation_service.tokens import TokenReader
from revocation_service.traffic import Traffic
from revocation_service.web.answering import Answering, Handler, for_aiohttp
from revocation_service.web.answers import Answer
from revocation_service.web.auth import authorizer
from revocation_service.web.bodies import BATCH_BODY_MAX_BYTES
from revocation_service.web.check import check_batch, check_body, check_query, look_up
from revocation_service.web.connection import ROUTES, Route, Runner
from revocation_service.web.feed import feed
from revocation_service.web.probes import healthz, metrics, readyz
from revocation_service.web.readiness import Readiness
from revocation_service.web.revoke import revoke
from revocation_service.web.state import AUTHORIZE, BROADCASTER, METRICS, READINESS, REVOCATIONS, TRAFFIC

SHUTDOWN_SECONDS: Final = 0.5
"""aiohttp may wait this long twice for what the drain gave up; all waits together stay below Docker's 10 s."""

KEEPALIVE_SECONDS: Final = 75.0

START_SECONDS: Final = 5.0
"""How long the start waits for the first heartbeat, in seconds."""

_log = structlog.get_logger()


_ANY: Final = "(any)"

_ROUTES: Final[dict[str, dict[str, Handler]]] = {
    "/revoke": {"POST": revoke},
    "/check": {"GET": check_query, "POST": check_body},
    "/check/batch": {"POST": check_batch},
    "/revocations": {"GET": look_up},
    "/healthz": {"GET": healthz, "HEAD": healthz},
    "/readyz": {"GET": readyz, "HEAD": readyz},
    "/metrics": {"GET": metrics, "HEAD": metrics},
}


def _only(handlers: Iterable[str]) -> Handler:
    """The handler for every other method."""
    allowed = frozenset(handlers)

    async def refuse(request: web.Request) -> Answer:
        raise web.HTTPMethodNotAllowed(request.method, allowed)

    return refuse


async def _nothing(_request: web.Request) -> Answer:
    raise web.HTTPNotFound


class _Anywhere(web.DynamicResource):
    """What no other resource is, also where the target is no path (`OPTIONS *`)."""

    def _match(self, path: str) -> dict[str, str]:
        return {}


def create_app(settings: Settings) -> web.Application:
    """The service as an aiohttp application; what it owns is opened at its start and closed at its end.

    Raises SettingsError, here or at its start.
    """
    counted, traffic = Metrics(several_workers=settings.several_workers), Traffic()
    app = web.Application(client_max_size=BATCH_BODY_MAX_BYTES)
    app[METRICS] = counted
    app[TRAFFIC] = traffic
    app[AUTHORIZE] = authorizer(settings)
    answering = Answering(counted, traffic, protected=settings.protected, log_all=settings.log_level == "debug")
    app[ROUTES] = dict(_routes(app, answering))
    app.cleanup_ctx.append(_resources(settings))
    app.on_shutdown.append(_end_streams)
    return app


def _routes(app: web.Application, answering: Answering) -> Iterator[tuple[tuple[str, str], Route]]:
    """Make all routes of the application, and tell those that are answered without its router, too."""
    for path, handlers in _ROUTES.items():
        for method, handler in handlers.items():
            answered = answering.of(method, path, handler)
            route = app.router.add_route(method, path, for_aiohttp(answered))
            if method != "HEAD":
                yield (method, path), Route.of(app, route, answered)
        app.router.add_route("*", path, for_aiohttp(answering.of(_ANY, path, _only(handlers))))
    app.router.add_get("/feed", for_aiohttp(answering.of("GET", "/feed", feed)), allow_head=False)
    app.router.add_route("*", "/feed", for_aiohttp(answering.of(_ANY, "/feed", _only({"GET"}))))
    anywhere = _Anywhere("/{path}")
    anywhere.add_route("*", for_aiohttp(answering.of(_ANY, "(none)", _nothing)))
    app.router.register_resource(anywhere)


def _resources(settings: Settings) -> Callable[[web.Application], AsyncIterator[None]]:
    keys = SigningKeys(settings.signing)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await keys.start()
            stack.push_async_callback(keys.close)
            store_settings = await _reachable(settings.store, stack)
            store = Store(topology(store_settings), store_settings, settings.limits, app[METRICS])
            stack.push_async_callback(store.aclose)
            sync = await _syncing(store, settings, app[METRICS], stack)
            app[BROADCASTER] = Broadcaster(sync, settings.mirror.feed_max_subscribers, app[METRICS])
            stack.push_async_callback(app[BROADCASTER].aclose)
            tokens = TokenReader(keys, settings.signing)
            app[REVOCATIONS] = Revocations(store, sync, tokens, settings.limits, app[METRICS])
            app[READINESS] = Readiness(store, sync, keys, app[TRAFFIC])
            await app[READINESS].start()
            stack.push_async_callback(app[READINESS].aclose)
            yield

    return resources


async def _end_streams(app: web.Application) -> None:
    """End the feed, before the server waits for what is in flight."""
    app[BROADCASTER].end()


async def _syncing(store: Store, settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> MirrorSync:
    """Start to keep the mirror of this process in sync. Wait for the first heartbeat, unless Redis is away."""
    sync = MirrorSync(store, settings.mirror, metrics, private=settings.store.embedded_directory is not None)
    await sync.start()
    stack.push_async_callback(sync.aclose)
    with suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            await sync.heard.wait()
    return sync


async def _reachable(settings: StoreSettings, stack: AsyncExitStack) -> StoreSettings:
    """The store's settings with a Redis that can be reached: the private one is started, and stopped with us."""
    directory = settings.embedded_directory
    if directory is None:
        return settings
    embedded = await stack.enter_async_context(EmbeddedRedis(directory, server_bin=settings.server_bin))
    _log.info("embedded_redis_started", directory=str(directory), pid=embedded.pid)
    return replace(settings, url=f"unix://{quote(embedded.socket_path)}", password=embedded.password)


def runner(settings: Settings, kind: Callable[..., web.AppRunner] = Runner) -> web.AppRunner:
    """The application with the server's own settings: bounded waits, no access log but ours."""
    return kind(
        create_app(settings),
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
        auto_decompress=False,
    )
