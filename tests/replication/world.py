"""A world for the protocol: workers with the real decisions, a twin of Redis, and what can go wrong between them.

Time goes in ticks. In each tick every task takes two steps, in random order; an exchange takes two at least, one at
Redis and one in which its reply is worked on, and anything may happen between them. After each step the world asks
every worker for every acknowledged revocation, and raises BrokenPromise where a "not revoked" comes too late.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from revocation_client.model import Revocation
from revocation_service.replication.epoch import Cursor, Key, SyncState
from tests.replication.twin import Asked, BeatReply, LogEntry, Shared, Twin
from tests.replication.worker import SCAN_SLICES, Away, Steps, Worker

TICK_SECONDS: Final = 0.25
STEP_SECONDS: Final = 1e-6
"""What one step adds to the clock within its tick, so that no two moments are the same."""
STALE_SECONDS: Final = 5.0
WITNESS_SECONDS: Final = 6.0
RECENT_SECONDS: Final = 7.5
"""The two long waits are a tenth of the real ones and less, so that short runs reach beyond them."""
TURN_SECONDS: Final = 3.0
LATE_SECONDS: Final = 2.0
"""How long after its cause a wrong "not revoked" is within the promise."""
EPOCH_SECONDS: Final = 1_000_000.0
FAR: Final = EPOCH_SECONDS * 3
SETTLE_TICKS: Final = 400
NEVER: Final = float("-inf")


class BrokenPromise(AssertionError):
    """A promise of the protocol does not hold; the message has the seed and the trace."""


@dataclass(frozen=True)
class Parts:
    """What a world is made of; a mutant replaces one of them."""

    state: Callable[..., SyncState] = SyncState
    worker: Callable[..., Worker] = Worker
    twin: Callable[..., Twin] = Twin


@dataclass(eq=False)
class Master:
    """A Redis server: its data, its clock, its leases, and the states to which a loss may return it."""

    data: Twin
    clock_offset: float = 0.0
    turn: tuple[str, float] = ("", NEVER)
    snapshots: list[Twin] = field(default_factory=list)

    def changed(self) -> None:
        """Note the present state as one that a loss may return to."""
        self.snapshots.append(self.data.copy())
        del self.snapshots[:-80]


@dataclass(eq=False)
class Task:
    """A generator of a worker, and the exchange that it waits for."""

    steps: Steps
    call: Callable[[], Any] | None = None
    replied: bool = False
    reply: Any = None
    ended: bool = False
    paused: bool = False
    """Set by a story, to hold the task where it is."""

    def step(self, reach: bool) -> None:
        """Run the call, if Redis can be reached; or work on its reply; or go on after a moment."""
        if self.call is None:
            self._go(lambda: next(self.steps))
        elif self.replied:
            reply, self.reply, self.replied = self.reply, None, False
            self._go(lambda: self.steps.send(reply))
        elif reach:
            try:
                self.reply, self.replied = self.call(), True
            except Away:
                self.lose()

    def lose(self) -> None:
        """Lose the exchange with its connection."""
        if self.call is not None:
            self.replied = False
            self._go(lambda: self.steps.throw(Away()))

    def _go(self, advance: Callable[[], Callable[[], Any] | None]) -> None:
        try:
            self.call = advance()
        except StopIteration:
            self.call, self.ended = None, True


class Connection:
    """A worker's way to the master that it takes for the master, which may be a former one."""

    def __init__(self, world: "World", master: Master) -> None:
        self.world = world
        self.master = master
        self.connection = 0
        self.slices = 0
        """How many slices were scanned over it."""

    @property
    def data(self) -> Twin:
        """What the master holds."""
        return self.master.data

    @property
    def time(self) -> float:
        """What the master's clock says."""
        return EPOCH_SECONDS + self.world.now() + self.master.clock_offset

    def beat(self, restored_epoch: str | None, cursor: Cursor | None) -> tuple[BeatReply, bool]:
        """See worker.Redis."""
        before = self.data.epoch, dict(self.data.pending)
        reply = self.data.beat(self.time, self.world.name("E"), restored_epoch, cursor)
        if before != (self.data.epoch, self.data.pending):
            self.master.changed()
        return reply, self.master is self.world.master

    def read(self, cursor: Cursor) -> tuple[Sequence[LogEntry], bool]:
        """See worker.Redis."""
        return self.data.behind(cursor), self.data.holds(cursor)

    def scan(self, connection: int, number: int) -> Sequence[Revocation]:
        """See worker.Redis."""
        if connection != self.connection:
            raise Away
        self.slices += 1
        return [record for record in self.data.records.values() if slice_of(record.value) == number]

    def missing(self, records: Sequence[Revocation]) -> Sequence[Key]:
        """See worker.Redis."""
        return self.data.missing(self.time, [((each.claim, each.value), each.expires_at) for each in records])

    def merge(self, asked: Sequence[Asked], *, restore: bool = False) -> None:
        """See worker.Redis."""
        shared = Shared(nonce=self.world.name("n"), log_max=self.world.log_max, max_lifetime=FAR, restore=restore)
        if any(each.changed for each in self.data.merge(self.time, shared, asked)):
            self.master.changed()

    def append(self, changes: Sequence[Revocation]) -> None:
        """See worker.Redis."""
        for change in changes:
            self.data.append(self.time, self.world.name("n"), change, self.world.log_max)
        self.master.changed()

    def take_turn(self, worker: str) -> bool:
        """See worker.Redis."""
        holder, until = self.master.turn
        if holder != worker and until > self.world.now():
            return False
        self.master.turn = worker, self.world.now() + TURN_SECONDS
        return True

    def take_rescan(self) -> bool:
        """See worker.Redis."""
        if self.world.now() < self.world.rescan_at:
            return False
        self.world.rescan_at = self.world.now() + self.world.rescan_seconds
        return True

    def get(self, key: Key) -> Revocation | None:
        """See worker.Redis."""
        return self.data.records.get(key)


