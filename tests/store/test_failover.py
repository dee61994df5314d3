"""When masters or replicas fail, no acknowledged revocation is lost, and writes resume without help."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import pytest_asyncio
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from revocation_service.errors import StoreUnavailable
from revocation_service.store.store import DEADLINE_SECONDS
from tests.redis_processes import (
    HOST,
    SERVICE_NAME,
    Cluster,
    Process,
    SentinelSet,
    cluster,
    eventually,
    sentinel,
    standalone,
)
from tests.scale import BUSY_SECONDS, scaled
from tests.store.conftest import Opened, Writers, logged_values, missing, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

Record = Callable[[str, object], None]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicated() -> AsyncIterator[SentinelSet]:
    """One master, two replicas, three sentinels; every test leaves all of them running."""
    async with sentinel(password="secret") as topology:
        yield topology


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clustered() -> AsyncIterator[Cluster]:
    """A cluster of three masters and three replicas; every test leaves all of them running."""
    async with cluster(password="secret") as topology:
        yield topology


async def whole(nodes: Sequence[Process], replicas_each: int) -> None:
    """Start the nodes that are down, and wait until every master has its replicas online."""
    for node in nodes:
        if not node.alive:
            await node.start()
    for node in nodes:
        await eventually(functools.partial(_in_place, node, replicas_each), f"{node.address} in its place")


def is_short(opened: Opened) -> bool:
    """Return whether the store found too few replicas at its last write."""
    return opened.store.short_of_replicas


async def _in_place(node: Process, replicas_each: int) -> bool:
    found = await node.info("replication")
    if found["role"] == "slave":
        return bool(found["master_link_status"] == "up")
    return len([number for number in range(9) if _confirms(found.get(f"slave{number}"))]) >= replicas_each


def _confirms(replica: dict[str, object] | None) -> bool:
    """Return whether this entry of INFO is that of a replica which is online and has confirmed data."""
    return replica is not None and replica["state"] == "online" and replica["offset"] != 0


async def nothing_is_missing(url: str, writers: Writers, masters: Sequence[Process]) -> None:
    """Assert that a new store finds every acknowledged revocation, and that the change log has each."""
    prefix = writers.opened.settings.key_prefix
    assert len(writers.values) > 100
    async with open_store(url, key_prefix=prefix) as fresh:
        lost = await missing(fresh, writers.values)
        assert not lost, f"{len(lost)} of {len(writers.values)} acknowledged are lost, as {lost[:3]}"
        unlogged = set(writers.values) - set(await logged_values(masters, fresh.store.keyspace.change_log))
        assert not unlogged, f"{len(unlogged)} of {len(writers.values)} acknowledged are in no log"


async def test_a_server_killed_under_load(record_property: Record) -> None:
    """A server that is killed and restarted under load loses no acknowledged write. Writes resume within a second."""
    async with standalone() as server, open_store(server.url) as opened:
        back = []
        async with Writers(opened).running() as writers:
            for _ in range(scaled(3, 40)):
                await writers.more(150)
                server.kill()
                await server.start()
                begun = time.monotonic()
                await writers.more(1)
                back.append(time.monotonic() - begun)
            await writers.more(50)
        await nothing_is_missing(server.url, writers, [server])
    record_property("acknowledged", len(writers.values))
    record_property("seconds_until_writes_are_back_after_the_start", round(max(back), 3))
    assert max(back) < 1


async def test_the_master_of_a_sentinel_set_killed_under_load(replicated: SentinelSet, record_property: Record) -> None:
    """When the master is killed under load, a replica takes over, no acknowledged write is lost, and writes resume."""
    pauses = []
    async with open_store(replicated.url) as opened:
        async with Writers(opened).running() as writers:
            for _ in range(scaled(1, 10)):
                await writers.more(200)
                begun = time.monotonic()
                killed = await replicated.kill_master()
                await writers.more(1)
                await writers.more(200)
                pauses.append(time.monotonic() - begun)
                assert await replicated.new_master(after=killed) is not killed
                await whole(replicated.nodes, 2)
        await nothing_is_missing(replicated.url, writers, [await replicated.master()])
        assert writers.refused > 0, "the failover was not noticed"
    record_property("acknowledged", len(writers.values))
    record_property("longest_pause_of_writes_seconds", round(writers.longest_pause(), 2))
    assert writers.longest_pause() < 15


async def test_the_master_of_a_clusters_slot_killed_under_load(clustered: Cluster, record_property: Record) -> None:
    """When the master of the store's slot is killed under load, no acknowledged write is lost, and writes resume."""
    async with (
        open_store(clustered.url) as opened,
        open_store(clustered.url, key_prefix=opened.settings.key_prefix) as idle,
    ):
        log = opened.store.keyspace.change_log
        assert await idle.found("a") is None
        async with Writers(opened).running() as writers:
            await writers.more(200)
            killed = await clustered.kill_master_of(log)
            with pytest.raises(StoreUnavailable):
                await idle.found("a")
            await clustered.new_master_of(log, after=killed)
            await writers.more(300)
        await eventually(functools.partial(_answers, idle), "an answer to a store that asks nothing else", seconds=3)
        await nothing_is_missing(clustered.url, writers, [await clustered.master_of(log)])
        assert writers.refused > 0, "the failover was not noticed"
        assert is_short(opened), "the promoted master has no replica"
    await whole(clustered.nodes, 0)
    await eventually(functools.partial(_replicated, clustered), "a replica of every master")
    record_property("acknowledged", len(writers.values))
    record_property("longest_pause_of_writes_seconds", round(writers.longest_pause(), 2))
    assert writers.longest_pause() < 15


