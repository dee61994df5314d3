"""The sieve against a plain set: what is held always passes, little else does, and no step is a long one."""

import random
import sys
import threading
from collections.abc import Collection, Hashable, Iterator

import pytest
from hypothesis import given, settings, strategies as st

from revocation_client.sieve import FEWEST_BYTES, SHARD_BITS, SHARDS, Sieve
from tests.scale import scaled

many = settings(max_examples=scaled(100, 10_000), deadline=None)


class Part(Collection[Hashable]):
    """The hashes of one part, which counts how many of them were looked at."""

    def __init__(self) -> None:
        self.hashes: set[int] = set()
        self.looked_at = 0

    def __iter__(self) -> Iterator[int]:
        for each in self.hashes:
            self.looked_at += 1
            yield each

    def __len__(self) -> int:
        return len(self.hashes)

    def __contains__(self, hashed: object) -> bool:
        return hashed in self.hashes


class Holder:
    """A sieve, and what is held, as a table has both."""

    def __init__(self) -> None:
        self.sieve = Sieve(int)
        self.parts = [Part() for _ in range(SHARDS)]
        self.most_at_once = 0

    def add(self, hashed: int) -> None:
        """Hold one that is not held."""
        part = self.parts[hashed & SHARD_BITS]
        before = part.looked_at
        part.hashes.add(hashed)
        self.sieve.add(hashed, part)
        self.most_at_once = max(self.most_at_once, part.looked_at - before)

    def remove(self, hashed: int) -> None:
        """Hold one less, of which the sieve is not told."""
        self.parts[hashed & SHARD_BITS].hashes.remove(hashed)

    @property
    def looked_at(self) -> int:
        """How many were looked at in all."""
        return sum(part.looked_at for part in self.parts)

    @property
    def size(self) -> int:
        """The bytes that the sieve takes."""
        return len(self.sieve.slots)

    def passing(self, dice: random.Random) -> float:
        """Which share of what is not held the sieve lets through."""
        asked = [hash(str(dice.random())) for _ in range(10_000)]
        return sum(map(self.sieve.lets_through, asked)) / len(asked)


def hashes(dice: random.Random, number: int) -> list[int]:
    """Hashes as Python makes them of texts: 64 bits with a sign, of which an int's own hash would keep 61."""
    return [dice.getrandbits(64) - (1 << 63) for _ in range(number)]


@many
@given(seed=st.integers(), steps=st.lists(st.integers(-1500, 1500), max_size=8))
def test_what_is_held_passes(seed: int, steps: list[int]) -> None:
    """However many came and went before, in one part or in all, there is nothing held that it denies."""
    dice, holder, held = random.Random(seed), Holder(), set[int]()
    for step in steps:
        if step < 0:
            for gone in dice.sample(sorted(held), min(-step, len(held))):
                held.remove(gone)
                holder.remove(gone)
        lopsided = step % 2  # all into one part
        for hashed in hashes(dice, max(step, 0)):
            new = hashed & ~SHARD_BITS if lopsided else hashed
            if new not in held:
                held.add(new)
                holder.add(new)
        assert all(map(holder.sieve.lets_through, held))


@pytest.mark.parametrize("number", [10, 1_000, 3_000, 50_000])
def test_little_else_passes(number: int) -> None:
    """At no size does it let more than a fiftieth of what is not held through."""
    dice, holder = random.Random(1), Holder()
    for hashed in hashes(dice, number):
        holder.add(hashed)
    assert holder.passing(dice) < 0.02
    assert holder.size <= max(16 * number, SHARDS * FEWEST_BYTES) * 1.5, "parts are not all of one size"


def test_it_does_not_fill_up() -> None:
    """Where as many come as go, for a hundred lifetimes, it grows no larger, and passes no more than at first."""
    dice, holder = random.Random(2), Holder()
    held = hashes(dice, 4_000)
    for hashed in held:
        holder.add(hashed)
    before = holder.size
    for number, hashed in enumerate(hashes(dice, scaled(400_000, 4_000_000))):
        holder.remove(held[number % 4_000])
        held[number % 4_000] = hashed
        holder.add(hashed)
    assert holder.passing(dice) < 0.02
    assert holder.size <= 2 * before
    assert all(map(holder.sieve.lets_through, held))


def test_no_step_is_a_long_one() -> None:
    """One addition looks through its own part at most, and all together at few for each that was added."""
    dice, holder = random.Random(3), Holder()
    number = scaled(100_000, 1_000_000)
    for hashed in hashes(dice, number):
        holder.add(hashed)
    assert 0 < holder.most_at_once <= max(map(len, holder.parts)) < 2 * number / SHARDS
    assert holder.looked_at < 4 * number


def test_another_thread_may_ask_while_it_grows() -> None:
    """What was held before a question passes it, wherever the other thread is within a step."""
    dice, holder, ended, denied = random.Random(4), Holder(), threading.Event(), list[int]()
    held = hashes(dice, 100)
    for hashed in held:
        holder.add(hashed)

    def ask() -> None:
        while not ended.is_set():
            denied.extend(each for each in held if not holder.sieve.lets_through(each))

    asking, interval = threading.Thread(target=ask), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        asking.start()
        for hashed in hashes(dice, 30_000):
            holder.add(hashed)
    finally:
        ended.set()
        asking.join()
        sys.setswitchinterval(interval)
    assert not denied
