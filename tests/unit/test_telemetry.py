"""What is logged. Messages of exceptions and arguments of libraries are not, because they may quote secrets."""

import asyncio
import contextlib
import gc
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from revocation_service.telemetry import (
    RepeatedWarning,
    begin_request,
    configure_logging,
    current_request_id,
    describe_error,
)

CANARY = "canary-4d1e7c90b52a"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Restore logging after each test, because it is configured for the whole process."""
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield
    structlog.reset_defaults()
    root.handlers, root.level, logging.raiseExceptions = handlers, level, raising


class Printed:
    """Configures logging, and captures everything that is logged from then on."""

    def __init__(self, form: str, level: str = "debug") -> None:
        with contextlib.redirect_stderr(io.StringIO()) as self._stream:
            configure_logging(level, form)

    def close(self) -> None:
        self._stream.close()

    def text(self) -> str:
        return self._stream.getvalue()

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.text().splitlines()]

    def line(self) -> Any:
        (line,) = self.lines()
        return line


@pytest.fixture
def printed() -> Printed:
    """The log as JSON lines, at level debug."""
    return Printed("json")


@pytest.fixture(params=["json", "console"])
def printed_either_way(request: pytest.FixtureRequest) -> Printed:
    """The log at level debug, as JSON lines and in the form for a terminal."""
    return Printed(request.param)


def raised(message: str) -> BaseException:
    """Return an exception that was raised and has a cause. Both messages contain this one."""
    try:
        try:
            raise KeyError(message)
        except KeyError as cause:
            raise ValueError(f"cannot read {message}") from cause
    except ValueError as error:
        return error


def test_an_event_is_a_line_of_json(printed: Printed) -> None:
    """An event is logged as a line of JSON with its name, level, time and fields."""
    structlog.get_logger("x").info("revoked", claim="jti", number=7)
    line = printed.line()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "revoked", "level": "info", "claim": "jti", "number": 7}


def test_a_repeated_warning_is_a_line_a_minute(printed: Printed) -> None:
    """A repeated warning is logged at once, then at most once a minute, with the number of occurrences since."""
    now = 7.0
    warning = RepeatedWarning("iat_unusable", lambda: now)
    for moment in (7.0, 8.0, 66.9, 67.0, 126.9, 1000.0):
        now = moment
        warning.occurred(claim="sub")
    assert [(line["level"], line["event"], line["claim"]) for line in printed.lines()] == [
        ("warning", "iat_unusable", "sub")
    ] * 3
    assert [line["occurrences"] for line in printed.lines()] == [1, 3, 2]


def test_events_below_the_level_are_left_out() -> None:
    """At level warning neither debug nor info is printed."""
    printed = Printed("json", "warning")
    log = structlog.get_logger("x")
    for method in ("debug", "info", "warning", "error"):
        getattr(log, method)(method)
    assert [line["event"] for line in printed.lines()] == ["warning", "error"]


async def test_the_request_id_is_in_every_line_of_its_request(printed: Printed) -> None:
    """The request id is in all lines that its task logs, those of libraries included, and in no others."""

    async def request(name: str) -> None:
        assert begin_request(name) == name
        await asyncio.sleep(0)
        assert current_request_id() == name
        structlog.get_logger("x").info("ours")
        logging.getLogger("library").warning("theirs")

    await asyncio.gather(request("one"), request("two"))
    assert current_request_id() == ""
    structlog.get_logger("x").info("outside")
    assert [line.get("request_id") for line in printed.lines()] == ["one", "one", "two", "two", None]


def test_an_error_is_its_type_and_place(printed_either_way: Printed) -> None:
    """An exception given as `error=` is logged with type and place, without its message or that of its cause."""
    structlog.get_logger("x").error("failed", error=raised(CANARY))
    text = printed_either_way.text()
    assert CANARY not in text
    assert all(word in text for word in ("ValueError", "KeyError", "test_telemetry.py", "raised"))
    assert len(text.splitlines()) == 1


def test_a_described_error_holds_only_names_and_numbers() -> None:
    """`describe_error` returns the types of the error and its cause, and file, line and function of each frame."""
    described = describe_error(raised(CANARY))
    assert described.keys() == {"error_type", "cause_type", "frames"}
    (frame,) = described["frames"]
    file, line, function = frame.split(":")
    assert (file, line.isdigit(), function) == ("test_telemetry.py", True, "raised")


def test_a_group_of_errors_tells_no_more(printed: Printed) -> None:
    """Neither the message of an ExceptionGroup nor those of its members are logged."""
    structlog.get_logger("x").error("failed", error=ExceptionGroup(CANARY, [ValueError(CANARY)]))
    assert CANARY not in printed.text()


LIBRARY_CALLS: dict[str, tuple[Any, ...]] = {
    "arguments": ("bad request %s from %s", CANARY, "x"),
    "a mapping": ("bad request %(token)s", {"token": CANARY}),
    "filled in": (f"bad request {CANARY}",),
    "filled in, with percent signs": (f"100% of {CANARY}",),
    "an object": (ValueError(CANARY),),
    "several lines": ("bad request %s\nbad body %s", "x", CANARY),
    "a line break in an argument": ("bad request %s", f"a\n{CANARY}"),
}


@pytest.mark.parametrize("library", ["aiohttp.server", "revocation_service.web"])
@pytest.mark.parametrize("arguments", LIBRARY_CALLS.values(), ids=list(LIBRARY_CALLS))
def test_a_librarys_arguments_are_not_printed(
    printed_either_way: Printed, arguments: tuple[Any, ...], library: str
) -> None:
    """A library's record becomes one line with its logger and place, without arguments or formatted messages."""
    logging.getLogger(library).error(*arguments)
    text = printed_either_way.text()
    assert CANARY not in text
    assert "library_message" in text
    assert library in text
    assert "test_telemetry.py" in text
    assert len(text.splitlines()) == 1


