"""A FastAPI login that also takes JSON and overridden methods, and lists the usernames that it was given."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import OAuth2PasswordRequestForm

PASSWORD = "right"

app = FastAPI()
seen: list[str] = []


def _judge(username: str, password: str) -> dict[str, str]:
    seen.append(username)
    if password != PASSWORD:
        raise HTTPException(401, "wrong")
    return {"token": "t"}


@app.post("/auth/login")
async def login(form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict[str, str]:
    """Log in with the OAuth2 password form, urlencoded or multipart."""
    return _judge(form.username, form.password)


@app.post("/api/v1/auth/login")
async def login_of_any_kind(request: Request) -> dict[str, str]:
    """Log in with JSON or a form. Of repeated fields the last one counts."""
    if "json" in request.headers.get("content-type", ""):
        body: dict[str, Any] = await request.json()
    else:
        body = dict(await request.form())
    return _judge(str(body.get("username", "")), str(body.get("password", "")))


@app.get("/seen")
async def show() -> list[str]:
    """Return the usernames of all login attempts, in order."""
    return seen


@app.post("/forget")
async def forget() -> None:
    """Empty the list of usernames."""
    seen.clear()


@app.middleware("http")
async def override(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Override the method by a header or the query, as many frameworks do for old browsers."""
    asked = [request.headers.get(f"x-{name}") for name in ("http-method-override", "method-override", "http-method")]
    asked += parse_qs(request.url.query).get("_method", [])
    for method in filter(None, asked):
        request.scope["method"] = method.upper()
    return await call_next(request)