def slice_of(value: str) -> int:
    """Return in which slice of a scan a record comes; the order is not that in which they were written."""
    return int(value) * 7 % SCAN_SLICES


class Host:
    """A worker with what can happen to it: its process may be frozen or dead, its network cut."""

    def __init__(self, world: "World", name: str) -> None:
        self.connection = Connection(world, world.master)
        state = world.parts.state(STALE_SECONDS, witness_seconds=WITNESS_SECONDS, recent_seconds=RECENT_SECONDS)
        self.worker = world.parts.worker(name, self.connection, world.now, state)
        self.world = world
        self.alive = True
        self.frozen = False
        self.cut = False
        self.since = world.now()
        """Since when it has been connected."""
        self.heartbeats = Task(self.worker.heartbeats())
        self.tail = Task(self.worker.tail())
        self.repair = Task(self.worker.repair())
        self.requests: list[Task] = []

    @property
    def state(self) -> SyncState:
        """What it concludes."""
        return self.worker.state

    @property
    def awake(self) -> bool:
        """Whether its process runs."""
        return self.alive and not self.frozen

    @property
    def reaches(self) -> bool:
        """Whether Redis would answer it."""
        return self.awake and not self.cut and not (self.world.hanging and self.on_master)

    @property
    def on_master(self) -> bool:
        """Whether it is connected to the present master."""
        return self.connection.master is self.world.master

    @property
    def tasks(self) -> list[Task]:
        """Its tasks and requests."""
        return [self.heartbeats, self.tail, self.repair, *self.requests]

    def step(self, task: Task) -> None:
        """Let one task take one step."""
        if self.awake and not task.ended and not task.paused:
            task.step(self.reaches)
        if task.ended and task in self.requests:
            self.requests.remove(task)

    def request(self, steps: Steps) -> Task:
        """Begin to answer a request."""
        self.requests.append(Task(steps))
        return self.requests[-1]

    def send(self, task: Task) -> None:
        """Let one task go on until Redis has run its next exchange, and the reply waits."""
        self.world.step(self, task)
        for _ in range(1000):
            if task.replied:
                return
            if task.call is None:
                self.world.pass_tick()
            self.world.step(self, task)
        raise self.world.broken(f"a task of {self.worker.name} has no exchange with Redis")

    def receive(self, task: Task) -> None:
        """Let one task work on the reply that waits."""
        assert task.replied
        self.world.step(self, task)

    def exchange(self, task: Task) -> None:
        """Let one task make a whole exchange."""
        self.send(task)
        self.receive(task)

    def breaks(self, lost: Callable[[], bool]) -> None:
        """Lose the connection; what Redis replied before may still be read."""
        self.connection.connection += 1
        for task in self.tasks:
            if not task.replied or lost():
                task.lose()

    def move(self, lost: Callable[[], bool] = lambda: True) -> None:
        """Find the present master, and connect to it."""
        self.connection.master = self.world.master
        self.since = self.world.now()
        self.breaks(lost)

    def back(self) -> None:
        """Thaw the process; mend its network."""
        if self.cut or self.frozen:
            self.cut = self.frozen = False
            self.since = self.world.now()


