"""Logs (structlog) and the request id. No token, key or query string reaches the log.

Libraries log through the standard library. Their messages and arguments may quote a request, so the log has only the
location, the message template, the error's type and the lines of its traceback.
"""

import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any, Final

import structlog

from revocation_client.log_limit import Warnings

LIBRARY_TEMPLATE_MAX_CHARACTERS: Final = 200

_OUTPUT: Final = "rendered-events"  # not the name of a package: its modules' loggers would write unfiltered
_FRAMES_KEPT: Final = 12
_PROCESS: Final = secrets.token_hex(6)
_NUMBERS: Final = count(1)
_WELL_FORMED: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def begin_request(given: str | None) -> str:
    """Set the request id of the current task and return it: the caller's if it is well-formed, else a unique one."""
    current = given if given is not None and _WELL_FORMED.fullmatch(given) else f"{_PROCESS}-{next(_NUMBERS):x}"
    _request_id.set(current)
    return current


def current_request_id() -> str:
    """Return the request id of the current task; empty outside of a request."""
    return _request_id.get()


def configure_logging(level: str = "info", form: str = "auto") -> None:
    """Set up structlog and the standard library to write to stderr: JSON lines, or a console form on a terminal."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    output, libraries = logging.getLogger(_OUTPUT), logging.getLogger()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _complete,
            structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_names: output,
        cache_logger_on_first_use=False,
    )
    output.handlers, output.propagate = [logging.StreamHandler(sys.stderr)], False
    output.setLevel(logging.DEBUG)
    libraries.handlers = [_LibraryHandler()]
    libraries.setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a line that cannot be written (disk full, closed pipe) must not fail a request


def _complete(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the request id. Describe the exception in `error=` without its message, which may quote a request."""
    error = event.pop("error", None)
    request_id = {"request_id": current} if (current := _request_id.get()) else {}
    return {**event, **request_id, **(describe_error(error) if isinstance(error, BaseException) else {})}


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return the type of an exception and of its cause, and the lines of its traceback, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_KEPT:]
    lines = [f"{Path(frame.filename).name}:{frame.lineno}:{frame.name}" for frame in frames]
    described = {"error_type": type(error).__name__, "frames": lines}
    return described if error.__cause__ is None else described | {"cause_type": type(error.__cause__).__name__}


class RepeatedWarning:
    """A warning that is logged at most once a minute, with the number of occurrences since it was last logged."""

    def __init__(self, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._event = event
        self._warnings = Warnings(clock)

    def occurred(self, **fields: str) -> None:
        """Count one occurrence. Log the warning with these fields if it is due."""
        if number := self._warnings.occurred(self._event):
            structlog.get_logger().warning(self._event, occurrences=number, **fields)


class _LibraryHandler(logging.Handler):
    """Passes a library's log record to structlog, without its arguments."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"library": record.name, "at": f"{record.filename}:{record.lineno}:{record.funcName}"}
        if record.args:  # without arguments the message may be formatted already
            fields["template"] = str(record.msg).partition("\n")[0][:LIBRARY_TEMPLATE_MAX_CHARACTERS]
        if record.exc_info and record.exc_info[1] is not None:
            fields |= describe_error(record.exc_info[1])
        structlog.get_logger().log(min(record.levelno, logging.CRITICAL) // 10 * 10, "library_message", **fields)
