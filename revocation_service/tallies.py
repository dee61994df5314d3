"""Metrics that count in plain numbers, and hand those over to prometheus_client when somebody asks for them.

Its own counting takes a lock for each number, and is a twelfth of what a check costs. Workers that share their metrics
in files have to count there at once, so these are for one process that shows its own.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from prometheus_client import Counter, Histogram
from prometheus_client.samples import Sample


class TalliedCounter(Counter):
    """A counter; what it was told since somebody last looked is held here."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._held = 0.0

    def inc(self, amount: float = 1, exemplar: Any = None) -> None:
        """Count one more, or so many."""
        self._held += amount

    def _child_samples(self) -> Iterable[Sample]:
        held, self._held = self._held, 0.0
        super().inc(held)
        return super()._child_samples()


class TalliedHistogram(Histogram):
    """A histogram; what it was told since somebody last looked is held here."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._held = [0] * len(self._upper_bounds)
        self._held_sum = 0.0

    def observe(self, amount: float, exemplar: Any = None) -> None:
        """Count one observation."""
        self._held[bisect_left(self._upper_bounds, amount)] += 1
        self._held_sum += amount

    def _child_samples(self) -> Iterable[Sample]:
        self._sum.inc(self._held_sum)
        for bucket, held in zip(self._buckets, self._held, strict=True):
            bucket.inc(held)
        self._held, self._held_sum = [0] * len(self._upper_bounds), 0.0
        return super()._child_samples()