class World:
    """Redis and its workers. `step` lets one task go on; everything else only happens when it is told to."""

    def __init__(self, seed: int, workers: int, parts: Parts = Parts(), *, log_max: int = 1_000_000) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.parts = parts
        self.log_max = log_max
        self.tick = 0
        self.steps = 0
        self.trace: list[str] = []
        self._names = 0
        self.master = Master(parts.twin(life=self.name("L")))
        self.former: Master | None = None
        self.hanging = False
        self.hang_ended = NEVER
        self.rescan_at = self.rescan_seconds = float("inf")
        self.lost_reply_share = 0.5
        """How likely a reply is lost that had come when its connection broke."""
        self.acknowledged: dict[Key, float] = {}
        self.lost_at: dict[Key, float] = {}
        self.written = 0
        self.latest = NEVER
        """The most seconds that a wrong "not revoked" came after its cause."""
        self.hosts = [Host(self, f"W{number}") for number in range(workers)]

    def now(self) -> float:
        """The monotonic clock of all workers."""
        return self.tick * TICK_SECONDS + self.steps * STEP_SECONDS

    def name(self, prefix: str) -> str:
        """Return a name that was not used before."""
        self._names += 1
        return f"{prefix}{self._names}"

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now():8.3f} {what}")

    def broken(self, promise: str) -> BrokenPromise:
        """Return the error, with what led to it."""
        return BrokenPromise(f"{promise}\nseed {self.seed}\n" + "\n".join(self.trace[-80:]))

    # Time

    def step(self, host: Host, task: Task) -> None:
        """Let a task go on, and look at all verdicts."""
        self.steps += 1
        epoch = host.state.epoch
        host.step(task)
        if host.state.epoch != epoch:
            kind = "complete" if host.state.complete else "joining"
            self.note(f"{host.worker.name} enters {host.state.epoch}, {kind}")
        self.look()

    def pass_tick(self) -> None:
        """Go to the next tick."""
        self.tick += 1
        self.steps = 0

    def ready(self) -> None:
        """Let all tasks go on until every worker is complete."""
        self.run(60, until=lambda: all(host.state.complete for host in self.living))
        assert all(host.state.complete for host in self.living)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let all tasks go on for so long, each twice a tick, in random order."""
        for _ in range(round(seconds / TICK_SECONDS)):
            if until():
                return
            self.run_tick()

    def run_tick(self, lazy: float = 1.0) -> None:
        """Let all tasks go on for a tick; with `lazy` below 1, some leave a step out."""
        turns = [(host, task) for host in self.hosts if host.awake for task in host.tasks] * 2
        self.dice.shuffle(turns)
        for host, task in turns:
            if lazy == 1.0 or self.dice.random() < lazy:
                self.step(host, task)
        self.pass_tick()

    # What users see

    def look(self) -> None:
        """Raise BrokenPromise if an acknowledged revocation that a connected worker holds is denied too late."""
        for host in self.hosts:
            if host.awake:
                denied = self.acknowledged.keys() - host.worker.mirror.keys()
                if denied:
                    self._judge(host, denied)

    def _judge(self, host: Host, denied: set[Key]) -> None:
        allowed = LATE_SECONDS
        if host.reaches:
            denied -= host.connection.data.records.keys()
            if not denied or not host.state.believes(self.now()):
                return
            allowed += 0 if host.on_master else STALE_SECONDS
        elif not host.state.mirror_decides(self.now()):
            return
        else:
            allowed += STALE_SECONDS
        for key in denied:
            self._late(host, key, allowed)

    def _late(self, host: Host, key: Key, allowed: float) -> None:
        late = self.seconds_after_cause(key)
        self.latest = max(self.latest, late - allowed + LATE_SECONDS)
        if late > allowed:
            raise self.broken(f"{host.worker.name} denies {key[1]} {late:.2f} s after its cause")

    def seconds_after_cause(self, key: Key) -> float:
        """Return for how long a denial of this revocation has been wrong; -inf if no connected worker holds it."""
        held_since = [
            max(host.since, host.worker.got[key])
            for host in self.hosts
            if key in host.worker.mirror and host.reaches and host.on_master
        ]
        if not held_since:
            return NEVER
        causes = min(held_since), self.lost_at.get(key, NEVER), self.acknowledged[key], self.hang_ended
        return self.now() - max(causes)

    def deny(self, key: Key) -> None:
        """Hear of a "not revoked" that a whole check gave."""
        if key in self.acknowledged and self.seconds_after_cause(key) > LATE_SECONDS:
            raise self.broken(f"a check denies {key[1]}")

    # What users do

    def request(self, host: Host) -> Key:
        """Begin to revoke another token; the request goes on with the steps of the host."""
        key: Key = ("jti", str(self.written))
        self.written += 1
        host.request(host.worker.write(key, FAR, partial(self._acknowledge, host)))
        return key

    def revoke(self, host: Host) -> Key:
        """Revoke another token, at once."""
        key = self.request(host)
        task = host.requests[-1]
        while not task.ended:
            self.step(host, task)
        return key

    def _acknowledge(self, host: Host, key: Key) -> None:
        self.acknowledged[key] = self.now()
        self.note(f"{host.worker.name} acknowledges {key[1]}")
        if key not in host.worker.mirror:
            raise self.broken(f"{host.worker.name} acknowledges {key[1]}, which its mirror lacks")

    # What goes wrong

    def join(self) -> Host:
        """Start another worker."""
        self.hosts.append(Host(self, f"W{len(self.hosts)}"))
        self.note(f"{self.hosts[-1].worker.name} joins")
        return self.hosts[-1]

    def lose(self, kept: Twin | None, *, restarted: bool, clock_offset: float | None = None) -> None:
        """Return the data to an earlier state; None: empty. A restart is another life, and breaks the connections."""
        master, old = self.master, self.master.data
        data = kept.copy() if kept else self.parts.twin(life=old.life)
        data.life = self.name("L") if restarted else old.life
        self._lost(data)
        master.data = data
        master.turn = ("", NEVER)
        if clock_offset is not None:
            master.clock_offset = clock_offset
        self.note(f"Redis loses all but {len(data.records)} of {len(old.records)}; restarted: {restarted}")
        if restarted:
            for host in self.hosts:
                if host.alive and host.on_master:
                    host.breaks(self._reply_is_lost)
        master.changed()

    def _lost(self, new: Twin) -> None:
        """Note what is lacking now; what was lost before and is not restored yet is lost again."""
        for key in self.acknowledged.keys() - new.records.keys():
            self.lost_at[key] = self.now()

    def fail_over(self, kept: Twin, clock_offset: float = 0.0) -> Master:
        """Promote a replica that has this state; the workers stay with the former master until they move."""
        self.former, old = self.master, self.master
        data = kept.copy()
        data.life = self.name("L")
        self.master = Master(data, clock_offset)
        self.master.changed()
        self._lost(data)
        self.note(f"a replica with {len(data.records)} of {len(old.data.records)} is promoted")
        return old

    def occupy_turn(self, seconds: float) -> None:
        """Have some other worker restore for so long, so that restores in turn are slow."""
        self.master.turn = "another", self.now() + seconds

    def hang(self, ended: bool = False) -> None:
        """Stop Redis from answering, or let it answer again."""
        self.hanging = not ended
        if ended:
            self.hang_ended = self.now()
        self.note("Redis answers again" if ended else "Redis hangs")

    def cut(self, host: Host) -> None:
        """Cut a worker's network."""
        host.cut = True
        host.breaks(lambda: True)
        self.note(f"{host.worker.name} is cut off")

    def freeze(self, host: Host) -> None:
        """Stop a worker's process."""
        host.frozen = True
        self.note(f"{host.worker.name} is frozen")

    def kill(self, host: Host) -> None:
        """End a worker's process."""
        host.alive = False
        self.note(f"{host.worker.name} dies")

    def back(self, host: Host) -> None:
        """Bring back a worker that was frozen or cut off."""
        if host.cut or host.frozen:
            host.back()
            self.note(f"{host.worker.name} is back")

    def _reply_is_lost(self) -> bool:
        return self.dice.random() < self.lost_reply_share

    # The end

    @property
    def living(self) -> list[Host]:
        """The workers that did not die."""
        return [host for host in self.hosts if host.alive]

    def held(self) -> set[Key]:
        """Return the acknowledged revocations that a living worker holds."""
        held = {key for host in self.living for key in host.worker.mirror}
        return held & self.acknowledged.keys()

    def unsettled(self) -> str | None:
        """Return what is not yet as it has to be in the end; None if all is."""
        held = self.held()
        for host in self.living:
            state = host.state
            if not (state.complete and state.believes(self.now()) and state.mirror_decides(self.now())):
                return f"{host.worker.name} is not complete: {state.reason(self.now())}"
            if held - host.worker.mirror.keys():
                return f"{host.worker.name} has not heard of {held - host.worker.mirror.keys()}"
        lacking = held - self.master.data.records.keys()
        return f"Redis lacks {lacking}" if lacking else None

    def settle(self) -> None:
        """Let everything come back, and raise BrokenPromise unless all is well in the end."""
        if self.hanging:
            self.hang(ended=True)
        for host in self.living:
            self.back(host)
            if not host.on_master:
                host.move()
        self.note("all come back")
        self.run(SETTLE_TICKS * TICK_SECONDS, until=lambda: self.tick % 8 == 0 and self.unsettled() is None)
        problem = self.unsettled()
        if problem:
            raise self.broken(problem)


