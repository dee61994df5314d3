"""Stories: scripted cases that a random search meets too seldom. A story fails if a promise of the protocol breaks.

Times are shorter than in the service: rule 5 looks back 6 s instead of 60, and rule 7 looks back 7.5 s instead of 90.
"""

from collections.abc import Callable
from typing import Final

import pytest

from revocation_client.revocation import Revocation
from revocation_service.replication.epoch import Heartbeat
from revocation_service.store.cursor import Cursor
from tests.replication.hosts import EPOCH_SECONDS, FAR, Host, Parts
from tests.replication.twin import Twin
from tests.replication.worker import RESTORE_BATCHES, SCAN_SLICES
from tests.replication.world import World
from tests.scale import scaled

OLD_SECONDS: Final = 10.0
"""After this time no revocation is recent, and a worker that was cut off is joining in a new epoch."""

Story = Callable[[int, Parts], None]

pytestmark = pytest.mark.parametrize("seed", range(scaled(4, 100)))


@pytest.fixture
def parts() -> Parts:
    """The parts of a world without a mutant."""
    return Parts()


def started(seed: int, parts: Parts, workers: int = 1, records: int = 0, log_max: int = 1_000_000) -> World:
    """Return a world in which all workers are complete, and the first one has made this many revocations long ago."""
    world = World(seed, workers, parts, log_max=log_max)
    world.ready()
    for _ in range(records):
        world.revoke(world.hosts[0])
    world.run(OLD_SECONDS if records else 1)
    return world


def enter(host: Host) -> None:
    """Run the heartbeats of a worker, and nothing else, until one shows another epoch."""
    epoch = host.state.epoch
    while host.state.epoch == epoch:
        host.exchange(host.heartbeats)


# Writes


def test_acknowledged_then_lost(seed: int, parts: Parts) -> None:
    """A worker writes back a revocation that Redis loses as soon as it is acknowledged."""
    world = started(seed, parts)
    world.revoke(world.hosts[0])
    world.lose(None, restarted=False)
    world.join()
    world.settle()


def test_written_before_the_first_heartbeat(seed: int, parts: Parts) -> None:
    """A worker that knows no epoch yet accepts no revocation, because it would not know that it has to restore it."""
    world = started(seed, parts)
    newcomer = world.join()
    newcomer.heartbeats.paused = True
    world.request(newcomer)
    world.kill(world.hosts[0])
    world.run(2)
    newcomer.heartbeats.paused = False
    world.lose(None, restarted=False)
    world.settle()


def test_put_straddles(seed: int, parts: Parts) -> None:
    """A write is repeated if Redis loses it, and everything else is restored before its reply is handled."""
    world = started(seed, parts)
    (worker,) = world.hosts
    world.request(worker)
    (request,) = worker.requests
    worker.send(request)
    world.lose(None, restarted=False)
    enter(worker)
    while worker.state.restore_due():
        worker.exchange(worker.repair)
    worker.receive(request)
    world.settle()


# Which workers go on, and which do not


def test_one_in_sync_goes_on(seed: int, parts: Parts) -> None:
    """A worker that was in sync when Redis lost everything answers without a break."""
    world = started(seed, parts, workers=2, records=5)
    world.lose(None, restarted=False)
    for _ in range(80):
        world.run_tick()
        if not all(host.state.complete and host.state.believes(world.now()) for host in world.hosts):
            raise world.broken("a worker that was in sync answers 503")
    world.settle()


def test_long_cut(seed: int, parts: Parts) -> None:
    """A worker that was cut off for long is not complete in a new epoch, even if it is back just when that begins."""
    world = started(seed, parts, workers=2)
    writer, other = world.hosts
    world.cut(other)
    for _ in range(14):
        world.revoke(writer)
        world.run(1)
    world.run(OLD_SECONDS)
    world.lose(None, restarted=False)
    world.back(other)
    world.run(15)
    world.settle()


