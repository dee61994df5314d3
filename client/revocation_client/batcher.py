"""Send concurrent questions together, in batches. Generic: knows neither HTTP nor Redis."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

LATE_SECONDS: Final = 0.05
"""A deadline that fires so late, in seconds, shows that the event loop was blocked."""

TURNS: Final = 10
"""Iterations of the loop that a late deadline waits. From its bytes to its asker, an answer takes about three."""

JOINING_TURNS: Final = 4
"""Iterations of the loop that waiting questions spend after a batch returned: what its askers ask next joins them."""

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class BatcherClosed(Exception):
    """The batcher was closed before the question was answered."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch, and of the batches under way. A question larger than `size` is sent alone."""

    questions: int
    size: int
    """Sum of the sizes of a batch's questions, usually in bytes."""
    under_way: int = 4
    overtake_seconds: float = 0.02
    """How long questions wait for the batches under way, before they leave beside them."""
    cancel_overdue: bool = False
    """True to cancel a batch when the deadlines of all its questions have passed."""


@dataclass(slots=True)
class _Asked(Generic[Question, Answer]):
    question: Question
    answer: asyncio.Future[Answer]
    until: float


class Batcher(Generic[Question, Answer]):
    """Sends concurrent questions in batches, in the order in which they were asked.

    Each question is in a batch that is sent after the question was asked, so no answer is older than its question.
    `send` gets the questions of a batch, and returns as many answers in the same order. If `send` raises, only the
    askers of that batch get the error. `size` returns the size of a question.
    """

    def __init__(
        self,
        send: Callable[[list[Question]], Coroutine[Any, Any, list[Answer]]],
        size: Callable[[Question], int],
        limits: BatchLimits,
    ) -> None:
        self._send, self._size, self._limits = send, size, limits
        self._queue: deque[_Asked[Question, Answer]] = deque()
        self._under_way: dict[asyncio.Task[list[Answer]], list[_Asked[Question, Answer]]] = {}
        self._next_flush: asyncio.Handle | None = None
        self._next_deadline: asyncio.TimerHandle | None = None
        self._expires_at = math.inf
        """When `_next_deadline` is due. uvloop's handles of a delay of 0 do not tell."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def ask(self, question: Question, seconds: float) -> asyncio.Future[Answer]:
        """Return a future for the answer. The question is sent after this call, in a batch.

        The future raises TimeoutError after `seconds`, BatcherClosed when the batcher is closed, and what `send`
        raises. Cancel it to withdraw the question. Raises BatcherClosed if the batcher is already closed.
        """
        if self._closed:
            raise BatcherClosed
        loop = self._loop = self._loop or asyncio.get_running_loop()  # once: it asks the kernel for the process id
        asked: _Asked[Question, Answer] = _Asked(question, loop.create_future(), loop.time() + seconds)
        self._queue.append(asked)
        self._plan_flush()
        if asked.until < self._expires_at:
            self._expire_at(asked.until)
        return asked.answer

    async def aclose(self) -> None:
        """Cancel the batches under way. Waiting askers get BatcherClosed."""
        self._closed = True
        for handle in (self._next_flush, self._next_deadline):
            if handle is not None:
                handle.cancel()
        for asked in self._waiting():  # before the first await, which may be cancelled
            _fail(asked.answer, BatcherClosed())
        self._queue.clear()
        if tasks := list(self._under_way):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _waiting(self) -> list[_Asked[Question, Answer]]:
        batches = (*self._under_way.values(), self._queue)
        return [asked for batch in batches for asked in batch if not asked.answer.done()]

    def _expire_at(self, until: float) -> None:
        if self._next_deadline is not None:
            self._next_deadline.cancel()
        assert self._loop is not None
        self._expires_at = until
        self._next_deadline = self._loop.call_at(until, self._expire, until, 0)

    def _expire(self, until: float, turns: int) -> None:
        """Fail the overdue questions. If the event loop was blocked, first let it read answers that came in time."""
        loop = asyncio.get_running_loop()
        if turns < TURNS and loop.time() - until > LATE_SECONDS:
            self._next_deadline = loop.call_later(0, self._expire, until, turns + 1)
            return
        self._next_deadline, self._expires_at = None, math.inf
        now, waiting = loop.time(), self._waiting()
        for asked in waiting:
            if asked.until <= now:
                _fail(asked.answer, TimeoutError())
        for task, batch in self._under_way.items():
            if self._limits.cancel_overdue and all(asked.answer.done() for asked in batch):
                task.cancel()
        if left := [asked.until for asked in waiting if asked.until > now]:
            self._expire_at(min(left))

    def _plan_flush(self) -> None:
        """Plan the next flush, unless one is planned, nothing waits, or too many batches are under way."""
        if self._next_flush is not None or not self._queue:
            return
        assert self._loop is not None
        if not self._under_way:
            self._next_flush = self._loop.call_soon(self._flush)
        elif len(self._under_way) < self._limits.under_way:
            self._next_flush = self._loop.call_later(self._limits.overtake_seconds, self._flush)

    def _flush(self) -> None:
        """Send the next batch, without the questions that were withdrawn or are overdue."""
        self._next_flush = None
        batch: list[_Asked[Question, Answer]] = []
        size = 0
        while self._queue and len(batch) < self._limits.questions:
            asked = self._queue[0]
            if not asked.answer.done():
                size += self._size(asked.question)
                if batch and size > self._limits.size:
                    break
                batch.append(asked)
            self._queue.popleft()
        if batch:
            task = asyncio.create_task(self._send([asked.question for asked in batch]), name="batch")
            self._under_way[task] = batch
            task.add_done_callback(self._returned)
        self._plan_flush()

    def _flush_soon(self, loop: asyncio.AbstractEventLoop, turns: int = JOINING_TURNS) -> None:
        if turns:
            self._next_flush = loop.call_soon(self._flush_soon, loop, turns - 1)
        else:
            self._flush()

    def _returned(self, task: asyncio.Task[list[Answer]]) -> None:
        """Plan the next flush, and wake the askers."""
        batch = self._under_way.pop(task)
        if self._under_way:
            self._plan_flush()
        elif self._queue:
            if self._next_flush is not None:  # it leaves soon, instead of overtaking
                self._next_flush.cancel()
            self._flush_soon(task.get_loop())
        error = BatcherClosed() if task.cancelled() else task.exception()
        found = [] if error else task.result()
        if not error and len(found) != len(batch):
            error = ValueError(f"{len(found)} answers to {len(batch)} questions")
        for number, asked in enumerate(batch):
            if error:
                _fail(asked.answer, error)
            elif not asked.answer.done():
                asked.answer.set_result(found[number])


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # marks it as retrieved: the loop would log it if the asker went away
