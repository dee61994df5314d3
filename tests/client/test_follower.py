"""From the feed to the memory, whatever the feed does: what was heard holds, and "not revoked" is only said in step."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from revocation_client import RequestRefused, RevocationClient, ServiceUnavailable, UnexpectedAnswer
from revocation_client.api import Api, Stream, address
from revocation_client.counters import Tally
from revocation_client.expiry_clock import ExpiryClock
from revocation_client.feed import EVENT_MAX_BYTES, Change, Heartbeat, Reset, Snapshot, Synced, encode, snapshots
from revocation_client.follower import (
    HOPELESS_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    NONSENSE,
    SILENCE_SECONDS,
    Follower,
    pause_seconds,
)
from revocation_client.memory import Memory
from tests.client.feed_server import FeedServer, revocation, serving_feed
from tests.redis_processes import free_port
from tests.scale import scaled

HANG_SECONDS = 20.0


@pytest.fixture
async def server() -> AsyncIterator[FeedServer]:
    """A feed with one revocation in it."""
    async with serving_feed() as running:
        running.log.append(revocation("first"))
        yield running


@pytest.fixture
async def client(server: FeedServer) -> AsyncIterator[RevocationClient]:
    """A client that is in step."""
    async with server.client() as started:
        assert await started.mirror_ready(HANG_SECONDS)
        yield started


async def until(condition: Callable[[], object]) -> None:
    """Wait for what must come."""
    async with asyncio.timeout(HANG_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def says(client: RevocationClient, jti: str) -> bool | None:
    """What memory says of a token."""
    return client.is_revoked_now({"jti": jti, "sub": "alice"})


def name(client: RevocationClient) -> str:
    """What the mirror's status is."""
    status = client.mirror_status
    assert status is not None
    return status.name


def last_error(client: RevocationClient) -> str | None:
    status = client.mirror_status
    assert status is not None
    return status.last_error


async def test_a_snapshot_then_changes(client: RevocationClient, server: FeedServer) -> None:
    """What was revoked before and after the stream began is revoked, and the rest is not; nobody is asked."""
    assert (says(client, "first"), says(client, "second")) == (True, False)
    server.revoke(revocation("second"))
    await until(lambda: says(client, "second"))
    assert await client.is_revoked({"jti": "second"})
    assert not await client.is_revoked({"jti": "third"})
    assert server.questions == []
    assert name(client) == "synced"


async def test_a_stream_that_breaks_off_is_resumed(server: FeedServer) -> None:
    """From the last cursor, without another snapshot; what was missed is known before "not revoked" is said."""
    async with server.client(max_staleness_seconds=HANG_SECONDS) as client:
        assert await client.mirror_ready(HANG_SECONDS)
        await _cut_and_resumed(client, server)


async def until_streams(client: RevocationClient, number: int) -> None:
    """Wait until so many streams have begun."""
    await until(lambda: client.counters.streams == number)


async def _cut_and_resumed(client: RevocationClient, server: FeedServer) -> None:
    server.revoke(revocation("second"))
    await until(lambda: says(client, "second"))
    for number in range(5):
        wanted = f"missed-{number}"
        server.log.append(revocation(wanted))  # and no stream is told
        server.cut()
        await until_streams(client, number + 2)
        await until(lambda: says(client, "never") is False)
        assert says(client, wanted)
    assert server.asked == [None, *[f"{2 + number}-0.nonce" for number in range(5)]]
    assert (client.counters.streams, client.counters.snapshots) == (6, 1)


async def test_an_unknown_cursor_means_a_new_snapshot_and_unlearns_nothing(
    client: RevocationClient, server: FeedServer
) -> None:
    """The service lost everything, and its new snapshot is empty: what was heard before stays revoked."""
    server.remembers = False
    server.log.clear()
    server.cut()
    await until(lambda: client.counters.snapshots == 2)
    await until(lambda: says(client, "other") is False)
    assert says(client, "first")
    server.revoke(revocation("afterwards"))
    await until(lambda: says(client, "afterwards"))


