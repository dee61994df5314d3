"""The address of a client: that of the peer, or the one in the X-Forwarded-For of trusted proxies."""

import ipaddress

import pytest

from revocation_service.gateway.addresses import client_address, counted_as, is_trusted, parse_address

TRUSTED = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "fd00::/8")))


@pytest.mark.parametrize("forwarded", [[], ["198.51.100.7"], ["198.51.100.7, 10.0.0.2"], ["garbage"], ["10.0.0.1"]])
def test_an_untrusted_peer_is_the_client_whatever_it_says(forwarded: list[str]) -> None:
    """The X-Forwarded-For of a peer that is not trusted is ignored."""
    assert str(client_address("203.0.113.9", forwarded, TRUSTED)) == "203.0.113.9"
    assert str(client_address("203.0.113.9", forwarded, ())) == "203.0.113.9"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([], "10.0.0.1"),
        (["198.51.100.7"], "198.51.100.7"),
        (["6.6.6.6, 198.51.100.7"], "198.51.100.7"),
        (["6.6.6.6, 198.51.100.7, 10.9.9.9"], "198.51.100.7"),
        (["6.6.6.6", "198.51.100.7", "10.9.9.9"], "198.51.100.7"),
        (["6.6.6.6,198.51.100.7", "10.9.9.9 ,\t10.8.8.8"], "198.51.100.7"),
        (["10.7.7.7, 10.8.8.8"], "10.7.7.7"),
        (["198.51.100.7, nonsense"], "10.0.0.1"),
        (["198.51.100.7, nonsense, 10.9.9.9"], "10.9.9.9"),
        (["198.51.100.7, , ,"], "198.51.100.7"),
        (["198.51.100.7:1234"], "198.51.100.7"),
        (['"198.51.100.7:1234"'], "198.51.100.7"),
        (["[2001:db8::7]:443"], "2001:db8::7"),
        (["[2001:db8::7]"], "2001:db8::7"),
        (["2001:db8::7"], "2001:db8::7"),
        (['"[2001:db8::7]:443"'], "2001:db8::7"),
        (["::ffff:198.51.100.7"], "198.51.100.7"),
        (["6.6.6.6, ::ffff:10.0.0.9"], "6.6.6.6"),
        (["unknown"], "10.0.0.1"),
        (["_hidden"], "10.0.0.1"),
        (["198.51.100.07"], "10.0.0.1"),
        (["198.51.100.7:port"], "10.0.0.1"),
        (["198.51.100.7:123456"], "10.0.0.1"),
        (["[198.51.100.7"], "10.0.0.1"),
        (["fe80::1%eth0"], "fe80::1"),
        (["198.51.100.7 6.6.6.6"], "10.0.0.1"),
    ],
)
def test_behind_trusted_proxies_the_rightmost_untrusted_hop_is_the_client(forwarded: list[str], client: str) -> None:
    """Behind proxies the client is the first untrusted address from the right. Reading stops at a malformed member."""
    assert str(client_address("10.0.0.1", forwarded, TRUSTED)) == client
    assert str(client_address("::ffff:10.0.0.1", forwarded, TRUSTED)) == client


def test_what_a_client_puts_before_its_own_address_never_counts() -> None:
    """A forged list is never used, because the trusted proxy appends the client's real address to its right."""
    for forged in ("10.0.0.5", "1.1.1.1, 10.0.0.5", ",".join(f"10.0.{n}.1" for n in range(200)), "::1", ", ,", '"'):
        assert str(client_address("10.0.0.1", [f"{forged}, 198.51.100.7"], TRUSTED)) == "198.51.100.7"
        assert str(client_address("10.0.0.1", [forged, "198.51.100.7"], TRUSTED)) == "198.51.100.7"


def test_a_connection_without_an_address_is_not_trusted() -> None:
    """A client without an address, as on a unix socket, is not trusted. All such clients share one count."""
    assert client_address(None, ["198.51.100.7"], TRUSTED) is None
    assert client_address("", ["198.51.100.7"], TRUSTED) is None
    assert not is_trusted(None, TRUSTED)
    assert not is_trusted("", TRUSTED)
    assert counted_as(None) == "none"


def test_a_peer_in_a_trusted_network_is_trusted() -> None:
    """A peer is trusted if its address is in one of the networks; a mapped address counts as IPv4."""
    assert is_trusted("10.1.2.3", TRUSTED)
    assert is_trusted("::ffff:10.1.2.3", TRUSTED)
    assert is_trusted("fd00::1%eth0", TRUSTED)
    assert not is_trusted("11.1.2.3", TRUSTED)
    assert not is_trusted("10.1.2.3", ())


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
    ],
)
def test_ipv6_is_counted_by_its_64(address: str, counted: str) -> None:
    """All IPv6 addresses of one /64 share one count. Each IPv4 address, even mapped into IPv6, has its own."""
    assert counted_as(parse_address(address)) == counted
