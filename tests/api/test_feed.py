"""`GET /feed`: which events a subscriber gets and in which order, how it resumes, and which callers are refused."""

import asyncio
import contextlib
import itertools
import math
import statistics
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final, Self

import aiohttp
import pytest

from revocation_client.feed_events import Change, Event, Heartbeat, Parser, Reset, Snapshot, Synced
from revocation_client.mirror import Mirror
from revocation_client.revocation import Revocation
from tests.api.serving import ANSWER_SECONDS, API_KEYS, Service, Start, bearer
from tests.redis_processes import eventually, standalone
from tests.scale import BUSY_SECONDS, CAMPAIGN

ENDLESS: Final = aiohttp.ClientTimeout(total=None, sock_read=ANSWER_SECONDS)
LAG_SECONDS: Final = 0.1 if CAMPAIGN else 0.5
"""Limit of the median time from an acknowledgement to its event, which is generous for a busy machine."""


class Follower:
    """A subscriber: the response, the bytes received so far, and the events in them."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.bytes = bytearray()
        self.events: list[Event] = []
        self.known: dict[tuple[str, str], Revocation] = {}
        """The revocation received last for each claim and value."""
        self.cursor = ""
        self._parser = Parser()

    async def hear(self) -> bool:
        """Read the available bytes, and return whether the stream goes on."""
        chunk = await self.answer.content.readany()
        self.bytes += chunk
        for event, unknown in self._parser.feed(chunk):
            self._take(event, unknown)
        return bool(chunk)

    def _take(self, event: Event | None, unknown: str | None) -> None:
        assert event is not None, unknown
        assert unknown is None
        self.events.append(event)
        if isinstance(event, Snapshot | Change):
            self.known |= {(one.claim, one.value): one for one in event.revocations}
        if isinstance(event, Synced | Change):
            self.cursor = event.cursor

    async def until(self, check: Callable[[Self], object]) -> None:
        """Read until the check is true."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while not check(self):
                assert await self.hear(), f"the stream has ended: {self.names}"

    async def until_told(self, *values: str) -> None:
        """Read until a revocation of each of these values has been received, of any claim."""
        await self.until(lambda _: {value for _claim, value in self.known}.issuperset(values))

    async def until_vouched(self) -> None:
        """Read until a heartbeat proves that everything acknowledged before this call has been sent."""
        await self.until(lambda _: self.beats_behind)
        seen, began = len(self.events), time.monotonic()
        await self.until(
            lambda _: any(
                isinstance(event, Heartbeat) and event.sent_at - event.behind_seconds > began
                for event in self.events[seen:]
            )
        )

    async def end(self) -> None:
        """Read to the end of the stream."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while await self.hear():
                pass

    @property
    def names(self) -> list[str]:
        """The names of the events received, in order. A run of the same name counts once."""
        return [name for name, _ in itertools.groupby(type(event).__name__ for event in self.events)]

    @property
    def beats_behind(self) -> list[float]:
        """The finite `behind_seconds` among the heartbeats received."""
        beats = [event.behind_seconds for event in self.events if isinstance(event, Heartbeat)]
        return [behind for behind in beats if math.isfinite(behind)]

    def told(self, kind: type[Snapshot | Change]) -> set[str]:
        """Return the values of all revocations in events of this kind."""
        return {one.value for event in self.events if isinstance(event, kind) for one in event.revocations}


async def in_step(service: Service) -> Service:
    """Wait until the service's mirror is in sync, and return the service."""

    async def synced() -> bool:
        return bool((await service.get("/readyz")).json["components"]["mirror"]["status"] == "synced")

    await eventually(synced, "a mirror in step")
    return service


@contextlib.asynccontextmanager
async def following(service: Service, cursor: str | None = None, **headers: str) -> AsyncIterator[Follower]:
    """Subscribe to the feed from this cursor on, and disconnect at the end of the block."""
    given = bearer("checker") | headers | ({} if cursor is None else {"Last-Event-ID": cursor})
    async with (
        aiohttp.ClientSession(timeout=ENDLESS, auto_decompress=False) as session,
        session.get(service.url.with_path("/feed"), headers=given) as answer,
    ):
        assert answer.status == 200, await answer.text()
        yield Follower(answer)


def is_synced(follower: Follower) -> bool:
    """Return whether the subscriber has received `synced`."""
    return any(isinstance(event, Synced) for event in follower.events)


@pytest.fixture
async def feeding(start: Start) -> Service:
    """A service with the four API keys of `KEYS`, whose mirror is in sync."""
    return await in_step(await start(API_KEYS=API_KEYS))


