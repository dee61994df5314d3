"""How old a mirror takes itself to be: never younger than it is, whatever the clocks and the way between say."""

import math
from dataclasses import dataclass

from hypothesis import given, settings, strategies as st

from revocation_client.freshness import Freshness
from tests.scale import scaled

many = settings(max_examples=scaled(300, 20_000), deadline=None)

TINY = 1e-6


@dataclass(frozen=True)
class Beat:
    """A heartbeat: how long after the last it is sent, how far behind its sender is, and how long it is on the way."""

    after: float
    behind: float
    on_the_way: float


beats = st.builds(Beat, st.floats(0, 100), st.floats(0, 20), st.floats(0, 400))


@many
@given(
    distance=st.floats(-1e6, 1e6),
    asked_before=st.floats(0, 10),
    told=st.lists(beats, min_size=1, max_size=12),
    wait=st.floats(0, 100),
)
def test_it_is_never_taken_for_younger_than_it_is(
    distance: float, asked_before: float, told: list[Beat], wait: float
) -> None:
    """Wherever the sender's clock stands, and however late a heartbeat is read: the age is the true one, or more."""
    freshness = Freshness()
    freshness.asked(1000.0)
    sent, now, fresh_at = 1000.0 + asked_before, 0.0, -math.inf
    for beat in told:
        sent += beat.after
        now = max(now, sent + beat.on_the_way)  # in order, as over one connection
        freshness.beat(beat.behind, sent - distance, now)
        fresh_at = max(fresh_at, sent - beat.behind)
        assert freshness.age(now + wait) >= now + wait - fresh_at - TINY


@many
@given(distance=st.floats(-1e6, 1e6), behind=st.floats(0, 3))
def test_on_a_quick_way_it_is_what_the_sender_says(distance: float, behind: float) -> None:
    """With a way of milliseconds the age is the sender's own and the time since, nearly."""
    freshness = Freshness()
    freshness.asked(50.0)
    for second in range(1, 100):
        freshness.beat(behind, 50.001 + second - distance, 50.002 + second)
    assert abs(freshness.age(149.002) - behind) < 1.01, "the first heartbeat came a second after it was asked for"
    assert freshness.age(151.002) - freshness.age(149.002) == 2


def test_a_thawed_process_is_not_fresh_from_what_it_finds_in_its_buffer() -> None:
    """A process frozen for five minutes reads the heartbeats that waited for it: it is as old as they are."""
    freshness = Freshness()
    freshness.asked(0.0)
    for second in range(10):
        freshness.beat(0.0, 5000.0 + second, second + 0.001)
    for second in range(10, 40):
        freshness.beat(0.0, 5000.0 + second, 310.0)
    assert 270.9 < freshness.age(310.0) < 271.1
    freshness.beat(0.0, 5310.0, 310.001)
    assert freshness.age(310.001) < 0.1


def test_a_steady_delay_is_never_forgotten() -> None:
    """What is always four seconds late is four seconds old, after hours too."""
    freshness = Freshness()
    freshness.asked(0.0)
    for second in range(20_000):
        freshness.beat(0.0, float(second), second + 4.0)
    assert freshness.age(20_003.0) >= 4


def test_a_new_stream_has_a_clock_of_its_own() -> None:
    """After another was asked, the first sender's clock means nothing, and what was known does not grow younger."""
    freshness = Freshness()
    assert freshness.age(0.0) == math.inf
    freshness.asked(0.0)
    freshness.beat(0.0, 1_000_000.0, 0.1)
    freshness.asked(20.0)
    assert freshness.age(20.0) == 20
    freshness.beat(1.0, 3.0, 20.1)
    assert abs(freshness.age(20.1) - 1.1) < TINY


def test_what_nobody_knows_makes_nothing_fresh() -> None:
    """A sender that does not know how far behind it is, or claims to be ahead, vouches for nothing more."""
    freshness = Freshness()
    freshness.asked(0.0)
    freshness.beat(math.inf, 0.0, 0.0)
    freshness.beat(math.nan, 0.0, 0.0)
    assert freshness.age(1.0) == math.inf
    freshness.beat(-5.0, 1.0, 1.0)
    assert freshness.age(1.0) >= 0
