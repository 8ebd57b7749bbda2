"""The settings of an installation: addresses, limits and durations, read from the environment.

Owns the name, the default and the validation of every setting; `catalogue` owns the models that are served.
Only composition roots import it and pass plain values on. It opens no connections.
"""

import difflib
import importlib.util
import os
import re
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

from catalogue.catalogue import Catalogue, Positive, SettingsError, load_catalogue, what_is_wrong
from catalogue.service_urls import normalize_broker_url, normalize_database_url

ROOT = Path(__file__).resolve().parent
Seconds = Annotated[float, Field(gt=0)]
PREFIX = "CALOTYPE_"
SECRETS_VARIABLE = "CALOTYPE_SECRETS_DIR"
OTHER_VARIABLES = frozenset(
    {"CALOTYPE_BOOT_ID", "CALOTYPE_WEB_PROCESS", "CALOTYPE_URL", "CALOTYPE_API_KEY", SECRETS_VARIABLE}
)
"""Our variables that are not settings: what a parent tells a process, command-line options, and the secrets
folder."""
REMOVED = {
    "CALOTYPE_DISPATCHES_PER_SLOT": "workers claim bulk jobs by themselves",
}
"""Settings of older versions, each with the reason why it has no effect any more."""
SECRETS_FOLDER = Path("/run/secrets")
"""Where Docker and other platforms mount secrets."""


def _split(value: Any) -> Any:
    """Split a list, whose items are separated by commas in the environment."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


_QUOTES = ("'", '"')


def _unquote(value: Any) -> Any:
    """Strip spaces, and the quotes that some readers of .env files keep."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
        text = text[1:-1].strip()
    return text


def _check_address(value: str) -> str:
    """Reject an address that is not http(s); an empty one means that the setting is not set."""
    try:
        url = urlsplit(value)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_address = False
    if value and not is_address:
        raise ValueError("it is not an address like http://HOST:PORT")
    return value


def _check_traces(value: str) -> str:
    """Reject an endpoint that nothing could be sent to, since the packages for it are missing."""
    if not value:
        return value
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ValueError(
            "OpenTelemetry is not installed: run pip install --no-deps -r requirements-traces.lock"
        )
    return value


def _check_public_url(value: str) -> str:
    """Strip trailing slashes; reject an address to which no path can be appended."""
    value = _check_address(value).rstrip("/")
    try:
        url = urlsplit(value)
    except ValueError:  # rejected above
        return value
    segments = url.path.split("/")[1:]
    if url.query or url.fragment or "@" in url.netloc or "?" in value or "#" in value:
        raise ValueError("it is not an address like https://HOST/PREFIX, without user, query and fragment")
    # A link that begins with two slashes would lead to another host.
    if not all(re.fullmatch(r"[\w.~%-]+", part, re.ASCII) and part.strip(".") for part in segments):
        raise ValueError(
            "its path has an empty segment, a dot segment, or a character that must be escaped as %XX"
        )
    return value


def _check_origin(value: str) -> str:
    """Reject a value that no browser sends as `Origin`, and suggest the right spelling."""
    if value == "*":
        return value
    url = urlsplit(_check_address(value))
    port = "" if url.port in (None, 443 if url.scheme == "https" else 80) else f":{url.port}"
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    origin = f"{url.scheme}://{host}{port}"
    if not origin.isascii() or not set("@*").isdisjoint(url.netloc):
        raise ValueError(
            f"{value} is not an origin: write the full host name in ASCII (xn--...), without user or *"
        )
    if value != origin:
        raise ValueError(f"{value} is not an origin as browsers send it; did you mean {origin}?")
    return value


