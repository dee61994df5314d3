"""Fixtures: the application with the in-memory revocation client, without a service or Redis."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from main_api.app import create_app
from main_api.settings import Settings
from revocation_client.testing import InMemoryRevocationClient

SECRET = "the-tests-own-secret-0123456789abcdef"
PASSWORD = "correct horse battery staple"
ALICE = {"username": "alice", "password": PASSWORD}
BOB = {"username": "bob", "password": PASSWORD}

HASHER = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=64),))
"""Argon2 at a low cost, because the tests log in often."""

LOGIN = "/api/v1/auth/login"
REFRESH = "/api/v1/auth/refresh"
LOGOUT = "/api/v1/auth/logout"
LOGOUT_ALL = "/api/v1/auth/logout-all"
ME = "/api/v1/users/me"


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Settings with the users alice and bob."""
    password_hash = HASHER.hash(PASSWORD)
    return Settings(SECRET, {"alice": password_hash, "bob": password_hash})


@pytest.fixture
def revocations() -> InMemoryRevocationClient:
    """The in-memory revocation client. A test may simulate an outage with it."""
    return InMemoryRevocationClient(revoke_timeout_seconds=0.5)


@pytest.fixture
async def app(settings: Settings, revocations: InMemoryRevocationClient) -> AsyncIterator[FastAPI]:
    """The application after its startup."""
    app = create_app(settings, revocations, HASHER)
    async with started(app):
        yield app


@contextlib.asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[None]:
    """Run the lifespan of the application, because httpx does not."""
    async with app.router.lifespan_context(app):
        yield


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator["Api"]:
    """A client of the application."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://main-api") as http:
        yield Api(http)


class Api:
    """A client that calls the routes of the application."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def log_in(self, user: dict[str, str] = ALICE) -> dict[str, Any]:
        """Log in, which must succeed, and return the response's JSON with the pair of tokens."""
        answer = await self.http.post(LOGIN, data=user)
        assert answer.status_code == 200, answer.text
        pair: dict[str, Any] = answer.json()
        return pair

    async def refresh(self, pair: dict[str, Any]) -> httpx.Response:
        """Exchange the refresh token of a pair for new tokens."""
        return await self.http.post(REFRESH, data={"refresh_token": pair["refresh_token"]})

    async def me(self, pair: dict[str, Any]) -> httpx.Response:
        """Request the protected route with the access token of a pair."""
        return await self.http.get(ME, headers=bearer(pair))

    async def log_out(self, pair: dict[str, Any], route: str = LOGOUT) -> httpx.Response:
        """Request one of the two logout routes with the access token of a pair."""
        return await self.http.post(route, headers=bearer(pair))


def bearer(pair: dict[str, Any]) -> dict[str, str]:
    """Return the Authorization header with the access token of a pair."""
    return {"Authorization": f"Bearer {pair['access_token']}"}
