"""Tests that run the Python blocks of README.md, docs/client.md and docs/migrating.md as printed."""

import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import uuid4

import aiohttp
import jwt
import pytest
from aiohttp import web
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer

from revocation_client import RevocationClient
from tests.api.serving import Service, serving
from tests.docs.blocks import block
from tests.redis_processes import HOST, Process
from tests.system.tokens import SECRET, mint

KEY = "the-key-of-this-application"


@pytest.fixture
async def verifying(redis: Process) -> AsyncIterator[Service]:
    """A service that verifies the application's tokens and accepts its API key."""
    async with serving(redis, API_KEYS=f"api={KEY}:check+revoke", JWT_SECRET=SECRET) as running:
        yield running


def executed(source: str, service: Service, **names: Any) -> dict[str, Any]:
    """Execute a block against the service, with these names defined, and return all names afterwards."""
    exec(source.replace("http://revocation:8080", str(service.url).rstrip("/")), names)
    return names


def decode(token: str) -> dict[str, Any]:
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert isinstance(claims, dict)
    return claims


class Users:
    """The users of the README's application."""

    async def get(self, name: str) -> dict[str, str]:
        return {"name": name}


async def test_the_dependency_refuses_a_logged_out_token(verifying: Service) -> None:
    """The README's `get_current_user` accepts a token before its logout, and raises 401 after it."""
    names: dict[str, Any] = {
        "Annotated": Annotated,
        "Depends": Depends,
        "FastAPI": FastAPI,
        "HTTPException": HTTPException,
        "User": dict,
        "users": Users(),
        "decode": decode,
        "current_claims": decode,
        "oauth2_scheme": OAuth2PasswordBearer("login"),
        "settings": SimpleNamespace(revocation_api_key=KEY),
    }
    app = executed(block("README.md", "after"), verifying, **names)
    token = mint(jti="readme", sid="s-1")
    async with app["revocations"]:
        assert await app["get_current_user"](token) == {"name": "alice"}
        await app["logout"](decode(token))
        with pytest.raises(HTTPException) as refused:
            await app["get_current_user"](token)
    assert refused.value.status_code == 401


async def test_a_token_that_is_made_so_is_good_after_log_out_everywhere(verifying: Service) -> None:
    """A subject's revocation covers a token that `mint` issued just before, and not one issued right after."""
    names: dict[str, Any] = {"jwt": jwt, "time": time, "uuid4": uuid4, "settings": SimpleNamespace(jwt_secret=SECRET)}
    names = executed(block("docs/client.md", "mint"), verifying, **names)
    async with RevocationClient(str(verifying.url), api_key=KEY) as revocations:
        before = names["mint"]("alice", "s-1")
        await revocations.revoke_subject("alice")
        after = names["mint"]("alice", "s-2")
        verdicts = await revocations.check_many([before, after])
    assert [(one.revoked, one.iat_unusable) for one in verdicts] == [(True, False), (False, False)]
    assert verdicts[1].verified
    assert verdicts[1].considered == ("jti", "sid", "sub", "all")


async def test_the_aiohttp_application(verifying: Service, aiohttp_client: Any) -> None:
    """The aiohttp application of client.md accepts a token, and answers 401 after the revocation of that token."""
    names = executed(block("docs/client.md", "create"), verifying, RevocationClient=RevocationClient)
    app = executed(block("docs/client.md", "aiohttp"), verifying, web=web, decode=decode, **names)["app"]
    http: aiohttp.ClientSession = await aiohttp_client(app)
    headers = {"Authorization": f"Bearer {mint(jti='aiohttp')}"}
    async with http.get("/me", headers=headers) as response:
        assert await response.json() == {"name": "alice"}
    await names["revocations"].revoke_jti("aiohttp", expires_in=60)
    async with http.get("/me", headers=headers) as response:
        assert response.status == 401


async def test_the_drop_in_is_swapped_and_then_asked_for_all_claims(
    verifying: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of steps 2 and 3 of migrating.md works together. test_migrating.py tests it under load."""
    monkeypatch.setenv("REVOCATION_URL", str(verifying.url))
    monkeypatch.setenv("REVOCATION_API_KEY", KEY)
    names: dict[str, Any] = {
        "Annotated": Annotated,
        "Depends": Depends,
        "HTTPException": HTTPException,
        "decode": decode,
        "oauth2_scheme": OAuth2PasswordBearer("login"),
    }
    names = executed(block("docs/migrating.md", "swap") + block("docs/migrating.md", "reads"), verifying, **names)
    verify = block("docs/migrating.md", "verify").strip()
    exec(f"async def verify():\n    {verify}", names)
    await names["token_blacklist"].init(f"redis://{HOST}:6379/0")
    try:
        await names["verify"]()
        token = mint(jti="moved", sid="s-1")
        assert (await names["get_current_user"](token))["jti"] == "moved"
        await names["token_blacklist"].client.revoke_session("s-1")
        with pytest.raises(HTTPException) as refused:
            await names["get_current_user"](token)
        assert refused.value.status_code == 401
    finally:
        await names["token_blacklist"].close()
