"""The simulated processes: Redis masters, workers on their hosts, their tasks, and the connections between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from revocation_client.revocation import Revocation
from revocation_service.replication.epoch import Key, SyncState
from revocation_service.store.cursor import Cursor
from tests.replication.twin import Asked, BeatReply, LogEntry, Shared, Twin
from tests.replication.worker import SCAN_SLICES, Away, Steps, Worker

if TYPE_CHECKING:
    from tests.replication.world import World

STALE_SECONDS: Final = 5.0
WITNESS_SECONDS: Final = 6.0
RECENT_SECONDS: Final = 7.5
"""This and WITNESS_SECONDS are at most a tenth of the real values, so that short runs exceed them."""
TURN_SECONDS: Final = 3.0
EPOCH_SECONDS: Final = 1_000_000.0
FAR: Final = EPOCH_SECONDS * 3
NEVER: Final = float("-inf")


@dataclass(frozen=True)
class Parts:
    """The classes of which a world is made; a mutant replaces one of them."""

    state: Callable[..., SyncState] = SyncState
    worker: Callable[..., Worker] = Worker
    twin: Callable[..., Twin] = Twin


AS_IT_IS: Final = Parts()
"""The protocol without a mutant."""


@dataclass(eq=False)
class Master:
    """A Redis master: its data, its clock, its restore lease, and the snapshots to which a loss may return it."""

    data: Twin
    clock_offset: float = 0.0
    turn: tuple[str, float] = ("", NEVER)
    snapshots: list[Twin] = field(default_factory=list)

    def changed(self) -> None:
        """Take a snapshot, to which a loss may return the data."""
        self.snapshots.append(self.data.copy())
        del self.snapshots[:-80]


@dataclass(eq=False)
class Task:
    """A running generator of a worker, and the exchange that it waits for."""

    steps: Steps
    call: Callable[[], Any] | None = None
    replied: bool = False
    reply: Any = None
    ended: bool = False
    paused: bool = False
    """Whether a story holds the task where it is."""

    def step(self, reach: bool) -> None:
        """Run the call if Redis can be reached, or handle the reply, or resume after `yield None`."""
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
        """Make the exchange fail with Away, because its connection broke."""
        if self.call is not None:
            self.replied = False
            self._go(lambda: self.steps.throw(Away()))

    def _go(self, advance: Callable[[], Callable[[], Any] | None]) -> None:
        try:
            self.call = advance()
        except StopIteration:
            self.call, self.ended = None, True


class Connection:
    """The `worker.Redis` of one worker. Its master is the one that the worker knows, which may be a former one."""

    def __init__(self, world: "World", master: Master) -> None:
        self.world = world
        self.master = master
        self.connection = 0
        self.slices = 0
        """Number of slices scanned so far."""

    @property
    def data(self) -> Twin:
        """The data of the master."""
        return self.master.data

    @property
    def time(self) -> float:
        """The time on the master's clock, as Unix time in seconds."""
        return EPOCH_SECONDS + self.world.now() + self.master.clock_offset

    def beat(self, restored_epoch: str | None, cursor: Cursor | None) -> tuple[BeatReply, bool]:
        before = self.data.epoch, dict(self.data.pending)
        reply = self.data.beat(self.time, self.world.name("E"), restored_epoch, cursor)
        if before != (self.data.epoch, self.data.pending):
            self.master.changed()
        return reply, self.master is self.world.master

    def read(self, cursor: Cursor) -> tuple[Sequence[LogEntry], bool]:
        return self.data.behind(cursor), self.data.holds(cursor)

    def scan(self, connection: int, number: int) -> Sequence[Revocation]:
        if connection != self.connection:
            raise Away
        self.slices += 1
        return [record for record in self.data.records.values() if slice_of(record.value) == number]

    def missing(self, records: Sequence[Revocation]) -> Sequence[Key]:
        return self.data.missing(self.time, [((each.claim, each.value), each.expires_at) for each in records])

    def merge(self, asked: Sequence[Asked], *, restore: bool = False) -> None:
        shared = Shared(nonce=self.world.name("n"), log_max=self.world.log_max, max_lifetime=FAR, restore=restore)
        if any(each.changed for each in self.data.merge(self.time, shared, asked)):
            self.master.changed()

    def append(self, changes: Sequence[Revocation]) -> None:
        for change in changes:
            self.data.append(self.time, self.world.name("n"), change, self.world.log_max)
        self.master.changed()

    def take_turn(self, worker: str) -> bool:
        holder, until = self.master.turn
        if holder != worker and until > self.world.now():
            return False
        self.master.turn = worker, self.world.now() + TURN_SECONDS
        return True

    def release_turn(self, worker: str) -> None:
        if self.master.turn[0] == worker:
            self.master.turn = "", NEVER

    def take_rescan(self) -> bool:
        if self.world.now() < self.world.rescan_at:
            return False
        self.world.rescan_at = self.world.now() + self.world.rescan_seconds
        return True

    def get(self, key: Key) -> Revocation | None:
        return self.data.records.get(key)