@pytest.mark.parametrize("reason", ["too_slow", "lost"])
async def test_a_reset_begins_again(client: RevocationClient, server: FeedServer, reason: Any) -> None:
    """The stream is left at once, and the next one begins with a snapshot."""
    server.say(Reset(reason))
    await until(lambda: len(server.asked) == 2)
    assert server.asked[1] is None
    await until(lambda: last_error(client) is None and name(client) == "synced")


async def test_a_cursor_before_the_snapshot_is_whole_is_none(server: FeedServer) -> None:
    """A stream that breaks off in the middle of a snapshot is not resumed, though changes came meanwhile."""
    server.log += [revocation(str(number)) for number in range(2000)]

    async def break_off(response: web.StreamResponse) -> None:
        server.pace = None
        await response.write(encode(Change("9-9.early", [revocation("early")])))
        await asyncio.sleep(0.05)
        server.cut()

    server.pace = break_off
    async with server.client() as client:
        assert await client.mirror_ready(HANG_SECONDS)
        assert server.asked == [None, None]
        assert says(client, "early")
        assert says(client, "1999")


async def test_half_a_snapshot_says_only_what_is_revoked(server: FeedServer) -> None:
    """While parts and heartbeats come but not the end, memory vouches for nothing; the service is asked."""
    server.log += [revocation(str(number)) for number in range(2000)]
    go_on = asyncio.Event()

    async def stall(response: web.StreamResponse) -> None:
        while not go_on.is_set():
            await response.write(encode(server.beat()))
            await asyncio.sleep(0.05)

    server.pace = stall
    async with server.client() as client:
        await until(lambda: says(client, "first"))
        for _ in range(10):
            assert says(client, "never") is None
            await asyncio.sleep(0.03)
        assert (name(client), await client.mirror_ready(0.01)) == ("connecting", False)
        assert not await client.is_revoked({"jti": "never"})
        assert server.questions == ["never"]
        go_on.set()
        await until(lambda: says(client, "never") is False)
        assert server.asked == [None]


async def test_without_heartbeats_memory_falls_silent_in_time(client: RevocationClient, server: FeedServer) -> None:
    """Changes alone prove nothing: a second after the last heartbeat, "not revoked" is not said any more."""
    server.beats = False
    began = time.monotonic()
    while says(client, "never") is False:
        assert time.monotonic() - began < 1.2
        server.revoke(revocation("again"))
        await asyncio.sleep(0.01)
    assert says(client, "never") is None
    assert says(client, "first")
    assert name(client) == "stale"
    status = client.mirror_status
    assert status is not None
    assert status.age_seconds is not None
    assert status.age_seconds > 1
    assert abs(status.since - time.time()) < 0.5
    server.beats = True
    await until(lambda: says(client, "never") is False)


async def test_a_sender_that_is_behind_vouches_for_no_more_than_it_knows(
    client: RevocationClient, server: FeedServer
) -> None:
    """Heartbeats that come on time, of a service that is cut off from its store."""
    server.behind_seconds = 5.0
    await until(lambda: says(client, "never") is None)
    assert name(client) == "stale"
    server.behind_seconds = float("inf")
    await asyncio.sleep(0.3)
    assert says(client, "never") is None
    server.behind_seconds = 0.2
    await until(lambda: says(client, "never") is False)


async def test_an_incomplete_feed_says_only_what_is_revoked(client: RevocationClient, server: FeedServer) -> None:
    """While others write to the same Redis, memory never says "not revoked"; it does again when they are gone."""
    server.complete = False
    await until(lambda: says(client, "never") is None)
    assert says(client, "first")
    status = client.mirror_status
    assert status is not None
    assert (status.name, status.complete) == ("synced", False)
    assert not await client.is_revoked({"jti": "never"})
    assert server.questions == ["never"]
    server.complete = True
    await until(lambda: says(client, "never") is False)


