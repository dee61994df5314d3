"""`GET /feed` under stress: too many or slow subscribers, concurrent writes, shutdown, and unusual requests."""

import asyncio
import contextlib
import gc
import itertools
import math
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final, cast

import pytest

from revocation_client.feed_events import Change, Event, Heartbeat, Parser, Reset, Snapshot, Synced, encode
from revocation_client.mirror import Mirror
from revocation_client.revocation import Revocation
from revocation_service.api.dependencies import BROADCASTER
from revocation_service.api.feed import WRITE_SECONDS
from revocation_service.broadcaster import (
    CHUNK_BYTES,
    EVENT_MAX_REVOCATIONS,
    Broadcaster,
    SharedSnapshot,
)
from revocation_service.metrics import Metrics
from revocation_service.replay_buffer import REPLAY_MAX_BYTES
from revocation_service.replication.mirror_sync import MirrorSync
from tests.api.serving import ANSWER_SECONDS, API_KEYS, Service, Start, request_bytes, serving, talk
from tests.api.test_feed import Follower, following, in_step, is_synced
from tests.redis_processes import Process, eventually, standalone
from tests.scale import BUSY_SECONDS, scaled

FOLLOW: Final = request_bytes("GET /feed HTTP/1.1")
LONG: Final = "\U0001f600" * 250
"""A value that takes about `LONG_BYTES` in an event."""
LONG_BYTES: Final = 3_000
SOCKETS_BYTES: Final = 8 * 1024 * 1024
"""More than the socket buffers of both ends hold together."""
CONNECTS: Final = scaled(500, 5_000)
REVOCATIONS: Final = scaled(300, 10_000)
WRITERS: Final = 12
RACERS: Final = 100
"""Maximum number of subscribers, all in one process with both services."""


@pytest.fixture
async def feeding(start: Start) -> Service:
    """A service with the four API keys of `KEYS`, whose mirror is in sync."""
    return await in_step(await start(API_KEYS=API_KEYS))


@pytest.fixture
async def flooded() -> AsyncIterator[Service]:
    """A service with a Redis of its own, which it rescans every second for keys of foreign writers."""
    async with standalone() as server, serving(server, API_KEYS=API_KEYS, RESCAN_SECONDS="1") as service:
        yield await in_step(service)


async def flood(service: Service, values: list[str]) -> None:
    """Write a key for each of these values to Redis, as a foreign writer does."""
    for first in range(0, len(values), 500):
        pipeline = service.redis.pipeline(transaction=False)
        for value in values[first : first + 500]:
            pipeline.set(service.keyspace.key("jti", value), "1", ex=600)
        await pipeline.execute()


