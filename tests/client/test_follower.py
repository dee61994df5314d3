"""The follower keeps what the feed said, and memory says "not revoked" only while the feed proves it complete."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from aiohttp import web

from revocation_client import RevocationClient
from revocation_client.counters import Counters
from revocation_client.expiry_clock import ExpiryClock
from revocation_client.feed_events import EVENT_MAX_BYTES, Change, Heartbeat, Reset, Snapshot, Synced, encode
from revocation_client.follower import SILENCE_SECONDS, TURN_SECONDS, Follower
from revocation_client.local_mirror import LocalMirror, MirrorStatus
from tests.client.feed_server import FeedServer, revocation, serving_feed, snapshots
from tests.redis_processes import free_port
from tests.scale import scaled

HANG_SECONDS = 20.0

LEAST_PAUSES_SECONDS = 0.005
"""Three backoffs take longer than this: 0.7 s on average, with jitter. Three streams without backoff take less."""


@pytest.fixture
async def server() -> AsyncIterator[FeedServer]:
    """A feed with one revocation in it."""
    async with serving_feed() as running:
        running.log.append(revocation("first"))
        yield running


@pytest.fixture
async def client(server: FeedServer) -> AsyncIterator[RevocationClient]:
    """A client whose mirror is synced."""
    async with server.client() as started:
        assert await started.mirror_ready(HANG_SECONDS)
        yield started


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(HANG_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def says(client: RevocationClient, jti: str) -> bool | None:
    """Return what memory says about a token."""
    return client.is_revoked_now({"jti": jti, "sub": "alice"})


def status_of(client: RevocationClient) -> MirrorStatus:
    """Return the mirror's status."""
    status = client.mirror_status
    assert status is not None
    return status


def name(client: RevocationClient) -> str:
    """Return the name of the mirror's status."""
    return status_of(client).name


def last_error(client: RevocationClient) -> str | None:
    """Return why the last stream ended."""
    return status_of(client).last_error


async def test_a_snapshot_then_changes(client: RevocationClient, server: FeedServer) -> None:
    """Memory knows what was revoked before and after the stream began, and the service is not asked."""
    assert (says(client, "first"), says(client, "second")) == (True, False)
    server.revoke(revocation("second"))
    await until(lambda: says(client, "second"))
    assert await client.is_revoked({"jti": "second"})
    assert not await client.is_revoked({"jti": "third"})
    assert server.questions == []
    assert name(client) == "synced"


async def test_a_stream_that_breaks_off_is_resumed(server: FeedServer) -> None:
    """A broken stream is resumed from its last cursor. Memory says "not revoked" only once it knows what was missed."""
    async with server.client(max_staleness_seconds=HANG_SECONDS) as client:
        assert await client.mirror_ready(HANG_SECONDS)
        await _cut_and_resumed(client, server)


async def until_streams(client: RevocationClient, number: int) -> None:
    """Wait until this many streams have begun."""
    await until(lambda: client.counters.streams == number)


async def _cut_and_resumed(client: RevocationClient, server: FeedServer) -> None:
    server.revoke(revocation("second"))
    await until(lambda: says(client, "second"))
    for number in range(5):
        wanted = f"missed-{number}"
        server.log.append(revocation(wanted))  # no stream is told of it
        server.cut()
        await until_streams(client, number + 2)
        await until(lambda: says(client, "never") is False)
        assert says(client, wanted)
    assert server.asked == [None, *[f"{2 + number}-0.nonce" for number in range(5)]]
    assert (client.counters.streams, client.counters.snapshots) == (6, 1)


async def test_an_unknown_cursor_means_a_new_snapshot_and_unlearns_nothing(
    client: RevocationClient, server: FeedServer
) -> None:
    """If the service has lost its data, the client takes an empty snapshot, and keeps the revocations that it knew."""
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
    """After a reset, the client opens a stream without a cursor, and is synced again."""
    server.say(Reset(reason))
    await until(lambda: len(server.asked) == 2)
    assert server.asked[1] is None
    await until(lambda: last_error(client) is None and name(client) == "synced")


async def test_a_cursor_before_the_snapshot_is_whole_is_none(server: FeedServer) -> None:
    """A stream that breaks off within its snapshot is not resumed, even if a change with a cursor came meanwhile."""
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
    """Until a snapshot is complete, memory says only what is revoked, and the service is asked about all else."""
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