async def _answers(opened: Opened) -> bool:
    try:
        await opened.found("a")
    except StoreUnavailable:
        return False
    return True


async def _replicated(topology: Cluster) -> bool:
    roles = [await node.info("replication") for node in topology.nodes]
    masters = [role for role in roles if role["role"] == "master"]
    return len(masters) == 3 and all(_confirms(role.get("slave0")) for role in masters)


async def test_a_master_that_was_frozen_during_its_failover(replicated: SentinelSet) -> None:
    """A replaced master that thaws costs no acknowledged write, not even one of a store that was idle meanwhile."""
    async with (
        open_store(replicated.url) as idle,
        open_store(replicated.url, key_prefix=idle.settings.key_prefix) as busy,
    ):
        await asyncio.gather(*(idle.revoke(f"before {number}") for number in range(10)))
        old = await replicated.master()
        old.freeze()
        try:
            async with Writers(busy, count=2).running() as writers:
                await replicated.new_master(after=old)
                await writers.more(20)
        finally:
            old.thaw()
        async with Writers(idle, count=4).running() as late:
            await late.more(100)

            async def demoted() -> bool:
                return bool((await old.info("replication"))["role"] == "slave")

            await eventually(demoted, "the old master as a replica")
            await late.more(50)
        await whole(replicated.nodes, 2)
        async with open_store(replicated.url, key_prefix=idle.settings.key_prefix) as fresh:
            assert not await missing(fresh, [*writers.values, *late.values])


async def test_a_failover_of_a_master_that_lives(replicated: SentinelSet, record_property: Record) -> None:
    """A failover while the old master runs loses no acknowledged write, if writes wait for every replica."""
    async with open_store(replicated.url, wait_replicas=2) as opened:
        async with Writers(opened).running() as writers:
            await writers.more(200)
            old = await replicated.master()
            await eventually(functools.partial(_failed_over, replicated, old), "another master")
            await whole(replicated.nodes, 2)
            await writers.more(200)
        await nothing_is_missing(replicated.url, writers, [await replicated.master()])
        assert writers.refused > 0, "the failover was not noticed"
    record_property("longest_pause_of_writes_seconds", round(writers.longest_pause(), 2))


async def _failed_over(topology: SentinelSet, old: Process) -> bool:
    """Return whether another node is master. If not, order a failover again, because a sentinel may abandon one."""
    if await topology.master() is not old:
        return True
    with contextlib.suppress(RedisError):  # a failover is under way, or no replica is good enough yet
        await topology.sentinels[0].command("SENTINEL", "FAILOVER", SERVICE_NAME)
    return False


async def test_what_is_acknowledged_is_on_a_replica(replicated: SentinelSet) -> None:
    """As soon as a put returns, at least one replica has the record and the log entry."""
    master = await replicated.master()
    replicas = [node for node in replicated.nodes if node is not master]
    async with open_store(replicated.url) as opened:
        for number in range(20):
            value = f"v{number}"
            await opened.revoke(value)
            key, log = opened.store.keyspace.key("jti", value), opened.store.keyspace.change_log
            assert any([await node.command("EXISTS", key) for node in replicas])
            assert any([value in await logged_values([node], log) for node in replicas])


