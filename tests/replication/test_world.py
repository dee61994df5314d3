"""The promises of the protocol, over random schedules and faults. A failure prints the seed and the trace."""

import secrets
from typing import Final

import pytest

from tests.replication.random_world import RandomWorld
from tests.scale import CAMPAIGN, scaled

BLOCK: Final = 25
"""How many seeds one test takes, so that the tests can be spread over processes."""

START: Final = secrets.randbelow(10**9) if CAMPAIGN else 0
"""The everyday run takes the same seeds each time; a campaign takes new ones."""


@pytest.mark.parametrize("block", range(scaled(6, 500)))
def test_nothing_that_a_connected_worker_holds_is_denied_later_than_two_seconds(block: int) -> None:
    """And in the end every worker is complete, and Redis has everything that any worker held."""
    for seed in range(START + block * BLOCK, START + (block + 1) * BLOCK):
        RandomWorld(seed).play()


@pytest.mark.parametrize("block", range(scaled(3, 150)))
def test_with_losses_only_a_complete_worker_never_refuses(block: int) -> None:
    """A worker that was in sync when Redis lost data goes on answering."""
    for seed in range(START + block * BLOCK, START + (block + 1) * BLOCK):
        RandomWorld(seed, losses_only=True).play()
