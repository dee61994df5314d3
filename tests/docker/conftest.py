"""Fixtures of the tests that need a container engine. If none answers, they skip the tests and say why."""

from collections.abc import Iterator

import pytest

from tests.docker.engine import Images, NoEngineError, Running, Stack, built_image, project, require_engine, run


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips the test unless a container engine answers."""
    try:
        require_engine()
    except NoEngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def image(engine: None) -> Iterator[str]:
    """The image of the service, built from the Dockerfile."""
    with built_image() as name:
        yield name


@pytest.fixture(scope="session")
def images(image: str) -> Iterator[Images]:
    """The images that the compose file builds."""
    with built_image("examples/main_api/Dockerfile") as main_api:
        yield Images(image, main_api)


@pytest.fixture(scope="session")
def running(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The running compose project. As an operator would, it makes the secrets, then starts everything."""
    with project(images, tmp_path_factory.mktemp("compose") / "secrets") as stack:
        printed = run("deploy/make-secrets", environment=stack.environment).stdout
        password, key = (line.split()[-1] for line in printed.splitlines()[-2:])
        stack.up()
        yield Running(stack, password, key)


@pytest.fixture
def stack(running: Running) -> Stack:
    """The compose project of `running`."""
    return running.stack
