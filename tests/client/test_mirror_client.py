"""A client with a mirror answers as the service would, and never admits a token that it knows to be revoked."""

import asyncio
import base64
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from revocation_client import (
    NotStarted,
    RequestRefused,
    RevocationClient,
    RevocationError,
    TokenNeeded,
    TokenRevoked,
)
from revocation_client.claims import ClaimName, Claims
from revocation_client.counters import Counters
from revocation_client.feed_events import Change
from revocation_client.follower import SenderClock
from revocation_client.local_mirror import LocalMirror
from revocation_client.questions import check_request
from revocation_client.revocation import Revocation, covers
from revocation_client.testing import InMemoryRevocationClient
from tests.client.feed_server import CLOCK, FeedServer, revocation, serving_feed
from tests.client.test_follower import HANG_SECONDS, name, says, until
from tests.client.worlds import real_world
from tests.redis_processes import Process
from tests.scale import BUSY_SECONDS

IAT = 1_700_000_000.0


@pytest.fixture
async def server() -> AsyncIterator[FeedServer]:
    """A feed with three revocations: of a token, of a session, and of a subject with a cutoff."""
    async with serving_feed() as running:
        running.log += [revocation("gone"), revocation("s-1", "sid"), revocation("bob", "sub", cutoff=IAT)]
        yield running


@pytest.fixture
async def client(server: FeedServer) -> AsyncIterator[RevocationClient]:
    """A client whose mirror is synced."""
    async with server.client() as started:
        assert await started.mirror_ready(HANG_SECONDS)
        yield started


def jwt(**claims: Any) -> str:
    """Return a token with these claims and a made-up signature."""
    parts = ({"alg": "HS256"}, claims)
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, "c2ln"])


REVOKED: list[dict[str, Any]] = [
    {"jti": "gone"},
    {"jti": "x", "sid": "s-1", "iat": IAT + 500},
    {"jti": "x", "sub": "bob", "iat": IAT},
    {"jti": "x", "sub": "bob"},
    {"jti": "x", "sub": "bob", "iat": "yesterday"},
]
ACTIVE: list[dict[str, Any]] = [
    {"jti": "here"},
    {"jti": "x", "sid": "gone", "sub": "s-1", "azp": "bob"},
    {"jti": "x", "sub": "bob", "iat": IAT + 1},
    {"jti": 7, "sub": 12},
]


async def test_claims_are_answered_from_memory_in_every_way(client: RevocationClient, server: FeedServer) -> None:
    """About claims, all ways of asking agree and send no request. The verdict has the revocation and memory's age."""
    for question, revoked in [(one, True) for one in REVOKED] + [(one, False) for one in ACTIVE]:
        verdict = await client.check(question)
        assert (verdict.revoked, verdict.source, verdict.expired, verdict.verified) == (revoked, "mirror", None, False)
        assert verdict.stale_seconds is not None
        assert 0 <= verdict.stale_seconds < 1
        assert verdict.considered == check_request(question).claims.considered
        assert (verdict.revocation is not None) == revoked
        assert await client.is_revoked(question) is revoked
        assert client.is_revoked_now(question) is revoked
        with pytest.raises(TokenRevoked) if revoked else contextlib.nullcontext():
            await client.ensure_active(question)
    verdicts = await client.check_many(REVOKED + ACTIVE)
    assert [one.revoked for one in verdicts] == [True] * len(REVOKED) + [False] * len(ACTIVE)
    assert (await client.check_jti("gone")).revoked
    assert (await client.check_jti("sha256:abc")).source == "mirror"
    assert server.questions == []
    counters = client.counters
    assert (counters.mirror_revoked, counters.mirror_not_revoked) == (5 * len(REVOKED) + 1, 5 * len(ACTIVE) + 1)
    assert counters.requests == 0


async def test_the_fast_path_is_for_the_clients_own_loop_and_is_revoked_now_for_any_thread(
    client: RevocationClient,
) -> None:
    """On another event loop, a check raises NotStarted, although memory could tell. `is_revoked_now` answers there."""

    def elsewhere() -> bool | None:
        for ask in (client.is_revoked, client.ensure_active):
            with pytest.raises(NotStarted):
                asyncio.run(ask({"jti": "here"}))
        return client.is_revoked_now({"jti": "here"})

    assert await asyncio.to_thread(elsewhere) is False
    await client.aclose()
    with pytest.raises(NotStarted):
        await client.is_revoked({"jti": "here"})


