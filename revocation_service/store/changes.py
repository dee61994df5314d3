"""What a mirror needs of Redis: the log from a cursor, all records, heartbeats, signs of loss, and the way back.

It keeps no state of what is revoked.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from hashlib import sha1
from typing import Any, Final

from revocation_service.errors import StoreUnavailable
from revocation_service.store.change_log import CursorLost, Entry, Tail, open_tail
from revocation_service.store.debts import Debts
from revocation_service.store.node import FAILURES, Command, Node, info_fields
from revocation_service.store.redis import DEADLINE_SECONDS, Store
from revocation_service.store.refill import Refill
from revocation_service.store.scan import Take, scan

__all__ = ["Changes", "CursorLost", "Entry", "PartlyAway", "Standing"]

FOLLOWED_AGAIN_SECONDS: Final = 0.25
"""Who follows may just have let go, to begin anew: after so long he follows again, or has said what he owes."""

MARK_SECONDS: Final = 2 * 86_400
"""How long a master keeps its mark when nobody looks."""

LIFE_SECONDS: Final = 30 * 86_400
"""How long a master keeps which of its lives it was last met in."""

MOST_MARKS: Final = 100_000
"""How many names are tried for one that belongs to a master; a single slot takes about 16,000."""

History = tuple[Hashable, ...]
"""Of one master: address, run id, replication id, and the mark in its data; None for what it hides or lacks."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The masters as they stand; where two differ, something may have been lost between them."""

    topology: Hashable
    """Which keys are where."""
    histories: frozenset[History]
    """Those of the masters."""

    @property
    def certain(self) -> bool:
        """Whether two equal ones prove that nothing was lost."""
        return bool(self.histories) and all(None not in history[1:] for history in self.histories)


class PartlyAway(StoreUnavailable):
    """Some master says nothing; `histories` are of those that answered."""

    def __init__(self, histories: frozenset[History]) -> None:
        super().__init__("the masters cannot be asked how they stand")
        self.histories = histories