def test_late_holder(seed: int, parts: Parts) -> None:
    """If the only holder of lost revocations is frozen at the loss, workers that joined wait while it restores them."""
    world = started(seed, parts, records=10)
    (holder,) = world.hosts
    world.freeze(holder)
    world.lose(None, restarted=False)
    world.join()
    world.join()
    world.run(15)
    world.back(holder)
    world.run(20)
    world.settle()


def test_late_holder_twice(seed: int, parts: Parts) -> None:
    """Workers that joined also wait while a holder that was frozen over two losses restores."""
    world = started(seed, parts, records=10)
    (holder,) = world.hosts
    world.freeze(holder)
    world.lose(None, restarted=False)
    world.join()
    world.join()
    world.run(15)
    world.lose(None, restarted=False)
    world.run(10)
    world.back(holder)
    world.run(20)
    world.settle()


def test_newcomer_with_slow_heartbeats(seed: int, parts: Parts) -> None:
    """If a newcomer sends the first heartbeat after a loss, the grace gives other workers time to report."""
    world = started(seed, parts, records=5)
    holder = world.hosts[0]
    world.occupy_turn(8)
    holder.heartbeats.paused = True
    world.lose(None, restarted=False)
    world.occupy_turn(8)
    newcomer = world.join()
    newcomer.exchange(newcomer.heartbeats)
    newcomer.heartbeats.paused, holder.heartbeats.paused = True, False
    world.run(4)
    newcomer.heartbeats.paused = False
    world.settle()


def test_older_copy(seed: int, parts: Parts) -> None:
    """If Redis restarts with an older copy of all its data, the workers restore what the copy lacks."""
    world = started(seed, parts, workers=2, records=2)
    older = world.master.data.copy()
    for _ in range(3):
        world.revoke(world.hosts[0])
    world.run(OLD_SECONDS)
    world.lose(older, restarted=True)
    world.settle()


def test_old_master(seed: int, parts: Parts) -> None:
    """A worker that stays with a former master stops trusting it, although the master still answers heartbeats."""
    world = started(seed, parts, workers=2)
    writer = world.hosts[0]
    world.fail_over(world.master.data)
    writer.move()
    world.run(2.5)
    world.revoke(writer)
    world.run(15)
    world.settle()


# Restoring


def test_old_records(seed: int, parts: Parts) -> None:
    """A restore includes what was learned long ago."""
    world = started(seed, parts, workers=2, records=10)
    world.lose(None, restarted=False)
    world.settle()


def test_pending_ends(seed: int, parts: Parts) -> None:
    """A newcomer becomes complete once everything is restored."""
    world = started(seed, parts, records=3)
    world.lose(None, restarted=True)
    world.join()
    world.settle()


def test_slow_restore(seed: int, parts: Parts) -> None:
    """Newcomers wait for the end of a restore, even if it takes longer than a mark lasts."""
    world = started(seed, parts, records=10)
    world.lose(None, restarted=False)
    world.occupy_turn(12)
    world.join()
    world.run(15)
    world.settle()


def test_recent_waits_for_no_turn(seed: int, parts: Parts) -> None:
    """Recent revocations, of which others may not have heard, are restored even while another worker has the lease."""
    world = started(seed, parts, workers=2, records=5)
    writer, other = world.hosts
    older = world.master.data.copy()
    world.cut(other)
    world.revoke(writer)
    world.lose(older, restarted=True)
    world.occupy_turn(6)
    world.back(other)
    world.run(6)
    world.settle()


def test_slept(seed: int, parts: Parts) -> None:
    """A worker that was frozen over a loss still counts its last revocation as recent, and restores it at once."""
    world = started(seed, parts, workers=2, records=6)
    holder, other = world.hosts
    older = world.master.data.copy()
    world.cut(other)
    world.run(0.5)
    world.revoke(holder)
    world.run(1)
    world.freeze(holder)
    world.run(1)
    world.lose(older, restarted=True)
    world.back(other)
    world.run(11)
    world.occupy_turn(4)
    world.back(holder)
    world.run(15)
    world.settle()