class RandomWorld(World):
    """A world in which faults come at random. With `losses_only` no worker is cut off, and Redis always answers."""

    def __init__(self, seed: int, parts: Parts = Parts(), *, losses_only: bool = False) -> None:
        dice = random.Random(f"shape {seed}")
        log_max = dice.choice((5, 10, 1_000_000, 1_000_000))
        super().__init__(seed, dice.choice((2, 3, 4)), parts, log_max=log_max)
        self.losses_only = losses_only
        self.rescan_seconds = dice.choice((10.0, float("inf")))
        self.rescan_at = self.rescan_seconds
        self._fault_share = dice.choice((0.03, 0.08, 0.2))
        self._write_share = dice.choice((0.05, 0.2, 0.5))
        self._return_share = dice.choice((0.008, 0.03, 0.15))
        self._lazy = dice.choice((0.8, 0.9, 1.0))
        self._hang_until = 0
        self._next_loss = 0

    def play(self, ticks: int = 110) -> None:
        """Let everything happen for so many ticks, then settle."""
        for _ in range(ticks):
            self._happen()
            self.run_tick(self._lazy)
            if self.losses_only:
                self._check_that_none_refuses()
        self.settle()

    def _check_that_none_refuses(self) -> None:
        for host in self.living:
            if host.state.complete and not host.state.believes(self.now()):
                raise self.broken(f"{host.worker.name} is complete and answers 503: {host.state.reason(self.now())}")

    def _happen(self) -> None:
        if self.hanging and self.tick >= self._hang_until:
            self.hang(ended=True)
        for host in self.living:
            if self.dice.random() < self._return_share:
                self.back(host)
            if not host.on_master and self.dice.random() < 0.05:
                host.move(self._reply_is_lost)
        if self._next_loss and self.tick >= self._next_loss:
            self._next_loss = 0
            self._loss()
        if self.dice.random() < self._write_share and self.written < 24:
            self._write()
        if self.dice.random() < self._fault_share:
            self._fault()

    def _write(self) -> None:
        hosts = [host for host in self.hosts if host.reaches and host.state.epoch is not None]
        if hosts:
            self.request(self.dice.choice(hosts))

    def _fault(self) -> None:
        if self.losses_only:
            faults: Iterable[tuple[Callable[[], None], int]] = ((self._loss, 70), (self._join, 20), (self._die, 10))
        else:
            faults = (
                (self._loss, 30),
                (self._hang, 6),
                (self._split, 4),
                (self._cut, 12),
                (self._freeze, 10),
                (self._join, 12),
                (self._die, 6),
                (self._almost_all, 8),
                (self._return_at_a_loss, 6),
                (self._lose_twice, 6),
            )
        fault = self.dice.choices([each for each, _ in faults], [share for _, share in faults])[0]
        fault()

    def _loss(self) -> None:
        kind = self.dice.random()
        offset = self.dice.choice((0.0, 0.0, -10.0, 10.0))
        if kind < 0.3:
            self.lose(None, restarted=False)
        elif kind < 0.45:
            self.lose(None, restarted=True, clock_offset=offset)
        elif kind < 0.85 and self.master.snapshots:
            newest = self.master.snapshots[-self.dice.choice((3, 8, 30, 80)) :]
            self.lose(self.dice.choice(newest), restarted=True, clock_offset=offset)
        else:
            self.lose(self.master.data, restarted=True, clock_offset=offset)
        if kind >= 0.3 and not self.losses_only and self.dice.random() < 0.4:
            self._hang()

    def _hang(self) -> None:
        self.hang()
        self._hang_until = self.tick + self.dice.choice((2, 6, 14, 30))

    def _split(self) -> None:
        if self.former and any(not host.on_master for host in self.living):
            return
        snapshots = self.master.snapshots
        kept = self.dice.choice(snapshots[-self.dice.choice((1, 3, 8)) :]) if snapshots else Twin("")
        self.fail_over(kept, self.dice.choice((0.0, -10.0, 10.0)))
        for host in self.living:
            if self.dice.random() < 0.5:
                host.move(self._reply_is_lost)

    def _cut(self) -> None:
        self.cut(self.dice.choice(self.living))

    def _freeze(self) -> None:
        self.freeze(self.dice.choice(self.living))

    def _join(self) -> None:
        if len(self.living) < 5:
            self.join()

    def _die(self) -> None:
        if len(self.living) > 1:
            self.kill(self.dice.choice(self.living))

    def _almost_all(self) -> None:
        acts = [self._loss, self._join, self._leave_one]
        self.dice.shuffle(acts)
        for act in acts:
            act()

    def _leave_one(self) -> None:
        survivor = self.dice.choice(self.living)
        for host in self.living:
            if host is not survivor:
                self.kill(host)

    def _return_at_a_loss(self) -> None:
        away = [host for host in self.living if host.cut or host.frozen]
        if away:
            self._loss()
            self.back(self.dice.choice(away))

    def _lose_twice(self) -> None:
        self._loss()
        self._next_loss = self.tick + self.dice.choice((1, 2, 4, 8, 16))
