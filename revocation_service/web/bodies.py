"""What a request brings: JSON or a form, bounded in size and time, as the same members."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from aiohttp import web

from revocation_client.wire import WireError, loads

BODY_MAX_BYTES: Final = 64 * 1024
BATCH_BODY_MAX_BYTES: Final = 1024 * 1024
BODY_SECONDS: Final = 10
FORM_MAX_FIELDS: Final = 20

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPED: Final = re.compile(r"[%+]|[^\x00-\x7f]")
_NUMBER: Final = re.compile(r"\d{1,20}(\.\d{1,20})?", re.ASCII)


async def read_members(request: web.Request, most_bytes: int = BODY_MAX_BYTES) -> Any:
    """The body as JSON values, whichever of the two forms it has.

    Raises WireError, and aiohttp's 408, 413 and 415.
    """
    content_type = _content_type(request)
    body = await _read(request, most_bytes)
    if content_type == JSON:
        return loads(body)
    return form_members("body", body.decode("utf-8", "surrogateescape"))


def _content_type(request: web.Request) -> str:
    if request.headers.getall("Content-Encoding", []):
        raise web.HTTPUnsupportedMediaType(text="send the body without a Content-Encoding")
    content_types = request.headers.getall("Content-Type", [])
    content_type = content_types[0].partition(";")[0].strip().lower() if len(content_types) == 1 else ""
    if content_type not in {JSON, FORM}:
        raise web.HTTPUnsupportedMediaType(text=f"send {JSON} or {FORM}")
    return content_type


async def _read(request: web.Request, most_bytes: int) -> bytes:
    if (request.content_length or 0) > most_bytes:
        raise web.HTTPRequestEntityTooLarge(most_bytes, request.content_length or 0)
    body = bytearray()
    try:
        if request.content.is_eof() and request.content_length is not None:  # all of it is here
            return request.content.read_nowait()
        async with asyncio.timeout(BODY_SECONDS):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > most_bytes:
                    raise web.HTTPRequestEntityTooLarge(most_bytes, len(body))
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_SECONDS} s") from None
    except (web.RequestPayloadError, ConnectionError):
        raise WireError("body", "broke off") from None
    except RuntimeError:
        if request.transport is not None:
            raise
        raise WireError("body", "broke off") from None  # the caller had gone before anybody waited for more
    return bytes(body)


def query_members(request: web.Request) -> dict[str, Any]:
    """The members that the query names.

    Raises WireError.
    """
    target = request.raw_path
    if "#" in target:  # who reads it as a URL drops what follows, and judges another value
        raise WireError("query", "must not hold #, which is written %23")
    return form_members("query", target.partition("?")[2])


def form_members(where: str, text: str) -> dict[str, Any]:
    """A form or a query (the URL standard's application/x-www-form-urlencoded) as the JSON values that it stands for.

    It is read strictly: what two readers might read otherwise is refused.
    Raises WireError.
    """
    members: dict[str, Any] = {}
    pairs = text.split("&") if text else []
    if len(pairs) > FORM_MAX_FIELDS:
        raise WireError(where, f"has more than {FORM_MAX_FIELDS} fields")
    escaped = _ESCAPED.search(text)
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise WireError(where, "has a field that is not name=value")
        if escaped:
            name, value = _unescaped(where, name), _unescaped(where, value)
        if name in members:
            raise WireError(where, "has two members of one name")
        members[name] = _SPECIAL[name](name, value) if name in _SPECIAL else value
    return members


def _unescaped(where: str, text: str) -> str:
    if _BROKEN_ESCAPE.search(text):
        raise WireError(where, "has a percent sign that two hex digits do not follow")
    try:
        return unquote_to_bytes(text.replace("+", " ").encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeError:
        raise WireError(where, "is not UTF-8") from None


def _seconds(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise WireError(name, "must be a number of seconds")
    return float(text)


def _true(_name: str, text: str) -> bool | str:
    return text == "true" or text


_SPECIAL: Final[dict[str, Callable[[str, str], Any]]] = {
    "exp": _seconds,
    "expires_in": _seconds,
    "issued_before": _seconds,
    "iat": _seconds,
    "all": _true,
}
"""Members that are no strings: times are numbers, and `all` is true."""
