"""Bursts of logins through two gateways that share a Redis: exactly five of each address reach the upstream."""

import asyncio
import contextlib
import functools
import pathlib
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio

from revocation_service.store.windows import DEADLINE_TURNS, TURN_SECONDS
from tests.gateway.logins import LoginApplication, Told, log_in, login_application
from tests.gateway.serving import GatewayProcess, gateway_process, idle_connections
from tests.redis_processes import HOST, Process, eventually, standalone
from tests.scale import scaled

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = scaled(5, 20)
AT_ONCE = 200


@dataclass
class Deployment:
    """Two gateways that share a Redis, in front of one application."""

    redis: Process
    application: LoginApplication
    gateways: list[GatewayProcess]
    session: aiohttp.ClientSession

    async def burst(self, addresses: list[str]) -> list[Told]:
        """Log in once from each address, all at once, over both gateways in turn. X-Forwarded-For has the address."""
        return await asyncio.gather(
            *(
                log_in(self.session, self.gateways[n % 2].url, headers={"X-Forwarded-For": address})
                for n, address in enumerate(addresses)
            )
        )

    async def throttle_status(self, gateway: GatewayProcess) -> str:
        """Return the status of `throttle_store` in the gateway's /readyz."""
        async with self.session.get(f"{gateway.admin_url}/readyz") as answer:
            assert answer.status == 200
            status: str = (await answer.json())["components"]["throttle_store"]["status"]
            return status

    async def has_in_flight(self, gateway: GatewayProcess) -> bool:
        """Return whether the gateway has requests that it has not answered."""
        async with self.session.get(f"{gateway.admin_url}/metrics") as answer:
            found = re.search(r"^gateway_requests_in_flight (.*)$", await answer.text(), re.MULTILINE)
        return found is not None and float(found[1]) > 0

    async def is_shared(self, gateway: GatewayProcess) -> bool:
        return await self.throttle_status(gateway) == "ok"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(standalone())
        application = await stack.enter_async_context(login_application())
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        gateways = [
            await stack.enter_async_context(_gateway(tmp_path_factory.mktemp("gateway"), application, redis, number))
            for number in range(2)
        ]
        yield Deployment(redis, application, gateways, session)


def _gateway(
    directory: pathlib.Path, application: LoginApplication, redis: Process, number: int
) -> contextlib.AbstractAsyncContextManager[GatewayProcess]:
    """Run a gateway that trusts this host as a proxy, so that a test can log in from many addresses."""
    return gateway_process(
        directory / str(number), application.url, REDIS_URL=redis.url, TRUSTED_PROXIES=HOST, LOGIN_LIMIT="5/minute"
    )


async def test_exactly_five_of_a_burst_reach_the_upstream(deployment: Deployment) -> None:
    """Of 200 logins at once from one address, exactly five are passed on, with 4, 3, 2, 1 and 0 remaining."""
    for number in range(ROUNDS):
        await deployment.application.forget()
        told = await deployment.burst([f"198.51.100.{number}"] * AT_ONCE)
        passed = [each for each in told if each.status != 429]
        assert [each.status for each in passed] == [401] * 5, f"round {number}"
        assert sorted(each.remaining for each in passed) == [0, 1, 2, 3, 4]
        assert len(await deployment.application.seen()) == 5
        for denied in (each for each in told if each.status == 429):
            assert denied.code == "too_many_attempts"
            assert denied.remaining == 0
            assert 50 <= int(denied.headers["Retry-After"]) <= 60


async def test_exactly_five_beside_idle_connections(deployment: Deployment) -> None:
    """Exactly five of 200 logins pass, even if one of the gateways has more than a thousand idle connections."""
    await deployment.application.forget()
    with idle_connections(deployment.gateways[0].port, scaled(1_500, 7_000)):
        told = await deployment.burst(["203.0.113.200"] * AT_ONCE)
    assert [each.status for each in told if each.status != 429] == [401] * 5
    assert len(await deployment.application.seen()) == 5


