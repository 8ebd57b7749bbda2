"""Which addresses webhooks may be sent to: public ones, and those of networks that were opened on purpose.

Pure Python over `ipaddress`; it resolves no name and opens no connection. The web asks it about literal
addresses when a URL is submitted, the sender about every resolved address of every attempt.
"""

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What one Python or another calls global and still can lead inside: transition prefixes, anycast relays,
# sinks of a local network, and the address at which every Azure machine finds its host.
_CLOSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "100:0:0:1::/64",
        "2001::/23",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)


def is_open(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether webhooks may be sent to this address; `allowed` networks come before every rule."""
    if _within(address, allowed):
        return True
    return address.is_global and not address.is_multicast and not _within(address, _CLOSED)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