async def test_a_silent_connection_is_dead(server: FeedServer) -> None:
    """It stands, and nothing comes: after three seconds another one is opened."""

    async def say_nothing(response: web.StreamResponse) -> None:
        server.script = None
        await response.write(encode(server.beat()))
        await asyncio.sleep(HANG_SECONDS)

    server.script = say_nothing
    async with server.client() as client:
        began = time.monotonic()
        assert await client.mirror_ready(HANG_SECONDS)
        assert SILENCE_SECONDS <= time.monotonic() - began < SILENCE_SECONDS + 1.5
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"event: change\ndata: {}\n\n",
        b"event: heartbeat\ndata: nonsense\n\n",
        b"event: snapshot\ndata: " + b"[" * 100_000 + b"\n\n",
        b"data: \xff\xfe\n\n",
        b"x" * (EVENT_MAX_BYTES + 1),
    ],
    ids=["form", "json", "depth", "utf8", "size"],
)
async def test_nonsense_ends_the_stream_and_takes_nothing_back(
    client: RevocationClient, server: FeedServer, garbage: bytes
) -> None:
    """What was known is known; a new stream begins with a snapshot, because nothing is sure of the old one's end."""
    server.say(garbage)
    await until(lambda: len(server.asked) == 2)
    assert says(client, "first")
    assert server.asked[1] is None
    await until(lambda: client.counters.snapshots == 2 and last_error(client) is None)
    assert says(client, "never") is False


async def test_order_and_repetition_do_no_harm(client: RevocationClient, server: FeedServer) -> None:
    """A change twice, an older cutoff after a later one, an old snapshot after all of it: the widest of them holds."""
    later, earlier = revocation("bob", "sub", cutoff=2000.0), revocation("bob", "sub", cutoff=1000.0)
    shorter = revocation("first", seconds=1)
    server.say(Change("5-0.n", [later]), Change("4-0.n", [earlier]), Change("5-0.n", [later]), Snapshot([earlier]))
    server.say(Snapshot([shorter]), Synced("5-0.n", True))
    await until(lambda: client.is_revoked_now({"jti": "x", "sub": "bob", "iat": 1500}))
    await until(lambda: client.is_revoked_now({"jti": "x", "sub": "bob", "iat": 2500}) is False)
    await asyncio.sleep(max(0.0, (shorter.expires_at or 0) + 1.1 - time.time()))
    assert says(client, "first")


