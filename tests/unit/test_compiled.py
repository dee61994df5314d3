"""Two files of the client are compiled where that can be done, and do the same where they are not."""

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from revocation_client import glance
from revocation_client.mirror import Mirror
from tests.compiled import CAN_COMPILE, CLIENT, COMPILED, outdated

REPOSITORY = CLIENT.parents[1]
SAME_TESTS = ("tests/unit/test_sieve.py", "tests/unit/test_mirror.py", "tests/client/test_mirror_client.py")
WHERE = """
from revocation_client import glance, sieve

def test_where_they_are():
    assert [module.__file__ for module in (glance, sieve)] == {files}
"""
ASKED = """
import sys, time
sys.path.insert(0, {path!r})
from revocation_client import glance, mirror
look = glance.Glance(mirror.Mirror(), time.time, time.monotonic)
look.trust(time.monotonic(), time.time(), 60)
print(glance.__file__, look.admits({{"jti": "x"}}))
"""


@pytest.mark.skipif(not CAN_COMPILE, reason="no C compiler here, or no Python.h, or it is not wanted")
@pytest.mark.parametrize("name", COMPILED)
def test_they_are_compiled_where_they_can_be(name: str) -> None:
    """What the tests import is what was compiled; that it is not an old one is looked at before any test."""
    built = CLIENT / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert sys.modules[f"revocation_client.{name}"].__file__ == str(built), "make clean install"


def test_what_is_old_is_noticed(tmp_path: Path) -> None:
    """A source that is younger than what was compiled of it is named, before it is taken for tested."""
    for age, name in enumerate(("sieve.so", "sieve.py", "sieve.pxd", "glance.py", "glance.pxd")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert outdated(tmp_path) == "sieve.so"
    os.utime(tmp_path / "sieve.so", (2000, 2000))
    assert outdated(tmp_path) is None


def test_without_sources_they_run_as_they_were_written(tmp_path: Path) -> None:
    """From byte code alone, as some images have it: that is no compiled file, and cannot do what only C can."""
    shutil.copytree(CLIENT, tmp_path / CLIENT.name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    assert compileall.compile_dir(tmp_path, quiet=1, legacy=True)
    for source in tmp_path.rglob("*.py"):
        source.unlink()
    command = [sys.executable, "-I", "-c", ASKED.format(path=str(tmp_path))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"{tmp_path / CLIENT.name / 'glance.pyc'} True\n"


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
