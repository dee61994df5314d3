"""`GET /healthz`, `/readyz` and `/metrics`: for orchestrators; they need no key, and show names and codes alone."""

from typing import Final

from aiohttp import web

from revocation_service.web.answers import json_answer
from revocation_service.web.readiness import Component
from revocation_service.web.state import METRICS, READINESS

_PROMETHEUS: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


async def healthz(_request: web.Request) -> web.Response:
    """The process lives."""
    return json_answer({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """The process can do its job; 503 while it cannot."""
    components = await request.app[READINESS].components()
    ready = all(component.ready for component in components)
    body = {"status": "ready" if ready else "not_ready", "components": {one.name: _form(one) for one in components}}
    response = json_answer(body)
    response.set_status(200 if ready else 503)
    return response


def _form(component: Component) -> dict[str, object]:
    form: dict[str, object] = {"status": component.status}
    return form | {"warnings": list(component.warnings)} if component.warnings else form


async def metrics(request: web.Request) -> web.Response:
    """Everything that is counted."""
    return web.Response(body=request.app[METRICS].exposition(), headers=_PROMETHEUS)
