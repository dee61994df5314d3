"""The store behaves the same over every kind of Redis: one server (TCP, TLS, unix socket), Sentinel, and a cluster."""

import asyncio
import contextlib
import functools
import itertools
import json
import math
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from revocation_client.claims import CLAIMS, ClaimName, Claims
from revocation_client.revocation import Revocation, covers
from revocation_service.errors import ExpTooFar, IssuedBeforeTooFar, StoreUnavailable
from revocation_service.settings import Limits
from revocation_service.store.store import DEADLINE_SECONDS, Put
from revocation_service.store.topology import FIND_MASTER
from tests.redis_processes import (
    WAIT_SECONDS,
    Cluster,
    Process,
    cluster,
    eventually,
    sentinel,
    standalone,
    tls_front,
    tls_supported,
)
from tests.scale import BUSY_SECONDS, scaled
from tests.store.conftest import WEEK_SECONDS, Opened, Proxy, end_of, logged_values, missing, open_store, read_log

pytestmark = pytest.mark.asyncio(loop_scope="module")

SINGLE = ["standalone", "tls", "unix"]
KINDS = [*SINGLE, "sentinel", "cluster"]

LIFE_OF_KEY = """
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local before, left, after
repeat -- before Redis 7.2 a script's clock does not stand still
  before, left, after = now(), redis.call('PTTL', KEYS[1]), now()
until before == after
return {before, left}
"""


