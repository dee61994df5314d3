"""The main use, as a user does it: every instance refuses a token revoked with curl until the token has expired."""

import asyncio
import json
import pathlib
import shutil
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.redis_processes import eventually, standalone
from tests.scale import scaled
from tests.system.service_process import ask, serving
from tests.system.tokens import FORGERS_SECRET, SECRET, mint

LIFE_SECONDS = scaled(2, 10)
KEY = "operators-key-0123456789abcdef"

Post = Callable[[str, dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]


@pytest.fixture
def post(http: aiohttp.ClientSession) -> Post:
    """A function that sends a POST request with curl, the body on stdin, or with aiohttp if there is no curl."""
    curl = shutil.which("curl")

    async def with_curl(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert curl is not None
        words = (
            "--silent",
            "--noproxy",
            "*",
            "--header",
            f"Authorization: Bearer {KEY}",
            "--write-out",
            "\n%{http_code}",
        )
        process = await asyncio.create_subprocess_exec(
            curl, *words, "--json", "@-", url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(json.dumps(body).encode()), 20)
        answer, _, status = output.decode().rpartition("\n")
        return int(status), json.loads(answer)

    async def with_aiohttp(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer = await ask(http, "POST", url, body, headers={"Authorization": f"Bearer {KEY}"})
        return answer.status, answer.body

    return with_curl if curl else with_aiohttp


@pytest.mark.parametrize("configured", ["nothing", "the secret and an API key"])
async def test_a_revoked_token_is_refused_by_every_instance_until_it_would_have_died(
    configured: str, tmp_path: pathlib.Path, post: Post
) -> None:
    """Both instances accept a token until it is revoked, and refuse it until its `exp`. Then its record is gone."""
    async with standalone() as server:
        settings = {"REVOCATION_REDIS_URL": server.url}
        if configured != "nothing":
            settings |= {"REVOCATION_JWT_SECRET": SECRET, "REVOCATION_API_KEYS": f"ops={KEY}:admin"}
        async with serving(tmp_path / "one", settings) as one, serving(tmp_path / "other", settings) as other:
            began = time.monotonic()
            for service in (one, other):
                await post(f"{service.url}/check", {"token": mint(jti="at-which-pace")})
            exp = int(time.time() + LIFE_SECONDS + 10 * (time.monotonic() - began))
            token, neighbour = mint(jti="one-minute", exp=exp), mint(jti="another", exp=exp)
            for service in (one, other):
                assert (await post(f"{service.url}/check", {"token": token}))[1]["revoked"] is False
            status, revoked = await post(f"{one.url}/revoke", {"token": token, "reason": "stolen"})
            assert (status, revoked["result"], revoked["value"]) == (200, "revoked", "one-minute")
            assert (revoked["expires_at"], revoked["verified"]) == (exp, configured != "nothing")
            rounds = 0
            while time.time() < exp - 0.1:
                for service in (one, other):
                    status, verdict = await post(f"{service.url}/check", {"token": token})
                    if time.time() < exp:
                        assert (status, verdict["revoked"], verdict["expired"]) == (200, True, False)
                        assert verdict["revocation"]["reason"] == "stolen"
                        rounds += 1
                assert (await post(f"{other.url}/check", {"token": neighbour}))[1]["revoked"] is False
            assert rounds

            async def forgotten() -> bool:
                return bool(await server.command("EXISTS", "token_blacklist:one-minute") == 0)

            await eventually(forgotten, "Redis' own forgetting")
            status, verdict = await post(f"{other.url}/check", {"token": token})
            assert (status, verdict["revoked"], verdict["expired"]) == (200, False, True)
            for service in (one, other):
                assert token not in service.output()
                assert token.rpartition(".")[2] not in service.output()


async def test_a_forged_token_revokes_nothing_where_the_secret_is_configured(
    tmp_path: pathlib.Path, post: Post
) -> None:
    """With a configured secret, revoking a forged token answers 400 `invalid_token` and stores no record."""
    async with standalone() as server:
        settings = {"REVOCATION_REDIS_URL": server.url, "REVOCATION_JWT_SECRET": SECRET}
        async with serving(tmp_path, settings) as service:
            status, answer = await post(f"{service.url}/revoke", {"token": mint(FORGERS_SECRET, jti="victim")})
            assert (status, answer["code"]) == (400, "invalid_token")
            assert await server.command("KEYS", "token_[bc]*") == []


async def test_it_works_out_of_the_box_with_the_private_redis(tmp_path: pathlib.Path, post: Post) -> None:
    """Without any configuration, the service revokes a token and still knows it after a kill and a restart."""
    async with serving(tmp_path) as service:
        token = mint(jti="out-of-the-box")
        assert (await post(f"{service.url}/revoke", {"token": token}))[1]["result"] == "revoked"
        service.kill()
        await service.start()
        assert (await post(f"{service.url}/check", {"token": token}))[1]["revoked"] is True
        assert (await post(f"{service.url}/check", {"token": mint(jti="other")}))[1]["revoked"] is False
        assert (await post(f"{service.url}/revoke", {"token": token}))[1]["result"] == "already_revoked"
