"""The drop-in behaves as a blacklist inside the process does, where that is safe."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from revocation_client import ConfigurationError, NotStarted
from revocation_client.token_blacklist import GIVE_UP_SECONDS, TokenBlacklist, token_blacklist
from revocation_service.store.key_names import Keyspace
from tests.api.serving import API_KEYS, KEYS, serving
from tests.client.scripted import scripted
from tests.client.worlds import RealWorld, real_world
from tests.redis_processes import Process


@pytest.fixture
async def world(redis: Process) -> AsyncIterator[RealWorld]:
    """A real service behind a line that can be cut."""
    async with real_world(redis) as real:
        yield real


@pytest.fixture
async def blacklist(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TokenBlacklist]:
    """One that was initialised with that service's address."""
    monkeypatch.delenv("REVOCATION_URL", raising=False)
    monkeypatch.setenv("REVOCATION_API_KEY", KEYS["both"])
    made = TokenBlacklist(timeout_seconds=0.5, revoke_timeout_seconds=0.5)
    await made.init(world.url)
    yield made
    await made.close()


def logged(caplog: pytest.LogCaptureFixture) -> set[str]:
    """The events that the client has logged."""
    return {record.getMessage().split()[0] for record in caplog.records if record.name == "revocation_client"}


async def test_the_four_methods(blacklist: TokenBlacklist) -> None:
    """A blacklisted jti is blacklisted, another one is not, and again is a success."""
    assert await blacklist.blacklist_token("one", 60) is True
    assert await blacklist.blacklist_token("one", 60) is True
    assert await blacklist.is_blacklisted("one") is True
    assert await blacklist.is_blacklisted("two") is False
    assert await blacklist.blacklist_token("dead", -5) is True  # it has expired: nothing is left to do
    assert await blacklist.client.is_revoked({"jti": "one", "sub": "alice"})