@dataclass(frozen=True)
class Deployment:
    """Redis of one kind, the URL for the store, and a client that bypasses the store."""

    kind: str
    url: str
    nodes: list[Process]
    raw: Any
    """A redis-py client of the master or, on a cluster, of the whole cluster."""
    cluster: Cluster | None = None

    async def masters(self) -> list[Process]:
        """Return the nodes that are masters now."""
        roles = await asyncio.gather(*(node.info("replication") for node in self.nodes))
        return [node for node, role in zip(self.nodes, roles, strict=True) if role["role"] == "master"]

    async def lives_until(self, key: str) -> float:
        """Return when the key expires, in epoch seconds; infinity if it never does."""
        now, left = await self.raw.eval(LIFE_OF_KEY, 1, key)
        assert left != -2, "the key is not there"
        return math.inf if left == -1 else (now + left) / 1000

    async def log_of(self, opened: Opened) -> list[str]:
        """Return the values in the store's change log."""
        return await logged_values(await self.masters(), opened.store.keyspace.change_log)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def deployment(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """Redis of each kind in turn, started once for all tests of this module."""
    async with contextlib.AsyncExitStack() as stack:
        yield await _deploy(request.param, stack)


async def _deploy(kind: str, stack: contextlib.AsyncExitStack) -> Deployment:
    if kind == "sentinel":
        replicated = await stack.enter_async_context(sentinel(password="secret"))
        raw = await stack.enter_async_context((await replicated.master()).client())
        return Deployment(kind, replicated.url, replicated.nodes, raw)
    if kind == "cluster":
        clustered = await stack.enter_async_context(cluster(password="secret"))
        client = RedisCluster(
            host="127.0.0.1", port=clustered.nodes[0].port, password="secret", decode_responses=True, protocol=2
        )
        await stack.enter_async_context(client)
        return Deployment(kind, clustered.url, clustered.nodes, client, clustered)
    return await _deploy_single(kind, stack)


async def _deploy_single(kind: str, stack: contextlib.AsyncExitStack) -> Deployment:
    natively = kind == "tls" and tls_supported()
    server = await stack.enter_async_context(standalone(password="secret", unix_socket=kind == "unix", tls=natively))
    raw = await stack.enter_async_context(server.client())
    if kind == "unix":
        return Deployment(kind, server.unix_url, [server], raw)
    if kind == "standalone":
        return Deployment(kind, server.url, [server], raw)
    front = server if natively else await stack.enter_async_context(tls_front(server))
    assert front.certificates is not None
    return Deployment(kind, f"{front.url}?ssl_ca_certs={front.certificates.ca}", [server], raw)


@pytest_asyncio.fixture(loop_scope="module")
async def opened(deployment: Deployment) -> AsyncIterator[Opened]:
    """A store with the default settings and a key prefix of its own."""
    async with open_store(deployment.url) as store:
        yield store


single_servers = pytest.mark.parametrize("deployment", SINGLE, indirect=True)
one_server = pytest.mark.parametrize("deployment", ["standalone"], indirect=True)
clusters = pytest.mark.parametrize("deployment", ["cluster"], indirect=True)


def put_of(claim: ClaimName) -> Put:
    """Return a revocation of the claim with a reason, an actor and, except for a `jti`, a cutoff."""
    value = "" if claim == "all" else f"{claim} of Zoë / 7"
    cutoff = None if claim == "jti" else time.time() - 5
    return Put(claim, value, issued_before=cutoff, reason='said "no" \\ 停 é', revoked_by="main-api")


async def test_what_was_put_is_found(opened: Opened) -> None:
    """For each claim, a get returns the acknowledged record with all its fields, and no record of another claim."""
    for number, claim in enumerate(CLAIMS):
        before = time.time()
        put = put_of(claim)
        stored = await opened.store.put(put)
        record = stored.record
        assert stored.result in {"revoked", "already_revoked"}  # the latter if the store sent it twice
        assert record is not None
        assert record.revoked_at is not None
        assert before - 0.1 <= record.revoked_at <= time.time() + 0.1
        expected = Revocation(claim, put.value, record.expires_at, record.revoked_at, put.issued_before)
        assert record == expected._replace(reason=put.reason, revoked_by=put.revoked_by)
        reading = await opened.store.get([(other, put.value) for other in CLAIMS])
        assert reading.found == (record,)
        assert abs(reading.now - time.time()) < 5
        everything = await opened.store.get([(other, put_of(other).value) for other in CLAIMS])
        assert len(everything.found) == number + 1


async def test_a_token_lives_in_redis_exactly_until_its_exp(deployment: Deployment, opened: Opened) -> None:
    """The record ends exactly at `exp`, and its key at most a second later, for lifetimes of seconds and of weeks."""
    for left in (1.2345678, 30, 3600.9999, WEEK_SECONDS, 4 * WEEK_SECONDS + 0.0004):
        exp = time.time() + left
        assert end_of(await opened.record(Put("jti", f"left {left}", exp=exp))) == exp
        ends = await deployment.lives_until(opened.store.keyspace.key("jti", f"left {left}"))
        assert _ends_at(ends, exp)


def _ends_at(ends: float, moment: float) -> bool:
    """Return whether a key that expires at `ends` lives until `moment`, and at most a second longer.

    A float of epoch seconds is exact to a quarter of a microsecond; Redis counts whole milliseconds.
    """
    return moment - 1e-6 <= ends <= moment + 1


async def test_leeway_is_added_to_a_life(deployment: Deployment) -> None:
    """The record and its key outlive the token by `expiry_leeway_seconds`, with `exp` and with `expires_in`."""
    async with open_store(deployment.url, limits=Limits(expiry_leeway_seconds=90)) as opened:
        exp = time.time() + 50
        assert end_of(await opened.record(Put("jti", "by exp", exp=exp))) == exp + 90
        by_time = end_of(await opened.record(Put("jti", "by time", expires_in=50)))
        assert by_time == pytest.approx(time.time() + 140, abs=1)
        for value, expected in (("by exp", exp + 90), ("by time", by_time)):
            ends = await deployment.lives_until(opened.store.keyspace.key("jti", value))
            assert _ends_at(ends, expected)


async def test_what_says_no_lifetime_lives_the_longest(deployment: Deployment) -> None:
    """Without `exp`, a record lives for the longest token lifetime, counted from now or from a later cutoff."""
    async with open_store(deployment.url, limits=Limits(max_token_lifetime_seconds=1000)) as opened:
        ahead, ago = time.time() + 50, time.time() - 500
        puts = [
            (Put("jti", "a"), time.time()),
            (Put("sid", "a"), time.time()),
            (Put("sub", "late", issued_before=ahead), ahead),
            (Put("sub", "early", issued_before=ago), time.time()),
            (Put("all", "", cutoff_is_now=True), time.time()),
        ]
        for put, since in puts:
            end = end_of(await opened.record(put))
            assert end == pytest.approx(since + 1000, abs=1)
            assert _ends_at(await deployment.lives_until(opened.store.keyspace.key(put.claim, put.value)), end)


async def test_a_cutoff_lives_as_long_as_its_caller_says(deployment: Deployment, opened: Opened) -> None:
    """Every claim accepts `exp` and `expires_in`. A later request can lengthen a record's life, not shorten it."""
    for claim in CLAIMS:
        value, now = "" if claim == "all" else "brief", time.time()
        cutoff_is_now = CLAIMS[claim].cutoff == "always"
        ends = [
            end_of(await opened.record(Put(claim, value, expires_in=life, cutoff_is_now=cutoff_is_now)))
            for life in (900, 60, 3600)
        ]
        assert ends == [pytest.approx(now + life, abs=5) for life in (900, 900, 3600)]
        exp = math.ceil(time.time()) + 7200.5  # in whole milliseconds, as Redis counts
        assert end_of(await opened.record(Put(claim, value, exp=exp, cutoff_is_now=cutoff_is_now))) == exp
        assert exp <= await deployment.lives_until(opened.store.keyspace.key(claim, value)) <= exp + 1


async def test_the_default_cutoff_is_now_on_the_clock_of_redis(opened: Opened) -> None:
    """`cutoff_is_now` sets the cutoff to the time of the write: only tokens issued until then are covered."""
    record = await opened.record(Put("sub", "alice", cutoff_is_now=True))
    cutoff = record.issued_before
    assert cutoff is not None
    assert cutoff == record.revoked_at
    assert cutoff == pytest.approx(time.time(), abs=1)
    assert covers(record, Claims.of(sub="alice", iat=math.floor(cutoff)), time.time())
    assert not covers(record, Claims.of(sub="alice", iat=math.floor(cutoff) + 1), time.time() + 1)


async def test_redis_forgets_by_itself_when_the_token_dies(deployment: Deployment, opened: Opened) -> None:
    """A record is found until its end, and not afterwards; Redis removes it by itself."""
    exp = time.time() + 0.6
    await opened.store.put(Put("jti", "brief", exp=exp))
    seen_until = 0.0

    async def gone() -> bool:
        nonlocal seen_until
        if await opened.found("brief") is None:
            return True
        seen_until = time.time()
        return False

    await eventually(gone, "the end of a record", seconds=5)
    assert exp - 0.3 < seen_until < exp + 0.1
    assert await deployment.raw.exists(opened.store.keyspace.key("jti", "brief")) == 0


async def test_every_key_has_an_expiry_but_the_log(deployment: Deployment, opened: Opened) -> None:
    """After revocations of every claim, each made twice, the change log is the only key without an expiry."""
    for claim in CLAIMS:
        await opened.store.put(put_of(claim))
        await opened.store.put(put_of(claim))
    endless: list[object] = []
    ending: list[object] = []
    for node in await deployment.masters():
        async with node.client() as client:
            async for key in client.scan_iter(match=f"{opened.settings.key_prefix}*", count=1000):
                (endless if await client.pttl(key) == -1 else ending).append(key)
    assert endless == [opened.store.keyspace.change_log]
    assert len(ending) == len(CLAIMS)


async def test_revoking_again_changes_nothing_that_matters(deployment: Deployment, opened: Opened) -> None:
    """A second revocation is `already_revoked`. The first keeps its reason, actor, time and longer life."""
    exp = time.time() + 500
    first = await opened.store.put(Put("jti", "a", exp=exp, reason="first", revoked_by="one"))
    again = await opened.store.put(Put("jti", "a", exp=exp - 300, reason="second", revoked_by="two"))
    assert (first.result, again.result) == ("revoked", "already_revoked")
    assert first.record == again.record == await opened.found("a")
    assert await deployment.lives_until(opened.store.keyspace.key("jti", "a")) >= exp


async def test_a_life_may_be_lengthened(deployment: Deployment, opened: Opened) -> None:
    """A later `exp` moves the end of the record and of the key, and only that."""
    exp = time.time() + 100
    first = await opened.record(Put("jti", "a", exp=exp, reason="first"))
    again = await opened.store.put(Put("jti", "a", exp=exp + 700, reason="second"))
    assert again.result == "already_revoked"
    assert again.record == first._replace(expires_at=exp + 700)
    assert exp + 700 <= await deployment.lives_until(opened.store.keyspace.key("jti", "a")) <= exp + 701


async def test_cutoffs_only_move_forward(opened: Opened) -> None:
    """A request with an earlier cutoff changes nothing. One with a later cutoff moves it forward, and is `revoked`."""
    base = time.time() - 100
    results, cutoffs = [], []
    for offset in (10, 5, 10, 20, 1):
        stored = await opened.store.put(Put("sub", "alice", issued_before=base + offset))
        assert stored.record is not None
        results.append(stored.result)
        cutoffs.append(stored.record.issued_before)
    assert results == ["revoked", "already_revoked", "already_revoked", "revoked", "already_revoked"]
    assert cutoffs == [base + best for best in (10, 10, 10, 20, 20)]


async def test_cutoffs_that_arrive_at_once_leave_the_greatest(deployment: Deployment, opened: Opened) -> None:
    """Of fifty cutoffs put concurrently, the latest stays, and the log has the changes in ascending order."""
    base = time.time() - 100
    cutoffs = [base + number for number in range(50)]
    random.shuffle(cutoffs)
    stored = await asyncio.gather(*(opened.store.put(Put("sub", "bob", issued_before=cutoff)) for cutoff in cutoffs))
    record = await opened.found("bob", "sub")
    assert record is not None
    assert record.issued_before == max(cutoffs)
    for asked, got in zip(cutoffs, stored, strict=True):
        assert got.record is not None
        assert got.record.issued_before is not None
        assert got.record.issued_before >= asked
    entries = await read_log(await deployment.masters(), opened.store.keyspace.change_log)
    logged = [entry.change["issued_before"] for entry in entries]
    assert logged == sorted(logged)
    assert logged[-1] == max(cutoffs)


async def test_a_session_may_have_a_cutoff_and_lose_it(opened: Opened) -> None:
    """A session's revocation without a cutoff replaces one with a cutoff, and no later cutoff replaces it."""
    cutoff = time.time() - 10
    results = []
    for issued_before in (cutoff, None, cutoff + 5):
        stored = await opened.store.put(Put("sid", "s", issued_before=issued_before))
        assert stored.record is not None
        results.append((stored.result, stored.record.issued_before))
    assert results == [("revoked", cutoff), ("revoked", None), ("already_revoked", None)]


FOREIGN = [
    "1",
    "0",
    "",
    "garbage",
    "null",
    "[]",
    "{}",
    '"revoked"',
    '{"revoked_at":"yesterday"}',
    '{"revoked_at":1e999}',
    '{"revoked_at":true,"expires_at":1}',
    '{"revoked_at":1,"reason":7}',
    "[" * 5000,
    "1" * 5000,
    b"\xff\xfe\x00",
]


async def test_a_foreign_value_revokes_as_long_as_its_key_lives(deployment: Deployment, opened: Opened) -> None:
    """Any value that a foreign application wrote revokes the token until the key expires, whatever its `iat` is."""
    for number, value in enumerate(FOREIGN):
        name = f"v{number}"
        await deployment.raw.execute_command("SETEX", opened.store.keyspace.key("jti", name), 300, value)
        record = await opened.found(name)
        assert record is not None, value
        assert (record.revoked_at, record.issued_before, record.reason) == (None, None, None)
        assert record.expires_at == pytest.approx(time.time() + 300, abs=2)
        for iat in (None, 5.0, time.time() + 1000):
            assert covers(record, Claims.of(jti=name, iat=iat), time.time())
    assert opened.counted("foreign_records_total") == len(FOREIGN)


async def test_revoking_what_a_foreign_application_wrote(deployment: Deployment, opened: Opened) -> None:
    """Revoking what a foreign application revoked is `already_revoked`, and the longer of both lifetimes stays."""
    for value, theirs, ours in itertools.product(["1", "0", "garbage"], [100, 400], [100, 400]):
        name = f"{value} {theirs} {ours}"
        key = opened.store.keyspace.key("jti", name)
        await deployment.raw.execute_command("SETEX", key, theirs, value)
        stored = await opened.store.put(Put("jti", name, expires_in=ours, reason="mine"))
        assert stored.result == "already_revoked"
        assert await deployment.lives_until(key) == pytest.approx(time.time() + max(theirs, ours), abs=2)
        assert await deployment.raw.exists(key) == 1
        found = await opened.found(name)
        assert found == stored.record
        assert found is not None
        assert found.reason == "mine"
    assert opened.counted("foreign_records_total") == 12


async def test_a_value_too_long_to_be_ours_counts_by_existing(deployment: Deployment, opened: Opened) -> None:
    """A foreign value of up to 1 MiB is read. A longer one revokes too, but neither get nor put reads its content."""
    for length, read in ((1 << 20, True), ((1 << 20) + 1, False)):
        value = '{"revoked_at":1795000000,"reason":"theirs"}'.ljust(length)
        key = opened.store.keyspace.key("jti", str(length))
        await deployment.raw.execute_command("SETEX", key, 300, value)
        found = await opened.found(str(length))
        assert found is not None
        assert found.reason == ("theirs" if read else None)
        assert end_of(found) == pytest.approx(time.time() + 300, abs=2)
        stored = await opened.record(Put("jti", str(length), expires_in=60, reason="ours"))
        assert stored.reason == ("theirs" if read else "ours")
        assert await deployment.lives_until(key) == pytest.approx(time.time() + 300, abs=2)
        await deployment.raw.delete(key)


LOOKS_LIKE_OURS = [
    '{"revoked_at":1795000000,"expires_at":1795000900}',
    '{"revoked_at":5,"expires_at":6,"issued_before":1}',
    '{"revoked_at":1795000000}',
    '{"revoked_at":1795000000,"expires_at":1795000900000}',
    '{"revoked_at":1795000000,"expires_at":1e300}',
    '{"revoked_at":1795000000,"reason":"\\ud800"}',
]


async def test_a_foreign_value_that_looks_like_a_record(deployment: Deployment, opened: Opened) -> None:
    """Of a foreign value that looks like the record of a `jti`, neither `expires_at` nor `issued_before` counts."""
    for number, value in enumerate(LOOKS_LIKE_OURS):
        name = f"o{number}"
        key = opened.store.keyspace.key("jti", name)
        await deployment.raw.execute_command("SETEX", key, 300, value)
        record = await opened.found(name)
        assert record is not None, value
        assert end_of(record) == pytest.approx(time.time() + 300, abs=2)
        assert covers(record, Claims.of(jti=name, iat=time.time()), time.time())
        for ours, theirs in ((60, 300), (400, 400)):
            assert (await opened.store.put(Put("jti", name, expires_in=ours))).result == "already_revoked"
            assert await deployment.lives_until(key) == pytest.approx(time.time() + theirs, abs=3), value


async def test_a_foreign_key_without_an_end_is_never_shortened(deployment: Deployment, opened: Opened) -> None:
    """A foreign key without an expiry revokes for good, even after a revocation that has an expiry."""
    key = opened.store.keyspace.key("jti", "a")
    await deployment.raw.set(key, "1")
    before = await opened.found("a")
    assert before is not None
    assert before.expires_at is None
    stored = await opened.store.put(Put("jti", "a", expires_in=5))
    assert stored.result == "already_revoked"
    assert await deployment.lives_until(key) == math.inf
    after = await opened.found("a")
    assert after is not None
    assert after.expires_at is None
    assert covers(after, Claims.of(jti="a"), time.time() + 10 * WEEK_SECONDS)


async def test_a_key_of_another_type_revokes_too(deployment: Deployment, opened: Opened) -> None:
    """A list, set, hash, sorted set or stream under a token's key revokes the token until the key expires."""
    await opened.revoke("ours")
    types: list[list[str]] = [["RPUSH", "x"], ["SADD", "x"], ["HSET", "x", "y"], ["ZADD", "1", "x"]]
    for command, *words in [*types, ["XADD", "*", "x", "y"]]:
        key = opened.store.keyspace.key("jti", command)
        await deployment.raw.execute_command(command, key, *words)
        await deployment.raw.expire(key, 300)
        reading = await opened.store.get([("jti", value) for value in ("absent", command, "ours")])
        found = {record.value: record for record in reading.found}
        assert sorted(found) == sorted([command, "ours"])
        assert found[command].expires_at == pytest.approx(time.time() + 300, abs=2)
        stored = await opened.store.put(Put("jti", command, expires_in=50))
        assert stored.result == "already_revoked"
        assert await deployment.lives_until(key) == pytest.approx(time.time() + 300, abs=2)


async def test_an_application_with_its_own_blacklist_sees_the_key(deployment: Deployment) -> None:
    """Without a key prefix, a put creates `token_blacklist:<jti>`, whose value is compact JSON.

    On a cluster, the default prefix is `{revocations}`.
    """
    prefix = "{revocations}" if deployment.cluster else ""
    async with open_store(deployment.url, key_prefix="") as opened:
        jti = f"{time.time_ns()}-{deployment.kind}"
        assert await deployment.raw.exists(f"{prefix}token_blacklist:{jti}") == 0
        stored = await opened.store.put(Put("jti", jti, expires_in=60, reason="lost", revoked_by="ops"))
        assert await deployment.raw.exists(f"{prefix}token_blacklist:{jti}") == 1
        text = await deployment.raw.get(f"{prefix}token_blacklist:{jti}")
        assert stored.record is not None
        assert json.loads(text) == {
            "revoked_at": stored.record.revoked_at,
            "expires_at": stored.record.expires_at,
            "revoked_by": "ops",
            "reason": "lost",
        }
        assert " " not in text
        await deployment.raw.delete(f"{prefix}token_blacklist:{jti}")


async def test_nothing_is_stored_for_a_dead_token(deployment: Deployment, opened: Opened) -> None:
    """For a token that has expired, a put returns `expired`, and leaves no record, no key and no log entry."""
    for name, put in {
        "exp": Put("jti", "exp", exp=time.time() - 1),
        "epoch": Put("jti", "epoch", exp=0),
        "at once": Put("jti", "at once", expires_in=0),
        "cutoff": Put("sub", "cutoff", expires_in=0, cutoff_is_now=True),
    }.items():
        stored = await opened.store.put(put)
        assert (stored.result, stored.record) == ("expired", None)
        assert await deployment.raw.exists(opened.store.keyspace.key(put.claim, name)) == 0
    assert await deployment.raw.exists(opened.store.keyspace.change_log) == 0


async def test_an_exp_too_far_is_refused_and_stores_nothing(deployment: Deployment) -> None:
    """An `exp` beyond the longest lifetime plus the clock skew raises ExpTooFar, and nothing is stored."""
    async with open_store(deployment.url, limits=Limits(max_token_lifetime_seconds=1000)) as opened:
        for put in (
            Put("jti", "a", exp=time.time() + 1065),
            Put("jti", "a", expires_in=1065),
            Put("jti", "a", exp=1e30),
            Put("sub", "a", expires_in=1065, cutoff_is_now=True),
            Put("sid", "a", exp=time.time() + 1065),
        ):
            with pytest.raises(ExpTooFar, match="REVOCATION_MAX_TOKEN_LIFETIME_SECONDS"):
                await opened.store.put(put)
        assert await opened.found("a") is None
        assert await deployment.raw.exists(opened.store.keyspace.change_log) == 0
        assert (await opened.store.put(Put("jti", "a", exp=time.time() + 1055))).result == "revoked"


async def test_a_cutoff_too_far_ahead_is_refused_and_stores_nothing(deployment: Deployment, opened: Opened) -> None:
    """A cutoff further ahead than the clock skew raises IssuedBeforeTooFar, and nothing is stored."""
    with pytest.raises(IssuedBeforeTooFar, match="60 s ahead"):
        await opened.store.put(Put("sub", "a", issued_before=time.time() + 65))
    assert await opened.found("a", "sub") is None
    assert await deployment.raw.exists(opened.store.keyspace.change_log) == 0
    assert (await opened.store.put(Put("sub", "a", issued_before=time.time() + 55))).result == "revoked"


async def test_prefixes_keep_deployments_apart(deployment: Deployment) -> None:
    """Two stores with different prefixes on one Redis share nothing, and every key begins with its prefix."""
    async with open_store(deployment.url, key_prefix="{one}:") as one, open_store(deployment.url) as other:
        for claim in CLAIMS:
            await one.store.put(put_of(claim))
        identifiers = [(claim, put_of(claim).value) for claim in CLAIMS]
        assert len((await one.store.get(identifiers)).found) == len(CLAIMS)
        assert not (await other.store.get(identifiers)).found
        keys = [one.store.keyspace.key(*identifier) for identifier in identifiers] + [one.store.keyspace.change_log]
        assert all(key.startswith("{one}:token_") for key in keys)
        for key in keys:
            assert await deployment.raw.delete(key) == 1, key


async def test_every_acknowledged_put_is_in_the_log(deployment: Deployment, opened: Opened) -> None:
    """Each put that changes a record, even an `already_revoked` one, appends it to the log with a nonce of its own."""
    puts = [put_of(claim) for claim in CLAIMS]
    stored = [await opened.store.put(put) for put in (*puts, *puts)]
    assert [one.result for one in stored] == ["revoked"] * 5 + ["already_revoked"] * 5
    entries = await read_log(await deployment.masters(), opened.store.keyspace.change_log)
    assert len({entry.nonce for entry in entries}) == len(entries) == 10
    for entry, one in zip(entries, stored, strict=True):
        record = one.record
        assert record is not None
        expected = {"claim": record.claim, "value": record.value, "revoked_at": record.revoked_at}
        expected |= {"expires_at": record.expires_at}
        if record.issued_before is not None:
            expected |= {"issued_before": record.issued_before}
        assert entry.change == expected


async def test_the_log_is_trimmed(deployment: Deployment) -> None:
    """The log keeps about as many entries as the setting says, and those are the latest."""
    async with open_store(deployment.url, change_log_max_entries=100) as opened:
        values = [f"v{number}" for number in range(260)]
        for value in values:
            await opened.revoke(value)
        logged = await deployment.log_of(opened)
        assert 100 <= len(logged) < 250
        assert logged == values[-len(logged) :]
        assert not await missing(opened, values)


async def test_scripts_that_the_server_forgot_are_sent_again(deployment: Deployment, opened: Opened) -> None:
    """After SCRIPT FLUSH on every master, the next put succeeds, and so do many concurrent gets."""
    await opened.revoke("before")
    for operation in ("put", "get", "both"):
        for node in await deployment.masters():
            await node.command("SCRIPT", "FLUSH")
        if operation in {"put", "both"}:
            assert (await opened.revoke(f"after {operation}")).result == "revoked"
        if operation in {"get", "both"}:
            await asyncio.gather(*(opened.found("before") for _ in range(50)))
            reading = await opened.store.get([("jti", f"v{number}") for number in range(999)] + [("jti", "before")])
            assert [record.value for record in reading.found] == ["before"]


@single_servers
async def test_a_restart_of_the_server_costs_nobody_an_error(deployment: Deployment, opened: Opened) -> None:
    """After a server's restart, which closes every connection and drops the scripts, the next operations succeed."""
    await asyncio.gather(*(opened.revoke(f"before {number}") for number in range(30)))
    await deployment.nodes[0].restart()
    await asyncio.gather(*(opened.revoke(f"after {number}") for number in range(30)))
    expected = [f"{when} {number}" for when in ("before", "after") for number in range(30)]
    assert not await missing(opened, expected)
    assert sorted(await deployment.log_of(opened)) == sorted(expected)
    assert opened.failures("put") == opened.failures("get") == 0


@one_server
async def test_a_full_redis_refuses_and_still_answers(deployment: Deployment, opened: Opened) -> None:
    """If Redis is out of memory, a put raises StoreUnavailable and stores nothing, and gets still work."""
    await opened.revoke("before")
    server = deployment.nodes[0]
    await server.command("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="refused the command"):
            await opened.revoke("refused")
        await server.command("SCRIPT", "FLUSH")
        assert await opened.found("before") is not None
        assert await opened.found("refused") is None
    finally:
        await server.command("CONFIG", "SET", "maxmemory", 0)
    assert (await opened.revoke("refused")).result == "revoked"
    assert await deployment.log_of(opened) == ["before", "refused"]


async def test_checks_that_arrive_together_travel_together(deployment: Deployment, opened: Opened) -> None:
    """200 concurrent gets take at most two round trips, and each gets its own answer."""
    for number in range(0, 200, 2):
        await opened.revoke(f"v{number}")
    trips, keys = opened.counted("store_read_batch_keys_count"), opened.counted("store_read_batch_keys_sum")
    found = await asyncio.gather(*(opened.found(f"v{number}") for number in range(200)))
    assert [record is not None for record in found] == [number % 2 == 0 for number in range(200)]
    assert opened.counted("store_read_batch_keys_count") - trips <= 2
    assert opened.counted("store_read_batch_keys_sum") - keys == 200


@one_server
async def test_checks_that_arrive_together_are_one_command(deployment: Deployment, opened: Opened) -> None:
    """By Redis' own statistics, 200 concurrent gets are at most two script calls, and 200 sequential gets are 200."""
    await opened.found("anything")
    server = deployment.nodes[0]

    async def calls() -> int:
        return int((await server.info("commandstats"))["cmdstat_evalsha"]["calls"])

    before = await calls()
    await asyncio.gather(*(opened.found(f"v{number}") for number in range(200)))
    together = await calls() - before
    for number in range(200):
        await opened.found(f"v{number}")
    assert together <= 2
    assert await calls() - before - together == 200


async def test_the_same_question_asked_often_is_one_key(opened: Opened) -> None:
    """100 concurrent gets of one value send its key to Redis at most twice."""
    await opened.revoke("popular")
    keys = opened.counted("store_read_batch_keys_sum")
    found = await asyncio.gather(*(opened.found("popular") for _ in range(100)))
    assert all(record is not None for record in found)
    assert opened.counted("store_read_batch_keys_sum") - keys <= 2


async def test_very_many_keys_at_once(opened: Opened) -> None:
    """One get of 6,000 values finds exactly those that are revoked."""
    revoked = [f"v{number}" for number in range(0, 6000, 400)]
    for value in revoked:
        await opened.revoke(value)
    reading = await opened.store.get([("jti", f"v{n}") for n in range(6000)])
    assert sorted(record.value for record in reading.found) == sorted(revoked)


@one_server
async def test_a_round_trip_is_bounded(opened: Opened) -> None:
    """Four concurrent gets of 2,400 keys each take two round trips, because one has at most 5,000 keys."""
    await opened.found("anything")
    trips = opened.counted("store_read_batch_keys_count")
    asked: list[list[tuple[ClaimName, str]]] = [[("jti", f"{batch}-{n}") for n in range(2400)] for batch in range(4)]
    await asyncio.gather(*map(opened.store.get, asked))
    assert opened.counted("store_read_batch_keys_count") - trips == 2


async def test_what_was_acknowledged_is_seen_at_once(opened: Opened) -> None:
    """Among many concurrent puts and gets, a get that begins after a put was acknowledged finds its record."""

    async def revoke_and_look(name: str) -> None:
        for number in range(scaled(10, 200)):
            value = f"{name}-{number}"
            assert await opened.found(value) is None
            await opened.revoke(value)
            assert await opened.found(value) is not None, value

    await asyncio.gather(*(revoke_and_look(f"w{number}") for number in range(20)))


@dataclass
class Hold:
    """A filter for a Proxy that holds back all data between `begin` and `end`."""

    holding: bool = False

    def begin(self) -> None:
        """Hold back the data from now on."""
        self.holding = True
        self.held = asyncio.Event()
        self.released = asyncio.Event()

    def end(self) -> None:
        """Pass on the data that was held back, and all that follows."""
        self.holding = False
        self.released.set()

    async def __call__(self, piece: bytes) -> bytes:
        if self.holding:
            self.held.set()
            await self.released.wait()
        return piece


@pytest_asyncio.fixture(loop_scope="module")
async def slowed(deployment: Deployment) -> AsyncIterator[tuple[Opened, Hold, Proxy]]:
    """A store behind a proxy that can hold replies back; its connection is open and its script is loaded."""
    hold = Hold()
    async with (
        Proxy(deployment.nodes[0].port, reply=hold).running() as proxy,
        open_store(proxy.url, password="secret") as opened,
    ):
        assert await opened.found("anything") is None
        yield opened, hold, proxy


@one_server
async def test_a_get_never_joins_a_read_that_began_before(
    deployment: Deployment, slowed: tuple[Opened, Hold, Proxy]
) -> None:
    """A get that arrives while a read of the same key is in flight does not use that read, but sends another."""
    reader, hold, _proxy = slowed
    async with open_store(deployment.url, key_prefix=reader.settings.key_prefix) as writer:
        hold.begin()
        early = asyncio.create_task(reader.found("a"))
        await hold.held.wait()
        await writer.revoke("a")
        late = asyncio.create_task(reader.found("a"))
        await asyncio.sleep(0)
        hold.end()
        assert await early is None
        assert await late is not None


@one_server
async def test_a_caller_that_gives_up_disturbs_no_other(slowed: tuple[Opened, Hold, Proxy]) -> None:
    """When half of the gets, both in flight and queued, are cancelled, the other half still get their own answers."""
    opened, hold, proxy = slowed
    for number in range(0, 60, 3):
        await opened.revoke(f"v{number}")
    connections = proxy.opened
    hold.begin()
    travelling = [asyncio.create_task(opened.found(f"v{number}")) for number in range(60)]
    await hold.held.wait()
    waiting = [asyncio.create_task(opened.found(f"v{number}")) for number in range(60)]
    await asyncio.sleep(0)
    for task in (*travelling[::2], *waiting[::2]):
        task.cancel()
    await asyncio.sleep(0)
    hold.end()
    for tasks in (travelling, waiting):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
        found = {number: answer is not None for number, answer in enumerate(answers) if number % 2}
        assert found == {number: number % 3 == 0 for number in range(1, 60, 2)}
    assert proxy.opened == connections, "a cancelled caller cost a connection, and with it the others' round trip"


@one_server
async def test_every_caller_has_a_deadline_of_its_own(slowed: tuple[Opened, Hold, Proxy]) -> None:
    """If the server stops answering, each caller gets StoreUnavailable within its own deadline, whenever it asked."""
    opened, hold, _proxy = slowed
    hold.begin()

    async def refused() -> float:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await opened.found("a")
        return time.monotonic() - begun

    tasks = []
    for _ in range(10):
        tasks.append(asyncio.create_task(refused()))
        await asyncio.wait(tasks[-1:], timeout=0.1)
    assert max(await asyncio.gather(*tasks)) < DEADLINE_SECONDS + BUSY_SECONDS
    hold.end()
    assert await opened.found("a") is None


async def test_cancelled_callers_never_mix_up_replies(opened: Opened) -> None:
    """While and after hundreds of gets and puts are cancelled in flight, every answer belongs to its own request."""
    dice = random.Random(20261123)
    values = [f"v{number}" for number in range(40)]
    for value in values:
        await opened.store.put(Put("jti", value, expires_in=900, reason=value))

    async def get() -> None:
        asked = dice.sample(values, 3)
        reading = await opened.store.get([("jti", value) for value in (*asked, "absent")])
        assert {record.value: record.reason for record in reading.found} == {value: value for value in asked}

    async def put() -> None:
        value = dice.choice(values)
        stored = await opened.store.put(Put("jti", value, expires_in=50, reason="other"))
        assert stored.record is not None
        assert (stored.result, stored.record.value, stored.record.reason) == ("already_revoked", value, value)

    async def given_up(after_seconds: float, *, writes: bool) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_seconds):
                await (put() if writes else get())

    for _ in range(scaled(15, 300)):
        await asyncio.gather(*(given_up(dice.uniform(0, 0.01), writes=n % 2 == 0) for n in range(60)))
        await asyncio.gather(*(get() for _ in range(10)), *(put() for _ in range(10)))
    for value in values:
        record = await opened.found(value)
        assert record is not None
        assert record.reason == value


async def test_nothing_is_left_after_a_store_is_closed(deployment: Deployment) -> None:
    """A closed store leaves no connection and no task, even if many operations were cancelled just before."""

    async def connections() -> list[int]:
        return [int((await node.info("clients"))["connected_clients"]) for node in deployment.nodes]

    async def as_before() -> bool:
        return await connections() == before

    before = await connections()
    async with open_store(deployment.url) as opened:
        await opened.revoke("a")
        work = [opened.revoke(f"v{number}") for number in range(60)]
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(one) for one in work]
        tasks += [asyncio.create_task(opened.found(f"v{number}")) for number in range(60)]
        await asyncio.wait(tasks, timeout=0.004)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await eventually(as_before, "the connections of the store to end", seconds=5)
    ours = {"batch", FIND_MASTER}
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ours]


