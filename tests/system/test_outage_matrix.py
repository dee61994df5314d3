"""The outage matrix with real processes: what is answered during each outage, and what is true again afterwards.

The application and the instances are asked continually about three kinds of tokens: those that they knew to be revoked,
one that is not revoked, and one that is revoked during the outage.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final

import pytest
import pytest_asyncio

from tests.system.outage_stories import Story, live_through
from tests.system.outage_worlds import STALE_SECONDS, world_in
from tests.system.outages import KNOWN, MEMORY, NOTHING, POLICY, REDIS, REFUSED, ROWS, STORED, Row, table

WORLDS_AT_ONCE: Final = 3

LATE_ANSWERS: Final = {NOTHING, REFUSED, POLICY}
"""What stands for a late answer: no answer, 503 from an instance, or the policy from the application."""

LATE_PART: Final = 0.2
"""The share of late answers that is allowed. One is always allowed, as there are few answers while Redis hangs."""

AS_GOOD: Final = {REDIS: MEMORY, STORED: KNOWN}
"""What may be said instead: a synced instance may answer from its mirror while a busy Redis keeps it waiting."""


def _judged(row: Row, story: Story) -> list[str]:
    """Return a message for each deviation from the table."""
    late = story.struck + STALE_SECONDS
    phases = [
        ("one", "revoked", story.struck, story.repaired, row.check_revoked, row.check_revoked),
        ("one", "unknown", story.struck, late, row.check_unknown, row.check_unknown_later),
        ("one", "unknown", late, story.repaired, row.check_unknown_later, ()),
        ("client", "revoked", story.struck, story.repaired, row.client_revoked, row.client_revoked),
        ("client", "unknown", story.struck, late, row.client_unknown, row.client_unknown_later),
        ("client", "unknown", late, story.repaired, row.client_unknown_later, ()),
        ("client", "unknown", story.over, float("inf"), (MEMORY,), (REDIS,)),
        ("client", "revoked", story.over, float("inf"), (KNOWN,), ()),
        ("one", "unknown", story.over, float("inf"), (REDIS,), ()),
        ("one", "revoked", story.over, float("inf"), (STORED,) if row.kept else (REDIS,), ()),
        ("other", "revoked", story.over, float("inf"), (STORED,) if row.kept else (REDIS,), ()),
    ]
    wrong = []
    for who, about, since, until, expected, also in phases:
        said = story.said(who, about, since, until)
        silent = expected == (NOTHING,) and not said
        if not silent and (not _any(said, expected) or _surprises(said, {*expected, *also, *_as_good(expected)})):
            wrong.append(f"{who}, {about}, +{since - story.struck:.1f} s: {dict(said)}, not {expected}")
    return wrong + _never(row, story)


def _as_good(expected: tuple[str, ...]) -> set[str]:
    return {AS_GOOD[each] for each in expected if each in AS_GOOD}


def _any(said: Counter[str], expected: tuple[str, ...]) -> bool:
    return any(said[each] for each in expected)


def _surprises(said: Counter[str], expected: set[str]) -> bool:
    """Return whether other answers were given. A few late ones are allowed, because the machine may be busy."""
    other = said.keys() - expected
    return bool(other - LATE_ANSWERS) or sum(said[each] for each in other) > max(1, said.total() * LATE_PART)


def _never(row: Row, story: Story) -> list[str]:
    """Return a message for each answer that is wrong in any outage."""
    wrong = []
    for each in story.heard:
        accepted = each.said in {MEMORY, REDIS, POLICY}
        holds = each.who == "client" or row.kept
        if accepted and each.about == "revoked" and holds:
            wrong.append(f"a known revocation was denied: {each}, +{each.began - story.struck:.2f} s")
        # This revocation was made during the outage, so the processes asked here may not know it yet.
        if each.about == "unseen" and story.unseen_at is not None:
            if each.said == MEMORY and each.began > story.unseen_at + STALE_SECONDS:
                wrong.append(f"memory was believed for too long: {each}, {each.began - story.unseen_at:.2f} s")
            if accepted and each.began > max(story.over, story.unseen_at):
                wrong.append(f"still not known: {each}")
        if each.said == MEMORY and story.struck + STALE_SECONDS < each.began and each.ended < story.repaired:
            away = {"one": row.check_unknown_later, "client": row.client_unknown_later}
            if each.who in away and not {MEMORY, REDIS} & {*away[each.who]}:
                wrong.append(f"memory was believed for too long: {each}")
    return wrong


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stories(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Story]]:
    """The stories of all selected rows. Several run at once, because they mostly wait for mirrors to become stale."""
    names = {item.name for item in request.session.items if item.path == request.path}
    asked = [row for row in ROWS if any(f"[{row.name}]" in name for name in names)]
    room = asyncio.Semaphore(WORLDS_AT_ONCE)

    async def live(row: Row) -> Story:
        async with room, world_in(tmp_path_factory.mktemp("world"), replicated=row.replicated) as world:
            return await live_through(row, world)

    lived = await asyncio.gather(*map(live, asked), return_exceptions=True)
    found = {
        row.what: Story(trouble=each) if isinstance(each, BaseException) else each
        for row, each in zip(asked, lived, strict=True)
    }
    sys.stdout.write(table(asked))
    yield found


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
@pytest.mark.asyncio(loop_scope="module")
async def test_the_outage_matrix(row: Row, stories: dict[str, Story], record_property: Callable[..., None]) -> None:
    """During and after the outage all answers are as the table says, and no revocation that is still held is denied."""
    story = stories[row.what]
    if story.trouble is not None:
        raise story.trouble
    wrong = _judged(row, story)
    assert not wrong, f"{row.what}: {len(wrong)} wrong:\n" + "\n".join(wrong[:12])
    for answer in story.refused:
        assert answer is None or (answer.status, answer.code) == (503, "store_unavailable"), answer
    record_property("seconds_until_all_was_well", round(story.over - story.repaired, 2))
