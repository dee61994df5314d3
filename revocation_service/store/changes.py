"""What a mirror needs of Redis: the log from a cursor, all records, heartbeats, signs of loss, and the way back.

It keeps no state of what is revoked.
"""

import asyncio
import secrets
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from revocation_service.errors import StoreUnavailable
from revocation_service.store.change_log import CursorLost, Entry, Tail, open_tail
from revocation_service.store.node import FAILURES, Node, info_fields
from revocation_service.store.redis import DEADLINE_SECONDS, Store
from revocation_service.store.refill import Refill
from revocation_service.store.scan import Take, scan

__all__ = ["Changes", "CursorLost", "Entry", "Standing"]

MARK_SECONDS: Final = 2 * 86_400
"""How long a master keeps its mark when nobody looks."""

MOST_MARKS: Final = 100_000
"""How many names are tried for one that belongs to a master; a single slot takes about 16,000."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The masters as they stand; where two differ, something may have been lost between them."""

    topology: Hashable
    """Which keys are where."""
    histories: frozenset[tuple[Hashable, ...]]
    """Of each master: the address, the run id, the replication id, and the mark in its data; None for what it hides."""

    @property
    def certain(self) -> bool:
        """Whether two equal ones prove that nothing was lost."""
        return bool(self.histories) and all(None not in history[1:] for history in self.histories)


class Changes:
    """What changes in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._numbers: dict[tuple[Hashable, Node], int] = {}
        self.refill = Refill(store)

    @property
    def foreign_met(self) -> int:
        """How often a check or a revocation met the record of a foreign application."""
        return self._store.foreign_met

    async def beat(self, name: str) -> str:
        """Append a heartbeat, as safely as a revocation; the cursor of its entry.

        Raises StoreUnavailable.
        """
        nonce = secrets.token_hex(8)
        return f"{await self._store.append('heartbeat', 'n', nonce, 'h', name)}.{nonce}"

    def tail(self, cursor: str) -> AbstractAsyncContextManager[Tail]:
        """What is appended behind `cursor`. Raises StoreUnavailable."""
        return open_tail(self._store, cursor)

    async def scan(self, take: Take) -> None:
        """Have all records taken, a slice at a time. Raises StoreUnavailable."""
        await scan(self._store, take)

    async def standing(self) -> Standing:
        """How the masters stand just now.

        Raises StoreUnavailable.
        """
        connections = self._store.connections
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await connections.ready(asyncio.get_running_loop().time() + DEADLINE_SECONDS)
                await connections.look_again()
                masters = await connections.masters()
                histories = await asyncio.gather(*map(self._history, masters))
        except FAILURES as error:
            raise StoreUnavailable("the masters cannot be asked how they stand") from error
        return Standing(connections.topology(), frozenset(histories))

    async def _history(self, node: Node) -> tuple[Hashable, ...]:
        mark = self._mark(node)
        server, replication, _set, marked = await node.run(
            [
                ("INFO", "server"),
                ("INFO", "replication"),
                ("SET", mark, secrets.token_hex(8), "NX", "EX", MARK_SECONDS),
                ("GETEX", mark, "EX", MARK_SECONDS),
            ]
        )
        run_id, replication_id = _told(server, "run_id"), _told(replication, "master_replid")
        return node.address, run_id, replication_id, marked if isinstance(marked, bytes) else None

    def _mark(self, node: Node) -> str:
        """A key in one of the slots of this master."""
        connections, keyspace = self._store.connections, self._store.keyspace
        place = connections.topology(), node
        if place not in self._numbers:
            numbers = (number for number in range(MOST_MARKS) if connections.owner(keyspace.mark(number)) is node)
            number = next(numbers, None)
            if number is None:
                raise StoreUnavailable("a master of the cluster has no slot")
            self._numbers = {known: owned for known, owned in self._numbers.items() if known[0] == place[0]}
            self._numbers[place] = number
        return keyspace.mark(self._numbers[place])


def _told(reply: Any, field: str) -> str | None:
    """A field of INFO; None where an ACL forbids it."""
    return info_fields(reply).get(field) if isinstance(reply, bytes) else None