async def test_it_shares_the_keys_of_the_old_module(redis: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the old module still writes is seen, and the old module sees what is written here."""
    monkeypatch.setenv("REVOCATION_API_KEY", KEYS["both"])
    async with serving(redis, API_KEYS=API_KEYS, FOREIGN_WRITERS="true") as service, redis.client() as old:
        prefix = service.settings.store.key_prefix
        blacklist = TokenBlacklist()
        await blacklist.init(str(service.url))
        await service.blacklist("theirs", 60)  # SETEX, as the old module writes
        assert await blacklist.is_blacklisted("theirs") is True
        await blacklist.blacklist_token("ours", 60)
        assert await old.exists(f"{prefix}token_blacklist:ours") == 1
        assert 55 < await old.ttl(f"{prefix}token_blacklist:ours") <= 60
        await blacklist.close()


async def test_away_is_false_and_a_line_in_the_log(
    blacklist: TokenBlacklist, world: RealWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Both methods say False while the service is away, and each leaves a line; what was revoked here stays revoked."""
    await blacklist.blacklist_token("one", 60)
    caplog.set_level(logging.WARNING)
    async with world.outage():
        assert await blacklist.is_blacklisted("one") is True
        async with asyncio.timeout(20):  # until memory is too old to decide
            while (await blacklist.client.check_jti("two")).source != "policy":
                await asyncio.sleep(0.01)
        assert await blacklist.is_blacklisted("two") is False
        assert await blacklist.blacklist_token("two", 60) is False
    assert logged(caplog) >= {"revocation_service_unavailable", "token_not_blacklisted"}
    assert await blacklist.is_blacklisted("one") is True
    assert await blacklist.is_blacklisted("two") is False
    assert await blacklist.blacklist_token("two", 60) is True


async def test_a_service_that_is_away_at_the_start_is_tried_again(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init` succeeds, and the blacklist works as soon as the service does: it is never switched off for good."""
    monkeypatch.setenv("REVOCATION_API_KEY", KEYS["both"])
    blacklist = TokenBlacklist(timeout_seconds=0.5, revoke_timeout_seconds=0.5)
    async with world.outage():
        await blacklist.init(world.url)
        assert await blacklist.blacklist_token("early", 60) is False
    assert await blacklist.blacklist_token("early", 60) is True
    assert await blacklist.is_blacklisted("early") is True
    await blacklist.close()


@pytest.mark.parametrize("url", ["redis://redis:6379/0", "rediss://redis", "unix:///run/redis", "redis+sentinel://a/b"])
async def test_a_redis_url_stands_for_the_services(world: RealWorld, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As the application's settings still have it; without REVOCATION_URL it raises, rather than to be off."""
    blacklist = TokenBlacklist()
    monkeypatch.delenv("REVOCATION_URL", raising=False)
    with pytest.raises(ConfigurationError, match="REVOCATION_URL"):
        await blacklist.init(url)
    monkeypatch.setenv("REVOCATION_URL", world.url)
    monkeypatch.setenv("REVOCATION_API_KEY", KEYS["both"])
    await blacklist.init(url)
    assert await blacklist.blacklist_token(url, 60) is True
    await blacklist.init(url)  # again: the first connections are closed
    assert await blacklist.is_blacklisted(url) is True
    await blacklist.close()


async def test_what_the_service_refuses_is_false_and_a_line_in_the_log(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong key, too long a life, a value that is none: False, as the old module said, and never an exception."""
    monkeypatch.setenv("REVOCATION_API_KEY", "a-wrong-key-0123456789")
    blacklist = TokenBlacklist()
    await blacklist.init(world.url)
    assert await blacklist.is_blacklisted("one") is False
    assert await blacklist.blacklist_token("one", 60) is False
    assert logged(caplog) >= {"token_not_checked", "token_not_blacklisted"}
    assert "401" in caplog.text
    monkeypatch.setenv("REVOCATION_API_KEY", KEYS["both"])
    await blacklist.init(world.url)
    caplog.clear()
    assert await blacklist.blacklist_token("one", 10 * 365 * 86_400) is False
    assert "exp_too_far" in caplog.text
    for value in (None, "", "x" * 300):
        assert await blacklist.blacklist_token(value, 60) is False  # type: ignore[arg-type]
        assert await blacklist.is_blacklisted(value) is False  # type: ignore[arg-type]
    assert await blacklist.blacklist_token("one", "soon") is False  # type: ignore[arg-type]
    assert await blacklist.blacklist_token("one", float("nan")) is False
    await blacklist.close()


async def test_an_answer_that_is_not_understood_is_false_and_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A web page in the service's place."""
    monkeypatch.delenv("REVOCATION_API_KEY", raising=False)

    async def page(_request: object, _body: object) -> web.StreamResponse:
        return web.Response(text="<html>")

    async with scripted() as server:
        server.script = page
        blacklist = TokenBlacklist()
        await blacklist.init(server.url)
        assert await blacklist.is_blacklisted("one") is False
        assert await blacklist.blacklist_token("one", 60) is False
        assert logged(caplog) >= {"token_not_checked", "token_not_blacklisted"}
        await blacklist.close()


async def test_without_init_and_after_close_it_is_false_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The line says to call `init`; closing what is not open is fine."""
    assert await token_blacklist.is_blacklisted("one") is False
    assert await token_blacklist.blacklist_token("one", 60) is False
    assert logged(caplog) == {"token_not_checked", "token_not_blacklisted"}
    assert "init" in caplog.text
    with pytest.raises(NotStarted, match="init"):
        _ = token_blacklist.client
    await token_blacklist.close()


async def test_a_call_gives_up_within_two_seconds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that takes every request and answers none: the deadlines of both methods are set to two seconds.

    The time is the event loop's own, moved forward by hand.
    """
    monkeypatch.delenv("REVOCATION_API_KEY", raising=False)
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def hang(request: web.Request, _body: object) -> web.StreamResponse:
        asked.put_nowait(request.path)
        await asyncio.sleep(3600)
        raise AssertionError

    loop = asyncio.get_running_loop()
    clock, ahead = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead)
    async with scripted() as server:
        server.script = hang
        blacklist = TokenBlacklist(mirror=False)
        await blacklist.init(server.url)
        for call in (blacklist.is_blacklisted("one"), blacklist.blacklist_token("one", 60)):
            calling = asyncio.ensure_future(call)
            await asked.get()
            ahead += GIVE_UP_SECONDS + 0.01
            assert await calling is False
        await blacklist.close()


def test_its_prefix_is_that_of_the_keys_in_redis() -> None:
    """Applications that build the old key from it find the service's."""
    assert TokenBlacklist.prefix + "one" == Keyspace().key("jti", "one")
