"""Sliding windows in Redis: exact, on Redis' clock, bounded, and removed by their expiry."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
import pytest_asyncio

from revocation_service.errors import StoreUnavailable
from revocation_service.settings import CLUSTER_PREFIX, StoreSettings
from revocation_service.store.key_names import Keyspace
from revocation_service.store.topology import topology
from revocation_service.store.windows import DEADLINE_TURNS, TURN_SECONDS, RateLimitResult, Window, Windows
from tests.redis_processes import Process, cluster, eventually, sentinel, standalone, tls_front
from tests.slot_moves import slot_move
from tests.store.conftest import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

GONE = -2
"""What PTTL says of a key that is not there any more; one without an expiry would be -1."""


@dataclass
class Opened:
    """Windows under keys of their own, and the server that holds them."""

    windows: Windows
    keyspace: Keyspace
    server: Process

    async def hit(self, counted: str = "a", *, limit: int = 5, seconds: float = 60) -> RateLimitResult:
        return await self.windows.hit(Window(counted, limit, seconds))

    async def now(self) -> float:
        seconds, microseconds = await self.server.command("TIME")
        return float(seconds) + float(microseconds) / 1e6

    async def write(self, counted: str, ages: Sequence[float], expires_in: int = 600) -> None:
        """Entries as old as that; a negative age is in the future, as a clock that has stepped back leaves them."""
        now = await self.now()
        key = self.keyspace.window(counted)
        for number, age in enumerate(ages):
            await self.server.command("ZADD", key, f"{(now - age) * 1e6:.0f}", f"old{number}")
        await self.server.command("PEXPIRE", key, expires_in * 1000)

    async def held(self, counted: str) -> int:
        return int(await self.server.command("ZCARD", self.keyspace.window(counted)))


@contextlib.asynccontextmanager
async def opened_windows(url: str, prefix: str) -> AsyncIterator[Windows]:
    windows = Windows(topology(StoreSettings(url, key_prefix=prefix)))
    try:
        yield windows
    finally:
        await windows.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    async with standalone(unix_socket=True) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def opened(server: Process) -> AsyncIterator[Opened]:
    prefix = f"{secrets.token_hex(4)}:"
    async with opened_windows(server.url, prefix) as windows:
        yield Opened(windows, Keyspace(prefix), server)


async def _exactly_five(windows: Sequence[Windows]) -> None:
    """A burst from several sides at once: five are admitted, and are told 4, 3, 2, 1, 0."""
    name = secrets.token_hex(4)
    results = await asyncio.gather(*(windows[n % len(windows)].hit(Window(name, 5, 60)) for n in range(30)))
    assert sorted(result.remaining for result in results if result.admitted) == [0, 1, 2, 3, 4]
    assert all(30 < result.frees_in <= 60 for result in results)


async def test_a_burst_from_two_sides_is_admitted_exactly(server: Process) -> None:
    """Of 30 attempts at once over two pools exactly five are admitted, and each is told what it left."""
    async with opened_windows(server.url, "b:") as one, opened_windows(server.unix_url, "b:") as other:
        for _ in range(5):
            await _exactly_five([one, other])


async def test_with_tls(server: Process) -> None:
    """The same over TLS."""
    async with tls_front(server) as front:
        url = f"{front.url}?ssl_ca_certs={front.certificates.ca}"
        async with opened_windows(url, "t:") as windows:
            await windows.probe()
            await _exactly_five([windows])


async def test_behind_sentinel_and_across_a_failover() -> None:
    """Behind Sentinel the count is exact, and goes on with the new master after a failover."""
    async with sentinel() as deployment, opened_windows(deployment.url, "s:") as windows:
        await _exactly_five([windows])
        old = await deployment.kill_master()
        with pytest.raises(StoreUnavailable):
            await windows.hit(Window("a", 5, 60))
        await deployment.new_master(old)
        await eventually(lambda: _counts(windows), "a master that counts")
        await _exactly_five([windows])


async def test_in_a_cluster_and_across_a_failover() -> None:
    """On a cluster one master holds all windows, and a failover leads to the new master."""
    async with cluster() as deployment, opened_windows(deployment.url, "") as windows:
        for _ in range(6):
            await _exactly_five([windows])
        names = [secrets.token_hex(4) for _ in range(50)]
        tallies = await asyncio.gather(*(windows.hit(Window(name, 5, 60)) for name in names))
        assert [tally.remaining for tally in tallies] == [4] * 50
        await windows.probe()
        key = Keyspace(CLUSTER_PREFIX).window(names[0])
        old = await deployment.kill_master_of(key)
        with pytest.raises(StoreUnavailable):
            await windows.hit(Window("a", 5, 60))
        await deployment.new_master_of(key, old)
        await eventually(lambda: _counts(windows), "a master that counts")
        await _exactly_five([windows])


async def test_a_slot_that_moved_is_followed_within_the_deadline() -> None:
    """MOVED makes the retry ask for the master again, so not one login sees that the slot has another owner."""
    async with cluster() as deployment, opened_windows(deployment.url, "") as windows:
        await windows.hit(Window("a", 5, 60))
        move = await slot_move(deployment, CLUSTER_PREFIX)
        await move.source.command("DEL", Keyspace(CLUSTER_PREFIX).window("a"))
        await move.begin()
        await move.finish()
        assert (await windows.hit(Window("a", 5, 60))).remaining == 4
        assert await move.target.command("ZCARD", Keyspace(CLUSTER_PREFIX).window("a")) == 1


@pytest.mark.parametrize(("fault", "remaining"), [("request", [4, 3, 2, 1, 0]), ("reply", [3, 2, 1, 0, 0])])
async def test_an_attempt_survives_a_broken_connection(opened: Opened, fault: str, remaining: list[int]) -> None:
    """An attempt whose connection breaks is sent again. If only its reply was lost, it takes two places."""
    lost: list[bytes] = []

    async def request(piece: bytes) -> bytes | None:
        if fault == "request" and b"EVALSHA" in piece and not lost:
            lost.append(piece)
            return None
        return piece

    async def reply(piece: bytes) -> bytes | None:
        if fault == "reply" and piece.startswith(b"*4\r\n") and not lost:
            lost.append(piece)
            return None
        return piece

    proxy = Proxy(opened.server.port, request=request, reply=reply)
    async with proxy.running(), opened_windows(proxy.url, f"{fault}:") as windows:
        results = [await windows.hit(Window("a", 5, 60)) for _ in range(5)]
    assert (len(lost), [result.remaining for result in results]) == (1, remaining)


@pytest.mark.parametrize(("connected", "turns"), [(True, 2), (False, 6)], ids=["replies", "connects"])
async def test_a_blocked_loop_is_not_taken_for_an_absent_redis(server: Process, connected: bool, turns: int) -> None:
    """The loop is blocked for longer than the deadline while replies, or connects, are due: Redis counts all."""
    async with opened_windows(server.url, f"blocked {connected}:") as windows:
        if connected:
            await asyncio.gather(*(windows.hit(Window("b", 30, 60)) for _ in range(30)))
        attempts = [asyncio.create_task(windows.hit(Window("a", 5, 60))) for _ in range(30)]
        for _ in range(turns):
            await asyncio.sleep(0)  # the attempts get as far as this
        time.sleep(TURN_SECONDS * (DEADLINE_TURNS + 2))
        results = await asyncio.gather(*attempts)
    assert sorted(result.remaining for result in results if result.admitted) == [0, 1, 2, 3, 4]


async def test_what_redis_refuses_is_not_sent_again(opened: Opened) -> None:
    """A retry cannot help then, so the login does not wait for the deadline."""
    await opened.server.command("SET", opened.keyspace.window("a"), "no window", "EX", 60)
    await opened.windows.probe()
    await opened.server.command("CONFIG", "RESETSTAT")
    with pytest.raises(StoreUnavailable, match="refused"):
        await opened.hit()
    async with opened.server.client() as client:
        assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] == 1


async def test_the_window_slides(opened: Opened) -> None:
    """What is as old as the window counts no more; what is younger does, so no burst passes across a boundary."""
    await opened.write("a", [60.01, 40, 30, 2, 1])
    first = await opened.hit()
    assert (first.admitted, first.remaining) == (True, 0)
    assert 10 < first.frees_in < 20
    denied = await opened.hit()
    assert (denied.admitted, denied.remaining) == (False, 0)
    assert 10 < denied.frees_in <= first.frees_in


async def test_never_more_than_the_limit_in_any_window(opened: Opened) -> None:
    """A client that asks all the time gets five in any stretch of the window's length, wherever it begins."""
    admitted: list[float] = []
    while len(admitted) < 16:
        tally = await opened.hit(seconds=0.2)
        if tally.admitted:
            admitted.append(tally.now)
        else:
            await asyncio.sleep(tally.frees_in / 3)
    assert all(later - earlier >= 0.2 for earlier, later in zip(admitted, admitted[5:], strict=False))


