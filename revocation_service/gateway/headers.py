"""The header fields that a proxy passes on (RFC 9110 section 7.6), and those that it adds. Pure."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from multidict import CIMultiDict

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

VIA: Final = "1.1 revocation-gateway"

_HOP_BY_HOP_NAMES: Final = """
connection http2-settings keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer
transfer-encoding upgrade
"""
_HOP_BY_HOP: Final = frozenset(_HOP_BY_HOP_NAMES.split())

_REPLACED_NAMES: Final = """
content-length expect host proxy sec-websocket-extensions sec-websocket-key sec-websocket-protocol
sec-websocket-version x-request-id
"""
_REPLACED: Final = _HOP_BY_HOP.union(_REPLACED_NAMES.split())
"""Fields of a request that the gateway writes itself or drops. `Proxy` becomes HTTP_PROXY in CGI programs (httpoxy)."""

_FORWARDING_NAMES: Final = """
cf-connecting-ip client-ip fastly-client-ip fly-client-ip forwarded front-end-https proxy-client-ip true-client-ip
wl-proxy-client-ip x-appengine-user-ip x-azure-clientip x-client-ip x-cluster-client-ip x-envoy-external-address
x-forwarded x-forwarder-for x-host x-original-forwarded-for x-original-host x-original-url x-originating-ip x-real-ip
x-remote-addr x-remote-ip x-rewrite-url x-scheme x-url-scheme
"""
_FORWARDING: Final = frozenset(_FORWARDING_NAMES.split())
"""Fields that tell a server about the client and its request, beside those that begin with `x-forwarded-`."""


def request_fields(given: Mapping[str, str], host: str, client: str, peer: str, *, trusted: bool) -> CIMultiDict[str]:
    """Return the fields that the upstream gets, without those that frame the body.

    `client` is the address that counts as the client's. `peer` is the other end of the connection; if it is a trusted
    proxy, its forwarding fields are passed on.
    """
    fields = CIMultiDict(field for field in end_to_end(given).items() if _passes(field[0].lower(), trusted=trusted))
    fields["Host"] = host
    fields["X-Forwarded-For"] = ", ".join([*fields.getall("X-Forwarded-For", []), peer])
    fields.setdefault("X-Forwarded-Proto", "http")
    fields.setdefault("X-Forwarded-Host", host)
    fields["X-Real-IP"] = client
    fields.add("Via", VIA)
    return fields


def end_to_end(given: Mapping[str, str]) -> CIMultiDict[str]:
    """Return the end-to-end fields: all but the hop-by-hop fields and those that Connection names."""
    connection = ",".join(value for name, value in given.items() if name.lower() == "connection")
    dropped = _HOP_BY_HOP.union(option.strip().lower() for option in connection.split(","))
    return CIMultiDict((name, text(value)) for name, value in given.items() if name.lower() not in dropped)


def text(value: str) -> str:
    """Return a value that aiohttp can send.

    aiohttp drops bytes that are not UTF-8, so a value with such bytes is decoded as Latin-1. aiohttp refuses control
    characters, so they become spaces (RFC 9110 section 5.5).
    """
    raw = _CONTROL.sub(" ", value).encode("utf-8", "surrogateescape")
    with suppress(UnicodeDecodeError):
        return raw.decode()
    return raw.decode("latin-1")


def _passes(name: str, *, trusted: bool) -> bool:
    """Return True for a field that reaches the upstream as the client sent it.

    CGI and WSGI read `X_Real_IP` as `X-Real-IP`, so underscores count as hyphens here.
    """
    plain = name.replace("_", "-")
    is_forwarding = plain in _FORWARDING or plain.startswith("x-forwarded-")
    return plain not in _REPLACED and (not is_forwarding or (trusted and plain == name))
