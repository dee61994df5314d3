"""Tests that the reference pages name every log event, warning, error, metric and setting of the code."""

import ast
import inspect
import re
from typing import Final

from revocation_client.errors import RevocationError
from revocation_service import errors
from revocation_service.api import readiness
from revocation_service.gateway.settings import load as load_gateway
from revocation_service.metrics import Metrics
from revocation_service.settings import load
from revocation_service.store import preflight
from tests.docs.blocks import ROOT

_EVENT: Final = re.compile(
    r"(?:_log|get_logger\(\))\.(?:log|debug|info|warning|error)\((?:[^\"\n]*, )?\s*\"(\w+)\"|RepeatedWarning\(\"(\w+)\""
)
_CLIENT_EVENT: Final = re.compile(r"(?:_log\.\w+|warn)\(\"([a-z_]+)[ \"]")


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def named(name: str) -> set[str]:
    """Return the words that a page has in backticks."""
    return {word for span in re.findall(r"`([^`\n]+)`", document(name)) for word in re.findall(r"\w+", span)}


def sources(*folders: str) -> str:
    """Return the text of all modules in these folders."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if "gateway" not in path.parts)


def test_every_log_event_is_explained() -> None:
    """Each log event of the service is in operations.md, and each of the client in client.md."""
    events = {one or other for one, other in _EVENT.findall(sources("revocation_service"))}
    assert {"store_away", "iat_unusable", "replication_failed", "library_message"} <= events
    assert events <= named("operations.md")
    client_events = set(_CLIENT_EVENT.findall(sources("client/revocation_client")))
    assert {"revocation_mirror_refused", "token_not_checked", "iat_unusable"} <= client_events
    assert client_events <= named("client.md")


def test_every_warning_is_explained() -> None:
    """operations.md has each warning of `/readyz`. In the code, warnings are members of sets in two modules."""
    trees = [ast.parse(inspect.getsource(module)) for module in (preflight, readiness)]
    sets = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Set)]
    members = [each.value for found in sets for each in found.elts if isinstance(each, ast.Constant)]
    warnings = {each for each in members if isinstance(each, str) and re.fullmatch("[a-z_]{2,}", each)}
    assert {"no_persistence", "replica", "info_unknown", "clock_offset"} <= warnings
    assert warnings | {"min_replicas_to_write_zero", "incomplete"} <= named("operations.md")


def test_every_error_code_is_explained() -> None:
    """Each error code of the service is in operations.md."""
    codes = {error.code for error in _subclasses(errors.ServiceError) if error.__module__ == errors.__name__}
    assert "store_unavailable" in codes
    assert codes - {"error"} <= named("operations.md")


def _subclasses(kind: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def test_every_metric_is_explained() -> None:
    """Each metric of the service is in operations.md, by the name that Prometheus shows."""
    families = Metrics().registry.collect()
    names = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    assert {"revocation_store_up", "revocation_checks_total"} <= names
    assert names <= named("operations.md")


def test_every_setting_is_explained_once() -> None:
    """Each setting of the service has exactly one row, in one of three pages. gateway.md names no unknown setting."""
    shown = [line.partition("=")[0] for line in load({}).shown]
    pages = "".join(map(document, ("configuration.md", "gateways.md", "oauth.md")))
    cells = re.findall(r"^\| (`RE[^|]*) \|", pages, re.MULTILINE)
    assert sorted(re.findall(r"`(RE\w+)`", "".join(cells))) == sorted(shown)
    documented = {word for word in named("gateway.md") if word.startswith("GATEWAY_")}
    known = {line.partition("=")[0] for line in load_gateway({"GATEWAY_UPSTREAM_URL": "http://a"}).shown}
    assert documented <= known


def test_every_error_of_the_client_is_explained() -> None:
    """Each subclass of RevocationError is in client.md."""
    assert {kind.__name__ for kind in RevocationError.__subclasses__()} <= named("client.md")
