"""How this installation is reached and paced: the environment, frozen.

Owns every setting, its name, its default and its check; what is served is `catalogue`'s. Only composition
roots import it; everything below them is handed plain values. It opens no connection and knows no library
but pydantic.
"""

import difflib
import os
import re
from collections.abc import Callable
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

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

ROOT = Path(__file__).resolve().parent
Seconds = Annotated[float, Field(gt=0)]
PREFIX = "CALOTYPE_"
SECRETS_VARIABLE = "CALOTYPE_SECRETS_DIR"
OTHER_VARIABLES = frozenset({"CALOTYPE_BOOT_ID", "CALOTYPE_URL", "CALOTYPE_API_KEY", SECRETS_VARIABLE})
"""Variables of ours that are no settings: a process' birth mark, options of the command line, and where
files with settings lie."""
SECRETS_FOLDER = Path("/run/secrets")
"""Where Docker and others put them."""


def _split(value: Any) -> Any:
    """A list is written with commas in the environment."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


_QUOTES = ("'", '"')
_POSTGRES = re.compile(r"(postgres|postgresql|pgsql)(\+\w+)?", re.ASCII)
_BROKERS = {
    "redis": "redis", "valkey": "redis", "redis+tcp": "redis",
    "rediss": "rediss", "valkeys": "rediss", "redis+tls": "rediss", "redis+ssl": "rediss",
}  # fmt: skip
_LIBPQ_NAMES = frozenset({
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname",
    "fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "host", "hostaddr",
    "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname",
    "load_balance_hosts", "max_protocol_version", "min_protocol_version", "options", "passfile",
    "password", "port", "replication", "require_auth", "requirepeer", "requiressl", "scram_client_key",
    "scram_server_key", "service", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert",
    "sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkey", "sslkeylogfile", "sslmode",
    "sslnegotiation", "sslpassword", "sslrootcert", "sslsni", "target_session_attrs",
    "tcp_user_timeout", "user",
})  # fmt: skip
"""What the query of a database URL may set (PostgreSQL 18, section 32.1.2)."""
_DATABASE_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_BROKER_FORM = "redis://:PASSWORD@HOST:PORT/0, or rediss:// with TLS"


def _unquote(value: Any) -> Any:
    """The text without the spaces around it, and without the quotes that some readers of .env files keep."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
        text = text[1:-1].strip()
    return text


def _database_url(value: SecretStr) -> SecretStr:
    """The URL as libpq and SQLAlchemy read it, from any spelling that platforms give it."""
    url = _spelled(value, _DATABASE_FORM, lambda name: "postgresql" if _POSTGRES.fullmatch(name) else None)
    query = parse_qsl(urlsplit(url.get_secret_value()).query, keep_blank_values=True)
    unknown = [name for name, _ in query if name not in _LIBPQ_NAMES]
    if unknown:
        # Such as `schema` and `pgbouncer`, which other programs read out of the same URL.
        shown = ", ".join(name for name in unknown if re.fullmatch(r"[A-Za-z_]{1,40}", name)) or "a name"
        raise ValueError(
            f"its query sets what Postgres' own client does not know: {shown}; it is to be written "
            f"{_DATABASE_FORM}, without that"
        )
    return url


def _broker_url(value: SecretStr) -> SecretStr:
    """The URL as redis-py and kombu read it."""
    return _spelled(value, _BROKER_FORM, _BROKERS.get)


def _spelled(value: SecretStr, form: str, scheme_of: Callable[[str], str | None]) -> SecretStr:
    """The same URL under the scheme that it means; what is wrong is told without any part of the URL."""
    url = value.get_secret_value()
    if not url:
        return value
    name, mark, rest = url.partition("://")
    scheme = scheme_of(name.lower())
    if not mark or scheme is None:
        # Before "://" stands no password; anything else may hold one.
        named = f"{name!r} is not known here: " if mark and re.fullmatch(r"[\w+.:-]{1,40}", name) else ""
        raise ValueError(f"{named}it is to be written {form}")
    place, slash, path = rest.partition("/")
    userinfo, at, host = place.rpartition("@")
    # The last @ ends the password. SQLAlchemy takes the first: the others are written as it reads them.
    rest = userinfo.replace("@", "%40") + at + host + slash + path
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        is_whole = parts.port != 0 and not parts.fragment and not re.search(r"\s", rest)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"it is to be written {form}; in a name or a password / is %2F, # is %23, ? is %3F, % is %25 and "
            "a space is %20"
        )
    return SecretStr(f"{scheme}://{rest}")


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