async def test_a_get_ends_when_the_store_is_closed(deployment: Deployment) -> None:
    """A get that still waits for its batch when the store is closed raises StoreUnavailable."""
    async with open_store(deployment.url) as opened:
        assert await opened.found("a") is None
        asked = asyncio.create_task(opened.found("a"))
        await asyncio.sleep(0)
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(StoreUnavailable):
            await asked


async def _shards(topology: Cluster) -> list[tuple[range, list[Process]]]:
    """Return the slots of each shard with its nodes, the master first."""
    by_port = {node.port: node for node in topology.nodes}
    return [
        (range(first, last + 1), [by_port[int(node[1])] for node in nodes])
        for first, last, *nodes in await topology.nodes[0].command("CLUSTER", "SLOTS")
    ]


async def _complete(topology: Cluster) -> bool:
    """Return whether every node calls the cluster ok, and every replica follows its master."""
    for node in topology.nodes:
        if "cluster_state:ok" not in str(await node.command("CLUSTER", "INFO")):
            return False
        state = await node.info("replication")
        if state.get("master_link_status", "up") != "up":
            return False
    return True


@clusters
async def test_one_shard_away(deployment: Deployment, opened: Opened) -> None:
    """Without the shard of the store's slot, operations raise StoreUnavailable in time; without another, gets work."""
    topology = deployment.cluster
    assert topology is not None
    await opened.revoke("a")
    slot = key_slot(opened.store.keyspace.change_log.encode())
    for slots, nodes in await _shards(topology):
        for node in reversed(nodes):
            node.kill()
        try:
            if slot in slots:
                for operation in (opened.found("a"), opened.revoke("b")):
                    begun = time.monotonic()
                    with pytest.raises(StoreUnavailable):
                        await operation
                    assert time.monotonic() - begun < DEADLINE_SECONDS + BUSY_SECONDS
            else:
                await eventually(functools.partial(_is_found, opened, "a"), "the record")
        finally:
            for node in nodes:
                await node.start()
            await eventually(functools.partial(_complete, topology), "a complete cluster")
    await eventually(functools.partial(_is_found, opened, "a"), "the record")


