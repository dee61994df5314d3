"""Run an outage in one world, and record which process gave which answer, and when."""

import asyncio
import contextlib
import functools
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from revocation_service.tasks import end
from tests.redis_processes import eventually
from tests.system.mirrors import token_of
from tests.system.outage_worlds import BACK_SECONDS, STALE_SECONDS, UNKNOWN, World, asked, in_step, make_known
from tests.system.outages import MEMORY, NOTHING, REDIS, REFUSED, SEEN, STORED, Row
from tests.system.service_process import Answer, ServiceProcess

LATE: Final = 3
"""How many answers each process must give after the outage has lasted longer than `STALE_SECONDS`."""

AFTER: Final = 5
"""How many answers about each kind of token each process must give after the outage is over."""

TOLD_SECONDS: Final = 1.2
PAUSE_SECONDS: Final = 0.1

UNSEEN: Final = {"jti": "revoked-meanwhile"}


@dataclass(frozen=True)
class Heard:
    """One answer: who gave it, about what, and when it was asked for and given."""

    who: str
    about: str
    began: float
    ended: float
    said: str


@dataclass
class Story:
    """The course of an outage in one world."""

    heard: list[Heard] = field(default_factory=list)
    struck: float = 0.0
    repaired: float = 0.0
    """When the repair began."""
    over: float = 0.0
    """When everything worked as before."""
    unseen_at: float | None = None
    """When the revocation of `UNSEEN` was acknowledged."""
    refused: list[Answer | None] = field(default_factory=list)
    trouble: BaseException | None = None

    def said(self, who: str, about: str, since: float, until: float) -> Counter[str]:
        """Count, by answer, the answers that were asked for and given in a period."""
        return Counter(
            each.said
            for each in self.heard
            if (each.who, each.about) == (who, about) and since <= each.began and each.ended < until
        )


