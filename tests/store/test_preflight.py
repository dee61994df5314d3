"""Preflight compares the settings of instances that share a Redis. Without a usable change log, revocations fail."""

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_service.errors import StoreUnavailable
from revocation_service.settings import Limits
from revocation_service.store.exchanges import Exchanges
from revocation_service.store.preflight import SETTINGS_SECONDS, preflight
from revocation_service.store.topology import Refused
from tests.redis_processes import Process, standalone
from tests.store.conftest import Opened, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One server for all tests of this module."""
    async with standalone() as process:
        yield process


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_token_lifetime_seconds=1000),
        Limits(expiry_leeway_seconds=1),
        Limits(clock_skew_seconds=61),
    ],
)
async def test_settings_that_differ_are_a_warning_until_they_agree(server: Process, limits: Limits) -> None:
    """All instances warn of differing settings, until one of them has not run preflight for SETTINGS_SECONDS."""
    now = time.time()

    async def warned(opened: Opened) -> bool:
        return "settings_differ" in await preflight(opened.store)

    async with open_store(server.url, wall=lambda: now) as one:
        prefix = one.settings.key_prefix
        async with open_store(server.url, key_prefix=prefix, wall=lambda: now) as same:
            assert not await warned(one)
            assert not await warned(same)
        async with open_store(server.url, key_prefix=prefix, limits=limits, wall=lambda: now) as other:
            assert await warned(other)
            assert await warned(one)
            now += SETTINGS_SECONDS - 1
            assert await warned(one)
            now += 2
            assert not await warned(one)
            assert await warned(other)
        assert 0 < await server.command("TTL", one.store.keyspace.settings) <= SETTINGS_SECONDS


async def test_a_log_of_another_type_refuses_revocations_and_is_said(server: Process) -> None:
    """If the log's key is no stream, a put fails and stores nothing, checks work, and a heartbeat reports the error."""
    async with open_store(server.url) as opened:
        await opened.revoke("before")
        log = opened.store.keyspace.change_log
        await server.command("DEL", log)
        await server.command("SET", log, "no stream")
        exchanges = Exchanges(opened.store, pending_seconds=5, grace_seconds=0)
        with pytest.raises(Refused):
            await opened.revoke("a")
        assert await opened.found("a") is None
        assert await opened.found("before") is not None
        reply = await exchanges.beat(None, None, must_write=True)
        assert "WRONGTYPE" in reply.refused
        assert reply.end is None
        assert opened.failures("put") == 1
        assert opened.counted("store_up") == 1, "Redis answers"
        await server.command("DEL", log)
        assert (await opened.revoke("a")).result == "revoked"
        reply = await exchanges.beat(None, None, must_write=True)
        assert reply.refused == ""
        assert reply.end is not None


async def test_a_redis_that_hangs_ends_preflight(server: Process) -> None:
    """Preflight raises StoreUnavailable while Redis hangs, and works again afterwards."""
    async with open_store(server.url) as opened:
        await opened.revoke("warm")
        server.freeze()
        try:
            with pytest.raises(StoreUnavailable):
                await preflight(opened.store)
        finally:
            server.thaw()
        await preflight(opened.store)
