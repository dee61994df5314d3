"""A test of the whole compose project, gateway → main API → service → Redis, as a user calls it."""

import base64
import json
import time
from typing import Any

import aiohttp
import pytest

from tests.docker.engine import Running
from tests.docker.test_compose import redis_cli

pytestmark = pytest.mark.docker

RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


def claims_of(token: str) -> dict[str, Any]:
    """Return the claims of a token, unverified."""
    part = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    assert isinstance(claims, dict)
    return claims


async def test_the_four_truths(running: Running) -> None:
    """A logout counts at the next request, the sixth login gets 429, rate limits are in headers, and records expire."""
    url = running.stack.gateway_url
    async with aiohttp.ClientSession(url) as http:

        async def login() -> tuple[int, dict[str, Any]]:
            form = {"username": "alice", "password": running.password}
            async with http.post("/api/v1/auth/login", data=form) as answer:
                assert all(name in answer.headers for name in RATE_HEADERS)
                assert answer.headers["X-RateLimit-Limit"] == "5"
                left.append(int(answer.headers["X-RateLimit-Remaining"]))
                return answer.status, await answer.json(content_type=None)

        async def status(method: str, path: str, token: str) -> int:
            async with http.request(method, path, headers={"Authorization": f"Bearer {token}"}) as answer:
                return answer.status

        left: list[int] = []
        ended, tokens = await login()
        assert ended == 200
        access, refresh = tokens["access_token"], tokens["refresh_token"]
        assert await status("GET", "/api/v1/users/me", access) == 200

        async with http.post("/api/v1/auth/refresh", data={"refresh_token": refresh}) as answer:
            assert answer.status == 200
        used = claims_of(refresh)
        milliseconds = int(redis_cli(running.stack, "PTTL", f"token_blacklist:{used['jti']}"))
        assert milliseconds / 1000 == pytest.approx(used["exp"] - time.time(), abs=2)

        assert await status("POST", "/api/v1/auth/logout", access) == 204
        assert await status("GET", "/api/v1/users/me", access) == 401

        assert [(await login())[0] for _ in range(5)] == [200, 200, 200, 200, 429]
        assert left == [4, 3, 2, 1, 0, 0]
