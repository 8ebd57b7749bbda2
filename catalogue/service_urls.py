"""Normalizes and checks the URLs of the database and the broker, in any spelling that platforms use.

Error messages quote no part of a URL that may hold a password. It opens no connections.
"""

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

_POSTGRES = re.compile(r"(postgres|postgresql|pgsql)(\+\w+)?", re.ASCII)
_BROKERS = {
    "redis": "redis", "valkey": "redis", "redis+tcp": "redis",
    "rediss": "rediss", "valkeys": "rediss", "redis+tls": "rediss", "redis+ssl": "rediss",
}  # fmt: skip
_LIBPQ_NAMES = frozenset({
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname",
    "fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "host", "hostaddr",
    "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname",
    "load_balance_hosts", "max_protocol_version", "min_protocol_version", "options", "passfile",
    "password", "port", "replication", "require_auth", "requirepeer", "requiressl", "scram_client_key",
    "scram_server_key", "service", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert",
    "sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkey", "sslkeylogfile", "sslmode",
    "sslnegotiation", "sslpassword", "sslrootcert", "sslsni", "target_session_attrs",
    "tcp_user_timeout", "user",
})  # fmt: skip
"""The parameters that a database URL may set in its query (PostgreSQL 18, section 32.1.2)."""
_DATABASE_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_BROKER_FORM = "redis://:PASSWORD@HOST:PORT/0, or rediss:// with TLS"


def normalize_database_url(value: SecretStr) -> SecretStr:
    """Return the URL as libpq and SQLAlchemy read it; raises `ValueError`."""
    url = _normalized(value, _DATABASE_FORM, lambda name: "postgresql" if _POSTGRES.fullmatch(name) else None)
    query = parse_qsl(urlsplit(url.get_secret_value()).query, keep_blank_values=True)
    unknown = [name for name, _ in query if name not in _LIBPQ_NAMES]
    if unknown:
        # For example `schema` or `pgbouncer`, which other programs read from the same URL.
        shown = ", ".join(name for name in unknown if re.fullmatch(r"[A-Za-z_]{1,40}", name)) or "a name"
        raise ValueError(
            f"its query sets a parameter that libpq does not know: {shown}; write it as "
            f"{_DATABASE_FORM}, without that parameter"
        )
    return url


def normalize_broker_url(value: SecretStr) -> SecretStr:
    """Return the URL as redis-py and kombu read it; raises `ValueError`."""
    return _normalized(value, _BROKER_FORM, _BROKERS.get)


def _normalized(value: SecretStr, form: str, scheme_of: Callable[[str], str | None]) -> SecretStr:
    """The URL with the scheme that `scheme_of` gives for its own, its password escaped."""
    url = value.get_secret_value()
    if not url:
        return value
    name, mark, rest = url.partition("://")
    scheme = scheme_of(name.lower())
    if not mark or scheme is None:
        # The part before "://" holds no password; any other part may.
        named = f"the scheme {name!r} is unknown: " if mark and re.fullmatch(r"[\w+.:-]{1,40}", name) else ""
        raise ValueError(f"{named}write it as {form}")
    place, slash, path = rest.partition("/")
    userinfo, at, host = place.rpartition("@")
    # The last @ ends the password. SQLAlchemy splits at the first, so the others are escaped.
    rest = userinfo.replace("@", "%40") + at + host + slash + path
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        is_whole = parts.port != 0 and not parts.fragment and not re.search(r"\s", rest)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"write it as {form}; in a user name or password, escape / as %2F, # as %23, ? as %3F, % as %25 "
            "and a space as %20"
        )
    return SecretStr(f"{scheme}://{rest}")
