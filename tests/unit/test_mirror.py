"""The mirror against a plain model: a dictionary of merged revocations, looked through whole at every question."""

import itertools
import math
import random
import tracemalloc
from collections.abc import Collection, Hashable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings, strategies as st

from revocation_client.mirror import DUE_SECONDS, NEVER, SHARED_ENDS, Mirror, Table
from revocation_client.model import CLAIM_NAMES, ClaimName, Claims, Revocation, first_covering, merge
from revocation_client.sieve import Sieve
from tests.scale import scaled

many = settings(max_examples=scaled(150, 20_000), deadline=None)

START = 1_790_000_000.0


class Plain:
    """What the mirror should be: every live revocation, merged, under its claim and value."""

    def __init__(self) -> None:
        self.records: dict[tuple[ClaimName, str], Revocation] = {}

    def add(self, revocation: Revocation, now: float) -> bool:
        """Merge it; whether that changed what is known."""
        self.expire(now)
        end = revocation.expires_at
        end = None if end is None or end >= NEVER else float(math.ceil(end))
        revocation = Revocation(revocation.claim, revocation.value, end, None, revocation.issued_before)
        if end is not None and end < now:
            return False
        place = revocation.claim, revocation.value
        held = self.records.get(place)
        self.records[place] = revocation if held is None else merge(held, revocation)
        return self.records[place] != held

    def expire(self, now: float) -> None:
        """Forget what has ended."""
        self.records = {
            place: each for place, each in self.records.items() if each.expires_at is None or each.expires_at >= now
        }


@dataclass(frozen=True)
class Step:
    """Some time passes, and something is added, or what ended is forgotten."""

    passes: float
    revocation: Revocation | None


values = st.sampled_from(["a", "b", "", "é", "sha256:00"])
ends = st.sampled_from([None, 0.0, 1.0, 59.9, 60.0, 60.1, 300.0, 900.0, 1e15]) | st.floats(-10, 1000)
cutoffs = st.none() | st.sampled_from([0.0, 0.5, -100.0, 60.0]) | st.floats(-100, 100)


@st.composite
def revocations(draw: st.DrawFn) -> Revocation:
    """Any revocation; its times are offsets from the start."""
    claim = draw(st.sampled_from(CLAIM_NAMES))
    end, cutoff = draw(ends), None if claim == "jti" else draw(cutoffs)
    value = "" if claim == "all" else draw(values)
    moved = None if cutoff is None else START + cutoff
    return Revocation(claim, value, None if end is None else START + end, draw(st.none() | st.just(START)), moved)


steps = st.builds(Step, st.sampled_from([0.0, 0.1, 1.0, 61.0, 301.0]) | st.floats(0, 50), st.none() | revocations())
some_value = st.none() | values
iats = st.sampled_from([None, math.nan, math.inf, START, START + 61, START + 1e6]) | st.floats(START - 200, START + 200)
questions = st.builds(Claims, some_value, some_value, some_value, some_value, iats, st.booleans())


@pytest.mark.parametrize("whole_values", [False, True])
@many
@given(history=st.lists(steps, max_size=40), asked=st.lists(questions, min_size=1, max_size=8))
def test_it_answers_as_the_plain_model_does(whole_values: bool, history: list[Step], asked: list[Claims]) -> None:
    """After every step of any history, every question is answered as the rule over all merged records answers it."""
    mirror, plain, now = Mirror(whole_values=whole_values), Plain(), START
    for step in history:
        now += step.passes
        if step.revocation is None:
            mirror.expire(now)
        else:
            assert mirror.add(step.revocation, now) == plain.add(step.revocation, now)
        plain.expire(now)
        for claims in asked:
            found = mirror.covering(claims, now)
            assert (found is None) == (first_covering(plain.records.values(), claims, now) is None)
            assert found is None or plain.records[found.claim, found.value] == found
        for (claim, value), record in plain.records.items():
            assert mirror.held(claim, value, now) == record
        if whole_values:
            assert {(each.claim, each.value): each for each in mirror.entries(now)} == plain.records


@pytest.mark.parametrize("whole_values", [False, True])
@pytest.mark.parametrize("claim", ["jti", "sid"])
def test_it_finds_each_of_many_that_come_and_go(whole_values: bool, claim: ClaimName) -> None:
    """Through growth, ends and what comes after them, of either kind of key: what lives is found, and nothing else."""
    mirror, now, dice = Mirror(whole_values=whole_values), START, random.Random(1)
    ends: dict[str, float] = {}
    for number in range(scaled(12_000, 200_000)):
        now += 0.25
        value = f"v{number}"
        ends[value] = now + dice.choice((10, 200, 900))
        mirror.add(Revocation(claim, value, ends[value], None), now)
        if number % 1000 == 999:
            mirror.expire(now)
            living = {value for value, end in ends.items() if math.ceil(end) >= now}
            for asked in (*ends, *(f"other-{each}" for each in range(1000))):
                claims = Claims(jti=asked) if claim == "jti" else Claims(sid=asked)
                assert (mirror.covering(claims, now) is not None) == (asked in living)
            ends = {value: end for value, end in ends.items() if end >= now - 1000}


