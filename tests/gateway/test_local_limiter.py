"""The windows that a gateway keeps in memory are exact, sliding and bounded."""

from revocation_service.gateway.local_limiter import LocalLimiter
from revocation_service.store.windows import Window


def admitted(limiter: LocalLimiter, now: float, counted: str = "a", limit: int = 5) -> bool:
    return limiter.hit(Window(counted, limit, 60), now).admitted


def test_five_in_any_window_and_no_burst_of_ten_across_a_boundary() -> None:
    """Five attempts at the end of a minute leave no room in the next, until they leave the window one by one."""
    limiter = LocalLimiter()
    assert [admitted(limiter, 59.0 + n / 10) for n in range(6)] == [True] * 5 + [False]
    assert not any(admitted(limiter, now) for now in (60, 61, 90, 118.9))
    assert [admitted(limiter, 119.15) for _ in range(3)] == [True, True, False]


def test_an_attempt_is_told_what_remains_and_when_there_is_room() -> None:
    """The result has the attempts that remain, and the time until the oldest attempt leaves the window."""
    limiter = LocalLimiter()
    results = [limiter.hit(Window("a", 5, 60), 100.0 + n) for n in range(6)]
    assert [result.remaining for result in results] == [4, 3, 2, 1, 0, 0]
    assert [result.frees_in for result in results] == [60, 59, 58, 57, 56, 55]
    assert not admitted(limiter, 159.99)
    assert admitted(limiter, 160.0)


def test_an_attempt_counts_from_its_arrival() -> None:
    """An attempt leaves the window 60 s after its arrival, even if it was decided late or out of order."""
    limiter = LocalLimiter()
    for arrived in (10.0, 12.0, 11.0):
        assert limiter.hit(Window("a", 3, 60), 12.0, arrived).admitted
    assert [admitted(limiter, now, limit=3) for now in (69.9, 70.0, 70.9, 71.0, 71.9, 72.0)] == [False, True] * 3


def test_too_many_windows_make_the_silent_ones_forgotten() -> None:
    """With too many windows, a silent one is forgotten, and one that is still being denied is kept."""
    limiter = LocalLimiter(most_windows=50)
    for _ in range(5):
        admitted(limiter, 0.0, "guesser")
        admitted(limiter, 0.0, "silent")
    for number in range(500):
        assert not admitted(limiter, 1.0, "guesser")
        admitted(limiter, 1.0, f"address {number}")
    assert admitted(limiter, 1.0, "silent")


def test_too_many_attempts_make_the_silent_windows_forgotten() -> None:
    """With too many attempts in memory, a silent window is forgotten. Attempts that left a window take no room."""
    limiter = LocalLimiter(most_attempts=100)
    for number in range(1_000):
        admitted(limiter, 61.0 * number, "busy")
    for _ in range(5):
        admitted(limiter, 61_000.0, "silent")
    for _ in range(90):
        assert admitted(limiter, 61_000.0, "busy", limit=1_000)
    assert not admitted(limiter, 61_000.0, "silent")
    for _ in range(96):
        assert admitted(limiter, 61_000.0, "other", limit=1_000)
    assert admitted(limiter, 61_000.0, "silent")
