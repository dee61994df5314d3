"""On a real Redis, `merge.lua` merges generated histories exactly as the reference merge in Python does."""

import asyncio
import gc
import itertools
import json
import math
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import Phase, given, settings, strategies as st

from revocation_client.claims import ClaimName, Claims
from revocation_client.revocation import Revocation, covers
from revocation_service.store.records import merged_record
from revocation_service.store.scripts import MERGE
from revocation_service.store.store import Put, Stored
from tests.merging import merge
from tests.redis_processes import standalone
from tests.scale import scaled
from tests.store.conftest import Opened, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

# No shrinking: each example takes hundreds of round trips, and a failure names the one short history that went wrong.
many = settings(max_examples=scaled(25, 400), deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])

numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def no_long_collections() -> Iterator[None]:
    """Switch off the garbage collector: late in a long test run, one collection exceeds the timeout of a command."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@dataclass(frozen=True)
class Bench:
    """A store, and a redis-py client of its server."""

    opened: Opened
    raw: Any

    def fresh(self) -> str:
        """Return a value that no other history uses."""
        return f"value-{next(numbers)}"

    async def merge(self, record: Revocation) -> Stored:
        """Send a record to `merge.lua` unchanged, with its own `revoked_at`, and return what was stored."""
        claim, value, expires_at, revoked_at, cutoff, reason, revoked_by = record
        put = Put(claim, value, None, None, cutoff, False, reason, revoked_by, expires_at)
        keys, (shared, asked) = self.opened.store.merge_call([put])
        asked = json.dumps(json.loads(asked) | {"revoked_at": revoked_at}).encode()
        (reply,) = await MERGE.run(self.raw, keys, [shared, asked])
        result = reply[0].decode()
        return Stored(result, None if len(reply) == 1 else merged_record(claim, value, reply))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    """One server without persistence, and a store on it, for all tests of this module."""
    async with (
        standalone(config=["appendonly no"]) as server,
        open_store(server.url) as opened,
        server.client(decode_responses=False) as raw,
    ):
        yield Bench(opened, raw)


@dataclass(frozen=True)
class Handed:
    """A step that merges a record. Its end and its cutoff are relative to the start of the history."""

    expires_after: float
    revoked_at: float
    cutoff_ago: float | None
    reason: str | None
    revoked_by: str | None

    def record(self, claim: ClaimName, value: str, now: float) -> Revocation:
        """Return the record, for a history that begins at `now`."""
        cutoff = None if self.cutoff_ago is None or claim == "jti" else now - self.cutoff_ago
        return Revocation(claim, value, now + self.expires_after, self.revoked_at, cutoff, self.reason, self.revoked_by)


@dataclass(frozen=True)
class Foreign:
    """A step in which a foreign application overwrites the key, without an expiry if `life_seconds` is None."""

    value: bytes
    life_seconds: int | None

    def record(self, claim: ClaimName, value: str, now: float) -> Revocation:
        """Return the record that the foreign value counts as."""
        return Revocation(claim, value, None if self.life_seconds is None else now + self.life_seconds, None)


Step = Handed | Foreign

texts = (
    st.none()
    | st.sampled_from(["", "a", "b", "é", "\uffff", "\U00010000", "a\u0301", '"\\/', "停"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
)
lives = st.sampled_from([1000.0, 1000.000001, 1000.5, 2_000_000.25]) | st.floats(900, 3_000_000)
origins = st.sampled_from([0.0, 1e-7, 1.5, 1e9, 1e9 + 1e-6, 1.7e9, 2e15 + 0.25, -5.0]) | st.floats(0, 4e9)
cutoffs = st.none() | st.sampled_from([0.0, 1e-6, 10.0]) | st.floats(-50, 1e6)
handed = st.builds(Handed, lives, origins, cutoffs, texts, texts)
foreign = st.builds(
    Foreign,
    st.sampled_from([b"1", b"0", b"", b"{}", b"[]", b'{"revoked_at":null}', b"\xff", b'{"revoked_at":1e999}']),
    st.sampled_from([None, 60, 5_000_000]),
)
histories = st.lists(handed, min_size=1, max_size=6)
mixed_histories = st.lists(handed | foreign, min_size=1, max_size=6)
claims = st.sampled_from(["jti", "sid", "sub", "client_id"])


async def live(bench: Bench, claim: ClaimName, value: str, history: Sequence[Step], now: float) -> list[Stored | None]:
    """Do the steps on Redis in order. Return the result of each merge, and None for each foreign write."""
    stored: list[Stored | None] = []
    for step in history:
        if isinstance(step, Handed):
            stored.append(await bench.merge(step.record(claim, value, now)))
        else:
            key = bench.opened.store.keyspace.key(claim, value)
            await bench.raw.set(key, step.value, ex=step.life_seconds)
            stored.append(None)
    return stored


def told(claim: ClaimName, value: str, history: Sequence[Step], now: float) -> list[tuple[str | None, Revocation]]:
    """Return the expected result and record after each step, by the reference merge."""
    states: list[tuple[str | None, Revocation]] = []
    for step in history:
        record = step.record(claim, value, now)
        if isinstance(step, Foreign):
            states.append((None, record))
        elif not states:
            states.append(("revoked", record))
        else:
            before = states[-1][1]
            states.append((result_of(before, record), merge(before, record)))
    return states


def result_of(before: Revocation, record: Revocation) -> str:
    """Return `revoked` if the record covers a token that was not covered before."""
    if before.issued_before is None:
        return "already_revoked"
    covers_more = record.issued_before is None or record.issued_before > before.issued_before
    return "revoked" if covers_more else "already_revoked"


def same(found: Revocation | None, expected: Revocation) -> bool:
    """Return whether both are equal. Their ends may differ by 2 s, as a foreign key's life begins when it is set."""
    if found is None or found.expires_at is None or expected.expires_at is None:
        return found == expected
    close = abs(found.expires_at - expected.expires_at) <= 2
    return close and found == expected._replace(expires_at=found.expires_at)


