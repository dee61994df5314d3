"""`GET /healthz`, `/readyz` and `/metrics`, on a port of their own: names and codes, no addresses."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from revocation_client.wire import dumps
from revocation_service.gateway.metrics import GatewayMetrics
from revocation_service.gateway.problems import problem
from revocation_service.gateway.readiness import Readiness

_PROMETHEUS: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


def create_admin(metrics: GatewayMetrics, readiness: Readiness) -> web.Application:
    """The operators' side of a gateway."""

    async def healthz(_request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        components = await readiness.components()
        ready = all(component.ready for component in components)
        form = {one.name: {"status": one.status} for one in components}
        return _json({"status": "ready" if ready else "not_ready", "components": form}, 200 if ready else 503)

    async def exposition(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers=_PROMETHEUS)

    admin = web.Application(middlewares=[_problems])
    admin.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    return admin


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        code = "not_found" if error.status == 404 else "method_not_allowed" if error.status == 405 else "http_error"
        allow = error.headers.get("Allow")
        response = problem(error.status, error.reason, code, headers={"Allow": allow} if allow else None)
    response.headers["Cache-Control"] = "no-store"
    return response


def _json(form: object, status: int = 200) -> web.Response:
    return web.Response(body=dumps(form), status=status, content_type="application/json")
