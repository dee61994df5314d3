"""`GET /healthz`, `/readyz` and `/metrics`: liveness, readiness, Prometheus metrics. No key is needed."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from revocation_service import __version__
from revocation_service.http.responses import json_response

_PROMETHEUS: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class Component:
    """The state of one thing that the process needs. It is public, so it holds names and codes, never an address."""

    name: str
    status: str
    ready: bool
    warnings: tuple[str, ...] = ()
    replaced: bool = False
    """True if the process works mostly without this component at present."""


COMPONENTS: Final[web.AppKey[Callable[[], Awaitable[Sequence[Component]]]]] = web.AppKey("components")
EXPOSITION: Final[web.AppKey[Callable[[], bytes]]] = web.AppKey("exposition")
"""An application with these routes must set both: the states of its components, and its metrics as text."""


async def healthz(_request: web.Request) -> web.Response:
    return json_response({"status": "ok", "version": __version__})


async def readyz(request: web.Request) -> web.Response:
    components = await request.app[COMPONENTS]()
    ready = all(each.ready for each in components)
    serving = all(each.ready or each.replaced for each in components)
    status = "ready" if ready else "degraded" if serving else "not_ready"
    form = {"status": status, "components": {each.name: _form(each) for each in components}}
    return json_response(form, 200 if serving else 503)


async def metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[EXPOSITION](), headers=_PROMETHEUS)


PROBES: Final = (web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics))


def _form(component: Component) -> dict[str, object]:
    form: dict[str, object] = {"status": component.status}
    return form | {"warnings": component.warnings} if component.warnings else form
