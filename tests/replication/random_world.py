"""A simulated deployment with random requests, faults and timing, all drawn from one seed."""

import random
from collections.abc import Callable, Iterable

from tests.replication.hosts import AS_IT_IS, Parts
from tests.replication.twin import Twin
from tests.replication.world import World


class RandomWorld(World):
    """A world with random faults. With `losses_only` no worker is cut off or frozen, and Redis always answers."""

    def __init__(self, seed: int, parts: Parts = AS_IT_IS, *, losses_only: bool = False) -> None:
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
        """Run this many ticks with random requests and faults, then settle."""
        for _ in range(ticks):
            self._happen()
            self.run_tick(self._lazy)
            if self.losses_only:
                self._check_that_none_refuses()
        self.settle()

    def _check_that_none_refuses(self) -> None:
        """Raise BrokenPromise if a complete worker answers 503, unless it missed an epoch that is pending.

        Where Redis loses data twice between two heartbeats of a worker, the worker never hears of the epoch in between.
        """
        for host in self.living:
            missed = host.worker.pending - host.worker.entered
            if host.state.complete and not host.state.believes(self.now()) and not missed:
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
