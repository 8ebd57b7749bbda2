"""Reads from Postgres what the user of a connection may do with our tables.

Owns the queries and the phrases for their results. `storage.grants` defines what a role should be able to do;
callers decide what follows from a difference.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, text

from storage.grants import FUNCTIONS, GRANTS, SEQUENCES, VIEWS
from storage.roles import DatabaseRole, group_of
from storage.tables import metadata


class Right(NamedTuple):
    """One action on a table, view, sequence or function, or on one column of a table or view."""

    action: str
    name: str
    column: str = ""


def listed_rights(role: DatabaseRole) -> frozenset[Right]:
    """The rights that `storage.grants` lists for the role."""
    found = set()
    for table, grant in GRANTS[role].items():
        found |= {Right(action, table, name) for action, names in grant.rights.items() for name in names}
        if grant.delete:
            found.add(Right("delete", table))
    found |= {Right("usage", sequence) for sequence in SEQUENCES.get(role, ())}
    found |= {Right("execute", function) for function in FUNCTIONS.get(role, ())}
    return frozenset(found)


def rights_of_user(connection: Connection) -> frozenset[Right]:
    """The rights that the user of this connection has, directly or through its groups or PUBLIC."""
    rows = connection.execute(
        _RIGHTS,
        {
            "tables": [*metadata.tables, *VIEWS, "alembic_version"],
            "sequences": _names(SEQUENCES.values()),
            "functions": _names(FUNCTIONS.values()),
        },
    )
    return frozenset(Right(*row) for row in rows)


def undue_powers(connection: Connection, role: DatabaseRole) -> list[str]:
    """The powers of this user beyond those of the role's group, as phrases."""
    user = connection.execute(_USER, {"tables": [*metadata.tables, *VIEWS]}).one()
    if user.rolsuper:
        return ["is a superuser, which has every right"]
    found = [words for power, words in _POWERS.items() if user._mapping[power]]
    found += [f"is a member of {group}" for group in user.groups if group != group_of(role)]
    if user.owned:
        found.append(f"owns {', '.join(user.owned)}")
    return found


def is_unlimited(connection: Connection) -> bool:
    """Whether rights do not limit this user, since it owns one of our tables or is a superuser."""
    user = connection.execute(_USER, {"tables": [*metadata.tables, *VIEWS]}).one()
    return bool(user.rolsuper or user.owned)


def in_words(rights: Iterable[Right]) -> list[str]:
    """One phrase per action and table, with columns in parentheses: `select jobs (prompt, seed)`."""
    columns: dict[tuple[str, str], list[str]] = defaultdict(list)
    for right in sorted(rights):
        columns[right.name, right.action].append(right.column)
    return [
        f"{_VERBS.get(action, action)} {name}" + (f" ({', '.join(of_it)})" if all(of_it) else "")
        for (name, action), of_it in sorted(columns.items())
    ]


def _names(groups: Iterable[tuple[str, ...]]) -> list[str]:
    return sorted({name for group in groups for name in group})


_VERBS = {"usage": "use"}
_POWERS = {
    "rolbypassrls": "bypasses row-level security",
    "rolcreaterole": "may create roles",
    "rolcreatedb": "may create databases",
    "rolreplication": "may replicate the whole cluster",
    "creates": "may create tables in the schema",
}
_USER = text(
    """
    SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication,
           COALESCE(has_schema_privilege(current_schema(), 'CREATE'), false) AS creates,
           ARRAY(SELECT rolname::text FROM pg_roles AS parent
                  WHERE parent.oid <> me.oid AND pg_has_role(me.oid, parent.oid, 'MEMBER')
                  ORDER BY rolname) AS groups,
           ARRAY(SELECT relname::text FROM pg_class
                   JOIN pg_namespace ON pg_namespace.oid = relnamespace AND nspname = current_schema()
                  WHERE relowner = me.oid AND relname = ANY(:tables) ORDER BY relname) AS owned
      FROM pg_roles AS me WHERE rolname = current_user
    """
)
_RIGHTS = text(
    """
    WITH ours AS (
        SELECT pg_class.oid, relname, relkind FROM pg_class
          JOIN pg_namespace ON pg_namespace.oid = relnamespace AND nspname = current_schema()
         WHERE relname = ANY(:tables) OR relname = ANY(:sequences)
    )
    SELECT action, relname, attname
      FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped,
           unnest(ARRAY['select', 'insert', 'update', 'references']) AS action
     WHERE relkind <> 'S' AND has_column_privilege(ours.oid, attnum, action)
    UNION ALL
    SELECT action, relname, '' FROM ours, unnest(ARRAY['delete', 'truncate', 'trigger']) AS action
     WHERE relkind <> 'S' AND has_table_privilege(ours.oid, action)
    UNION ALL
    SELECT action, relname, '' FROM ours, unnest(ARRAY['usage', 'select', 'update']) AS action
     WHERE relkind = 'S' AND has_sequence_privilege(ours.oid, action)
    UNION ALL
    SELECT 'execute', proname, '' FROM pg_proc
      JOIN pg_namespace ON pg_namespace.oid = pronamespace AND nspname = current_schema()
     WHERE proname = ANY(:functions) AND has_function_privilege(pg_proc.oid, 'execute')
    """
)
