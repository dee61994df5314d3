"""The Batcher by itself: what it sends together, what each asker gets, and that it leaves no task behind."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from revocation_client.batcher import LATE_SECONDS, TURNS, Batcher, BatcherClosed, BatchLimits

SECONDS = 5.0
"""A deadline that no test should reach."""

LIMITS = BatchLimits(questions=5, size=100, under_way=2, overtake_seconds=0.02)


class Recorder:
    """A fake sender. It records the batches, and returns each question in capital letters once the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gates: list[asyncio.Event] = []
        self.cancelled = 0
        self.held = False
        self.answers: Callable[[list[str]], list[str]] = lambda questions: [question.upper() for question in questions]
        self._sent = asyncio.Condition()

    async def send(self, questions: list[str]) -> list[str]:
        """Record the batch, wait for its gate if `held`, and return the answers."""
        self.batches.append(questions)
        gate = asyncio.Event()
        self.gates.append(gate)
        async with self._sent:
            self._sent.notify_all()
        if self.held:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return self.answers(questions)

    async def until_sent(self, batches: int) -> None:
        """Wait until this many batches have been sent."""
        async with asyncio.timeout(SECONDS), self._sent:
            await self._sent.wait_for(lambda: len(self.batches) >= batches)


@pytest.fixture
def recorder() -> Recorder:
    """The sender that the batcher uses."""
    return Recorder()


@pytest.fixture
async def batcher(recorder: Recorder) -> AsyncIterator[Batcher[str, str]]:
    """A batcher with `LIMITS`: five questions and 100 characters a batch, and two batches under way, at most."""
    made: Batcher[str, str] = Batcher(recorder.send, len, LIMITS)
    yield made
    await made.aclose()


async def test_concurrent_questions_leave_as_one_batch(batcher: Batcher[str, str], recorder: Recorder) -> None:
    """Questions asked in the same turn of the event loop are sent as one batch, in order. Each gets its own answer."""

    async def ask(question: str) -> str:
        return await batcher.ask(question, SECONDS)

    assert await asyncio.gather(*map(ask, "abc")) == ["A", "B", "C"]
    assert recorder.batches == [["a", "b", "c"]]


async def test_a_question_never_joins_a_batch_that_left_before(batcher: Batcher[str, str], recorder: Recorder) -> None:
    """A question that repeats one under way is sent in another batch, without waiting for the first."""
    recorder.held = True
    first = batcher.ask("same", SECONDS)
    await recorder.until_sent(1)
    second = batcher.ask("same", SECONDS)
    await recorder.until_sent(2)
    recorder.gates[1].set()
    assert await second == "SAME"
    assert not first.done(), "a batch that is stuck holds up only its own askers"


async def test_what_is_asked_during_a_round_trip_leaves_when_it_ends(
    batcher: Batcher[str, str], recorder: Recorder
) -> None:
    """Questions that wait while a batch is under way are sent as one batch when it returns."""
    recorder.held = True
    asked = [batcher.ask("first", SECONDS)]
    await recorder.until_sent(1)
    asked += [batcher.ask(question, SECONDS) for question in "abc"]
    recorder.held = False
    recorder.gates[0].set()
    await asyncio.gather(*asked)
    assert recorder.batches == [["first"], ["a", "b", "c"]]


async def test_what_an_asker_asks_next_joins_what_waits_already(batcher: Batcher[str, str], recorder: Recorder) -> None:
    """The next question of an asker joins those that wait, so that batches are fewer and larger under load."""
    recorder.held = True
    first = batcher.ask("first", SECONDS)
    await recorder.until_sent(1)
    waiting = batcher.ask("waiting", SECONDS)
    recorder.held = False
    recorder.gates[0].set()
    await first
    await asyncio.gather(waiting, batcher.ask("next", SECONDS))
    assert recorder.batches == [["first"], ["waiting", "next"]]


