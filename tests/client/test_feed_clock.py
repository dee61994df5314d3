"""The estimate of when a heartbeat was sent is never too late, whatever the clocks and the network do."""

from dataclasses import dataclass

from hypothesis import given, settings, strategies as st

from revocation_client.follower import SenderClock
from tests.scale import scaled

many = settings(max_examples=scaled(300, 20_000), deadline=None)

TINY = 1e-6


@dataclass(frozen=True)
class Beat:
    """A heartbeat: seconds from the last one until it is sent, and from then until it is read."""

    after: float
    underway: float


beats = st.builds(Beat, st.floats(0, 100), st.floats(0, 400))


@many
@given(distance=st.floats(-1e6, 1e6), asked_before=st.floats(0, 10), told=st.lists(beats, min_size=1, max_size=12))
def test_a_heartbeat_never_counts_as_sent_later_than_it_was(
    distance: float, asked_before: float, told: list[Beat]
) -> None:
    """The estimate is not too late, whatever the sender's clock shows and however late heartbeats are read."""
    sender = SenderClock(1000.0)
    sent, now = 1000.0 + asked_before, 0.0
    for beat in told:
        sent += beat.after
        now = max(now, sent + beat.underway)  # in order, as over one connection
        assert sender.to_local(sent - distance, now) <= sent + TINY


@many
@given(distance=st.floats(-1e6, 1e6))
def test_on_a_quick_network_it_counts_as_sent_when_it_was(distance: float) -> None:
    """On a fast network, the estimate is early by at most the time from the stream's request to its first heartbeat."""
    sender = SenderClock(50.0)
    for second in range(1, 100):
        sent = 50.001 + second
        assert sent - 1.01 < sender.to_local(sent - distance, sent + 0.001) <= sent + TINY


def test_a_process_that_was_frozen_finds_old_heartbeats_in_its_buffer() -> None:
    """Heartbeats that waited while the process was frozen for five minutes count as sent when they were sent."""
    sender = SenderClock(0.0)
    for second in range(10):
        sender.to_local(5000.0 + second, second + 0.001)
    for second in range(10, 40):
        assert abs(sender.to_local(5000.0 + second, 310.0) - second) < 0.1
    assert abs(sender.to_local(5310.0, 310.001) - 310) < 0.1


def test_a_steady_delay_is_never_forgotten() -> None:
    """If every heartbeat is read four seconds late, each counts as at least four seconds old, even after hours."""
    sender = SenderClock(0.0)
    for second in range(20_000):
        sent = sender.to_local(float(second), second + 4.0)
    assert sent <= 19_999
