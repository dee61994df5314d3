"""A write whose reply is lost is sent again. An acknowledged one has its record and log entry, on replicas too."""

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import pytest
import pytest_asyncio

from revocation_service.errors import StoreUnavailable
from revocation_service.store.redis_url import MAX_CONNECTIONS
from revocation_service.store.scripts import MERGE
from revocation_service.store.store import DEADLINE_SECONDS, Put, Stored, replicas_online
from tests.redis_processes import HOST, Process, eventually, standalone
from tests.scale import BUSY_SECONDS, scaled
from tests.store.conftest import Opened, Proxy, logged_values, missing, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREVER = 10**9


Where = Literal["before the request", "within the request", "before the reply", "within the reply"]


@dataclass
class Cutter:
    """A filter for a Proxy that cuts the connection at one point of a write, `times` times."""

    where: Where = "before the reply"
    times: int = 0
    cuts: int = 0
    under_way: bool = False
    proxy: Proxy = field(init=False)

    async def request(self, piece: bytes) -> bytes | None:
        """Pass on data to the server, or cut the connection."""
        self.under_way = b"EVALSHA" in piece and MERGE.sha.encode() in piece
        return self._judge(piece, "request")

    async def reply(self, piece: bytes) -> bytes | None:
        """Pass on data from the server, or cut the connection; the server has done the write by then."""
        return self._judge(piece, "reply")

    def _judge(self, piece: bytes, way: str) -> bytes | None:
        if self.cuts >= self.times or not self.under_way or not self.where.endswith(way):
            return piece
        self.cuts += 1
        if self.where.startswith("before"):
            return None
        asyncio.get_running_loop().call_soon(self.proxy.cut)
        return piece[: len(piece) // 2]


@dataclass(frozen=True)
class Pair:
    """A master and its replica, each a process of its own."""

    master: Process
    replica: Process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    """A server with one replica that follows it."""
    quick = ["repl-diskless-sync-delay 0", "repl-ping-replica-period 1"]
    async with standalone(config=quick) as master, standalone(config=quick) as replica:
        await replica.command("REPLICAOF", HOST, master.port)
        await eventually(functools.partial(_has_a_replica, master), "a replica that follows")
        yield Pair(master, replica)


async def _has_a_replica(master: Process) -> bool:
    return replicas_online(await master.info("replication")) == 1


@dataclass(frozen=True)
class Cut:
    """A store behind a proxy that cuts connections, and the servers behind the proxy."""

    opened: Opened
    cutter: Cutter
    proxy: Proxy
    pair: Pair
    exp: float = field(default_factory=lambda: time.time() + 600)

    async def logged(self) -> list[str]:
        """Return the values in the change log."""
        return await logged_values([self.pair.master], self.opened.store.keyspace.change_log)

    async def revoke(self) -> Stored:
        """Put the same revocation, with the same `exp`, at every call."""
        return await self.opened.store.put(Put("jti", "a", exp=self.exp))

    async def recorded(self, value: str) -> bool:
        """Return whether the master has the record."""
        return bool(await self.pair.master.command("EXISTS", self.opened.store.keyspace.key("jti", value)))


@pytest_asyncio.fixture(loop_scope="module", params=[0, 1], ids=["alone", "with a replica"])
async def cut(request: pytest.FixtureRequest, pair: Pair) -> AsyncIterator[Cut]:
    """A store that waits for no replica, or for one. Its connection is open, and its script is loaded."""
    cutter = Cutter()
    proxy = Proxy(pair.master.port, request=cutter.request, reply=cutter.reply)
    cutter.proxy = proxy
    async with proxy.running(), open_store(proxy.url, wait_replicas=request.param) as opened:
        await opened.revoke("warm")
        yield Cut(opened, cutter, proxy, pair)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("where", ["before the request", "within the request", "before the reply", "within the reply"])
async def test_the_store_itself_sends_again(cut: Cut, where: Where, times: int) -> None:
    """If the connection breaks during a put, once or three times, the put is still acknowledged, and logged once."""
    cut.cutter.where, cut.cutter.times = where, times
    stored = await cut.revoke()
    assert cut.cutter.cuts == times
    assert stored.record == await cut.opened.found("a")
    assert stored.record is not None
    assert await cut.recorded("a")
    assert (await cut.logged()).count("a") == 1
    assert stored.result == ("already_revoked" if where.endswith("reply") else "revoked")


@pytest.mark.parametrize("where", ["before the request", "before the reply"])
async def test_the_caller_sends_again(cut: Cut, where: Where) -> None:
    """After the store gave up on a put, the caller's retry succeeds, and leaves one record and one log entry."""
    cut.cutter.where, cut.cutter.times = where, FOREVER
    begun = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable):
        await cut.revoke()
    assert asyncio.get_running_loop().time() - begun < DEADLINE_SECONDS + BUSY_SECONDS
    assert cut.cutter.cuts > 1
    done = where.endswith("reply")
    assert await cut.recorded("a") is done
    assert ("a" in await cut.logged()) is done
    cut.cutter.times = 0
    stored = await cut.revoke()
    assert stored.result == ("already_revoked" if done else "revoked")
    assert await cut.opened.found("a") == stored.record
    assert (await cut.logged()).count("a") == 1
    assert cut.opened.failures("put") == 1