async def test_the_answer_is_a_stream_of_events(feeding: Service) -> None:
    """The response is an uncompressed `text/event-stream` with the request id, and must not be cached or buffered."""
    async with following(feeding, **{"X-Request-ID": "mine", "Accept-Encoding": "gzip, br"}) as follower:
        headers = follower.answer.headers
        await follower.until(is_synced)
    expected = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    assert {name: headers[name] for name in expected} == expected
    assert headers["X-Request-ID"] == "mine"
    assert "Content-Encoding" not in headers


async def test_a_stream_begins_in_this_order(feeding: Service) -> None:
    """A stream begins with a heartbeat that proves nothing, the snapshot and `synced`; then a heartbeat each second."""
    before = await feeding.revoke({"jti": "before", "expires_in": 600})
    async with following(feeding) as follower:
        await follower.until(lambda _: follower.beats_behind)
        assert follower.names == ["Heartbeat", "Snapshot", "Synced", "Heartbeat"]
        first, snapshot, synced, proof = follower.events
        began = time.monotonic()
        await follower.until(lambda _: len(follower.beats_behind) == 3)
        assert 0.9 < time.monotonic() - began < 2.8 + BUSY_SECONDS
    assert isinstance(first, Heartbeat)
    assert isinstance(proof, Heartbeat)
    assert (first.behind_seconds, first.complete) == (math.inf, True)
    assert 0 <= proof.behind_seconds < 3
    assert first.sent_at <= proof.sent_at <= time.monotonic()
    assert isinstance(snapshot, Snapshot)
    (told,) = snapshot.revocations
    assert (told.claim, told.value) == ("jti", "before")
    assert told.expires_at == math.ceil(before["expires_at"])  # rounded up, so never shorter
    assert isinstance(synced, Synced)
    assert synced.complete


async def test_a_revocation_of_every_claim_is_told_as_it_was_answered(feeding: Service) -> None:
    """For all five claims, a change has the value, end and cutoff that /revoke returned, and arrives quickly."""
    lags, answers = [], []
    async with following(feeding) as follower:
        await follower.until(is_synced)
        for body in (
            {"jti": "tokén", "expires_in": 600.5},
            {"sid": "session"},
            {"sub": "subject", "issued_before": 1_700_000_000.25},
            {"client_id": "client"},
            {"all": True},
        ):
            answers.append(await feeding.revoke({**body, "reason": "any"}))
            acknowledged = time.monotonic()
            await follower.until_told(answers[-1]["value"])
            lags.append(time.monotonic() - acknowledged)
        told = [one for event in follower.events if isinstance(event, Change) for one in event.revocations]
        assert follower.told(Snapshot) == set()
    assert [(one.claim, one.value, one.expires_at, one.issued_before) for one in told] == [
        (answer["claim"], answer["value"], answer["expires_at"], answer.get("issued_before")) for answer in answers
    ]
    assert {answer["claim"] for answer in answers} == {"jti", "sid", "sub", "client_id", "all"}
    assert statistics.median(lags) < LAG_SECONDS


async def test_no_reason_and_no_actor_is_told(start: Start) -> None:
    """Neither a snapshot nor a change has the reason, the actor or `revoked_at`, though the record has all three."""
    key = "some-key-aaaaaaaaaaaaaaaaaaa"
    service = await in_step(await start(API_KEYS=f"{API_KEYS},canary-actor={key}:admin"))
    revoke = partial(service.revoke, headers={"Authorization": f"Bearer {key}"})
    await revoke({"jti": "before", "reason": "canary-reason"})
    await revoke({"sub": "before", "reason": "canary-reason"})
    async with following(service) as follower:
        await follower.until(is_synced)
        await revoke({"jti": "after", "reason": "canary-reason"})
        await revoke({"sub": "after", "reason": "canary-reason"})
        await follower.until(lambda _: {("jti", "after"), ("sub", "after")} <= follower.known.keys())
    record = (await service.get("/revocations", {"claim": "sub", "value": "after"})).body
    for word in (b"canary-reason", b"canary-actor", b"revoked_at"):
        assert word in record
        assert word not in follower.bytes
    assert follower.told(Snapshot) == {"before"}


async def test_what_others_wrote_is_told_and_that_there_may_be_more(start: Start) -> None:
    """A key of a foreign writer is sent after a rescan, and to new subscribers; `complete` becomes false."""
    service = await in_step(await start(API_KEYS=API_KEYS, KEY_PREFIX="theirs:", RESCAN_SECONDS="1"))
    async with following(service) as follower:
        await service.blacklist("theirs", 100)
        await follower.until_told("theirs")
        await follower.until(lambda _: isinstance(follower.events[-1], Heartbeat) and not follower.events[-1].complete)
    async with following(await in_step(await start(API_KEYS=API_KEYS, KEY_PREFIX="theirs:"))) as late:
        await late.until(is_synced)
    assert late.told(Snapshot) == {"theirs"}
    assert late.known["jti", "theirs"].expires_at == pytest.approx(time.time() + 100, abs=5)
    assert not any(event.complete for event in late.events if isinstance(event, Heartbeat | Synced))


