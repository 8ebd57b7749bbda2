"""The promises of `config show`: every value with its origin, and no secret of any of them."""

import json
from pathlib import Path

import pytest

from local.effective_settings import effective_settings, shown_settings
from local.state import State
from settings import Settings

PASSWORD = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CALOTYPE_{name.upper()}", raising=False)
    (tmp_path / "secrets").mkdir()
    monkeypatch.setenv("CALOTYPE_SECRETS_DIR", str(tmp_path / "secrets"))


def shown(data_dir: Path) -> dict[str, tuple[object, str]]:
    found = {
        entry.name: (entry.value, entry.origin) for entry in shown_settings(*effective_settings(data_dir))
    }
    assert PASSWORD not in json.dumps(found, default=str)
    return found


def test_every_setting_is_shown_and_a_default_is_called_one(tmp_path: Path) -> None:
    found = shown(tmp_path)
    assert {f"CALOTYPE_{name.upper()}" for name in Settings.model_fields} <= set(found)
    assert found["CALOTYPE_LEASE_SECONDS"] == (30, "default")
    assert found["CALOTYPE_DATABASE_URL"] == ("", "default")


def test_the_environment_counts_before_a_file_of_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bucket", "s3_region"):
        (tmp_path / "secrets" / f"calotype_{name}").write_text("of-the-file\n")
    monkeypatch.setenv("CALOTYPE_BUCKET", "of-the-environment")
    found = shown(tmp_path)
    assert found["CALOTYPE_BUCKET"] == ("of-the-environment", "environment")
    assert found["CALOTYPE_S3_REGION"] == (
        "of-the-file",
        str(tmp_path / "secrets" / "calotype_s3_region"),
    )


@pytest.mark.parametrize(
    ("variable", "value", "seen"),
    [
        ("database_url", f"postgresql://me:{PASSWORD}@db:5432/x", "postgresql://me:********@db:5432/x"),
        ("database_url", f"postgresql://db/x?password={PASSWORD}", "postgresql://db/x?********"),
        ("broker_url", f"redis://:{PASSWORD}@[::1]:6379/0", "redis://:********@[::1]:6379/0"),
        ("broker_url", f"redis://{PASSWORD}@h/0", "redis://********@h/0"),
        ("s3_secret_key", PASSWORD, "********"),
        ("s3_endpoint", f"http://me:{PASSWORD}@s3:8333", "http://me:********@s3:8333"),
        ("public_url", "https://calotype.example", "https://calotype.example"),
    ],
)
def test_no_password_is_shown_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, seen: str
) -> None:
    name = f"CALOTYPE_{variable.upper()}"
    monkeypatch.setenv(name, value)
    assert shown(tmp_path)[name] == (seen, "environment")


def test_what_up_keeps_in_a_folder_counts_where_nothing_else_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    with State.open(folder) as state:
        port = state.ports["s3"]
    monkeypatch.setenv("CALOTYPE_BUCKET", "mine")
    found = shown(folder)
    assert found["CALOTYPE_S3_ENDPOINT"] == (f"http://127.0.0.1:{port}", f"`calotype up` in {folder}")
    assert found["CALOTYPE_BUCKET"] == ("mine", "environment")
    assert state.secrets["s3_secret_key"] not in str(found)
    assert state.secrets["postgres_password"] not in str(found)


def test_an_entry_of_the_catalogue_says_whether_the_file_has_it(tmp_path: Path) -> None:
    settings, origins = effective_settings(tmp_path)
    found = {entry.name: entry for entry in shown_settings(settings, origins)}
    assert found["models.tiny.path"].origin == str(settings.config)
    assert found["models.tiny.revision"].origin == "default"
    assert found["models.tiny.tiers.sd.max_pixels"].value == 16384
    assert found["workers[0].device"].value == "auto"
