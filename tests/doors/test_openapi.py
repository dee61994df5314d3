"""`/openapi.json` and `/docs`: the document is complete, and the page shows it."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from revocation_service import __version__, api, errors
from tests.api.serving import API_KEYS, Service, Start

DOCUMENT = json.loads((Path(api.__file__).parent / "openapi.json").read_text())


def test_the_document_is_valid() -> None:
    """The document is valid OpenAPI 3.1, uses each of its schemas, responses and headers, and states the version."""
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    text = json.dumps(DOCUMENT)
    components = DOCUMENT["components"]
    for kind in ("schemas", "responses", "headers"):
        for name in components[kind]:
            assert f'"#/components/{kind}/{name}"' in text, (kind, name)
    assert DOCUMENT["info"]["version"] == __version__


async def test_every_route_and_method_is_described(service: Service) -> None:
    """The document describes exactly the routes of the router. A route for any method is described as GET or POST."""
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in service.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    expected = {(path, "get" if method == "*" else method) for path, method in routes}
    described = {(path, method) for path, item in DOCUMENT["paths"].items() for method in item}
    assert described == expected | {("/forward-auth", "post")}


def test_every_error_code_is_described() -> None:
    """The document lists the code of every error that a request may get."""

    def codes(kind: type[errors.ServiceError]) -> Iterator[str]:
        for each in kind.__subclasses__():
            yield from codes(each)
            if each.__module__ == errors.__name__ and "code" in vars(each):
                yield each.code

    described = set(DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"])
    elsewhere = {"error", "invalid_setting", "not_own_token"}  # no request gets these, or it gets an OAuth code instead
    assert set(codes(errors.ServiceError)) - elsewhere <= described


async def test_the_document_may_be_closed(start: Start) -> None:
    """`/openapi.json` and `/docs` need no key, and answer 404 if a setting closes them."""
    service, closed = await start(API_KEYS=API_KEYS), await start(OPENAPI="false")
    for path in ("/openapi.json", "/docs"):
        assert (await service.get(path, headers={"Authorization": ""})).status == 200
        assert (await closed.get(path)).status == 404


# The page


async def test_the_page_shows_the_whole_document(service: Service) -> None:
    """The page shows every path and component. It has no script and no external link, and a strict policy."""
    answer = await service.get("/docs", headers={"Authorization": ""})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    page = answer.body.decode()
    for path in DOCUMENT["paths"]:
        assert f" {path}</h3>" in page
    for kind, components in DOCUMENT["components"].items():
        assert all(f'id="{kind}-{name}"' in page for name in components)
    anchors = set(re.findall(r' id="([^"]+)"', page))
    targets = re.findall(r'(?:href|src|action)="([^"]+)"', page)
    assert {target for target in targets if target.removeprefix("#") not in anchors} == {"openapi.json"}
    assert "<script" not in page
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert (await service.get("/openapi.json")).json == DOCUMENT


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
async def test_a_browser_renders_the_page_and_asks_no_one_else(service: Service, tmp_path: Path) -> None:
    """Chromium renders the page without a violation of its policy, and the page causes no further request."""
    log = tmp_path / "net.json"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # makes the browser's own requests fail
    command += [f"--log-net-log={log}", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    command += [f"--screenshot={tmp_path}/page.png", "--window-size=1100,1800", str(service.url / "docs")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (tmp_path / "page.png").stat().st_size > 50_000, done.stderr
    assert "Content Security Policy" not in done.stderr
    events = json.loads(_complete(log.read_text()))["events"]
    requests = [each["params"] for each in events if {"url", "initiator"} <= each.get("params", {}).keys()]
    assert str(service.url / "docs") in {each["url"] for each in requests}
    assert [each for each in requests if each["initiator"].startswith(str(service.url).rstrip("/"))] == []


def _complete(log: str) -> str:
    """Return the network log as valid JSON, even if the browser ended before it completed the log."""
    return log if log.rstrip().endswith("}") and '"polledData"' in log else log.rstrip().rstrip(",") + "]}"
