"""When memory answers, and when the service is asked (contract, section 9, point 2)."""

import asyncio
import base64
import contextlib
import functools
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvloop
from aiohttp import web

from revocation_client import RequestRefused, RevocationClient, ServiceUnavailable, TokenNeeded, TokenRevoked
from revocation_client.batcher import LATE_SECONDS
from revocation_client.feed_events import Heartbeat, Reset, encode
from revocation_client.jwt_reader import read_token
from revocation_client.service_calls import ANSWER_SECONDS
from revocation_client.testing import InMemoryRevocationClient
from tests.api.serving import API_KEYS, KEYS, serving
from tests.client.feed_server import FeedServer, revocation, serving_feed
from tests.client.test_follower import HANG_SECONDS, name, says, until
from tests.redis_processes import Process

TIMEOUT_SECONDS = 1.5


@pytest.fixture
async def server() -> AsyncIterator[FeedServer]:
    """A feed with one revocation in it."""
    async with serving_feed() as running:
        running.log.append(revocation("first"))
        yield running


@contextlib.asynccontextmanager
async def synced(server: FeedServer, **options: Any) -> AsyncIterator[RevocationClient]:
    """Yield a client whose memory is synced, and stays fresh enough to decide for a whole test."""
    async with server.client(
        **{"max_staleness_seconds": HANG_SECONDS, "timeout_seconds": HANG_SECONDS} | options
    ) as it:
        assert await it.mirror_ready(HANG_SECONDS)
        yield it


async def test_a_disconnected_client_asks_the_service_which_knows_the_latest_logout(server: FeedServer) -> None:
    """Once its stream has broken off, a client asks the service, although its memory is still fresh."""
    async with synced(server) as client:
        assert (await client.check({"jti": "late"})).source == "mirror"
        server.status = 503
        server.cut()
        await until(lambda: name(client) == "stale")
        server.log.append(revocation("late"))
        with pytest.raises(TokenRevoked):
            await client.ensure_active({"jti": "late"})
        assert server.questions == ["late"]
        assert client.is_revoked_now({"jti": "other"}) is None


async def test_what_the_service_said_is_revoked_stays_revoked_when_it_goes_away(server: FeedServer) -> None:
    """Memory learns revocations from the service's answers too, and still knows them when the service is away."""
    async with synced(server) as client:
        server.status = 503
        server.cut()
        await until(lambda: name(client) == "stale")
        server.log.append(revocation("late"))
        assert await client.is_revoked({"jti": "late"})
        server.answers = False
        assert (await client.check({"jti": "other"})).source == "mirror"
        verdict = await client.check({"jti": "late"})
        assert (verdict.revoked, verdict.source) == (True, "mirror")


async def test_ended_revocations_are_removed_where_no_feed_ever_comes(server: FeedServer) -> None:
    """A client without a feed removes ended revocations that it learned from the service's answers."""
    ahead = 0.0

    class Ahead(RevocationClient):
        _wall = _uptime = staticmethod(lambda: time.time() + ahead)

    server.status = 503
    async with Ahead(server.url) as client:
        assert await client.is_revoked({"jti": "first"})
        await until(lambda: client.mirror_status and client.mirror_status.entries == 1)
        ahead = 3600.0
        await until(lambda: client.mirror_status and client.mirror_status.entries == 0)


async def test_memory_asks_once_its_follower_was_cancelled_from_outside(server: FeedServer) -> None:
    """If the task that follows the feed is cancelled, memory no longer says "not revoked": the service is asked."""
    async with synced(server) as client:
        assert client.is_revoked_now({"jti": "other"}) is False
        (follower,) = [task for task in asyncio.all_tasks() if task.get_name() == "revocation-follower"]
        follower.cancel()
        await asyncio.wait([follower])
        assert client.is_revoked_now({"jti": "other"}) is None
        server.log.append(revocation("late"))
        assert await client.is_revoked({"jti": "late"})


