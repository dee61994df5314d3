"""The twin and the Lua scripts do the same on random commands; the other tests are of the scripts alone."""

import json
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, Final

import pytest
import pytest_asyncio
from redis.exceptions import ReadOnlyError, ResponseError

from revocation_client.claims import ClaimName
from revocation_client.revocation import Revocation
from revocation_service.replication.epoch import GRACE_SECONDS, PENDING_SECONDS, Key
from revocation_service.store.cursor import Cursor
from revocation_service.store.records import revocation_from_record
from tests.redis_processes import Process, standalone
from tests.replication.twin import Asked, BeatReply, LogEntry, Merged, Shared, Twin
from tests.scale import scaled

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLOSE_SECONDS: Final = 0.5
"""Greatest difference between two equal times that were read from the server's clock one after the other."""
LIFETIMES: Final = (100.0, 1000.0, 5000.0, 2_000_000.0)
FOREIGN_VALUES: Final = (
    *(b"1", b"", b"{}", b"[]", b"\xff", b'{"revoked_at":null}', b'{"revoked_at":5,"issued_before":7}'),
    *(None, b'{"revoked_at":5}' + b" " * (1 << 20)),
)
"""Values that a foreign application may write; None stands for a list."""
CLAIMS: Final[tuple[ClaimName, ...]] = ("jti", "sid", "sub", "client_id")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One Redis server, shared by the tests that do not reconfigure it."""
    async with standalone(config=["appendonly no"]) as process:
        yield process


@dataclass
class Real:
    """The scripts on a real Redis, under a prefix of their own; replies are converted to the twin's types."""

    redis: Any
    prefix: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def log(self) -> str:
        return f"{self.prefix}:log"

    @property
    def state(self) -> str:
        return f"{self.prefix}:state"

    def key(self, key: Key) -> str:
        return f"{self.prefix}:{key[0]}:{key[1]}"

    async def now(self) -> float:
        seconds, microseconds = await self.redis.time()
        return float(seconds + microseconds / 1_000_000)

    async def life(self) -> str:
        return str((await self.redis.info("replication"))["master_replid"])

    async def run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        source = files("revocation_service.store").joinpath("lua", f"{script}.lua").read_text(encoding="utf-8")
        return await self.redis.eval(source, len(keys), *keys, *arguments)

    async def beat(
        self,
        name: str,
        restored_epoch: str | None = None,
        cursor: Cursor | None = None,
        grace_seconds: float = GRACE_SECONDS,
        must_write: bool = False,
    ) -> tuple[BeatReply, str]:
        arguments = [name, restored_epoch or "", str(cursor or "")]
        arguments += [str(int(PENDING_SECONDS * 1000)), str(int(grace_seconds * 1000)), str(int(must_write))]
        epoch, pending, end, there, refused, _now, first = await self.run("beat", [self.state, self.log], *arguments)
        named = frozenset(each.decode() for each in pending)
        last, oldest = (Cursor.parse(each.decode()) if each else None for each in (end, first))
        return BeatReply(epoch.decode(), named, last, bool(there), oldest), refused.decode()

    async def merge(self, shared: Shared, asked: Sequence[Asked]) -> list[Merged]:
        keys = [self.log, *(self.key(each.key) for each in asked)]
        replies = await self.run("merge", keys, as_json(shared), *map(as_json, asked))
        return [merged(each, reply) for each, reply in zip(asked, replies, strict=True)]

    async def missing(self, told: Sequence[tuple[Key, float | None]]) -> list[Key]:
        ends = ["" if ends is None else str(int(ends * 1000)) for _, ends in told]
        return [told[i - 1][0] for i in await self.run("ask", [self.key(key) for key, _ in told], *ends)]

    async def entries(self) -> list[LogEntry]:
        found = []
        for entry_id, fields in await self.redis.xrange(self.log):
            cursor = Cursor.parse(f"{entry_id.decode()}.{fields[b'n'].decode()}")
            found.append(LogEntry(cursor, change(fields.get(b"r"))))
        return found


def as_json(parts: Shared | Asked) -> str:
    """Return the members that are not None as JSON, which is how a script takes them."""
    return json.dumps({name: value for name, value in vars(parts).items() if value is not None})


