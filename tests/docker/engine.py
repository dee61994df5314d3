"""Helpers for tests with a container engine: its commands, the images under test, and the compose project."""

import contextlib
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aiohttp

from tests.redis_processes import HOST, eventually, free_port

REPOSITORY = pathlib.Path(__file__).parents[2]
BUILD_SECONDS = 600
COMMAND_SECONDS = 180


class NoEngineError(Exception):
    """No container engine answers, or compose is missing. The message says which."""


def run(
    *command: str,
    seconds: float = COMMAND_SECONDS,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository. If it fails, raise AssertionError with its output unless `check` is false."""
    ran = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert not check or ran.returncode == 0, f"{command}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a docker command."""
    return run("docker", *arguments, check=check)


def compose_command() -> tuple[str, ...]:
    """Return the command that runs compose on this machine.

    Raises NoEngineError.
    """
    for command in (("docker", "compose"), ("docker-compose",)):
        with contextlib.suppress(FileNotFoundError):
            if run(*command, "version", check=False).returncode == 0:
                return command
    raise NoEngineError("neither `docker compose` nor `docker-compose` is there")


def require_engine() -> None:
    """Return if an engine answers.

    Raises NoEngineError.
    """
    try:
        answer = run("docker", "version", "--format", "{{.Server.Version}}", seconds=30, check=False)
    except FileNotFoundError:
        raise NoEngineError("there is no docker command") from None
    except subprocess.TimeoutExpired:
        raise NoEngineError("docker version did not answer within 30 s") from None
    if answer.returncode:
        raise NoEngineError(f"no container engine answers: {answer.stderr.strip()}")
    compose_command()


@contextlib.contextmanager
def built_image(dockerfile: str = "Dockerfile") -> Iterator[str]:
    """Build the image of a Dockerfile under a unique name, yield the name, and remove the image afterwards."""
    name = f"revocation-test:{uuid4().hex[:12]}"
    command = ("docker", "build", "--quiet", "--tag", name, "--file", dockerfile, ".")
    built = run(*command, seconds=BUILD_SECONDS).stdout.strip()
    try:
        yield name
    finally:
        docker("image", "rm", "--force", name, built, check=False)  # compose may have given the name to another image


@contextlib.contextmanager
def container(image: str, *command: str, options: Sequence[str] = ()) -> Iterator[str]:
    """Run a container in the background, yield its id, and remove it afterwards, even if it has failed."""
    identity = docker("run", "--detach", *options, image, *command).stdout.strip()
    try:
        yield identity
    finally:
        docker("rm", "--force", "--volumes", identity)


def inspect(identity: str) -> dict[str, Any]:
    """Return what `docker inspect` shows of a container."""
    (found,) = json.loads(docker("inspect", identity).stdout)
    assert isinstance(found, dict)
    return found


def address(identity: str) -> str:
    """Return the address on the host that leads to a container's port 8080."""
    return docker("port", identity, "8080/tcp").stdout.splitlines()[0]


async def answering(url: str, status: int = 200) -> None:
    """Wait until a URL answers with this status. A published port accepts connections before a server is ready."""

    async def answers() -> bool:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.get(url) as response:
                    return response.status == status
            except aiohttp.ClientError as error:
                raise ConnectionError from error

    await eventually(answers, f"{status} from {url}", 60)


@dataclass(frozen=True)
class Images:
    """The names of the images that are built from this repository."""

    service: str
    main_api: str


@dataclass(frozen=True)
class Stack:
    """A compose project with a unique name, and with its own secrets, ports and images."""

    project: str
    images: Images
    secrets: pathlib.Path
    port: int
    gateway_port: int
    spare_ports: int = 0
    """Number of ports after `port` that further instances of the service may use."""

    @property
    def url(self) -> str:
        """URL of the service, for operators."""
        return f"http://{HOST}:{self.port}"

    @property
    def gateway_url(self) -> str:
        """URL of the gateway, for users."""
        return f"http://{HOST}:{self.gateway_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of compose commands, without the settings that this machine may have for our containers."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("REVOCATION_", "GATEWAY_", "MAIN_API_", "COMPOSE_"))
        }
        return inherited | {
            "COMPOSE_PROJECT_NAME": self.project,
            "REVOCATION_IMAGE": self.images.service,
            "MAIN_API_IMAGE": self.images.main_api,
            "REVOCATION_PORT": f"{self.port}-{self.port + self.spare_ports}" if self.spare_ports else str(self.port),
            "GATEWAY_PUBLISHED": f"{HOST}:{self.gateway_port}",
            "REVOCATION_SECRETS_DIR": str(self.secrets),
        }

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a compose command in this project, without reading a .env file."""
        command = (*compose_command(), "--env-file", os.devnull, *arguments)
        return run(*command, environment=self.environment, check=check)

    def up(self) -> None:
        """Start what does not run, and wait until everything is healthy."""
        self.compose("up", "--detach", "--wait")

    def container(self, service: str) -> str:
        """Return the id of a service's container, even if the container has ended."""
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in a service's container, and return its output."""
        ran = docker("exec", self.container(service), *command, check=check)
        return (ran.stdout + ran.stderr).strip()

    def log(self, service: str) -> str:
        """Return all output of a service's container."""
        written = docker("logs", self.container(service))
        return written.stdout + written.stderr


@dataclass(frozen=True)
class Running:
    """A running project, and the credentials that `deploy/make-secrets` printed for it."""

    stack: Stack
    password: str
    """The password of alice, a user of the main API."""
    key: str
    """The operators' API key."""


@contextlib.contextmanager
def project(images: Images, secrets: pathlib.Path, *, spare_ports: int = 0) -> Iterator[Stack]:
    """Yield a project that is not started yet. Afterwards remove its containers, networks and volumes."""
    stack = Stack(f"revocation-test-{uuid4().hex[:12]}", images, secrets, free_port(), free_port(), spare_ports)
    try:
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