async def _is_found(opened: Opened, value: str) -> bool:
    try:
        return await opened.found(value) is not None
    except StoreUnavailable:
        return False


@clusters
async def test_a_slot_that_nobody_serves(deployment: Deployment, opened: Opened) -> None:
    """While the store's slot has no master, a get raises StoreUnavailable; once it has one again, operations work."""
    topology = deployment.cluster
    assert topology is not None
    await opened.revoke("a")
    log = opened.store.keyspace.change_log
    owner = await topology.master_of(log)
    for node in topology.nodes:
        await node.command("CLUSTER", "DELSLOTS", key_slot(log.encode()))
    try:
        with pytest.raises(StoreUnavailable):
            await opened.found("a")
    finally:
        await owner.command("CLUSTER", "ADDSLOTS", key_slot(log.encode()))
        await owner.command("CLUSTER", "BUMPEPOCH")
    for node in topology.nodes:
        await eventually(functools.partial(_serves_all_slots, node), "all slots served")
    await eventually(functools.partial(_is_found, opened, "a"), "the record")
    await opened.revoke("b")


async def _serves_all_slots(node: Process) -> bool:
    return "cluster_slots_assigned:16384" in str(await node.command("CLUSTER", "INFO"))


@clusters
async def test_a_cluster_is_found_by_the_first_who_asks(deployment: Deployment) -> None:
    """A new store on a cluster serves many concurrent gets or puts as its first operations."""
    async with open_store(deployment.url) as first, open_store(deployment.url) as second:
        results = await asyncio.gather(
            *(first.revoke(f"v{number}") for number in range(20)), *(second.found(f"v{n}") for n in range(20))
        )
        assert len(results) == 40
