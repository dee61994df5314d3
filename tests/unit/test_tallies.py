"""What is held back for a moment is told in full, and told as prometheus_client itself would have counted it."""

from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from revocation_service.tallies import TalliedCounter, TalliedHistogram
from revocation_service.telemetry import Metrics

BOUNDS = (0.25, 1.0, 4.0)
AMOUNTS = st.one_of(st.sampled_from(BOUNDS), st.integers(min_value=0, max_value=1 << 13).map(lambda n: n / 1024))
"""Bounds themselves, and amounts whose sums are exact in any order."""


def told(registry: CollectorRegistry) -> list[str]:
    """All samples but the moments in which they were made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.lists(st.tuples(st.sampled_from(["a", "b"]), AMOUNTS))))
def test_a_histogram_tells_what_the_usual_one_tells(between_looks: list[list[tuple[str, float]]]) -> None:
    """At every look, whatever was observed since the last, amounts that equal a bound included."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallied = TalliedHistogram("seconds", "Some", ["of"], registry=ours, buckets=BOUNDS)
    usual = Histogram("seconds", "Some", ["of"], registry=theirs, buckets=BOUNDS)
    for observed in between_looks:
        for label, amount in observed:
            tallied.labels(label).observe(amount)
            usual.labels(label).observe(amount)
        assert told(ours) == told(theirs)


@given(st.lists(st.lists(st.sampled_from(["a", "b"]))))
def test_a_counter_tells_what_the_usual_one_tells(between_looks: list[list[str]]) -> None:
    """At every look."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallied, usual = (
        TalliedCounter("asked", "Some", ["by"], registry=ours),
        Counter("asked", "Some", ["by"], registry=theirs),
    )
    for counted in between_looks:
        for label in counted:
            tallied.labels(label).inc()
            usual.labels(label).inc()
        assert told(ours) == told(theirs)


def test_workers_that_share_their_metrics_hold_nothing_back() -> None:
    """What one of them has counted is in the file that the others read."""
    alone, shared = Metrics(), Metrics(several_workers=True)
    assert isinstance(alone.requests, TalliedHistogram)
    assert isinstance(alone.checks, TalliedCounter)
    assert type(shared.requests) is Histogram
    assert type(shared.checks) is Counter