async def test_without_heartbeats_the_service_is_asked(client: RevocationClient, server: FeedServer) -> None:
    """Changes alone prove nothing: a second after the last heartbeat, memory no longer says "not revoked"."""
    server.beats = False
    synced_at = time.time()

    def asked() -> bool:
        nonlocal synced_at
        age_seconds, now = status_of(client).age_seconds, time.time()
        if says(client, "never") is None:
            return True
        assert age_seconds is not None
        assert age_seconds <= 1, "memory said more than its last proof allows"
        synced_at = now
        server.revoke(revocation("again"))
        return False

    await until(asked)
    assert says(client, "first")
    status = status_of(client)
    assert status.name == "stale"
    assert status.age_seconds is not None
    assert status.age_seconds > 1
    assert synced_at - 0.001 <= status.since <= time.time()
    server.beats = True
    await until(lambda: says(client, "never") is False)


async def test_a_sender_that_is_behind_the_store_makes_no_mirror_fresh(
    client: RevocationClient, server: FeedServer
) -> None:
    """Heartbeats do not make the mirror fresh while they say that the service is behind its store."""
    server.behind_seconds = 5.0
    await until(lambda: says(client, "never") is None)
    assert name(client) == "stale"
    server.behind_seconds = float("inf")
    await asyncio.sleep(0.3)
    assert says(client, "never") is None
    server.behind_seconds = 0.2
    await until(lambda: says(client, "never") is False)


async def test_an_incomplete_feed_says_only_what_is_revoked(client: RevocationClient, server: FeedServer) -> None:
    """While foreign applications write to the same Redis, memory does not say "not revoked"; afterwards it does."""
    server.complete = False
    await until(lambda: says(client, "never") is None)
    assert says(client, "first")
    status = status_of(client)
    assert (status.name, status.complete) == ("synced", False)
    assert not await client.is_revoked({"jti": "never"})
    assert server.questions == ["never"]
    server.complete = True
    await until(lambda: says(client, "never") is False)


async def test_a_silent_connection_is_dead(server: FeedServer) -> None:
    """If nothing arrives on an open stream for three seconds, the client opens another one."""
    over = asyncio.Event()

    async def say_nothing(response: web.StreamResponse) -> None:
        server.script = None
        await response.write(encode(server.beat()))
        await over.wait()

    server.script = say_nothing
    async with server.client() as client:
        began = time.monotonic()
        assert await client.mirror_ready(HANG_SECONDS)
        assert time.monotonic() - began >= SILENCE_SECONDS
        assert len(server.asked) == 2
    over.set()


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
    """Malformed data ends the stream. Known revocations are kept, and the next stream begins with a snapshot."""
    server.say(garbage)
    await until(lambda: len(server.asked) == 2)
    assert says(client, "first")
    assert server.asked[1] is None
    await until(lambda: client.counters.snapshots == 2 and last_error(client) is None)
    assert says(client, "never") is False


async def test_order_and_repetition_do_no_harm(client: RevocationClient, server: FeedServer) -> None:
    """Events that are repeated, reordered or outdated take nothing back: the latest cutoff and the latest end hold."""
    later, earlier = revocation("bob", "sub", cutoff=2000.0), revocation("bob", "sub", cutoff=1000.0)
    shorter = revocation("first", seconds=1)
    server.say(Change("5-0.n", [later]), Change("4-0.n", [earlier]), Change("5-0.n", [later]), Snapshot([earlier]))
    server.say(Snapshot([shorter]), Synced("5-0.n", True))
    await until(lambda: client.is_revoked_now({"jti": "x", "sub": "bob", "iat": 1500}))
    await until(lambda: client.is_revoked_now({"jti": "x", "sub": "bob", "iat": 2500}) is False)
    await asyncio.sleep(max(0.0, (shorter.expires_at or 0) + 1.1 - time.time()))
    assert says(client, "first")


async def test_the_mirror_uses_the_clock_skew_of_the_service(client: RevocationClient, server: FeedServer) -> None:
    """In memory, an `iat` further ahead than the clock skew of the service counts as issued before every cutoff."""
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
    """A refused feed is retried with backoff, and logged once. Checks are still answered by the service."""
    server.status = status
    caplog.set_level(logging.WARNING, "revocation_client")
    async with server.client() as client:
        await until(lambda: len(server.asked) > 1)
        assert not await client.mirror_ready(0.5)
        assert len(server.asked) < 12
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
    """A 200 response that is not an event stream is reported as an error, and nothing is learned from it."""

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"".join(snapshots([revocation("taught")])), content_type="text/html")

    server.feed = page  # type: ignore[method-assign]
    async with serving_feed(server), server.client() as client:
        await until(lambda: last_error(client))
        assert "no event stream" in str(last_error(client))
        assert says(client, "taught") is None


