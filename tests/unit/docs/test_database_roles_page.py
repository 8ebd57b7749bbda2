"""docs/reference/database-roles.md lists the rights that `storage.grants` gives."""

import pytest

from storage.grants import GRANTS
from storage.roles import DatabaseRole

from .conftest import ReadTable

PAGE = "docs/reference/database-roles.md"


def _cell(columns: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in columns) or "-"


@pytest.mark.parametrize("role", GRANTS)
def test_S35_the_rights_of_a_role_are_all_documented(role: DatabaseRole, read_table: ReadTable) -> None:
    rights = [
        [
            f"`{table}`",
            *map(_cell, (grant.select, grant.insert, grant.update)),
            "yes" if grant.delete else "-",
        ]
        for table, grant in GRANTS[role].items()
    ]
    assert read_table(PAGE, f"## {role}") == rights