async def test_whole_tokens_are_only_revoked_from_memory(client: RevocationClient, server: FeedServer) -> None:
    """For a whole token, memory says only "revoked". Otherwise the service is asked, which can verify the signature."""
    for claims in REVOKED:
        assert (await client.check("Bearer " + jwt(**claims))).source == "mirror"
        assert client.is_revoked_now(jwt(**claims)) is True
    expired = await client.check(jwt(jti="gone", exp=5))
    assert (expired.revoked, expired.expired) == (True, True)
    assert server.questions == []
    verdict = await client.check(jwt(jti="here"))
    assert (verdict.revoked, verdict.source) == (False, "redis")
    assert client.is_revoked_now(jwt(jti="here")) is None
    assert client.is_revoked_now("opaque") is None
    for unreadable in ("no.jwt.at-all", "Bearer "):
        with pytest.raises(RequestRefused):
            client.is_revoked_now(unreadable)


async def test_a_list_is_answered_from_both(client: RevocationClient, server: FeedServer) -> None:
    """`check_many` asks the service only what memory cannot say, and returns the verdicts in the caller's order."""
    token = jwt(jti="here")
    verdicts = await client.check_many([ACTIVE[0], token, REVOKED[0]])
    assert [(one.revoked, one.source) for one in verdicts] == [(False, "mirror"), (False, "redis"), (True, "mirror")]
    assert server.questions == [token]


@pytest.mark.parametrize(
    "question",
    [{}, {"jti": ""}, {"jti": None}, {"jti": "sha256:x"}, {"jti": "a\n"}, {"jti": "x" * 257}, {"jti": 1.5}]
    + [{"jti": "x", claim: value} for claim in ("sub", "sid", "azp") for value in ("", "a\0", "x" * 257, ["x"], True)],
)
async def test_a_bad_question_is_as_bad_as_without_memory(client: RevocationClient, question: dict[str, Any]) -> None:
    """With a mirror too, every way of asking raises for claims that the service would refuse."""
    with pytest.raises((TokenNeeded, RequestRefused)):
        await client.is_revoked(question)
    with pytest.raises((TokenNeeded, RequestRefused)):
        await client.ensure_active(question)
    with pytest.raises((TokenNeeded, RequestRefused)):
        client.is_revoked_now(question)


async def test_own_revocations_are_known_at_once_and_never_unlearned(
    client: RevocationClient, server: FeedServer
) -> None:
    """Memory has the client's own revocations when `revoke_*` returns, and keeps them although the feed lacks them."""
    await client.revoke_jti("mine")
    assert says(client, "mine")
    await client.revoke_session("my-session")
    assert client.is_revoked_now({"jti": "y", "sid": "my-session"})
    await client.revoke_subject("carol", issued_before=IAT)
    assert client.is_revoked_now({"jti": "y", "sub": "carol", "iat": IAT})
    assert client.is_revoked_now({"jti": "y", "sub": "carol", "iat": IAT + 1}) is False
    server.remembers = False
    server.log.clear()
    server.cut()
    await until(lambda: client.counters.snapshots == 2 and name(client) == "synced")
    server.answers = False
    assert await client.is_revoked({"jti": "mine"})
    assert await client.is_revoked({"jti": "y", "sid": "my-session"})


@pytest.mark.parametrize("policy", ["allow", "deny"])
async def test_an_outage_un_revokes_nothing(server: FeedServer, policy: Any) -> None:
    """In an outage, known revocations hold under either policy. Once memory is too old, the policy decides the rest."""
    async with server.client(on_unavailable=policy) as client:
        assert await client.mirror_ready(HANG_SECONDS)
        server.answers, server.status = False, 503
        server.cut()
        began = time.monotonic()
        while (verdict := await client.check(ACTIVE[0])).source == "mirror":
            assert not verdict.revoked
            assert time.monotonic() - began < HANG_SECONDS
            await asyncio.sleep(0.01)
        assert (verdict.source, verdict.revoked) == ("policy", policy == "deny")
        assert name(client) == "stale"
        for question in REVOKED:
            assert (await client.check(question)).source == "mirror"
            assert await client.is_revoked(question)
            assert await client.is_revoked(jwt(**question))
            with pytest.raises(TokenRevoked):
                await client.ensure_active(question)
        assert client.is_revoked_now(ACTIVE[0]) is None
        server.answers, server.status = True, 200
        await until(lambda: client.is_revoked_now(ACTIVE[0]) is False)