def test_scanned_last(seed: int, parts: Parts) -> None:
    """A complete worker counts what a scan found as recent, since its writer may die just before Redis loses it."""
    world = started(seed, parts, workers=3, log_max=5)
    writer, scanner, other = world.hosts
    world.cut(other)
    scanner.tail.paused = True
    for _ in range(8):
        older = world.master.data.copy()
        last = world.revoke(writer)
    scanner.tail.paused = False
    world.run(4, until=lambda: last in scanner.worker.mirror)
    world.kill(writer)
    world.lose(older, restarted=True)
    world.occupy_turn(6)
    world.back(other)
    world.run(6)
    world.settle()


def late_holder_restores(world: World) -> tuple[Host, Host]:
    """Return a late holder whose restore waits only for its last reply, and a newcomer that is complete by then."""
    (holder,) = world.hosts
    world.freeze(holder)
    world.lose(None, restarted=False)
    newcomer = world.join()
    world.run(12)
    world.back(holder)
    enter(holder)
    for _ in range(1 + 1 + 3 * RESTORE_BATCHES - 1):  # the recent revocations, the lease, and the batches
        holder.exchange(holder.repair)
    holder.send(holder.repair)
    assert holder.state.restore_due()
    return holder, newcomer


def test_restored_then_lost(seed: int, parts: Parts) -> None:
    """A restore does not count if Redis loses everything again before a heartbeat has confirmed the epoch."""
    world = started(seed, parts, records=RESTORE_BATCHES)
    holder, _newcomer = late_holder_restores(world)
    holder.send(holder.heartbeats)
    world.lose(None, restarted=False)
    world.occupy_turn(8)
    holder.receive(holder.repair)
    holder.receive(holder.heartbeats)
    world.run(10)
    world.settle()


def test_restore_straddles(seed: int, parts: Parts) -> None:
    """A restore whose last reply is handled in the next epoch does not count for that epoch."""
    world = started(seed, parts, records=RESTORE_BATCHES)
    holder, _newcomer = late_holder_restores(world)
    world.lose(None, restarted=False)
    enter(holder)
    holder.receive(holder.repair)
    world.settle()


def test_suffix_lost(seed: int, parts: Parts) -> None:
    """If Redis loses the end of the log, a reader that kept its cursor hears of what is restored."""
    world = started(seed, parts, workers=2, records=2)
    writer, reader = world.hosts
    reader.tail.paused = True
    older = world.master.data.copy()
    world.revoke(writer)
    world.lose(older, restarted=True)
    reader.tail.paused = False
    world.settle()


# Following


def test_log_starts(seed: int, parts: Parts) -> None:
    """On an empty Redis all workers become complete before anything is revoked."""
    world = World(seed, 2, parts)
    world.settle()


def test_read_late(seed: int, parts: Parts) -> None:
    """A log entry that Redis loses after it was read does not count if it is handled only after the restore."""
    world = started(seed, parts, workers=2, records=2)
    writer, reader = world.hosts
    older = world.master.data.copy()
    reader.exchange(reader.tail)
    world.revoke(writer)
    reader.send(reader.tail)
    reader.tail.paused = True
    world.kill(writer)
    world.lost_reply_share = 0
    world.lose(older, restarted=True)
    world.run(12)
    reader.tail.paused = False
    reader.receive(reader.tail)
    world.join()
    world.settle()


def test_slice_late(seed: int, parts: Parts) -> None:
    """A scan that began in another epoch proves nothing."""
    state, first, second = parts.state(5.0), Cursor(1, 0, "a"), Cursor(2, 0, "b")
    state.heard(Heartbeat(0.0, 0.1, "E1", frozenset(), first, None, there=False))
    state.scan_began()
    state.heard(Heartbeat(0.5, 0.6, "E2", frozenset(), second, first, there=True))
    state.scan_ended(0.7)
    state.heard(Heartbeat(1.0, 1.1, "E2", frozenset(), second, first, there=True))
    if state.read(first, "E2", there=True):
        state.reached(second)
    assert not state.complete, seed


