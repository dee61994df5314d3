"""The exchanges of the replication protocol with Redis: heartbeat, log, scan, restore. It decides nothing."""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from redis.asyncio import Redis

from revocation_client.revocation import Revocation
from revocation_client.schema import dumps
from revocation_service.store.cursor import Cursor
from revocation_service.store.records import Entry, change_form, clock_of, log_entry, nonce_of, scanned_record
from revocation_service.store.scripts import ASK, BEAT, GET, MERGE
from revocation_service.store.store import Put, Store
from revocation_service.store.topology import ATTEMPT_SECONDS

HEARTBEAT_TIMEOUT_SECONDS: Final = 0.75
READ_MAX_ENTRIES: Final = 500
BLOCK_SECONDS: Final = 1.0
"""How long a read of the log waits for entries."""

READ_TIMEOUT_SECONDS: Final = BLOCK_SECONDS + 1.0

SCAN_TIMEOUT_SECONDS: Final = 600.0
SCAN_COUNT: Final = 1_000
READ_MAX_KEYS: Final = 250
LEASE_MILLISECONDS: Final = 5_000

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class BeatReply:
    """What a heartbeat learned."""

    epoch: str
    pending: frozenset[str]
    end: Cursor | None
    """The last entry of the log."""
    there: bool
    """Whether the log has the entry of the cursor that was sent."""
    refused: str
    """The error of the first write that Redis refused; empty if it refused none."""
    now: float
    """Redis' clock, in epoch seconds."""
    first: Cursor | None
    """The first entry of the log, if it has no entry of the cursor."""
    named: bool
    """Whether a majority of the sentinels names this master; true where there are none."""