async def test_what_is_learned_while_a_question_is_under_way_counts(server: FeedServer) -> None:
    """A revocation that the feed delivers during a check counts, even if the service says "not revoked" or fails."""
    server.complete = False
    async with server.client(timeout_seconds=HANG_SECONDS) as client:
        assert await client.mirror_ready(HANG_SECONDS)
        for jti, answers in (("late", True), ("later", False)):
            server.held = asyncio.Event()
            asked = asyncio.create_task(client.check({"jti": jti}))
            await until(lambda wanted=jti: wanted in server.questions)  # type: ignore[misc]
            server.say(Change("9-9.nonce", [revocation(jti)]))  # only the feed knows of it
            await until(lambda wanted=jti: says(client, wanted))  # type: ignore[misc]
            server.answers = answers
            server.held.set()
            verdict = await asked
            assert (verdict.revoked, verdict.source) == (True, "mirror")


async def test_without_a_mirror_the_service_is_asked_each_time(server: FeedServer) -> None:
    """With `mirror=False` the client has no stream, no memory and no status, and asks the service each time."""
    async with server.client(mirror=False) as client:
        assert await client.is_revoked({"jti": "gone"})
        assert await client.is_revoked({"jti": "gone"})
        assert client.is_revoked_now({"jti": "gone"}) is None
        assert client.mirror_status is None
        assert not await client.mirror_ready(HANG_SECONDS)
    assert (server.questions, server.asked) == (["gone", "gone"], [])


