"""The database's roles: a group for each kind of process, and the users that are its members.

A group holds the rights that `storage.grants` lists. Groups exist once per cluster and cannot log in; users
belong to one installation. The deployment decides which process logs in as which user.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from psycopg2.extensions import encrypt_password
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from storage.database import Database
from storage.driver_errors import INSUFFICIENT_PRIVILEGE, sqlstate
from storage.errors import RolesNotSet

DatabaseRole = Literal["api", "worker", "sender", "sweeper"]
ROLES: tuple[DatabaseRole, ...] = get_args(DatabaseRole)
_POWERS = ("rolsuper", "rolcreatedb", "rolcreaterole", "rolreplication", "rolbypassrls")


def group_of(role: DatabaseRole) -> str:
    """The Postgres role that holds the rights of this role."""
    return f"calotype_{role}"


GROUPS = tuple(group_of(role) for role in ROLES)


def create_groups(connection: Connection) -> None:
    """Create the groups that the cluster lacks; raises `RolesNotSet` if this user may not create roles."""
    known = set(connection.execute(text("SELECT rolname FROM pg_roles")).scalars())
    missing = [group for group in GROUPS if group not in known]
    may = text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
    if missing and not connection.execute(may).scalar_one():
        statements = "\n".join(f"  CREATE ROLE {group} NOLOGIN;" for group in missing)
        raise RolesNotSet(
            "this database user may not create roles, and these are missing. As an administrator run\n"
            f"{statements}\nand then run this again"
        )
    for group in missing:
        # Another database of the cluster may be migrated at the same time.
        connection.exec_driver_sql(
            f"""DO $$ BEGIN CREATE ROLE {group} NOLOGIN;
                EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"""
        )


def set_users(db: Database, urls: Mapping[DatabaseRole, str]) -> None:
    """Create or alter the users of these URLs as members of their groups; `db` connects as the owner.

    Raises `RolesNotSet` for a URL without user and password, for a user with rights beyond its group's, and
    if the owner may not create users.
    """
    users = {role: _user_of(role, url) for role, url in urls.items()}
    if len({name for name, _ in users.values()}) < len(users):
        raise RolesNotSet("two roles name the same database user: each needs one of its own")
    try:
        with db.transaction() as connection:
            for role, (name, password) in users.items():
                _set_user(connection, role, name, password)
    except ProgrammingError as error:
        if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
            raise
        statements = "\n".join(
            f"  CREATE ROLE {name} LOGIN PASSWORD '...' IN ROLE {group_of(role)};"
            for role, (name, _) in users.items()
        )
        raise RolesNotSet(
            f"this database user may not create users. As an administrator run\n{statements}"
        ) from error


def _user_of(role: DatabaseRole, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    name, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme != "postgresql" or not name or not password:
        raise RolesNotSet(f"{role}: not a URL like postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    if name in GROUPS:
        raise RolesNotSet(f"{role}: {name} is a group, which cannot log in: choose another user name")
    return name, password


def _set_user(connection: Connection, role: DatabaseRole, name: str, password: str) -> None:
    row = connection.execute(_FACTS, {"name": name}).one_or_none()
    if row is not None and (name == row.owner or any(row._mapping[power] for power in _POWERS)):
        raise RolesNotSet(f"{role}: the user {name} has more rights than a {role} may have")
    user = connection.dialect.identifier_preparer.quote_identifier(name)
    if row is None:
        connection.exec_driver_sql(f"CREATE ROLE {user}")
    # The verifier, since a server that logs such statements would log a password.
    driver: Any = connection.connection.dbapi_connection
    verifier = encrypt_password(password, name, driver, "scram-sha-256")
    connection.exec_driver_sql(f"ALTER ROLE {user} LOGIN PASSWORD '{verifier}'")
    groups = [] if row is None else row.groups
    for group in sorted(set(groups) - {group_of(role)}):
        if group not in GROUPS:
            raise RolesNotSet(f"{role}: the user {name} is a member of {group}, too")
        connection.exec_driver_sql(f"REVOKE {group} FROM {user}")
    if group_of(role) not in groups:
        connection.exec_driver_sql(f"GRANT {group_of(role)} TO {user}")


_FACTS = text(
    f"""
    SELECT {", ".join(_POWERS)}, session_user AS owner,
           ARRAY(SELECT parent.rolname::text FROM pg_auth_members
                   JOIN pg_roles AS parent ON parent.oid = roleid WHERE member = pg_roles.oid) AS groups
      FROM pg_roles WHERE rolname = :name
    """
)
