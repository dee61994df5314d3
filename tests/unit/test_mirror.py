"""The mirror, compared with a plain model: a dictionary of merged revocations, searched without an index."""

import math
import random
import threading
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from revocation_client.claims import CLAIMS, ClaimName, Claims
from revocation_client.mirror import SHARDS, SWEPT_ENTRIES, Mirror
from revocation_client.revocation import Revocation, first_covering
from tests.merging import merge
from tests.scale import scaled

many = settings(max_examples=scaled(150, 20_000), deadline=None)

START = 1_790_000_000.0


class Plain:
    """A plain model of the mirror: the live revocations, merged, by claim and value."""

    def __init__(self) -> None:
        self.records: dict[tuple[ClaimName, str], Revocation] = {}

    def add(self, revocation: Revocation, now: float) -> bool:
        """Merge a revocation. Return whether that changed anything."""
        self.expire(now)
        end = revocation.expires_at
        end = None if end is None else float(math.ceil(end))
        revocation = Revocation(revocation.claim, revocation.value, end, None, revocation.issued_before)
        if end is not None and end < now:
            return False
        place = revocation.claim, revocation.value
        held = self.records.get(place)
        self.records[place] = revocation if held is None else merge(held, revocation)
        return self.records[place] != held

    def expire(self, now: float) -> None:
        """Remove ended revocations."""
        self.records = {
            place: each for place, each in self.records.items() if each.expires_at is None or each.expires_at >= now
        }


@dataclass(frozen=True)
class Step:
    """A step of a history: time passes, then a revocation is added or, if it is None, ended ones are removed."""

    passes: float
    revocation: Revocation | None


values = st.sampled_from(["a", "b", "", "é", "sha256:00"])
ends = st.sampled_from([None, 0.0, 1.0, 59.9, 60.0, 60.1, 300.0, 900.0, 1e15]) | st.floats(-10, 1000)
cutoffs = st.none() | st.sampled_from([0.0, 0.5, -100.0, 60.0]) | st.floats(-100, 100)


@st.composite
def revocations(draw: st.DrawFn) -> Revocation:
    """Draw any revocation, with times around START."""
    claim = draw(st.sampled_from([*CLAIMS]))
    end, cutoff = draw(ends), None if claim == "jti" else draw(cutoffs)
    value = "" if claim == "all" else draw(values)
    moved = None if cutoff is None else START + cutoff
    return Revocation(claim, value, None if end is None else START + end, draw(st.none() | st.just(START)), moved)


steps = st.builds(Step, st.sampled_from([0.0, 0.1, 1.0, 61.0, 301.0]) | st.floats(0, 50), st.none() | revocations())
some_value = st.none() | values
iats = st.sampled_from([None, math.nan, math.inf, START, START + 61, START + 1e6]) | st.floats(START - 200, START + 200)
questions = st.builds(
    lambda iat, *identifiers: Claims.of(iat, **dict(zip(CLAIMS, identifiers, strict=True))),
    iats,
    *[some_value] * 4,
    st.none() | st.just(""),
)


@many
@given(history=st.lists(steps, max_size=40), asked=st.lists(questions, min_size=1, max_size=8))
def test_it_answers_as_the_plain_model_does(history: list[Step], asked: list[Claims]) -> None:
    """After every step of any history, the mirror finds and lists the same revocations as the plain model."""
    mirror, plain, now = Mirror(late_seconds=0), Plain(), START
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
        assert {(each.claim, each.value): each for each in mirror.entries(now)} == plain.records


def sweep(mirror: Mirror, now: float) -> None:
    """Call `expire` often enough to sweep every shard."""
    for _ in range(2 * SHARDS * len(CLAIMS)):
        mirror.expire(now)


@pytest.mark.parametrize("claim", ["jti", "sid"])
def test_it_finds_each_of_many_that_come_and_go(claim: ClaimName) -> None:
    """While many revocations are added, end and are swept, exactly the live ones are found."""
    mirror, now, dice = Mirror(), START, random.Random(1)
    ends: dict[str, float] = {}
    for number in range(scaled(12_000, 200_000)):
        now += 0.25
        value = f"v{number}"
        ends[value] = now + dice.choice((10, 200, 900))
        mirror.add(Revocation(claim, value, ends[value], None), now)
        mirror.expire(now)
        if number % 1000 == 999:
            living = {value for value, end in ends.items() if math.ceil(end) >= now}
            for asked in (*ends, *(f"other-{each}" for each in range(1000))):
                assert (mirror.covering(Claims(((claim, asked),)), now) is not None) == (asked in living)
            ends = {value: end for value, end in ends.items() if end >= now - 1000}


