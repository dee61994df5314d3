"""What of a message's head goes further, and what the gateway says itself; bytes in, bytes out, and no I/O.

Names and values stay the bytes that they were, in their order: a field that is repeated stays repeated.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from revocation_service.gateway.forwarding import is_forwarding
from revocation_service.gateway.problems import MalformedRequest

Fields = list[tuple[bytes, bytes]]

PSEUDONYM: Final = b"revocation-gateway"
"""What the gateway calls itself in Via (RFC 9110 section 7.6.3)."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
"""They speak to the next hop alone (RFC 9110 section 7.6.1); so does what Connection names."""

_FRAMING: Final = frozenset({b"content-length", b"host", b"expect"})
"""Of a request, the gateway writes them itself: Expect has been answered, the others must be beyond doubt."""

_NEVER: Final = frozenset({b"proxy"})
"""`Proxy: …` becomes HTTP_PROXY in a CGI program (httpoxy)."""

_ABSOLUTE: Final = re.compile(r"https?://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_NO_TARGET: Final = re.compile(r"[\x00-\x20\x7f#]")


@dataclass(frozen=True, slots=True)
class Hop:
    """Who sent a request, as far as the upstream is told."""

    peer: str
    """The address of the other end of the connection."""
    client: str
    """The address that is counted as the client's."""
    trusted: bool
    """Whether the peer is a trusted proxy, so that its word is passed on."""


def request_target(method: str, target: str) -> tuple[bytes, bytes | None]:
    """The target as the origin takes it (RFC 9112 section 3.2), and the host, where the target named one.

    Raises MalformedRequest.
    """
    host = None
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        host, target = _encoded(absolute[1]), absolute[2]
        if not target.startswith("/"):
            target = "*" if method == "OPTIONS" and not target else f"/{target}"
    if _NO_TARGET.search(target) or not (target.startswith("/") or (target == "*" and method == "OPTIONS")):
        raise MalformedRequest("this is no request target")
    return _encoded(target), host


def request_fields(given: Iterable[tuple[bytes, bytes]], host: bytes, hop: Hop) -> Fields:
    """The fields of a request that go to the upstream, but those that say how its body is framed."""
    if not _HOST.fullmatch(host):
        raise MalformedRequest("the Host field is not valid")
    given = tuple(given)
    fields = [(b"Host", host)]
    told: dict[bytes, list[bytes]] = {}
    named = _named(given)
    for name, value in given:
        lower = name.lower()
        if lower in named or lower in HOP_BY_HOP or lower in _FRAMING or lower in _NEVER:
            continue
        if is_forwarding(lower):
            if hop.trusted:
                told.setdefault(lower, []).append(value)
        elif not (b"_" in lower and _is_ours(lower.replace(b"_", b"-"))):
            fields.append((name, value))
    return fields + _forwarding_fields(told, host, hop)


def _is_ours(name: bytes) -> bool:
    """Whether a name belongs to the gateway: WSGI and CGI take `X_Real_IP` for `X-Real-IP`."""
    return name in HOP_BY_HOP or name in _FRAMING or name in _NEVER or is_forwarding(name)


def _forwarding_fields(told: dict[bytes, list[bytes]], host: bytes, hop: Hop) -> Fields:
    """The gateway's own word of the client; a trusted proxy's is kept, and this hop's added to it."""
    peer = hop.peer.encode()
    fields = [
        (b"X-Forwarded-For", b", ".join([*told.pop(b"x-forwarded-for", []), peer])),
        (b"X-Forwarded-Proto", b", ".join(told.pop(b"x-forwarded-proto", [b"http"]))),
        (b"X-Forwarded-Host", b", ".join(told.pop(b"x-forwarded-host", [host]))),
        (b"X-Real-IP", hop.client.encode()),
        (b"Via", b"1.1 " + PSEUDONYM),
    ]
    told.pop(b"x-real-ip", None)
    if b"forwarded" in told:
        node = b'"[%s]"' % peer if b":" in peer else peer
        told[b"forwarded"].append(b"for=" + node)
    return fields + [(name, value) for name, values in told.items() for value in values]


def answer_fields(given: Iterable[tuple[bytes, bytes]]) -> Fields:
    """The fields of an answer that go to the client; how its body is framed is among them as Content-Length alone."""
    given = tuple(given)
    named = _named(given)
    fields = [(name, value) for name, value in given if name.lower() not in HOP_BY_HOP and name.lower() not in named]
    if any(name.lower() == b"transfer-encoding" for name, _ in given):  # it overrides (RFC 9112 section 6.3)
        fields = [(name, value) for name, value in fields if name.lower() != b"content-length"]
    return fields


def _named(given: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """What Connection names; what no message may be without is not lost that way."""
    lists = [value for name, value in given if name.lower() == b"connection"]
    if not lists:
        return frozenset()
    return frozenset(token.strip().lower() for each in lists for token in each.split(b",")) - {b"content-length"}


def asks_for_websocket(method: str, given: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request asks for the one upgrade that passes (RFC 6455 section 4.1)."""
    given = tuple(given)
    upgrades = [value.strip().lower() for name, value in given if name.lower() == b"upgrade"]
    return method == "GET" and upgrades == [b"websocket"] and b"upgrade" in _named(given)


def first(given: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    """The first value of a field, its name in lower case."""
    return next((value for name, value in given if name.lower() == wanted), None)


def head(start_line: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A message's head as it goes over the wire; a line break or NUL inside a line cannot come out of it."""
    lines = [start_line, *(b"%s: %s" % field for field in fields)]
    written = b"\r\n".join([*lines, b"", b""])
    breaks = len(lines) + 1
    if written.count(b"\n") != breaks or written.count(b"\r") != breaks or b"\0" in written:
        raise ValueError("a line of a head would break")
    return written


def _encoded(text: str) -> bytes:
    """The bytes that aiohttp decoded."""
    return text.encode("utf-8", "surrogateescape")
