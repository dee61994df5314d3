"""Writing back what Redis has lost, from a memory that still has it.

Correctness rests on the merge alone: what is offered twice, by two processes at once, or after one died midway, does no
harm. A lease makes the processes take turns, so that the later ones find nothing missing.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Collection, ItemsView, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from revocation_client.model import Revocation
from revocation_client.wire import revocation_from_record
from revocation_service.errors import StoreUnavailable
from revocation_service.store.node import FAILURES, Command, Node
from revocation_service.store.redis import Put, Store

BATCH: Final = 200
BATCH_SECONDS: Final = 3.0
LEASE_SECONDS: Final = 5.0
TURN_PAUSE_SECONDS: Final = (0.05, 0.3)
ENDING_SECONDS: Final = 2.0
"""What has so little left is not written back; ends this near to one another count as the same."""


class Refill:
    """Offers of revocations to a store that may have lost them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def absent(self, revocations: Sequence[Revocation]) -> list[Revocation]:
        """Those among which some are not in the store, found cheaply: a master counts the keys it has.

        Raises StoreUnavailable.
        """
        keys = self._keys(revocations)
        suspects: list[Revocation] = []
        for node, part in self._parts(keys):
            groups = list(self._store.connections.by_slot(list(part)))
            try:
                counts = await node.run([("EXISTS", *group) for group in groups])
            except FAILURES as error:
                raise StoreUnavailable("a master cannot be asked what it has") from error
            for group, count in zip(groups, counts, strict=True):
                if count != len(group):  # an error, where the slot is on the move, is looked into like a loss
                    suspects += [keys[key] for key in group]
        return suspects

    def _keys(self, revocations: Sequence[Revocation]) -> dict[str, Revocation]:
        return {self._store.keyspace.key(each.claim, each.value): each for each in revocations}

    def _parts(self, keys: Collection[str]) -> ItemsView[Node, Sequence[str]]:
        """The keys of each master."""
        parts, orphans = self._store.connections.parts(list(keys))
        if orphans:
            raise StoreUnavailable("a slot of the cluster belongs to nobody")
        return parts.items()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until no other process writes back; one that died is waited for until its lease ends.

        Raises StoreUnavailable.
        """
        while not await self._lease("NX"):  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(random.uniform(*TURN_PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
        try:
            yield
        finally:
            with suppress(StoreUnavailable):
                await self._run(("DEL", self._store.keyspace.refill_lease))

    async def _lease(self, condition: str) -> bool:
        key = self._store.keyspace.refill_lease
        return await self._run(("SET", key, "1", condition, "PX", int(LEASE_SECONDS * 1000))) is not None

    async def _run(self, command: Command) -> Any:
        until = asyncio.get_running_loop().time() + BATCH_SECONDS
        return (await self._store.connections.run(self._store.keyspace.refill_lease, [command], until))[0]

    async def offer(self, revocations: Sequence[Revocation], now: float) -> int:
        """Write back what the store does not have, or has for less; how many that were.

        Raises StoreUnavailable.
        """
        written = 0
        living = [each for each in revocations if each.expires_at is None or each.expires_at > now + ENDING_SECONDS]
        for start in range(0, len(living), BATCH):
            written += await self._write(await self._lacking(living[start : start + BATCH]))
            await self._lease("XX")
        return written

    async def _lacking(self, revocations: Sequence[Revocation]) -> list[Revocation]:
        reading = await self._store.get([(each.claim, each.value) for each in revocations])
        if reading.unread:
            raise StoreUnavailable("a part of the store cannot be read")
        stored = {(each.claim, each.value): each for each in reading.found}
        return [each for each in revocations if is_less(stored.get((each.claim, each.value)), each)]

    async def _write(self, revocations: Sequence[Revocation]) -> int:
        """Records first, then the log, each as safe as a revocation's; the log names what was missing, no more."""
        if not revocations:
            return 0
        keys = self._keys(revocations)
        until = asyncio.get_running_loop().time() + BATCH_SECONDS
        stored: list[Revocation] = []
        for _node, part in self._parts(keys):
            commands = [self._store.put_command(_handed_on(keys[key])) for key in part]
            replies = await self._store.write(part[0], commands, until)
            stored += [
                revocation_from_record(
                    keys[key].claim, keys[key].value, reply[1], float(reply[2]) if reply[2] else None
                )
                for key, reply in zip(part, replies, strict=True)
                if len(reply) > 1  # else it has expired meanwhile
            ]
        if stored:
            entries = [self._store.log_entry(record) for record in stored]
            await self._store.write(self._store.keyspace.change_log, entries, until)
        return len(stored)


def is_less(stored: Revocation | None, held: Revocation) -> bool:
    """Whether what is stored covers fewer tokens than what is held, or ends noticeably earlier."""
    if stored is None:
        return True
    if stored.issued_before is not None and (held.issued_before is None or held.issued_before > stored.issued_before):
        return True
    if stored.expires_at is None or held.expires_at is None:  # what has no end is written back with one
        return False
    return stored.expires_at < held.expires_at - ENDING_SECONDS


def _handed_on(held: Revocation) -> Put:
    return Put(held.claim, held.value, expires_at=held.expires_at, issued_before=held.issued_before)
