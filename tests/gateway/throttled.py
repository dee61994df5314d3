"""Run a throttle in front of a test's own handler, on a real socket."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.settings import ThrottleSettings
from revocation_service.gateway.throttle import Throttle
from revocation_service.settings import StoreSettings
from tests.gateway.logins import Told, log_in
from tests.redis_processes import eventually

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Gateway:
    """A running throttle, a client for it, and the requests that reached the handler behind it."""

    throttle: Throttle
    metrics: GatewayMetrics
    client: "TestClient[web.Request, web.Application]"
    reached: list[web.Request] = field(default_factory=list)

    async def log_in(self, address: str = "198.51.100.1", path: str = "/auth/login", **options: Any) -> Told:
        headers = {"X-Forwarded-For": address, **options.pop("headers", {})}
        return await log_in(
            self.client.session, str(self.client.make_url("")).rstrip("/"), path, headers=headers, **options
        )

    async def burst(self, count: int, address: str = "198.51.100.1") -> list[Told]:
        return await asyncio.gather(*(self.log_in(address) for _ in range(count)))

    async def health(self, wanted: str) -> None:
        async def reached() -> bool:
            return self.throttle.health() == wanted

        await eventually(reached, f"the health {wanted}")

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"gateway_{name}", labels) or 0.0


async def refuses(_request: web.Request) -> web.StreamResponse:
    """Answer every login with 401."""
    return web.json_response({"detail": "wrong"}, status=401)


@contextlib.asynccontextmanager
async def throttled(
    url: str | None,
    *,
    answer: Handler = refuses,
    clock: Callable[[], float] = time.monotonic,
    prefix: str = "",
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """Run a throttle that trusts this host as a proxy, so that a test can log in from many addresses."""
    settings.setdefault("trusted_proxies", (ip_network("127.0.0.0/8"),))
    store = None if url is None else StoreSettings(url, key_prefix=prefix or f"{secrets.token_hex(4)}:")
    metrics = GatewayMetrics()
    throttle = Throttle(ThrottleSettings(store=store, **settings), metrics, clock)
    reached: list[web.Request] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        reached.append(request)
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", throttle.before(forward))
    app.on_response_prepare.append(throttle.add_headers)
    await throttle.start()
    try:
        async with TestClient(TestServer(app)) as client:
            yield Gateway(throttle, metrics, client, reached)
    finally:
        await throttle.aclose()