def merged(asked: Asked, reply: list[Any]) -> Merged:
    """Convert the reply of merge.lua for one revocation to the twin's type."""
    if len(reply) == 1:
        return Merged(reply[0].decode())
    result, value, ends, was_foreign, changed = reply
    record = revocation_from_record(*asked.key, value, float(ends) if ends else None)
    return Merged(result.decode(), record, bool(was_foreign), bool(changed))


def change(entry: bytes | None) -> Revocation | None:
    """Return the revocation in an entry of the log; None if it has none."""
    if entry is None:
        return None
    members = json.loads(entry)
    assert members.keys() <= {"claim", "value", "revoked_at", "expires_at", "issued_before"}
    return Revocation(
        members["claim"], members["value"], members["expires_at"], members["revoked_at"], members.get("issued_before")
    )


def same_time(one: float | None, other: float | None) -> bool:
    """Return whether two times are the same, apart from the time that a command takes to reach the server."""
    return one == other if one is None or other is None else abs(one - other) < CLOSE_SECONDS


def same_record(one: Revocation | None, other: Revocation | None) -> bool:
    """Return whether two records are the same, with their times compared by `same_time`."""
    if one is None or other is None:
        return one is other
    times = zip((one[2], one[3], one[4]), (other[2], other[3], other[4]), strict=True)
    rest = one.claim, one.value, one.reason, one.revoked_by
    return all(same_time(*each) for each in times) and rest == (
        other.claim,
        other.value,
        other.reason,
        other.revoked_by,
    )


def same_merged(one: Merged, other: Merged) -> bool:
    """Return whether two replies are the same, with their records compared by `same_record`."""
    return replace(one, record=None) == replace(other, record=None) and same_record(one.record, other.record)


