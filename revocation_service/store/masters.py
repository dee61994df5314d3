"""The masters of a deployment: who owns a key, and commands for it tried again until a deadline.

Standalone, Sentinel and Cluster differ in who owns a key, and in nothing that is asked of it. Commands for one key
leave on one connection, in one round trip.
"""

import asyncio
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError as RedisConnectionError,
    MovedError,
    ReadOnlyError,
    TimeoutError as RedisTimeoutError,
    TryAgainError,
)

from revocation_service.errors import StoreUnavailable
from revocation_service.store.node import FAILURES, Command, Node

REFRESH_PAUSE_SECONDS: Final = 0.05
PAUSE_SECONDS: Final = (0.01, 0.06)
"""Between two attempts, at random, so that those who failed together do not come back together."""

_ON_THE_MOVE: Final = re.compile(rb"\[\d+-[<>]-")
"""How a node says of itself, in CLUSTER NODES, that it gives a slot away or is given one."""

_PASSING: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    TryAgainError,
    ReadOnlyError,
    OSError,
    TimeoutError,
)
"""Failures that may be over at the next attempt: a restart, a failover, a slot on the move."""


@dataclass(slots=True)
class _Route:
    """Where the next attempt goes, and what must be sent ahead of it; no node: to the key's owner."""

    node: Node | None = None
    ahead: tuple[Command, ...] = ()


class Connections(ABC):
    """The masters of one deployment of Redis."""

    @abstractmethod
    def owner(self, key: str) -> Node:
        """The master that holds `key`, as far as is known.

        Raises StoreUnavailable where that is not known yet.
        """

    @abstractmethod
    async def masters(self) -> Sequence[Node]:
        """Every master, each with a part of the keys."""

    @abstractmethod
    def known_masters(self) -> Collection[Node]:
        """Those of which it is known just now."""

    async def ready(self, until: float) -> None:  # noqa: B027 - most need nothing
        """Wait for what is needed to find a key's owner, at first; at most until the loop's clock says `until`."""

    async def look_again(self) -> None:  # noqa: B027 - most need nothing
        """Have the map drawn anew, where there is one, by an answer that is asked for after this call."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close every connection."""

    @abstractmethod
    def by_slot(self, keys: list[str]) -> Collection[list[str]]:
        """The keys in groups that may share a command."""

    def parts(self, keys: Sequence[str]) -> tuple[Mapping[Node, Sequence[str]], Sequence[str]]:
        """The keys by the master that holds them, and those that none holds: a slot of a cluster may be nobody's."""
        parts: dict[Node, list[str]] = {}
        orphans: list[str] = []
        for key in keys:
            try:
                parts.setdefault(self.owner(key), []).append(key)
            except StoreUnavailable:
                orphans.append(key)
        return parts, orphans

    @abstractmethod
    def at(self, host: str, port: int) -> Node:
        """The node at an address that a redirection named.

        Raises StoreUnavailable where there should be no redirections.
        """

    @abstractmethod
    def topology(self) -> Hashable:
        """Which keys are where, as far as is known; it differs when that has changed."""

    async def moving(self) -> bool:
        """Whether keys are on their way from one master to another just now."""
        return False

    @abstractmethod
    def suspect(self) -> None:
        """Something answered oddly; whoever keeps a map of the deployment looks again, soon."""

    async def run(self, key: str, commands: Sequence[Command], until: float) -> list[Any]:
        """The replies of the master that owns `key` to `commands`, all on one connection.

        What fails in passing is tried again until the loop's clock says `until`; so the commands must be idempotent.
        Raises StoreUnavailable.
        """
        route = _Route()
        failure: Exception | None = None
        try:
            async with asyncio.timeout_at(until):
                # the clock is asked too: below Python 3.12 `wait_for`, in the library, may swallow the cancellation
                while asyncio.get_running_loop().time() < until:
                    try:
                        node = route.node or self.owner(key)
                        replies = (await node.run([*route.ahead, *commands]))[len(route.ahead) :]
                    except (*FAILURES, StoreUnavailable) as error:
                        failure = error
                    else:
                        failure = next((reply for reply in replies if isinstance(reply, Exception)), None)
                        if failure is None:
                            return replies
                    route = await self._next_route(failure)
        except TimeoutError:
            pass
        raise StoreUnavailable("Redis did not answer within the deadline") from failure

    async def _next_route(self, failure: Exception) -> _Route:
        if isinstance(failure, MovedError):
            self.suspect()
            return _Route(self.at(failure.host, failure.port))
        if isinstance(failure, AskError):
            return _Route(self.at(failure.host, failure.port), (("ASKING",),))
        if not isinstance(failure, (*_PASSING, StoreUnavailable)):
            raise StoreUnavailable("Redis refused the command") from failure
        self.suspect()
        await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
        return _Route()