def long_values(size: int) -> list[str]:
    """Return long values whose changes have this many bytes in total."""
    return [f"{number:06}{LONG}" for number in range(size // LONG_BYTES)]


async def followers(service: Service, count: int) -> bool:
    """Return whether the service has exactly `count` subscribers."""
    return await service.metric("revocation_feed_subscribers") == count


class Deaf:
    """A subscriber that asks for the feed and reads nothing of it before `rest`."""

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
        """Read to the end of the connection."""
        read = bytearray()
        with contextlib.suppress(ConnectionError):
            while some := await asyncio.get_running_loop().sock_recv(self._socket, 1 << 20):
                read += some
        return bytes(read)


class Told:
    """A subscriber that takes one chunk of its stream at a time."""

    def __init__(self, broadcaster: Broadcaster, cursor: str | None = None) -> None:
        self._place = contextlib.ExitStack()
        self._chunks = self._place.enter_context(broadcaster.subscription(cursor))
        self._parser = Parser()
        self._events: list[Event] = []
        self._changed: list[str] = []

    async def event(self) -> Event:
        """Return the next event. Raises StopAsyncIteration at the end of the stream."""
        while not self._events:
            events = self._parser.feed(await anext(self._chunks))
            self._events += [event for event, _unknown in events if event is not None]
        return self._events.pop(0)

    async def rest(self) -> list[Event]:
        """Return all events to the end of the stream."""
        events = []
        with contextlib.suppress(StopAsyncIteration):
            while True:
                events.append(await self.event())
        return events

    async def part(self) -> Snapshot | Synced | Reset:
        """Return the next part of the snapshot, or what comes instead of it."""
        while not isinstance(event := await self.event(), Snapshot | Synced | Reset):
            self._note(event)
        return event

    async def all(self) -> set[str]:
        """Return the values in the rest of the snapshot."""
        told: set[str] = set()
        while isinstance(part := await self.part(), Snapshot):
            told |= {one.value for one in part.revocations}
        assert isinstance(part, Synced)
        return told

    async def changes(self, number: int) -> list[str]:
        """Return the values of the next changes, at least `number` of them."""
        while len(self._changed) < number:
            self._note(await self.event())
        told, self._changed = self._changed, []
        return told

    def _note(self, event: Event) -> None:
        self._changed += [one.value for one in event.revocations] if isinstance(event, Change) else []

    async def leave(self) -> None:
        """End the subscription."""
        await self._chunks.aclose()
        self._place.close()


class Breaking(Mirror):
    """A mirror that runs out of memory after this many entries."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self._entries = entries

    def entries(self, now: float) -> Iterator[Revocation]:
        """Yield the entries, then raise MemoryError."""
        for number in range(self._entries):
            yield Revocation("jti", f"{number}", now, None)
        raise MemoryError


NOW: Final = 1_900_000_000.0
"""A time before the end of every revocation here, in epoch seconds."""


class Learning:
    """A stand-in for `MirrorSync`, with a mirror that a test fills by `learn`."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self.mirror = Mirror()
        self.complete = True
        self._listeners: list[Callable[[list[Revocation]], None]] = []
        self.learn(*values)

    def learn(self, *values: str) -> None:
        """Add revocations of these values to the mirror, and pass them to the listeners."""
        new = [Revocation("jti", value, 2_000_000_000.0, None) for value in values]
        for each in new:
            self.mirror.add(each, NOW)
        for listener in self._listeners:
            listener(new)

    def told(self) -> Iterator[Revocation]:
        """Return all revocations in the mirror."""
        return self.mirror.entries(NOW)

    def feeds(self) -> bool:
        """Return True."""
        return True

    def staleness(self) -> float:
        """Return 0: the mirror is always current."""
        return 0.0

    def subscribe(self, listener: Callable[[list[Revocation]], None]) -> Callable[[], None]:
        """Add a listener for `learn`, and return a function that removes it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


@contextlib.asynccontextmanager
async def broadcasting(source: "Learning") -> AsyncIterator[Broadcaster]:
    """Yield a broadcaster of this source, and close it at the end."""
    broadcaster = Broadcaster(cast("MirrorSync", source), 1_000, Metrics())
    async with asyncio.timeout(ANSWER_SECONDS):
        try:
            yield broadcaster
        finally:
            await broadcaster.aclose()


def snapshots_in_memory(others: Sequence[SharedSnapshot] = ()) -> list[SharedSnapshot]:
    """Return the snapshots in memory, without `others`, which an earlier test may have left.

    No garbage collection runs first, because a snapshot must be freed as soon as it has no reader.
    """
    known = {id(each) for each in others}
    return [each for each in gc.get_objects() if isinstance(each, SharedSnapshot) and id(each) not in known]


async def test_one_too_many_is_told_to_come_back(start: Start) -> None:
    """A subscriber beyond FEED_MAX_SUBSCRIBERS is 503 with Retry-After, until another one has disconnected."""
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


async def test_no_subscriber_is_accepted_where_none_is_allowed(start: Start) -> None:
    """With FEED_MAX_SUBSCRIBERS=0, /feed refuses every subscriber, and a revocation still succeeds."""
    service = await in_step(await start(API_KEYS=API_KEYS, FEED_MAX_SUBSCRIBERS="0"))
    assert (await service.get("/feed")).problem == "too_many_subscribers"
    assert (await service.revoke({"jti": "a"}))["result"] == "revoked"


async def test_a_subscriber_that_is_too_slow_is_cut_off_and_its_neighbour_is_not(flooded: Service) -> None:
    """A subscriber that reads nothing is dropped during a flood of changes, and its neighbour gets all of them."""
    async with Deaf(flooded.port) as deaf, following(flooded) as follower:
        await asyncio.gather(follower.until(is_synced), eventually(lambda: followers(flooded, 2), "both"))
        values = long_values(REPLAY_MAX_BYTES + SOCKETS_BYTES)
        cut = eventually(lambda: followers(flooded, 1), "the end of the deaf one")
        await asyncio.gather(flood(flooded, values), cut, follower.until_told(*values))
        assert len(await deaf.rest()) < SOCKETS_BYTES
        assert follower.told(Change) == set(values)


async def test_a_cursor_that_was_forgotten_is_reset(flooded: Service) -> None:
    """A cursor that the replay buffer has dropped gets `reset` and a snapshot. One from its end still resumes."""
    async with following(flooded) as follower:
        await follower.until(is_synced)
        old = follower.cursor
        values = long_values(REPLAY_MAX_BYTES + (1 << 20))
        await asyncio.gather(flood(flooded, values), follower.until_told(*values))
    async with following(flooded, old) as back, following(flooded, follower.cursor) as late:
        await asyncio.gather(back.until(is_synced), late.until(is_synced))
    assert Reset("unknown_cursor") in back.events
    assert back.known.keys() == follower.known.keys()
    assert set(late.names[: late.names.index("Synced")]) == {"Heartbeat"}


async def test_a_subscriber_whose_changes_were_dropped_is_told_only_to_resync() -> None:
    """A subscriber whose changes the replay buffer drops gets only `reset`, and its neighbour gets all changes."""
    source = Learning()
    async with broadcasting(source) as broadcaster:
        slow, quick = Told(broadcaster), Told(broadcaster)
        await slow.all()
        await quick.all()
        learned: list[str] = []
        while broadcaster.buffer.start == 0:
            learned.append(f"{len(learned):06}{'x' * 250}")
            source.learn(learned[-1])
            if len(learned) % 1000 == 0:
                assert await quick.changes(1000) == learned[-1000:]
        assert await quick.changes(len(learned) % 1000) == learned[len(learned) // 1000 * 1000 :]
        assert [event for event in await slow.rest() if not isinstance(event, Heartbeat)] == [Reset("too_slow")]


async def test_a_burst_is_told_to_its_end() -> None:
    """Thousands of revocations, learned together and one by one, are each sent once and in order."""
    source = Learning()
    async with broadcasting(source) as broadcaster:
        subscriber = Told(broadcaster)
        await subscriber.all()
        values = [f"{number:06}" for number in range(32 * EVENT_MAX_REVOCATIONS + 1)]
        assert len(values) * len(values[0]) < CHUNK_BYTES * 4
        source.learn(*values[: len(values) // 2])
        for value in values[len(values) // 2 :]:
            source.learn(value)
        assert await subscriber.changes(len(values)) == values


async def test_subscribers_that_come_while_a_snapshot_is_read_share_it() -> None:
    """Subscribers that come while a snapshot is read share one in memory, and get later revocations as changes."""
    source, held = Learning(), [f"{number}" for number in range(3 * EVENT_MAX_REVOCATIONS)]
    others = snapshots_in_memory()
    source.learn(*held)
    async with broadcasting(source) as broadcaster:
        first = Told(broadcaster)
        assert isinstance(await first.part(), Snapshot)
        for number in range(4):
            source.learn(f"later-{number}")
            late = Told(broadcaster)
            assert await late.all() >= set(held)
            assert len(snapshots_in_memory(others)) == 1
            assert await late.changes(number + 1) == [f"later-{each}" for each in range(number + 1)]
        assert not await first.all() >= set(held), "it had a part before"
        assert await first.changes(4) == [f"later-{number}" for number in range(4)]
        assert len(snapshots_in_memory(others)) == 0
        assert len(await Told(broadcaster).all()) == len(held) + 4


async def test_an_unread_snapshot_is_freed_at_once() -> None:
    """A snapshot is freed as soon as its last reader leaves, or has read all of it."""
    source = Learning(f"{number}" for number in range(3 * EVENT_MAX_REVOCATIONS))
    others = snapshots_in_memory()
    async with broadcasting(source) as broadcaster:
        for parts in (0, 1, 2):
            reader = Told(broadcaster)
            for _ in range(parts):
                assert isinstance(await reader.part(), Snapshot)
            assert len(snapshots_in_memory(others)) == 1
            await reader.leave()
            del reader
            assert len(snapshots_in_memory(others)) == 0
        staying = Told(broadcaster)
        await staying.all()
        assert len(snapshots_in_memory(others)) == 0


async def test_a_snapshot_whose_changes_were_dropped_is_not_shared() -> None:
    """If changes since a snapshot were dropped, its reader gets `too_slow`, and a new subscriber a new snapshot."""
    source = Learning(f"{number}" for number in range(2 * EVENT_MAX_REVOCATIONS))
    async with broadcasting(source) as broadcaster:
        slow = Told(broadcaster)
        assert isinstance(await slow.part(), Snapshot)
        while broadcaster.buffer.start == 0:
            source.learn(f"{broadcaster.buffer.end:06}{'x' * 250}")
        late = Told(broadcaster)
        assert len(await late.all()) == len(source.mirror)
        async with asyncio.timeout(ANSWER_SECONDS):
            while isinstance(part := await slow.part(), Snapshot):
                pass
        assert part == Reset("too_slow")


async def test_a_snapshot_with_a_gap_syncs_no_subscriber() -> None:
    """If encoding a snapshot fails, every subscriber that shares it gets an error instead of `synced`."""
    source = Learning()
    source.mirror = Breaking(EVENT_MAX_REVOCATIONS + 1)
    async with broadcasting(source) as broadcaster:
        subscribers = Told(broadcaster), Told(broadcaster)
        for each in subscribers:
            assert isinstance(await each.part(), Snapshot)
        with pytest.raises(MemoryError):
            await subscribers[0].part()
        with pytest.raises(RuntimeError):
            await subscribers[1].part()


async def test_a_foreign_key_of_any_length_harms_no_subscriber(flooded: Service) -> None:
    """Keys of a foreign writer are not sent if they are too long for a check; shorter ones are, also to newcomers."""
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
    """At shutdown every stream ends with `reset`, new subscribers are refused, and the service stops quickly."""
    async with contextlib.AsyncExitStack() as stack:
        service = await in_step(await stack.enter_async_context(serving(redis, API_KEYS=API_KEYS)))
        async with following(service) as one, following(service) as two:
            await asyncio.gather(one.until(is_synced), two.until(is_synced))
            began = time.monotonic()
            service.app[BROADCASTER].end()  # as `drain` does last
            assert (await service.get("/feed")).problem == "feed_unavailable"
            await asyncio.gather(one.end(), two.end(), stack.aclose())
            assert time.monotonic() - began < 1.8 + BUSY_SECONDS
            assert one.events[-1] == two.events[-1] == Reset("shutdown")


async def test_an_instance_that_leaves_says_so_first_and_still_tells_what_it_acknowledges(feeding: Service) -> None:
    """A service that leaves sends `reset`, then still each revocation until the end, and refuses new subscribers."""
    async with following(feeding) as follower:
        await follower.until(is_synced)
        feeding.app[BROADCASTER].leave()
        await feeding.revoke({"jti": "while leaving", "expires_in": 600})
        await follower.until_told("while leaving")
        assert follower.events.index(Reset("shutdown")) < next(
            place for place, event in enumerate(follower.events) if isinstance(event, Change)
        )
        await follower.until_vouched()
        assert (await feeding.get("/feed")).problem == "feed_unavailable"
        feeding.app[BROADCASTER].end()
        await follower.end()


async def test_the_end_of_the_feed_tells_what_was_acknowledged_a_moment_before() -> None:
    """Revocations that are not sent yet when the feed ends are all sent before its last event."""
    source = Learning()
    async with broadcasting(source) as broadcaster:
        subscriber = Told(broadcaster)
        await subscriber.all()
        values = [f"last-{number}" for number in range(32 * EVENT_MAX_REVOCATIONS)]
        for value in values:
            source.learn(value)
        broadcaster.end()
        events = await subscriber.rest()
        assert [one.value for event in events if isinstance(event, Change) for one in event.revocations] == values
        assert [event for event in events if isinstance(event, Reset)] == [Reset("shutdown")] * 2
        assert [event for event in events if not isinstance(event, Heartbeat)][-1] == Reset("shutdown")


async def test_no_revocation_is_acknowledged_after_the_end_of_the_feed(feeding: Service) -> None:
    """After the end of the feed, /revoke is 503, because no subscriber would learn of it. A check still works."""
    feeding.app[BROADCASTER].end()
    answer = await feeding.post("/revoke", {"jti": "too late", "expires_in": 600})
    assert (answer.status, answer.problem) == (503, "shutting_down")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await feeding.check({"jti": "too late"}))["revoked"] is True, "it may have been stored"


async def test_a_subscriber_in_the_middle_of_its_snapshot_is_told_as_well() -> None:
    """If the service leaves while a subscriber reads its snapshot, that goes on; then come `reset` and `synced`."""
    async with broadcasting(Learning(f"{number}" for number in range(2 * EVENT_MAX_REVOCATIONS))) as broadcaster:
        told = Told(broadcaster)
        assert isinstance(await told.part(), Snapshot)
        broadcaster.leave()
        parts = [await told.part() for _ in range(3)]
        assert [type(part) for part in parts] == [Snapshot, Reset, Synced]


async def test_a_subscriber_that_reads_nothing_does_not_delay_a_shutdown(redis: Process) -> None:
    """With a subscriber that reads nothing, the service still stops in less than half its write timeout."""
    async with contextlib.AsyncExitStack() as stack:
        service = await in_step(await stack.enter_async_context(serving(redis, API_KEYS=API_KEYS, RESCAN_SECONDS="1")))
        async with Deaf(service.port) as deaf:
            await eventually(lambda: followers(service, 1), "the subscriber that reads nothing")
            async with following(service) as follower:
                values = long_values(SOCKETS_BYTES + (1 << 20))
                await asyncio.gather(flood(service, values), follower.until_told(*values))
            async with asyncio.timeout(WRITE_SECONDS / 2):
                await stack.aclose()
            assert b"shutdown" not in await deaf.rest()


async def test_many_who_come_and_go_leave_nothing(feeding: Service) -> None:
    """Hundreds of subscribers that connect and disconnect leave neither a count in the metrics nor a task."""
    async with following(feeding) as early:
        await early.until(is_synced)  # the first subscriber starts the task of the feed
    await eventually(lambda: followers(feeding, 0), "no subscriber")
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
    await eventually(lambda: followers(feeding, 0), "no subscriber")

    async def none_left() -> bool:
        return len(asyncio.all_tasks()) <= tasks

    await eventually(none_left, "no task of theirs")


async def begun(service: Service, line: str, *headers: str) -> tuple[bytes, list[object]]:
    """Request the feed over a raw socket. Return the head of the response, and the events before `synced`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(request_bytes(line, *headers))
        async with asyncio.timeout(ANSWER_SECONDS):
            header = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"event: synced")
    finally:
        writer.transport.abort()
    return header, [event for event, _unknown in Parser().feed(body)]


async def test_a_half_closed_connection_is_a_closed_one(feeding: Service) -> None:
    """A subscriber that closes its sending side has left: the service closes the connection and does not count it."""
    assert (await talk(feeding, FOLLOW, answers=2, half_close=True)).closed
    await eventually(lambda: followers(feeding, 0), "no subscriber")


async def test_http_1_0_gets_the_same_without_chunks(feeding: Service) -> None:
    """Over HTTP/1.0 the feed comes without chunks, Content-Length or keep-alive."""
    await feeding.revoke({"jti": "a"})
    header, events = await begun(feeding, "GET /feed HTTP/1.0")
    assert header.startswith(b"HTTP/1.0 200 OK\r\n")
    assert not any(name in header.lower() for name in (b"transfer-encoding", b"content-length", b"keep-alive"))
    assert [type(event) for event in events] == [Heartbeat, Snapshot]


async def test_a_request_behind_is_not_answered(feeding: Service) -> None:
    """A request that is pipelined after /feed gets no response: the connection closes at the end of the stream."""
    talking = asyncio.create_task(talk(feeding, FOLLOW + request_bytes("POST /revoke HTTP/1.1"), answers=2))
    await eventually(lambda: followers(feeding, 1), "the follower")
    feeding.app[BROADCASTER].end()
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
    """A request with two Last-Event-ID fields gets `reset`, even if each has a valid cursor."""
    async with following(feeding) as follower:
        await follower.until(is_synced)
    cursor = f"Last-Event-ID: {follower.cursor}"
    _header, events = await begun(feeding, "GET /feed HTTP/1.0", cursor, cursor)
    assert events[1] == Reset("unknown_cursor")


async def test_nothing_slips_between_snapshot_and_changes(start: Start) -> None:
    """Subscribers that come and resume during writes at two services get every acknowledged revocation.

    No heartbeat covers a revocation that has not been sent yet.
    """
    services = [await in_step(await start(API_KEYS=API_KEYS, KEY_PREFIX="race:")) for _ in range(2)]
    acknowledged: dict[str, float] = {}
    numbers = itertools.count()

    async def write() -> None:
        while (number := next(numbers)) < REVOCATIONS:
            body = {"jti": f"race-{number}", "expires_in": 600}
            while (answer := await services[number % 2].post("/revoke", body)).status == 503:
                pass  # Redis did not answer in time on a busy machine: nothing was acknowledged
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
    """Disconnect soon after `synced`, resume from there until everything is received, and return both followers."""
    async with following(service) as first:
        await first.until(is_synced)
        await first.hear()
    async with following(service, first.cursor) as second:
        await second.until(is_synced)
        while not writing.done():
            await second.hear()
        await second.until_vouched()
    return [first, second]
