"""Test sizes: small for everyday runs, large for the campaign (CAMPAIGN=1, which `make campaign` sets)."""

import os

CAMPAIGN = os.environ.get("CAMPAIGN") == "1"

BUSY_SECONDS = 0.2 if CAMPAIGN else 5.0
"""Seconds that a busy machine may add to a deadline.

The campaign runs alone on the machine and measures deadlines. Everyday tests share the machine, so they only detect
calls that hang.
"""


def scaled(everyday: int, campaign: int) -> int:
    """Return the number for this run: everyday or campaign."""
    return campaign if CAMPAIGN else everyday
