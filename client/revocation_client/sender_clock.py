"""Translate the times of a heartbeat's sender, so that one that is read late proves nothing fresh. Pure.

The distance between two monotonic clocks is estimated as the smallest one seen on a stream, where the first heartbeat
counts as sent when the stream was requested. That errs only towards too old: what a frozen process finds in its buffer
is as old as it is.
"""


class SenderClock:
    """The monotonic clock of the sender of one stream, in seconds of the monotonic clock here."""

    def __init__(self, asked_at: float) -> None:
        self._asked_at = asked_at
        self._distance: float | None = None

    def to_local(self, sent_at: float, now: float) -> float:
        """Return when a heartbeat that is read now was sent, or an earlier time."""
        first = self._asked_at if self._distance is None else sent_at + self._distance
        self._distance = min(first, now) - sent_at
        return sent_at + self._distance
