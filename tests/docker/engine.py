"""The container engine, for tests: its commands, the image under test, the compose file as an operator runs it."""

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
    """There is no engine that answers, or no compose; the message says which."""


def run(
    *command: str,
    seconds: float = COMMAND_SECONDS,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """A command in the repository; one that fails shows what it wrote."""
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
    """A docker command."""
    return run("docker", *arguments, check=check)


def compose_command() -> tuple[str, ...]:
    """How compose is called here.

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
    """The image that a Dockerfile makes, under a name of its own that goes afterwards."""
    name = f"revocation-test:{uuid4().hex[:12]}"
    command = ("docker", "build", "--quiet", "--tag", name, "--file", dockerfile, ".")
    built = run(*command, seconds=BUILD_SECONDS).stdout.strip()
    try:
        yield name
    finally:
        docker("image", "rm", "--force", name, built, check=False)  # compose builds one of its own under that name


@contextlib.contextmanager
def container(image: str, *command: str, options: Sequence[str] = ()) -> Iterator[str]:
    """The id of a container in the background, which is removed afterwards whatever became of it."""
    identity = docker("run", "--detach", *options, image, *command).stdout.strip()
    try:
        yield identity
    finally:
        docker("rm", "--force", "--volumes", identity)


def inspect(identity: str) -> dict[str, Any]:
    """What the engine knows of a container."""
    (found,) = json.loads(docker("inspect", identity).stdout)
    assert isinstance(found, dict)
    return found


def address(identity: str) -> str:
    """Where the host reaches a container's port 8080."""
    return docker("port", identity, "8080/tcp").stdout.splitlines()[0]


async def answering(url: str, status: int = 200) -> None:
    """Wait until a URL is answered so; a published port takes connections before anything serves behind it."""

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
    """What is built from this repository."""

    service: str
    main_api: str


@dataclass(frozen=True)
class Stack:
    """The compose file under a project name of its own, with secrets, ports and images of its own."""

    project: str
    images: Images
    secrets: pathlib.Path
    port: int
    gateway_port: int
    spare_ports: int = 0
    """Ports after `port` that further instances of the service may use."""

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
        """The variables of an operator's shell; none that this machine happens to have set reaches the containers."""
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
        """A compose command; a .env file of the operator's is left out."""
        command = (*compose_command(), "--env-file", os.devnull, *arguments)
        return run(*command, environment=self.environment, check=check)

    def up(self) -> None:
        """Start what does not run, and wait until everything is healthy."""
        self.compose("up", "--detach", "--wait")

    def container(self, service: str) -> str:
        """The id of a service's container, also of one that has ended."""
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """What a command in the service's container writes."""
        ran = docker("exec", self.container(service), *command, check=check)
        return (ran.stdout + ran.stderr).strip()

    def log(self, service: str) -> str:
        """All that the service wrote."""
        written = docker("logs", self.container(service))
        return written.stdout + written.stderr


@dataclass(frozen=True)
class Running:
    """The project, up, and what `deploy/make-secrets` printed for it."""

    stack: Stack
    password: str
    """Of alice, a user of the main API."""
    key: str
    """The operators' API key."""


@contextlib.contextmanager
def project(images: Images, secrets: pathlib.Path, *, spare_ports: int = 0) -> Iterator[Stack]:
    """A project that is not up yet; afterwards nothing of it is left, its volume included."""
    stack = Stack(f"revocation-test-{uuid4().hex[:12]}", images, secrets, free_port(), free_port(), spare_ports)
    try:
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
