"""The migrations are one line of history, named as their files are."""

from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from settings import ROOT


def test_the_history_has_one_end_and_every_migration_is_named_as_its_file() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    history = ScriptDirectory.from_config(config)
    assert len(history.get_heads()) == 1
    revisions = list(history.walk_revisions())
    assert [one.revision for one in revisions] == [Path(one.path).stem for one in revisions]
    assert not any(one.is_branch_point or one.is_merge_point for one in revisions)
