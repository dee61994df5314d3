"""Find a client's address from its connection and from the `X-Forwarded-For` of trusted proxies. Pure.

Each proxy appends the address of its peer to that field. So the list is read from the right, up to and including
the first address that is not a trusted proxy's.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NO_ADDRESS: Final = "none"
"""The name under which all clients without an address (of a unix socket) are counted together."""

_IPV6_COUNTED_BITS: Final = 64

_WITH_PORT: Final = re.compile(r"\[([^\]]*)\](?::\d{1,5})?|([\d.]+):\d{1,5}", re.ASCII)


def client_address(peer: str | None, forwarded: Iterable[str], trusted: Sequence[Network]) -> IPAddress | None:
    """Return the client's address; None if the connection has no address.

    `forwarded` are the values of X-Forwarded-For, in the order of their lines (RFC 9110 section 5.3). Empty members
    are ignored (section 5.6.1). If a member is not an address, the proxy that wrote it counts as the client.
    """
    address = parse_address(peer or "")
    members = [member for line in forwarded for each in line.split(",") if (member := each.strip(" \t"))]
    for member in reversed(members):
        if not _is_in(address, trusted) or (named := _hop(member)) is None:
            return address
        address = named
    return address


def is_trusted(peer: str | None, trusted: Sequence[Network]) -> bool:
    """Return whether a connection comes from a trusted proxy; False for a connection without an address."""
    return _is_in(parse_address(peer or ""), trusted)


def counted_as(address: IPAddress | None) -> str:
    """Return the name to count an address under. For IPv6 it is the /64, because one customer usually has all of it."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, _IPV6_COUNTED_BITS), strict=False))
    return str(address or NO_ADDRESS)


def parse_address(text: str) -> IPAddress | None:
    """Parse an address; drop its zone, and turn IPv4-mapped IPv6 into IPv4. Return None if the text is no address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: IPAddress | None, networks: Iterable[Network]) -> bool:
    return address is not None and any(address in network for network in networks)


def _hop(text: str) -> IPAddress | None:
    """Parse an address as proxies write it: with or without port, IPv6 with or without brackets, perhaps quoted."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    found = _WITH_PORT.fullmatch(text)
    return parse_address((found[1] or found[2] or "") if found else text)
