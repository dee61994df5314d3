"""A mirror forgets a revocation only after its end has passed by the wall clock and by the monotonic clock."""

import time
from dataclasses import dataclass

import pytest

from revocation_client.claims import CLAIMS
from revocation_client.counters import Counters
from revocation_client.expiry_clock import ExpiryClock, uptime
from revocation_client.local_mirror import LocalMirror
from revocation_client.mirror import SHARDS
from revocation_client.questions import check_request
from revocation_client.results import Verdict
from revocation_client.revocation import Revocation

START = 1_790_000_000.0
HOUR = 3600.0


@dataclass
class Clocks:
    """A wall clock and a monotonic clock, set by hand."""

    wall: float = START
    monotonic: float = 50.0

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.wall += seconds
        self.monotonic += seconds

    def expiry_clock(self) -> ExpiryClock:
        """Return an expiry clock that reads these clocks."""
        return ExpiryClock(lambda: self.wall, lambda: self.monotonic)

    def memory(self) -> LocalMirror:
        """Return a client's mirror that reads these clocks."""
        return LocalMirror(5.0, Counters(), lambda: self.wall, lambda: self.monotonic, expiry_clock=self.expiry_clock())


def check(memory: LocalMirror, **claims: object) -> Verdict:
    """Mark the mirror as current. Return its verdict on a token with these claims."""
    memory.mark_fresh(0.0, complete=True, connected=True)
    verdict = memory.verdict(check_request(claims))
    assert verdict is not None
    return verdict


def sweep(memory: LocalMirror) -> None:
    """Call `expire` often enough to sweep every shard."""
    for _ in range(2 * SHARDS * len(CLAIMS)):
        memory.expire()


def test_it_is_the_wall_clock_while_both_clocks_go_alike() -> None:
    """The expiry clock equals a wall clock that is not ahead, also after that was set back and has caught up."""
    clocks = Clocks()
    clock = clocks.expiry_clock()
    assert clock.now() == START
    clocks.pass_seconds(10)
    assert clock.now() == START + 10
    clocks.wall -= 2
    assert clock.now() == START + 8
    clocks.wall += 2
    assert clock.now() == START + 10


def test_it_does_not_follow_a_wall_clock_that_jumps_ahead() -> None:
    """A jump of the wall clock ahead and back does not move the expiry clock, which counts only the time passed."""
    clocks = Clocks()
    clock = clocks.expiry_clock()
    clocks.wall += HOUR
    clocks.pass_seconds(5)
    assert clock.now() == START + 5
    clocks.wall -= HOUR
    assert clock.now() == START + 5


def test_it_leads_by_a_wall_clock_that_was_ahead_at_the_start_until_that_is_corrected() -> None:
    """If the wall clock is ahead at the start, so is the expiry clock, until the wall clock is corrected."""
    clocks = Clocks(wall=START + HOUR)
    clock = clocks.expiry_clock()
    assert clock.now() == START + HOUR
    clocks.wall = START
    clocks.pass_seconds(5)
    assert clock.now() == START + 5


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this platform has no CLOCK_BOOTTIME")
def test_the_monotonic_clock_counts_suspended_time_where_the_platform_can() -> None:
    """On a platform with CLOCK_BOOTTIME, `uptime` reads it: unlike CLOCK_MONOTONIC, it counts suspended time."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    between = uptime()
    assert before <= between <= time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize(
    "claims", [{"jti": "gone"}, {"jti": "x", "sid": "gone"}, {"jti": "x", "sub": "gone", "iat": 1}]
)
def test_a_wall_clock_that_jumps_an_hour_ahead_and_back_forgets_nothing(claims: dict[str, object]) -> None:
    """Revocations survive a sweep while the wall clock is an hour ahead, and still end at their own time."""
    clocks = Clocks()
    memory = clocks.memory()
    for claim, cutoff in (("jti", None), ("sid", None), ("sub", START)):
        memory.learn(Revocation(claim, "gone", START + 60, None, cutoff))
    clocks.wall += HOUR
    assert check(memory, **claims).revoked
    memory.learn(Revocation("jti", "learned meanwhile", START + 60, None))
    sweep(memory)
    clocks.wall -= HOUR
    assert len(memory.revocations) == 4
    assert check(memory, **claims).revoked
    assert check(memory, jti="learned meanwhile").revoked
    clocks.pass_seconds(61)
    assert not check(memory, **claims).revoked
    clocks.pass_seconds(3)
    sweep(memory)
    assert len(memory.revocations) == 0


def test_a_wall_clock_that_is_put_forward_to_the_right_time_revokes_no_token_that_is_issued_now() -> None:
    """An `iat` is compared with the wall clock. By the expiry clock, an hour behind, it would be in the future."""
    clocks = Clocks(wall=START - HOUR)
    memory = clocks.memory()
    memory.learn(Revocation("sub", "alice", START + 60, None, START - 600))
    clocks.wall = START
    fresh = check(memory, jti="x", sub="alice", iat=START)
    assert (fresh.revoked, fresh.iat_unusable) == (False, False)
    assert check(memory, jti="x", sub="alice", iat=START - 601).revoked
    ahead = check(memory, jti="x", sub="alice", iat=START + 61)
    assert (ahead.revoked, ahead.iat_unusable) == (True, True)
    clocks.pass_seconds(61)
    assert check(memory, jti="x", sub="alice", iat=START - 601).revoked, "held for an hour longer, which does no harm"
    clocks.pass_seconds(HOUR)
    assert not check(memory, jti="x", sub="alice", iat=START - 601).revoked


@pytest.mark.parametrize("counts_suspended_time", [True, False])
def test_a_suspended_machine_forgets_nothing_early(counts_suspended_time: bool) -> None:
    """If the monotonic clock stops during a suspension, revocations last that much longer. None ends early."""
    clocks = Clocks()
    memory = clocks.memory()
    memory.learn(Revocation("jti", "ended", START + 60, None))
    memory.learn(Revocation("jti", "live", START + 2 * HOUR, None))
    clocks.wall += HOUR
    if counts_suspended_time:
        clocks.monotonic += HOUR
    sweep(memory)
    assert check(memory, jti="live").revoked
    assert check(memory, jti="ended").revoked is not counts_suspended_time
    assert len(memory.revocations) == (1 if counts_suspended_time else 2)
    clocks.pass_seconds(HOUR)
    assert check(memory, jti="live").revoked
    assert not check(memory, jti="ended").revoked
