"""Logins through a gateway to a real FastAPI application, and what each was told of its limit."""

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from revocation_service.store.embedded_child import dying_with_parent
from tests.gateway.serving import ROOT
from tests.redis_processes import HOST, eventually, free_port
from tests.system.service_process import START_SECONDS

FORM = {"username": "alice", "password": "wrong"}


@dataclass(frozen=True)
class Told:
    """A response: its status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def code(self) -> str | None:
        return self.body.get("code") if isinstance(self.body, dict) else None

    @property
    def remaining(self) -> int:
        return int(self.headers["X-RateLimit-Remaining"])


@dataclass(frozen=True)
class LoginApplication:
    """The application, asked directly."""

    url: str
    session: aiohttp.ClientSession

    async def seen(self) -> list[str]:
        """The usernames that it was given, in order, since `forget`."""
        async with self.session.get(f"{self.url}/seen") as answer:
            names: list[str] = await answer.json()
            return names

    async def forget(self) -> None:
        async with self.session.post(f"{self.url}/forget") as answer:
            assert answer.status == 200


@contextlib.asynccontextmanager
async def login_application() -> AsyncIterator[LoginApplication]:
    """`login_app` under uvicorn, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.gateway.login_app:app", "--host", HOST, "--port", str(port)]
    command += ["--no-proxy-headers", "--log-level", "critical"]
    process = subprocess.Popen(dying_with_parent(command), cwd=ROOT, start_new_session=True)
    try:
        async with aiohttp.ClientSession() as session:
            application = LoginApplication(f"http://{HOST}:{port}", session)

            async def answers() -> bool:
                return await application.seen() == []

            await eventually(answers, "the login application", START_SECONDS)
            yield application
    finally:
        process.kill()
        process.wait(20)


async def log_in(session: aiohttp.ClientSession, url: str, path: str = "/auth/login", **options: Any) -> Told:
    """One attempt."""
    if not options.keys() & {"data", "json"}:
        options["data"] = FORM
    method = options.pop("method", "POST")
    async with session.request(method, f"{url}{path}", **options) as answer:
        raw = await answer.read()
        body = await answer.json(content_type=None) if "json" in answer.content_type else raw
        return Told(answer.status, answer.headers, body)
