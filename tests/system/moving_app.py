"""An application that moves from an in-process blacklist to the service, for test_migrating.py.

MOVING_STAGE is the stage: `in_process` (it writes its own keys to Redis), `swapped` (it has the import of
docs/migrating.md) or `moved` (it has the reads too). MOVING_LOGIN_LIMIT=1 enables its own login limit, like slowapi's:
five logins a minute for each address that uvicorn takes for the client's.
"""

import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import jwt
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import OAuth2PasswordBearer
from redis.asyncio import Redis

from tests.docs.blocks import block
from tests.system.tokens import SECRET

STAGE: Final = os.environ.get("MOVING_STAGE", "in_process")
LIMIT: Final = 5

oauth2_scheme = OAuth2PasswordBearer("auth/login")


class InProcessBlacklist:
    """The in-process blacklist of such applications, in a form that is common in public code."""

    prefix = "token_blacklist:"

    def __init__(self) -> None:
        self._redis: Any = None

    async def init(self, url: str) -> None:
        self._redis = Redis.from_url(url)

    async def close(self) -> None:
        await self._redis.aclose()

    async def blacklist_token(self, jti: str, expires_in: int) -> bool:
        await self._redis.setex(f"{self.prefix}{jti}", expires_in, "1")
        return True

    async def is_blacklisted(self, jti: str) -> bool:
        return bool(await self._redis.exists(f"{self.prefix}{jti}"))


def decode(token: str) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(token, SECRET, algorithms=["HS256"])
    except jwt.PyJWTError:
        raise HTTPException(401) from None
    return claims


token_blacklist: Any = InProcessBlacklist()


async def get_current_user(token: Annotated[str, Depends(oauth2_scheme)]) -> dict[str, Any]:
    claims = decode(token)
    if await token_blacklist.is_blacklisted(claims["jti"]):
        raise HTTPException(401)
    return claims


if STAGE != "in_process":
    exec(block("docs/migrating.md", "swap"))
if STAGE == "moved":
    exec(block("docs/migrating.md", "reads"))


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    await token_blacklist.init(os.environ["MOVING_REDIS_URL"])
    if STAGE != "in_process":
        await token_blacklist.client.verify_access()
    yield
    await token_blacklist.close()


app = FastAPI(lifespan=lifespan)
_logins: dict[str, list[float]] = defaultdict(list)


@app.post("/auth/login")
async def login(request: Request) -> dict[str, str]:
    assert request.client is not None
    if os.environ.get("MOVING_LOGIN_LIMIT") == "1":
        recent = [at for at in _logins[request.client.host] if at > time.monotonic() - 60]
        _logins[request.client.host] = [*recent, time.monotonic()]
        if len(recent) >= LIMIT:
            raise HTTPException(429)
    return {"address": request.client.host}


@app.get("/me")
async def me(claims: Annotated[dict[str, Any], Depends(get_current_user)]) -> dict[str, str]:
    return {"name": claims["sub"]}


@app.post("/auth/logout", status_code=204)
async def logout(claims: Annotated[dict[str, Any], Depends(get_current_user)]) -> None:
    if not await token_blacklist.blacklist_token(claims["jti"], int(claims["exp"] - time.time()) + 1):
        raise HTTPException(503)


@app.get("/healthz")
async def healthz() -> None:
    return None
