"""A simulated worker: the real SyncState, and the three tasks that carry out its decisions.

A task is a generator. Its code is that of the service, with `yield` for `await`. `yield call` is one exchange: the
world runs the call on Redis, and some steps later sends the reply, or raises Away. `yield None` waits for a moment.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from revocation_client.revocation import Revocation
from revocation_service.replication.epoch import Heartbeat, Key, Source, SyncState
from revocation_service.store.cursor import Cursor
from tests.merging import merge
from tests.replication.twin import Asked, BeatReply, LogEntry

HEARTBEAT_SECONDS: Final = 0.5
WRITE_DEADLINE_SECONDS: Final = 0.75
SCAN_SLICES: Final = 4
RESTORE_BATCHES: Final = 6
"""Number of batches in which a mirror is restored; the few records of a test stand for a large mirror."""

Steps = Generator[Callable[[], Any] | None, Any, None]


class Away(Exception):
    """Redis does not answer, or the connection broke."""


class Redis(Protocol):
    """A worker's access to Redis. Each method is one exchange, and may raise Away."""

    connection: int
    """Number of the present connection. A SCAN can only continue on the connection on which it began."""

    def beat(self, restored_epoch: str | None, cursor: Cursor | None) -> tuple[BeatReply, bool]:
        """Run beat.lua. Return its reply, and whether a majority of the sentinels names this master (rule 4)."""

    def read(self, cursor: Cursor) -> tuple[Sequence[LogEntry], bool]:
        """Return the log entries after the cursor, and whether the cursor's entry is still in the log."""

    def scan(self, connection: int, number: int) -> Sequence[Revocation]:
        """Return one slice of all records."""

    def missing(self, records: Sequence[Revocation]) -> Sequence[Key]:
        """Run ask.lua: return the keys of the records that Redis lacks."""

    def merge(self, asked: Sequence[Asked], *, restore: bool = False) -> None:
        """Run merge.lua."""

    def append(self, changes: Sequence[Revocation]) -> None:
        """Append changes to the log. Redis already has their records."""

    def take_turn(self, worker: str) -> bool:
        """Take or renew the restore lease; return whether this worker has it."""

    def release_turn(self, worker: str) -> None:
        """End the lease, if this worker has it."""

    def take_rescan(self) -> bool:
        """Claim the rescan, which one worker gets every REVOCATION_RESCAN_SECONDS; return whether it was free."""

    def get(self, key: Key) -> Revocation | None:
        """Return the record of this key; None if there is none."""


