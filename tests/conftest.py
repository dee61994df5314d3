"""What holds for every test of the project."""

from collections.abc import Iterator

import pytest

from tests.compiled import outdated
from tests.resolver import Resolver, resolving


def pytest_configure() -> None:
    """Test what is written, or nothing."""
    name = outdated()
    if name is not None:
        raise pytest.UsageError(f"{name} was compiled of an older source than is there: make install")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """The system's, for the time of the test, and in this process."""
    with resolving(monkeypatch) as resolver:
        yield resolver
