"""Typed keys of the objects that handlers look up in the application."""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from revocation_service.api_keys import ApiKey
from revocation_service.broadcaster import Broadcaster
from revocation_service.http.in_flight import InFlight
from revocation_service.revocations import Revocations
from revocation_service.settings import Settings
from revocation_service.telemetry import RepeatedWarning

FindCaller = Callable[[str], ApiKey]

FIND_CALLER: Final[web.AppKey[FindCaller | None]] = web.AppKey("find_caller")
"""Finds the API key in an Authorization header; None without keys."""
BROADCASTER: Final = web.AppKey("broadcaster", Broadcaster)
GATEWAY_REFUSED: Final = web.AppKey("gateway_refused", RepeatedWarning)
IN_FLIGHT: Final = web.AppKey("in_flight", InFlight)
REVOCATIONS: Final = web.AppKey("revocations", Revocations)
SETTINGS: Final = web.AppKey("settings", Settings)
