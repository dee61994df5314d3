"""Reads that arrive together leave together: one round trip to a master carries all that wait for it.

A read never joins a round trip that began before it was asked, so it sees every write acknowledged by then.
Each asker waits no longer than its own deadline; one that gives up disturbs no other.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from prometheus_client import Histogram
from redis.exceptions import AskError, TryAgainError

from revocation_service.errors import StoreUnavailable
from revocation_service.store.masters import Connections
from revocation_service.store.node import FAILURES, GET, Node, epoch_seconds

COMMAND_MAX_KEYS: Final = 1_000
RETRIES_AT_ONCE: Final = 8
TRIP_MAX_KEYS: Final = 5_000
TRIP_MAX_CHARACTERS: Final = 1 << 20
GATHER_MAX_KEYS: Final = 256
"""With so many keys a trip leaves at once: the master looks for them while the next are still being asked for."""

GLANCE_SECONDS: Final = 0.02
"""How long somebody who has another way waits for a master that was away a moment ago."""


class Found(NamedTuple):
    """A key that is there: the value, and the key's own end, in epoch seconds; None where it has none."""

    value: bytes
    expires_at: float | None


@dataclass(slots=True)
class Answer:
    """What one round trip learned, shared by all whose keys it carried: look your own keys up in it."""

    now: float
    """The master's clock, in epoch seconds; 0 where it said nothing at all."""
    found: Mapping[str, Found]
    """The keys that are there."""
    unread: frozenset[str]
    """The keys of which nothing was said in time."""

    @classmethod
    def silence(cls, keys: Iterable[str]) -> "Answer":
        """What a master that says nothing says of `keys`."""
        return cls(0, {}, frozenset(keys))

    @classmethod
    def together(cls, answers: Sequence["Answer"], keys: Sequence[str]) -> "Answer":
        """What several masters say of `keys`, as one; what others asked for in the same trips is left out.

        Where their clocks differ, `now` is the earliest: what one of them holds alive stays so.
        """
        if len(answers) == 1:
            return answers[0]
        now = min([answer.now for answer in answers if answer.now], default=0.0)
        found = {key: answer.found[key] for answer in answers for key in keys if key in answer.found}
        return cls(now, found, frozenset([key for answer in answers for key in keys if key in answer.unread]))


