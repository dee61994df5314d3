"""The README's examples, run as they stand there."""

import asyncio
import contextlib
import json
import pathlib
import re
import shlex
import shutil
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import uuid4

import aiohttp
import jwt
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer

from revocation_client import RevocationClient
from revocation_service.store.windows import Window
from tests.redis_processes import HOST, eventually, free_port, standalone
from tests.store.test_windows import opened_windows
from tests.system.service_process import ServiceProcess, serving
from tests.system.tokens import SECRET, mint

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
KEY = "readme-key-0123456789abcdef"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are for curl, which is not here")


@dataclass(frozen=True)
class Example:
    """A command of the README, and what the README says that it prints."""

    command: str
    printed: str


def examples(heading: str, having: str = "curl -s") -> list[Example]:
    """The commands under a heading that have these words, in their order; by default those for curl."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    entries = [entry for block in blocks for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    return [_example(entry) for entry in entries if having in entry]


def _example(entry: str) -> Example:
    lines = entry.strip().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.endswith(("|", "\\", "&&")))
    return Example("\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :]).strip())


async def run(example: Example, service: ServiceProcess, home: pathlib.Path) -> Any:
    """What the command prints, as JSON, when it is sent to `service`."""
    return json.loads(await typed(example.command.replace("localhost:8080", f"localhost:{service.port}"), home))


async def typed(command: str, home: pathlib.Path, answer: str = "", shell: str = "bash") -> str:
    """What a command prints in a shell, where somebody types an answer to what it asks."""
    process = await asyncio.create_subprocess_exec(
        shell, "-euc", command, cwd=home, env={"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate(answer.encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


def shape(answer: Any) -> Any:
    """An answer with its times taken out: they are the only thing that differs from one run to the next."""
    if isinstance(answer, dict):
        return {name: "a time" if name.endswith("_at") else shape(value) for name, value in answer.items()}
    return answer


async def test_one_minute_to_a_revoked_token(tmp_path: pathlib.Path) -> None:
    """The first commands that a reader types print what the README says, but for the times."""
    service = ServiceProcess(tmp_path / "service")
    try:
        await service.start()
        told = examples("One minute to a revoked token")
        assert len(told) == 3
        for example in told:
            assert shape(await run(example, service, tmp_path)) == shape(json.loads(example.printed))
    finally:
        service.kill()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
async def test_the_key_goes_into_curls_file(shell: str, tmp_path: pathlib.Path) -> None:
    """The command that asks for the key puts it where curl reads it, whole, and prints nothing of it."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    (asks,) = examples("For operators", "API key: ")
    assert not await typed(asks.command, tmp_path, f"{KEY}\\=\n", shell)
    assert (tmp_path / ".revocation.curl").read_text() == f'header = "Authorization: Bearer {KEY}\\="\n'


async def test_operators_commands_do_what_they_say(tmp_path: pathlib.Path) -> None:
    """Each of the operator's commands works, with the key in curl's file and the token on standard input."""
    service = ServiceProcess(tmp_path / "service", {"REVOCATION_API_KEYS": f"ops={KEY}:admin"})
    (tmp_path / ".revocation.curl").write_text(f'header = "Authorization: Bearer {KEY}"\n')
    (tmp_path / "token.txt").write_text(mint(jti="readme") + "\n")
    try:
        await service.start()
        answers = {example.command: await run(example, service, tmp_path) for example in examples("For operators")}

        def answer_to(words: str) -> Any:
            (answer,) = (answer for command, answer in answers.items() if words in command)
            return answer

        revocations = [answer["claim"] for answer in answers.values() if answer.get("result") == "revoked"]
        assert revocations == ["jti", "sub", "sid", "client_id", "all"]
        assert len(answers) == len(revocations) + 2
        found = answer_to("/revocations?claim=sub&value=alice")
        assert (found["revoked_by"], found["reason"]) == ("ops", "phone lost")
        assert answer_to("/readyz")["status"] == "ready"
    finally:
        service.kill()


