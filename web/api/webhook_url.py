"""Checks of a webhook URL before it is stored: https, an allowed port, no private address or local name.

Names are not resolved here. The port and every resolved address are checked again before a message is sent.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from tasks.webhooks.addresses import DEFAULT_PORTS, Network, is_open, is_within, what_is_wrong_with_port

MAX_CHARACTERS = 2048
HTTPS_PORT = 443
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)
_LOCAL_NAMES = ("localhost", "local", "internal", "localdomain", "home.arpa")


def check_webhook_form(url: str) -> str:
    """Return the URL; raises `ValueError` unless it is an https URL with a plain host."""
    if len(url) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS} characters")
    if not all("\x21" <= character <= "\x7e" for character in url) or "\\" in url:
        raise ValueError(
            "contains a character that is not allowed in a URL: only printable ASCII is accepted"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError("is not a URL") from error
    if parts.scheme != "https":
        raise ValueError("must start with https://")
    if port == 0 or "%" in parts.netloc:
        raise ValueError("has port 0 or an IPv6 zone, which no public host has")
    if "@" in parts.netloc:
        raise ValueError("must not contain a user name or password")
    return url


def check_webhook_url(url: str, allowed: Sequence[Network] = (), ports: Sequence[int] = DEFAULT_PORTS) -> str:
    """As `check_webhook_form`; the host must be public and the port one of `ports`.

    Hosts in `allowed` networks may use any port. A name may resolve to one of these, so the port of a name is
    only checked together with its addresses if there are any.
    """
    check_webhook_form(url)
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        _check_name(host, may_be_local=bool(allowed))
        may_use_any_port = bool(allowed)
    else:
        if not is_open(address, allowed):
            raise ValueError("has a private or reserved address; only public addresses are accepted")
        may_use_any_port = is_within(address, allowed)
    wrong = what_is_wrong_with_port(parts.port or HTTPS_PORT, ports)
    if wrong and not may_use_any_port:
        raise ValueError(wrong)
    return url


def _check_name(host: str, *, may_be_local: bool) -> None:
    if not _HOST.fullmatch(host):
        raise ValueError("has no valid host name")
    last = host.rpartition(".")[2].lower()
    if re.fullmatch(r"\d+|0x[0-9a-f]*", last):
        raise ValueError("has an IP address in an unsupported notation: use four decimal numbers")
    is_local = any(host.lower() == name or host.lower().endswith("." + name) for name in _LOCAL_NAMES)
    if is_local and not may_be_local:
        raise ValueError("has a local host name; only public hosts are accepted")