async def test_an_attempt_is_admitted_when_it_was_said_to_be(opened: Opened) -> None:
    """After exactly the time that a denied attempt was told, the next is admitted."""
    for _ in range(5):
        await opened.hit(seconds=0.3)
    denied = await opened.hit(seconds=0.3)
    await asyncio.sleep(denied.frees_in)
    assert not denied.admitted
    assert (await opened.hit(seconds=0.3)).admitted


async def test_denied_attempts_do_not_count(opened: Opened) -> None:
    """However often it is denied, a client is admitted when its five leave the window; and they take no memory."""
    await opened.write("a", [59, 50, 40, 30, 20])
    tallies = [await opened.hit() for _ in range(20)]
    assert not any(tally.admitted for tally in tallies[:3])
    assert await opened.held("a") == 5
    await asyncio.sleep(tallies[-1].frees_in)
    assert (await opened.hit()).admitted


async def test_a_clock_that_steps_back_neither_loosens_nor_locks_out(opened: Opened) -> None:
    """Entries an hour ahead of Redis' clock still count, but for one window at most, not for an hour."""
    await opened.write("a", [-3600, -3599, -3598, -3597, -3596], expires_in=7200)
    denied = await opened.hit()
    assert not denied.admitted
    assert 55 < denied.frees_in <= 56  # the oldest was four seconds older than the newest, and still is
    assert await opened.server.command("PTTL", opened.keyspace.window("a")) <= 60_002