class Changes:
    """What changes in one store; one that is private has no other process."""

    def __init__(self, store: Store, *, private: bool = False) -> None:
        self.process = secrets.token_hex(8)
        """The name under which this process is known to the others."""
        self.new = False
        """Whether a master was met without a mark: it was never followed, or has lost everything."""
        self.reborn = False
        """Whether a master was met that has been restarted, or promoted, since anybody who knew all followed it."""
        self._store = store
        self._private = private
        log = store.keyspace.change_log.encode()
        self._followers = f"revocation-reader:{sha1(log, usedforsecurity=False).hexdigest()[:12]}:"
        self._lives: dict[Hashable, bytes] = {}
        """By address, those for whose sake `reborn` was said already."""
        self._numbers: dict[tuple[Hashable, Node], int] = {}
        self.refill = Refill(store)
        self.debts = Debts(store, self.process)

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
        return open_tail(self._store, cursor, self._followers + self.process)

    async def scan(self, take: Take) -> None:
        """Have all records taken, a slice at a time. Raises StoreUnavailable."""
        await scan(self._store, take)

    async def unheard_seconds(self, longest: float) -> float:
        """How long to listen for others, who follow this store but may have said nothing yet; at most `longest`.

        Whoever follows names his connection. A store that has run for less than `longest` he may not have found yet.
        Raises StoreUnavailable.
        """
        if self._private:
            return 0
        commands = (("INFO", "server"), ("CLIENT", "LIST", "TYPE", "normal"))
        for pause in (0, FOLLOWED_AGAIN_SECONDS):
            await asyncio.sleep(pause)
            server, clients = await self._store.ask_once(self._store.keyspace.change_log, *commands)
            if not isinstance(clients, bytes) or self._names_others(clients):
                return longest
        return max(0.0, longest - int(_told(server, "uptime_in_seconds") or 0))

    def _names_others(self, clients: bytes) -> bool:
        found = re.findall(rb" name=(\S*)", clients)
        own = self.process.encode()
        return any(name.startswith(self._followers.encode()) and not name.endswith(own) for name in found)

    async def begin(self, before_marking: Callable[[], Awaitable[None]]) -> Standing:
        """How the masters stand just now, each with a mark from here on; `new` and `reborn` say what was found.

        Where one has none, `before_marking` is awaited before it is given one. Raises StoreUnavailable, or PartlyAway.
        """
        return await self._standing(partial(self._marked_history, before_marking))

    async def note_lives(self, standing: Standing) -> None:
        """Note in each master in which of its lives it was followed, by one who knows all it had when they stood so.

        One that is in another by now has an old one noted, which is as good as none. Raises StoreUnavailable.
        """
        lives = {history[0]: _life(history) for history in standing.histories}

        async def note(node: Node) -> None:
            life = lives.get(node.address)
            if life is not None:
                await node.run([("SET", self._life(node), life, "EX", LIFE_SECONDS)])

        await self._of_masters(note)

    async def standing(self) -> Standing:
        """How the masters stand just now.

        Raises StoreUnavailable, or PartlyAway.
        """
        return await self._standing(self._history)

    async def _standing(self, history: Callable[[Node], Awaitable[History]]) -> Standing:
        told: set[History] = set()

        async def ask(node: Node) -> None:
            told.add(await history(node))

        try:
            await self._of_masters(ask)
        except StoreUnavailable as error:
            raise PartlyAway(frozenset(told)) from error
        return Standing(self._store.connections.topology(), frozenset(told))

    async def _of_masters(self, ask: Callable[[Node], Awaitable[None]]) -> None:
        """Have each of the masters asked that, side by side.

        Raises StoreUnavailable where one of them cannot be.
        """
        connections = self._store.connections
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await connections.ready(asyncio.get_running_loop().time() + DEADLINE_SECONDS)
                await connections.look_again()
                told = await asyncio.gather(*map(ask, await connections.masters()), return_exceptions=True)
                for each in told:
                    if isinstance(each, BaseException):
                        raise each
        except FAILURES as error:
            raise StoreUnavailable("the masters cannot be asked how they stand") from error

    async def _marked_history(self, before_marking: Callable[[], Awaitable[None]], node: Node) -> History:
        """Who has seen that there is no mark listens, though he may not hear whether he left one, or somebody else."""
        noted, *told = await node.run([("GET", self._life(node)), *self._questions(node)])
        self.new = self.new or told[-1] is None
        if self.new or not isinstance(told[-1], bytes):
            await before_marking()
            set_mark = ("SET", self._mark(node), secrets.token_hex(8), "NX", "EX", MARK_SECONDS)
            _set, noted, *told = await node.run([set_mark, ("GET", self._life(node)), *self._questions(node)])
        history = _history(node, *told)
        life = _life(history)
        said = self._lives.get(node.address)
        if isinstance(noted, bytes) and life is not None and life not in (noted, said) and not self._private:
            self.reborn = True
            self._lives[node.address] = life
        return history

    async def _history(self, node: Node) -> History:
        return _history(node, *await node.run(self._questions(node)))

    def _questions(self, node: Node) -> tuple[Command, ...]:
        return ("INFO", "server"), ("INFO", "replication"), ("GETEX", self._mark(node), "EX", MARK_SECONDS)

    def _life(self, node: Node) -> str:
        return self._store.keyspace.life(self._mark(node))

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


def _history(node: Node, server: Any, replication: Any, marked: Any) -> History:
    run_id, replication_id = _told(server, "run_id"), _told(replication, "master_replid")
    return node.address, run_id, replication_id, marked if isinstance(marked, bytes) else None


def _life(history: History) -> bytes | None:
    """Which of its lives a master is in; None where an ACL hides that."""
    _address, run_id, replication_id, _mark = history
    return None if run_id is None or replication_id is None else f"{run_id} {replication_id}".encode()


def _told(reply: Any, field: str) -> str | None:
    """A field of INFO; None where an ACL forbids it."""
    return info_fields(reply).get(field) if isinstance(reply, bytes) else None
