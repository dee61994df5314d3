"""`GET /healthz`, `/readyz` and `/metrics`: for orchestrators; they need no key, and show names and codes alone."""

from typing import Final

from aiohttp import web

from revocation_client.wire import dumps
from revocation_service.web.readiness import Component
from revocation_service.web.state import METRICS, READINESS

_PROMETHEUS: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


async def healthz(_request: web.Request) -> web.Response:
    """The process lives."""
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


async def readyz(request: web.Request) -> web.Response:
    """The process can do its job; 503 while it cannot."""
    components = await request.app[READINESS].components()
    ready = all(component.ready for component in components)
    body = {"status": "ready" if ready else "not_ready", "components": {one.name: _form(one) for one in components}}
    return web.Response(status=200 if ready else 503, body=dumps(body), content_type="application/json")


def _form(component: Component) -> dict[str, object]:
    form: dict[str, object] = {"status": component.status}
    return form | {"warnings": list(component.warnings)} if component.warnings else form


async def metrics(request: web.Request) -> web.Response:
    """Everything that is counted."""
    return web.Response(body=request.app[METRICS].exposition(), headers=_PROMETHEUS)