@many
@given(st.lists(st.tuples(claims, histories), min_size=20, max_size=20))
async def test_lua_merges_as_the_model_does(bench: Bench, all_of_them: list[tuple[ClaimName, list[Handed]]]) -> None:
    """After every step of a history, the result and the record are exactly those of the reference merge."""
    now = time.time()

    async def check(claim: ClaimName, history: list[Handed]) -> None:
        value = bench.fresh()
        stored = await live(bench, claim, value, history, now)
        expected = told(claim, value, history, now)
        assert [(one.result, one.record) for one in stored if one] == expected, history
        assert await bench.opened.found(value, claim) == expected[-1][1]

    await asyncio.gather(*(check(claim, history) for claim, history in all_of_them))


@many
@given(st.lists(st.tuples(claims, mixed_histories), min_size=20, max_size=20))
async def test_lua_merges_with_what_foreign_writers_left(
    bench: Bench, all_of_them: list[tuple[ClaimName, list[Step]]]
) -> None:
    """If foreign values overwrite the key in between, results and records are still those of the reference merge."""
    now = time.time()

    async def check(claim: ClaimName, history: list[Step]) -> None:
        value = bench.fresh()
        stored = await live(bench, claim, value, history, now)
        expected = told(claim, value, history, now)
        for one, (result, record) in zip(stored, expected, strict=True):
            assert one is None or (one.result == result and same(one.record, record)), (one, record, history)
        assert same(await bench.opened.found(value, claim), expected[-1][1])

    await asyncio.gather(*(check(claim, history) for claim, history in all_of_them))


@many
@given(st.lists(st.tuples(claims, histories), min_size=20, max_size=20), st.randoms())
async def test_order_and_simultaneity_make_no_difference(
    bench: Bench, all_of_them: list[tuple[ClaimName, list[Handed]]], dice: random.Random
) -> None:
    """Records that are put concurrently, in any order, and some of them twice, end as the merge of all."""
    now = time.time()

    async def check(claim: ClaimName, history: list[Handed]) -> None:
        value = bench.fresh()
        records = [step.record(claim, value, now) for step in (*history, *history[::2])]
        dice.shuffle(records)
        await asyncio.gather(*map(bench.merge, records))
        expected = reduce(merge, [step.record(claim, value, now) for step in history])
        assert await bench.opened.found(value, claim) == expected, history

    await asyncio.gather(*(check(claim, history) for claim, history in all_of_them[:8]))