def _check_public_url(value: str) -> str:
    """The address without a slash at its end; refuse what no link of ours can be put behind."""
    value = _check_address(value).rstrip("/")
    try:
        url = urlsplit(value)
    except ValueError:  # told by the check before
        return value
    segments = url.path.split("/")[1:]
    if url.query or url.fragment or "@" in url.netloc or "?" in value or "#" in value:
        raise ValueError("it is not an address like https://HOST/PREFIX: without user, query and fragment")
    # Two slashes would make an address of another host out of each link.
    if not all(re.fullmatch(r"[\w.~%-]+", part, re.ASCII) and part.strip(".") for part in segments):
        raise ValueError("its path holds an empty part, a dot alone, or what a path must write as %XX")
    return value


def _check_origin(value: str) -> str:
    """Refuse what no browser would send as `Origin`, with the way to write it."""
    if value == "*":
        return value
    url = urlsplit(_check_address(value))
    port = "" if url.port in (None, 443 if url.scheme == "https" else 80) else f":{url.port}"
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    origin = f"{url.scheme}://{host}{port}"
    if not origin.isascii() or not set("@*").isdisjoint(url.netloc):
        raise ValueError(f"{value} is not an origin: a whole name in ASCII (xn--...), without a user or *")
    if value != origin:
        raise ValueError(f"{value} is not an origin as browsers send it; did you mean {origin}?")
    return value


def _check_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse `*` among others: the list would say less than it opens."""
    if "*" in values and len(values) > 1:
        raise ValueError("* stands for every origin and stands alone")
    return values


def _check_file(value: Path | None) -> Path | None:
    """Refuse a file that cannot be read, at the start rather than at the first connection."""
    if value is not None and not os.access(value, os.R_OK):
        raise ValueError(f"{value} is not a file that can be read")
    return value


Address = Annotated[str, AfterValidator(_check_address)]
# A relative path is one of the folder in which the command was given, also for the processes that it starts.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


class Settings(BaseSettings):
    """Everything that the environment decides, as `CALOTYPE_<NAME>`, or a secret file `calotype_<name>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    config: AbsolutePath = ROOT / "calotype.toml"
    data_dir: AbsolutePath = ROOT / ".calotype"
    profiles_dir: AbsolutePath = Field(default_factory=lambda known: known["data_dir"] / "profiles")
    run_dir: AbsolutePath | None = None
    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = SecretStr("")
    broker_url: Annotated[SecretStr, AfterValidator(_broker_url)] = SecretStr("")
    broker_key_prefix: str = "calotype:"
    s3_endpoint: Address = ""
    s3_public_endpoint: Address = ""
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
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
    idle_seconds: Seconds = 150
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_check_origin)], ...],
        NoDecode,
        BeforeValidator(_split),
        AfterValidator(_check_origins),
    ] = ()
    dispatches_per_slot: Positive = 2
    max_attempts: Positive = 5
    max_csv_bytes: Positive = 10_000_000
    max_csv_rows: Positive = 10_000
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
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @field_validator("*", mode="before")
    @classmethod
    def _unquote_values(cls, value: Any) -> Any:
        """Drop quotes and spaces around every value: `docker run --env-file`, for one, passes quotes on."""
        return _unquote(value)

    @field_validator("data_dir", mode="before")
    @classmethod
    def _default_data_dir(cls, value: Any) -> Any:
        """Take an empty variable for one that is not set, as the command line does."""
        return value or cls.model_fields["data_dir"].default

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

    @property
    def paths(self) -> dict[str, str]:
        """Every path that is set, by its variable, for a process that starts in another folder."""
        found = {name: value for name, value in self if isinstance(value, Path)}
        return {f"{PREFIX}{name}".upper(): str(path) for name, path in found.items()}

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
    folder = Path(named).absolute() if named else SECRETS_FOLDER
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