async def test_frozen_replicas_are_not_waited_for_in_vain(replicated: SentinelSet) -> None:
    """With one of two replicas frozen, a put succeeds. With both frozen, it raises StoreUnavailable in time."""
    master = await replicated.master()
    one, other = (node for node in replicated.nodes if node is not master)
    async with open_store(replicated.url) as opened:
        await opened.revoke("warm")
        try:
            one.freeze()
            await opened.revoke("a")
            other.freeze()
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable, match="replica"):
                await opened.revoke("b")
            assert time.monotonic() - begun < DEADLINE_SECONDS + BUSY_SECONDS
            assert not is_short(opened)
            assert opened.counted("replicas_short_total") == 0
            assert opened.counted("store_up") == 1, "the master answered"
        finally:
            one.thaw()
            other.thaw()
        await eventually(functools.partial(_acknowledged, opened, "b"), "an acknowledgement", seconds=5)
    await whole(replicated.nodes, 2)


async def _acknowledged(opened: Opened, value: str) -> bool:
    try:
        await opened.revoke(value)
    except StoreUnavailable:
        return False
    return True


async def test_without_replicas_it_is_said_and_counted(replicated: SentinelSet) -> None:
    """With no replica connected, a put succeeds, with one warning and a metric; a strict store refuses it."""
    master = await replicated.master()
    replicas = [node for node in replicated.nodes if node is not master]
    async with open_store(replicated.url) as opened, open_store(replicated.url, strict=True) as strict:
        with capture_logs() as logs:
            await opened.revoke("complete")
            await strict.revoke("complete")
            assert not is_short(opened)
            for replica in replicas:
                replica.kill()
            await eventually(functools.partial(_alone, master), "a master alone")
            for number in range(3):
                await opened.revoke(f"short {number}")
            assert is_short(opened)
            assert opened.counted("replicas_short_total") == 3
            with pytest.raises(StoreUnavailable, match="REVOCATION_WAIT_REPLICAS"):
                await strict.revoke("refused")
            await whole(replicated.nodes, 2)
            await opened.revoke("complete again")
            await strict.revoke("refused")
            assert not is_short(opened)
            assert not is_short(strict)
            counted = opened.counted("replicas_short_total")
            await opened.revoke("and again")
            assert opened.counted("replicas_short_total") == counted
    events = [(entry["event"], entry["log_level"]) for entry in logs if entry["event"].startswith("replicas_")]
    assert events == [("replicas_short", "warning")] * 2 + [("replicas_complete", "info")] * 2
    assert not await _missing_on(replicas[0], opened, [f"short {number}" for number in range(3)])
    async with open_store(replicated.url, key_prefix=opened.settings.key_prefix) as fresh:
        assert not await missing(fresh, [f"short {number}" for number in range(3)])


async def _alone(master: Process) -> bool:
    return bool((await master.info("replication"))["connected_slaves"] == 0)


async def _missing_on(node: Process, opened: Opened, values: Sequence[str]) -> list[str]:
    return [v for v in values if not await node.command("EXISTS", opened.store.keyspace.key("jti", v))]


async def test_a_replica_that_still_loads_is_not_waited_for() -> None:
    """Redis calls a new replica online before it has the data. Until it confirms, writes do not wait for it."""
    quick = ["repl-diskless-sync-delay 0", "repl-ping-replica-period 1"]
    async with (
        standalone(config=quick) as master,
        standalone(config=[*quick, "key-load-delay 500"]) as replica,
        open_store(master.url, wait_replicas=1) as opened,
    ):
        await opened.revoke("the first learns that there is no replica")
        await opened.revoke_all([f"v{number}" for number in range(scaled(2000, 20_000))])
        await replica.command("REPLICAOF", HOST, master.port)
        loading = 0
        async with asyncio.timeout(60):
            while is_short(opened):
                state = (await master.info("replication")).get("slave0", {})
                loading += state.get("state") == "online" and state["offset"] == 0
                await opened.revoke("meanwhile")
        assert loading > 10
        assert await replica.command("EXISTS", opened.store.keyspace.key("jti", "meanwhile"))