async def test_a_gateway_that_stood_still_does_not_take_redis_for_absent(deployment: Deployment) -> None:
    """If both gateways are suspended beyond their deadline while Redis replies, Redis still counts the burst."""
    for number in range(scaled(2, 20)):
        deployment.redis.freeze()
        burst = asyncio.ensure_future(deployment.burst([f"192.0.2.{number}"] * AT_ONCE))
        for gateway in deployment.gateways:
            await eventually(functools.partial(deployment.has_in_flight, gateway), "requests in flight")
            gateway.signal(signal.SIGSTOP)
        deployment.redis.thaw()
        await asyncio.sleep(TURN_SECONDS * (DEADLINE_TURNS + 2))
        for gateway in deployment.gateways:
            gateway.signal(signal.SIGCONT)
        told = await burst
        assert sorted(each.remaining for each in told if each.status == 401) == [0, 1, 2, 3, 4], f"round {number}"
    for gateway in deployment.gateways:
        assert gateway.events("throttle_redis_away") == []


async def test_addresses_do_not_share_a_count(deployment: Deployment) -> None:
    """If thirty addresses log in seven times each, all at once, five logins of each are passed on."""
    await deployment.application.forget()
    addresses = [f"203.0.113.{n % 30}" for n in range(210)]
    told = await deployment.burst(addresses)
    for address in set(addresses):
        mine = [each for each, at in zip(told, addresses, strict=True) if at == address]
        assert sorted(each.status for each in mine) == [401] * 5 + [429] * 2
    assert len(await deployment.application.seen()) == 150


async def test_ipv6_is_counted_by_its_64(deployment: Deployment) -> None:
    """All IPv6 addresses of one /64 share five logins. Each other /64 has its own count."""
    told = await deployment.burst([f"2001:db8:0:7::{n:x}" for n in range(40)])
    assert sum(each.status == 401 for each in told) == 5
    told = await deployment.burst([f"2001:db8:0:{n + 8:x}::1" for n in range(10)])
    assert [each.status for each in told] == [401] * 10


async def test_a_forged_address_changes_nothing(tmp_path: pathlib.Path, deployment: Deployment) -> None:
    """An untrusted peer that changes X-Forwarded-For and similar fields at each login still has only five."""
    await deployment.application.forget()
    async with gateway_process(tmp_path / "g", deployment.application.url, REDIS_URL=deployment.redis.url) as gateway:
        names = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP")
        told = await asyncio.gather(
            *(log_in(deployment.session, gateway.url, headers=dict.fromkeys(names, f"192.0.2.{n}")) for n in range(40))
        )
    assert sum(each.status == 401 for each in told) == 5
    assert len(await deployment.application.seen()) == 5


async def test_a_restarted_gateway_keeps_the_count(deployment: Deployment) -> None:
    """An address that has used its five logins is still denied after a restart of the gateways: Redis has the count."""
    await deployment.burst(["198.51.100.250"] * 5)
    for gateway in deployment.gateways:
        gateway.kill()
    await asyncio.gather(*(gateway.start() for gateway in deployment.gateways))
    told = await deployment.burst(["198.51.100.250"] * 4)
    assert [each.status for each in told] == [429] * 4


async def test_an_outage_of_redis_under_fire(tmp_path: pathlib.Path, deployment: Deployment) -> None:
    """While Redis is down, each gateway admits five logins of an address. They still count when Redis is back."""
    await deployment.application.forget()
    async with (
        standalone() as redis,
        _gateway(tmp_path, deployment.application, redis, 0) as one,
        _gateway(tmp_path, deployment.application, redis, 1) as other,
    ):
        alone = Deployment(redis, deployment.application, [one, other], deployment.session)
        redis.kill()
        told = await alone.burst(["198.51.100.9"] * 100)
        assert sorted({each.status for each in told}) == [401, 429]
        assert len(await deployment.application.seen()) == 10
        for gateway in (one, other):
            assert await alone.throttle_status(gateway) == "degraded"
        await redis.start()
        for gateway in (one, other):
            await eventually(functools.partial(alone.is_shared, gateway), "the return to Redis")
        told = await alone.burst(["198.51.100.9"] * 50)
        assert [each.status for each in told] == [429] * 50
        told = await alone.burst(["198.51.100.10"] * 50)
        assert sorted(each.remaining for each in told if each.status == 401) == [0, 1, 2, 3, 4]
        for gateway in (one, other):
            assert len(gateway.events("throttle_redis_away")) == 1
            assert len(gateway.events("throttle_redis_back")) == 1