async def test_a_refused_write_is_in_no_log(cut: Cut) -> None:
    """A put for an expired token is neither recorded nor logged, even if its reply is lost twice."""
    cut.cutter.times = 2
    stored = await cut.opened.store.put(Put("jti", "dead", exp=5))
    assert cut.cutter.cuts == 2
    assert stored.result == "expired"
    assert not await cut.recorded("dead")
    assert await cut.logged() == ["warm"]


async def test_a_replica_that_did_not_confirm_has_it_after_the_retry(pair: Pair) -> None:
    """After a put failed because the replica was frozen, a retry leaves record and log entry on master and replica."""
    async with open_store(pair.master.url, wait_replicas=1) as opened:
        await opened.revoke("warm")
        pair.replica.freeze()
        try:
            with pytest.raises(StoreUnavailable, match="replica"):
                await opened.revoke("a")
            assert await opened.found("a") is not None, "the master has it"
        finally:
            pair.replica.thaw()
        stored = await opened.revoke("a")
        assert stored.result == "already_revoked"
        for node in (pair.master, pair.replica):
            assert await node.command("EXISTS", opened.store.keyspace.key("jti", "a"))
            assert "a" in await logged_values([node], opened.store.keyspace.change_log)


async def test_a_confirmation_counts_for_its_own_write_alone(pair: Pair) -> None:
    """If the server dropped the script, WAIT confirms an older write only, and the new write is not acknowledged."""
    async with open_store(pair.master.url, wait_replicas=1) as opened:
        for value in ("loads the script", "is confirmed"):
            await opened.revoke(value)
        pair.replica.freeze()
        try:
            await pair.master.command("SCRIPT", "FLUSH")
            with pytest.raises(StoreUnavailable, match="replica"):
                await opened.revoke("a")
        finally:
            pair.replica.thaw()
        assert (await opened.revoke("b")).result == "revoked"


@pytest.mark.parametrize("hangs", [b"*", b"role:master"], ids=["the script", "WAIT and INFO"])
async def test_a_put_that_hangs_ends_at_its_deadline(pair: Pair, hangs: bytes) -> None:
    """A put raises StoreUnavailable in time if no reply arrives, or only the reply to its script."""
    released = asyncio.Event()

    async def hang(piece: bytes) -> bytes:
        if hangs in piece:
            await released.wait()
        return piece

    async with Proxy(pair.master.port).running() as proxy, open_store(proxy.url, wait_replicas=1) as opened:
        await opened.revoke("warm")
        proxy.reply = hang
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await opened.revoke("a")
        assert time.monotonic() - begun < DEADLINE_SECONDS + BUSY_SECONDS
        await eventually(functools.partial(_is_down, opened), "the end of the batch, which notes that Redis is away")
        released.set()
        assert (await opened.revoke("a")).result == "already_revoked", "it was written, though nothing was promised"


async def _is_down(opened: Opened) -> bool:
    return opened.counted("store_up") == 0


async def test_the_first_write_to_a_redis_without_replicas_is_one_attempt() -> None:
    """The first put learns in one attempt that the server lacks the script, and that there is no replica."""
    async with standalone() as server, open_store(server.url, wait_replicas=1) as opened:
        assert (await opened.revoke("a")).result == "revoked"
        assert (await server.info("commandstats"))["cmdstat_evalsha"]["calls"] == 2


async def test_acknowledged_means_on_the_replica(pair: Pair) -> None:
    """As soon as a put that waits for a replica returns, the replica has the record and the log entry."""
    async with open_store(pair.master.url, wait_replicas=1) as opened:
        for number in range(50):
            value = f"v{number}"
            await opened.revoke(value)
            assert await pair.replica.command("EXISTS", opened.store.keyspace.key("jti", value))
            assert (await logged_values([pair.replica], opened.store.keyspace.change_log))[-1] == value


