"""A simulated deployment: workers with the real SyncState, a model of Redis, and the faults between them.

Time advances in ticks. In each tick every task takes two steps, in random order. An exchange with Redis takes two
steps or more: one in which Redis runs it, and one in which the worker handles the reply. A fault may come between them.
After each step every worker is asked about every acknowledged revocation. A late "not revoked" raises BrokenPromise.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from revocation_service.replication.epoch import Key
from tests.replication.hosts import AS_IT_IS, FAR, NEVER, STALE_SECONDS, Host, Master, Parts, Task
from tests.replication.twin import Twin
from tests.scale import scaled

TICK_SECONDS: Final = 0.25
STEP_SECONDS: Final = 1e-6
"""How far one step advances the clock within its tick, so that no two steps have the same time."""
LATE_SECONDS: Final = float(scaled(2, 3))
"""How long after its cause a wrong "not revoked" may still come.

The longest time that campaigns with new seeds have found is 2.75 s; each exchange took several ticks there.
"""
SETTLE_TICKS: Final = 400


class BrokenPromise(AssertionError):
    """A promise of the protocol does not hold; the message has the seed and the trace."""


class World:
    """Redis and its workers. `step` advances one task; everything else happens only when its method is called."""

    def __init__(self, seed: int, workers: int, parts: Parts = AS_IT_IS, *, log_max: int = 1_000_000) -> None:
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
        """Probability that a reply which has arrived is lost when its connection breaks."""
        self.acknowledged: dict[Key, float] = {}
        self.lost_at: dict[Key, float] = {}
        self.written = 0
        self.latest = NEVER
        """Longest delay of a wrong "not revoked" after its cause, less STALE_SECONDS where those are allowed."""
        self.hosts = [Host(self, f"W{number}") for number in range(workers)]

    def now(self) -> float:
        """Return the time on the monotonic clock of all workers."""
        return self.tick * TICK_SECONDS + self.steps * STEP_SECONDS

    def name(self, prefix: str) -> str:
        """Return a name that was not used before."""
        self._names += 1
        return f"{prefix}{self._names}"

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now():8.3f} {what}")

    def broken(self, promise: str) -> BrokenPromise:
        """Return a BrokenPromise with the seed and the end of the trace."""
        return BrokenPromise(f"{promise}\nseed {self.seed}\n" + "\n".join(self.trace[-80:]))

    # Time

    def step(self, host: Host, task: Task) -> None:
        """Run one step of a task, then check the verdicts of all workers."""
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
        """Run all tasks until every worker is complete."""
        self.run(60, until=lambda: all(host.state.complete for host in self.living))
        assert all(host.state.complete for host in self.living)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Run all tasks for this many seconds, or until `until` returns True."""
        for _ in range(round(seconds / TICK_SECONDS)):
            if until():
                return
            self.run_tick()

    def run_tick(self, lazy: float = 1.0) -> None:
        """Run two steps of every task, in random order; each step is taken with the probability `lazy`."""
        turns = [(host, task) for host in self.hosts if host.awake for task in host.tasks] * 2
        self.dice.shuffle(turns)
        for host, task in turns:
            if lazy == 1.0 or self.dice.random() < lazy:
                self.step(host, task)
        self.pass_tick()

    # What users see

    def look(self) -> None:
        """Raise BrokenPromise if a worker says "not revoked" too late while a connected one holds the revocation."""
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
        elif not host.state.complete:
            raise self.broken(f"{host.worker.name} is joining and answers from its mirror")
        else:
            allowed += STALE_SECONDS
        for key in denied:
            self._late(host, key, allowed)

    def _late(self, host: Host, key: Key, allowed: float) -> None:
        late = min(self.seconds_after_cause(key), self.now() - host.since)  # its own absence is a cause, too
        self.latest = max(self.latest, late - allowed + LATE_SECONDS)
        if late > allowed:
            raise self.broken(f"{host.worker.name} denies {key[1]} {late:.2f} s after its cause")

    def seconds_after_cause(self, key: Key) -> float:
        """Return the seconds for which "not revoked" has been wrong; -inf if no connected worker holds the key."""
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
        """Take the verdict "not revoked" of a check, and raise BrokenPromise if it comes too late."""
        if key in self.acknowledged and self.seconds_after_cause(key) > LATE_SECONDS:
            raise self.broken(f"a check denies {key[1]}")

    # What users do

    def request(self, host: Host) -> Key:
        """Begin to revoke another token; the request advances with the steps of the host."""
        key: Key = ("jti", str(self.written))
        self.written += 1
        host.request(host.worker.write(key, FAR, partial(self._acknowledge, host)))
        return key

    def revoke(self, host: Host) -> Key:
        """Revoke another token, and run the request to its end."""
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
        """Replace Redis' data with `kept`; None empties it. A restart also changes the life and breaks connections."""
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
        """Note now as the time of loss of each acknowledged revocation that `new` lacks, even if it was lost before."""
        for key in self.acknowledged.keys() - new.records.keys():
            self.lost_at[key] = self.now()

    def fail_over(self, kept: Twin, clock_offset: float = 0.0) -> Master:
        """Promote a replica with this data. Return the former master, with which each worker stays until it moves."""
        self.former, old = self.master, self.master
        data = kept.copy()
        data.life = self.name("L")
        self.master = Master(data, clock_offset)
        self.master.changed()
        self._lost(data)
        self.note(f"a replica with {len(data.records)} of {len(old.data.records)} is promoted")
        return old

    def occupy_turn(self, seconds: float) -> None:
        """Take the restore lease for this many seconds, as another worker would, so that the workers have to wait."""
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
        """Return what has not recovered yet, as text; None if everything has."""
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
        """End all faults, run all tasks, and raise BrokenPromise if the workers and Redis do not recover."""
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