class Questions:
    """Asks each process about each kind of token continually, each in its own task. A frozen process answers late."""

    def __init__(self, world: World, story: Story) -> None:
        self._world = world
        self._story = story
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Keep asking until the end of the block."""
        world = self._world
        seen = itertools.cycle(world.seen)
        subjects: dict[str, Iterator[dict[str, Any]]] = {
            "revoked": (token_of(named) for named in seen),
            "unknown": itertools.repeat(UNKNOWN),
            "unseen": itertools.repeat(token_of(UNSEEN)),
        }
        for about, claims in subjects.items():
            self._tasks.append(asyncio.create_task(self._ask(about, claims, "client", self._of_app)))
            for name, service in (("one", world.one), ("other", world.other)):
                asking = self._ask(about, claims, name, self._of(service))
                self._tasks.append(asyncio.create_task(asking))
        try:
            yield
        finally:
            await end(self._tasks)  # repeats the cancellation, because aiohttp may swallow one at its timeout
        for task in self._tasks:
            assert task.cancelled(), repr(task.exception())

    async def _ask(
        self,
        about: str,
        subjects: Iterator[dict[str, Any]],
        who: str,
        answer: Callable[[dict[str, Any]], Awaitable[tuple[float, str]]],
    ) -> None:
        while True:
            began, said = await answer(next(subjects))
            self._story.heard.append(Heard(who, about, began, time.monotonic(), said))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _of_app(self, claims: dict[str, Any]) -> tuple[float, str]:
        said = await self._world.app.ask(claims)
        if said.revoked or said.at_once:
            assert (said.quickly, said.revoked) == (True, True), f"it changed its mind: {said}"
        return said.began, _words(said.revoked, said.source)

    def _of(self, service: ServiceProcess) -> Callable[[dict[str, Any]], Awaitable[tuple[float, str]]]:
        async def answer(claims: dict[str, Any]) -> tuple[float, str]:
            began = time.monotonic()
            told = await asked(self._world.http, "POST", f"{service.url}/check", claims)
            return began, _told(told, time.monotonic() - began)

        return answer


def _words(revoked: bool, source: str) -> str:
    return f"{'revoked' if revoked else 'not revoked'} ({source})"


def _told(answer: Answer | None, seconds: float) -> str:
    """Return an answer in the words of the table. A refusal that comes late counts as no answer."""
    if answer is None:
        return NOTHING
    if answer.status == 503:
        assert (answer.code, answer.headers["Retry-After"]) == ("store_unavailable", "1"), answer
        return REFUSED if seconds < TOLD_SECONDS else NOTHING
    assert answer.status == 200, answer
    assert (answer.body["source"] == "mirror") == ("stale_seconds" in answer.body), answer
    return _words(answer.body["revoked"], answer.body["source"])


async def live_through(row: Row, world: World) -> Story:
    story = Story()
    await make_known(world, range(SEEN))
    await eventually(lambda: in_step(world), "everybody in step", BACK_SECONDS)
    async with Questions(world, story).going_on():
        await row.strike(world)
        story.struck = time.monotonic()
        await _revoke_meanwhile(row, world, story)
        await _until_late(row, story)
        story.repaired = time.monotonic()
        await row.repair(world)
        if row.revoking == "none":
            await eventually(lambda: _taken(world, story, world.one), "a revocation that is taken", BACK_SECONDS)
        await eventually(lambda: _is_over(row, world), "the end of it", BACK_SECONDS)
        story.over = time.monotonic()
        await eventually(lambda: _heard_after(row, story), "the usual answers after the end", BACK_SECONDS)
    return story


async def _revoke_meanwhile(row: Row, world: World, story: Story) -> None:
    if row.revoking == "none":
        for service in (world.one, world.other):
            story.refused.append(await world.revoke(service, UNSEEN))
        return
    taken = functools.partial(_taken, world, story, world.one if row.revoking == "one" else world.other)
    await eventually(taken, "a revocation meanwhile, which a busy machine may answer 503 once", STALE_SECONDS)


async def _taken(world: World, story: Story, service: ServiceProcess) -> bool:
    answer = await world.revoke(service, UNSEEN)
    if answer is None or answer.status != 200:
        return False
    story.unseen_at = time.monotonic()
    return True


async def _until_late(row: Row, story: Story) -> None:
    """Wait until each process that can answer has answered several times after its memory became too old."""

    async def late() -> bool:
        since = story.struck + max(STALE_SECONDS, row.lasts_seconds)
        counts = [
            sum((each.who, each.about) == (who, "unknown") and each.began >= since for each in story.heard)
            for who in (("one",) if row.silences_the_application else ("one", "client"))
        ]
        return time.monotonic() > since and min(counts) >= LATE

    await eventually(late, "late answers", BACK_SECONDS + row.lasts_seconds)


async def _is_over(row: Row, world: World) -> bool:
    """Return whether all is in sync and knows all revocations again. If the row keeps none, only `UNSEEN` counts."""
    if not await in_step(world):
        return False
    named = [*world.seen, UNSEEN] if row.kept else [UNSEEN]
    if await world.stored(named) != len(named):
        return False
    for service in (world.one, world.other):
        for one in named[:: max(1, len(named) // 100)]:
            answer = await asked(world.http, "POST", f"{service.url}/check", token_of(one))
            if answer is None or answer.status != 200 or not answer.body["revoked"]:
                return False
    return (await world.app.ask(token_of(UNSEEN))).source == "mirror"


async def _heard_after(row: Row, story: Story) -> bool:
    """Return whether each process has answered about each token since the end, and as it usually does."""
    now, stored = time.monotonic(), STORED if row.kept else REDIS
    usual = {("client", "unknown"): MEMORY, ("one", "unknown"): REDIS, ("one", "revoked"): stored}
    usual[("other", "revoked")] = stored
    said = {
        (who, about): story.said(who, about, story.over, now)
        for who in ("one", "other", "client")
        for about in ("revoked", "unknown", "unseen")
    }
    return all(each.total() >= AFTER for each in said.values()) and all(said[each][usual[each]] for each in usual)
