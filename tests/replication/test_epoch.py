"""The decisions of one worker, without Redis: what it reports of itself, and what it tells its tasks to do."""

import math
from dataclasses import replace
from typing import Final

from revocation_service.replication.epoch import Heartbeat, Key, SyncState
from revocation_service.store.cursor import Cursor

END: Final = Cursor(1_700_000_000_000, 3, "9f")
FIRST: Final = Heartbeat(1.0, 1.1, "E1", frozenset(), END, None, there=False)
SECOND: Final = Heartbeat(2.0, 2.1, "E1", frozenset(), END, END, there=True)


def complete() -> SyncState:
    """Return the state of a worker that was in sync at 2.0."""
    state = SyncState(5.0)
    state.heard(FIRST)
    state.scan_began()
    state.scan_ended(1.5)
    state.heard(SECOND)
    return state


def test_a_cursor_survives_as_text() -> None:
    """A cursor survives as the text in which heartbeats carry it, and is compared by its id."""
    assert str(END) == "1700000000000-3.9f"
    assert Cursor.parse(str(END)) == END
    assert END.reaches(END._replace(sequence=2, nonce="ff"))
    assert not END.reaches(END._replace(milliseconds=END.milliseconds + 1, sequence=0))


def test_the_reason_for_readyz() -> None:
    """A worker gives each of the four reasons when it applies, and none when it is complete and in sync."""
    state = SyncState(5.0)
    assert state.reason(0.0) == "no_heartbeat"
    state.heard(replace(FIRST, pending=frozenset({"E0"})))
    assert state.reason(1.2) == "store_in_doubt"
    state.heard(FIRST)
    assert state.reason(1.2) == "joining"
    state = complete()
    assert state.reason(6.9) is None
    state.heard(replace(SECOND, began_at=4.0, end=END._replace(sequence=4)))
    assert state.reason(7.1) == "mirror_stale"
    assert state.reason(9.1) == "no_heartbeat"


def test_staleness_counts_from_the_heartbeat_that_proved_it() -> None:
    """Staleness counts from the start of the heartbeat that proved the mirror in sync; without one it is infinite."""
    assert complete().staleness(3.5) == 1.5
    state = SyncState(5.0)
    state.heard(FIRST)
    assert state.staleness(1.5) == math.inf


def test_a_snapshot_is_served_only_of_what_is_whole() -> None:
    """A snapshot is served only by a complete worker, while nothing is pending that it did not witness."""
    state = SyncState(5.0)
    state.heard(FIRST)
    assert not state.feeds()
    state = complete()
    assert state.feeds()
    state.heard(replace(SECOND, pending=frozenset({"E0"})))
    assert not state.feeds()
    state.heard(replace(SECOND, pending=frozenset({"E1"})))
    assert state.feeds()


def test_the_newest_is_restored_first() -> None:
    """Recent revocations come newest first; one that is learned again becomes the newest."""
    state = complete()
    keys: list[Key] = [("jti", each) for each in "abc"]
    for key in (*keys, keys[0]):
        state.learned(key, 3.0, by="log")
    assert list(state.recent()) == [keys[0], keys[2], keys[1]]


def test_what_may_be_missing_is_scanned_again_and_proves_nothing_before() -> None:
    """When the mirror may lack records, a scan is due, and a heartbeat that waited for the tail proves nothing."""
    state, end = complete(), END._replace(sequence=4)
    state.heard(replace(SECOND, began_at=4.0, end=end))
    state.scan_again()
    state.reached(end)
    assert state.scan_due()
    assert state.staleness(4.5) == 2.5


def test_a_full_redis_with_an_empty_log_is_not_scanned() -> None:
    """No scan is due while the log has no entry from which the tail could follow."""
    state = SyncState(5.0)
    state.heard(replace(FIRST, end=None))
    assert not state.scan_due()


def test_a_mirror_that_never_decides_leaves_heartbeats_their_time() -> None:
    """With a staleness limit of 0 the mirror never decides, but reads of Redis are trusted between two heartbeats."""
    state = SyncState(0)
    state.heard(Heartbeat(0.0, 0.1, "E", frozenset(), None, None, there=False))
    assert state.believes(1.9)
    assert not state.believes(2.1)
    assert not state.mirror_decides(0.1)
