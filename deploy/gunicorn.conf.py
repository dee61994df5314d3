"""gunicorn's side of several workers: the service's own settings, one log, metrics that add up, an end within 10 s.

Used by the image, and by hand: `gunicorn --config deploy/gunicorn.conf.py revocation_service.web.worker:worker`.
`WEB_CONCURRENCY` is the number of workers. Reading this file refuses, in one line, what would fail in every worker.
"""

import itertools
import logging
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from revocation_service.dry_run import dry_run
from revocation_service.environment import Loaded
from revocation_service.errors import SettingsError
from revocation_service.settings import Settings, load_for_workers

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a container can write there, also where its root is read-only
SCRATCH = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None


def _checked() -> Loaded[Settings]:
    loaded = load_for_workers()
    if loaded.settings.protected:
        raise SettingsError(
            "REVOCATION_API_KEYS is not set, and several workers serve only callers with keys"
            " (`revocation-service new-key NAME SCOPES` makes one)"
        )
    dry_run(loaded.settings)
    return loaded


try:
    _loaded = _checked()
except SettingsError as _error:
    sys.exit(f"revocation-service: {_error.detail}")

# prometheus_client looks at this once, when it is imported.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="revocation-metrics-", dir=SCRATCH)

from prometheus_client import values  # noqa: E402
from prometheus_client.multiprocess import mark_process_dead  # noqa: E402

from revocation_service.telemetry import configure_logging, describe_error  # noqa: E402


class OneLog(logging.Handler):
    """Hands what gunicorn says of its workers to the service's log; it says nothing of requests."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"message": record.getMessage(), "pid": record.process}
        if record.exc_info and record.exc_info[1] is not None:
            fields |= describe_error(record.exc_info[1])
        structlog.get_logger().log(record.levelno, "gunicorn_message", **fields)


configure_logging(_loaded.settings.log_level, _loaded.settings.log_format)

_host = _loaded.settings.host
bind = f"{f'[{_host}]' if ':' in _host else _host}:{_loaded.settings.port}"
worker_class = "aiohttp.GunicornUVLoopWebWorker"
worker_tmp_dir = SCRATCH
preload_app = True  # what is imported before the fork is in memory once
control_socket_disable = True
graceful_timeout = 8
"""Seconds; Docker sends SIGKILL after 10. A worker notices SIGTERM within 1, then drains as `serve` does."""
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {},
    "formatters": {},
    "handlers": {"one_log": {"()": OneLog}},
    "loggers": {"gunicorn.error": {"handlers": ["one_log"], "propagate": False}},
}


def on_starting(server: Any) -> None:
    """Begin with empty metrics: a file that an earlier run left would be added to this run's."""
    if server.cfg.workers < 1:
        on_exit(server)
        sys.exit("revocation-service: WEB_CONCURRENCY must be 1 or more")
    for name in _loaded.unknown:
        structlog.get_logger().warning("unknown_setting", name=name)
    _metrics().mkdir(parents=True, exist_ok=True)
    _clear(_metrics())


def pre_fork(server: Any, worker: Any) -> None:
    """Give the worker a place: the files of its metrics are named by it, so there are no more files than places."""
    taken = {other.place for other in server.WORKERS.values()}
    worker.place = next(place for place in itertools.count(1) if place not in taken)


def post_fork(_server: Any, worker: Any) -> None:
    """Go on counting where whoever had the place before stopped."""
    values.ValueClass = values.MultiProcessValue(lambda: worker.place)  # type: ignore[no-untyped-call]


def child_exit(_server: Any, worker: Any) -> None:
    """What a dead worker counted stays; what it was in, such as `revocation_store_up`, goes with it."""
    mark_process_dead(worker.place)  # type: ignore[no-untyped-call]


def on_exit(_server: Any) -> None:
    """Leave nothing behind."""
    _clear(_metrics())
    with suppress(OSError):
        _metrics().rmdir()


def _metrics() -> Path:
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])


def _clear(directory: Path) -> None:
    for left in directory.glob("*.db"):
        left.unlink()