def _check_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Reject `*` together with other origins, which it would make pointless."""
    if "*" in values and len(values) > 1:
        raise ValueError("* means every origin and must be the only value")
    return values


def _check_file(value: Path | None) -> Path | None:
    """Reject an unreadable file at the start rather than at the first connection."""
    if value is not None and not os.access(value, os.R_OK):
        raise ValueError(f"{value} is not a readable file")
    return value


Address = Annotated[str, AfterValidator(_check_address)]
# A relative path belongs to the working directory of the command, also in processes that it starts.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


class Settings(BaseSettings):
    """All settings, from variables `CALOTYPE_<NAME>` or secret files `calotype_<name>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    config: AbsolutePath = ROOT / "calotype.toml"
    data_dir: AbsolutePath = ROOT / ".calotype"
    profiles_dir: AbsolutePath = Field(default_factory=lambda known: known["data_dir"] / "profiles")
    run_dir: AbsolutePath | None = None
    database_url: Annotated[SecretStr, AfterValidator(normalize_database_url)] = SecretStr("")
    broker_url: Annotated[SecretStr, AfterValidator(normalize_broker_url)] = SecretStr("")
    broker_key_prefix: str = "calotype:"
    s3_endpoint: Address = ""
    s3_public_endpoint: Address = ""
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    s3_session_token: SecretStr = SecretStr("")
    s3_credentials: Literal["keys", "chain"] = "keys"
    s3_addressing: Literal["path", "virtual"] = "path"
    s3_region: str = "us-east-1"
    bucket: str = "calotype"
    public_url: Annotated[str, AfterValidator(_check_public_url)] = ""
    ca_file: Annotated[AbsolutePath | None, AfterValidator(_check_file)] = None

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
    interactive_retention_seconds: Annotated[float, Field(ge=0)] = 0
    bulk_retention_seconds: Annotated[float, Field(ge=0)] = 0
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

    web_processes: Annotated[int, Field(gt=0, le=64)] = 1
    web_threads: Positive = 32
    max_waiters: Positive = 128
    max_connections: Positive = 4096
    header_seconds: Seconds = 10
    body_seconds: Seconds = 30
    answer_seconds: Seconds = 30
    idle_seconds: Seconds = 150
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_check_origin)], ...],
        NoDecode,
        BeforeValidator(_split),
        AfterValidator(_check_origins),
    ] = ()
    bulk_slowdown: Annotated[float, Field(gt=0, le=1)] = 0.1
    bulk_patience_seconds: Seconds = 60
    max_attempts: Positive = 5
    worker_max_jobs: Annotated[int, Field(ge=0)] = 0
    worker_max_memory_bytes: Annotated[int, Field(ge=0)] = 0
    max_csv_bytes: Positive = 50_000_000
    max_csv_rows: Positive = 100_000
    max_csv_urls: Positive = 100
    fetch_allowed_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)
    ] = ()
    max_body_bytes: Positive = 65_536
    max_file_bytes: Positive = 33_554_432
    max_image_pixels: Positive = 50_000_000
    max_image_side: Positive = 16_384
    file_seconds: Seconds = 86_400
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, lt=65536)] = 0
    traces_endpoint: Annotated[Address, AfterValidator(_check_traces)] = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @field_validator("*", mode="before")
    @classmethod
    def _unquote_values(cls, value: Any) -> Any:
        """Strip quotes and spaces around every value: `docker run --env-file` passes quotes on."""
        return _unquote(value)

    @field_validator("data_dir", mode="before")
    @classmethod
    def _default_data_dir(cls, value: Any) -> Any:
        """Treat an empty variable as not set, as the command line does."""
        return value or cls.model_fields["data_dir"].default

    @field_validator("orphan_seconds")
    @classmethod
    def _check_orphan_seconds(cls, value: float, info: ValidationInfo) -> float:
        """Reject a value that is not far above the duration of an upload and a lease."""
        least = 10 * sum(info.data.get(name, 0) for name in ("lease_seconds", "upload_seconds"))
        if value < least:
            raise ValueError(
                f"it must be at least {least:g}, ten times the duration of a lease and an upload"
            )
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
        """Read the caller's values first, then the environment, then the secrets folder if there is one."""
        # No `.env`: the one beside docker-compose.yml is for Compose and has other names.
        folder = secrets_folder()
        files = [SecretsSettingsSource(settings_cls, secrets_dir=folder)] if folder else []
        return (init_settings, env_settings, *files)

    @property
    def catalogue(self) -> Catalogue:
        """The content of `calotype.toml`, read once per process."""
        return _catalogue(self.config)

    @property
    def database(self) -> dict[str, Any]:
        """Keyword arguments of `storage.database.Database`."""
        return {"url": self.database_url.get_secret_value(), "ca_file": self.ca_file}

    @property
    def broker(self) -> dict[str, Any]:
        """Keyword arguments of `tasks.broker.Broker`."""
        return {
            "url": self.broker_url.get_secret_value(),
            "key_prefix": self.broker_key_prefix,
            "ca_file": self.ca_file,
        }

    @property
    def celery(self) -> dict[str, Any]:
        """Keyword arguments of `tasks.app.make_celery`."""
        return {**self.broker, "tiers": [tier.name for tier in self.catalogue.tiers]}

    @property
    def object_store(self) -> dict[str, Any]:
        """Keyword arguments of `storage.blobs.Blobs`."""
        return {
            "endpoint": self.s3_endpoint,
            "public_endpoint": self.s3_public_endpoint,
            "region": self.s3_region,
            "access_key": self.s3_access_key.get_secret_value(),
            "secret_key": self.s3_secret_key.get_secret_value(),
            "session_token": self.s3_session_token.get_secret_value(),
            "addressing": self.s3_addressing,
            "bucket": self.bucket,
            "ca_file": self.ca_file,
        }

    @property
    def retention(self) -> dict[str, float]:
        """For how many seconds ended jobs are kept, by lane, without lanes that keep them for ever."""
        kept = {"interactive": self.interactive_retention_seconds, "bulk": self.bulk_retention_seconds}
        return {lane: seconds for lane, seconds in kept.items() if seconds}

    @property
    def paths(self) -> dict[str, str]:
        """Every path that is set, by its variable, for a process with another working directory."""
        found = {name: value for name, value in self if isinstance(value, Path)}
        return {f"{PREFIX}{name}".upper(): str(path) for name, path in found.items()}

    def require_store(self) -> None:
        """Raise `SettingsError` unless the object store and what proves our identity to it are set."""
        keys = ("s3_access_key", "s3_secret_key")
        if self.s3_credentials == "keys":
            self.require("s3_endpoint", *keys)
            return
        self.require("s3_endpoint")
        for name in (*keys, "s3_session_token"):
            if getattr(self, name).get_secret_value():
                variable = f"CALOTYPE_{name.upper()}"
                raise SettingsError(
                    f"{variable} is set, and CALOTYPE_S3_CREDENTIALS=chain does not use it: unset one of them"
                )

    def require(self, *names: str) -> None:
        """Raise `SettingsError` for the first of these settings that is empty."""
        for name in names:
            value = getattr(self, name)
            if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
                raise SettingsError(f"CALOTYPE_{name.upper()} is not set")


@cache
def _catalogue(path: Path) -> Catalogue:
    return load_catalogue(path)


def secrets_folder() -> Path | None:
    """The folder `CALOTYPE_SECRETS_DIR`, which must be readable if set, or `/run/secrets` if it exists."""
    named = os.environ.get(SECRETS_VARIABLE)
    folder = Path(named).absolute() if named else SECRETS_FOLDER
    # Some systems have a /run/secrets of their own that we may not read.
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        return folder
    if named:
        raise SettingsError(f"{SECRETS_VARIABLE}: {folder} is not a readable folder")
    return None


def origins() -> dict[str, str]:
    """The names of all settings that are set, each with `environment` or the path of its file."""
    folder = secrets_folder()
    files = [] if folder is None else [path for path in sorted(folder.iterdir()) if path.is_file()]
    found = {_setting_of(path.name): str(path) for path in files if _is_ours(path.name)}
    return found | {_setting_of(name): "environment" for name in os.environ if _is_ours(name)}


def load_settings(**values: object) -> Settings:
    """Read the settings, with `values` first; raises `SettingsError` for invalid and unknown ones."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for setting, origin in origins().items():
        name = f"{PREFIX}{setting}".upper()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            where = name if origin == "environment" else origin
            if name in REMOVED:
                raise SettingsError(f"{where} is not a setting any more: {REMOVED[name]}; remove it")
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
