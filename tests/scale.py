"""How large a test is: the everyday size, or the campaign's (CAMPAIGN=1, as `make campaign` sets it)."""

import os

CAMPAIGN = os.environ.get("CAMPAIGN") == "1"

BUSY_SECONDS = 0.2 if CAMPAIGN else 5.0
"""What a busy machine may add to a deadline.

The campaign has the machine to itself, and measures deadlines. The everyday tests share it, and only tell a deadline
from a call that hangs.
"""


def scaled(everyday: int, campaign: int) -> int:
    """The number that fits the run."""
    return campaign if CAMPAIGN else everyday