@many
@given(added=st.lists(revocations(), max_size=30), seed=st.integers())
def test_order_and_repetition_do_no_harm(added: list[Revocation], seed: int) -> None:
    """The same revocations leave the same mirror, in whatever order and however often they are added."""
    one, other = Mirror(), Mirror()
    for revocation in added:
        one.add(revocation, START)
    again = added * 2
    random.Random(seed).shuffle(again)
    for revocation in again:
        other.add(revocation, START)
    assert sorted(one.entries(START), key=repr) == sorted(other.entries(START), key=repr)


def test_alive_at_decides_which_revocations_have_ended_and_now_whether_an_iat_is_ahead() -> None:
    """`alive_at`, by default `now`, decides whether a revocation has ended; `now` decides whether an `iat` is ahead."""
    mirror, fresh, old = Mirror(), Claims.of(sub="alice", iat=START), Claims.of(sub="alice", iat=START - 601)
    mirror.add(Revocation("sub", "alice", START + 60, None, START - 600), START)
    assert mirror.covering(fresh, START) is None
    assert mirror.covering(fresh, START, lambda: START - 3600) is None
    assert mirror.covering(fresh, START - 3600) is not None
    assert mirror.covering(old, START + 61) is None
    assert mirror.covering(old, START + 61, lambda: START) is not None


def test_a_sweep_is_bounded_and_goes_on_from_where_it_stopped() -> None:
    """Each sweep is bounded, and the next one continues. In the end only prolonged revocations are left."""
    mirror, number_of_entries = Mirror(), 4 * SWEPT_ENTRIES
    for number in range(number_of_entries):
        mirror.add(Revocation("sub", f"v{number}", START + number % 100, None, START), START)
    for number in range(10):
        mirror.add(Revocation("sub", f"v{number}", START + 10_000, None, START), START)
    later = START + 102
    sizes = [len(mirror)]
    for _ in range(5):
        mirror.expire(later)
        sizes.append(len(mirror))
    assert all(before - after <= SWEPT_ENTRIES + 3 * number_of_entries / SHARDS for before, after in pairwise(sizes))
    assert sizes[-1] == 10
    assert all(mirror.covering(Claims.of(sub=f"v{number}"), later) for number in range(10))
    sweep(mirror, START + 10_002)
    assert len(mirror) == 0


def test_a_claim_that_is_added_later_is_swept_too() -> None:
    """Revocations of a claim that was first added between two sweeps are swept, too."""
    mirror = Mirror()
    mirror.add(Revocation("jti", "a", START, None), START)
    mirror.expire(START)
    mirror.add(Revocation("sid", "b", START, None), START)
    sweep(mirror, START + 2)
    assert len(mirror) == 0


def test_late_seconds_keeps_and_accepts_what_ended_a_moment_ago() -> None:
    """A revocation is kept and accepted for `late_seconds` after its end. During that time it covers no token."""
    mirror = Mirror(late_seconds=60)
    assert mirror.add(Revocation("jti", "a", START, None), START + 59)
    assert not mirror.add(Revocation("jti", "b", START, None), START + 61)
    sweep(mirror, START + 60)
    assert mirror.covering(Claims.of(jti="a"), START + 1) is None
    assert [each.value for each in mirror.entries(START)] == ["a"]
    sweep(mirror, START + 61)
    assert len(mirror) == 0


def test_a_subject_that_is_revoked_again_and_again_is_one_entry() -> None:
    """A subject that is revoked 10,000 times has one entry, with the latest end and cutoff."""
    mirror = Mirror()
    for second in range(10_000):
        mirror.add(Revocation("sub", "alice", START + 1e6 + second, None, START + second), START + second)
    assert len(mirror) == 1
    assert mirror.held("sub", "alice", START) == Revocation("sub", "alice", START + 1_009_999, None, START + 9999)


def test_what_has_no_expiry_never_ends() -> None:
    """A foreign writer's record without an expiry, or with an absurd one, covers forever."""
    mirror = Mirror()
    mirror.add(Revocation("jti", "a", None, None), START)
    mirror.add(Revocation("jti", "b", 1e300, None), START)
    sweep(mirror, START + 1e12)
    found = [mirror.covering(Claims.of(jti=value), START + 1e12) for value in "ab"]
    assert [each and each.expires_at for each in found] == [None, 1e300]


def test_a_thread_that_looks_up_a_subject_while_it_is_revoked_never_sees_it_without_its_cutoff() -> None:
    """A look-up in another thread never sees an entry without its cutoff, so it revokes no later token."""
    mirror, done = Mirror(), threading.Event()
    later = Claims.of(sub="alice", iat=START + 50)
    found: list[Revocation | None] = []

    def look() -> None:
        while not done.is_set():
            found.append(mirror.covering(later, START + 100))

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(20_000):
        mirror.add(Revocation("sub", "alice", START + 1000 + number, None, START + number / 1000), START)
    done.set()
    thread.join()
    assert found
    assert set(found) == {None}