async def test_a_service_that_is_away_at_the_start_is_retried_until_it_answers() -> None:
    """The client starts while the service is away, and its mirror is synced once the service has started."""
    port = free_port()
    server = FeedServer()
    server.port = port
    server.log.append(revocation("first"))
    async with server.client() as client:
        await until(lambda: last_error(client))
        assert "no connection" in str(last_error(client))
        assert not await client.mirror_ready(0)
        async with serving_feed(server, port):
            assert await client.mirror_ready(HANG_SECONDS)
            assert says(client, "first")
            assert last_error(client) is None


async def test_nothing_is_left_when_the_client_is_closed(server: FeedServer) -> None:
    """A closed client leaves no task and no stream. Started again, it is synced again, and knows its revocations."""
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
    """An in-memory feed whose events arrive as one chunk. Each reading of its clock takes `tick_seconds`."""

    def __init__(self, events: Iterable[bytes], tick_seconds: float) -> None:
        self.now = 100.0
        self._tick_seconds = tick_seconds
        self._epoch = time.time() - self.now
        beat = encode(Heartbeat(0.0, self.now, True))
        self._chunk = b"".join([beat, *events, encode(Synced("1-0.n", True)), beat])

    def clock(self) -> float:
        """Return the monotonic time for the follower and its memory."""
        self.now += self._tick_seconds
        return self.now

    def wall(self) -> float:
        """Return the same time in epoch seconds."""
        return self._epoch + self.now

    async def feed(self, _cursor: str | None) -> AsyncGenerator[bytes]:
        """Yield the chunk, then nothing more."""
        yield self._chunk
        await asyncio.sleep(HANG_SECONDS)


async def turns_for(feed: OneChunk, revocations: int) -> int:
    """Follow a feed until the mirror is synced; return how many turns the event loop took meanwhile."""
    expiry_clock = ExpiryClock(feed.wall, lambda: feed.now)
    memory = LocalMirror(1e6, Counters(), wall=feed.wall, monotonic=feed.clock, expiry_clock=expiry_clock)
    follower = Follower(feed.feed, memory, Counters(), wall=feed.wall, monotonic=feed.clock)
    follower.start()
    turns = 0
    async with asyncio.timeout(HANG_SECONDS * scaled(1, 6)):
        while not await follower.ready(0):
            turns += 1
    await follower.aclose()
    assert len(memory.revocations) == revocations
    return turns


async def test_a_large_snapshot_lets_the_application_breathe() -> None:
    """While a large snapshot is applied, the event loop gets a turn whenever `TURN_SECONDS` have passed."""
    number = scaled(20_000, 1_000_000)
    events = snapshots(revocation(f"{one:032x}") for one in range(number))
    assert await turns_for(OneChunk(events, TURN_SECONDS), number) > number / 2_000


async def test_a_busy_application_does_not_hold_up_its_mirror() -> None:
    """A thousand changes that have arrived are applied in few turns, because in a busy application a turn is long."""
    events = [encode(Change(f"{one}-0.n", [revocation(f"{one:032x}")])) for one in range(1_000)]
    assert await turns_for(OneChunk(events, 0.0), 1_000) < 100


class SlowClock:
    """An in-memory feed whose sender's clock runs two per cent slow. Two seconds pass at each heartbeat."""

    rate = 0.98

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[str | None] = []

    async def feed(self, cursor: str | None) -> AsyncGenerator[bytes]:
        """Yield heartbeats only; the first comes with `synced`."""
        self.asked.append(cursor)
        synced = encode(Synced("7-0.n", True))
        while True:
            await asyncio.sleep(0)
            self.now += 2.0
            beat = encode(Heartbeat(0.0, self.now * self.rate, True))
            yield beat + synced + beat if synced else beat
            synced = b""


class Asleep(SlowClock):
    """A feed with clocks that agree. While the machine is suspended (`slept` seconds), only its wall clock runs."""

    rate = 1.0
    slept = 0.0


async def test_a_heartbeat_from_before_the_machine_was_suspended_proves_nothing() -> None:
    """After the machine was suspended, memory admits no token until a new stream has proven that nothing is missing."""
    clock = Asleep()
    memory = LocalMirror(5.0, Counters(), wall=lambda: clock.now + clock.slept, monotonic=lambda: clock.now)
    follower = Follower(
        clock.feed,
        memory,
        Counters(),
        wall=lambda: clock.now + clock.slept,
        monotonic=lambda: clock.now,
    )
    follower.start()
    assert await follower.ready(HANG_SECONDS)
    assert memory.admits({"jti": "x"})
    clock.slept = 600.0
    async with asyncio.timeout(HANG_SECONDS):
        while len(clock.asked) < 2:
            assert not memory.admits({"jti": "x"})
            await asyncio.sleep(0)
        while not memory.admits({"jti": "x"}):
            await asyncio.sleep(0)
    await follower.aclose()


async def test_a_stream_is_resumed_when_the_clocks_have_drifted_apart() -> None:
    """If clocks drift, heartbeats look older and older. The stream is resumed before that makes memory stale."""
    clock = SlowClock()
    memory = LocalMirror(5.0, Counters(), wall=lambda: clock.now, monotonic=lambda: clock.now)
    follower = Follower(clock.feed, memory, Counters(), wall=lambda: clock.now, monotonic=lambda: clock.now)
    follower.start()
    ages = []
    async with asyncio.timeout(HANG_SECONDS):
        while len(clock.asked) < 4:
            await asyncio.sleep(0)
            ages.append(memory.status().age_seconds or 0.0)
    await follower.aclose()
    assert clock.asked == [None, "7-0.n", "7-0.n", "7-0.n"]
    assert 0 < max(ages) < 5.0
    assert not memory.admits({"jti": "x"})


class Leaving:
    """An in-memory feed that announces its shutdown as soon as it has synced, and then ends."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    async def feed(self, cursor: str | None) -> AsyncGenerator[bytes]:
        """Yield one chunk with `synced`, a heartbeat, and the shutdown event."""
        self.asked.append(cursor)
        yield encode(Synced("7-0.n", True)) + encode(Heartbeat(0.0, 100.0, True)) + encode(Reset("shutdown"))


async def test_a_stream_that_a_leaving_service_ends_is_resumed_at_once() -> None:
    """After a shutdown event, the stream is resumed without backoff. If that one ends at once too, backoff begins."""
    leaving = Leaving()
    memory = LocalMirror(5.0, Counters(), wall=lambda: 100.0, monotonic=lambda: 100.0)
    follower = Follower(leaving.feed, memory, Counters(), wall=lambda: 100.0, monotonic=lambda: 100.0)
    follower.start()
    for _ in range(50):
        await asyncio.sleep(0)
    assert leaving.asked[:2] == [None, "7-0.n"]
    began = time.monotonic()
    await until(lambda: len(leaving.asked) >= 5)
    await follower.aclose()
    assert time.monotonic() - began > LEAST_PAUSES_SECONDS


class LongSnapshot(SlowClock):
    """A feed whose snapshot takes 15 s to arrive. Heartbeats that were sent meanwhile arrive after it."""

    def __init__(self) -> None:
        super().__init__()
        self._beats = [encode(Heartbeat(0.0, sent_at, True)) for sent_at in (100.0, 105.0, 110.0, 115.0)]

    async def feed(self, cursor: str | None) -> AsyncGenerator[bytes]:
        """Yield the first heartbeat; then, much later, the end of the snapshot and the other heartbeats."""
        self.asked.append(cursor)
        yield self._beats[0]
        self.now = 115.0
        yield encode(Synced("7-0.n", True)) + b"".join(self._beats[1:])
        await asyncio.sleep(HANG_SECONDS)


async def test_old_heartbeats_behind_a_long_snapshot_do_not_end_the_stream() -> None:
    """Heartbeats that waited behind a long snapshot do not end the stream. The last one makes the mirror synced."""
    clock = LongSnapshot()
    memory = LocalMirror(5.0, Counters(), wall=lambda: clock.now, monotonic=lambda: clock.now)
    follower = Follower(clock.feed, memory, Counters(), wall=lambda: clock.now, monotonic=lambda: clock.now)
    follower.start()
    assert await follower.ready(HANG_SECONDS)
    await follower.aclose()
    assert clock.asked == [None]
