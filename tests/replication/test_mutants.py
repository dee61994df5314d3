"""Mutation tests: without any one of the rules a story fails, and without some of them a random world fails."""

from collections.abc import Callable
from typing import Final

import pytest

from revocation_service.replication.epoch import SyncState
from tests.replication import mutants, test_stories as stories
from tests.replication.hosts import Parts
from tests.replication.random_world import RandomWorld
from tests.replication.twin import Twin
from tests.replication.worker import Worker
from tests.replication.world import BrokenPromise

Mutant = type[SyncState] | type[Worker] | type[Twin]
Story = Callable[[int, Parts], None]

SEEDS: Final = range(4)

STORIES: Final[dict[Mutant, Story]] = {
    mutants.AcknowledgesFirst: stories.test_acknowledged_then_lost,
    mutants.AcceptsBeforeItsFirstHeartbeat: stories.test_written_before_the_first_heartbeat,
    mutants.LogsNoRestore: stories.test_suffix_lost,
    mutants.KnowsNoLife: stories.test_older_copy,
    mutants.GivesNoGrace: stories.test_newcomer_with_slow_heartbeats,
    mutants.MarksNothing: stories.test_late_holder,
    mutants.DropsNoMark: stories.test_pending_ends,
    mutants.LeavesTheLogEmpty: stories.test_log_starts,
    mutants.CountsAnyHeartbeat: stories.test_old_master,
    mutants.TakesItselfForCompleteForEver: stories.test_long_cut,
    mutants.KeepsWhatItWitnessed: stories.test_long_cut,
    mutants.MeasuresFromTheBeginning: stories.test_long_cut,
    mutants.NeverWitnesses: stories.test_one_in_sync_goes_on,
    mutants.RestoresNothing: stories.test_old_records,
    mutants.AcknowledgesAWriteOfAnotherEpoch: stories.test_put_straddles,
    mutants.CountsARestoreOfAnotherEpoch: stories.test_restore_straddles,
    mutants.CountsAReadOfAnotherEpoch: stories.test_read_late,
    mutants.CountsAScanOfAnotherEpoch: stories.test_slice_late,
    mutants.RestoresTheRecentInTurn: stories.test_recent_waits_for_no_turn,
    mutants.RestoresTheRecentOnly: stories.test_old_records,
    mutants.LetsGoOfTheRecentAtAnyHeartbeat: stories.test_slept,
    mutants.TakesNoScanForRecent: stories.test_scanned_last,
    mutants.HidesThatItRestores: stories.test_slow_restore,
    mutants.SettlesWithAnEarlierHeartbeat: stories.test_restored_then_lost,
    mutants.ReadsOnWithoutItsEntry: stories.test_trimmed,
    mutants.ScansBeforeItFollows: stories.test_written_behind_the_scan,
    mutants.ScansWhilePending: stories.test_scanned_once,
    mutants.ComparesIdsAlone: stories.test_stuck_tail,
    mutants.ProvesByAHeartbeatWithinTheScan: stories.test_lost_in_scan,
    mutants.ProvesWhilePending: stories.test_late_memory,
    mutants.ProvesWithoutTheTail: stories.test_unread_end,
    mutants.ProvesWithTheNewestHeartbeatOnly: stories.test_steady_writes,
    mutants.BelievesAnOldHeartbeat: stories.test_old_master,
    mutants.IgnoresWhatIsPending: stories.test_late_holder_twice,
    mutants.LooksAtWhatIsPendingLate: stories.test_asked_while_pending,
    mutants.BelievesItsMirrorForEver: stories.test_silent_redis,
    mutants.BelievesItsMirrorWhileJoining: stories.test_joining_without_redis,
    mutants.IgnoresAJumpOfTheClock: stories.test_clock_jumped,
    mutants.NeverRescans: stories.test_evicted,
    mutants.RescansWithoutTellingOthers: stories.test_foreign_writer,
}

RANDOM: Final[dict[Mutant, range]] = {
    mutants.IgnoresWhatIsPending: range(20),
    mutants.HidesThatItRestores: range(25),
    mutants.RestoresNothing: range(20),
    mutants.RestoresTheRecentInTurn: range(20),
    mutants.RestoresTheRecentOnly: range(20),
    mutants.KnowsNoLife: range(20),
    mutants.MarksNothing: range(25),
    mutants.DropsNoMark: range(20),
    mutants.BelievesItsMirrorWhileJoining: range(25),
    mutants.BelievesItsMirrorForEver: range(60, 80),
    mutants.ReadsOnWithoutItsEntry: range(305, 325),
}
"""For each mutant that a random search finds soon: a range of seeds, at least one of which fails."""


def with_mutant(mutant: Mutant) -> Parts:
    """Return the parts of a world, with this mutant in place of its base class."""
    if issubclass(mutant, SyncState):
        return Parts(state=mutant)
    return Parts(worker=mutant) if issubclass(mutant, Worker) else Parts(twin=mutant)


def for_each(seeds: range, run: Callable[[int], None]) -> None:
    """Call `run` with one seed after another, until it raises."""
    for seed in seeds:
        run(seed)


@pytest.mark.parametrize(("mutant", "story"), STORIES.items(), ids=[mutant.__name__ for mutant in STORIES])
def test_a_story_fails_without_the_rule(mutant: Mutant, story: Story) -> None:
    """A mutant makes the story that guards its rule fail, for at least one of a few seeds."""
    with pytest.raises(AssertionError):
        for_each(SEEDS, lambda seed: story(seed, with_mutant(mutant)))


@pytest.mark.parametrize(("mutant", "seeds"), RANDOM.items(), ids=[mutant.__name__ for mutant in RANDOM])
def test_a_random_world_fails_without_the_rule(mutant: Mutant, seeds: range) -> None:
    """A mutant makes a random world break a promise, for at least one of its seeds."""
    with pytest.raises(BrokenPromise):
        for_each(seeds, lambda seed: RandomWorld(seed, with_mutant(mutant)).play())


def test_every_mutant_and_every_story_is_in_the_table() -> None:
    """Every mutant has a story, and every story except `test_private_redis` has a mutant."""
    named = {each for each in vars(mutants).values() if getattr(each, "__module__", "") == mutants.__name__}
    assert named == set(STORIES)
    told = {name: each for name, each in vars(stories).items() if name.startswith("test_")}
    assert {name for name, each in told.items() if each not in STORIES.values()} == {"test_private_redis"}