class SingleMaster(Connections):
    """One master holds every key: a standalone server, or whichever server Sentinel names."""

    def __init__(self, pool: Any, sentinel: Any = None) -> None:
        self._node = Node(pool)
        self._sentinel = sentinel

    def owner(self, key: str) -> Node:
        return self._node

    def parts(self, keys: Sequence[str]) -> tuple[Mapping[Node, Sequence[str]], Sequence[str]]:
        return {self._node: keys}, ()

    def at(self, host: str, port: int) -> Node:
        raise StoreUnavailable("Redis is a cluster, and REVOCATION_REDIS_URL does not begin with redis+cluster://")

    def by_slot(self, keys: list[str]) -> Collection[list[str]]:
        return [keys]

    def topology(self) -> Hashable:
        return self._node.address

    def suspect(self) -> None:
        """There is no map: a new connection asks for the master by itself."""

    async def masters(self) -> Sequence[Node]:
        return [self._node]

    def known_masters(self) -> Collection[Node]:
        return [self._node]

    async def aclose(self) -> None:
        await self._node.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()


class Cluster(Connections):
    """Each master holds some of the 16,384 slots; a map says which, and is drawn anew when it proves wrong."""

    def __init__(self, addresses: Sequence[tuple[str, int]], pool: Callable[[str, int], Any]) -> None:
        self._pool = pool
        self._seeds = list(addresses)
        self._nodes: dict[tuple[str, int], Node] = {}
        self._slots: dict[int, tuple[str, int]] = {}
        self._drawn = 0
        """How often the map was not the one before."""
        self._refreshing: asyncio.Task[None] | None = None

    def by_slot(self, keys: list[str]) -> Collection[list[str]]:
        groups: dict[int, list[str]] = {}
        for key in keys:
            groups.setdefault(key_slot(key.encode()), []).append(key)
        return groups.values()

    def owner(self, key: str) -> Node:
        address = self._slots.get(key_slot(key.encode()))
        if address is None:
            self.suspect()
            raise StoreUnavailable("no master of the cluster is known for that key yet")
        return self.at(*address)

    def at(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            node = self._nodes[host, port] = Node(self._pool(host, port))
        return node

    async def ready(self, until: float) -> None:
        if self._slots:
            return
        async with asyncio.timeout_at(until):
            while not self._slots:
                await self.masters()

    async def look_again(self) -> None:
        for _ in range(2):  # the first may have been asked for already
            self.suspect()
            await asyncio.shield(self._refreshing or asyncio.sleep(0))

    async def masters(self) -> Sequence[Node]:
        if not self._slots:
            self.suspect()
            await asyncio.shield(self._refreshing or asyncio.sleep(0))
        return self.known_masters()

    async def moving(self) -> bool:
        told = await asyncio.gather(*(node.run([("CLUSTER", "NODES")]) for node in await self.masters()))
        return any(isinstance(reply, Exception) or _ON_THE_MOVE.search(reply) for (reply,) in told)

    def known_masters(self) -> list[Node]:
        return [self.at(*address) for address in sorted(set(self._slots.values()))]

    def topology(self) -> Hashable:
        return self._drawn

    def suspect(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="cluster-map")

    async def _refresh(self) -> None:
        """Ask one after another until one draws the map: first the masters, then the servers of the URL."""
        masters, others = list(set(self._slots.values())), list({*self._seeds} - {*self._slots.values()})
        random.shuffle(masters)
        random.shuffle(others)
        for address in (*masters, *others):
            with suppress(*FAILURES):
                drawn = _slot_map(await self.at(*address).run([("CLUSTER", "SLOTS")]), address[0])
                if drawn:
                    self._drawn += drawn != self._slots
                    self._slots = drawn
                    await self._drop_departed()
                    break
        await asyncio.sleep(REFRESH_PAUSE_SECONDS)

    async def _drop_departed(self) -> None:
        """Close what the map no longer names; an exchange under way there fails, and finds its key's new owner."""
        departed = self._nodes.keys() - {*self._slots.values(), *self._seeds}
        await asyncio.gather(*(self._nodes.pop(address).aclose() for address in departed))

    async def aclose(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})
        await asyncio.gather(*(node.aclose() for node in self._nodes.values()))


def _slot_map(replies: list[Any], asked: str) -> dict[int, tuple[str, int]]:
    """Slot to master, from the reply to CLUSTER SLOTS; a node that does not know its own host has the one asked."""
    (ranges,) = replies
    if isinstance(ranges, Exception):
        return {}
    drawn: dict[int, tuple[str, int]] = {}
    for first, last, master, *_replicas in ranges:
        address = (master[0].decode() if master[0] else asked, int(master[1]))
        drawn.update(dict.fromkeys(range(first, last + 1), address))
    return drawn
