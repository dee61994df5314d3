"""The windows that a gateway keeps in memory: exact, sliding, bounded, and in step with what Redis said."""

import itertools

from revocation_service.gateway.own_windows import OwnWindows
from revocation_service.store.windows import Attempt, Tally

_ids = itertools.count()


def attempt(counted: str = "a", *, limit: int = 5, seconds: float = 60) -> Attempt:
    return Attempt(counted, limit, seconds, str(next(_ids)))


def admitted(windows: OwnWindows, now: float, counted: str = "a", **options: float) -> bool:
    return windows.hit(attempt(counted, **options), now, 0).admitted  # type: ignore[arg-type]


def test_five_in_any_window_and_no_burst_of_ten_across_a_boundary() -> None:
    """Five at the end of one minute leave no room at the beginning of the next; places come back one by one."""
    windows = OwnWindows()
    assert [admitted(windows, 59.0 + n / 10) for n in range(6)] == [True] * 5 + [False]
    assert not any(admitted(windows, now) for now in (60, 61, 90, 118.9))
    assert [admitted(windows, 119.15) for _ in range(3)] == [True, True, False]


def test_an_attempt_is_told_what_remains_and_when_there_is_room() -> None:
    """Remaining counts down to 0, and a denied attempt is told when the oldest leaves."""
    windows = OwnWindows()
    tallies = [windows.hit(attempt(), 100.0 + n, 1_000.0) for n in range(6)]
    assert [tally.remaining for tally in tallies] == [4, 3, 2, 1, 0, 0]
    assert [tally.frees_in for tally in tallies] == [60, 59, 58, 57, 56, 55]
    assert {tally.now for tally in tallies} == {1_000.0}
    assert not windows.hit(attempt(), 159.99, 0).admitted
    assert windows.hit(attempt(), 160.0, 0).admitted


def test_memory_is_bounded_and_what_counts_no_more_is_forgotten() -> None:
    """However many addresses and attempts there are, only so many are held; the least recent goes first."""
    windows = OwnWindows(most_windows=100, most_attempts=300)
    for number in range(1_000):
        admitted(windows, 1.0, f"address {number}")
    assert windows.held == (100, 100)
    for _ in range(5):
        admitted(windows, 2.0, "address 999")
    assert not admitted(windows, 3.0, "address 999")
    for number in range(1_000):
        admitted(windows, 4.0, f"many {number % 20}", limit=1_000)
        assert windows.held[1] <= 300
    windows = OwnWindows()
    for number in range(1_000):
        admitted(windows, 1.0, f"address {number}")
    admitted(windows, 62.0, "another")
    assert windows.held == (1, 1)


def test_who_keeps_asking_is_not_forgotten() -> None:
    """A stranger's many addresses push out those who are silent, not the one who is being denied."""
    windows = OwnWindows(most_windows=50)
    for _ in range(5):
        admitted(windows, 0.0, "guesser")
    for number in range(500):
        assert not admitted(windows, 1.0, "guesser")
        admitted(windows, 1.0, f"address {number}")


def test_what_redis_admits_is_admitted_in_normal_times() -> None:
    """A gateway that has no other history than Redis denies nothing that Redis admits, nor changes what it says."""
    windows = OwnWindows()
    for number in range(50):
        now = 12.0 * number + 0.003
        answer = Tally(True, 0, 12.0, 5.0)
        assert windows.agree(attempt(), now, answer) is answer


def test_what_was_admitted_without_redis_still_counts_when_it_is_back() -> None:
    """Redis knows nothing of an outage's attempts; the gateway that admitted them still enforces its own window."""
    windows = OwnWindows()
    assert [admitted(windows, 10.0 + n) for n in range(3)] == [True] * 3
    tallies = [windows.agree(attempt(), 20.0 + n, Tally(True, 4 - n, 60, 5.0)) for n in range(3)]
    assert [(tally.admitted, tally.remaining) for tally in tallies] == [(True, 1), (True, 0), (False, 0)]
    assert tallies[2].frees_in == 48
    assert windows.agree(attempt(), 70.5, Tally(True, 4, 60, 5.0)).admitted


def test_what_redis_denied_stays_denied_without_it() -> None:
    """An address that Redis said is full has no fresh five when Redis goes away a moment later."""
    windows = OwnWindows()
    assert not windows.agree(attempt(), 10.0, Tally(False, 0, 30.0, 5.0)).admitted
    denied = windows.hit(attempt(), 11.0, 0)
    assert (denied.admitted, denied.remaining, denied.frees_in) == (False, 0, 29)
    assert windows.hit(attempt(), 40.1, 0).admitted


def test_what_redis_admitted_counts_without_it() -> None:
    """An address that had three of its five through Redis has two more when Redis goes away."""
    windows = OwnWindows()
    for number in range(3):
        windows.agree(attempt(), float(number), Tally(True, 4 - number, 60, 5.0))
    assert [admitted(windows, 5.0) for _ in range(3)] == [True, True, False]


def test_what_is_given_back_counts_no_more() -> None:
    """A place that is given back is free, once."""
    windows = OwnWindows()
    attempts = [attempt() for _ in range(5)]
    for each in attempts:
        windows.hit(each, 0.0, 0)
    windows.give_back(attempts[1])
    windows.give_back(attempts[1])
    windows.give_back(attempt("unknown"))
    assert [admitted(windows, 1.0) for _ in range(2)] == [True, False]
    assert windows.held == (1, 5)