class Exchanges:
    """All exchanges of one worker. Each may raise StoreUnavailable; none is retried here."""

    def __init__(self, store: Store, *, pending_seconds: float, grace_seconds: float) -> None:
        self._store = store
        self._keys = store.keyspace
        self._milliseconds = int(pending_seconds * 1000), int(grace_seconds * 1000)
        self._holder = secrets.token_hex(8)
        self._restored = f"r{self._holder}".encode()
        """Begins the nonce of each log entry of an own restore, and of no other entry: those are hexadecimal."""

    async def beat(self, restored_epoch: str | None, cursor: Cursor | None, *, must_write: bool) -> BeatReply:
        """Send a heartbeat (`beat.lua`)."""
        keys = [self._keys.state, self._keys.change_log]
        told = (secrets.token_hex(8), restored_epoch or "", str(cursor or ""), *self._milliseconds, int(must_write))
        async with self._store.exchange("heartbeat", HEARTBEAT_TIMEOUT_SECONDS) as redis:
            reply = await BEAT.run(redis, keys, told)
            named = await self._store.topology.majority_names(redis)
            if not named:
                self._store.topology.forget(redis)
        epoch, pending, end, there, refused, now, first = reply
        return BeatReply(
            epoch=epoch.decode(),
            pending=frozenset(each.decode() for each in pending),
            end=Cursor.parse(end.decode()) if end else None,
            there=bool(there),
            refused=refused.decode("utf-8", "replace"),
            now=now / 1000,
            first=Cursor.parse(first.decode()) if first else None,
            named=named,
        )

    async def read(self, cursor: Cursor) -> tuple[list[Entry], bool]:
        """Return the entries after the cursor, as soon as there are any, and whether the cursor's entry is still there.

        The cursor's entry is looked up after the read. While it is there, no later entry has been trimmed.
        """
        log = self._keys.change_log
        async with (
            self._store.exchange("follow", READ_TIMEOUT_SECONDS) as redis,
            redis.pipeline(transaction=False) as pipeline,
        ):
            pipeline.xread({log: cursor.id}, count=READ_MAX_ENTRIES, block=int(BLOCK_SECONDS * 1000))
            pipeline.xrange(log, cursor.id, cursor.id)
            read, own = await pipeline.execute()
        there = any(nonce_of(fields) == cursor.nonce for _, fields in own)
        return [self._entry(*entry) for entry in read[0][1]] if read else [], there

    def _entry(self, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
        """Return an entry. Leave out the change if this worker restored it, because the mirror already has it."""
        if fields.get(b"n", b"").startswith(self._restored):
            fields = {b"n": fields[b"n"]}
        return log_entry(entry_id, fields)

    async def scan(self, take: Callable[[list[Revocation]], bool]) -> bool:
        """Pass all records to `take` in batches, until it returns False. Return whether unknown claims were found.

        It uses one connection, because a SCAN cursor means nothing to another server. When a cluster moves the slot to
        another master, SCAN leaves out what has moved, without an error. Such a scan fails at its end.
        """
        unknown = False
        async with self._store.exchange("scan", SCAN_TIMEOUT_SECONDS) as redis, aclosing(redis.client()) as connection:
            cursor: int | None = None
            while cursor != 0:
                async with asyncio.timeout(ATTEMPT_SECONDS):
                    reply: Any = await connection.scan(cursor or 0, self._keys.records_pattern, SCAN_COUNT)
                cursor, names = reply
                records = {name.decode(): found for name in names if (found := self._keys.record(name))}
                unknown = unknown or any(self._keys.is_cutoff(name) and not self._keys.record(name) for name in names)
                for keys in batches(list(records), READ_MAX_KEYS):
                    async with asyncio.timeout(ATTEMPT_SECONDS):
                        reply = await GET.run(connection, keys)
                    now = clock_of(reply)
                    if not take([scanned_record(*records[keys[row[0] - 1]], row, now) for row in reply[2:]]):
                        return unknown
                    await asyncio.sleep(0)
            async with asyncio.timeout(ATTEMPT_SECONDS):
                await connection.exists(self._keys.change_log, self._keys.absent)
        return unknown

    async def missing(self, held: Sequence[Revocation]) -> list[Revocation]:
        """Return which of these tokens' revocations are missing in Redis, or end earlier there (`ask.lua`)."""
        keys = [self._keys.key(each.claim, each.value) for each in held]
        ends = ["" if each.expires_at is None else str(int(each.expires_at * 1000)) for each in held]
        async with self._store.exchange("restore") as redis:
            return [held[position - 1] for position in await ASK.run(redis, keys, ends)]

    async def restore(self, held: Sequence[Revocation]) -> int:
        """Merge these into what Redis has. Return the number of changed records."""
        puts = [Put(*each[:2], issued_before=each.issued_before, expires_at=each.expires_at) for each in held]
        nonce = self._restored.decode() + secrets.token_hex(4)
        async with self._store.exchange("restore") as redis:
            results = await MERGE.run(redis, *self._store.merge_call(puts, restore=True, nonce=nonce))
        return sum(len(result) > 1 and result[4] for result in results)

    async def append(self, changes: Iterable[Revocation], *, foreign_found: bool | None) -> None:
        """Append what a rescan found: changes that the log lacks, and whether a record was foreign (None: unknown)."""
        log_max = self._store.settings.change_log_max_entries
        entries = [{"r": dumps(change_form(each))} for each in changes]
        if foreign_found is not None:
            entries.append({"f": b"%d" % foreign_found})
        for batch in batches(entries, READ_MAX_KEYS):
            async with self._store.exchange("append") as redis, redis.pipeline(transaction=False) as pipeline:
                for entry in batch:
                    fields: Any = {"n": secrets.token_hex(8)} | entry
                    pipeline.xadd(self._keys.change_log, fields, maxlen=log_max, approximate=True)
                await pipeline.execute()

    async def take_turn(self) -> bool:
        """Take the lease on restoring, or renew it; return whether this worker has it.

        The lease only spreads the load. Two workers that hold it at once do no harm.
        """
        lease = self._keys.restore_lease
        async with self._store.exchange("restore") as redis:
            if await self._take(redis, lease, LEASE_MILLISECONDS):
                return True
            if await redis.get(lease) != self._holder.encode():
                return False
            return bool(await redis.pexpire(lease, LEASE_MILLISECONDS))

    async def release_turn(self) -> None:
        """End the lease, if this worker has it."""
        async with self._store.exchange("restore") as redis:
            if await redis.get(self._keys.restore_lease) == self._holder.encode():
                await redis.delete(self._keys.restore_lease)

    async def take_rescan(self, seconds: float) -> bool:
        """Try to take the lease on the rescan for `seconds`; return whether this worker got it."""
        async with self._store.exchange("rescan") as redis:
            return await self._take(redis, self._keys.rescan_lease, int(seconds * 1000))

    async def _take(self, redis: Redis, lease: str, milliseconds: int) -> bool:
        """Try to take a free lease. A key without an expiry counts as free, or it would block all workers for good."""
        if await redis.set(lease, self._holder, px=milliseconds, nx=True):
            return True
        return await redis.pttl(lease) == -1 and bool(await redis.set(lease, self._holder, px=milliseconds))


def batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