async def test_a_client_that_is_told_the_service_leaves_asks_it_and_hears_the_feed_to_its_end(
    server: FeedServer,
) -> None:
    """After a shutdown event, a client asks the service, follows the stream to its end, and then resumes it."""
    async with synced(server) as client:
        server.say(Reset("shutdown"))
        await until(lambda: name(client) == "stale")
        server.log.append(revocation("asked"))
        assert await client.is_revoked({"jti": "asked"})
        assert server.questions == ["asked"]
        server.revoke(revocation("heard"))
        server.answers = False
        await until(lambda: says(client, "heard"))
        server.say(server.beat())
        assert await client.is_revoked({"jti": "heard"})
        verdict = await client.check({"jti": "never"})
        assert (verdict.revoked, verdict.source) == (False, "mirror")
        assert name(client) == "stale", "heartbeats of a service that leaves do not reconnect the client"
        assert len(server.asked) == 1
        server.cut()
        await until(lambda: len(server.asked) == 2)
        assert server.asked[1] == "3-0.nonce"


async def test_one_probe_at_a_time_asks_a_service_that_hangs_and_memory_decides_all_others(server: FeedServer) -> None:
    """While one check waits for a silent service, memory decides all others. After its answer, all checks are sent."""
    async with synced(server) as client:
        server.status, server.held = 503, asyncio.Event()
        server.cut()
        await until(lambda: name(client) == "stale")
        first = await client.check({"jti": "first-asked"})  # waits `ANSWER_SECONDS`
        assert (first.revoked, first.source) == (False, "mirror")
        probe = asyncio.create_task(client.check({"jti": "probe"}))
        await until(lambda: "probe" in server.questions)
        for number in range(50):
            verdict = await client.check({"jti": f"other-{number}"})
            assert (verdict.revoked, verdict.source) == (False, "mirror")
        assert {one.source for one in await client.check_many([{"jti": str(n)} for n in range(5)])} == {"mirror"}
        assert await client.is_revoked({"jti": "first"})
        assert not probe.done()
        assert server.questions == ["first-asked", "probe"]
        server.held.set()
        assert (await probe).source == "redis"
        assert {one.source for one in await client.check_many([{"jti": str(n)} for n in range(5)])} == {"redis"}


async def test_a_service_that_refuses_connections_is_asked_by_every_check() -> None:
    """After refused connections, concurrent checks all ask the service, because it may be back at any moment."""
    async with contextlib.AsyncExitStack() as running:
        async with serving_feed() as away:
            client = await running.enter_async_context(synced(away))
        await until(lambda: name(client) == "stale")
        verdicts = await asyncio.gather(*(client.check({"jti": str(number)}) for number in range(5)))
        assert {(one.revoked, one.source) for one in verdicts} == {(False, "mirror")}
        async with serving_feed(FeedServer(), away.port) as back:
            back.status = 503
            back.log.append(revocation("late"))
            sources = [one.source for one in await asyncio.gather(*(client.check({"jti": "late"}) for _ in range(5)))]
            assert set(sources) == {"redis"}


async def test_a_silence_that_is_over_is_not_remembered(server: FeedServer) -> None:
    """Some time after a check timed out, concurrent checks all ask the service again. Memory decides none of them."""
    async with synced(server) as client:
        server.status, server.held = 503, asyncio.Event()
        server.cut()
        await until(lambda: name(client) == "stale")
        assert (await client.check({"jti": "timed-out"})).source == "mirror"
        server.held.set()
        server.status = 200
        await until(lambda: name(client) == "synced")
        loop = asyncio.get_running_loop()
        clock = loop.time
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "time", lambda: clock() + 3 * ANSWER_SECONDS)  # after the timeout is forgotten
            server.say(Reset("shutdown"))
            await until(lambda: name(client) == "stale")
            server.log.append(revocation("late"))
            verdicts = await asyncio.gather(*(client.check({"jti": "late"}) for _ in range(10)))
        assert {(one.revoked, one.source) for one in verdicts} == {(True, "redis")}


async def test_a_cancelled_probe_makes_way_for_the_next(server: FeedServer) -> None:
    """If the check that waits for a silent service is cancelled, the next check asks the service."""
    async with synced(server) as client:
        server.status, server.held = 503, asyncio.Event()
        server.cut()
        await until(lambda: name(client) == "stale")
        await client.check({"jti": "first-asked"})
        probe = asyncio.create_task(client.check({"jti": "cancelled"}))
        await until(lambda: "cancelled" in server.questions)
        probe.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probe
        server.held.set()
        server.log.append(revocation("late"))
        assert await client.is_revoked({"jti": "late"})


