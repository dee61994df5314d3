"""`TokenBlacklist` behaves like the in-process blacklist that it replaces, wherever that is safe."""

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
    """A real service behind a proxy whose connections can be cut."""
    async with real_world(redis) as real:
        yield real


@pytest.fixture
async def blacklist(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TokenBlacklist]:
    """A blacklist that was initialised with the address of that service."""
    monkeypatch.delenv("REVOCATION_URL", raising=False)
    monkeypatch.setenv("REVOCATION_API_KEY", KEYS["both"])
    made = TokenBlacklist(timeout_seconds=0.5, revoke_timeout_seconds=0.5)
    await made.init(world.url)
    yield made
    await made.close()


def logged(caplog: pytest.LogCaptureFixture) -> set[str]:
    """Return the names of the events that the client has logged."""
    return {record.getMessage().split()[0] for record in caplog.records if record.name == "revocation_client"}


async def test_the_four_methods(blacklist: TokenBlacklist) -> None:
    """Only a blacklisted jti is reported as such. Blacklisting it again, or one that has expired, succeeds."""
    assert await blacklist.blacklist_token("one", 60) is True
    assert await blacklist.blacklist_token("one", 60) is True
    assert await blacklist.is_blacklisted("one") is True
    assert await blacklist.is_blacklisted("two") is False
    assert await blacklist.blacklist_token("dead", -5) is True  # it has expired: nothing is left to do
    assert await blacklist.client.is_revoked({"jti": "one", "sub": "alice"})


async def test_it_shares_the_keys_of_the_old_module(redis: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the old module writes is found, and `TokenBlacklist` writes the same key with the same expiry."""
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
    """While the service is away, both methods return False and log it. A jti that was revoked here stays revoked."""
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
    """`init` succeeds while the service is away, and the blacklist works once the service is back."""
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
    """With a Redis URL, `init` takes the service's URL from REVOCATION_URL, and raises if that is not set."""
    blacklist = TokenBlacklist()
    monkeypatch.delenv("REVOCATION_URL", raising=False)
    with pytest.raises(ConfigurationError, match="REVOCATION_URL"):
        await blacklist.init(url)
    monkeypatch.setenv("REVOCATION_URL", world.url)
    monkeypatch.setenv("REVOCATION_API_KEY", KEYS["both"])
    await blacklist.init(url)
    assert await blacklist.blacklist_token(url, 60) is True
    await blacklist.init(url)  # a second time: the first client is replaced
    assert await blacklist.is_blacklisted(url) is True
    await blacklist.close()


async def test_what_the_service_refuses_is_false_and_a_line_in_the_log(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong key, a lifetime that is too long or an invalid value makes the methods return False, and never raises."""
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
    """If a web page answers in place of the service, both methods return False and log it."""
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
    """Without `init`, both methods return False and log that `init` is missing. `close` then does nothing."""
    assert await token_blacklist.is_blacklisted("one") is False
    assert await token_blacklist.blacklist_token("one", 60) is False
    assert logged(caplog) == {"token_not_checked", "token_not_blacklisted"}
    assert "init" in caplog.text
    with pytest.raises(NotStarted, match="init"):
        _ = token_blacklist.client
    await token_blacklist.close()


async def test_a_call_gives_up_within_two_seconds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the service never answers, each method returns False within 2 s. The test advances the event loop's clock."""
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
    """`TokenBlacklist.prefix` followed by a jti is the key under which the service stores that token."""
    assert TokenBlacklist.prefix + "one" == Keyspace().key("jti", "one")
