"""How large a test is: the everyday size, or the campaign's (CAMPAIGN=1, as `make campaign` sets it)."""

import os

CAMPAIGN = os.environ.get("CAMPAIGN") == "1"


def scaled(everyday: int, campaign: int) -> int:
    """The number that fits the run."""
    return campaign if CAMPAIGN else everyday
