"""The protocol keeps its promises under random schedules and faults. A failure prints the seed and the trace."""

import secrets
from typing import Final

import pytest

from tests.replication.random_world import RandomWorld
from tests.scale import CAMPAIGN, scaled

BLOCK: Final = 25
"""Number of seeds that one test runs, so that the tests can be spread over processes."""

START: Final = secrets.randbelow(10**9) if CAMPAIGN else 0
"""The everyday run takes the same seeds each time; a campaign takes new ones."""


@pytest.mark.parametrize("block", range(scaled(6, 500)))
def test_nothing_that_a_connected_worker_holds_is_denied_later_than_two_seconds(block: int) -> None:
    """No wrong "not revoked" comes too late. In the end all workers are complete, and Redis has all that they hold."""
    for seed in range(START + block * BLOCK, START + (block + 1) * BLOCK):
        RandomWorld(seed).play()


@pytest.mark.parametrize("block", range(scaled(3, 150)))
def test_with_losses_only_a_complete_worker_never_refuses(block: int) -> None:
    """If Redis only loses data, a complete worker never answers 503, unless it missed an epoch that is pending."""
    for seed in range(START + block * BLOCK, START + (block + 1) * BLOCK):
        RandomWorld(seed, losses_only=True).play()
