"""Send questions that are asked at the same time as one batch. Generic: knows neither HTTP nor Redis."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from revocation_client.deadlines import Deadline

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class BatcherClosed(Exception):
    """The batcher was closed before the question was answered."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch, and of the batches under way. A question larger than `size` leaves as a batch of its own."""

    questions: int
    size: int
    """Sum of the sizes of a batch's questions, usually in bytes."""
    under_way: int = 4
    overtake_seconds: float = 0.02
    """How long questions wait for the batch that left last, before they leave beside it."""


@dataclass(slots=True, eq=False)
class _Asked(Generic[Question, Answer]):
    question: Question
    until: float
    answer: asyncio.Future[Answer]

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # marks it as retrieved: the loop would log it if the asker went away


class Batcher(Generic[Question, Answer]):
    """Sends concurrent questions in batches, in the order in which they were asked.

    A question never joins a batch that left before it was asked, so its answer reflects all that was true by then.
    `send` gets the questions of a batch, and returns as many answers in the same order. If it raises, the askers of
    that batch get the error, and no others. `size` returns the size of a question.

    The client sends checks over HTTP with it. A store can use it for `get`: the question is the keys of one check,
    `send` runs `get.lua` once with the keys of the whole batch, and `size` counts the keys. With `under_way=1`, all
    that is asked during a round trip forms the next batch.
    """

    def __init__(
        self,
        send: Callable[[list[Question]], Coroutine[Any, Any, list[Answer]]],
        size: Callable[[Question], int],
        limits: BatchLimits,
    ) -> None:
        self._send, self._size, self._limits = send, size, limits
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Asked[Question, Answer]] = deque()
        self._under_way: dict[asyncio.Task[list[Answer]], list[_Asked[Question, Answer]]] = {}
        self._flushed_at = 0.0
        self._next_flush: asyncio.Handle | None = None
        self._next_deadline: Deadline | None = None
        self._closed = False

    def ask(self, question: Question, seconds: float) -> asyncio.Future[Answer]:
        """Return a future with the answer, from a batch that leaves after this call.

        It raises TimeoutError after `seconds`, BatcherClosed if the batcher is closed, and what `send` raises. Cancel
        it to withdraw the question.
        """
        if self._closed:
            raise BatcherClosed
        asked = _Asked(question, self._loop.time() + seconds, self._loop.create_future())
        self._queue.append(asked)
        if self._next_flush is None:
            self._plan_flush()
        if self._next_deadline is None or asked.until < self._next_deadline.when:
            self._expire_at(asked.until)
        return asked.answer

    async def aclose(self) -> None:
        """Cancel the batches under way. Those who wait get BatcherClosed."""
        self._closed = True
        for handle in (self._next_flush, self._next_deadline):
            if handle is not None:
                handle.cancel()
        for asked in self._waiting():  # before the first await: the caller may be cancelled there
            asked.fail(BatcherClosed())
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
        self._next_deadline = Deadline(self._loop, until, self._expire)

    def _expire(self) -> None:
        self._next_deadline = None
        now, waiting = self._loop.time(), self._waiting()
        for asked in waiting:
            if asked.until <= now:
                asked.fail(TimeoutError())
        if left := [asked.until for asked in waiting if asked.until > now]:
            self._expire_at(min(left))

    def _plan_flush(self) -> None:
        if not self._under_way:
            self._next_flush = self._loop.call_soon(self._flush)
        elif len(self._under_way) < self._limits.under_way:
            self._next_flush = self._loop.call_at(self._flushed_at + self._limits.overtake_seconds, self._flush)

    def _flush(self) -> None:
        self._next_flush = None
        if batch := self._take():
            task = self._loop.create_task(self._answers(batch), name="batch")
            task.add_done_callback(self._returned)
            self._under_way[task] = batch
            self._flushed_at = self._loop.time()
        if self._queue:
            self._plan_flush()

    def _take(self) -> list[_Asked[Question, Answer]]:
        """Take the next batch off the queue. What was withdrawn or is overdue is dropped."""
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
        return batch

    async def _answers(self, batch: list[_Asked[Question, Answer]]) -> list[Answer]:
        answers = await self._send([asked.question for asked in batch])
        if len(answers) != len(batch):
            raise ValueError(f"{len(answers)} answers to {len(batch)} questions")
        return answers

    def _returned(self, task: asyncio.Task[list[Answer]]) -> None:
        """Plan the next flush, then wake the askers: what they ask next does not join what waits already."""
        batch = self._under_way.pop(task)
        if self._queue and not self._under_way and self._next_flush is not None:
            self._next_flush.cancel()
            self._next_flush = None
        if self._queue and self._next_flush is None:
            self._plan_flush()
        if error := BatcherClosed() if task.cancelled() else task.exception():
            for asked in batch:
                asked.fail(error)
            return
        for asked, answer in zip(batch, task.result(), strict=True):
            if not asked.answer.done():
                asked.answer.set_result(answer)
