"""A process that serves: what `serve` and gunicorn's workers have in common, and what is gunicorn's alone."""

import gc
from functools import partial
from typing import Any, Final

from aiohttp import web

from revocation_service.settings import load_for_workers
from revocation_service.telemetry import configure_logging
from revocation_service.web.app import runner
from revocation_service.web.connection import Runner
from revocation_service.web.drain import drain

GC_THRESHOLDS: Final = (50_000, 20, 20)
"""The first is above what several batches of 1,000 questions hold at once, so that few of them are walked through."""


def spare_the_collector() -> None:
    """What was made at the start stays: the garbage collector need not look at it again, nor look so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def worker() -> web.AppRunner:
    """One of several gunicorn workers, configured by the environment.

    Raises SettingsError: also for the embedded Redis, which belongs to one process alone.
    """
    settings = load_for_workers().settings
    configure_logging(settings.log_level, settings.log_format)
    spare_the_collector()
    return runner(settings, partial(_WorkerRunner, settings.drain_seconds))


class _WorkerRunner(Runner):
    """What gunicorn's worker cleans up at SIGTERM; it knows no drain, so here /readyz fails first, for a while."""

    def __init__(self, drain_seconds: float, app: web.Application, **options: Any) -> None:
        super().__init__(app, **options)
        self._drain_seconds = drain_seconds

    async def cleanup(self) -> None:
        """Drain, then finish what is in flight and close."""
        if self.server is not None:
            await drain(self, self._drain_seconds)
        await super().cleanup()
