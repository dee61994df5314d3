"""What the tests share that need a container engine; where none answers they are skipped, and say why."""

from collections.abc import Iterator

import pytest

from tests.docker.engine import Images, NoEngineError, Running, Stack, built_image, project, require_engine, run


@pytest.fixture(scope="session")
def engine() -> None:
    """There is an engine."""
    try:
        require_engine()
    except NoEngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def image(engine: None) -> Iterator[str]:
    """The image, built from the Dockerfile."""
    with built_image() as name:
        yield name


@pytest.fixture(scope="session")
def images(image: str) -> Iterator[Images]:
    """All that the compose file builds."""
    with built_image("examples/main_api/Dockerfile") as main_api:
        yield Images(image, main_api)


@pytest.fixture(scope="session")
def running(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """As an operator does it: the secrets are made, then everything is started."""
    with project(images, tmp_path_factory.mktemp("compose") / "secrets") as stack:
        printed = run("deploy/make-secrets", environment=stack.environment).stdout
        password, key = (line.split()[-1] for line in printed.splitlines()[-2:])
        stack.up()
        yield Running(stack, password, key)


@pytest.fixture
def stack(running: Running) -> Stack:
    """The project."""
    return running.stack
