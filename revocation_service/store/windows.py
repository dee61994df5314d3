"""Sliding windows in Redis: at most so many attempts in any stretch of time, on Redis' clock, however many ask.

Attempts that arrive together leave together: one round trip to a master carries all that wait for it, so that a burst
of logins does not queue for connections until its deadline.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from revocation_service.errors import StoreUnavailable
from revocation_service.store.keyspace import Keyspace
from revocation_service.store.masters import Connections
from revocation_service.store.node import FAILURES, HIT, Command, Node

DEADLINE_SECONDS: Final = 0.7
"""How long a login waits for Redis, before the gateway counts by itself."""

PROBE_SECONDS: Final = 0.5
TRIP_MAX_ATTEMPTS: Final = 1_000

_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, in the window of whoever made it; the same id again is the same attempt."""

    counted: str
    """Whose window: an address or an account, and what it attempts."""
    limit: int
    window_seconds: float
    id: str


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of an attempt, and how its window stands after it; times are in seconds."""

    admitted: bool
    remaining: int
    frees_in: float
    """Until the oldest attempt that counts leaves the window; with none remaining: until one is admitted again."""
    now: float
    """The clock by which that was decided, in epoch seconds."""


@dataclass(slots=True)
class _Asked:
    attempt: Attempt
    until: float
    answer: asyncio.Future[Tally]

    def give(self, tally: Tally) -> None:
        if not self.answer.done():
            self.answer.set_result(tally)

    def give_up(self) -> None:
        if not self.answer.done():
            self.answer.set_exception(StoreUnavailable("Redis did not answer within the deadline"))


class Windows:
    """The windows in one deployment of Redis, shared by all who count there."""

    def __init__(self, connections: Connections, keyspace: Keyspace) -> None:
        self._connections = connections
        self._keyspace = keyspace
        self._queues: dict[Node, deque[_Asked]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """End what is under way, and close every connection."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        await self._connections.aclose()

    async def hit(self, attempt: Attempt) -> Tally:
        """Count an attempt if its window has room.

        Raises StoreUnavailable, where nobody knows whether it was counted.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked(attempt, loop.time() + DEADLINE_SECONDS, loop.create_future())
        try:
            async with asyncio.timeout_at(asked.until):
                await self._ask(asked)
                return await asked.answer
        except FAILURES as error:
            raise StoreUnavailable("Redis did not answer within the deadline") from error

    async def _ask(self, asked: _Asked) -> None:
        await self._connections.ready(asked.until)
        node = self._connections.owner(self._key(asked.attempt))
        queue = self._queues.get(node)
        if queue is None:
            queue = self._queues[node] = deque()
            self._run(self._drive(node, queue))
        queue.append(asked)

    async def give_back(self, attempt: Attempt) -> None:
        """Count an attempt no longer; nothing happens if it is not counted.

        Raises StoreUnavailable.
        """
        until = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        key = self._key(attempt)
        await self._connections.run(key, [("ZREM", key, attempt.id)], until)

    async def probe(self, counted: str = "") -> None:
        """Whether attempts can be counted on the master that has this window.

        Raises StoreUnavailable.
        """
        until = asyncio.get_running_loop().time() + PROBE_SECONDS
        key = self._keyspace.window_probe(self._keyspace.window(counted))
        try:
            await self._connections.ready(until)
            await self._connections.run(key, [HIT.call([key], "1", "1000", "probe")], until)
        except FAILURES as error:
            raise StoreUnavailable("Redis does not answer") from error

    def _key(self, attempt: Attempt) -> str:
        return self._keyspace.window(attempt.counted)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="windows")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drive(self, node: Node, queue: deque[_Asked]) -> None:
        """One round trip after another, while anybody waits for this master."""
        trip: list[_Asked] = []
        try:
            await asyncio.sleep(0)  # whoever asks in this turn of the loop comes along
            while queue:
                trip = [queue.popleft() for _ in range(min(len(queue), TRIP_MAX_ATTEMPTS))]
                trip = [asked for asked in trip if not asked.answer.done()]  # others have given up, and count nowhere
                await self._trip(node, trip)
        except BaseException:
            _give_up((*trip, *queue))
            raise
        finally:
            del self._queues[node]

    async def _trip(self, node: Node, trip: Sequence[_Asked]) -> None:
        groups = _by_window(trip)
        replies: Sequence[Any]
        try:
            replies = await node.run([self._command(group) for group in groups])
        except FAILURES as error:
            replies = [error] * len(groups)
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, Exception):
                self._run(self._again(group))
            else:
                _answer(group, reply)

    async def _again(self, group: Sequence[_Asked]) -> None:
        """Send a window's attempts once more, by themselves, until their deadline: the first may have been counted."""
        key = self._key(group[0].attempt)
        try:
            (reply,) = await self._connections.run(key, [self._command(group)], max(asked.until for asked in group))
            _answer(group, reply)
        except StoreUnavailable:
            _give_up(group)
        except BaseException:
            _give_up(group)
            raise

    def _command(self, group: Sequence[_Asked]) -> Command:
        first = group[0].attempt
        window = ceil(first.window_seconds * _MICROSECONDS)
        return HIT.call([self._key(first)], str(first.limit), str(window), *(asked.attempt.id for asked in group))


def _by_window(trip: Iterable[_Asked]) -> list[list[_Asked]]:
    groups: dict[tuple[str, int, float], list[_Asked]] = defaultdict(list)
    for asked in trip:
        groups[asked.attempt.counted, asked.attempt.limit, asked.attempt.window_seconds].append(asked)
    return list(groups.values())


def _answer(group: Sequence[_Asked], reply: Sequence[int]) -> None:
    now, frees_at, *judged = reply
    for asked, admitted, remaining in zip(group, judged[::2], judged[1::2], strict=True):
        frees_in = (frees_at - now) / _MICROSECONDS
        asked.give(Tally(bool(admitted), remaining, frees_in, now / _MICROSECONDS))


def _give_up(group: Iterable[_Asked]) -> None:
    for asked in group:
        asked.give_up()