async def test_the_services_word_on_clocks_holds(client: RevocationClient, server: FeedServer) -> None:
    """An `iat` further ahead than the service believes counts as before every cutoff, in memory as there."""
    now = time.time()
    server.revoke(revocation("alice", "sub", cutoff=now))
    ahead = {"jti": "x", "sub": "alice", "iat": now + 30}
    await until(lambda: client.is_revoked_now(ahead | {"iat": now - 1}))
    assert client.is_revoked_now(ahead) is False
    server.say(Synced(server.cursor(), True, 5.0))
    await until(lambda: client.is_revoked_now(ahead))


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
async def test_a_feed_that_is_refused_does_not_spin(
    server: FeedServer, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong key and a service without a feed are asked once a minute, an outage with growing pauses; checks go on."""
    server.status = status
    caplog.set_level(logging.WARNING, "revocation_client")
    async with server.client() as client:
        await until(lambda: last_error(client))
        assert not await client.mirror_ready(1.0)
        assert len(server.asked) == 1 if status < 500 else 2 <= len(server.asked) < 12
        assert "scripted: as the test says" in str(last_error(client)) or status >= 500
        assert name(client) == "connecting"
        assert await client.is_revoked({"jti": "first"})
        assert not await client.is_revoked({"jti": "never"})
        assert server.questions == ["first", "never"]
    event, level = (
        ("revocation_mirror_refused", "ERROR")
        if status in (401, 403)
        else ("revocation_mirror_disconnected", "WARNING")
    )
    lines = [(record.levelname, record.getMessage().split()[0]) for record in caplog.records]
    assert lines.count((level, event)) == 1


async def test_what_is_no_event_stream_is_none(server: FeedServer) -> None:
    """A captive page with status 200 is told as such, and teaches nothing."""

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"".join(snapshots([revocation("taught")])), content_type="text/html")

    server.feed = page  # type: ignore[method-assign]
    async with serving_feed(server), server.client() as client:
        await until(lambda: last_error(client))
        assert "no event stream" in str(last_error(client))
        assert says(client, "taught") is None


async def test_a_service_that_is_away_at_the_start_is_tried_for_ever() -> None:
    """The client starts at once; when the service comes, the mirror does, and ready is heard of."""
    port = free_port()
    server = FeedServer()
    server.port = port
    server.log.append(revocation("first"))
    began = time.monotonic()
    async with server.client() as client:
        assert time.monotonic() - began < 0.5
        assert not await client.mirror_ready(0.5)
        assert "no connection" in str(last_error(client))
        async with serving_feed(server, port):
            assert await client.mirror_ready(HANG_SECONDS)
            assert says(client, "first")
            assert last_error(client) is None


async def test_a_check_that_the_service_answers_ends_a_long_pause() -> None:
    """The pause after failed connections may have grown to seconds; the service is there, so it is connected to."""
    server, tally = FeedServer(), Tally()
    server.port = free_port()
    memory = Memory(1.0, tally, time.time, time.monotonic)
    api = Api(address(server.url, None))
    follower = Follower(api, memory, tally, wall=time.time, monotonic=time.monotonic, jitter=lambda: 10_000.0)
    follower.start()
    try:
        await until(lambda: follower.last_error)
        async with serving_feed(server, server.port):
            follower.service_answers()
            await until(lambda: memory.synced)
    finally:
        await follower.aclose()
        await api.aclose()


async def test_nothing_is_left_when_the_client_is_closed(server: FeedServer) -> None:
    """No task and no stream; and a client that is started again is in step again, with all that it knew."""
    before = asyncio.all_tasks()
    client = server.client()
    for _ in range(3):
        async with client:
            assert await client.mirror_ready(HANG_SECONDS)
            assert len(asyncio.all_tasks() - before) > 1
        await until(lambda: server.streams == 0)
    assert client.counters.streams == 3
    names = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not [one for one in names if one.startswith("revocation-")]
    server.log.clear()
    async with client:
        assert says(client, "never") is None
        assert says(client, "first")


class OneChunk:
    """A feed in memory: a whole snapshot that is there at once. Each look at its clock takes a millisecond."""

    def __init__(self, revocations: int) -> None:
        self.now = 100.0
        self._epoch = time.time() - self.now
        parts = list(snapshots(revocation(f"{one:032x}") for one in range(revocations)))
        beat = encode(Heartbeat(0.0, self.now, True))
        self._chunks = [b"".join([beat, *parts, encode(Synced("1-0.n", True)), beat])]

    def clock(self) -> float:
        """For the follower and its memory."""
        self.now += 0.001
        return self.now

    def wall(self) -> float:
        """The same time, in epoch seconds."""
        return self._epoch + self.now

    async def feed(self, cursor: str | None, *, seconds: float) -> Stream:
        """The one stream of it."""
        return self

    async def read(self) -> bytes:
        """Everything, then nothing more."""
        if not self._chunks:
            await asyncio.sleep(HANG_SECONDS)
        return self._chunks.pop()

    def close(self) -> None:
        """There is nothing to let go of."""


async def test_a_large_snapshot_lets_the_application_breathe() -> None:
    """Though all of it is there at once, the loop is given back every few milliseconds until it is merged."""
    number = scaled(20_000, 1_000_000)
    feed = OneChunk(number)
    expiry_clock = ExpiryClock(feed.wall, lambda: feed.now)
    memory = Memory(1e6, Tally(), wall=feed.wall, monotonic=feed.clock, expiry_clock=expiry_clock)
    follower = Follower(feed, memory, Tally(), wall=feed.wall, monotonic=feed.clock)
    follower.start()
    turns = 0
    async with asyncio.timeout(HANG_SECONDS * scaled(1, 6)):
        while not await follower.ready(0):
            turns += 1
    await follower.aclose()
    assert memory.entries == number
    assert turns > number / 2_000


class SlowClock:
    """A feed in memory, whose sender's clock goes two per cent slower than the receiver's; two seconds pass at once."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[str | None] = []

    async def feed(self, cursor: str | None, *, seconds: float) -> Stream:
        """Another stream of it."""
        self.asked.append(cursor)
        return SlowStream(self)


class SlowStream:
    """Heartbeats only."""

    def __init__(self, clock: SlowClock, rate: float = 0.98) -> None:
        self._clock = clock
        self._rate = rate
        self._begun = False

    async def read(self) -> bytes:
        """One more; the first comes with `synced`."""
        await asyncio.sleep(0)
        self._clock.now += 2.0
        beat = encode(Heartbeat(0.0, self._clock.now * self._rate, True))
        begun, self._begun = self._begun, True
        return beat if begun else beat + encode(Synced("7-0.n", True)) + beat

    def close(self) -> None:
        """There is nothing to let go of."""


class Asleep(SlowClock):
    """The same with clocks that agree, on a machine that may sleep: then the one on the wall alone goes on."""

    slept = 0.0

    async def feed(self, cursor: str | None, *, seconds: float) -> Stream:
        """Another stream of it."""
        self.asked.append(cursor)
        return SlowStream(self, rate=1.0)


async def test_a_heartbeat_from_before_the_machine_slept_vouches_for_nothing() -> None:
    """It lay in a buffer meanwhile: memory stays silent until a new stream has proven that nothing is missing."""
    clock = Asleep()
    memory = Memory(5.0, Tally(), wall=lambda: clock.now + clock.slept, monotonic=lambda: clock.now)
    follower = Follower(
        clock,
        memory,
        Tally(),
        wall=lambda: clock.now + clock.slept,
        monotonic=lambda: clock.now,
        jitter=lambda: 0.0,
    )
    follower.start()
    assert await follower.ready(HANG_SECONDS)
    assert memory.glance.admits({"jti": "x"})
    clock.slept = 600.0
    async with asyncio.timeout(HANG_SECONDS):
        while len(clock.asked) < 2:
            assert not memory.glance.admits({"jti": "x"})
            await asyncio.sleep(0)
        while not memory.glance.admits({"jti": "x"}):
            await asyncio.sleep(0)
    await follower.aclose()


async def test_clocks_that_drift_apart_are_compared_anew() -> None:
    """Heartbeats look older and older on a long stream: before that makes memory stale, it is resumed."""
    clock = SlowClock()
    memory = Memory(5.0, Tally(), wall=lambda: clock.now, monotonic=lambda: clock.now)
    follower = Follower(clock, memory, Tally(), wall=lambda: clock.now, monotonic=lambda: clock.now, jitter=lambda: 0.0)
    follower.start()
    ages = []
    async with asyncio.timeout(HANG_SECONDS):
        while len(clock.asked) < 4:
            await asyncio.sleep(0)
            ages.append(memory.age())
    await follower.aclose()
    assert clock.asked == [None, "7-0.n", "7-0.n", "7-0.n"]
    assert max(age for age in ages if age < 1e9) < 5.0
    assert not memory.glance.admits({"jti": "x"})


def test_pauses() -> None:
    """The first is short; they grow to a bound, each drawn from nothing up; what cannot help is tried once a minute."""
    away = ServiceUnavailable("gone")
    assert [pause_seconds(failures, away, lambda: 1.0) for failures in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.8]
    assert pause_seconds(1000, away, lambda: 1.0) == LONGEST_BACKOFF_SECONDS
    assert pause_seconds(1, away, lambda: 0.0) == 0
    assert pause_seconds(1, ServiceUnavailable("busy", 503, None, 2.0), lambda: 0.0) == 2.0
    assert pause_seconds(1, ServiceUnavailable("busy", 503, None, 1e9), lambda: 0.0) == HOPELESS_BACKOFF_SECONDS
    for hopeless, failures in ((RequestRefused(401, "unauthorized", "no"), 1), (UnexpectedAnswer("?"), NONSENSE + 1)):
        assert pause_seconds(failures, hopeless, lambda: 1.0) == HOPELESS_BACKOFF_SECONDS
        assert pause_seconds(failures, hopeless, lambda: 0.0) == HOPELESS_BACKOFF_SECONDS / 2
    assert pause_seconds(1, UnexpectedAnswer("?"), lambda: 1.0) == 0.1
