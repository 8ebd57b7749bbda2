"""How this installation is reached and paced: the environment, frozen.

Owns every setting, its name, its default and its check; what is served is `catalogue`'s. Only composition
roots import it; everything below them is handed plain values. It opens no connection and knows no library
but pydantic.
"""

import difflib
import os
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from catalogue import Catalogue, Positive, SettingsError, load_catalogue, what_is_wrong

ROOT = Path(__file__).resolve().parent
Seconds = Annotated[float, Field(gt=0)]
PREFIX = "CALOTYPE_"
SECRETS_VARIABLE = "CALOTYPE_SECRETS_DIR"
OTHER_VARIABLES = frozenset(
    {"CALOTYPE_BOOT_ID", "CALOTYPE_URL", "CALOTYPE_API_KEY", "CALOTYPE_DATA_DIR", SECRETS_VARIABLE}
)
"""Variables of ours that are no settings: a process' birth mark, options of the command line, and where
files with settings lie."""
SECRETS_FOLDER = Path("/run/secrets")
"""Where Docker and others put them."""


def _split(value: Any) -> Any:
    """A list is written with commas in the environment."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _check_address(value: str) -> str:
    """Refuse what no client could follow; nothing at all means that it is not set."""
    try:
        url = urlsplit(value)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_address = False
    if value and not is_address:
        raise ValueError("it is not an address like http://HOST:PORT")
    return value


def _check_file(value: Path | None) -> Path | None:
    """Refuse a file that cannot be read, at the start rather than at the first connection."""
    if value is not None and not os.access(value, os.R_OK):
        raise ValueError(f"{value} is not a file that can be read")
    return value


Address = Annotated[str, AfterValidator(_check_address)]


class Settings(BaseSettings):
    """Everything that the environment decides, as `CALOTYPE_<NAME>`, or a secret file `calotype_<name>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    config: Path = ROOT / "calotype.toml"
    profiles_dir: Path = ROOT / "profiles"
    run_dir: Path | None = None
    database_url: SecretStr = SecretStr("")
    broker_url: SecretStr = SecretStr("")
    broker_key_prefix: str = "calotype:"
    s3_endpoint: Address = ""
    s3_public_endpoint: Address = ""
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = "us-east-1"
    bucket: str = "calotype"
    public_url: Address = ""
    ca_file: Annotated[Path | None, AfterValidator(_check_file)] = None

    lease_seconds: Seconds = 30
    heartbeat_seconds: Seconds = 5
    sweep_seconds: Seconds = 1
    watchdog_seconds: Seconds = 60
    self_test_seconds: Seconds = 600
    redispatch_seconds: Seconds = 15
    worker_alive_seconds: Seconds = 20
    drain_seconds: Seconds = 60
    upload_seconds: Seconds = 120
    max_wait_seconds: Seconds = 60
    orphan_seconds: Seconds = 86_400
    image_url_seconds: Annotated[int, Field(gt=0, le=900)] = 900

    webhook_timeout_seconds: Seconds = 15
    webhook_retry_seconds: Annotated[tuple[Seconds, ...], NoDecode, BeforeValidator(_split)] = (
        5, 30, 300, 1800, 7200, 28800,
    )  # fmt: skip
    webhook_allowed_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)
    ] = ()
    webhook_ports: Annotated[
        tuple[Annotated[int, Field(ge=1, lt=65536)], ...],
        NoDecode,
        BeforeValidator(_split),
        Field(min_length=1),
    ] = (443, 8443)
    webhook_threads: Positive = 32
    webhooks_per_account: Positive = 4
    webhook_pause_seconds: Seconds = 432_000
    webhook_keep_seconds: Seconds = 432_000

    web_threads: Positive = 32
    max_waiters: Positive = 128
    max_connections: Positive = 4096
    header_seconds: Seconds = 10
    body_seconds: Seconds = 30
    answer_seconds: Seconds = 30
    idle_seconds: Seconds = 75
    bells_per_slot: Positive = 2
    max_attempts: Positive = 5
    max_csv_bytes: Positive = 10_000_000
    max_csv_rows: Positive = 10_000
    max_body_bytes: Positive = 65_536
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, lt=65536)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @field_validator("orphan_seconds")
    @classmethod
    def _check_orphan_seconds(cls, value: float, info: ValidationInfo) -> float:
        """Refuse what an upload or a lease could come near."""
        least = 10 * sum(info.data.get(name, 0) for name in ("lease_seconds", "upload_seconds"))
        if value < least:
            raise ValueError(f"it must be {least:g} at least, ten times a lease and an upload")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic gives it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the caller says, then the environment, then the folder of secrets where there is one."""
        # No `.env`: the one beside docker-compose.yml is Compose's own, with other names in it.
        folder = secrets_folder()
        files = [SecretsSettingsSource(settings_cls, secrets_dir=folder)] if folder else []
        return (init_settings, env_settings, *files)

    @property
    def catalogue(self) -> Catalogue:
        """`calotype.toml`, read once a process."""
        return _catalogue(self.config)

    @property
    def database(self) -> dict[str, Any]:
        """Keyword arguments of `storage.database.Database`: which one, and whom it must be."""
        return {"url": self.database_url.get_secret_value(), "ca_file": self.ca_file}

    @property
    def broker(self) -> dict[str, Any]:
        """Keyword arguments of `tasks.broker.Broker` and `tasks.app.make_celery`."""
        return {
            "url": self.broker_url.get_secret_value(),
            "key_prefix": self.broker_key_prefix,
            "ca_file": self.ca_file,
        }

    @property
    def object_store(self) -> dict[str, Any]:
        """Keyword arguments of `storage.blobs.Blobs`."""
        return {
            "endpoint": self.s3_endpoint,
            "public_endpoint": self.s3_public_endpoint,
            "region": self.s3_region,
            "access_key": self.s3_access_key.get_secret_value(),
            "secret_key": self.s3_secret_key.get_secret_value(),
            "bucket": self.bucket,
            "ca_file": self.ca_file,
        }

    def require(self, *names: str) -> None:
        """Raise `SettingsError` naming the first of these settings that is empty."""
        for name in names:
            value = getattr(self, name)
            if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
                raise SettingsError(f"CALOTYPE_{name.upper()} is not set")


@cache
def _catalogue(path: Path) -> Catalogue:
    return load_catalogue(path)


def secrets_folder() -> Path | None:
    """The folder of `CALOTYPE_SECRETS_DIR`, which must exist, or `/run/secrets` where it does."""
    named = os.environ.get(SECRETS_VARIABLE)
    folder = Path(named) if named else SECRETS_FOLDER
    # Some systems keep a /run/secrets of their own, which is for nobody else to look into.
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        return folder
    if named:
        raise SettingsError(f"{SECRETS_VARIABLE}: {folder} is not a folder that can be read")
    return None


def origins() -> dict[str, str]:
    """Which settings are set here, each with where: `environment`, or the path of its file."""
    folder = secrets_folder()
    files = [] if folder is None else [path for path in sorted(folder.iterdir()) if path.is_file()]
    found = {_setting_of(path.name): str(path) for path in files if _is_ours(path.name)}
    return found | {_setting_of(name): "environment" for name in os.environ if _is_ours(name)}


def load_settings(**values: object) -> Settings:
    """Read the environment, after `values`; raises `SettingsError` naming what is wrong or unknown."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for setting, origin in origins().items():
        name = f"{PREFIX}{setting}".upper()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            where = name if origin == "environment" else origin
            raise SettingsError(
                f"{where} is not a setting" + (f"; did you mean {close[0]}?" if close else "")
            )
    try:
        return Settings(**values)  # type: ignore[arg-type]  # as strings, which pydantic checks
    except ValidationError as error:
        raise SettingsError(what_is_wrong(error, lambda name: f"{PREFIX}{name}".upper())) from error
    except (ValueError, OSError) as error:
        raise SettingsError(str(error)) from error


def _is_ours(name: str) -> bool:
    return name.upper().startswith(PREFIX)


def _setting_of(name: str) -> str:
    return name[len(PREFIX) :].lower()
