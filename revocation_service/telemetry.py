"""What the service says of itself: logs (structlog), the request id, metrics. It knows no secret and asks for none.

Libraries log through the standard library; of their records only the place, the fixed template, the error's type and
the lines of code are kept, because arguments and messages may quote a request, and with it a token.
"""

import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from revocation_client.repetition import Repetition
from revocation_service.tallies import TalliedCounter, TalliedHistogram

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NUMBERS: Final = count(1)

LIBRARY_TEMPLATE_MAX_CHARACTERS: Final = 200
WARNING_INTERVAL_SECONDS: Final = 60.0
_FRAMES_KEPT: Final = 12
_LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


def begin_request(given: str | None) -> str:
    """Give what follows the request's id: the caller's, if it is a good one, or one that nobody else gives."""
    current = given if given is not None and _REQUEST_ID.fullmatch(given) else f"{_process()}-{next(_NUMBERS):x}"
    request_id.set(current)
    return current


@lru_cache(maxsize=1)
def _process() -> str:
    """What the ids of this process begin with; chosen at the first request, so that forked workers differ."""
    return secrets.token_hex(8)


def configure_logging(level: str = "info", form: str = "auto") -> None:
    """Set structlog and the standard library up: JSON lines on stderr, or a console form on a terminal."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_request_id,
            _code_of_errors,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", _StandardError(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(logging.WARNING)


class _StandardError:
    """Where the log goes; a line that cannot be written (the disk full, the reader gone) must stop no revocation."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it, or lose it."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what there is, if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    current = request_id.get()
    if current is not None:
        event["request_id"] = current
    return event


def _code_of_errors(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`error=` an exception becomes its type and where it came from; its message stays out."""
    error = event.pop("error", None)
    if isinstance(error, BaseException):
        event.update(describe_error(error))
    return event


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception without its message: the type, its cause's type, and the lines of code it passed."""
    cause = error.__cause__
    described = {"error_type": type(error).__name__, "frames": _frames(error.__traceback__)}
    return described if cause is None else described | {"cause_type": type(cause).__name__}


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)[-_FRAMES_KEPT:]
    return [f"{Path(frame.filename).name}:{frame.lineno}:{frame.name}" for frame in frames]


class RepeatedWarning:
    """A warning that is logged at most once a minute, with the number of its occurrences since the last line."""

    def __init__(self, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._event = event
        self._repetition = Repetition(WARNING_INTERVAL_SECONDS, clock)

    def occurred(self, **fields: str) -> None:
        """Count one occurrence. The fields of the one that is logged are in the line."""
        if number := self._repetition.occurred():
            structlog.get_logger().warning(self._event, occurrences=number, **fields)


class _LibraryHandler(logging.Handler):
    """Hands a library's log record to structlog, without its arguments."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"library": record.name, "at": f"{record.filename}:{record.lineno}:{record.funcName}"}
        if record.args:  # else the message may be filled in already
            fields["template"] = str(record.msg).partition("\n")[0][:LIBRARY_TEMPLATE_MAX_CHARACTERS]
        if record.exc_info and record.exc_info[1] is not None:
            fields |= describe_error(record.exc_info[1])
        log = structlog.get_logger()
        log.log(max(record.levelno, logging.DEBUG) // 10 * 10, "library_message", **fields)


class Metrics:
    """Everything that is counted. Labels are routes, results and codes, never what a caller sent."""

    def __init__(self, *, several_workers: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._several_workers = several_workers
        histogram = Histogram if several_workers else TalliedHistogram
        self.requests = histogram(
            "revocation_http_request_duration_seconds",
            "Time to answer a request",
            ["route", "method", "status"],
            registry=self.registry,
            buckets=_LATENCY_BUCKETS,
        )
        self.revocations = self._counter("revocations", "Revocations asked for", "claim", "result")
        self.checks = self._counter("checks", "Checks answered", "outcome")
        self.checks_from_mirror = self._counter(
            "checks_from_mirror", "Checks that the mirror answered, because Redis did not, or knew less", "outcome"
        )
        self.feed_subscribers = Gauge(
            "revocation_feed_subscribers",
            "Mirrors that follow the feed",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.feed_streams = self._counter("feed_streams", "Streams of the feed that began", "kind")
        self.feed_streams_ended = self._counter("feed_streams_ended", "Streams of the feed that ended", "reason")
        self.exp_too_far = self._counter("checked_exp_too_far", "Tokens checked that outlive the longest lifetime set")
        self.iat_unusable = self._counter(
            "checks_iat_unusable", "Checks of tokens revoked only because their iat is unusable"
        )
        self.store_failures = self._counter("store_failures", "Store operations that failed", "operation")
        self.read_batch = histogram(
            "revocation_store_read_batch_keys",
            "Keys that one read of the store carried",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
        )
        self.foreign_records = self._counter("foreign_records", "Records met that a foreign application wrote")
        self.replicas_short = self._counter("replicas_short", "Writes that found too few replicas connected")
        self.store_up = Gauge(
            "revocation_store_up",
            "Whether Redis answered the last time it was asked",
            registry=self.registry,
            multiprocess_mode="livemin",
        )

        self.mirror_entries = Gauge(
            "revocation_mirror_entries",
            "Live revocations in the mirror of this process",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.mirror_age = Gauge(
            "revocation_mirror_age_seconds",
            "Seconds since the mirror was last proven to hold everything acknowledged; infinity before that",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.mirror_lag = histogram(
            "revocation_mirror_lag_seconds",
            "From the writing of an entry of the change log until the mirror has it",
            registry=self.registry,
            buckets=_LATENCY_BUCKETS,
        )
        self.mirror_scans = self._counter("mirror_scans", "Scans of all records", "reason")
        self.restored = self._counter("restored", "Revocations written back to a Redis that had lost them")
        self.clock_offset = Gauge(
            "revocation_redis_clock_offset_seconds",
            "Offset of Redis' clock from the clock of this process",
            registry=self.registry,
            multiprocess_mode="livemostrecent",
        )

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        counter = Counter if self._several_workers else TalliedCounter
        return counter(f"revocation_{name}_total", documentation, labels, registry=self.registry)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format, summed over the workers where several share them."""
        if not self._several_workers:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        _FilledFiles(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


class _FilledFiles(MultiProcessCollector):
    """All workers' files but one that a worker has made this moment and not filled: the library would fail on it."""

    def collect(self) -> Any:
        files = [str(path) for path in Path(self._path).glob("*.db") if _filled(path)]
        return self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]


def _filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:  # a dead worker's, removed meanwhile
        return False