async def test_the_gateways_command_starts_a_gateway_that_counts_in_redis(tmp_path: pathlib.Path) -> None:
    """The command, with the ports of this test in it, is up and has its Redis."""
    (told,) = examples("The gateway", "GATEWAY_UPSTREAM_URL=")
    port, admin_port = free_port(), free_port()
    async with standalone() as redis, serving(tmp_path / "upstream", probe="/healthz") as upstream:
        command = told.command.replace("9000", str(upstream.port)).replace("6379", str(redis.port))
        assert command.count(str(redis.port)) == command.count(str(upstream.port)) == 1
        settings = {"GATEWAY_PORT": str(port), "GATEWAY_ADMIN_PORT": str(admin_port), "PATH": "/usr/bin:/bin"}
        gateway = await asyncio.create_subprocess_exec(
            "bash", "-c", f"exec env {command}", cwd=pathlib.Path(__file__).parents[2], env=settings,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:

            async def ready() -> bool:
                async with aiohttp.ClientSession() as http, http.get(f"http://{HOST}:{admin_port}/readyz") as answer:
                    components = (await answer.json())["components"]
                    return answer.status == 200 and all(part["status"] == "ok" for part in components.values())

            await eventually(ready, "a gateway with its Redis and its upstream", 20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                gateway.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(gateway.wait(), 15) == 0


async def test_the_dependency_refuses_a_logged_out_token(tmp_path: pathlib.Path) -> None:
    """`get_current_user` as the README writes it: before, the token is good after the logout; after, it is 401."""
    before, after = (_python(kind) for kind in ("before", "after"))
    async with serving(tmp_path / "service", {"REVOCATION_API_KEYS": f"api={KEY}:check+revoke"}) as service:
        assert after.count("http://revocation:8080") == 1
        after = after.replace("http://revocation:8080", f"http://{HOST}:{service.port}")
        known: dict[str, Any] = {
            "Annotated": Annotated, "Depends": Depends, "FastAPI": FastAPI, "HTTPException": HTTPException,
            "User": dict, "users": _Users(), "decode": _decode, "current_claims": _decode,
            "oauth2_scheme": OAuth2PasswordBearer("login"), "settings": SimpleNamespace(revocation_api_key=KEY),
        }  # fmt: skip
        exec(before, old := dict(known))
        exec(after, new := dict(known))
        token = mint(jti="readme", sid="s-1")
        async with new["revocations"]:
            assert await new["get_current_user"](token) == {"name": "alice"}
            await new["logout"](_decode(token))
            assert await old["get_current_user"](token) == {"name": "alice"}
            with pytest.raises(HTTPException) as refused:
                await new["get_current_user"](token)
        assert refused.value.status_code == 401


async def test_a_token_that_is_made_so_is_good_after_log_out_everywhere(tmp_path: pathlib.Path) -> None:
    """What `mint` issues is revoked with its subject, and the next one, issued right after the cutoff, is not."""
    names: dict[str, Any] = {"jwt": jwt, "time": time, "uuid4": uuid4, "settings": SimpleNamespace(jwt_secret=SECRET)}
    exec(_python("mint"), names)
    settings = {"REVOCATION_JWT_SECRET": SECRET, "REVOCATION_API_KEYS": f"api={KEY}:check+revoke"}
    async with serving(tmp_path, settings) as service, RevocationClient(service.url, api_key=KEY) as revocations:
        before = names["mint"]("alice", "s-1")
        await revocations.revoke_subject("alice")
        after = names["mint"]("alice", "s-2")
        verdicts = await revocations.check_many([before, after])
        assert [(one.revoked, one.iat_unusable) for one in verdicts] == [(True, False), (False, False)]
        assert verdicts[1].verified
        assert verdicts[1].considered == ("jti", "sid", "sub", "all")


def _python(kind: str) -> str:
    (block,) = re.findall(rf"```python {kind}\n(.*?)```", README, re.DOTALL)
    assert isinstance(block, str)
    return block


def _decode(token: str) -> dict[str, Any]:
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert isinstance(claims, dict)
    return claims


class _Users:
    async def get(self, name: str) -> dict[str, str]:
        return {"name": name}


async def test_the_user_of_its_own_in_redis_may_do_all_that_is_done(tmp_path: pathlib.Path) -> None:
    """With nothing but what the README gives it, all works, and is written back; nothing is refused."""
    (example,) = examples("Deployment", "ACL SETUSER")
    words = shlex.split(example.command.replace("\\\n", " "))
    async with standalone() as redis:
        assert await redis.command(*words[1:])
        url = f"redis://revocation:a-long-password@{redis.address}/0"
        settings = {"REVOCATION_REDIS_URL": url, "REVOCATION_API_KEYS": f"all={KEY}:check+revoke+admin"}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with serving(tmp_path, settings) as service, aiohttp.ClientSession(service.url, headers=headers) as http:
            for claims in ({"jti": "a", "expires_in": 600}, {"sid": "s"}, {"sub": "alice"}, {"all": True}):
                async with http.post("/revoke", json=claims) as answer:
                    assert answer.status == 200
            async with http.get("/revocations", params={"claim": "sub", "value": "alice"}) as answer:
                assert answer.status == 200
            async with http.post("/check/batch", json={"checks": [{"jti": "a"}, {"jti": "b", "sub": "bob"}]}) as answer:
                assert [one["revoked"] for one in (await answer.json())["results"]] == [True, False]
            async with http.get("/feed") as answer:
                assert await answer.content.readuntil(b"event: synced")
            async with http.get("/readyz") as answer:
                assert "warnings" not in await answer.text()
            await redis.command("FLUSHALL")
            await eventually(lambda: redis.command("EXISTS", "token_blacklist:a"), "what was lost")
        async with opened_windows(url, "") as windows:
            await windows.hit(Window("somebody", 5, 60))
            await windows.probe()
        assert await redis.command("ACL", "LOG") == []
