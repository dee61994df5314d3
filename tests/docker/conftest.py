"""What the tests share that need a container engine; where none answers they are skipped, and say why."""

from collections.abc import Iterator

import pytest

from tests.docker.engine import NoEngineError, built_image, require_engine


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
