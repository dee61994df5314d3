"""The service on a real socket, an HTTP client, and a raw socket for requests that no HTTP client would send."""

import asyncio
import contextlib
import io
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from redis.asyncio import Redis
from redis.exceptions import RedisError
from yarl import URL

from revocation_service.api.app import runner
from revocation_service.http.serving import KEEPALIVE_SECONDS
from revocation_service.settings import Settings, load
from revocation_service.store.key_names import Keyspace
from tests.redis_processes import Process
from tests.settled import HANGS_SECONDS, settle

ANSWER_SECONDS: Final = 30.0
"""Timeout of a response, so long that only a hang exceeds it."""
PIECES_SECONDS: Final = 0.05
"""Pause between two pieces of a request, so that the server reads each by itself."""

KEYS: Final = {
    "checker": "check-aaaaaaaaaaaaaaaaaaaaaaaa",
    "revoker": "revoke-aaaaaaaaaaaaaaaaaaaaaaa",
    "both": "both-aaaaaaaaaaaaaaaaaaaaaaaaa",
    "ops": "admin-aaaaaaaaaaaaaaaaaaaaaaaa",
}
API_KEYS: Final = (
    f"checker={KEYS['checker']}:check,revoker={KEYS['revoker']}:revoke,"
    f"both={KEYS['both']}:check+revoke,ops={KEYS['ops']}:admin"
)

_numbers = itertools.count()


def bearer(name: str) -> dict[str, str]:
    """Return an Authorization header with the API key of this name."""
    return {"Authorization": f"Bearer {KEYS[name]}"}


@dataclass(frozen=True)
class Answer:
    """A complete HTTP response."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed as strict JSON: NaN and Infinity are errors."""
        return json.loads(self.body, parse_constant=_no_constant)

    @property
    def problem(self) -> str:
        """The `code` of a problem. The property asserts that the response is one, in the format of RFC 9457."""
        assert self.headers["Content-Type"] == "application/problem+json"
        members = self.json
        assert members.keys() == {"type", "title", "status", "detail", "code"}
        assert members["status"] == self.status
        assert all(isinstance(members[name], str) and members[name] for name in ("type", "title", "detail", "code"))
        code: str = members["code"]
        return code


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@dataclass
class Service:
    """A running service, and a client that sends the API key of `ops` if the service has API keys."""

    url: URL
    settings: Settings
    app: web.Application
    session: aiohttp.ClientSession
    redis: Redis
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def keyspace(self) -> Keyspace:
        return Keyspace(self.settings.store.key_prefix)

    @property
    def port(self) -> int:
        assert self.url.port is not None
        return self.url.port

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        """Send one request. `headers` are added to those of this client, or replace them."""
        headers = CIMultiDict(self.headers)
        headers.update(options.pop("headers", None) or {})
        url = URL(str(self.url).rstrip("/") + path, encoded=True)
        async with self.session.request(method, url, headers=headers, allow_redirects=False, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, query: Mapping[str, str] | None = None, **options: Any) -> Answer:
        return await self.request("GET", path, params=query, **options)

    async def post(self, path: str, body: object, **options: Any) -> Answer:
        """POST a JSON body."""
        return await self.request("POST", path, json=body, **options)

    async def form(self, path: str, fields: Mapping[str, str], **options: Any) -> Answer:
        """POST a form."""
        return await self.request("POST", path, data=dict(fields), **options)

    async def send(self, path: str, body: bytes, content_type: str = "application/json", **options: Any) -> Answer:
        """POST this body as it is."""
        headers = {"Content-Type": content_type, **options.pop("headers", {})}
        return await self.request("POST", path, data=io.BytesIO(body), headers=headers, **options)

    async def revoke(self, body: object, **options: Any) -> Any:
        """Revoke, assert that it succeeds, and return the body of the response."""
        answer = await self.post("/revoke", body, **options)
        assert answer.status == 200, answer
        return answer.json

    async def check(self, body: object, **options: Any) -> Any:
        """Check, assert that it succeeds, and return the body of the response."""
        answer = await self.post("/check", body, **options)
        assert answer.status == 200, answer
        return answer.json

    async def metric(self, sample: str) -> float:
        """Return the value of one sample of /metrics, or 0 if there is no such sample."""
        lines = (await self.get("/metrics")).body.decode().splitlines()
        return next((float(line.removeprefix(f"{sample} ")) for line in lines if line.startswith(f"{sample} ")), 0.0)

    async def blacklist(self, jti: str, seconds: int, value: str = "1") -> None:
        """Write a `token_blacklist:` key to Redis, as a foreign writer does."""
        untyped: Any = self.redis
        await untyped.execute_command("SETEX", f"{self.settings.store.key_prefix}token_blacklist:{jti}", seconds, value)

    async def stored_keys(self) -> set[str]:
        """Return the keys of the records under this service's prefix, without those of the change log and the state."""
        keys = [key async for key in self.redis.scan_iter(f"{self.settings.store.key_prefix}*")]
        return {key for key in keys if self.keyspace.record(key.encode()) is not None}

    async def log_length(self) -> int:
        """Return the number of changes in the change log. Its first entry may be no change."""
        entries: Any = await self.redis.xrange(self.keyspace.change_log)
        return sum("r" in fields for _, fields in entries)


