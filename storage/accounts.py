"""Accounts and their API keys. A key is shown once; only its SHA-256 digest is stored.

A key has 200 random bits, so a fast hash is enough: it cannot be guessed.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, text, update

from storage.database import Database
from storage.errors import NotFound
from storage.identifiers import new_id
from storage.tables import accounts, api_keys

MAX_KEY_CHARACTERS = 128  # ours have 48
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LAST_USED_RESOLUTION_SECONDS = 60


@dataclass(frozen=True)
class NewKey:
    """A new key with its plaintext, which exists only at this moment."""

    id: str
    account_id: str
    plaintext: str


@dataclass(frozen=True)
class Key:
    """A key without its secret, as it is listed."""

    id: str
    account_id: str
    name: str
    prefix: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class Principal:
    """The account and the key that a request is authenticated by."""

    account_id: str
    key_id: str


def create_account(db: Database, name: str) -> str:
    """Insert an account with a new webhook secret (`whsec_`, Standard Webhooks); returns its id."""
    account_id = new_id("acc")
    row = {
        "id": account_id,
        "name": name,
        "webhook_secret": _new_webhook_secret(),
        "created_at": func.clock_timestamp(),
    }
    with db.transaction() as connection:
        connection.execute(insert(accounts).values(row))
    return account_id


def find_account(db: Database, name: str) -> str | None:
    """The id of the oldest account with that name, or `None`."""
    query = select(accounts.c.id).where(accounts.c.name == name).order_by(accounts.c.created_at).limit(1)
    with db.transaction() as connection:
        return connection.execute(query).scalar_one_or_none()


def embeds_parameters(db: Database, account_id: str) -> bool:
    """Whether the account's images embed their parameters; raises `NotFound`."""
    query = select(accounts.c.embed_parameters).where(accounts.c.id == account_id)
    with db.transaction() as connection:
        wanted: bool | None = connection.execute(query).scalar_one_or_none()
    if wanted is None:
        raise NotFound(f"no account {account_id!r}")
    return wanted


def embed_parameters(db: Database, account_id: str, wanted: bool) -> None:
    """Set whether new images of the account embed their parameters."""
    statement = update(accounts).where(accounts.c.id == account_id).values(embed_parameters=wanted)
    with db.transaction() as connection:
        connection.execute(statement)


def webhook_secret(db: Database, account_id: str) -> str:
    """The secret by which the account's receivers verify signatures; raises `NotFound`."""
    query = select(accounts.c.webhook_secret).where(accounts.c.id == account_id)
    with db.transaction(account_id=account_id) as connection:
        secret: str | None = connection.execute(query).scalar_one_or_none()
    if secret is None:
        raise NotFound(f"no account {account_id!r}")
    return secret


def rotate_webhook_secret(db: Database, account_id: str, *, grace_seconds: float) -> str:
    """Set and return a new secret; for `grace_seconds` deliveries are signed with the previous one too."""
    until = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, grace_seconds)
    new = _new_webhook_secret()
    statement = (
        update(accounts)
        .where(accounts.c.id == account_id)
        .values(
            webhook_secret=new,
            previous_webhook_secret=accounts.c.webhook_secret,
            previous_webhook_secret_until=until,
        )
    )
    with db.transaction(account_id=account_id) as connection:
        connection.execute(statement)
    return new


def create_key(db: Database, account_id: str, name: str) -> NewKey:
    """Insert a key and return it with its plaintext, `calo_<8>_<34>`."""
    with db.transaction() as connection:
        return _insert_key(connection, account_id, name)


def rotate_key(db: Database, key_id: str, *, keep_old: bool = False) -> NewKey:
    """Replace an active key with a new one of the same account and name, in one transaction.

    With `keep_old` the old key stays active until it is revoked. Raises `NotFound` without an active key.
    """
    query = select(api_keys.c.account_id, api_keys.c.name).where(
        api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)
    )
    with db.transaction() as connection:
        old = connection.execute(query.with_for_update()).one_or_none()
        if old is None:
            raise NotFound(f"no active key {key_id!r}")
        if not keep_old:
            _revoke(connection, key_id)
        return _insert_key(connection, old.account_id, old.name)


def authenticate(db: Database, plaintext: str) -> Principal | None:
    """The principal of an active key, or `None`.

    It runs one statement and caches nothing: once a revocation has returned, it is effective everywhere. The
    database compares digests, so that timing reveals nothing about a key.
    """
    if len(plaintext) > MAX_KEY_CHARACTERS:
        return None
    parts = plaintext.split("_")
    prefix = parts[1] if len(parts) == 3 and parts[0] == "calo" and plaintext.isascii() else ""
    if not prefix.isalnum():
        return None
    shown = {"prefix": prefix, "digest": _digest(plaintext), "seconds": LAST_USED_RESOLUTION_SECONDS}
    rows = db.execute(_USE_KEY, shown, idempotent=True)
    return Principal(rows[0].account_id, rows[0].key_id) if rows else None


def list_keys(db: Database, account_id: str | None = None) -> list[Key]:
    """All keys of one account or of every account, oldest first."""
    query = select(*(api_keys.c[name] for name in Key.__dataclass_fields__)).order_by(api_keys.c.created_at)
    if account_id is not None:
        query = query.where(api_keys.c.account_id == account_id)
    with db.transaction() as connection:
        return [Key(**row._mapping) for row in connection.execute(query)]


def revoke_key(db: Database, key_id: str) -> None:
    """Revoke a key; raises `NotFound` if there is no such active key."""
    with db.transaction() as connection:
        if not _revoke(connection, key_id):
            raise NotFound(f"no active key {key_id!r}")


def _insert_key(connection: Connection, account_id: str, name: str) -> NewKey:
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    plaintext = f"calo_{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(34))
    key_id = new_id("key")
    row = {
        "id": key_id,
        "account_id": account_id,
        "name": name,
        "prefix": prefix,
        "digest": _digest(plaintext),
        "created_at": func.clock_timestamp(),
    }
    connection.execute(insert(api_keys).values(row))
    return NewKey(key_id, account_id, plaintext)


def _revoke(connection: Connection, key_id: str) -> bool:
    statement = (
        update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=func.clock_timestamp())
        .returning(api_keys.c.id)
    )
    return connection.execute(statement).one_or_none() is not None


def _new_webhook_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode()).hexdigest()


_USE_KEY = text("SELECT account_id, key_id FROM use_key(:prefix, :digest, :seconds)")
