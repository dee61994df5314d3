"""The application with the client's stand-in behind it, as any application would test it: no service, no Redis."""

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
"""Argon2 without its cost, for tests that log in often."""

LOGIN = "/api/v1/auth/login"
REFRESH = "/api/v1/auth/refresh"
LOGOUT = "/api/v1/auth/logout"
LOGOUT_ALL = "/api/v1/auth/logout-all"
ME = "/api/v1/users/me"


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Two users."""
    password_hash = HASHER.hash(PASSWORD)
    return Settings(SECRET, {"alice": password_hash, "bob": password_hash})


@pytest.fixture
def revocations() -> InMemoryRevocationClient:
    """The stand-in for the service; a test may take it away."""
    return InMemoryRevocationClient(revoke_timeout_seconds=0.5)


@pytest.fixture
async def app(settings: Settings, revocations: InMemoryRevocationClient) -> AsyncIterator[FastAPI]:
    """The application, started."""
    app = create_app(settings, revocations, HASHER)
    async with started(app):
        yield app


@contextlib.asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[None]:
    """The application's lifespan, which httpx does not run."""
    async with app.router.lifespan_context(app):
        yield


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator["Api"]:
    """Its HTTP interface."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://main-api") as http:
        yield Api(http)


class Api:
    """The routes as one who uses them calls them."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def log_in(self, user: dict[str, str] = ALICE) -> dict[str, Any]:
        """A login that succeeds: what it hands out."""
        answer = await self.http.post(LOGIN, data=user)
        assert answer.status_code == 200, answer.text
        pair: dict[str, Any] = answer.json()
        return pair

    async def refresh(self, pair: dict[str, Any]) -> httpx.Response:
        """The refresh token, sent for new ones."""
        return await self.http.post(REFRESH, data={"refresh_token": pair["refresh_token"]})

    async def me(self, pair: dict[str, Any]) -> httpx.Response:
        """The protected route, with the access token."""
        return await self.http.get(ME, headers=bearer(pair))

    async def log_out(self, pair: dict[str, Any], route: str = LOGOUT) -> httpx.Response:
        """One of the two logouts, with the access token."""
        return await self.http.post(route, headers=bearer(pair))


def bearer(pair: dict[str, Any]) -> dict[str, str]:
    """The access token as a header."""
    return {"Authorization": f"Bearer {pair['access_token']}"}
