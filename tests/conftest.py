"""What holds for every test of the project."""

import pytest

from tests.compiled import outdated


def pytest_configure() -> None:
    """Test what is written, or nothing."""
    name = outdated()
    if name is not None:
        raise pytest.UsageError(f"{name} was compiled of an older source than is there: make install")
