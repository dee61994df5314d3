"""The clocks of Redis and of an instance may differ by the allowed skew; beyond it, a revocation is refused."""

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from revocation_client.claims import Claims
from revocation_client.revocation import covers
from revocation_service.errors import ClocksDiffer, Unavailable
from revocation_service.settings import Limits
from revocation_service.store.store import Put
from tests.redis_processes import Process, standalone
from tests.store.conftest import Opened, end_of, open_store

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Process]:
    """One server for all tests of this module."""
    async with standalone() as process:
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def opened(server: Process, request: pytest.FixtureRequest) -> AsyncIterator[Opened]:
    """A store whose clock is ahead of Redis' clock by the parameter, in seconds."""
    async with open_store(server.url, wall=lambda: time.time() + request.param) as store:
        yield store


@pytest.mark.parametrize("opened", [-600, -65, 65, 600], indirect=True)
async def test_beyond_the_skew_nothing_is_stored(server: Process, opened: Opened) -> None:
    """Beyond the skew, a put raises ClocksDiffer, even if one of the clocks says that the token has expired."""
    puts = (
        Put("jti", "a", exp=time.time() + 300),
        Put("jti", "a", exp=time.time() - 300),
        Put("sid", "a", expires_in=300),
        Put("sub", "a", cutoff_is_now=True),
    )
    for put in puts:
        with pytest.raises(ClocksDiffer, match="REVOCATION_CLOCK_SKEW_SECONDS") as error:
            await opened.store.put(put)
        assert isinstance(error.value, Unavailable)
    assert not (await opened.store.get([("jti", "a"), ("sid", "a"), ("sub", "a")])).found
    assert not await server.command("EXISTS", opened.store.keyspace.change_log)
    assert opened.counted("store_up") == 1, "Redis answered"


@pytest.mark.parametrize("opened", [-55, 55], indirect=True)
async def test_within_the_skew_revocations_are_stored(opened: Opened) -> None:
    """Within the skew, revocations are stored, and `expires_in` is counted on Redis' clock."""
    exp = time.time() + 300
    assert end_of(await opened.record(Put("jti", "a", exp=exp))) == exp
    assert end_of(await opened.record(Put("jti", "b", expires_in=300))) == pytest.approx(time.time() + 300, abs=2)
    assert await opened.found("b") is not None


@pytest.mark.parametrize(("opened", "later_by"), [(-30, 0), (3, 3), (30, 30)], indirect=["opened"])
async def test_the_default_cutoff_is_the_later_of_both_clocks(opened: Opened, later_by: float) -> None:
    """The default cutoff is the later of both clocks, so it covers a token issued a second before by either clock."""
    record = await opened.record(Put("sub", "alice", cutoff_is_now=True))
    assert record.issued_before == pytest.approx(time.time() + later_by, abs=0.9)
    assert record.revoked_at == pytest.approx(time.time(), abs=0.9), "on Redis' clock"
    for clock in (time.time(), time.time() + later_by):
        assert covers(record, Claims.of(sub="alice", iat=clock - 1), clock)


async def test_a_life_that_no_caller_asked_for_is_never_too_long(server: Process) -> None:
    """The default lifetime, counted from the cutoff, is accepted even with no skew allowed and a clock 0.5 s ahead."""
    limits = Limits(clock_skew_seconds=0, max_token_lifetime_seconds=1000)
    async with open_store(server.url, limits=limits, wall=lambda: time.time() + 0.5) as opened:
        record = await opened.record(Put("sub", "alice", cutoff_is_now=True))
        assert record.issued_before is not None
        assert end_of(record) == record.issued_before + 1000