async def test_no_more_batches_are_under_way_than_the_limit(batcher: Batcher[str, str], recorder: Recorder) -> None:
    """While the allowed number of batches is under way, questions wait. They are sent when one batch returns."""
    recorder.held = True
    asked = []
    for number in range(LIMITS.under_way):
        asked.append(batcher.ask(f"{number}", SECONDS))
        await recorder.until_sent(number + 1)
    asked += [batcher.ask(question, SECONDS) for question in "abc"]
    with pytest.raises(TimeoutError):
        await batcher.ask("impatient", 5 * LIMITS.overtake_seconds)
    assert len(recorder.batches) == LIMITS.under_way
    recorder.held = False
    recorder.gates[0].set()
    await asyncio.gather(asked[0], *asked[LIMITS.under_way :])
    assert recorder.batches[LIMITS.under_way :] == [["a", "b", "c"]]


async def test_a_batch_is_bounded_by_count_and_size(batcher: Batcher[str, str], recorder: Recorder) -> None:
    """Each batch is as full as the limits allow. A question that exceeds the size limit is sent alone."""
    sizes = [1, 1, 1, 1, 1, 1, 60, 39, 1, 60, 60, 200, 1]
    await asyncio.gather(*(batcher.ask("x" * size, SECONDS) for size in sizes))
    assert [[len(question) for question in batch] for batch in recorder.batches] == [
        [1, 1, 1, 1, 1],
        [1, 60, 39],
        [1, 60],
        [60],
        [200],
        [1],
    ]


async def test_each_asker_has_its_own_deadline(batcher: Batcher[str, str], recorder: Recorder) -> None:
    """Each question times out at its own deadline, in a batch or in the queue, whatever the order of the deadlines."""
    recorder.held = True
    loop = asyncio.get_running_loop()
    began = loop.time()
    patient, impatient = batcher.ask("patient", SECONDS), batcher.ask("impatient", 0.1)
    for number in range(LIMITS.under_way):
        await recorder.until_sent(number + 1)
        batcher.ask(f"{number}", SECONDS)
    queued = batcher.ask("queued", 0.05)
    with pytest.raises(TimeoutError):
        await queued
    assert loop.time() - began >= 0.05
    assert not impatient.done()
    with pytest.raises(TimeoutError):
        await impatient
    assert loop.time() - began >= 0.1
    recorder.gates[0].set()
    assert await patient == "PATIENT"
    recorder.gates[1].set()
    await recorder.until_sent(LIMITS.under_way + 1)
    assert "queued" not in recorder.batches[-1], "what is overdue is not sent"


async def test_an_overdue_batch_is_cancelled_if_its_limits_say_so(recorder: Recorder) -> None:
    """With `cancel_overdue`, a batch is cancelled when the deadlines of all its questions have passed, not before."""
    recorder.held = True
    limits = BatchLimits(questions=5, size=100, cancel_overdue=True)
    batcher: Batcher[str, str] = Batcher(recorder.send, len, limits)
    first, last = batcher.ask("first", 0.02), batcher.ask("last", 0.04)
    with pytest.raises(TimeoutError):
        await first
    assert recorder.cancelled == 0
    with pytest.raises(TimeoutError):
        await last
    await asyncio.sleep(0)
    assert recorder.cancelled == 1
    await batcher.aclose()


async def test_a_late_deadline_lets_the_loop_read_what_has_arrived(batcher: Batcher[str, str]) -> None:
    """If the event loop was blocked past a deadline, an answer in one of its next turns still counts."""
    loop = asyncio.get_running_loop()
    clock, late = loop.time, 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: clock() + late)
        answer = batcher.ask("a", 1.0)
        late = 1.0 + 10 * LATE_SECONDS
        assert await answer == "A"


async def test_a_cancelled_asker_cancels_no_other(batcher: Batcher[str, str], recorder: Recorder) -> None:
    """If one asker of a batch is cancelled, the others still get their answers."""
    recorder.held = True
    asked = [batcher.ask(question, SECONDS) for question in "abc"]
    await recorder.until_sent(1)
    asked[0].cancel()
    recorder.gates[0].set()
    assert await asyncio.gather(*asked[1:]) == ["B", "C"]
    assert recorder.cancelled == 0


