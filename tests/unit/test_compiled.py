"""Two files of the client are compiled where that can be done, and do the same where they are not."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from revocation_client import glance
from revocation_client.mirror import Mirror
from tests.as_written import CLIENT, COMPILED

REPOSITORY = CLIENT.parents[1]
SAME_TESTS = ("tests/unit/test_sieve.py", "tests/unit/test_mirror.py", "tests/client/test_mirror_client.py")
CAN_COMPILE = (
    shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is not None
    and Path(sysconfig.get_path("include"), "Python.h").exists()
)
WHERE = """
from revocation_client import glance, sieve

def test_where_they_are():
    assert [module.__file__ for module in (glance, sieve)] == {files}
"""


@pytest.mark.skipif(not CAN_COMPILE, reason="no C compiler here, or no Python.h")
@pytest.mark.parametrize("name", COMPILED)
def test_what_is_tested_is_what_is_written(name: str) -> None:
    """It is compiled, and not from an earlier source, which would be tested in place of the one that is read."""
    built = CLIENT / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert Path(sys.modules[f"revocation_client.{name}"].__file__ or "") == built
    for source in (f"{name}.py", f"{name}.pxd"):
        assert (CLIENT / source).stat().st_mtime <= built.stat().st_mtime, f"{source} is younger: make install"


def test_as_written_they_pass_the_same_tests(tmp_path: Path) -> None:
    """The tests of memory, in a process that does not see what was compiled."""
    where = tmp_path / "test_where.py"
    where.write_text(WHERE.format(files=[str(CLIENT / f"{name}.py") for name in ("glance", "sieve")]))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.as_written", *SAME_TESTS, str(where)],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_an_error_of_a_clock_is_raised() -> None:
    """Not swallowed on the way out of C, where an answer is a number: it would be taken for one."""

    def broken() -> float:
        raise OSError("no clock")

    for clocks in ((broken, lambda: 1.0), (lambda: 1.0, broken)):
        look = glance.Glance(Mirror(), *clocks)
        look.trust(1.0, 1.0, 5.0)
        for ask in (look.is_fresh, lambda look=look: look.admits({"jti": "x"})):
            with pytest.raises(OSError, match="no clock"):
                ask()
