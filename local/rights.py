"""Checks what each role may and may not do at Postgres, the broker and S3, by connecting as that role.

It owns the expected rights at the broker and S3; `storage.grants` lists those at Postgres. It changes nothing
that lasts, except that S3 keeps an object of a few bytes where the key may not delete it.
"""

from collections.abc import Iterable, Mapping

from local.errors import LocalError
from local.roles import Role
from storage.blobs import Blobs
from storage.database import Database
from storage.rights import in_words, is_unlimited, listed_rights, rights_of_user, undue_powers
from storage.roles import DatabaseRole
from tasks.broker import Broker

ALL_RIGHTS = frozenset({"write", "read", "list", "delete"})
S3_RIGHTS: Mapping[Role, frozenset[str]] = {
    "api": frozenset({"write", "read"}),
    "worker": frozenset({"write", "read"}),
    "sweeper": frozenset({"read", "list", "delete"}),
}
# A word in braces stands for a key or a channel below the prefix.
_DISPATCH, _COUNT, _HEAD = "LPUSH {cpu} x", "LLEN {cpu}", "LINDEX {cpu} -1"
_TAKE, _TAKE_ANY, _ASK = "BRPOP {cpu} 1", "BRPOP {check.bulk} 1", "LMPOP 1 {cpu} RIGHT"
_LISTEN, _RUN_ID = "PSUBSCRIBE {/0.celeryev/*}", "INFO server"
_BROKER_RIGHTS: Mapping[Role, tuple[str, ...]] = {
    "api": (_DISPATCH, _COUNT),
    "worker": (_DISPATCH, _COUNT, _TAKE, _TAKE_ANY, _ASK),
    "sender": (_DISPATCH, _COUNT, _TAKE),
    "sweeper": (_DISPATCH, _COUNT, _HEAD, _RUN_ID),
    "flower": (_COUNT, _LISTEN),
}
_TEMPTATIONS = ("FLUSHALL", "CONFIG GET *", "ACL LIST", _TAKE, _TAKE_ANY, _ASK)


def check_database(db: Database, role: DatabaseRole) -> str:
    """Check Postgres; return the result as text. Raises `LocalError` for a missing or excessive right."""
    with db.transaction() as connection:
        powers = undue_powers(connection, role)
        if is_unlimited(connection):
            raise LocalError(f"{role} {'; '.join(powers)}")  # every other right is excessive
        found = rights_of_user(connection)
    needed = listed_rights(role)
    _compare(role, missing=in_words(needed - found), excess=in_words(found - needed), powers=powers)
    return f"{role} has the rights of its role, and no others"


def check_broker(broker: Broker, role: Role) -> str:
    """Check the broker; returns and raises like `check_database`."""
    needed = _BROKER_RIGHTS[role]
    refused = [command for command in _TEMPTATIONS if command not in needed]
    _compare(
        role,
        missing=[command for command in needed if not _may(broker, command)],
        excess=[command for command in refused if _may(broker, command)],
    )
    return f"{role} may run {_listed(_names(needed))}, and not {_listed(_names(refused))}"


def check_s3(blobs: Blobs, role: Role) -> str:
    """Check the object store; returns and raises like `check_database`."""
    needed, found = S3_RIGHTS[role], blobs.try_out()
    _compare(role, missing=sorted(needed - found), excess=sorted(found - needed))
    may, may_not = _listed(sorted(found)), _listed(sorted(ALL_RIGHTS - found))
    return f"{role} may {may} in the bucket {blobs.bucket!r}, and not {may_not}"


def _may(broker: Broker, command: str) -> bool:
    words = command.split()
    return broker.may(*(broker.prefixed(word[1:-1]) if word.startswith("{") else word for word in words))


def _compare(
    role: Role, *, missing: Iterable[str], excess: Iterable[str], powers: Iterable[str] = ()
) -> None:
    faults = list(powers)
    faults += [f"may not {what}, which it needs" for what in missing]
    faults += [f"may {what}, to which it has no right" for what in excess]
    if faults:
        raise LocalError(f"{role} " + "; ".join(faults))


def _names(commands: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(command.split()[0] for command in commands))


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