@dataclass
class BadLine:
    """A filter for a Proxy that cuts connections at random, and the writers and readers behind that proxy."""

    cut: Cut
    tries: int
    dice: random.Random = field(default_factory=lambda: random.Random(20261123))

    async def __call__(self, piece: bytes) -> bytes | None:
        """Cut the connection before 3 % of the chunks, and within another 3 %."""
        luck = self.dice.random()
        if luck < 0.03:
            return None
        if luck < 0.06:
            asyncio.get_running_loop().call_soon(self.cut.proxy.cut)
            return piece[: self.dice.randrange(len(piece))]
        return piece

    async def write(self, name: int) -> list[str]:
        """Put values, each until it is acknowledged, and return them."""
        values = [f"w{name}-{number}" for number in range(self.tries)]
        for value in values:
            while not await self.acknowledged(value):
                pass
        return values

    async def acknowledged(self, value: str) -> bool:
        """Try a put once, return whether it was acknowledged, and assert that the answer is about this value."""
        try:
            stored = await self.cut.opened.store.put(Put("jti", value, expires_in=900, reason=value))
        except StoreUnavailable:
            return False
        assert stored.record is not None
        assert (stored.record.value, stored.record.reason) == (value, value)
        return True

    async def read(self) -> None:
        """Get values that the writers are putting, and assert that each answer is about values that were asked for."""
        for number in range(self.tries):
            values = {f"w{other}-{self.dice.randrange(number + 1)}" for other in range(4)}
            with contextlib.suppress(StoreUnavailable):
                reading = await self.cut.opened.store.get([("jti", value) for value in values])
                assert {record.value for record in reading.found} <= values
                assert all(record.reason == record.value for record in reading.found)


async def test_nothing_is_lost_or_mixed_up_over_a_bad_line(cut: Cut) -> None:
    """Over connections that are cut at random, every acknowledged put is kept, and every answer fits its request."""
    line = BadLine(cut, scaled(30, 1000))
    cut.proxy.request = cut.proxy.reply = line
    readers = asyncio.gather(*(line.read() for _ in range(8)))
    written = await asyncio.gather(*map(line.write, range(8)))
    await readers
    assert cut.proxy.opened > 5, "the line was not bad at all"
    assert cut.proxy.connections <= MAX_CONNECTIONS, "connections leak"
    cut.proxy.request, cut.proxy.reply = cut.cutter.request, cut.cutter.reply
    values = [value for some in written for value in some]
    assert len(values) == 8 * line.tries
    async with open_store(cut.pair.master.url, key_prefix=cut.opened.settings.key_prefix) as fresh:
        assert not await missing(fresh, values)
    assert not set(values) - set(await cut.logged())


async def test_connections_do_not_leak_over_many_failures(cut: Cut) -> None:
    """After hundreds of operations failed or were cancelled, the pool still serves concurrent operations."""
    cut.cutter.where = "before the reply"
    for round_ in range(6):
        cut.cutter.cuts, cut.cutter.times = 0, 100
        tasks = [asyncio.create_task(cut.opened.revoke(f"v{round_}-{number}")) for number in range(120)]
        await asyncio.wait(tasks, timeout=0.05)
        for task in tasks[::2]:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        unexpected = [e for e in ended if isinstance(e, Exception) and not isinstance(e, StoreUnavailable)]
        assert not unexpected
    cut.cutter.times = 0
    values = [f"after {number}" for number in range(100)]
    await cut.opened.revoke_all(values)
    assert not await missing(cut.opened, values)


async def test_connections_are_bounded(pair: Pair) -> None:
    """For 100 concurrent operations, a store opens at most MAX_CONNECTIONS connections to the master."""
    async with Proxy(pair.master.port).running() as proxy, open_store(proxy.url) as opened:
        values = [f"v{number}" for number in range(100)]
        ended = await asyncio.gather(*map(opened.revoke, values), return_exceptions=True)
        assert 0 < proxy.most <= MAX_CONNECTIONS
        late = [value for value, end in zip(values, ended, strict=True) if isinstance(end, Exception)]
        await opened.revoke_all(late)
        assert not await missing(opened, values)


async def test_a_late_reply_reaches_no_other_caller() -> None:
    """After SCRIPT FLUSH, and with no replica, the late reply to WAIT is not taken for the reply to another command."""
    async with standalone() as server, open_store(server.url, wait_replicas=1) as opened:
        await opened.store.put(Put("jti", "a", expires_in=900, reason="a"))
        for _ in range(3):
            await server.command("SCRIPT", "FLUSH")
            async with open_store(server.url, wait_replicas=1, key_prefix=opened.settings.key_prefix) as fresh:
                for store in (fresh.store, opened.store, fresh.store):
                    stored = await store.put(Put("jti", "a", expires_in=5, reason="other"))
                    assert stored.record is not None
                    assert (stored.result, stored.record.reason) == ("already_revoked", "a")
                    assert [found.reason for found in (await store.get([("jti", "a")])).found] == ["a"]