def test_a_librarys_template_is_kept(printed: Printed) -> None:
    """If a library's record has arguments, its template is logged without them."""
    logging.getLogger("aiohttp.server").error("Error handling request from %s", CANARY)
    line = printed.line()
    assert (line["event"], line["level"], line["library"]) == ("library_message", "error", "aiohttp.server")
    assert line["template"] == "Error handling request from %s"


@pytest.mark.parametrize(
    "extra", [{"stack_info": True}, {"extra": {"token": CANARY}}, {"exc_info": ValueError(CANARY)}]
)
def test_what_else_a_record_may_hold_is_not_printed(printed_either_way: Printed, extra: dict[str, Any]) -> None:
    """The stack, the extra fields and the exception's message of a library's record are not logged."""
    logging.getLogger("library").error("failed", **extra)
    text = printed_either_way.text()
    assert CANARY not in text
    assert len(text.splitlines()) == 1


def test_a_librarys_exception_is_its_type_and_place(printed: Printed) -> None:
    """The exception in a library's record is logged with its type and place."""
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("library").exception("failed")
    line = printed.line()
    assert line["error_type"] == "ValueError"
    assert line["frames"][0].startswith("test_telemetry.py:")


def test_libraries_are_heard_from_warning_on(printed: Printed) -> None:
    """Debug and info records of libraries are dropped, even if the configured level is debug."""
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.WARNING + 5, logging.CRITICAL, 60):
        logging.getLogger("library").log(level, "said")
    assert [line["level"] for line in printed.lines()] == ["warning", "warning", "critical", "critical"]


async def test_a_task_that_was_never_awaited_tells_no_message(printed: Printed) -> None:
    """When a task's exception is never retrieved, neither its message nor the task's name is logged."""

    async def failing() -> None:
        raise ValueError(CANARY)

    task = asyncio.create_task(failing(), name=CANARY)
    await asyncio.wait({task})
    del task
    gc.collect()
    line = printed.line()
    assert (line["library"], line["error_type"]) == ("asyncio", "ValueError")
    assert CANARY not in json.dumps(line)


async def test_a_callback_that_failed_tells_no_arguments(printed: Printed) -> None:
    """When a callback fails, neither its arguments nor the exception's message are logged."""

    def failing(_data: bytes) -> None:
        raise ValueError(CANARY)

    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(failing, CANARY.encode())
    asyncio.get_running_loop().call_soon(done.set)
    await done.wait()
    line = printed.line()
    assert (line["library"], line["error_type"]) == ("asyncio", "ValueError")
    assert CANARY not in json.dumps(line)


@pytest.mark.parametrize("value", ["two\nlines", "a\r\nb", 'a"b', "\x1b[31mred", "tab\there", '{"event":"forged"}'])
def test_a_value_cannot_break_a_line(printed_either_way: Printed, value: str) -> None:
    """An event with line breaks, quotes or escapes in a field is still one line with its name."""
    structlog.get_logger("x").info("revoked", value=value)
    text = printed_either_way.text()
    assert len(text.splitlines()) == 1
    assert "revoked" in text


def test_a_line_that_cannot_be_written_fails_nothing(printed: Printed) -> None:
    """Logging to a closed stream raises no exception."""
    printed.close()
    structlog.get_logger("x").error("ours")
    logging.getLogger("library").error("theirs")