@many
@given(added=st.lists(revocations(), max_size=30), seed=st.integers())
def test_order_and_repetition_do_no_harm(added: list[Revocation], seed: int) -> None:
    """Whatever the order, and however often: the same revocations leave the same mirror."""
    one, other = Mirror(whole_values=True), Mirror(whole_values=True)
    for revocation in added:
        one.add(revocation, START)
    again = added * 2
    random.Random(seed).shuffle(again)
    for revocation in again:
        other.add(revocation, START)
    assert sorted(one.entries(START), key=repr) == sorted(other.entries(START), key=repr)


def test_alive_at_decides_which_revocations_have_ended_and_now_whether_an_iat_is_ahead() -> None:
    """Without `alive_at`, `now` decides both."""
    mirror, fresh, old = Mirror(), Claims(sub="alice", iat=START), Claims(sub="alice", iat=START - 601)
    mirror.add(Revocation("sub", "alice", START + 60, None, START - 600), START)
    assert mirror.covering(fresh, START) is None
    assert mirror.covering(fresh, START, alive_at=START - 3600) is None
    assert mirror.covering(fresh, START - 3600) is not None
    assert mirror.covering(old, START + 61) is None
    assert mirror.covering(old, START + 61, alive_at=START) is not None


def test_what_ended_is_forgotten_by_and_by() -> None:
    """Each call looks at no more than it may; in the end nothing is left, and what was given a longer life stays."""
    mirror = Mirror()
    for number in range(1000):
        mirror.add(Revocation("jti", f"v{number}", START + number % 100, None), START)
    for number in range(10):
        mirror.add(Revocation("jti", f"v{number}", START + 10_000, None), START)
    later = START + 100 + 2 * DUE_SECONDS
    sizes = []
    for _ in range(20):
        mirror.expire(later, most=100)
        sizes.append(len(mirror))
    assert sizes[0] >= 900
    assert all(earlier - after <= 100 for earlier, after in itertools.pairwise(sizes))
    assert len(mirror) == 10
    assert all(mirror.covering(Claims(jti=f"v{number}"), later) for number in range(10))
    for _ in range(20):
        mirror.expire(START + 10_000 + 2 * DUE_SECONDS)
    assert len(mirror) == 0


def test_one_that_is_lengthened_again_and_again_takes_no_more_room() -> None:
    """A subject that is logged out every second for a day leaves one entry, and the memory of one."""
    mirror = Mirror()
    cutoff = Revocation("sub", "alice", START, None, START)
    mirror.add(cutoff._replace(expires_at=START + 1e6), START)
    tracemalloc.start()
    try:
        for second in range(86_400):
            mirror.add(cutoff._replace(expires_at=START + 1e6 + second, issued_before=START + second), START + second)
        grown, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(mirror) == 1
    assert grown < 200 * SHARED_ENDS, "what it keeps is bounded"


@pytest.mark.parametrize("spread_seconds", [3600, 30 * 86_400])
def test_what_an_entry_takes(spread_seconds: int) -> None:
    """At most 120 bytes an entry, whether the ends lie close together or each in a second of its own."""
    count = scaled(60_000, 1_000_000)
    dice = random.Random(1)
    mirror = Mirror()
    tracemalloc.start()
    try:
        for _ in range(count):
            mirror.add(Revocation("jti", dice.randbytes(16).hex(), START + dice.random() * spread_seconds, None), START)
        size, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    buckets = spread_seconds // DUE_SECONDS * 400  # the same for however many entries
    assert len(mirror) == count
    assert (size - buckets) / count < 120


def test_what_has_no_end_has_none() -> None:
    """A foreign writer's record without an expiry, or with an absurd one, covers for good."""
    mirror = Mirror(whole_values=True)
    mirror.add(Revocation("jti", "a", None, None), START)
    mirror.add(Revocation("jti", "b", 1e300, None), START)
    mirror.expire(START + 1e9)
    for value in "ab":
        found = mirror.covering(Claims(jti=value), float(NEVER))
        assert found is not None
        assert found.expires_at is None


def test_what_could_not_be_marked_is_not_held() -> None:
    """For want of memory, say: held but not let through, it would never be found, nor ever be put again."""

    class Failing(Sieve):
        def add(self, hashed: int, held: Collection[Hashable]) -> None:
            raise MemoryError

    table = Table(whole_values=True)
    sieve, table.sieve = table.sieve, Failing(hash)
    with pytest.raises(MemoryError):
        table.put("a", 2_000_000_000, None)
    assert table.get("a") is None
    table.sieve = sieve
    table.put("a", 2_000_000_000, None)
    assert table.get("a") == 2_000_000_000
    assert table.may_hold("a")
