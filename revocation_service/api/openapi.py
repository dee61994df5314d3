"""Serve the hand-written file `openapi.json` at `GET /openapi.json`, and the same document as HTML at `GET /docs`."""

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any, Final

from aiohttp import web

from revocation_service.http.responses import json_response

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { border-top: 1px solid #d5dce4; padding-top: 1rem } h3 { font: 600 1rem ui-monospace, monospace; margin-top: 2rem }
code, pre { font: .88rem/1.45 ui-monospace, monospace } pre { background: #f4f6f8; padding: .7rem; overflow-x: auto }
"""
_STYLE_DIGEST: Final = b64encode(sha256(_STYLE.encode()).digest()).decode()
_HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


async def openapi(_request: web.Request) -> web.Response:
    """Respond with `openapi.json`."""
    return json_response(_document())


async def docs(_request: web.Request) -> web.Response:
    """Respond with the HTML page. It loads nothing and runs no script."""
    return web.Response(text=_page(), content_type="text/html", headers=_HEADERS)


@cache
def _document() -> bytes:
    return files("revocation_service.api").joinpath("openapi.json").read_bytes()


@cache
def _page() -> str:
    return "".join(_parts(json.loads(_document())))


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the HTML of the page: each operation, then the components that operations refer to."""
    title, components = escape(document["info"]["title"]), document["components"]
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    yield f'<h1>{title}</h1><p>{_text(document["info"]["description"])} <a href="openapi.json">openapi.json</a></p>'
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2><p>{_text(tag['description'])}</p>"
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"]:
                    yield f"<h3>{method.upper()} {escape(path)}</h3><p>{_text(operation['summary'])}. "
                    yield f"{_text(operation.get('description', ''))}</p>"
                    yield _json({part: operation[part] for part in _SHOWN if part in operation})
    for kind in ("responses", "schemas", "headers", "securitySchemes"):
        yield f"<h2>{kind}</h2>"
        yield from (f'<h3 id="{kind}-{name}">{name}</h3>{_json(node)}' for name, node in components[kind].items())


_SHOWN: Final = ("security", "parameters", "requestBody", "responses")


def _text(text: str) -> str:
    """Return a description as HTML. Text between backticks becomes a `code` element."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _json(node: object) -> str:
    """Return a part of the document as JSON, with links to the components that it refers to."""
    text = escape(json.dumps(node, indent=2, ensure_ascii=False), quote=False)
    linked = re.sub(r'\{\s*"\$ref": "#/components/(\w+)/([\w-]+)"\s*\}', r'<a href="#\1-\2">\2</a>', text)
    return f"<pre>{linked}</pre>"
