"""Tests that run the commands of the documentation as printed."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiohttp
import pytest

from bench.__main__ import PARTS
from revocation_service.store.windows import Window
from tests.api.serving import Service
from tests.docs.blocks import ROOT, Command, commands
from tests.docs.shell import BIN, KEY, answered, shape, typed
from tests.redis_processes import HOST, Process, eventually, free_port, standalone
from tests.settled import settle_url
from tests.store.test_windows import opened_windows
from tests.system.service_process import serving
from tests.system.tokens import mint

END_SECONDS = 40.0

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are for curl, which is not here")


@contextlib.asynccontextmanager
async def running(
    command: Command, home: pathlib.Path, probe: str, *words: str, **settings: str
) -> AsyncIterator[dict[str, Any]]:
    """Run a server, yield the JSON of its probe once that answers 200, and finally end the server with SIGTERM.

    `words` are appended to the command; `settings` are its environment.
    """
    line = f"exec env {command.text.replace('.venv/bin/', f'{BIN}/')} {shlex.join(words)}"
    path = f"{BIN}:/usr/local/bin:/usr/bin:/bin"
    no_drain = {"REVOCATION_DRAIN_SECONDS": "0", "GATEWAY_DRAIN_SECONDS": "0"}
    environment = {"PATH": path, "HOME": str(home), "XDG_STATE_HOME": str(home), **no_drain, **settings}
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        line,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:

        async def ready() -> dict[str, Any] | None:
            assert process.returncode is None, f"{line} ended with {process.returncode}"
            with contextlib.suppress(aiohttp.ClientError):
                async with aiohttp.ClientSession() as http, http.get(probe) as response:
                    return await response.json() if response.status == 200 else None
            return None

        yield await eventually(ready, line, 40)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await asyncio.wait_for(process.wait(), END_SECONDS)


async def check_all(shown: Sequence[Command], port: int, home: pathlib.Path) -> dict[str, Any]:
    """Run the commands in order, and return the answers by command. Each must be as documented, except times."""
    answers = {}
    for command in shown:
        answers[command.text] = await answered(command, port, home)
        if command.printed:
            assert shape(answers[command.text]) == shape(json.loads(command.printed)), command.text
    return answers


def answer_to(answers: Mapping[str, Any], words: str) -> Any:
    """Return the answer to the one command that contains these words."""
    (answer,) = (answer for command, answer in answers.items() if words in command)
    return answer


async def test_one_minute_to_a_revoked_token(tmp_path: pathlib.Path) -> None:
    """`make run` needs no settings, and the first commands of the README print what is documented."""
    (make_run,), shown = commands("README.md", "run"), commands("README.md", "minute")
    port = free_port()
    variables = (f"PORT={port}", f"BIN={BIN}", "--old-file=.venv/.installed")
    async with running(make_run, tmp_path, f"http://{HOST}:{port}/readyz", *variables):
        assert len(await check_all(shown, port, tmp_path)) == 3


async def test_the_http_api(service: Service, tmp_path: pathlib.Path) -> None:
    """Each `curl` example of http-api.md prints what that page shows."""
    assert len(await check_all(commands("docs/http-api.md", "api"), service.port, tmp_path)) == 10


async def test_the_feed(service: Service, tmp_path: pathlib.Path) -> None:
    """The documented command for the feed prints a heartbeat, the snapshot with the revocation, and `synced`."""
    service.headers["Authorization"] = f"Bearer {KEY}"
    await service.revoke({"jti": "a", "expires_in": 60})
    (command,) = commands("docs/http-api.md", "feed")
    line = command.text.replace("localhost:8080", f"localhost:{service.port}")
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", f"exec {line}", env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        told = await asyncio.wait_for(process.stdout.readuntil(b"event: synced"), END_SECONDS)
    finally:
        process.kill()
        await process.wait()
    assert re.findall(rb"event: (\w+)", told) == [b"heartbeat", b"snapshot", b"synced"]
    assert b'["jti","a",' in told


@pytest.mark.parametrize("shell", ["bash", "zsh"])
async def test_the_key_goes_into_curls_file(shell: str, tmp_path: pathlib.Path) -> None:
    """The command that asks for the key writes it, unchanged, to a private file for curl, and prints nothing."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    umask, asks = commands("docs/operations.md", "key")
    assert not await typed(f"{umask.text}\n{asks.text}", tmp_path, answer=f"{KEY}\\=\n", shell=shell)
    written = tmp_path / ".revocation.curl"
    assert written.read_text() == f'header = "Authorization: Bearer {KEY}\\="\n'
    assert written.stat().st_mode & 0o077 == 0


async def test_the_operators_tasks(service: Service, tmp_path: pathlib.Path) -> None:
    """The operator's commands print what is documented, and revoke by each of the five claims."""
    (tmp_path / "token.txt").write_text(mint(jti="readme") + "\n")
    answers = await check_all(commands("docs/operations.md", "tasks"), service.port, tmp_path)
    revocations = [answer["claim"] for answer in answers.values() if answer.get("result") == "revoked"]
    assert revocations == ["jti", "sub", "sid", "client_id", "all"]
    assert len(answers) == len(revocations) + 2
    found = answer_to(answers, "/revocations?claim=sub&value=alice")
    assert (found["revoked_by"], found["reason"]) == ("ops", "phone lost")
    assert answer_to(answers, "/readyz")["status"] == "ready"


