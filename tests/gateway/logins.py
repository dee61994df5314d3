"""Run a real FastAPI login application, and log in to it through a gateway."""

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
    """The response to a login attempt."""

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
    """The login application, reached directly and not through a gateway."""

    url: str
    session: aiohttp.ClientSession

    async def seen(self) -> list[str]:
        """Return the usernames of all attempts since the last `forget`, in order."""
        async with self.session.get(f"{self.url}/seen") as answer:
            names: list[str] = await answer.json()
            return names

    async def forget(self) -> None:
        async with self.session.post(f"{self.url}/forget") as answer:
            assert answer.status == 200


@contextlib.asynccontextmanager
async def login_application() -> AsyncIterator[LoginApplication]:
    """Run `login_app` under uvicorn in its own process."""
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
    """Send a login attempt, and return the response."""
    if not options.keys() & {"data", "json"}:
        options["data"] = FORM
    method = options.pop("method", "POST")
    async with session.request(method, f"{url}{path}", **options) as answer:
        raw = await answer.read()
        body = await answer.json(content_type=None) if "json" in answer.content_type else raw
        return Told(answer.status, answer.headers, body)
