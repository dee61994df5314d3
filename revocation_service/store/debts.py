"""Who has still to give something back to the store: said in the store itself, and forgotten there within seconds.

A process that comes to a store which has lost data cannot know what is missing. Those who can say so here, before they
leave any other trace of having seen the loss.
"""

import math
from typing import Any, Final

from revocation_service.errors import StoreUnavailable
from revocation_service.store.change_log import Place
from revocation_service.store.node import Command, epoch_seconds
from revocation_service.store.redis import Store

SAID_SECONDS: Final = 5.0
"""For how long it is believed of a process that says no more."""

ANYWHERE: Final[Place] = (2**63 - 1, 0)
EVERYWHERE: Final[Place] = (2**63, 0)
"""What one who listens says, for nobody knows more: until he has listened, nobody is to believe the store."""


class Debts:
    """What the processes of one deployment say that they owe to one store; `process` is the name of this one."""

    def __init__(self, store: Store, process: str) -> None:
        self._store = store
        self._process = process
        self._key = store.keyspace.debts

    async def announce(self, known_to: Place, seconds: float = SAID_SECONDS) -> None:
        """Say, for so long, that this process may hold what the store has lost, of the log up to that place.

        Raises StoreUnavailable.
        """
        (time,) = await self._run(("TIME",))
        until = epoch_seconds(*time) + seconds
        said = f"{known_to[0]} {known_to[1]} {until}"
        await self._run(("HSET", self._key, self._process, said), ("PEXPIRE", self._key, int(SAID_SECONDS * 1000)))

    async def withdraw(self) -> None:
        """Say that all is given back.

        Raises StoreUnavailable.
        """
        await self._run(("HDEL", self._key, self._process))

    async def of_others(self) -> list[Place]:
        """How far those others know the log who owe something just now.

        Raises StoreUnavailable.
        """
        time, flat = await self._run(("TIME",), ("HGETALL", self._key))
        now, found = epoch_seconds(*time), []
        for other, said in zip(flat[::2], flat[1::2], strict=True):
            place, until = _read(said)
            if other != self._process.encode() and until > now:
                found.append(place)
        return found

    async def _run(self, *commands: Command) -> list[Any]:
        replies = await self._store.ask_once(self._key, *commands)
        for reply in replies:
            if isinstance(reply, Exception):
                self._store.connections.suspect()
                raise StoreUnavailable("Redis takes no word of what is owed") from reply
        return replies


def _read(said: bytes) -> tuple[Place, float]:
    """Who says what nobody understands, as a later version might, may hold anything."""
    try:
        milliseconds, number, until = said.split()
        return (int(milliseconds), int(number)), float(until)
    except ValueError:
        return ANYWHERE, math.inf