async def test_the_settings_can_be_printed(tmp_path: pathlib.Path) -> None:
    """`check-config` prints the settings of the service and of the gateway, and accepts the entry of `new-key`."""
    (check,), (new_key,) = commands("docs/configuration.md", "check"), commands("docs/configuration.md", "key")
    entry = (await typed(new_key.text, tmp_path)).split()[-1]
    assert entry.startswith("billing=sha256:")
    printed = await typed(check.text, tmp_path, environment={"REVOCATION_API_KEYS": entry})
    assert "REVOCATION_API_KEYS=billing=***" in printed
    (gateway,) = commands("docs/gateway.md", "check")
    assert "GATEWAY_LOGIN_LIMIT=5/minute  (default)" in await typed(gateway.text, tmp_path)


async def test_the_gateway_starts_and_counts_in_redis(redis: Process, tmp_path: pathlib.Path) -> None:
    """The command of gateway.md, with the ports of this test, starts a gateway whose components are all `ok`."""
    (told,) = commands("docs/gateway.md", "start")
    port, admin_port = free_port(), free_port()
    async with serving(tmp_path / "upstream", probe="/healthz") as upstream:
        line = told.text.replace("9000", str(upstream.port)).replace("6379", str(redis.port))
        assert line.count(str(redis.port)) == line.count(str(upstream.port)) == 1
        settings = {"GATEWAY_PORT": str(port), "GATEWAY_ADMIN_PORT": str(admin_port)}
        probe = f"http://{HOST}:{admin_port}/readyz"
        async with running(Command(line, ""), tmp_path, probe, **settings) as answer:
            assert {part["status"] for part in answer["components"].values()} == {"ok"}


async def test_the_first_step_of_migrating(redis: Process, tmp_path: pathlib.Path) -> None:
    """The commands of the first step of migrating.md start instances that show the warning `incomplete`."""
    new_key, export, *serve = commands("docs/migrating.md", "serve")
    entry = (await typed(new_key.text, tmp_path)).split()[-1]
    (tmp_path / "api_keys").write_text(f"{entry}\n")
    exported = export.text.replace("6379", str(redis.port)).replace("=api_keys", f"={tmp_path}/api_keys")
    settings = dict(word.partition("=")[::2] for word in shlex.split(exported)[1:])
    settings["REVOCATION_KEY_PREFIX"] = "migrating:"
    await settle_url(redis.url, "migrating:")
    async with contextlib.AsyncExitStack() as stack:
        for command in serve:
            port = free_port()
            line = re.sub(r"REVOCATION_PORT=\d+", f"REVOCATION_PORT={port}", command.text)
            probe = f"http://{HOST}:{port}/readyz"
            answer = await stack.enter_async_context(running(Command(line, ""), tmp_path, probe, **settings))
            assert answer["components"]["mirror"]["warnings"] == ["incomplete"]


async def test_the_user_of_its_own_in_redis_may_do_all_that_is_done(tmp_path: pathlib.Path) -> None:
    """The Redis user of deployment.md may do all that requests, the feed, a restore and the rate limit need."""
    (example,) = commands("docs/deployment.md", "acl")
    words = shlex.split(example.text.replace("\\\n", " "))
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


async def test_client_and_service_can_be_installed(tmp_path: pathlib.Path) -> None:
    """A dry run of each documented `pip install` succeeds, and would install revocation-client."""
    options = "--dry-run --no-deps --no-index --no-build-isolation --disable-pip-version-check"
    for command in (*commands("README.md", "install"), *commands("docs/deployment.md", "install")):
        said = await typed(f"python -m {command.text} {options}", tmp_path, directory=ROOT)
        assert "Would install revocation-client" in said


def test_make_has_the_targets_of_the_documentation() -> None:
    """`make demo` and `make secrets` are targets. test_demo.py and the docker tests show what they do."""
    shown = [*commands("README.md", "demo"), commands("README.md", "compose")[0]]
    for command in [*shown, commands("docs/deployment.md", "compose")[0]]:
        done = subprocess.run([*shlex.split(command.text), "--dry-run"], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


async def test_the_resolvers_option_is_that_of_the_image(tmp_path: pathlib.Path) -> None:
    """The documented command exports the `RES_OPTIONS` that the Dockerfile sets."""
    (command,) = commands("docs/deployment.md", "resolver")
    printed = await typed(f'{command.text}\nprintf %s "$RES_OPTIONS"', tmp_path)
    assert f'RES_OPTIONS="{printed}"' in (ROOT / "Dockerfile").read_text()


def test_the_benchmarks_commands_name_what_there_is() -> None:
    """Each part of the benchmark has a command in benchmarks.md, and no command names another part."""
    shown = [
        *commands("docs/benchmarks.md", "checks"),
        *commands("docs/benchmarks.md", "replication"),
        *commands("docs/benchmarks.md", "mirror"),
        *commands("docs/benchmarks.md", "application"),
        *commands("docs/benchmarks.md", "gateway"),
    ]
    assert {command.text.removeprefix(".venv/bin/python -m bench ") for command in shown} == {*PARTS}
