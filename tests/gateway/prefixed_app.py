"""FastAPI applications whose login lies under prefixes of several kinds; the Host header selects one."""

from typing import Final

from fastapi import APIRouter, FastAPI, HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send


def _application(login: str = "/auth/login", root_path: str = "", mounted: str = "") -> FastAPI:
    """Build an application whose login answers 401."""
    router = APIRouter()

    @router.post(login)
    async def refuse() -> None:
        raise HTTPException(401, "wrong")

    app = FastAPI()
    app.root_path = root_path  # the constructor's parameter is deprecated, and a warning is an error here
    if mounted:
        inner = FastAPI()
        inner.include_router(router)
        app.mount(mounted, inner)
    else:
        app.include_router(router)
    return app


LAYOUTS: Final[dict[str, ASGIApp]] = {
    "plain": _application(),
    "root-path": _application(root_path="/v2"),
    "mounted": _application(mounted="/v2"),
    "mounted-under-root-path": _application(root_path="/api", mounted="/v2"),
    "root-path-of-two": _application(root_path="/api/v2"),
    "root-path-is-auth": _application(login="/login", root_path="/auth"),
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application that the Host header names."""
    layout = "plain" if scope["type"] == "lifespan" else dict(scope["headers"])[b"host"].decode()
    await LAYOUTS[layout](scope, receive, send)
