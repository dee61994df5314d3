"""Tests of the configuration files and compose commands in the documentation."""

import asyncio
import contextlib
import os
import pathlib
import re
import shlex
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import pytest
import yaml

from tests.api.serving import Service
from tests.docs.blocks import ROOT, block, commands
from tests.docs.shell import KEY
from tests.redis_processes import HOST, Certificates, eventually, free_port, make_certificates
from tests.system.service_process import ServiceProcess, ending

NGINX: Final = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
COMPOSE: Final = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
LOGIN_PATH: Final = "/auth/login"

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def test_the_compose_commands_name_what_is_in_the_compose_file() -> None:
    """README.md and deployment.md begin with the same compose commands, and all commands name an existing service."""
    shown = [*commands("docs/deployment.md", "scale"), *commands("docs/deployment.md", "key")]
    assert commands("README.md", "compose") == commands("docs/deployment.md", "compose")
    for command in [*commands("README.md", "compose")[1:], *shown]:
        words = shlex.split(command.text)
        assert words[words.index("docker") + 1] == "compose"
    named = set(
        re.findall(
            r"\b(?:--scale |restart |exec |--no-deps |--index 2 )([\w-]+)", "\n".join(each.text for each in shown)
        )
    )
    assert named == {"revocation"} <= COMPOSE["services"].keys()
    assert COMPOSE["services"]["revocation"]["ports"] == ["127.0.0.1:${REVOCATION_PORT:-8080}:8080"]


def test_the_override_adds_a_secret_to_the_compose_file(tmp_path: pathlib.Path) -> None:
    """The override mounts exactly the secrets that its variables name. Compose, if installed, accepts both files."""
    override = yaml.safe_load(block("docs/deployment.md", "override"))
    service, secrets = override["services"]["revocation"], override["secrets"]
    assert {f"/run/secrets/{name}" for name in service["secrets"]} == {*service["environment"].values()}
    assert secrets.keys() == {*service["secrets"]}
    assert not secrets.keys() & COMPOSE["secrets"].keys()
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        (tmp_path / "override.yml").write_text(block("docs/deployment.md", "override"))
        files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(tmp_path / "override.yml"))
        command = ["docker", "compose", "--project-directory", str(ROOT), *files, "config", "--quiet"]
        subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.asynccontextmanager
async def nginx(directory: pathlib.Path, servers: str, certificates: Certificates) -> AsyncIterator[None]:
    """Run nginx with these `server` blocks and the certificate of the test."""
    assert NGINX is not None
    servers = re.sub(r"(ssl_certificate )\s*\S+;", rf"\g<1>{certificates.certificate};", servers)
    servers = re.sub(r"(ssl_certificate_key )\s*\S+;", rf"\g<1>{certificates.key};", servers)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    path = directory / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log; events {{}}\n"
        f"http {{ access_log {directory}/access.log; {temporary}\n{servers} }}\n"
    )
    process = await asyncio.create_subprocess_exec(NGINX, "-p", str(directory), "-c", str(path))
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def over_tls(port: int, certificates: Certificates) -> AsyncIterator[aiohttp.ClientSession]:
    """Wait until nginx listens, then yield a client of it that trusts the test's certificate authority."""
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=certificates.ca))
    async with aiohttp.ClientSession(f"https://localhost:{port}", connector=connector) as session:

        async def listens() -> bool:
            async with session.get("/healthz"):
                return True

        await eventually(listens, "nginx")
        yield session


@needs_nginx
async def test_nginx_in_front_of_the_service(service: Service, tmp_path: pathlib.Path) -> None:
    """Behind the nginx of deployment.md, a key is required and works, the feed streams, and no query is logged."""
    port, certificates = free_port(), make_certificates(tmp_path)
    servers = block("docs/deployment.md", "service").replace("127.0.0.1:8080", f"127.0.0.1:{service.port}")
    async with (
        nginx(tmp_path, servers.replace("listen 443", f"listen 127.0.0.1:{port}"), certificates),
        over_tls(port, certificates) as http,
    ):
        headers = {"Authorization": f"Bearer {KEY}"}
        async with http.post("/revoke", json={"jti": "a", "expires_in": 60}) as response:
            assert response.status == 401
        async with http.get("/feed", headers=headers) as feed:
            await feed.content.readuntil(b"event: synced")
            async with http.post("/revoke", json={"jti": "a", "expires_in": 60}, headers=headers) as response:
                assert response.status == 200
            await asyncio.wait_for(feed.content.readuntil(b'["jti","a",'), 10)
        async with http.get("/check", params={"jti": "a"}, headers=headers) as response:
            assert (await response.json())["revoked"] is True
    assert "jti=a" not in (tmp_path / "access.log").read_text()


@needs_nginx
async def test_nginx_in_front_of_the_gateway(tmp_path: pathlib.Path) -> None:
    """Behind the nginx of gateway.md, the sixth login gets 429 although each has another forged X-Forwarded-For."""
    front, port, admin_port, certificates = free_port(), free_port(), free_port(), make_certificates(tmp_path)
    upstream = ServiceProcess(tmp_path / "upstream")
    settings = {
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_PORT": str(admin_port),
        "GATEWAY_UPSTREAM_URL": upstream.url,
        "GATEWAY_TRUSTED_PROXIES": HOST,
    }
    gateway = ServiceProcess(tmp_path / "gateway", settings, admin_port, ("-m", "revocation_service", "gateway"))
    servers = block("docs/gateway.md", "gateway").replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    async with ending(upstream, gateway):
        await upstream.start("/healthz")
        await gateway.start()
        async with (
            nginx(tmp_path, servers.replace("listen 443", f"listen 127.0.0.1:{front}"), certificates),
            over_tls(front, certificates) as http,
        ):
            statuses = [await _log_in(http, f"203.0.113.{number}") for number in range(6)]
    assert statuses[5] == 429
    assert 429 not in statuses[:5]
    denied: list[dict[str, Any]] = gateway.events("login_denied")
    assert [each["address"] for each in denied] == [HOST]


async def _log_in(http: aiohttp.ClientSession, claimed_address: str) -> int:
    async with http.post(LOGIN_PATH, data={}, headers={"X-Forwarded-For": claimed_address}) as response:
        return response.status
