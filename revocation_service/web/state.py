"""What the handlers find in the application, each under a typed key."""

from typing import Final

from aiohttp import web

from revocation_service.broadcaster import Broadcaster
from revocation_service.revocations import Revocations
from revocation_service.telemetry import Metrics
from revocation_service.traffic import Traffic
from revocation_service.web.auth import Authorize
from revocation_service.web.readiness import Readiness

REVOCATIONS: Final = web.AppKey("revocations", Revocations)
AUTHORIZE: Final[web.AppKey[Authorize]] = web.AppKey("authorize")
METRICS: Final = web.AppKey("metrics", Metrics)
READINESS: Final = web.AppKey("readiness", Readiness)
TRAFFIC: Final = web.AppKey("traffic", Traffic)
BROADCASTER: Final = web.AppKey("broadcaster", Broadcaster)