async def test_a_clock_that_steps_back_leaves_room_where_there_was_some(opened: Opened) -> None:
    """With three entries ahead of the clock two more are admitted, and no third."""
    await opened.write("a", [-3600, -3599, -3598])
    tallies = [await opened.hit() for _ in range(4)]
    assert [(tally.admitted, tally.remaining) for tally in tallies] == [(True, 1), (True, 0), (False, 0), (False, 0)]
    assert 57 < tallies[-1].frees_in <= 58


async def test_every_key_expires_and_holds_no_more_than_the_limit(opened: Opened) -> None:
    """After a burst each key has an expiry of one window, and as many entries as the limit."""
    await asyncio.gather(*(opened.hit(str(number % 7), seconds=30) for number in range(300)))
    await opened.windows.probe()
    async with opened.server.client() as client:
        keys = [key async for key in client.scan_iter(match=f"{opened.keyspace.window('')[:9]}*")]
        assert len(keys) >= 7
        lives = {key: await client.pttl(key) for key in keys}
        assert len([life for life in lives.values() if life > 0]) >= 7
        for key, life in lives.items():
            assert life == GONE or 0 <= life <= 30_001  # the probe's own key lives for a moment only
            assert await client.zcard(key) <= 5


async def test_a_server_that_is_frozen_or_gone_is_an_error() -> None:
    """An attempt does not wait for a frozen server for good, and after its return all is as before."""
    async with standalone() as server, opened_windows(server.url, "f:") as windows:
        await windows.hit(Window("a", 5, 60))
        server.freeze()
        answers = await asyncio.gather(*(windows.hit(Window("a", 5, 60)) for _ in range(30)), return_exceptions=True)
        assert all(isinstance(answer, StoreUnavailable) for answer in answers)
        server.thaw()
        await eventually(lambda: _counts(windows), "a server that was thawed")
        server.kill()
        with pytest.raises(StoreUnavailable):
            await windows.hit(Window("a", 5, 60))
        await server.start()
        await eventually(lambda: _counts(windows), "a server that was restarted")
        await _exactly_five([windows])


async def _counts(windows: Windows) -> bool:
    try:
        await windows.probe()
    except StoreUnavailable:
        return False
    return True


async def test_a_probe_tells_of_a_server_that_does_not_write() -> None:
    """A server that answers but takes no writes is not one that counts; one whose memory is full still is."""
    async with standalone() as server, opened_windows(server.url, "w:") as windows:
        await server.config("maxmemory 1")
        await windows.probe()
        await _exactly_five([windows])
        await server.config("min-replicas-to-write 1")
        with pytest.raises(StoreUnavailable):
            await windows.probe()
        with pytest.raises(StoreUnavailable):
            await windows.hit(Window("a", 5, 60))
