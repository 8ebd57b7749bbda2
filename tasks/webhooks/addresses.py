"""Decides which addresses and ports webhooks may be sent to: public ones, and explicitly allowed networks.

It has its own table, since `ipaddress`'s idea of global addresses differs between Python versions. It
resolves no names and opens no connections: the API checks literal addresses when a URL is submitted, the
sender every resolved address of every attempt.
"""

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = (443, 8443)

SPECIAL_PURPOSE = (
    # IPv4 Special-Purpose Address Registry, and 224.0.0.0/4 of the IPv4 Address Space Registry.
    "0.0.0.0/8",  # this network, RFC 791
    "10.0.0.0/8",  # private use, RFC 1918
    "100.64.0.0/10",  # shared by carriers, RFC 6598
    "127.0.0.0/8",  # loopback, RFC 1122
    "169.254.0.0/16",  # link local, RFC 3927
    "172.16.0.0/12",  # private use, RFC 1918
    "192.0.0.0/24",  # IETF protocol assignments, RFC 6890; 192.0.0.192 is Oracle's metadata service
    "192.0.2.0/24",  # documentation, RFC 5737
    "192.31.196.0/24",  # AS112, RFC 7535
    "192.52.193.0/24",  # AMT relays, RFC 7450
    "192.88.99.0/24",  # 6to4 relays, RFC 7526
    "192.168.0.0/16",  # private use, RFC 1918
    "192.175.48.0/24",  # AS112, RFC 7534
    "198.18.0.0/15",  # benchmarking, RFC 2544
    "198.51.100.0/24",  # documentation, RFC 5737
    "203.0.113.0/24",  # documentation, RFC 5737
    "224.0.0.0/4",  # multicast, RFC 5771
    "240.0.0.0/4",  # reserved, RFC 1112; limited broadcast, RFC 8190
    # IPv6 Special-Purpose Address Registry. Most of it is also closed by being outside 2000::/3.
    "::/128",  # unspecified, RFC 4291
    "::1/128",  # loopback, RFC 4291
    "::ffff:0:0/96",  # mapped IPv4, RFC 4291
    "64:ff9b::/96",  # translated to IPv4, RFC 6052
    "64:ff9b:1::/48",  # translated to IPv4 in a local network, RFC 8215
    "100::/64",  # discarded, RFC 6666
    "100:0:0:1::/64",  # dummy prefix, RFC 9780
    "2001::/23",  # IETF protocol assignments, RFC 2928: Teredo, ORCHID, benchmarking, anycast, ...
    "2001:db8::/32",  # documentation, RFC 3849
    "2002::/16",  # 6to4, which carries an IPv4 address, RFC 3056
    "2620:4f:8000::/48",  # AS112, RFC 7534
    "3fff::/20",  # documentation, RFC 9637
    "5f00::/16",  # segment routing, RFC 9602
    "fc00::/7",  # private use, RFC 4193
    "fe80::/10",  # link local, RFC 4291
    # IPv6 Global Unicast Address Assignments: blocks that are not assigned yet.
    "2d00::/8",
    "2e00::/7",
    "3000::/4",
)
"""Closed networks: IANA's registries of special-purpose addresses, with entries up to RFC 9780 (2025), and
unassigned blocks. Entries that are globally reachable are closed too: an anycast relay receives no webhooks.
https://www.iana.org/assignments/iana-ipv4-special-registry
https://www.iana.org/assignments/iana-ipv6-special-registry
https://www.iana.org/assignments/ipv6-unicast-address-assignments"""

OF_PROVIDERS = ("168.63.129.16/32",)
"""Public by the registries but private in effect: Azure machines reach their host at this address."""

_CLOSED: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text in (*SPECIAL_PURPOSE, *OF_PROVIDERS))
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291 §2.4, all that IANA has ever assigned from


def is_open(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether webhooks may be sent to this address; `allowed` networks override every rule."""
    if is_within(address, allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in _GLOBAL_UNICAST or address.scope_id is not None or _is_isatap(address)
    ):
        return False
    return not is_within(address, _CLOSED)


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether one of these networks contains the address; a mapped IPv4 address counts as IPv6."""
    return any(address.version == network.version and address in network for network in networks)


def what_is_wrong_with_port(port: int, ports: Iterable[int]) -> str | None:
    """Why webhooks are not sent to this port of a public host; `None` if they are."""
    accepted = sorted(ports)
    if port in accepted:
        return None
    return f"port {port} is not accepted; accepted are: {', '.join(map(str, accepted))}"


def _is_isatap(address: ipaddress.IPv6Address) -> bool:
    # RFC 5214 §6.1: 0000:5efe or 0200:5efe, then the IPv4 address at the end of a tunnel.
    return (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE
