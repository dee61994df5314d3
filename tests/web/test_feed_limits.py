"""`GET /feed` in need: too many, too slow, at full speed, at the end, and with what no follower of ours would send."""

import asyncio
import contextlib
import gc
import itertools
import math
import socket
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

import pytest

from revocation_client.feed import (
    EVENT_MAX_REVOCATIONS,
    PART_REVOCATIONS,
    Change,
    Heartbeat,
    Parser,
    Reset,
    Snapshot,
    Synced,
    decode,
    encode,
)
from revocation_client.model import Revocation
from revocation_service.feed import (
    QUEUE_MAX_BYTES,
    SNAPSHOT_SHARED_SECONDS,
    TELL_MAX_EVENTS,
    WAKE_AT_ONCE,
    Feed,
    Snapshot as MadeSnapshot,
    Stream,
)
from revocation_service.reader import Reader
from revocation_service.ring import RING_MAX_BYTES, cost
from revocation_service.settings import MirrorSettings, load
from revocation_service.store.changes import Changes
from revocation_service.store.connect import connect
from revocation_service.store.redis import Store
from revocation_service.telemetry import Metrics
from revocation_service.web.feed import WRITE_SECONDS
from revocation_service.web.state import FEED, TRAFFIC
from tests.redis_processes import Process, eventually, standalone
from tests.scale import scaled
from tests.web.serving import ANSWER_SECONDS, API_KEYS, Service, Start, request_bytes, serving, talk, variables
from tests.web.test_feed import Follower, following, in_step, is_synced

FOLLOW: Final = request_bytes("GET /feed HTTP/1.1")
LONG: Final = "\U0001f600" * 250
"""So long a value is about 3 kB in an event."""
LONG_BYTES: Final = 3_000
SOCKETS_BYTES: Final = 8 * 1024 * 1024
"""What two sockets may hold between them."""
CONNECTS: Final = scaled(500, 5_000)
REVOCATIONS: Final = scaled(300, 10_000)
WRITERS: Final = 12
RACERS: Final = 100
"""So many followers at most, all in one process with both services."""


@pytest.fixture
async def feeding(start: Start) -> Service:
    """A service that is in step, with the four keys of `KEYS`."""
    return await in_step(await start(API_KEYS=API_KEYS))


@pytest.fixture
async def flooded() -> AsyncIterator[Service]:
    """A service on a Redis of its own, which looks every second for what others wrote there."""
    async with standalone() as server, serving(server, API_KEYS=API_KEYS, RESCAN_SECONDS="1") as service:
        yield await in_step(service)


async def flood(service: Service, values: list[str]) -> None:
    """Have others revoke all of these."""
    for first in range(0, len(values), 500):
        pipeline = service.redis.pipeline(transaction=False)
        for value in values[first : first + 500]:
            pipeline.set(service.keyspace.key("jti", value), "1", ex=600)
        await pipeline.execute()


def long_values(size: int) -> list[str]:
    """So many that they make so many bytes of changes."""
    return [f"{number:06}{LONG}" for number in range(size // LONG_BYTES)]


async def followers(service: Service, count: int) -> bool:
    """Whether so many follow."""
    return await service.metric("revocation_feed_subscribers") == count


class Deaf:
    """One who asks for the feed and reads nothing of it, until he is asked what is there."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def __aenter__(self) -> "Deaf":
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        await loop.sock_sendall(self._socket, FOLLOW)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def rest(self) -> bytes:
        """All that is there until the end of the connection, which has come or is near."""
        read = bytearray()
        with contextlib.suppress(ConnectionError):
            while some := await asyncio.get_running_loop().sock_recv(self._socket, 1 << 20):
                read += some
        return bytes(read)


class Told:
    """A follower that takes one piece of its stream at a time."""

    def __init__(self, feed: Feed) -> None:
        self._stream = feed.follow(None)
        self._pieces = self._stream.pieces()
        self._parser = Parser()

    async def part(self) -> Snapshot | Synced | Reset:
        """The next part of the snapshot, or what comes instead of it."""
        async for piece in self._pieces:
            for event, _unknown in map(decode, self._parser.feed(piece)):
                if isinstance(event, Snapshot | Synced | Reset):
                    return event
        raise AssertionError("the stream ended, and did not say so")

    async def all(self) -> set[str]:
        """What the rest of the snapshot says."""
        told: set[str] = set()
        while isinstance(part := await self.part(), Snapshot):
            told |= {one.value for one in part.revocations}
        assert isinstance(part, Synced)
        return told

    async def change(self) -> None:
        """Read on, up to a change."""
        async for piece in self._pieces:
            if any(isinstance(decode(message).event, Change) for message in self._parser.feed(piece)):
                return

    async def leave(self) -> None:
        """Read no more."""
        await self._pieces.aclose()
        self._stream.close()


@contextlib.asynccontextmanager
async def feed_of(redis: Process, held: list[str], clock: Callable[[], float]) -> AsyncIterator[tuple[Feed, Reader]]:
    """A feed whose mirror holds these, and is in step, by a clock of its own."""
    settings, metrics = load(variables(redis)).settings, Metrics()
    async with contextlib.AsyncExitStack() as stack:
        store = Store(connect(settings.store), settings.store, settings.limits, metrics)
        stack.push_async_callback(store.aclose)
        reader = Reader(Changes(store), MirrorSettings(), metrics)
        for value in held:
            reader.add_own(Revocation("jti", value, time.time() + 600, None))
        reader.synced, reader.doubt.doubtful = True, False
        feed = Feed(reader, 1_000, metrics, clock)
        await feed.start()
        stack.push_async_callback(feed.aclose)
        yield feed, reader


def snapshots_held() -> int:
    """How many parts of snapshots this process holds, in snapshots of the service's."""
    gc.collect()
    return sum(1 for each in gc.get_objects() if isinstance(each, MadeSnapshot) and each._parts)


async def test_one_too_many_is_told_to_come_back(start: Start) -> None:
    """Beyond FEED_MAX_SUBSCRIBERS: 503 too_many_subscribers with Retry-After; room again when somebody is cut off."""
    service = await in_step(await start(API_KEYS=API_KEYS, FEED_MAX_SUBSCRIBERS="2"))
    _reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(FOLLOW)
    async with following(service) as follower:
        await eventually(lambda: followers(service, 2), "two followers")
        answer = await service.get("/feed")
        assert (answer.status, answer.problem) == (503, "too_many_subscribers")
        assert int(answer.headers["Retry-After"]) >= 1
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()  # with a RST
        await eventually(lambda: followers(service, 1), "one follower")
        async with following(service) as other:
            await other.until(is_synced)
        await follower.until(is_synced)


async def test_nobody_may_follow_where_none_is_allowed(start: Start) -> None:
    """FEED_MAX_SUBSCRIBERS=0 is a service without a feed; its other answers are as ever."""
    service = await in_step(await start(API_KEYS=API_KEYS, FEED_MAX_SUBSCRIBERS="0"))
    assert (await service.get("/feed")).problem == "too_many_subscribers"
    assert (await service.revoke({"jti": "a"}))["result"] == "revoked"


async def test_one_who_is_too_slow_is_cut_off_and_his_neighbour_is_not(flooded: Service) -> None:
    """More waits for him than the bound: he is ended, long before a write would time out; the other gets all."""
    async with Deaf(flooded.port) as deaf, following(flooded) as follower:
        await asyncio.gather(follower.until(is_synced), eventually(lambda: followers(flooded, 2), "both"))
        values, began = long_values(QUEUE_MAX_BYTES + SOCKETS_BYTES), time.monotonic()
        cut = eventually(lambda: followers(flooded, 1), "the end of the deaf one")
        await asyncio.gather(flood(flooded, values), cut, follower.until_told(*values))
        assert time.monotonic() - began < WRITE_SECONDS
        assert await flooded.metric('revocation_feed_streams_ended_total{reason="too_slow"}') == 1
        assert len(await deaf.rest()) < SOCKETS_BYTES
        assert follower.told(Change) == set(values)


async def test_a_cursor_that_was_forgotten_is_reset(flooded: Service) -> None:
    """More has changed since than is remembered: reset and a snapshot; a cursor from the end is still good."""
    async with following(flooded) as follower:
        await follower.until(is_synced)
        old = follower.cursor
        values = long_values(RING_MAX_BYTES + (1 << 20))
        await asyncio.gather(flood(flooded, values), follower.until_told(*values))
    async with following(flooded, old) as back, following(flooded, follower.cursor) as late:
        await asyncio.gather(back.until(is_synced), late.until(is_synced))
    assert Reset("unknown_cursor") in back.events
    assert back.known.keys() == follower.known.keys()
    assert late.names[:2] == ["Heartbeat", "Synced"]


async def test_what_waits_for_a_follower_is_bounded() -> None:
    """A stream takes no more than its bound: then all that waited is dropped, and the end is all that is told."""

    async def opening(_stream: Stream) -> AsyncGenerator[bytes, None]:
        yield b"the beginning"

    stream, event, taken = Stream(opening, lambda _: None, []), b"x" * 65_536, 0
    while stream.ended is None:
        stream.push(event)
        taken += cost(event)
    assert taken - cost(event) <= QUEUE_MAX_BYTES < taken
    stream.push(event)
    assert [piece async for piece in stream.pieces()] == [encode(Reset("too_slow"))]


async def test_others_have_their_turn_while_many_followers_are_told(redis: Process) -> None:
    """Of many, some are written to in one turn of the event loop, and in the end all, each once."""
    synced: list[int] = []
    told: list[int] = []

    async def follow(stream: Stream, number: int) -> None:
        async with contextlib.aclosing(stream.pieces()) as pieces:
            async for piece in pieces:
                synced.extend([number] * piece.count(b"event: synced"))
                told.extend([number] * piece.count(b"event: change"))

    async with feed_of(redis, [], time.monotonic) as (feed, reader):
        number = 3 * WAKE_AT_ONCE + 1
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(follow(feed.follow(None), each)) for each in range(number)]
            turns = []
            async with asyncio.timeout(ANSWER_SECONDS):
                while len(synced) < number:
                    await asyncio.sleep(0)
                reader.add_own(Revocation("jti", "told", time.time() + 600, None))
                while len(told) < number:
                    before = len(told)
                    await asyncio.sleep(0)
                    turns.append(len(told) - before)
            for task in tasks:
                task.cancel()
        assert max(turns) <= WAKE_AT_ONCE
        assert sorted(told) == list(range(number))


async def test_a_burst_is_told_to_its_end(redis: Process) -> None:
    """More at once than is told at a time: the rest is told a little later, each once, and nothing is left out."""
    async with feed_of(redis, [], time.monotonic) as (feed, reader):
        stream, parser = feed.follow(None), Parser()
        values = [f"{number}" for number in range((TELL_MAX_EVENTS + 2) * EVENT_MAX_REVOCATIONS)]
        for value in values:
            reader.add_own(Revocation("jti", value, time.time() + 600, None))
        told: list[str] = []
        async with asyncio.timeout(ANSWER_SECONDS), contextlib.aclosing(stream.pieces()) as pieces:
            while len(told) < len(values):
                for event, _unknown in map(decode, parser.feed(await anext(pieces))):
                    told += [one.value for one in event.revocations] if isinstance(event, Change) else []
        assert told == values


async def test_slow_readers_hold_two_snapshots_at_most(redis: Process) -> None:
    """However many come, each to a snapshot of its own that it does not read to the end: the last two are kept."""
    now, held = 0.0, [f"{number}" for number in range(2 * PART_REVOCATIONS)]
    async with feed_of(redis, held, lambda: now) as (feed, _reader):
        slow = []
        for number in range(6):
            now = number * 121.0
            slow.append(Told(feed))
            assert isinstance(await slow[-1].part(), Snapshot)
            assert snapshots_held() <= 2
        assert [await one.part() for one in slow[:-2]] == [Reset("too_slow")] * 4
        for one in slow[-2:]:
            assert 0 < len(await one.all()) < len(held), "it had a part before"
        for one in slow:
            await one.leave()


async def test_a_slow_reader_has_two_minutes(redis: Process) -> None:
    """When a second came, newcomers share his snapshot for so long; then they get a third, and the first is cut off."""
    now, held = 0.0, [f"{number}" for number in range(3 * PART_REVOCATIONS)]
    async with feed_of(redis, held, lambda: now) as (feed, _reader):
        first = Told(feed)
        assert isinstance(await first.part(), Snapshot)
        now = 11.0
        second = Told(feed)
        assert isinstance(await second.part(), Snapshot)
        now = 131.0
        assert await Told(feed).all() == set(held)
        assert isinstance(await first.part(), Snapshot)
        now = 131.5
        assert await Told(feed).all() == set(held)
        assert await first.part() == Reset("too_slow")
        assert isinstance(await second.part(), Snapshot)
        await first.leave()
        await second.leave()


async def test_who_has_read_his_snapshot_and_stays_holds_none(redis: Process) -> None:
    """However many follow, and whenever they came: what they were told at first is not kept for them."""
    now, held = 0.0, [f"{number}" for number in range(2 * PART_REVOCATIONS)]
    async with feed_of(redis, held, lambda: now) as (feed, reader):
        staying = []
        for number in range(4):
            now = number * (SNAPSHOT_SHARED_SECONDS + 1)
            staying.append(Told(feed))
            assert await staying[-1].all() >= set(held)
            reader.add_own(Revocation("jti", f"later-{number}", time.time() + 600, None))
            for one in staying:
                await one.change()
            assert snapshots_held() <= 1
        for one in staying:
            await one.leave()


async def test_a_snapshot_that_nobody_reads_is_let_go(redis: Process) -> None:
    """After ten seconds; until then the next who comes is given it, with what changed since."""
    now = 0.0
    async with feed_of(redis, ["a"], lambda: now) as (feed, reader):
        for later, said in ((0.0, {"a"}), (SNAPSHOT_SHARED_SECONDS, {"a"}), (0.1, {"a", "b"})):
            now += later
            follower = Told(feed)
            assert await follower.all() == said
            await follower.leave()
            reader.add_own(Revocation("jti", "b", time.time() + 600, None))
        now += SNAPSHOT_SHARED_SECONDS + 1
        await eventually(lambda: asyncio.sleep(0, snapshots_held() == 0), "none that is held")


async def test_a_foreign_key_of_any_length_harms_nobody(flooded: Service) -> None:
    """One of 9 MB, and many that are far too long together: what a question can name is told, to newcomers too."""
    values = {"a", "b" * 256, "\U0001f600" * 256}
    async with following(flooded) as follower:
        await follower.until(is_synced)
        for value in (*values, "x" * 9_000_000, *(f"{number}" + "y" * 40_000 for number in range(300))):
            await flooded.redis.set(flooded.keyspace.key("jti", value), "1", ex=600)
        await follower.until_told(*values)
        await follower.until_vouched()
    async with following(flooded, "unknown") as late:
        await late.until(is_synced)
    assert late.told(Snapshot) | late.told(Change) == follower.told(Change) == values


async def test_an_end_is_told(redis: Process) -> None:
    """At shutdown every stream ends with that word, a newcomer is 503 feed_unavailable, and it is over at once."""
    async with contextlib.AsyncExitStack() as stack:
        service = await in_step(await stack.enter_async_context(serving(redis, API_KEYS=API_KEYS)))
        async with following(service) as one, following(service) as two:
            await asyncio.gather(one.until(is_synced), two.until(is_synced))
            began = time.monotonic()
            service.app[FEED].end()  # as `drain` does last
            assert (await service.get("/feed")).problem == "feed_unavailable"
            await asyncio.gather(one.end(), two.end(), stack.aclose())
            assert time.monotonic() - began < 2
            assert one.events[-1] == two.events[-1] == Reset("shutdown")


async def test_an_instance_that_leaves_says_so_first_and_still_tells_what_it_acknowledges(feeding: Service) -> None:
    """Its subscribers hear `reset shutdown`, and then of each revocation until the end; new ones are refused."""
    async with following(feeding) as follower:
        await follower.until(is_synced)
        feeding.app[FEED].leave()
        await feeding.revoke({"jti": "while leaving", "expires_in": 600})
        await follower.until_told("while leaving")
        assert follower.events.index(Reset("shutdown")) < next(
            place for place, event in enumerate(follower.events) if isinstance(event, Change)
        )
        await follower.until_vouched()
        assert (await feeding.get("/feed")).problem == "feed_unavailable"
        feeding.app[FEED].end()
        await follower.end()


async def test_the_end_of_the_feed_tells_what_was_acknowledged_a_moment_before(redis: Process) -> None:
    """More than is told at a time, and not told yet: all of it comes before the end."""
    async with feed_of(redis, [], time.monotonic) as (feed, reader):
        stream, parser = feed.follow(None), Parser()
        values = [f"last-{number}" for number in range((TELL_MAX_EVENTS + 2) * EVENT_MAX_REVOCATIONS)]
        async with contextlib.aclosing(stream.pieces()) as pieces:
            events = [decode(message).event for message in parser.feed(await anext(pieces))]
            for value in values:
                reader.add_own(Revocation("jti", value, time.time() + 600, None))
            feed.end()
            async for piece in pieces:
                events += [decode(message).event for message in parser.feed(piece)]
        told = [one.value for event in events if isinstance(event, Change) for one in event.revocations]
        assert told == values
        assert events[-1] == Reset("shutdown")


async def test_no_revocation_is_acknowledged_after_the_end_of_the_feed(feeding: Service) -> None:
    """503 shutting_down with Retry-After, because no subscriber could hear of it; a check is still answered."""
    feeding.app[FEED].end()
    answer = await feeding.post("/revoke", {"jti": "too late", "expires_in": 600})
    assert (answer.status, answer.problem) == (503, "shutting_down")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await feeding.check({"jti": "too late"}))["revoked"] is True, "it may have been stored"


async def test_a_subscriber_in_the_middle_of_its_snapshot_is_told_as_well(redis: Process) -> None:
    """The snapshot goes on to `synced`, and then the subscriber hears that it has to ask."""
    held = [f"{number}" for number in range(2 * PART_REVOCATIONS)]
    async with feed_of(redis, held, time.monotonic) as (feed, _reader):
        told = Told(feed)
        assert isinstance(await told.part(), Snapshot)
        feed.leave()
        parts = [await told.part() for _ in range(3)]
        assert [type(part) for part in parts] == [Snapshot, Synced, Reset]


async def test_one_who_does_not_read_holds_up_no_end(flooded: Service) -> None:
    """Told to go, and blocked in the middle of something: cut off in a moment, and nothing is in flight any more."""
    async with Deaf(flooded.port) as deaf:
        await eventually(lambda: followers(flooded, 1), "the deaf one")
        async with following(flooded) as follower:
            values = long_values(SOCKETS_BYTES + (1 << 20))
            await asyncio.gather(flood(flooded, values), follower.until_told(*values))
        flooded.app[TRAFFIC].leaving = True
        flooded.app[FEED].end()
        async with asyncio.timeout(WRITE_SECONDS / 3):
            await flooded.app[TRAFFIC].over()
            await eventually(lambda: followers(flooded, 0), "the end of the stream")
        assert b"shutdown" not in await deaf.rest()


async def test_many_who_come_and_go_leave_nothing(feeding: Service) -> None:
    """Hundreds that connect and drop, before and after the first byte: nobody is counted, and no task is left."""
    tasks = len(asyncio.all_tasks())

    async def come_and_go(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", feeding.port)
        writer.write(FOLLOW)
        if number % 2:
            assert await reader.read(10)
        if number % 3:
            writer.transport.abort()
        writer.close()

    for first in range(0, CONNECTS, 50):
        await asyncio.gather(*(come_and_go(number) for number in range(first, first + 50)))
    assert await feeding.metric('revocation_feed_streams_total{kind="begun"}') > 0
    await eventually(lambda: followers(feeding, 0), "nobody who follows")

    async def none_left() -> bool:
        return len(asyncio.all_tasks()) <= tasks

    await eventually(none_left, "no task of theirs")


async def begun(service: Service, line: str, *headers: str) -> tuple[bytes, list[object]]:
    """The header that a bare socket gets, and the events until all is told."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(request_bytes(line, *headers))
        async with asyncio.timeout(ANSWER_SECONDS):
            header = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"event: synced")
    finally:
        writer.transport.abort()
    return header, [decode(message).event for message in Parser().feed(body)]


async def test_a_half_closed_connection_is_a_closed_one(feeding: Service) -> None:
    """Who ends his side has left: the connection is closed, and he is not counted."""
    assert (await talk(feeding, FOLLOW, answers=2, half_close=True)).closed
    await eventually(lambda: followers(feeding, 0), "nobody who follows")


async def test_http_1_0_gets_the_same_without_chunks(feeding: Service) -> None:
    """The plain events, behind a header that promises no length and no other request."""
    await feeding.revoke({"jti": "a"})
    header, events = await begun(feeding, "GET /feed HTTP/1.0")
    assert header.startswith(b"HTTP/1.0 200 OK\r\n")
    assert not any(name in header.lower() for name in (b"transfer-encoding", b"content-length", b"keep-alive"))
    assert [type(event) for event in events] == [Heartbeat, Snapshot]


async def test_a_request_behind_is_not_answered(feeding: Service) -> None:
    """Pipelined after /feed: the stream goes on, nothing stands between its events, and its end is the connection's."""
    talking = asyncio.create_task(talk(feeding, FOLLOW + request_bytes("POST /revoke HTTP/1.1"), answers=2))
    await eventually(lambda: followers(feeding, 1), "the follower")
    feeding.app[FEED].end()
    raw = await talking
    assert raw.closed
    assert raw.data.count(b"HTTP/1.1") == 1
    assert raw.data.endswith(b"\r\n0\r\n\r\n")
    assert encode(Reset("shutdown")) in raw.data


@pytest.mark.parametrize("character", ["\r", "\n", "\0"])
async def test_a_cursor_that_is_no_header_is_no_request(feeding: Service, character: str) -> None:
    """CR, LF and NUL in Last-Event-ID are 400, and no stream begins."""
    raw = await talk(feeding, request_bytes("GET /feed HTTP/1.1", f"Last-Event-ID: a{character}b"))
    assert raw.statuses == [400]
    streamed = 'revocation_http_request_duration_seconds_count{method="GET",route="/feed",status="200"}'
    assert await feeding.metric(streamed) == 0
    assert await followers(feeding, 0)


async def test_two_cursors_are_none_that_is_known(feeding: Service) -> None:
    """Two Last-Event-ID, each good by itself: reset, rather than a choice."""
    async with following(feeding) as follower:
        await follower.until(is_synced)
    cursor = f"Last-Event-ID: {follower.cursor}"
    _header, events = await begun(feeding, "GET /feed HTTP/1.0", cursor, cursor)
    assert events[1] == Reset("unknown_cursor")


async def test_nothing_slips_between_snapshot_and_changes(start: Start) -> None:
    """Followers come and come back at full speed of writing at two services: each gets every acknowledged revocation.

    And none is vouched for before it is told.
    """
    services = [await in_step(await start(API_KEYS=API_KEYS, KEY_PREFIX="race:")) for _ in range(2)]
    acknowledged: dict[str, float] = {}
    numbers = itertools.count()

    async def write() -> None:
        while (number := next(numbers)) < REVOCATIONS:
            body = {"jti": f"race-{number}", "expires_in": 600}
            while (answer := await services[number % 2].post("/revoke", body)).status == 503:
                pass  # the machine is busy, and Redis did not answer in time: nothing was acknowledged
            assert answer.status == 200, answer
            acknowledged[answer.json["value"]] = time.monotonic()

    writing = asyncio.gather(*(write() for _ in range(WRITERS)))
    async with asyncio.TaskGroup() as following_all:
        tasks: list[asyncio.Task[list[Follower]]] = []
        while not writing.done():
            if len(tasks) < RACERS:
                service = services[len(tasks) % 2]
                tasks.append(following_all.create_task(_in_two_parts(service, writing)))
            await asyncio.sleep(0.02)
    await writing
    assert len(acknowledged) == REVOCATIONS
    assert len(tasks) > 5
    for task in tasks:
        told: set[str] = set()
        for event in itertools.chain.from_iterable(part.events for part in task.result()):
            if isinstance(event, Snapshot | Change):
                told |= {one.value for one in event.revocations}
            if isinstance(event, Heartbeat) and math.isfinite(event.behind_seconds):
                proven = event.sent_at - event.behind_seconds
                assert not {value for value, at in acknowledged.items() if at < proven} - told
        assert told == acknowledged.keys()


async def _in_two_parts(service: Service, writing: "asyncio.Future[list[None]]") -> list[Follower]:
    """One who breaks off soon, and goes on from there until all is told."""
    async with following(service) as first:
        await first.until(is_synced)
        await first.hear()
    async with following(service, first.cursor) as second:
        await second.until(is_synced)
        while not writing.done():
            await second.hear()
        await second.until_vouched()
    return [first, second]