def test_trimmed(seed: int, parts: Parts) -> None:
    """A reader scans if it is so slow that the log was trimmed beyond its cursor."""
    world = started(seed, parts, workers=2, log_max=5)
    writer, reader = world.hosts
    reader.tail.paused = reader.heartbeats.paused = True
    for _ in range(12):
        world.revoke(writer)
    reader.tail.paused = False
    world.run(1)
    reader.heartbeats.paused = False
    world.settle()


def test_stuck_tail(seed: int, parts: Parts) -> None:
    """If the tail hangs over a loss and the ids of the new log are lower, comparing ids proves no mirror in sync."""
    world = started(seed, parts, workers=2, records=1)
    writer, reader = world.hosts
    reader.tail.paused = True
    world.lose(None, restarted=False, clock_offset=-1000)
    world.run(3)
    world.revoke(writer)
    world.run(4.5)
    world.cut(reader)
    world.run(7)
    reader.tail.paused = False
    world.settle()


def test_unread_end(seed: int, parts: Parts) -> None:
    """A heartbeat proves a mirror in sync only after the tail has read up to the log's end that it showed."""
    world = started(seed, parts, workers=2, records=1)
    writer, reader = world.hosts
    reader.tail.paused = True
    world.revoke(writer)
    world.run(3.5)
    world.cut(reader)
    world.run(7)
    reader.tail.paused = False
    world.settle()


def test_steady_writes(seed: int, parts: Parts) -> None:
    """A tail that is a second behind under steady writes still proves its mirror in sync."""
    world = started(seed, parts, workers=2)
    writer, reader = world.hosts
    reader.tail.paused = True
    for _ in range(12):
        world.revoke(writer)
        world.run(0.5)
        world.revoke(writer)
        world.run(0.5)
        reader.tail.paused = False
        if reader.tail.replied:
            reader.receive(reader.tail)
        reader.send(reader.tail)
        reader.tail.paused = True
        if reader.state.staleness(world.now()) > 3.5:
            raise world.broken(f"in sync {reader.state.staleness(world.now())} s ago")


def test_written_behind_the_scan(seed: int, parts: Parts) -> None:
    """A record written where a scan has already passed is not missed: the tail follows from before the scan."""
    world = started(seed, parts, records=SCAN_SLICES)
    writer = world.hosts[0]
    newcomer = world.join()
    world.run(20, until=lambda: newcomer.state.scanning)
    newcomer.exchange(newcomer.repair)
    while newcomer.connection.slices < SCAN_SLICES - 1:
        newcomer.exchange(newcomer.repair)
    world.revoke(writer)
    newcomer.exchange(newcomer.heartbeats)
    world.settle()


def test_lost_in_scan(seed: int, parts: Parts) -> None:
    """If Redis loses everything during a newcomer's first scan, a heartbeat from before the loss proves nothing."""
    world = started(seed, parts, records=10)
    newcomer = world.join()
    newcomer.tail.paused = True
    world.run(20, until=lambda: newcomer.state.scanning)
    newcomer.heartbeats.paused = True
    world.run(1, until=lambda: newcomer.heartbeats.call is None and newcomer.connection.slices >= 1)
    newcomer.heartbeats.paused = False
    newcomer.send(newcomer.heartbeats)
    world.lose(None, restarted=False)
    world.occupy_turn(6)
    while newcomer.state.scanning:
        newcomer.exchange(newcomer.repair)
    newcomer.receive(newcomer.heartbeats)
    newcomer.tail.paused = False
    world.run(8)
    world.settle()