class Pair:
    """The real scripts and the twin, which get the same commands."""

    def __init__(self, real: Real, twin: Twin, dice: random.Random) -> None:
        self.real = real
        self.twin = twin
        self.dice = dice
        self.now = self.base = 0.0
        self.entries: list[tuple[LogEntry, LogEntry]] = []
        self.epochs: list[str | None] = [None]
        self.keys: list[Key] = [(claim, value) for claim in CLAIMS for value in ("a", 'é/"\\', "c")]

    async def act(self) -> None:
        """Run one random command on both, and compare replies and logs."""
        self.now = await self.real.now()
        self.base = self.base or self.now
        acts = self.beat, self.merge, self.merge, self.merge, self.ask, self.foreign, self.disturb
        await self.dice.choice(acts)()
        entries = await self.real.entries()
        assert [each.cursor.nonce for each in entries] == [each.cursor.nonce for each in self.twin.log]
        assert all(same_record(one.change, two.change) for one, two in zip(entries, self.twin.log, strict=True))
        self.entries += zip(entries, self.twin.log, strict=True)

    async def beat(self) -> None:
        name, restored = secrets.token_hex(4), self.dice.choice(self.epochs)
        cursors: list[tuple[Cursor | None, Cursor | None]] = [(None, None)]
        cursors += [(one.cursor, other.cursor) for one, other in self.entries]
        cursor, twins = self.dice.choice(cursors)
        if cursor and twins and self.dice.random() < 0.2:
            cursor, twins = cursor._replace(nonce="another"), twins._replace(nonce="another")
        got, refused = await self.real.beat(name, restored, cursor)
        expected = self.twin.beat(self.now, name, restored, twins)
        assert refused == ""
        assert (got.epoch, got.pending, got.there) == (expected.epoch, expected.pending, expected.there)
        assert (got.end and got.end.nonce) == (expected.end and expected.end.nonce)
        assert got.end == (await self.real.entries())[-1].cursor
        self.epochs.append(got.epoch)

    async def merge(self) -> None:
        shared = Shared(
            nonce=secrets.token_hex(4),
            leeway=self.dice.choice((0, 30)),
            restore=self.dice.random() < 0.4,
            wall=self.dice.choice((None, self.now, *(self.now + offset for offset in (-120, -55, 60.5, 120)))),
        )
        asked = [
            self.asked(key, restore=shared.restore) for key in self.dice.sample(self.keys, self.dice.randrange(1, 5))
        ]
        got = await self.real.merge(shared, asked)
        expected = self.twin.merge(self.now, shared, asked)
        assert all(map(same_merged, got, expected)), (shared, asked, got, expected)

    def asked(self, key: Key, *, restore: bool) -> Asked:
        """Return a random request, or a random record as a restore writes it back."""
        dice = self.dice
        cutoffs = None, self.base - 500, self.base - 500, self.now - 500, self.now + 30, self.now + 500
        cutoff = None if key[0] == "jti" else dice.choice(cutoffs)
        asked = Asked(*key, issued_before=cutoff, reason=dice.choice((None, "", "x", '"/\\é')))
        if restore:
            ends = self.now + dice.choice((-100, *LIFETIMES))
            return replace(
                asked, expires_at=ends, revoked_at=dice.choice((None, None, 1.5, self.now - 5000, self.now + 5000))
            )
        asked = replace(asked, cutoff_is_now=True if key[0] != "jti" and dice.random() < 0.5 else None, revoked_by="k")
        lifetime = dice.choice((-100, *LIFETIMES, 5_000_000))
        kind = dice.random()
        if kind < 0.4:
            return replace(asked, exp=self.now + lifetime)
        return replace(asked, expires_in=max(1.0, lifetime)) if kind < 0.8 else asked

    async def ask(self) -> None:
        told: list[tuple[Key, float | None]] = []
        for key in self.keys:
            record = self.twin.records.get(key)
            ends = record.expires_at if record and record.expires_at else self.now + 100
            told.append((key, self.dice.choice((None, ends - 10, ends, ends + 1, ends + 10))))
        assert await self.real.missing(told) == self.twin.missing(self.now, told)

    async def foreign(self) -> None:
        """Put under a key what a foreign application may write, even a list or a value that is too long to be read."""
        key, lifetime = self.dice.choice(self.keys), self.dice.choice((None, 3600))
        value = self.dice.choice(FOREIGN_VALUES)
        name = self.real.key(key)
        await self.real.redis.delete(name)
        if value is None:
            await self.real.redis.rpush(name, "1")
            lifetime = None
        else:
            await self.real.redis.set(name, value, ex=lifetime)
        read = value if value is not None and len(value) <= 1 << 20 else b""
        self.twin.records[key] = revocation_from_record(*key, read, lifetime and self.now + lifetime)

    async def disturb(self) -> None:
        """Delete a record, end all marks, change the life, trim the log, or delete the state or everything."""
        real, twin, what = self.real, self.twin, self.dice.randrange(6)
        if what == 0:
            key = self.dice.choice(self.keys)
            await real.redis.delete(real.key(key))
            twin.records.pop(key, None)
        elif what == 1:
            for epoch in list(twin.pending):
                await real.redis.hset(real.state, f"pending:{epoch}", int((self.now - 1) * 1000))
                twin.pending[epoch] = self.now - 1
        elif what == 2 and twin.epoch:
            await real.redis.hset(real.state, "life", "another")
            twin.epoch_life = "another"
        elif what == 3:
            await real.redis.xtrim(real.log, maxlen=2, approximate=False)
            del twin.log[:-2]
        elif what == 4:
            await real.redis.delete(real.state)
            twin.epoch, twin.pending = None, {}
        elif self.dice.random() < 0.3:
            await real.redis.delete(real.state, real.log, *map(real.key, self.keys))
            self.twin = Twin(twin.life)


@pytest.mark.parametrize("seed", range(scaled(12, 400)))
async def test_the_scripts_do_what_the_twin_does(server: Process, seed: int) -> None:
    """Scripts and twin give the same replies and the same log for random heartbeats, merges, lookups and losses."""
    async with server.client(decode_responses=False) as redis:
        real = Real(redis)
        pair = Pair(real, Twin(await real.life()), random.Random(seed))
        for _ in range(60):
            await pair.act()


async def test_a_request_that_changes_nothing_still_writes(server: Process) -> None:
    """A request that changes nothing still writes, for WAIT to confirm, but a restore does not. Neither is logged."""
    async with server.client(decode_responses=False) as redis:
        real = Real(redis)
        asked = Asked("jti", "a", expires_at=await real.now() + 900, revoked_at=5.0)
        for restore, writes in ((False, 1), (True, 0)):
            await real.merge(Shared(), [asked])
            before = (await redis.info("persistence"))["rdb_changes_since_last_save"]
            (again,) = await real.merge(Shared(restore=restore), [asked])
            after = (await redis.info("persistence"))["rdb_changes_since_last_save"]
            assert (again.changed, after - before, len(await real.entries())) == (False, writes, 1)