async def test_a_cluster_short_of_a_replica_says_so_once(clustered: Cluster) -> None:
    """When the slot's master loses its replica, the store logs that once, not at every write, and logs its return."""
    for node in clustered.nodes:
        await eventually(functools.partial(_in_place, node, 1), "a replica of each master")
    async with open_store(clustered.url) as opened:
        await _revoke_patiently(opened, "warm")
        master = await clustered.master_of(opened.store.keyspace.change_log)
        replica = await _replica_of(clustered, master)
        with capture_logs() as logs:
            replica.kill()
            await eventually(functools.partial(_alone, master), "a master alone")
            for number in range(10):
                await _revoke_patiently(opened, f"v{number}")
            assert is_short(opened)
            await replica.start()
            await eventually(functools.partial(_in_place, master, 1), "a replica online")
            for number in range(10):
                await _revoke_patiently(opened, f"w{number}")
            assert not is_short(opened)
    events = [entry["event"] for entry in logs if entry["event"].startswith("replicas_")]
    assert events == ["replicas_short", "replicas_complete"]


async def _revoke_patiently(opened: Opened, value: str) -> None:
    """Revoke, and retry until it is accepted: a replica that has just synced may confirm too late."""

    async def accepted() -> bool:
        try:
            await opened.revoke(value)
        except StoreUnavailable:
            return False
        return True

    await eventually(accepted, f"the acceptance of {value}")


async def _replica_of(topology: Cluster, master: Process) -> Process:
    for node in topology.nodes:
        found = await node.info("replication")
        if found["role"] == "slave" and found["master_port"] == master.port:
            return node
    raise AssertionError("the master has no replica")


async def test_sentinels_away(replicated: SentinelSet) -> None:
    """Without sentinels, a connected store keeps working. A new store raises StoreUnavailable in time, and recovers."""
    async with open_store(replicated.url) as old, open_store(replicated.url) as new:
        await old.revoke("a")
        for each in replicated.sentinels:
            each.kill()
        try:
            assert await old.found("a") is not None
            await old.revoke("b")
            for operation in (new.revoke("a"), new.found("a")):
                begun = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await operation
                assert time.monotonic() - begun < DEADLINE_SECONDS + BUSY_SECONDS
        finally:
            for each in replicated.sentinels:
                await each.start()
        await eventually(functools.partial(_acknowledged, new, "a"), "an acknowledgement", seconds=5)
    for each in replicated.sentinels:
        await eventually(functools.partial(_knows_the_others, each), "sentinels that know one another")


async def _knows_the_others(sentinel: Process) -> bool:
    flat = await sentinel.command("SENTINEL", "MASTER", SERVICE_NAME)
    state = dict(zip(flat[::2], flat[1::2], strict=True))
    return bool(state["flags"] == "master" and state["num-other-sentinels"] == "2")


async def test_a_frozen_sentinel_costs_a_moment_once(replicated: SentinelSet) -> None:
    """With one of three sentinels frozen, 20 concurrent puts of a new store succeed within their deadline."""
    frozen = replicated.sentinels[0]
    frozen.freeze()
    try:
        for _ in range(3):
            async with open_store(replicated.url) as opened:
                await asyncio.gather(*(opened.revoke(f"v{number}") for number in range(20)))
                assert not await missing(opened, [f"v{number}" for number in range(20)])
    finally:
        frozen.thaw()


async def test_no_sentinel_is_ever_forgotten(replicated: SentinelSet) -> None:
    """A sentinel that was frozen while the store looked for the master is asked later, when it is the only one left."""
    first, *others = replicated.sentinels
    async with open_store(replicated.url) as opened:
        first.freeze()
        try:
            await asyncio.gather(*(opened.revoke(f"v{number}") for number in range(20)))
        finally:
            first.thaw()
        for each in others:
            each.kill()
        try:
            await _drop_clients(replicated)
            await eventually(functools.partial(_acknowledged, opened, "a"), "an acknowledgement", seconds=5)
        finally:
            for each in others:
                await each.start()
    for each in replicated.sentinels:
        await eventually(functools.partial(_knows_the_others, each), "sentinels that know one another")


async def _drop_clients(topology: SentinelSet) -> None:
    """Close every client's connection to every node, so that the store must look for the master again."""
    for node in topology.nodes:
        await node.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