async def test_whoever_comes_back_is_told_what_he_missed_alone(feeding: Service) -> None:
    """A subscriber that resumes gets the changes that it missed, in order, without a snapshot, then `synced`."""
    await feeding.revoke({"jti": "before"})
    async with following(feeding) as follower:
        await follower.until(is_synced)
        await feeding.revoke({"jti": "heard"})
        await follower.until_told("heard")
    missed = [f"missed-{number}" for number in range(5)]
    for value in missed:
        await feeding.revoke({"jti": value})
    async with following(feeding, follower.cursor) as back:
        await back.until(lambda _: back.beats_behind)
        assert back.names == ["Heartbeat", "Change", "Synced", "Heartbeat"]
        assert [value for _claim, value in back.known] == missed
        await feeding.revoke({"jti": "later"})
        await back.until_told("later")
    async with following(feeding, back.cursor) as again:
        await again.until(lambda _: again.beats_behind)
        assert again.names == ["Heartbeat", "Synced", "Heartbeat"]
    assert again.cursor == back.cursor


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cursor: "0" * 16 + cursor[16:],
        lambda cursor: f"{cursor}0000",
        lambda cursor: f"{cursor[:17]}-1",
        lambda cursor: f"{cursor[:17]}\u0661",
        lambda cursor: f"{cursor[:17]}{'0' * 200}",
        lambda cursor: cursor[:17],
        lambda cursor: f" {cursor[:17]} 1",
        lambda _: "1700000000000-0.0123456789abcdef",
        lambda _: "nonsense",
        lambda _: "*" * 4000,
    ],
    ids=["nonce", "ahead", "negative", "digits", "long", "nameless", "spaces", "log", "nonsense", "longer"],
)
async def test_a_cursor_that_is_not_known_is_reset(feeding: Service, spoil: Callable[[str], str]) -> None:
    """An unknown cursor, or one with a wrong nonce, gets `reset` and then a snapshot."""
    await feeding.revoke({"jti": "before"})
    async with following(feeding) as follower:
        await follower.until(is_synced)
    async with following(feeding, spoil(follower.cursor)) as back:
        await back.until(lambda _: back.beats_behind)
    assert back.names == ["Heartbeat", "Reset", "Snapshot", "Synced", "Heartbeat"]
    assert back.events[1] == Reset("unknown_cursor")
    assert back.told(Snapshot) == {"before"}


async def test_an_empty_cursor_is_none(feeding: Service) -> None:
    """An empty `Last-Event-ID` counts as no cursor (WHATWG HTML), so the stream has no `reset`."""
    async with following(feeding, "") as follower:
        await follower.until(lambda _: follower.beats_behind)
    assert follower.names == ["Heartbeat", "Synced", "Heartbeat"]


async def test_two_services_feed_alike_and_know_not_each_others_cursors(start: Start) -> None:
    """A service sends what another one revoked. A subscriber that moves to the other gets `reset` and a snapshot."""
    first, second = [await in_step(await start(API_KEYS=API_KEYS, KEY_PREFIX="feeds:")) for _ in range(2)]
    async with following(first) as follower:
        await follower.until(is_synced)
        await second.revoke({"jti": "at-the-second"})
        await follower.until_told("at-the-second")
    async with following(second, follower.cursor) as moved:
        await moved.until(is_synced)
    assert Reset("unknown_cursor") in moved.events
    assert moved.told(Snapshot) == {"at-the-second"}


async def test_followers_lose_nothing_when_the_store_loses_everything(start: Start) -> None:
    """After Redis loses all data, changes still arrive, cursors stay valid, and the lost record is restored."""
    first, second = (
        await start(API_KEYS=API_KEYS, KEY_PREFIX="lost:"),
        await start(API_KEYS=API_KEYS, KEY_PREFIX="lost:"),
    )
    await in_step(first)
    await in_step(second)
    async with following(first) as follower, following(first) as gone:
        await first.revoke({"jti": "before"})
        await follower.until_told("before")
        await gone.until_told("before")
        gone.answer.close()
        await first.redis.delete(*[key async for key in first.redis.scan_iter("lost:*")])
        await second.revoke({"jti": "after"})
        await follower.until_told("after")
        await follower.until_vouched()
    async with following(first, gone.cursor) as back, following(first) as late:
        await back.until(is_synced)
        await late.until(is_synced)
    assert back.told(Change) == {"after"}
    assert late.told(Snapshot) | late.told(Change) == {"before", "after"}
    await eventually(lambda: first.redis.exists(first.keyspace.key("jti", "before")), "what was lost, in Redis again")


