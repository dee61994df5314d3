"""Who asks: the client's address, by the connection and by what trusted proxies say of it. Pure.

An address in `X-Forwarded-For` is believed as far as it was written by a proxy that is trusted: each writes behind the
others whom it talked to, so the list is read from the right, and ends at the first who is not trusted himself.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NO_ADDRESS: Final = "none"
"""What clients without an address (of a unix socket) are counted as: all of them together."""

_IPV6_COUNTED_BITS: Final = 64

_WITH_PORT: Final = re.compile(r"\[([^\]]*)\](?::\d{1,5})?|([\d.]+):\d{1,5}", re.ASCII)


def client_address(peer: str | None, forwarded: Iterable[str], trusted: Sequence[Network]) -> IPAddress | None:
    """The address of whoever asks; None where the connection has none.

    `forwarded` are the values of X-Forwarded-For, in the order of their lines.
    """
    address = None if peer is None else parse_address(peer)
    for hop in _from_the_right(forwarded):
        if address is None or not _is_in(address, trusted):
            return address
        named = _hop(hop)
        if named is None:
            return address  # nobody knows who stands behind it
        address = named
    return address


def is_trusted(peer: str | None, trusted: Sequence[Network]) -> bool:
    """Whether a connection comes from a trusted proxy; one without an address does not."""
    address = None if peer is None else parse_address(peer)
    return address is not None and _is_in(address, trusted)


def counted_as(address: IPAddress | None) -> str:
    """The name under which an address is counted: IPv6 by its /64, which is one customer's."""
    if address is None:
        return NO_ADDRESS
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((address, _IPV6_COUNTED_BITS), strict=False))


def parse_address(text: str) -> IPAddress | None:
    """An address, without zone, and as IPv4 where it is mapped into IPv6; None where it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: IPAddress, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _from_the_right(forwarded: Iterable[str]) -> Iterator[str]:
    """The members of the list, which may stand in several lines; empty ones are none (RFC 9110 section 5.6.1)."""
    for line in reversed(list(forwarded)):
        yield from (member for each in reversed(line.split(",")) if (member := each.strip(" \t")))


def _hop(text: str) -> IPAddress | None:
    """An address as proxies write it: with or without port, IPv6 with or without brackets, perhaps quoted."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    found = _WITH_PORT.fullmatch(text)
    return parse_address((found[1] or found[2] or "") if found else text)