class Worker:
    """A worker process. `mirror` holds its revocations; `got` holds when the worker first learned of each."""

    def __init__(self, name: str, redis: Redis, clock: Callable[[], float], state: SyncState) -> None:
        self.name = name
        self.redis = redis
        self.clock = clock
        self.state = state
        self.mirror: dict[Key, Revocation] = {}
        self.got: dict[Key, float] = {}
        self.pending: frozenset[str] = frozenset()
        """The epochs that the last counted heartbeat showed as pending."""
        self.entered: set[str] = set()
        """All epochs that counted heartbeats have shown."""

    def add(self, revocation: Revocation, by: Source) -> None:
        """Add a revocation to the mirror, and note it as learned if this changes the mirror.

        A repetition in the log, such as a record that another worker restored, does not count as recent again.
        """
        key = revocation.claim, revocation.value
        held = self.mirror.get(key)
        self.mirror[key] = revocation if held is None else merge(held, revocation)
        self.got.setdefault(key, self.clock())
        if self.mirror[key] != held:
            self.state.learned(key, self.clock(), by=by)

    # The heartbeat

    def heartbeats(self) -> Steps:
        """Send a heartbeat every half second; pass on the replies that count."""
        while True:
            began_at, cursor = self.clock(), self.state.cursor
            try:
                reply, named = yield partial(self.redis.beat, self.state.restored_epoch, cursor)
            except Away:
                pass
            else:
                if self.counts(named):
                    self.pending = reply.pending
                    self.entered.add(reply.epoch)
                    told = reply.epoch, reply.pending, reply.end
                    self.state.heard(Heartbeat(began_at, self.clock(), *told, cursor, reply.there, reply.first))
            while self.clock() < began_at + HEARTBEAT_SECONDS:
                yield None

    def counts(self, named: bool) -> bool:
        """Return whether a heartbeat counts (rule 4)."""
        return named

    # The tail

    def tail(self) -> Steps:
        """Follow the log."""
        while True:
            cursor, epoch = self.state.cursor, self.state.epoch
            if cursor is not None:
                try:
                    entries, there = yield partial(self.redis.read, cursor)
                except Away:
                    pass
                else:
                    if self.state.read(cursor, epoch, there=there):
                        self.follow(entries)
            yield None

    def follow(self, entries: Sequence[LogEntry]) -> None:
        """Add log entries to the mirror, and move the cursor. The service does this without an await."""
        for entry in entries:
            if entry.change is not None:
                self.add(entry.change, "log")
        if entries:
            self.state.reached(entries[-1].cursor)

    # The repair

    def repair(self) -> Steps:
        """Restore, then scan, whenever either is due."""
        while True:
            try:
                if not self.accepts():
                    pass
                elif self.state.restore_due():
                    yield from self.restore()
                elif self.state.scan_due():
                    yield from self.scan([])
                elif self.state.complete and (yield self.redis.take_rescan):
                    yield from self.rescan()
            except Away:
                pass
            yield None

    def restore(self) -> Steps:
        """Write back what Redis may lack: first what was learned recently, then the rest under a lease (rule 7)."""
        epoch = self.state.epoch
        yield from self.restore_recent()
        yield from self.restore_rest(epoch)

    def restore_recent(self) -> Steps:
        """Write back what was learned recently, without asking what is missing."""
        yield partial(self.redis.merge, self.held(self.state.recent()), restore=True)

    def restore_rest(self, epoch: str | None) -> Steps:
        """Write back everything else. The lease admits one worker at a time."""
        while self.same(epoch) and not (yield partial(self.redis.take_turn, self.name)):
            yield None
        for number in range(RESTORE_BATCHES):
            if not self.same(epoch):
                return
            yield from self.restore_batch(list(self.mirror.values())[number::RESTORE_BATCHES])
        self.state.restored(epoch, self.clock())
        yield partial(self.redis.release_turn, self.name)

    def restore_batch(self, records: Sequence[Revocation]) -> Steps:
        """Write back what Redis lacks of these records.

        All records here are of the claim `jti`. The service merges those of other claims without asking first, because
        ask.lua does not compare cutoffs.
        """
        yield partial(self.redis.take_turn, self.name)
        missing = yield partial(self.redis.missing, records)
        if missing:
            yield partial(self.redis.merge, self.held(missing), restore=True)

    def held(self, keys: Iterable[Key]) -> list[Asked]:
        """Return the records of these keys, in this order, as a restore sends them."""
        records = [self.mirror[key] for key in keys if key in self.mirror]
        return [Asked(each.claim, each.value, expires_at=each.expires_at) for each in records]

    def same(self, epoch: str | None) -> bool:
        """Return whether an exchange that began in this epoch counts (rule 6)."""
        return epoch == self.state.epoch

    def scan(self, lacked: list[Revocation]) -> Steps:
        """Read all records into the mirror, and add those that it lacked to `lacked` (rule 9)."""
        connection = self.redis.connection
        self.state.scan_began()
        for number in range(SCAN_SLICES):
            found = yield partial(self.redis.scan, connection, number)
            if not self.state.scanning:
                return
            new = [record for record in found if (record.claim, record.value) not in self.mirror]
            for record in new:
                self.add(record, "scan")
            lacked += new
        self.state.scan_ended(self.clock())

    def rescan(self) -> Steps:
        """Find what was written or deleted behind the service's back (rule 12).

        A new epoch ends a rescan at once, because the restore for that epoch must not wait for the scan.
        """
        epoch, lacked = self.state.epoch, list[Revocation]()
        yield from self.restore()
        if self.same(epoch):
            yield from self.scan(lacked)
        if lacked:
            yield partial(self.redis.append, lacked)

    # Requests

    def write(self, key: Key, expires_at: float, acknowledge: Callable[[Key], None]) -> Steps:
        """Write a revocation, and acknowledge it once it is in Redis and in the mirror (rules 1 and 6)."""
        deadline = self.clock() + WRITE_DEADLINE_SECONDS
        try:
            while True:
                if self.clock() > deadline or not self.accepts():
                    return
                epoch = self.state.epoch
                yield partial(self.redis.merge, [Asked(*key, expires_at=expires_at)])
                if self.safe(epoch):
                    break
        except Away:
            return
        if self.clock() <= deadline and self.accepts():
            self.acknowledge(Revocation(*key, expires_at, None), acknowledge)

    def safe(self, epoch: str | None) -> bool:
        """Return whether a write that began in this epoch may be acknowledged (rule 6)."""
        return self.same(epoch)

    def accepts(self) -> bool:
        """Return whether a revocation may be acknowledged."""
        return self.state.accepts(self.clock())

    def acknowledge(self, revocation: Revocation, acknowledge: Callable[[Key], None]) -> None:
        """Add the revocation to the mirror, then acknowledge it."""
        self.add(revocation, "write")
        acknowledge((revocation.claim, revocation.value))

    def check(self, key: Key, deny: Callable[[Key], None]) -> Steps:
        """Check whether a token is revoked (rule 11), and call `deny` if the verdict is "not revoked"."""
        before = self.state.believes(self.clock())
        try:
            found = yield partial(self.redis.get, key)
        except Away:
            found, believed = None, self.state.mirror_decides(self.clock())
        else:
            believed = self.believed(before)
        if found is None and key not in self.mirror and believed:
            deny(key)

    def believed(self, before: bool) -> bool:
        """Return whether "no record" in Redis means "not revoked", as decided before Redis was asked."""
        return before