@many
@given(st.lists(st.tuples(claims, mixed_histories), min_size=10, max_size=10))
async def test_the_key_ends_with_its_record(bench: Bench, all_of_them: list[tuple[ClaimName, list[Step]]]) -> None:
    """The key expires when its record ends, within 3 ms; it has no expiry if the record never ends."""
    now = time.time()

    async def check(claim: ClaimName, history: list[Step]) -> None:
        value = bench.fresh()
        await live(bench, claim, value, history, now)
        record = await bench.opened.found(value, claim)
        assert record is not None
        before = time.time()
        left = await bench.raw.pttl(bench.opened.store.keyspace.key(claim, value))
        if record.expires_at is None:
            assert left == -1
        else:
            assert record.expires_at - 0.002 <= time.time() + left / 1000
            assert before + left / 1000 <= record.expires_at + 0.003

    await asyncio.gather(*(check(claim, history) for claim, history in all_of_them))


@many
@given(st.lists(st.tuples(claims, histories), min_size=10, max_size=10), st.floats(-60, 1e6))
async def test_no_put_un_revokes(
    bench: Bench, all_of_them: list[tuple[ClaimName, list[Handed]]], issued_ago: float
) -> None:
    """A token that any acknowledged revocation covers is still covered by the record after all of them."""
    now = time.time()

    async def check(claim: ClaimName, history: list[Handed]) -> None:
        value = bench.fresh()
        await live(bench, claim, value, history, now)
        about: dict[str, Any] = {claim: value}
        token = Claims.of(iat=now - issued_ago, **about)
        found = await bench.opened.found(value, claim)
        assert found is not None
        covered = any(covers(step.record(claim, value, now), token, now) for step in history)
        assert covers(found, token, now) or not covered, history

    await asyncio.gather(*(check(claim, history) for claim, history in all_of_them))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("\uffff", "\U00010000"),  # UTF-16 would order them the other way
        ("Z", "a"),  # and so would many locales
        ("a", "á"),
        ("", "a"),
        ("a", None),  # a known value goes before an unknown one
        ("", None),
    ],
)
@pytest.mark.parametrize("field", ["reason", "revoked_by"])
async def test_a_tie_is_broken_alike(bench: Bench, field: str, first: str | None, second: str | None) -> None:
    """Of two requests with the same `revoked_at`, the same one counts as the first, in whichever order they arrive."""
    common = Revocation("jti", "", time.time() + 60, 5.0, reason="common")
    for order in ((first, second), (second, first)):
        value = bench.fresh()
        for text in order:
            its_own: dict[str, Any] = {"value": value, field: text}
            await bench.merge(common._replace(**its_own))
        assert getattr(await bench.opened.found(value), field) == first


async def test_numbers_survive_exactly(bench: Bench) -> None:
    """Times are stored and read back without any loss of precision."""
    now = time.time()
    dice = random.Random(1)
    for _ in range(scaled(300, 20_000)):
        value = bench.fresh()
        revoked_at = math.ldexp(dice.random(), dice.randrange(-20, 60))
        record = Revocation("sub", value, now + 50 + dice.random() * 1e6, revoked_at, now - dice.random() * 1e6)
        assert (await bench.merge(record)).record == record
        assert await bench.opened.found(value, "sub") == record


async def test_a_record_that_has_ended_is_not_stored(bench: Bench) -> None:
    """A record whose end has passed on Redis' clock is `expired`, and leaves what is stored alone."""
    value, now = bench.fresh(), time.time()
    ended, live = Revocation("jti", value, now - 1, 1.0), Revocation("jti", value, now + 60, 2.0)
    assert (await bench.merge(ended)).result == "expired"
    assert await bench.opened.found(value) is None
    assert (await bench.merge(live)).record == live
    assert (await bench.merge(ended)).result == "expired"
    assert await bench.opened.found(value) == live