def slice_of(value: str) -> int:
    """Return the slice of a scan that has this record; slices are not in the order of the writes."""
    return int(value) * 7 % SCAN_SLICES


class Host:
    """A worker and its faults: its process may be frozen or dead, and its network cut."""

    def __init__(self, world: "World", name: str) -> None:
        self.connection = Connection(world, world.master)
        state = world.parts.state(STALE_SECONDS, witness_seconds=WITNESS_SECONDS, recent_seconds=RECENT_SECONDS)
        self.worker = world.parts.worker(name, self.connection, world.now, state)
        self.world = world
        self.alive = True
        self.frozen = False
        self.cut = False
        self.since = world.now()
        """When the worker started, moved to another master, or came back, whichever was last."""
        self.heartbeats = Task(self.worker.heartbeats())
        self.tail = Task(self.worker.tail())
        self.repair = Task(self.worker.repair())
        self.requests: list[Task] = []

    @property
    def state(self) -> SyncState:
        """The decisions of the worker."""
        return self.worker.state

    @property
    def awake(self) -> bool:
        """Whether the worker's process runs."""
        return self.alive and not self.frozen

    @property
    def reaches(self) -> bool:
        """Whether Redis would answer the worker."""
        return self.awake and not self.cut and not (self.world.hanging and self.on_master)

    @property
    def on_master(self) -> bool:
        """Whether the worker is connected to the present master."""
        return self.connection.master is self.world.master

    @property
    def tasks(self) -> list[Task]:
        """The three tasks of the worker, and its requests."""
        return [self.heartbeats, self.tail, self.repair, *self.requests]

    def step(self, task: Task) -> None:
        """Let one task take one step."""
        if self.awake and not task.ended and not task.paused:
            task.step(self.reaches)
        if task.ended and task in self.requests:
            self.requests.remove(task)

    def request(self, steps: Steps) -> Task:
        """Add the steps of a request as another task, and return it."""
        self.requests.append(Task(steps))
        return self.requests[-1]

    def send(self, task: Task) -> None:
        """Run one task until Redis has run its next exchange and the reply is waiting."""
        self.world.step(self, task)
        for _ in range(1000):
            if task.replied:
                return
            if task.call is None:
                self.world.pass_tick()
            self.world.step(self, task)
        raise self.world.broken(f"a task of {self.worker.name} has no exchange with Redis")

    def receive(self, task: Task) -> None:
        """Let one task handle the reply that is waiting."""
        assert task.replied
        self.world.step(self, task)

    def exchange(self, task: Task) -> None:
        """Let one task make a whole exchange."""
        self.send(task)
        self.receive(task)

    def breaks(self, lost: Callable[[], bool]) -> None:
        """Break the connection. A reply that is waiting is lost only if `lost` returns True."""
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
        """Thaw the process, and connect its network again."""
        if self.cut or self.frozen:
            self.cut = self.frozen = False
            self.since = self.world.now()
