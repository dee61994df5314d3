"""How old what a mirror knows is, and what may therefore be believed of it. Pure: every time is passed in.

A heartbeat says how far behind its sender is, and when, on the sender's own monotonic clock, it was sent. The
receiver's age is that, plus the time since: for which the distance between the two clocks must be known. A stream's
first heartbeat is sent at once, so after it was asked for; taking it for sent in that very moment errs by the way
there, and only ever towards too old. So a heartbeat that is read late, by a process that was frozen or from a buffer
that was full, makes nothing look fresh.
"""

import math
from typing import Literal

Name = Literal["connecting", "synced", "stale"]


class Freshness:
    """The age of a mirror, from the heartbeats that reached it; all times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._fresh_at = -math.inf
        self._asked_at = -math.inf
        self._distance: float | None = None

    def asked(self, now: float) -> None:
        """A stream is asked for: from another sender, perhaps, whose clock has nothing to do with the last one's."""
        self._asked_at, self._distance = now, None

    def beat(self, behind_seconds: float, sent_at: float, now: float) -> None:
        """A heartbeat: what is known here was complete `behind_seconds` before it was sent."""
        if self._distance is None:
            self._distance = self._asked_at - sent_at
        self._distance = min(self._distance, now - sent_at)
        self._fresh_at = max(self._fresh_at, sent_at + self._distance - max(behind_seconds, 0))

    def age(self, now: float) -> float:
        """For how long, in seconds, a revocation may have been acknowledged and not be known here; inf: for ever."""
        return now - self._fresh_at