async def test_the_log_keeps_about_as_many_entries_as_it_is_told(server: Process) -> None:
    """The log keeps at least `log_max` entries, but not twice as many. Redis trims a stream by whole nodes."""
    async with server.client(decode_responses=False) as redis:
        real = Real(redis)
        for start in range(0, 1000, 100):
            await real.merge(
                Shared(log_max=200), [Asked("jti", str(n), expires_in=900) for n in range(start, start + 100)]
            )
        assert 200 <= len(await real.entries()) < 400


async def test_a_refused_log_entry_leaves_the_record_alone(server: Process) -> None:
    """If merge.lua cannot append to the log, it writes no record either, so that no change goes unlogged."""
    async with server.client(decode_responses=False) as redis:
        real = Real(redis)
        await redis.set(real.log, "no stream")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await real.merge(Shared(), [Asked("jti", "a", expires_in=900)])
        assert not await redis.exists(real.key(("jti", "a")))


async def test_a_heartbeat_takes_whatever_stands_under_its_key_for_no_state(server: Process) -> None:
    """A state key of another type counts as no state, and a mark without a time counts as no mark."""
    async with server.client(decode_responses=False) as redis:
        real = Real(redis)
        await redis.set(real.state, "no hash")
        reply, refused = await real.beat("E1")
        assert (reply.epoch, reply.pending, refused) == ("E1", frozenset({"E1"}), "")
        await redis.hset(real.state, "pending:E0", "soon")
        assert (await real.beat("E2"))[0].pending == {"E1"}


async def test_a_mark_ends_though_the_clock_stepped_back(server: Process) -> None:
    """A mark that ends later than any mark can, because the clock stepped back, is shortened."""
    async with server.client(decode_responses=False) as redis:
        real = Real(redis)
        await real.beat("E1")
        far = int((await real.now() + 3600) * 1000)
        await redis.hset(real.state, "pending:E0", far)
        assert "E0" in (await real.beat("E2"))[0].pending
        assert int((await real.redis.hget(real.state, "pending:E0")).decode()) < far - 3_000_000


async def test_a_private_redis_needs_no_grace(server: Process) -> None:
    """With a grace of 0 a new epoch is not pending."""
    async with server.client(decode_responses=False) as redis:
        reply, _ = await Real(redis).beat("E1", grace_seconds=0)
        assert (reply.epoch, reply.pending) == ("E1", frozenset())


async def test_a_redis_that_takes_no_writes_can_still_be_read() -> None:
    """A Redis that refuses writes shows all workers one epoch, which stays pending until Redis takes writes again."""
    async with standalone(config=["appendonly no"]) as server, server.client(decode_responses=False) as redis:
        real = Real(redis)
        await redis.xadd(real.log, {"n": "first"})
        await redis.config_set("min-replicas-to-write", 1)
        replies = [await real.beat(name, "E0") for name in ("E1", "E2")]
        epoch = f"unwritten {await real.life()}"
        assert [(reply.epoch, reply.pending) for reply, _ in replies] == [(epoch, frozenset({epoch, "E0"}))] * 2
        assert all("NOREPLICAS" in refused for _, refused in replies)
        await redis.config_set("min-replicas-to-write", 0)
        reply, refused = await real.beat("E3")
        assert (reply.epoch, refused) == ("E3", "")
        await redis.config_set("min-replicas-to-write", 1)
        assert await real.beat("E4") == (replace(reply, there=False), "")


async def test_a_full_redis_is_read_and_says_so() -> None:
    """On a full Redis a heartbeat that must write returns the error, but still shows the epoch and finds the cursor."""
    async with standalone(config=["appendonly no"]) as server, server.client(decode_responses=False) as redis:
        real = Real(redis)
        before, _ = await real.beat("E1")
        await redis.config_set("maxmemory", "1")
        reply, refused = await real.beat("E2", cursor=before.end, must_write=True)
        assert (reply.epoch, reply.there, "OOM" in refused) == ("E1", True, True)


async def test_a_replica_refuses_a_heartbeat() -> None:
    """A replica refuses a heartbeat even while its master is down and there is nothing to write."""
    async with standalone(config=["appendonly no"]) as server, server.client(decode_responses=False) as redis:
        real = Real(redis)
        await real.beat("E1")
        await redis.replicaof("127.0.0.1", "1")
        with pytest.raises(ReadOnlyError):
            await real.beat("E2")
