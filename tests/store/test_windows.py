"""Sliding windows in Redis count exactly and on Redis' clock; their keys are bounded in size and expire."""

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
"""PTTL of a key that does not exist. For a key without an expiry it is -1."""


@dataclass
class Opened:
    """Windows with a key prefix of their own, and the server that holds them."""

    windows: Windows
    keyspace: Keyspace
    server: Process

    async def hit(self, counted: str = "a", *, limit: int = 5, seconds: float = 60) -> RateLimitResult:
        return await self.windows.hit(Window(counted, limit, seconds))

    async def now(self) -> float:
        seconds, microseconds = await self.server.command("TIME")
        return float(seconds) + float(microseconds) / 1e6

    async def write(self, counted: str, ages: Sequence[float], expires_in: int = 600) -> None:
        """Add entries of these ages, in seconds. A negative age is in the future, as after a clock's step back."""
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
    """Assert that of 30 concurrent attempts exactly five are admitted, and are told that 4, 3, 2, 1 and 0 remain."""
    name = secrets.token_hex(4)
    results = await asyncio.gather(*(windows[n % len(windows)].hit(Window(name, 5, 60)) for n in range(30)))
    assert sorted(result.remaining for result in results if result.admitted) == [0, 1, 2, 3, 4]
    assert all(30 < result.frees_in <= 60 for result in results)


async def test_a_burst_from_two_sides_is_admitted_exactly(server: Process) -> None:
    """Of 30 concurrent attempts over two connection pools, exactly five are admitted and told how many remain."""
    async with opened_windows(server.url, "b:") as one, opened_windows(server.unix_url, "b:") as other:
        for _ in range(5):
            await _exactly_five([one, other])


async def test_with_tls(server: Process) -> None:
    """Of 30 concurrent attempts over TLS, exactly five are admitted."""
    async with tls_front(server) as front:
        url = f"{front.url}?ssl_ca_certs={front.certificates.ca}"
        async with opened_windows(url, "t:") as windows:
            await windows.probe()
            await _exactly_five([windows])


async def test_behind_sentinel_and_across_a_failover() -> None:
    """Behind Sentinel, windows count exactly, and do so again with the new master after a failover."""
    async with sentinel() as deployment, opened_windows(deployment.url, "s:") as windows:
        await _exactly_five([windows])
        old = await deployment.kill_master()
        with pytest.raises(StoreUnavailable):
            await windows.hit(Window("a", 5, 60))
        await deployment.new_master(old)
        await eventually(lambda: _counts(windows), "a master that counts")
        await _exactly_five([windows])


async def test_in_a_cluster_and_across_a_failover() -> None:
    """On a cluster, windows count exactly, and do so again with the new master after a failover."""
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
    """An attempt that gets MOVED is sent again to the slot's new master and counted there, without an error."""
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
    """An attempt whose connection breaks is sent again. If only its reply was lost, it is counted twice."""
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
    """No attempt fails, although the event loop is blocked beyond the deadline during replies or connects."""
    async with opened_windows(server.url, f"blocked {connected}:") as windows:
        if connected:
            await asyncio.gather(*(windows.hit(Window("b", 30, 60)) for _ in range(30)))
        attempts = [asyncio.create_task(windows.hit(Window("a", 5, 60))) for _ in range(30)]
        for _ in range(turns):
            await asyncio.sleep(0)  # until the attempts wait for replies, or for connects
        time.sleep(TURN_SECONDS * (DEADLINE_TURNS + 2))
        results = await asyncio.gather(*attempts)
    assert sorted(result.remaining for result in results if result.admitted) == [0, 1, 2, 3, 4]


async def test_what_redis_refuses_is_not_sent_again(opened: Opened) -> None:
    """An attempt that Redis refuses with an error is not sent again, because a retry cannot help."""
    await opened.server.command("SET", opened.keyspace.window("a"), "no window", "EX", 60)
    await opened.windows.probe()
    await opened.server.command("CONFIG", "RESETSTAT")
    with pytest.raises(StoreUnavailable, match="refused"):
        await opened.hit()
    async with opened.server.client() as client:
        assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] == 1


