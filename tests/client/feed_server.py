"""A real HTTP server with a feed that a test controls: it can break off, stall, fall behind, and send garbage."""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from aiohttp import web

from revocation_client import Revocation, RevocationClient
from revocation_client.feed_events import Change, Event, Heartbeat, Reset, Snapshot, Synced, encode
from tests.client.scripted import listening, not_revoked
from tests.merging import merge
from tests.redis_processes import HOST

BEAT_SECONDS = 0.1
CLOCK = 5_000_000.0
"""Seconds by which the sender's monotonic clock is ahead of the receiver's."""

Script = Callable[[web.StreamResponse], Awaitable[None]]


PART_REVOCATIONS = 250


def snapshots(revocations: Iterable[Revocation]) -> Iterator[bytes]:
    """Yield a snapshot as encoded events of at most `PART_REVOCATIONS` revocations each."""
    rest = iter(revocations)
    while part := [*itertools.islice(rest, PART_REVOCATIONS)]:
        yield encode(Snapshot(part))


def revocation(value: str, claim: Any = "jti", *, seconds: float = 600, cutoff: float | None = None) -> Revocation:
    """Return a revocation that ends this many seconds from now."""
    return Revocation(claim, value, time.time() + seconds, None, cutoff)


class FeedServer:
    """A server with a log of revocations. Its attributes control how it behaves, and may be changed at any time."""

    def __init__(self) -> None:
        self.log: list[Revocation] = []
        self.port = 0
        self.status = 200
        self.answers = True
        """False to answer every check and revocation with 503."""
        self.held: asyncio.Event | None = None
        """If set, every check waits for this event before it is answered."""
        self.answered = threading.Event()
        """Set once a check has been answered, to the last byte."""
        self.beats = True
        self.behind_seconds: float = 0.0
        self.complete = True
        self.remembers = True
        """True while a stream can be resumed from a cursor."""
        self.script: Script | None = None
        """If set, it writes the whole stream in place of the usual events."""
        self.pace: Script | None = None
        """If set, it is called after each part of a snapshot."""
        self.asked: list[str | None] = []
        """The cursor in each request for a stream; None if there was none."""
        self.questions: list[str] = []
        self._streams: dict[web.StreamResponse, tuple[web.Request, asyncio.Queue[bytes]]] = {}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def streams(self) -> int:
        """Number of streams that are open now."""
        return len(self._streams)

    def client(self, **options: Any) -> RevocationClient:
        """Return a client of this server."""
        given: dict[str, Any] = {
            "api_key": "feed-key-0123456789abcdef",
            "max_staleness_seconds": 1.0,
            "timeout_seconds": 1.0,
        } | options
        return RevocationClient(self.url, **given)

    def revoke(self, *revocations: Revocation) -> None:
        """Add revocations to the log, and send them on every stream."""
        self.log.extend(revocations)
        self.say(Change(self.cursor(), revocations))

    def cursor(self) -> str:
        """Return the cursor of the log's end."""
        return f"{len(self.log)}-0.nonce"

    def say(self, *said: Event | bytes) -> None:
        """Send events, or raw bytes, on every stream."""
        for _request, queue in self._streams.values():
            for one in said:
                queue.put_nowait(one if isinstance(one, bytes) else encode(one))

    def beat(self) -> Heartbeat:
        """Return a heartbeat that is sent now."""
        return Heartbeat(self.behind_seconds, time.monotonic() + CLOCK, self.complete)

    def cut(self) -> None:
        """Break off every stream."""
        for request, _queue in self._streams.values():
            if request.transport is not None:
                request.transport.abort()

    async def feed(self, request: web.Request) -> web.StreamResponse:
        """Serve `GET /feed`."""
        self.asked.append(request.headers.get("Last-Event-ID"))
        if self.status != 200:
            problem = {"code": "scripted", "detail": "as the test says", "status": self.status}
            return web.json_response(problem, status=self.status, content_type="application/problem+json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._streams[response] = request, queue
        try:
            await self._tell(response, queue, self.asked[-1])
        except ConnectionError:
            pass
        finally:
            del self._streams[response]
        return response

    async def _tell(self, response: web.StreamResponse, queue: asyncio.Queue[bytes], cursor: str | None) -> None:
        if self.script is not None:
            await self.script(response)
            return
        await response.write(encode(self.beat()))
        await self._catch_up(response, cursor)
        await response.write(encode(self.beat()))
        while True:
            with contextlib.suppress(TimeoutError):
                await response.write(await asyncio.wait_for(queue.get(), BEAT_SECONDS))
            if self.beats:
                await response.write(encode(self.beat()))

    async def _catch_up(self, response: web.StreamResponse, cursor: str | None) -> None:
        end = self.cursor()
        if cursor is not None and self.remembers:
            missed = self.log[int(cursor.partition("-")[0]) :]
            await response.write(encode(Change(end, missed)))
        else:
            if cursor is not None:
                await response.write(encode(Reset("unknown_cursor")))
            for part in snapshots(list(self.log)):
                await response.write(part)
                if self.pace is not None:
                    await self.pace(response)
        await response.write(encode(Synced(end, self.complete)))

    async def check(self, request: web.Request) -> web.StreamResponse:
        """Serve `POST /check/batch`. Only the `jti` is looked up."""
        if not self.answers:
            raise web.HTTPServiceUnavailable
        checks = json.loads(await request.read())["checks"]
        self.questions += [str(one.get("jti") or one.get("token")) for one in checks]
        if self.held is not None:
            await self.held.wait()
            if not self.answers:
                raise web.HTTPServiceUnavailable
        response = web.json_response({"results": [self._result(one) for one in checks]})
        await response.prepare(request)
        await response.write_eof()
        self.answered.set()
        return response

    def _result(self, question: dict[str, Any]) -> dict[str, Any]:
        for one in self.log:
            if one.claim == "jti" and one.value == question.get("jti"):
                record = {"claim": "jti", "value": one.value, "revoked_at": 1, "expires_at": one.expires_at}
                return not_revoked(question) | {"revoked": True, "revocation": record}
        return not_revoked(question)

    async def revoke_one(self, request: web.Request) -> web.StreamResponse:
        """Serve `POST /revoke` by one claim: acknowledge the revocation, but do not add it to the log or the feed."""
        if not self.answers:
            raise web.HTTPServiceUnavailable
        body = json.loads(await request.read())
        ((claim, value),) = [(name, value) for name, value in body.items() if name in ("jti", "sid", "sub")]
        made = revocation(value, claim, cutoff=body.get("issued_before"))
        form = {"result": "revoked", "claim": claim, "value": value, "revoked_at": 1, "expires_at": made.expires_at}
        if made.issued_before is not None:
            form["issued_before"] = made.issued_before
        return web.json_response(form | {"reason": None, "verified": False})


def merged(log: list[Revocation]) -> dict[tuple[str, str], Revocation]:
    """Return the merged record of each claim and value in a log."""
    found: dict[tuple[str, str], Revocation] = {}
    for one in log:
        key = one.claim, one.value
        found[key] = merge(found[key], one) if key in found else one
    return found


@contextlib.asynccontextmanager
async def serving_feed(server: FeedServer | None = None, port: int = 0) -> AsyncIterator[FeedServer]:
    """Start a feed server. With `port=0`, it takes any free port."""
    server = server or FeedServer()
    app = web.Application(client_max_size=1 << 22)
    app.router.add_get("/feed", server.feed)
    app.router.add_post("/check/batch", server.check)
    app.router.add_post("/revoke", server.revoke_one)
    async with listening(app, port) as server.port:
        try:
            yield server
        finally:
            server.cut()