async def test_a_withdrawn_question_is_not_sent(batcher: Batcher[str, str], recorder: Recorder) -> None:
    """A withdrawn question takes no room in a batch. A batch of withdrawn questions alone is not sent."""
    gone = [batcher.ask("x" * 99, SECONDS) for _ in range(LIMITS.questions)]
    here = [batcher.ask(question, SECONDS) for question in "ab"]
    for future in gone:
        future.cancel()
    await asyncio.gather(*here)
    batcher.ask("alone", SECONDS).cancel()
    await asyncio.sleep(0)
    await batcher.ask("c", SECONDS)
    assert recorder.batches == [["a", "b"], ["c"]]


async def test_an_error_of_send_reaches_the_askers_of_its_batch_alone(
    batcher: Batcher[str, str], recorder: Recorder
) -> None:
    """If `send` raises, the askers of its batch get the error, and the next batch is answered."""

    def fail(_questions: list[str]) -> list[str]:
        raise ZeroDivisionError

    recorder.answers = fail
    failed = await asyncio.gather(*(batcher.ask(question, SECONDS) for question in "abc"), return_exceptions=True)
    assert [type(one) for one in failed] == [ZeroDivisionError] * 3
    recorder.answers = lambda questions: questions
    assert await batcher.ask("d", SECONDS) == "d"


@pytest.mark.parametrize("number", [0, 2, 4])
async def test_a_wrong_number_of_answers_is_an_error(
    batcher: Batcher[str, str], recorder: Recorder, number: int
) -> None:
    """If `send` returns the wrong number of answers, every asker gets an error, not the answer of another."""
    recorder.answers = lambda _questions: ["answer"] * number
    found = await asyncio.gather(*(batcher.ask(question, SECONDS) for question in "abc"), return_exceptions=True)
    assert [type(one) for one in found] == [ValueError] * 3


async def test_closing_ends_what_waits_and_what_is_under_way(recorder: Recorder) -> None:
    """When the batcher is closed, every asker gets BatcherClosed, no task is left, and new questions are refused."""
    before = asyncio.all_tasks()
    batcher: Batcher[str, str] = Batcher(recorder.send, len, LIMITS)
    recorder.held = True
    asked = [batcher.ask("under way", SECONDS)]
    await recorder.until_sent(1)
    asked += [batcher.ask("queued", SECONDS)]
    await batcher.aclose()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in found] == [BatcherClosed] * 2
    assert (recorder.cancelled, len(recorder.batches)) == (1, 1)
    assert asyncio.all_tasks() == before
    with pytest.raises(BatcherClosed):
        batcher.ask("late", SECONDS)


async def test_closing_that_is_cancelled_leaves_no_asker_waiting(recorder: Recorder) -> None:
    """If `aclose` is cancelled, the asker still gets BatcherClosed."""
    batcher: Batcher[str, str] = Batcher(recorder.send, len, LIMITS)
    recorder.held = True
    asked = batcher.ask("under way", SECONDS)
    await recorder.until_sent(1)
    closing = asyncio.create_task(batcher.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    with pytest.raises(BatcherClosed):
        await asked


async def test_an_error_after_the_asker_has_gone_is_not_logged(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """If the asker has gone, the error of its question is not logged as "never retrieved"."""
    batcher: Batcher[str, str] = Batcher(recorder.send, len, LIMITS)
    recorder.held = True
    batcher.ask("dropped", SECONDS)
    await recorder.until_sent(1)
    await batcher.aclose()
    assert not caplog.records


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_question_may_be_asked_while_a_late_deadline_waits_its_turns(run: Callable[..., None]) -> None:
    """After the event loop was blocked, the late question times out, and new questions are answered."""

    async def blocked() -> None:
        recorder = Recorder()
        recorder.held = True
        batcher = Batcher(recorder.send, len, LIMITS)
        late = batcher.ask("late", 0.01)
        await asyncio.sleep(0)
        time.sleep(0.01 + 2 * LATE_SECONDS)
        asked = [late]
        for _ in range(TURNS + 3):
            await asyncio.sleep(0)
            asked.append(batcher.ask("new", SECONDS))
        with pytest.raises(TimeoutError):
            await late
        for gate in recorder.gates:
            gate.set()
        recorder.held = False
        assert await asyncio.gather(*asked[1:]) == ["NEW"] * (TURNS + 3)
        await batcher.aclose()

    run(blocked())
