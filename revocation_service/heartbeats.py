"""The heartbeats by which a reader proves what it knows. Pure: it is told the time."""

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Heartbeats:
    """The heartbeats of one session; one is proven when it was both acknowledged and read back."""

    proven_at: float = -math.inf
    """Before the newest proven one was begun, on the monotonic clock."""
    begun: dict[int, float] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)
    read: set[int] = field(default_factory=set)

    def prove(self) -> bool:
        """Whether one more is proven by now; what is older is forgotten."""
        proven = self.acknowledged & self.read
        if not proven:
            return False
        self.proven_at = max(self.begun[number] for number in proven)
        self.begun = {number: at for number, at in self.begun.items() if at > self.proven_at}
        self.acknowledged &= self.begun.keys()
        self.read &= self.begun.keys()
        return True