async def test_memory_decides_at_once_where_the_service_says_that_it_cannot(server: FeedServer) -> None:
    """If the service answers 5xx, memory decides. What it knows to be revoked stays revoked."""
    async with synced(server) as client:
        server.status, server.answers = 503, False
        server.cut()
        await until(lambda: name(client) == "stale")
        verdict = await client.check({"jti": "never"})
        assert (verdict.revoked, verdict.source) == (False, "mirror")
        assert await client.is_revoked({"jti": "first"})


@pytest.mark.parametrize("kind", ["claim", "event", "member"])
async def test_what_the_client_does_not_understand_makes_its_memory_ask(
    server: FeedServer, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """After an unknown claim, event or member, the stream goes on, but memory says only what is revoked.

    This still holds after the feed has started over. It is logged once.
    """
    unknown: dict[str, bytes] = {
        "claim": b'event: change\nid: 1-0.nonce\ndata: {"revocations":[["device_id","d",null,null]]}\n\n',
        "event": b"event: epoch\ndata: {}\n\n",
        "member": encode(Heartbeat(0, 1, complete=True)).replace(b"}", b',"load":1}'),
    }
    async with synced(server) as client:
        server.say(unknown[kind])
        await until(lambda: says(client, "never") is None)
        server.say(unknown[kind])
        server.revoke(revocation("known"))
        await until(lambda: says(client, "known"))
        assert not await client.is_revoked({"jti": "never"})
        assert server.questions == ["never"]
        await until(lambda: name(client) == "synced")
        status = client.mirror_status
        assert status is not None
        assert not status.complete
        assert len(server.asked) == 1
        server.say(Reset("lost"))
        await until(lambda: len(server.asked) == 2 and name(client) == "synced")
        assert says(client, "never") is None
        warnings = [record.getMessage() for record in caplog.records if "not_understood" in record.getMessage()]
        assert len(warnings) == 1


async def test_a_snapshot_with_an_unknown_claim_does_not_keep_the_mirror_down(server: FeedServer) -> None:
    """A snapshot with an unknown claim does not end the stream. Memory then says only what is revoked."""

    async def newer(response: web.StreamResponse) -> None:
        await response.write(encode(server.beat()))
        rows = b'[["device_id","d",null,null],["jti","gone",null,null]]'
        await response.write(b'event: snapshot\ndata: {"revocations":%b}\n\n' % rows)
        await response.write(b'event: synced\nid: 1-0.n\ndata: {"complete":true,"clock_skew_seconds":60}\n\n')
        while True:
            await response.write(encode(server.beat()))
            await asyncio.sleep(0.05)

    server.script = newer
    async with server.client() as client:
        assert await client.mirror_ready(HANG_SECONDS)
        assert says(client, "gone")
        assert says(client, "never") is None
        assert not await client.is_revoked({"jti": "never"})
        assert server.asked == [None]


async def test_verify_access_raises_for_a_key_that_is_refused(redis: Process) -> None:
    """`verify_access` raises for a wrong key (401), for a missing scope (403), and if the service is away."""
    async with serving(redis, API_KEYS=API_KEYS) as service:
        for key, status in (("a-wrong-key-0123456789", 401), (KEYS["revoker"], 403)):
            async with RevocationClient(str(service.url), api_key=key, mirror=False) as client:
                with pytest.raises(RequestRefused) as refused:
                    await client.verify_access()
                assert refused.value.status == status
        async with RevocationClient(str(service.url), api_key=KEYS["checker"], mirror=False) as client:
            await client.verify_access()
    async with InMemoryRevocationClient() as stand_in:
        await stand_in.verify_access()
        with stand_in.outage(), pytest.raises(ServiceUnavailable):
            await stand_in.verify_access()


@pytest.mark.parametrize("status", [401, 403])
async def test_a_feed_that_refuses_the_key_is_an_error_in_the_log_at_once(
    server: FeedServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A feed that answers 401 or 403 is logged as an error, even if the end of the last stream was just logged."""
    async with synced(server) as client:
        server.status = 503
        server.cut()
        await until(lambda: len(server.asked) >= 2)
        server.status = status
        await until(lambda: [record for record in caplog.records if record.levelno == logging.ERROR])
        (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert error.getMessage().startswith(f"revocation_mirror_refused status={status}")
        assert client.mirror_status is not None


def unsigned(**claims: Any) -> str:
    """Return a JWT with these claims and a made-up signature."""
    parts = ({"alg": "HS256"}, claims)
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, "c2ln"])


async def test_claims_without_a_jti_are_named_by_their_token_and_answered_from_memory(server: FeedServer) -> None:
    """Claims without a `jti` are checked from memory by the hash of the token. Without it they raise TokenNeeded."""
    claims = {"sub": "alice", "iat": 5}
    token = unsigned(**claims)
    server.log.append(revocation(read_token(token).name))
    async with synced(server) as client:
        with pytest.raises(TokenRevoked):
            await client.ensure_active(claims, token)
        with pytest.raises(TokenRevoked):
            await client.ensure_active(claims, f"Bearer {token}")
        other = unsigned(sub="alice", iat=6)
        await client.ensure_active(claims, other)
        assert await client.is_revoked(claims, token)
        assert client.is_revoked_now(claims, other) is False
        assert (await client.check(claims, other)).source == "mirror"
        for ask in (client.ensure_active, client.is_revoked, client.check):
            with pytest.raises(TokenNeeded):
                await ask(claims)
            with pytest.raises(RequestRefused) as refused:
                await ask(claims, token + ".")
            assert refused.value.code in ("invalid_token", "unsupported_token")
        assert server.questions == []


async def test_an_unusable_iat_is_counted_and_logged_where_the_token_is_checked(
    server: FeedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The client counts and logs an unusable `iat`, because the service does not see the checks that memory answers."""
    server.log.append(revocation("alice", "sub", cutoff=5.0))
    async with synced(server) as client:
        for _ in range(3):
            assert (await client.check({"jti": "x", "sub": "alice"})).iat_unusable
        assert not (await client.check({"jti": "x", "sub": "alice", "iat": 5})).iat_unusable
        assert client.counters.iat_unusable == 3
    lines = [record.getMessage() for record in caplog.records if "iat_unusable" in record.getMessage()]
    assert lines == ["iat_unusable claim=sub occurrences=1"]


@contextlib.contextmanager
def in_a_thread() -> Iterator[tuple[FeedServer, Callable[[], object]]]:
    """Run a feed server in a thread. Yield it, and a function that releases its answers to checks."""
    server, ready, over = FeedServer(), threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        server.held = asyncio.Event()
        async with serving_feed(server):
            loops.append(asyncio.get_running_loop())
            ready.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    assert server.held is not None
    try:
        yield server, functools.partial(loops[0].call_soon_threadsafe, server.held.set)
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join()


@pytest.mark.parametrize("loop_kind", ["asyncio", "uvloop"])
def test_an_answer_that_came_while_the_loop_was_blocked_counts(loop_kind: str) -> None:
    """If the event loop was blocked past the timeout, an answer that arrived meanwhile decides, not the policy."""

    async def application(server: FeedServer, answer: Callable[[], object]) -> None:
        server.log.append(revocation("gone"))
        async with server.client(mirror=False, timeout_seconds=TIMEOUT_SECONDS) as client:
            checking = asyncio.create_task(client.check({"jti": "gone"}))
            asked_at = time.monotonic()
            await until(lambda: "gone" in server.questions)
            answer()
            assert server.answered.wait(HANG_SECONDS)  # the application blocks its own loop
            time.sleep(max(0.0, asked_at + TIMEOUT_SECONDS + 10 * LATE_SECONDS - time.monotonic()))
            verdict = await checking
            assert (verdict.revoked, verdict.source) == (True, "redis")

    factory = uvloop.new_event_loop if loop_kind == "uvloop" else asyncio.new_event_loop
    with in_a_thread() as (server, answer), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(application(server, answer))
