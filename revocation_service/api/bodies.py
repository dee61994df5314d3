"""Parse bodies (JSON or a form) and queries into JSON members, with bounds on size and time."""

import asyncio
import re
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import hdrs, web

from revocation_client.schema import SchemaError, loads

BODY_MAX_BYTES: Final = 64 * 1024
BATCH_BODY_MAX_BYTES: Final = 1024 * 1024
BODY_SECONDS: Final = 10
FORM_MAX_FIELDS: Final = 20

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NUMBER: Final = re.compile(r"\d{1,20}(\.\d{1,20})?", re.ASCII)
_TIMES: Final = frozenset({"exp", "expires_in", "issued_before", "iat"})


async def read_members(request: web.Request, max_bytes: int = BODY_MAX_BYTES) -> Any:
    """Return the body as JSON values, whether it is JSON or a form. Raises SchemaError, and aiohttp's 408, 413, 415."""
    content_type = _content_type(request, JSON, FORM)
    body = await _read(request, max_bytes)
    return loads(body) if content_type == JSON else _form_members("body", body.decode("utf-8", "surrogateescape"))


async def read_form(request: web.Request) -> list[tuple[str, str]]:
    """Return the fields of a form; a name may repeat. Raises SchemaError, and aiohttp's 408, 413, 415."""
    _content_type(request, FORM)
    body = await _read(request, BODY_MAX_BYTES)
    return _form_fields("body", body.decode("utf-8", "surrogateescape"))


def _content_type(request: web.Request, *accepted: str) -> str:
    several = len(request.headers.getall(hdrs.CONTENT_TYPE, [])) > 1
    if several or request.content_type not in accepted or hdrs.CONTENT_ENCODING in request.headers:
        raise web.HTTPUnsupportedMediaType(text=f"send {' or '.join(accepted)}, without a Content-Encoding")
    return request.content_type


async def _read(request: web.Request, max_bytes: int) -> bytes:
    if (request.content_length or 0) > max_bytes:
        raise web.HTTPRequestEntityTooLarge(max_bytes)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()  # at most BATCH_BODY_MAX_BYTES, the application's client_max_size
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_SECONDS} s") from None
    except (web.RequestPayloadError, ConnectionError, RuntimeError):  # RuntimeError: the client had left before
        raise SchemaError("body", "ended before it was complete") from None
    if len(body) > max_bytes:
        raise web.HTTPRequestEntityTooLarge(max_bytes)
    return body


def query_members(request: web.Request) -> dict[str, Any]:
    """Return the members of the query. Raises SchemaError."""
    if "#" in request.raw_path:  # URL parsers drop what follows, so another value would be checked
        raise SchemaError("query", "must not contain #; write %23")
    return _form_members("query", request.raw_path.partition("?")[2])


def _form_members(where: str, text: str) -> dict[str, Any]:
    """Return the fields of a form or a query as members. Raises SchemaError."""
    fields = _form_fields(where, text)
    members = {name: _value(name, value) for name, value in fields}
    if len(members) < len(fields):
        raise SchemaError(where, "has two members of one name")
    return members


def _form_fields(where: str, text: str) -> list[tuple[str, str]]:
    """Parse a form or a query; refuse what two parsers might read differently. Raises SchemaError."""
    try:
        text.encode()  # raises if the bytes were not UTF-8
        fields = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=FORM_MAX_FIELDS
        )
    except ValueError:
        detail = f"must be {FORM}: at most {FORM_MAX_FIELDS} fields of the form name=value, in UTF-8"
        raise SchemaError(where, detail) from None
    if _BROKEN_ESCAPE.search(text):
        raise SchemaError(where, "has a percent sign without two hex digits after it")
    return fields


def _value(name: str, text: str) -> str | float | bool:
    """Return the JSON value of a field: times become numbers, and for `all`, the text `true` becomes True."""
    if name in _TIMES:
        if not _NUMBER.fullmatch(text):
            raise SchemaError(name, "must be a number of seconds")
        return float(text)
    return text == "true" or text if name == "all" else text