@dataclass(slots=True)
class _Asked:
    keys: Sequence[str]
    since: float
    until: float
    answer: asyncio.Future[Answer]
    known: Answer | None = None

    def give(self, answer: Answer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def learn(self, answer: Answer) -> None:
        """It is answered if all its keys were read; what was read of them is kept for the deadline."""
        self.known = answer
        if answer.unread.isdisjoint(self.keys):
            self.give(answer)

    def give_up(self) -> None:
        self.give(self.known or Answer.silence(self.keys))


class Lane:
    """The way to one master: at most one round trip under way, and a queue of what the next will carry.

    Keys that the master would not speak of (their slot is on the move, or nobody's) are tried again beside the others.
    """

    def __init__(
        self,
        connections: Connections,
        node: Node,
        deadline_seconds: float,
        sizes: Histogram,
        turned: Callable[[Node, bool], None],
    ) -> None:
        self._connections = connections
        self._node = node
        self._deadline_seconds = deadline_seconds
        self._sizes = sizes
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Asked] = deque()
        self._trip: list[_Asked] = []
        self._retries: dict[asyncio.Task[None], list[_Asked]] = {}
        self._driver: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._turned = turned
        self._heard_at = -math.inf
        self.away = False
        """Whether the master said nothing at all the last time that somebody waited in vain."""

    def ask(self, keys: Sequence[str]) -> asyncio.Future[Answer]:
        """What the master says of `keys`, from a round trip that begins after this call; at the deadline, nothing."""
        now = self._loop.time()
        asked = _Asked(keys, now, now + self._deadline_seconds, self._loop.create_future())
        self._queue.append(asked)
        if self._driver is None:
            self._driver = self._loop.create_task(self._drive(), name="store-reads")
        if self._watch is None:
            self._watch = self._loop.call_at(asked.until, self._give_up_overdue)
        return asked.answer

    async def glance(self, keys: Sequence[str]) -> Answer:
        """As `ask`, but a master that is away gets only a moment, and while it is still being asked, none at all."""
        if not self.away:
            return await self.ask(keys)
        if self.busy:
            return Answer.silence(keys)
        answer = self.ask(keys)
        await asyncio.wait({answer}, timeout=GLANCE_SECONDS)
        return answer.result() if answer.done() else Answer.silence(keys)

    def _note(self, *, away: bool) -> None:
        if away != self.away:
            self.away = away
            self._turned(self._node, away)

    async def aclose(self) -> None:
        """End the round trip under way; whoever still waits is told that nothing was read."""
        if self._watch is not None:
            self._watch.cancel()
        waiting = self._waiting()
        tasks = [task for task in (self._driver, *self._retries) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for asked in waiting:  # also where a task was ended before it began
            asked.give_up()

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return self._driver is not None or bool(self._retries)

    def _waiting(self) -> list[_Asked]:
        return [asked for some in (self._trip, *self._retries.values(), self._queue) for asked in some]

    def _give_up_overdue(self) -> None:
        """One timer for all: it looks at the oldest, and is set again for the oldest that is left."""
        now = self._loop.time()
        waiting = [asked for asked in self._waiting() if not asked.answer.done()]
        for asked in waiting:
            if asked.until <= now:
                asked.give_up()
                if self._heard_at < asked.since:
                    self._note(away=True)
        left = [asked.until for asked in waiting if asked.until > now]
        self._watch = self._loop.call_at(min(left), self._give_up_overdue) if left else None

    async def _drive(self) -> None:
        try:
            while self._queue:
                await self._gather()
                self._trip = self._take()
                await self._travel(self._trip)
                self._trip = []  # answered, or waiting for what is tried again
        finally:
            for asked in (*self._trip, *self._queue):
                asked.give_up()
            self._trip = []
            self._queue.clear()
            self._driver = None

    async def _gather(self) -> None:
        """Let the loop go round for as long as each round brings more, so that what has arrived already comes along.

        A check that is alone waits for one round of the loop; under load, few round trips carry many checks.
        """
        before, keys = 0, self._queued_keys()
        while before < keys < GATHER_MAX_KEYS:
            await asyncio.sleep(0)
            before, keys = keys, self._queued_keys()

    def _queued_keys(self) -> int:
        return sum([len(asked.keys) for asked in self._queue])

    def _take(self) -> list[_Asked]:
        """The oldest of the queue, up to the bounds of one round trip, and at least one; who gave up is left out."""
        trip: list[_Asked] = []
        keys = characters = 0
        while self._queue:
            asked = self._queue[0]
            keys += len(asked.keys)
            characters += sum(map(len, asked.keys))
            if trip and (keys > TRIP_MAX_KEYS or characters > TRIP_MAX_CHARACTERS):
                break
            self._queue.popleft()
            if not asked.answer.done():
                trip.append(asked)
        return trip

    async def _travel(self, trip: list[_Asked]) -> None:
        keys = list(dict.fromkeys(key for asked in trip for key in asked.keys))
        if not keys:
            for asked in trip:
                asked.give_up()
            return
        self._sizes.observe(len(keys))
        until = self._loop.time() + self._deadline_seconds
        groups = self._groups(keys)
        replies = await self._attempt(groups)
        answer = _answer(groups, replies)
        if answer.now:
            self._heard_at = self._loop.time()
            self._note(away=False)
        for asked in trip:
            asked.learn(answer)
        if answer.unread:
            retry = self._loop.create_task(self._retry(trip, groups, replies, until), name="store-reads")
            self._retries[retry] = trip
            retry.add_done_callback(self._retries.pop)
            if not answer.now or len(self._retries) > RETRIES_AT_ONCE:  # the next trip would fare no better
                await asyncio.wait([retry])

    async def _retry(self, trip: list[_Asked], groups: list[list[str]], replies: list[Any], until: float) -> None:
        """A failure stays with the command, and so with the slot, that it hit: each of those is tried by itself."""
        try:
            groups, replies = _apart(groups, replies)
            answer = _answer(groups, await self._again(groups, replies, until))
            self._note(away=not answer.now)
            for asked in trip:
                asked.give(answer)
        finally:
            for asked in trip:
                asked.give_up()

    def _groups(self, keys: list[str]) -> list[list[str]]:
        """Keys that may share a command: of one slot, and not too many."""
        by_slot = self._connections.by_slot(keys)
        return [
            group[start : start + COMMAND_MAX_KEYS]
            for group in by_slot
            for start in range(0, len(group), COMMAND_MAX_KEYS)
        ]

    async def _attempt(self, groups: list[list[str]]) -> list[Any]:
        try:
            return await self._node.run([GET.call(group) for group in groups])
        except FAILURES as error:
            return [error] * len(groups)

    async def _again(self, groups: list[list[str]], replies: list[Any], until: float) -> list[Any]:
        """The replies, after each that failed was tried again by itself, until the deadline; a few at a time."""
        permits = asyncio.Semaphore(RETRIES_AT_ONCE)

        async def once_more(group: list[str], reply: Any) -> Any:
            if not isinstance(reply, Exception):
                return reply
            async with permits:
                try:
                    return (await self._connections.run(group[0], [GET.call(group)], until))[0]
                except StoreUnavailable as error:
                    return error

        return await asyncio.gather(*map(once_more, groups, replies))


def _apart(groups: list[list[str]], replies: list[Any]) -> tuple[list[list[str]], list[Any]]:
    """Each key by itself where their slot is on the move: some may be here and some there; no command reads both."""
    parted = [
        (part, reply)
        for group, reply in zip(groups, replies, strict=True)
        for part in ([[key] for key in group] if isinstance(reply, AskError | TryAgainError) else [group])
    ]
    return [part for part, _ in parted], [reply for _, reply in parted]


def _answer(groups: list[list[str]], replies: Iterable[Any]) -> Answer:
    """The replies of `get.lua`, or the failures that came instead, as one."""
    now = 0.0
    found: dict[str, Found] = {}
    unread: set[str] = set()
    for keys, reply in zip(groups, replies, strict=True):
        if isinstance(reply, Exception):
            unread.update(keys)
            continue
        seconds, microseconds, *rows = reply
        then = epoch_seconds(seconds, microseconds)
        now = max(now, then)
        for index, value, left in rows:
            found[keys[index - 1]] = Found(value, then + left / 1_000 if left >= 0 else None)
    return Answer(now, found, frozenset(unread))
