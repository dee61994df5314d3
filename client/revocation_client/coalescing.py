"""Checks that are asked together travel together (`docs/decisions/03`, on the other side of the wire).

A check never joins a request that left before it was asked, so it sees every revocation acknowledged by then. Each
asker waits no longer than its own deadline; one that gives up disturbs no other.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from revocation_client.answers import Answer, NoAnswer, Outcome, verdicts
from revocation_client.api import Service
from revocation_client.counters import Tally
from revocation_client.deadlines import Deadline
from revocation_client.errors import NotStarted, RevocationError, ServiceUnavailable, UnexpectedAnswer
from revocation_client.questions import BODY_MAX_BYTES, FRAME_BYTES, Inquiry
from revocation_client.wire import BATCH_MAX_CHECKS

BATCHES_AT_ONCE: Final = 4
"""So many requests may be under way: a slow one holds up those that were asked before it left, and no others."""

OVERTAKE_SECONDS: Final = 0.02
"""How long what is asked waits for the request under way to come back, before it leaves beside it."""

ANSWER_MAX_BYTES: Final = 8 * 1024 * 1024
"""Of a batch; a revocation with the longest texts is below 8 KiB."""

_log = logging.getLogger("revocation_client")


@dataclass(slots=True, eq=False)
class _Asked:
    inquiry: Inquiry
    until: float
    answer: asyncio.Future[Outcome]

    def give(self, outcome: Outcome) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)


class Batches:
    """A queue of questions, and the requests under way; each request is a task of its own that this owns."""

    def __init__(self, service: Service, timeout_seconds: float, tally: Tally) -> None:
        self._service = service
        self._timeout_seconds = timeout_seconds
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Asked] = deque()
        self._under_way: dict[asyncio.Task[None], list[_Asked]] = {}
        self._left_at = 0.0
        self._departure: asyncio.Handle | None = None
        self._watch: Deadline | None = None

    def ask(self, inquiry: Inquiry, seconds: float | None = None) -> asyncio.Future[Outcome]:
        """Return the outcome of a question, from a request that leaves after this call. It may be an error.

        After `seconds` (default: the timeout of the client) it is ServiceUnavailable.
        """
        until = self._loop.time() + (self._timeout_seconds if seconds is None else seconds)
        asked = _Asked(inquiry, until, self._loop.create_future())
        self._queue.append(asked)
        if self._departure is None:
            self._plan()
        if self._watch is None or until < self._watch.when:
            self._watch_until(until)
        return asked.answer

    def _watch_until(self, until: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = Deadline(self._loop, until, self._give_up_overdue)

    async def aclose(self) -> None:
        """End the requests under way; whoever still waits is told that the client is closed."""
        for handle in (self._departure, self._watch):
            if handle is not None:
                handle.cancel()
        for asked in self._waiting():  # before anything is waited for: whoever closes may be cancelled meanwhile
            asked.give(NotStarted())
        self._queue.clear()
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _waiting(self) -> list[_Asked]:
        return [asked for some in (*self._under_way.values(), self._queue) for asked in some]

    def _give_up_overdue(self) -> None:
        """Give up what is overdue, and set the one timer again for what is due next."""
        now = self._loop.time()
        overdue = ServiceUnavailable("no answer in time")
        waiting = [asked for asked in self._waiting() if not asked.answer.done()]
        for asked in waiting:
            if asked.until <= now:
                asked.give(overdue)
        left = [asked.until for asked in waiting if asked.until > now]
        self._watch = Deadline(self._loop, min(left), self._give_up_overdue) if left else None

    def _plan(self) -> None:
        """When the queue may leave: at once if nothing is under way, else a little after the last one left."""
        if not self._under_way:
            self._departure = self._loop.call_soon(self._depart)
        elif len(self._under_way) < BATCHES_AT_ONCE:
            self._departure = self._loop.call_at(self._left_at + OVERTAKE_SECONDS, self._depart)

    def _depart(self) -> None:
        self._departure = None
        batch = self._take()
        if batch:
            task = self._loop.create_task(self._travel(batch), name="revocation-checks")
            self._under_way[task] = batch
            self._left_at = self._loop.time()
        if self._queue:
            self._plan()

    def _take(self) -> list[_Asked]:
        """The oldest of the queue, up to the bounds of one request, and at least one; who gave up is left out."""
        batch: list[_Asked] = []
        size = FRAME_BYTES
        while self._queue and len(batch) < BATCH_MAX_CHECKS:
            size += len(self._queue[0].inquiry.encoded) + 1
            if batch and size > BODY_MAX_BYTES:
                break
            asked = self._queue.popleft()
            if not asked.answer.done():
                batch.append(asked)
        return batch

    async def _travel(self, batch: list[_Asked]) -> None:
        outcomes: list[Outcome]
        try:
            outcomes = await self._outcomes([asked.inquiry for asked in batch])
        except RevocationError as error:
            outcomes = [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - a fault of ours must reach the askers: it must not look like an outage
            _log.error("revocation_check_failed error=%s", type(error).__name__, exc_info=error)
            outcomes = [UnexpectedAnswer(f"a fault of the client itself ({type(error).__name__})")] * len(batch)
        finally:
            self._arrive()
        for asked, outcome in zip(batch, outcomes, strict=True):
            asked.give(outcome)

    def _arrive(self) -> None:
        """Make way, before the askers hear of it, for what they ask next."""
        task = asyncio.current_task()
        assert task is not None
        del self._under_way[task]
        if self._queue and not self._under_way:
            if self._departure is not None:
                self._departure.cancel()
            self._plan()
        elif self._queue and self._departure is None:
            self._plan()

    async def _outcomes(self, inquiries: list[Inquiry]) -> list[Outcome]:
        """A connection that was lost is tried once more: a restart of the service is no outage."""
        self._tally.add("batches")
        body = b'{"checks":[%b]}' % b",".join([inquiry.encoded for inquiry in inquiries])
        until = self._loop.time() + self._timeout_seconds
        answer = await self._post(body, self._timeout_seconds)
        if isinstance(answer, NoAnswer) and answer.broke_off and (left := until - self._loop.time()) > 0:
            self._tally.add("retries")
            answer = await self._post(body, left)
        return verdicts(answer, inquiries, time.time())

    async def _post(self, body: bytes, seconds: float) -> Answer | NoAnswer:
        self._tally.add("requests")
        return await self._service.post("check/batch", body, seconds=seconds, most_bytes=ANSWER_MAX_BYTES)