async def test_it_can_be_asked_in_any_thread(client: RevocationClient) -> None:
    """`is_revoked_now` answers in threads without an event loop. A closed client raises NotStarted."""
    found: list[bool | None] = []
    threads = [threading.Thread(target=lambda: found.append(client.is_revoked_now({"jti": "gone"}))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert found == [True] * 8
    await client.aclose()
    with pytest.raises(NotStarted):
        client.is_revoked_now({"jti": "gone"})
    with pytest.raises(NotStarted):
        await client.is_revoked({"jti": "here"})


async def test_the_stand_in_remembers_what_was_revoked_through_it() -> None:
    """In an outage, the stand-in still knows its own revocations, and the policy decides everything else."""
    now = 1000.0
    async with InMemoryRevocationClient(clock=lambda: now) as client:
        assert await client.mirror_ready(1)
        await client.revoke_jti("mine", expires_in=60)
        assert client.is_revoked_now({"jti": "mine"}) is True
        with client.outage():
            assert await client.is_revoked({"jti": "mine"})
            assert (await client.check({"jti": "other"})).source == "policy"
        now = 1100.0
        assert not await client.is_revoked({"jti": "mine"})


async def test_memory_ends_a_cutoff_when_its_lifetime_is_over() -> None:
    """Until its end, a cutoff covers tokens without `iat`, with `iat_unusable` set. Afterwards they are accepted."""
    now = 1000.0
    async with InMemoryRevocationClient(clock=lambda: now) as client:
        await client.revoke_subject("alice", expires_in=900)
        for moment in (1000.0, 1900.0):
            now = moment
            for question in ({"jti": "new", "sub": "alice"}, jwt(jti="new", sub="alice")):
                verdict = await client.check(question)
                assert (verdict.source, verdict.revoked, verdict.iat_unusable) == ("mirror", True, True)
        before = await client.check({"jti": "old", "sub": "alice", "iat": 999})
        assert (before.source, before.revoked, before.iat_unusable) == ("mirror", True, False)
        now = 1901.0
        after = await client.check({"jti": "new", "sub": "alice"})
        assert (after.revoked, after.iat_unusable) == (False, False)


class Named(StrEnum):
    """String members that are equal to their value, but have the hash of their name."""

    FIRST = "a"
    BROKEN = "\n"


_TEXTS: st.SearchStrategy[Any] = st.sampled_from(
    ["a", "b", "c", "sha256:a", "", "\x00", "é", "\xa0", "x" * 257, 7, None, True, 1.5, [], "y" * 200, *Named]
)
_QUESTIONS = st.dictionaries(
    st.sampled_from(["jti", "sid", "sub", "client_id", "azp", "iat"]),
    _TEXTS | st.floats() | st.sampled_from([50, 95.0]),
    max_size=6,
)
_HELD = st.lists(
    st.builds(
        Revocation,
        st.sampled_from(["jti", "sid", "sub", "client_id", "all"]),
        st.sampled_from(["a", "b", "é", "7", "y" * 200]),
        st.sampled_from([50.0, 150.0, None]),
        st.none(),
        st.sampled_from([None, 10.0, 90.0]),
    ).map(lambda one: one if one.claim != "all" else Revocation("all", "", one.expires_at, None, one.issued_before)),
    max_size=4,
)


@given(_QUESTIONS, _HELD, st.booleans())
def test_the_fast_path_never_says_more_than_the_rule(
    question: dict[str, Any], held: list[Revocation], fresh: bool
) -> None:
    """For any claims, the fast path admits only what the rule admits, and `verdict` agrees with the rule."""
    memory = LocalMirror(5.0, Counters(), wall=lambda: 100.0, monotonic=lambda: 7.0)
    for one in held:
        memory.learn(one)
    if fresh:
        memory.mark_fresh(0.0, complete=True, connected=True)
    admitted = memory.admits(question)
    try:
        asked = check_request(question)
    except RevocationError:
        assert not admitted
        return
    assert isinstance(asked.claims, Claims)
    live = [one for one in held if one.expires_at is None or one.expires_at > 100]
    revoked = any(covers(one, asked.claims, 100.0) for one in live)
    verdict = memory.verdict(asked)
    assert not (admitted and (revoked or not fresh))
    if revoked or fresh:
        assert verdict is not None
        assert verdict.revoked == revoked
    else:
        assert verdict is None
    values = [value for claim, value in question.items() if claim != "iat" and value is not None]
    usual = all(type(value) is str and value.isprintable() for value in values)
    named = {(one.claim, one.value) for one in held} & set(asked.claims.identifiers)
    if fresh and usual and not named:
        assert admitted, "else every check would go the slow way"


@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id"])
def test_the_fast_path_admits_no_revoked_token_of_many(claim: ClaimName) -> None:
    """The fast path admits no revoked value of thousands, admits other values, and admits no invalid claims."""
    memory = LocalMirror(5.0, Counters(), wall=lambda: 100.0, monotonic=lambda: 7.0)
    memory.mark_fresh(0.0, complete=True, connected=True)
    usual = {"jti": "x", "sid": "x", "sub": "x", "client_id": "x"}
    for number in range(5000):
        memory.learn(Revocation(claim, f"held-{number}", None, None))
        assert not memory.admits(usual | {claim: f"held-{number}"})
        assert memory.admits(usual | {claim: f"other-{number}"})
    assert all(not memory.admits(usual | {claim: f"held-{number}"}) for number in range(5000))
    bad: list[object] = [[], {}, "\n", "", "x" * 257, b"x", True]
    for question in [usual | {claim: value} for value in bad]:
        assert not memory.admits(question)
        with pytest.raises(RevocationError):
            check_request(question)


def test_an_enumerations_member_is_its_text() -> None:
    """Memory looks a string enumeration's member up as its value, although the member has another hash."""
    memory = LocalMirror(5.0, Counters(), wall=lambda: 100.0, monotonic=lambda: 7.0)
    memory.learn(Revocation("sub", "a", None, None))
    memory.mark_fresh(0.0, complete=True, connected=True)
    for question in ({"jti": "x", "sub": Named.FIRST}, {"jti": Named.FIRST, "sub": "a"}):
        assert not memory.admits(question)
        verdict = memory.verdict(check_request(question))
        assert verdict is not None
        assert verdict.revoked


@pytest.mark.parametrize("claim", ["jti", "sid", "sub", "client_id"])
@pytest.mark.parametrize("clock", ["wall", "monotonic"])
@pytest.mark.parametrize("age", [0.0, 3.5])
def test_a_proof_that_arrives_during_a_check_does_not_count_for_it(claim: ClaimName, clock: str, age: float) -> None:
    """If a revocation and a newer proof arrive while a check reads the clocks, that check does not admit the token."""
    waiting: list[str] = []

    def read(name: str, seconds: float) -> float:
        if waiting == [name]:
            waiting.clear()
            memory.learn(Revocation(claim, "x", None, None))
            memory.mark_fresh(0.0, complete=True, connected=True)
        return seconds

    memory = LocalMirror(5.0, Counters(), wall=lambda: read("wall", 1000.0), monotonic=lambda: read("monotonic", 7.0))
    memory.mark_fresh(age, complete=True, connected=True)
    waiting.append(clock)
    assert not memory.admits({"jti": "x", "sid": "x", "sub": "x", "client_id": "x"})
    assert not waiting
    assert memory.admits({"jti": "y", "sid": "y", "sub": "y", "client_id": "y"})


class Clocks:
    """A wall clock and a monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1000.0, 5.0

    def memory(self) -> LocalMirror:
        """Return a memory that uses these clocks."""
        return LocalMirror(5.0, Counters(), wall=lambda: self.wall, monotonic=lambda: self.monotonic)

    def go(self, seconds: float) -> None:
        """Advance both clocks."""
        self.wall += seconds
        self.monotonic += seconds


QUESTION = {"jti": "x"}


@pytest.mark.parametrize("age", [0.0, 1.0, 2.9])
def test_memory_alone_says_not_revoked_while_its_proof_is_at_most_three_seconds_old(age: float) -> None:
    """Memory decides alone until its proof is 3 s old. Until 5 s it decides only if the service does not answer."""
    clocks = Clocks()
    memory = clocks.memory()
    asked = check_request(QUESTION)
    assert (memory.admits(QUESTION), memory.status().name) == (False, "connecting")
    memory.mark_fresh(age, complete=True, connected=True)
    assert (memory.admits(QUESTION), memory.status().name) == (True, "synced")
    clocks.go(2.99 - age)
    assert memory.admits(QUESTION)
    clocks.go(0.02)
    assert (memory.admits(QUESTION), memory.verdict(asked)) == (False, None)
    memory.last_error = "gone"
    status = memory.status()
    assert (status.name, status.last_error) == ("stale", "gone")
    assert status.since == pytest.approx(1000 + 3 - age)
    clocks.go(1.98)
    fallback = memory.verdict(asked, alone=False)
    assert fallback is not None
    assert not fallback.revoked
    clocks.go(0.02)
    assert memory.verdict(asked, alone=False) is None
    memory.mark_fresh(5.5, complete=True, connected=True)  # too old to count
    assert not memory.admits(QUESTION)
    assert memory.verdict(asked, alone=False) is None


def test_a_disconnected_memory_has_the_service_asked_however_fresh_it_is() -> None:
    """Disconnected memory says "not revoked" only if the service does not answer, even if its proof is fresh."""
    clocks = Clocks()
    memory = clocks.memory()
    memory.learn(Revocation("jti", "gone", None, None))
    asked = check_request(QUESTION)
    memory.mark_fresh(0.0, complete=True, connected=True)
    for leave in (memory.mark_disconnected, lambda: memory.mark_fresh(0.0, complete=True, connected=False)):
        leave()
        assert (memory.admits(QUESTION), memory.verdict(asked), memory.status().name) == (
            False,
            None,
            "stale",
        )
        assert memory.can_decide(asked)
        revoked = memory.verdict(check_request({"jti": "gone"}))
        assert revoked is not None
        assert revoked.revoked
        memory.mark_fresh(0.0, complete=True, connected=True)
        assert memory.admits(QUESTION)
    memory.mark_unproven()
    assert not memory.can_decide(asked)


def test_an_incomplete_memory_decides_nothing_but_what_is_revoked() -> None:
    """Incomplete memory never says "not revoked", even if the service does not answer."""
    clocks = Clocks()
    memory = clocks.memory()
    memory.mark_fresh(0.0, complete=False, connected=True)
    asked = check_request(QUESTION)
    assert (memory.admits(QUESTION), memory.verdict(asked), memory.verdict(asked, alone=False)) == (False, None, None)


def test_a_suspended_machine_makes_the_proof_old() -> None:
    """A proof is void if it is too old by the wall clock: during suspension, the monotonic clock may stop."""
    clocks = Clocks()
    memory = clocks.memory()
    memory.mark_fresh(0.0, complete=True, connected=True)
    asked = check_request(QUESTION)
    clocks.wall += 6
    assert (memory.admits(QUESTION), memory.can_decide(asked)) == (False, False)
    clocks.wall -= 6.5
    assert (memory.admits(QUESTION), memory.can_decide(asked)) == (False, False)
    clocks.wall += 0.5
    assert (memory.admits(QUESTION), memory.can_decide(asked)) == (True, True)


class ClockedClient(RevocationClient):
    """A client whose clocks the test sets, as seconds that each is ahead of the real one."""

    wall_ahead = uptime_ahead = 0.0

    def _wall(self) -> float:
        return time.time() + self.wall_ahead

    def _uptime(self) -> float:
        return time.monotonic() + self.uptime_ahead


def entries(client: RevocationClient) -> int:
    """Return the number of revocations that the client holds in memory."""
    status = client.mirror_status
    assert status is not None
    return status.entries


async def test_a_wall_clock_that_jumps_ahead_and_back_forgets_no_revocation(server: FeedServer) -> None:
    """A revocation that has ended by both clocks is removed. One that has ended by the wall clock alone is kept."""
    server.log += [revocation("long", seconds=7200), revocation("brief", seconds=60)]
    async with ClockedClient(server.url) as client:
        assert await client.mirror_ready(HANG_SECONDS)
        held = entries(client)
        client.wall_ahead, client.uptime_ahead = 14_400.0, 500.0
        assert says(client, "long")
        await until(lambda: entries(client) < held)
        assert says(client, "brief") is not True
        assert says(client, "long")
        client.wall_ahead = 500.0
        assert says(client, "long")


async def test_a_wall_clock_that_was_ahead_at_the_start_has_all_read_again_when_it_is_set_back(
    server: FeedServer,
) -> None:
    """After a wall clock that was ahead is set back, memory admits no token until a new snapshot is complete."""

    class Ahead(ClockedClient):
        wall_ahead = 3600.0

    async with Ahead(server.url) as client:
        assert await client.mirror_ready(HANG_SECONDS)
        assert says(client, "gone") is False
        client.wall_ahead = 0.0
        assert says(client, "never") is None
        await until(lambda: client.counters.snapshots == 2)
        await until(lambda: says(client, "never") is False)
        assert says(client, "gone")


def test_heartbeats_that_are_read_late_count_for_when_they_were_sent() -> None:
    """Heartbeats that waited in the buffer of a frozen process count as old as they are: nine and eight seconds."""
    sender = SenderClock(100.0)
    for second in range(2):
        sender.to_local(CLOCK + 100.01 + second, 100.02 + second)
    late = [111.0 - sender.to_local(CLOCK + 100.01 + second, 111.0) for second in range(2, 4)]
    assert late == pytest.approx([9.0, 8.0], abs=0.1)


async def test_the_real_service_and_its_feed(redis: Process) -> None:
    """A client learns within a second what another one revokes, keeps it while cut off, and then resumes the stream."""
    options: dict[str, Any] = {"mirror": True, "max_staleness_seconds": 1.0}
    async with real_world(redis) as world, world.client(**options) as one, world.client(**options) as other:
        assert await one.mirror_ready(HANG_SECONDS)
        assert await other.mirror_ready(HANG_SECONDS)
        assert says(other, "real") is False
        await one.revoke_jti("real", expires_in=600)
        assert says(one, "real")
        acknowledged = time.monotonic()
        await until(lambda: says(other, "real"))
        assert time.monotonic() - acknowledged < 0.8 + BUSY_SECONDS
        await one.revoke_subject("carol")
        await until(lambda: other.is_revoked_now({"jti": "x", "sub": "carol", "iat": 5}))
        assert other.is_revoked_now({"jti": "x", "sub": "carol", "iat": time.time() + 1}) is False
        told = await other.check({"jti": "x", "sub": "carol"})
        assert (told.source, told.revoked, told.iat_unusable) == ("mirror", True, True)
        async with world.outage():
            await until(lambda: says(other, "never") is None)
            assert await other.is_revoked({"jti": "real"})
            while (verdict := await other.check({"jti": "never"})).source == "mirror":
                assert not verdict.revoked
                await asyncio.sleep(0.01)
            assert verdict.source == "policy"
        await until(lambda: says(other, "never") is False)
        assert other.counters.snapshots == 1
        assert other.counters.streams >= 2


PROCESS = Path(__file__).with_name("asking_process.py")


async def test_a_frozen_process_does_not_answer_from_memory_when_it_is_thawed(server: FeedServer) -> None:
    """After a freeze, a process says "not revoked" only once a new heartbeat has come; buffered ones do not count."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), server.url, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while await process.stdout.readline() != b"False\n":
                pass
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(1.5)  # meanwhile its buffer fills with heartbeats
            server.beats, server.script = False, nothing
            await asyncio.sleep(1.5)
            process.send_signal(signal.SIGCONT)
            heard = {await process.stdout.readline()}
            thawed = time.monotonic()
            while time.monotonic() - thawed < 1.5:
                with contextlib.suppress(TimeoutError):
                    heard.add(await asyncio.wait_for(process.stdout.readline(), 0.2))
            assert heard == {b"None\n"}
            server.beats, server.script = True, None
            server.cut()
            while await process.stdout.readline() != b"False\n":
                pass
    finally:
        process.kill()
        await process.wait()


async def nothing(_response: object) -> None:
    """Keep a stream open for a second without sending anything."""
    await asyncio.sleep(1)
