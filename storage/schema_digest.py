"""A digest of the schema and its rights: of the code that makes them, and of what the database has of them.

Equal digests mean that `alembic upgrade head` would change nothing. It covers changes that were made by hand,
and a database that was restored. It knows no migration.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from storage.database import Database
from storage.roles import GROUPS

UNDEFINED_TABLE = "42P01"


def schema_digest(db: Database, sources: Iterable[Path]) -> str | None:
    """Return the digest, for which `db` connects as the owner; None if no migration has run yet.

    `sources` are the folders and files with the code of the schema and its rights.
    """
    try:
        with db.transaction() as connection:
            facts = connection.execute(_FACTS, {"groups": list(GROUPS)}).scalars().all()
    except ProgrammingError as error:
        if getattr(error.orig, "pgcode", None) != UNDEFINED_TABLE:
            raise
        return None
    digest = hashlib.sha256("\n".join(facts).encode())
    for source in sources:
        for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            name = file.relative_to(source.parent)
            digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


_FACTS = text(
    """
    SELECT fact
      FROM (SELECT 'version ' || version_num FROM alembic_version
            UNION ALL
            SELECT concat_ws(' ', 'schema', nspname, nspowner, nspacl::text)
              FROM pg_namespace WHERE nspname = current_schema()
            UNION ALL
            SELECT concat_ws(' ', 'relation', relname, relkind, relowner, relrowsecurity, relforcerowsecurity,
                             relacl::text, CASE WHEN relkind = 'i' THEN pg_get_indexdef(oid)
                                                WHEN relkind = 'v' THEN pg_get_viewdef(oid) END)
              FROM pg_class WHERE relnamespace = current_schema()::regnamespace
            UNION ALL
            SELECT concat_ws(' ', 'column', attrelid::regclass, attname, format_type(atttypid, atttypmod),
                             attnotnull, attacl::text, pg_get_expr(adbin, adrelid))
              FROM pg_attribute
              JOIN pg_class ON pg_class.oid = attrelid AND relnamespace = current_schema()::regnamespace
              LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
             WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'v')
            UNION ALL
            SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid))
              FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
            UNION ALL
            SELECT concat_ws(' ', 'trigger', tgrelid::regclass, tgenabled, pg_get_triggerdef(pg_trigger.oid))
              FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
             WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal
            UNION ALL
            SELECT concat_ws(' ', 'function', pg_proc.oid::regprocedure, proowner, prosecdef, proacl::text,
                             proconfig::text, md5(prosrc))
              FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
            UNION ALL
            SELECT concat_ws(' ', 'policy', polrelid::regclass, polname, polcmd, polpermissive,
                             polroles::text, pg_get_expr(polqual, polrelid),
                             pg_get_expr(polwithcheck, polrelid))
              FROM pg_policy JOIN pg_class ON pg_class.oid = polrelid
             WHERE relnamespace = current_schema()::regnamespace
            UNION ALL
            SELECT concat_ws(' ', 'group', rolname, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole,
                             rolreplication, rolbypassrls)
              FROM pg_roles WHERE rolname = ANY(:groups)) AS facts (fact)
     ORDER BY fact
    """
)