async def test_the_window_slides(opened: Opened) -> None:
    """Exactly the attempts younger than the window count, and `frees_in` says when the oldest of them leaves it."""
    await opened.write("a", [60.01, 40, 30, 2, 1])
    first = await opened.hit()
    assert (first.admitted, first.remaining) == (True, 0)
    assert 10 < first.frees_in < 20
    denied = await opened.hit()
    assert (denied.admitted, denied.remaining) == (False, 0)
    assert 10 < denied.frees_in <= first.frees_in


async def test_never_more_than_the_limit_in_any_window(opened: Opened) -> None:
    """A client that asks continuously is admitted at most five times in any interval as long as the window."""
    admitted: list[float] = []
    while len(admitted) < 16:
        tally = await opened.hit(seconds=0.2)
        if tally.admitted:
            admitted.append(tally.now)
        else:
            await asyncio.sleep(tally.frees_in / 3)
    assert all(later - earlier >= 0.2 for earlier, later in zip(admitted, admitted[5:], strict=False))


async def test_an_attempt_is_admitted_when_it_was_said_to_be(opened: Opened) -> None:
    """A client that waits exactly `frees_in` seconds after a denied attempt is admitted."""
    for _ in range(5):
        await opened.hit(seconds=0.3)
    denied = await opened.hit(seconds=0.3)
    await asyncio.sleep(denied.frees_in)
    assert not denied.admitted
    assert (await opened.hit(seconds=0.3)).admitted


async def test_denied_attempts_do_not_count(opened: Opened) -> None:
    """Denied attempts take no memory and do not prolong the wait. It ends once an admitted attempt is old enough."""
    await opened.write("a", [59, 50, 40, 30, 20])
    tallies = [await opened.hit() for _ in range(20)]
    assert not any(tally.admitted for tally in tallies[:3])
    assert await opened.held("a") == 5
    await asyncio.sleep(tallies[-1].frees_in)
    assert (await opened.hit()).admitted


async def test_a_clock_that_steps_back_neither_loosens_nor_locks_out(opened: Opened) -> None:
    """Entries an hour ahead of Redis' clock still count, but for one window at most."""
    await opened.write("a", [-3600, -3599, -3598, -3597, -3596], expires_in=7200)
    denied = await opened.hit()
    assert not denied.admitted
    assert 55 < denied.frees_in <= 56  # the entries moved together: the oldest is still 4 s older than the newest
    assert await opened.server.command("PTTL", opened.keyspace.window("a")) <= 60_002


async def test_a_clock_that_steps_back_leaves_room_where_there_was_some(opened: Opened) -> None:
    """With a limit of five and three entries ahead of Redis' clock, exactly two more attempts are admitted."""
    await opened.write("a", [-3600, -3599, -3598])
    tallies = [await opened.hit() for _ in range(4)]
    assert [(tally.admitted, tally.remaining) for tally in tallies] == [(True, 1), (True, 0), (False, 0), (False, 0)]
    assert 57 < tallies[-1].frees_in <= 58


async def test_every_key_expires_and_holds_no_more_than_the_limit(opened: Opened) -> None:
    """After a burst, each key expires within one window and holds at most as many entries as the limit."""
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
    """Attempts raise StoreUnavailable while the server is frozen or down; once it is back, counting is exact again."""
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
    """A probe fails if the server refuses writes for lack of replicas, but not if its memory is full."""
    async with standalone() as server, opened_windows(server.url, "w:") as windows:
        await server.config("maxmemory 1")
        await windows.probe()
        await _exactly_five([windows])
        await server.config("min-replicas-to-write 1")
        with pytest.raises(StoreUnavailable):
            await windows.probe()
        with pytest.raises(StoreUnavailable):
            await windows.hit(Window("a", 5, 60))