def test_scanned_once(seed: int, parts: Parts) -> None:
    """A newcomer scans only once, after the restore, instead of while the restore trims the log past its cursor."""
    world = started(seed, parts, records=60, log_max=5)
    world.lose(None, restarted=False)
    newcomer = world.join()
    world.settle()
    if newcomer.connection.slices != SCAN_SLICES:
        raise world.broken(f"a newcomer scanned {newcomer.connection.slices} slices")


# Verdicts


def test_silent_redis(seed: int, parts: Parts) -> None:
    """Without Redis, a worker whose mirror was in sync too long ago does not say "not revoked" from it."""
    world = started(seed, parts, workers=2)
    writer, other = world.hosts
    world.cut(other)
    world.revoke(writer)
    world.run(12)
    world.settle()


def test_joining_without_redis(seed: int, parts: Parts) -> None:
    """Without Redis, a worker that is joining does not say "not revoked" from its mirror."""
    world = started(seed, parts, records=5)
    newcomer = world.join()
    newcomer.repair.paused = True
    world.run(1)
    world.cut(newcomer)
    world.run(3)
    newcomer.repair.paused = False
    world.settle()


def test_late_memory(seed: int, parts: Parts) -> None:
    """While the only holder restores late, no heartbeat proves the mirror of another worker in sync."""
    world = started(seed, parts, records=10)
    (holder,) = world.hosts
    world.freeze(holder)
    world.lose(None, restarted=False)
    other = world.join()
    world.run(15)
    world.occupy_turn(8)
    world.back(holder)
    world.run(4)
    world.cut(other)
    world.run(6)
    world.settle()


def test_asked_while_pending(seed: int, parts: Parts) -> None:
    """If an epoch was pending when Redis was asked, its "no record" does not mean "not revoked" later, either."""
    world = started(seed, parts, records=1)
    world.lose(None, restarted=False)
    newcomer = world.join()
    newcomer.exchange(newcomer.heartbeats)
    newcomer.repair.paused = True
    (key,) = world.acknowledged
    check = newcomer.request(newcomer.worker.check(key, world.deny))
    newcomer.send(check)
    check.paused = True
    world.run(30, until=lambda: newcomer.state.believes(world.now()))
    check.paused = False
    newcomer.receive(check)
    newcomer.repair.paused = False
    world.settle()


def test_clock_jumped(seed: int, parts: Parts) -> None:
    """After a jump of the wall clock, a mirror that dropped live revocations does not say "not revoked"."""
    world = started(seed, parts, workers=2, records=3)
    _writer, other = world.hosts
    other.worker.mirror.clear()
    other.worker.got.clear()
    other.state.clock_jumped()
    world.cut(other)
    world.run(4)
    world.settle()


# What happens behind the service's back


def test_evicted(seed: int, parts: Parts) -> None:
    """The next rescan restores a single record that was deleted."""
    world = started(seed, parts, workers=2, records=3)
    key = next(iter(world.acknowledged))
    del world.master.data.records[key]
    world.rescan_at = world.now() + 1
    world.run(12)
    world.settle()


def test_foreign_writer(seed: int, parts: Parts) -> None:
    """If a foreign application writes a record, the worker that rescans tells the others."""
    world = started(seed, parts, workers=3, records=1)
    world.master.data.records["jti", "1000"] = Revocation("jti", "1000", FAR, None)
    world.acknowledged["jti", "1000"] = world.now()
    world.rescan_at = world.now() + 1
    world.run(12)
    assert any(("jti", "1000") in host.worker.mirror for host in world.hosts)
    world.settle()


def test_private_redis(seed: int, parts: Parts) -> None:
    """Without a grace, as with the private embedded Redis, a new epoch is not pending, and a worker does not wait."""
    reply = Twin(f"L{seed}").beat(EPOCH_SECONDS, "E1", None, None, grace_seconds=0)
    state = parts.state(5.0)
    state.heard(Heartbeat(0.0, 0.1, reply.epoch, reply.pending, reply.end, None, reply.there))
    assert state.believes(0.1)
    assert state.scan_due()
    assert state.reason(0.1) == "joining"