Start = Callable[..., Awaitable[Service]]
"""Starts a service: `await start(API_KEYS="…")`. The variables are named without `REVOCATION_`."""


def variables(server: Process, **given: str) -> dict[str, str]:
    """Return a service's environment: this Redis, a fresh key prefix, and `given`, named without `REVOCATION_`."""
    prefix = f"web{os.getpid()}-{next(_numbers)}:"
    named = {"REDIS_URL": server.url, "KEY_PREFIX": prefix, **given}
    return {f"REVOCATION_{name}": value for name, value in named.items()}


@contextlib.asynccontextmanager
async def serving(
    server: Process, host: str = "127.0.0.1", keepalive_seconds: float = KEEPALIVE_SECONDS, **given: str
) -> AsyncIterator[Service]:
    """Run the service in this process, on a free port of `host`, even if the settings would refuse that host."""
    settings = load(variables(server, **given)).settings
    server_runner = runner(settings, keepalive_seconds)
    await _settled(server, settings.store.key_prefix)
    await server_runner.setup()
    try:
        await web.TCPSite(server_runner, host, 0).start()
        url = URL.build(scheme="http", host=_reachable(host), port=server_runner.addresses[0][1])
        headers = {} if settings.protected else bearer("ops")
        async with (
            server.client() as client,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)) as session,
        ):
            yield Service(url, settings, server_runner.app, session, client, headers)
    finally:
        await server_runner.cleanup()


async def _settled(server: Process, prefix: str) -> None:
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(HANGS_SECONDS), server.client() as client:
            await settle(client, prefix)


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


@dataclass(frozen=True)
class Raw:
    """The bytes that came back over a raw socket."""

    data: bytes
    closed: bool
    """Whether the server closed the connection before the client stopped reading."""

    @property
    def statuses(self) -> list[int]:
        """The statuses of all complete responses, in order, without 1xx."""
        return _statuses(self.data)

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers of the first response."""
        lines = self.data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return CIMultiDict((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))


def _statuses(data: bytes) -> list[int]:
    found = []
    while data.startswith(b"HTTP/"):
        head, separator, data = data.partition(b"\r\n\r\n")
        fields = (line.lower().partition(b":") for line in head.split(b"\r\n"))
        length = next((int(value) for name, _, value in fields if name == b"content-length"), 0)
        if not separator or len(data) < length:
            break
        data = data[length:]
        found.append(int(head.split()[1]))
    return [status for status in found if status >= 200]


async def talk(
    service: Service, *pieces: bytes, answers: int = 1, half_close: bool = False, seconds: float = ANSWER_SECONDS
) -> Raw:
    """Send each piece as it is. Read until `answers` responses came, the server closed, or `seconds` passed."""
    return await talk_to(
        str(service.url.host), service.port, *pieces, answers=answers, half_close=half_close, seconds=seconds
    )


async def talk_to(
    host: str,
    port: int,
    *pieces: bytes,
    answers: int = 1,
    half_close: bool = False,
    seconds: float = ANSWER_SECONDS,
    source: str | None = None,
) -> Raw:
    """Do what `talk` does, with any server, and from the local address `source` if it is given."""
    reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0) if source else None)
    received = b""
    closed = False
    try:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(PIECES_SECONDS)
            writer.write(piece)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(seconds):
            while not closed and len(_statuses(received)) < answers:
                data = await reader.read(1 << 16)
                received += data
                closed = not data
    except ConnectionError:
        closed = True
    except TimeoutError:
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return Raw(received, closed)


def request_bytes(
    line: str, *headers: str, body: bytes = b"", key: str | None = KEYS["ops"], host: str = "localhost"
) -> bytes:
    """Return a request as bytes: the line, Host, the API key, the given headers, and the body with its length."""
    lines = [line, f"Host: {host}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += headers
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body
