"""`GET /healthz`, `/readyz` and `/metrics`: for orchestrators; they need no key, and show names and codes alone."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from revocation_service.web.answers import Answer, json_answer
from revocation_service.web.readiness import Component
from revocation_service.web.state import METRICS, READINESS

_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


async def healthz(_request: web.Request) -> Answer:
    """The process lives."""
    return json_answer({"status": "ok"})


async def readyz(request: web.Request) -> Answer:
    """The process can do its job, or the most of it (`degraded`); 503 while it cannot."""
    components = request.app[READINESS].components()
    status = _overall(components)
    form = {"status": status, "components": {one.name: _form(one) for one in components}}
    return json_answer(form, 503 if status == "not_ready" else 200)


def _overall(components: Sequence[Component]) -> str:
    if all(component.ready for component in components):
        return "ready"
    return "degraded" if all(component.ready or component.replaced for component in components) else "not_ready"


def _form(component: Component) -> dict[str, object]:
    form: dict[str, object] = {"status": component.status}
    return form | {"warnings": list(component.warnings)} if component.warnings else form


async def metrics(request: web.Request) -> Answer:
    """Everything that is counted."""
    return Answer(request.app[METRICS].exposition(), content_type=_PROMETHEUS)
