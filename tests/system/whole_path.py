"""Run the whole path in tests, each part as a real process: gateway, main API, service and Redis."""

import contextlib
import json
import pathlib
import random
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from pwdlib.hashers.argon2 import Argon2Hasher

from tests.redis_processes import HOST, Process, free_port, standalone
from tests.settled import settle_url
from tests.system.service_process import Answer, ServiceProcess, ask, ending

MAIN_API = pathlib.Path(__file__).parents[2] / "examples" / "main_api"
PASSWORD = "correct horse battery staple"
ALICE = {"username": "alice", "password": PASSWORD}
SECRET = "whole-path-signing-secret-0123456789"
API_KEY = "whole-path-api-key-0123456789"

LOGIN = "/api/v1/auth/login"
REFRESH = "/api/v1/auth/refresh"
LOGOUT = "/api/v1/auth/logout"
LOGOUT_ALL = "/api/v1/auth/logout-all"
ME = "/api/v1/users/me"


@dataclass(frozen=True)
class Path:
    """The four parts, and the requests that users send to them."""

    redis: Process
    service: ServiceProcess
    main_api: ServiceProcess
    gateway: ServiceProcess
    """The gateway. Its `url` leads to its admin port, which has the probes."""
    url: str
    """The URL of the gateway for users."""
    http: aiohttp.ClientSession

    async def log_in(self, http: aiohttp.ClientSession | None = None, **form: str) -> Answer:
        """Try to log in, by default with the right password."""
        return await ask(http or self.http, "POST", self.url + LOGIN, data=ALICE | form)

    async def tokens(self) -> dict[str, Any]:
        """Log in, and return the tokens."""
        answer = await self.log_in()
        assert answer.status == 200, answer
        tokens: dict[str, Any] = answer.body
        return tokens

    async def me(self, tokens: Mapping[str, Any]) -> Answer:
        """Call the protected route with the access token."""
        return await ask(self.http, "GET", self.url + ME, headers=bearer(tokens))

    async def log_out(self, tokens: Mapping[str, Any], route: str = LOGOUT) -> Answer:
        """Log out, by one of the logout routes."""
        return await ask(self.http, "POST", self.url + route, headers=bearer(tokens))

    async def refresh(self, tokens: Mapping[str, Any]) -> Answer:
        """Exchange the refresh token for new tokens."""
        return await ask(self.http, "POST", self.url + REFRESH, data={"refresh_token": tokens["refresh_token"]})


def bearer(tokens: Mapping[str, Any]) -> dict[str, str]:
    """Return the Authorization header with the access token."""
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def claims_of(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims of the access token, unverified."""
    payload = tokens["access_token"].split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


@contextlib.asynccontextmanager
async def whole_path(directory: pathlib.Path, **settings: str) -> AsyncIterator[Path]:
    """Run all four parts, and yield them when they are ready. The user's password has a cheap hash."""
    async with standalone() as redis:
        service = ServiceProcess(directory / "service", _service(redis))
        main_api, port = _main_api(directory / "main-api", service, settings)
        front = free_port()
        gateway = _gateway(directory / "gateway", redis, port, front, settings)
        async with ending(gateway, main_api, service), client_from(HOST) as http:
            await settle_url(redis.url)
            for part in (service, main_api, gateway):
                part.spawn()
            await service.until("/readyz")
            await main_api.until("/healthz")
            await gateway.until("/readyz")
            yield Path(redis, service, main_api, gateway, f"http://{HOST}:{front}", http)


def _service(redis: Process) -> dict[str, str]:
    return {
        "REVOCATION_REDIS_URL": redis.url,
        "REVOCATION_API_KEYS": f"main-api={API_KEY}:check+revoke",
        "REVOCATION_JWT_SECRET": SECRET,
        "REVOCATION_DRAIN_SECONDS": "0",
    }


def _main_api(
    directory: pathlib.Path, service: ServiceProcess, settings: Mapping[str, str]
) -> tuple[ServiceProcess, int]:
    cheap = Argon2Hasher(time_cost=1, memory_cost=64).hash(PASSWORD)
    own = {
        "MAIN_API_JWT_SECRET": SECRET,
        "MAIN_API_USERS": f"alice={cheap}",
        "REVOCATION_URL": service.url,
        "REVOCATION_API_KEY": API_KEY,
        **_starting("MAIN_API_", settings),
    }
    port = free_port()
    where = ("--app-dir", str(MAIN_API), "--host", HOST, "--port", str(port))
    command = ("-m", "uvicorn", "--factory", "main_api.app:create_app", *where)
    return ServiceProcess(directory, own, port, command), port


def _gateway(
    directory: pathlib.Path, redis: Process, upstream: int, front: int, settings: Mapping[str, str]
) -> ServiceProcess:
    admin = free_port()
    own = {
        "GATEWAY_PORT": str(front),
        "GATEWAY_ADMIN_PORT": str(admin),
        "GATEWAY_UPSTREAM_URL": f"http://{HOST}:{upstream}",
        "GATEWAY_REDIS_URL": redis.url,
        "GATEWAY_DRAIN_SECONDS": "0",
        **_starting("GATEWAY_", settings),
    }
    return ServiceProcess(directory, own, admin, ("-m", "revocation_service", "gateway"))


def _starting(prefix: str, settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name.startswith(prefix)}


def client_address() -> str:
    """Return a random loopback address. To the gateway, it is a client that hardly any other test uses."""
    return f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"


@contextlib.asynccontextmanager
async def client_from(address: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a session that connects from a loopback address. On Linux, all of 127.0.0.0/8 is loopback."""
    connector = aiohttp.TCPConnector(limit=0, local_addr=(address, 0))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as http:
        yield http