async def test_what_has_just_ended_is_still_told_with_its_end(feeding: Service, start: Start) -> None:
    """A revocation that has just ended is still in the snapshot, because the service's clock may be ahead."""
    other = await in_step(await start(API_KEYS=API_KEYS, KEY_PREFIX=feeding.settings.store.key_prefix))
    await feeding.revoke({"jti": "short", "expires_in": 1})
    async with following(feeding) as early:
        await early.until(is_synced)
    ends = early.known["jti", "short"].expires_at
    assert ends is not None
    await asyncio.sleep(ends - time.time() + 0.01)  # nothing observable happens at that moment
    async with following(other) as late:
        await late.until(is_synced)
    assert late.known["jti", "short"].expires_at == ends
    assert not Mirror().add(late.known["jti", "short"], time.time() + 2)


async def test_there_is_no_feed_before_redis_was_seen_and_then_there_is(start: Start) -> None:
    """If Redis is down at the start, /feed is 503 with Retry-After. Once Redis is up, it works without a restart."""
    async with standalone() as server:
        await server.stop()
        service = await start(server=server, API_KEYS=API_KEYS)
        answer = await service.get("/feed")
        assert (answer.status, answer.problem) == (503, "feed_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        await server.start()
        await in_step(service)
        async with following(service) as follower:
            await follower.until(is_synced)
            await service.revoke({"jti": "a"})
            await follower.until_told("a")


async def test_followers_live_through_an_outage(start: Start) -> None:
    """While Redis is down, streams stay open and report the lag. Later changes arrive on the same streams."""
    async with standalone() as server:
        service = await in_step(await start(server=server, API_KEYS=API_KEYS))
        async with following(service) as one, following(service) as two:
            await asyncio.gather(one.until(is_synced), two.until(is_synced))
            server.kill()
            await asyncio.gather(*(each.until(lambda follower: follower.beats_behind[-1] > 1.5) for each in (one, two)))
            await server.start()
            await eventually(lambda: _revoked(service, "after"), "a revocation that is taken")
            for each in (one, two):
                await each.until_told("after")
                await each.until_vouched()
                assert not any(isinstance(event, Reset) for event in each.events)


async def _revoked(service: Service, jti: str) -> bool:
    return (await service.post("/revoke", {"jti": jti})).status == 200


async def test_who_may_follow(feeding: Service) -> None:
    """A key with scope `check` or `admin` may follow. One with `revoke` alone, or none, may not."""
    for name in ("checker", "both", "ops"):
        async with following(feeding, **bearer(name)) as follower:
            await follower.until(is_synced)
    answer = await feeding.get("/feed", headers=bearer("revoker"))
    assert (answer.status, answer.problem) == (403, "insufficient_scope")
    answer = await feeding.get("/feed", headers={"Authorization": "Bearer " + "x" * 24})
    assert (answer.status, answer.problem) == (401, "unauthorized")
    async with feeding.session.get(feeding.url.with_path("/feed")) as without:
        assert (without.status, (await without.json(content_type=None))["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
async def test_a_feed_is_only_got(feeding: Service, method: str) -> None:
    """Any method but GET is 405 with `Allow: GET`, and begins no stream."""
    answer = await feeding.request(method, "/feed")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")
    assert answer.body == b"" if method == "HEAD" else answer.problem == "method_not_allowed"
    assert await feeding.metric('revocation_feed_streams_total{kind="begun"}') == 0


async def test_streams_and_the_mirror_are_measured(feeding: Service) -> None:
    """The metrics count the subscribers and the streams by kind, and report the mirror's size, age, scans and lag."""
    await feeding.revoke({"jti": "a"})
    async with following(feeding) as one, following(feeding, "unknown") as two:
        await asyncio.gather(one.until(is_synced), two.until(is_synced))
        assert await feeding.metric("revocation_feed_subscribers") == 2
        async with following(feeding, one.cursor) as three:
            await three.until(is_synced)
    await eventually(lambda: _is(feeding, "revocation_feed_subscribers", 0), "the end of all streams")
    for kind in ("begun", "reset", "resumed"):
        assert await feeding.metric(f'revocation_feed_streams_total{{kind="{kind}"}}') == 1
    await eventually(lambda: _is(feeding, "revocation_mirror_entries", 1), "one revocation in the mirror")
    assert 0 < await feeding.metric("revocation_mirror_age_seconds") < 3
    assert await feeding.metric('revocation_mirror_scans_total{reason="start"}') == 1
    assert await feeding.metric("revocation_mirror_lag_seconds_count") >= 1


async def _is(service: Service, sample: str, value: float) -> bool:
    return await service.metric(sample) == value
