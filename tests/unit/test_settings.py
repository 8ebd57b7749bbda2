"""The promises of `calotype.toml` and the environment: what is wrong is named, and a tier has one model."""

from pathlib import Path

import pytest

from catalogue.catalogue import Catalogue, SettingsError, load_catalogue, tier_for
from settings import ROOT, Settings, load_settings

GOOD = (ROOT / "calotype.toml").read_text()


def override(entries: str) -> tuple[str, str]:
    """A change of the file: entries of the model's own scheduler."""
    tier = "[models.tiny.tiers.sd]"
    return tier, f"[models.tiny.scheduler]\n{entries}\n\n{tier}"


def lora(entries: str, *, name: str = "clay", more: str = "") -> tuple[str, str]:
    """A change of the file: an adapter of the model."""
    step_cache = "step_cache = true "
    return step_cache, f"{more}\nloras.{name} = {{ {entries.replace(chr(10), ', ')} }}\n{step_cache}"


@pytest.fixture
def catalogue() -> Catalogue:
    return load_catalogue(ROOT / "calotype.toml")


def test_what_a_model_reads_from_elsewhere_is_written_as_a_path_or_as_a_table(tmp_path: Path) -> None:
    commit = 40 * "a"
    text = (ROOT / "calotype.toml").read_text(encoding="utf-8")
    changed = f"""path = "one.safetensors"
config = "folder"
vae = {{ path = "nobody/taesd", revision = "{commit}" }}
transformer = {{ path = "nobody/flux", revision = "{commit}", weight_name = "flux-Q8_0.gguf" }}
"""
    (tmp_path / "calotype.toml").write_text(
        text.replace('path = "models/tiny"            # a folder here, or a hub id with `revision`', changed),
        encoding="utf-8",
    )
    (model,) = load_catalogue(tmp_path / "calotype.toml").models
    assert {entry: part.place for entry, part in model.parts.items()} == {
        "config": "'folder'",
        "vae": f"'nobody/taesd' at {commit}",
        "transformer": f"'nobody/flux' (flux-Q8_0.gguf) at {commit}",
    }


def test_a_request_goes_to_the_smallest_tier_that_holds_it(catalogue: Catalogue) -> None:
    model = catalogue.model(None)
    assert model is not None
    sizes = {(64, 64): "sd", (128, 128): "sd", (128, 136): "hd", (192, 192): "hd", (256, 144): "hd"}
    for (width, height), name in sizes.items():
        tier = tier_for(model, width, height)
        assert tier is not None
        assert tier.name == name
    assert tier_for(model, 256, 256) is None


def test_adapters_of_a_model_are_read_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "calotype.toml"
    path.write_text(GOOD.replace(*lora('path = "loras/ink.safetensors"\ndescription = "ink drawings"')))
    model = load_catalogue(path).model("tiny")
    assert model is not None
    clay = model.lora("clay")
    assert clay is not None
    assert (clay.path, clay.description) == ("loras/ink.safetensors", "ink drawings")
    assert model.lora("bronze") is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("max_pixels = 16384", "max_pixels = -1"), "max_pixels"),
        (("max_pixels = 16384", "max_pixels = 100"), "default size"),
        (('default_model = "tiny"', 'default_model = "huge"'), "huge"),
        (('tiers = ["sd", "hd"]', 'tiers = ["xd"]'), "xd"),
        (('device = "auto"', 'device = "gpu"'), "device"),
        (("min_side = 64", "min_sides = 64"), "min_side"),
        (
            ("default_num_inference_steps = 20", "default_num_inference_steps = 900"),
            "default_num_inference_steps",
        ),
        (("schedulers =", 'revision = "main"\nschedulers ='), "'main' can move"),
        (("schedulers =", 'revision = "0123abc"\nschedulers ='), "40 hexadecimal digits"),
        *[
            (("schedulers =", f"{entry}\nschedulers ="), said)
            for entry, said in [
                ("config = 'models/tiny'", "config: the model is a folder, which has its own configuration"),
                ("weight_name = 'x.safetensors'", "config: a single file needs the folder, or the hub id"),
                (
                    "weight_name = 'x.ckpt'",
                    r"path: weights are read as \.safetensors only, and not 'x\.ckpt'",
                ),
                ("weight_name = 'x.gguf'", "'x.gguf' holds one component"),
                ("vae = 'x.gguf'", r"vae: weights are read as \.safetensors only"),
                ("transformer = 'x.bin'", r"transformer: weights are read as \.safetensors or \.gguf only"),
                (
                    "vae = { path = 'nobody/vae', revision = 'main' }",
                    r"models\.tiny\.vae: revision 'main' can",
                ),
                ("vae = { revision = 'main' }", r"models\.tiny\.vae\.path: Field required"),
                ("vae = { path = 'x', weights = 'y' }", r"models\.tiny\.vae\.weights: Extra inputs are not"),
                ("vae = 3", r"models\.tiny\.vae"),
                (
                    "transformer = 'x.gguf'\nquantization = 'int8'",
                    "quantization: the weights of a GGUF file are quantized already",
                ),
            ]
        ],
        (("schedulers =", 'dtype = "int8"\nschedulers ='), "dtype"),
        (("schedulers =", 'variant = "../fp16"\nschedulers ='), "variant"),
        (("schedulers =", 'family = "flux"\nschedulers ='), r"models\.tiny: family: delete this line"),
        (('["ddim", ', '["dimm", '), "schedulers: 'dimm' is not one of default, ddim, ddpm"),
        (
            ("max_guidance_scale = 30.0", "max_guidance_scale = 1.0"),
            "default_guidance_scale is above max_guidance_scale",
        ),
        (('["ddim", ', '["lcm", '), "max_num_inference_steps: the scheduler lcm takes at most 50"),
        (("side_multiple = 8", "side_multiple = 0"), "side_multiple: Input should be greater than 0"),
        (("step_cache = 3", "step_cache = 9"), "preset 'thrifty': step_cache is above 8"),
        (("step_cache = true", ""), "preset 'thrifty': step_cache is above 1"),
        (
            ("schedulers =", 'cpu_offload = "model"\nschedulers ='),
            "step_cache: a model with cpu_offload has none",
        ),
        (("guidance_cutoff = 0.5", "guidance_cutoff = 50"), "guidance_cutoff"),
        (("step_cache = 3", 'scheduler = "lms"'), "preset 'thrifty': scheduler 'lms' is not one of"),
        (("steps = 4\n", "steps = 151\n"), "preset 'fast': num_inference_steps is above 150"),
        (("steps = 4\n", "guidance_scale = 31\n"), "preset"),
        (("presets.fast]", "presets.Fast]"), "name"),
        (override("spacing = 'even'"), r"scheduler\.spacing: Input should be 'leading', 'trailing' or"),
        (override("shift = 0"), r"scheduler\.shift: Input should be greater than 0"),
        (override("shift = 101"), r"scheduler\.shift: Input should be less than or equal to 100"),
        (override("shift = nan"), r"scheduler\.shift: Input should be"),
        (override("prediction_type = 'x'"), r"scheduler\.prediction_type: Input should be 'epsilon', "),
        (override("use_karras_sigmas = 3"), r"scheduler\.use_karras_sigmas: Input should be a valid bool"),
        (override("beta_start = 0.1"), r"scheduler\.beta_start: Extra inputs are not permitted"),
        (
            override("rescale_betas_zero_snr = true\nprediction_type = 'epsilon'"),
            "scheduler: rescale_betas_zero_snr goes with prediction_type 'v_prediction' or 'sample'",
        ),
        (lora('path = "a.safetensors"\nscale = 1'), r"models\.tiny\.loras\.clay\.scale: Extra inputs"),
        (lora('description = "ink"'), r"models\.tiny\.loras\.clay\.path: Field required"),
        (
            lora('path = "nobody/ink"\nrevision = "main"'),
            r"models\.tiny\.loras\.clay: revision 'main' can move",
        ),
        (
            lora('path = "ink"\nweight_name = "ink.ckpt"'),
            r"models\.tiny\.loras\.clay\.weight_name: String should",
        ),
        (lora('path = "ink"', name="Ink"), r"models\.tiny\.loras\.Ink\.name: String should match"),
        (
            ("schedulers =", "max_lora_bytes = 0\nschedulers ="),
            "max_lora_bytes: Input should be greater than 0",
        ),
        (
            lora('path = "ink"', more="compile = true"),
            r"loras: a model with compile or cpu_offload 'sequential' takes none",
        ),
        (("[models.tiny]", "[models.tiny"), "calotype.toml"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    path = tmp_path / "calotype.toml"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change))
    with pytest.raises(SettingsError, match=named):
        load_catalogue(path)


def test_a_missing_setting_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALOTYPE_DATABASE_URL", raising=False)
    with pytest.raises(SettingsError, match="CALOTYPE_DATABASE_URL"):
        load_settings().require("database_url")


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_LEASE_SECONDS", "-3")
    with pytest.raises(SettingsError, match=r"^CALOTYPE_LEASE_SECONDS: Input should be greater than 0$"):
        load_settings()


@pytest.mark.parametrize("name", ["S3_ENDPOINT", "S3_PUBLIC_ENDPOINT", "PUBLIC_URL"])
@pytest.mark.parametrize("value", ["http://[bad", "s3:8333", "ftp://s3", "http://", "http://s3:99999"])
def test_an_address_that_nobody_could_follow_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"CALOTYPE_{name}", value)
    with pytest.raises(SettingsError, match=rf"^CALOTYPE_{name}: .*not an address") as caught:
        load_settings()
    assert value not in str(caught.value).replace("http://HOST", "")


def test_a_wrong_entry_of_a_list_is_named_by_its_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_WEBHOOK_ALLOWED_NETWORKS", "10.0.0.0/8, zz")
    with pytest.raises(SettingsError, match=r"^CALOTYPE_WEBHOOK_ALLOWED_NETWORKS\.1: Input is not a valid"):
        load_settings()


def test_a_setting_of_an_older_version_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_DISPATCHES_PER_SLOT", "2")
    with pytest.raises(
        SettingsError, match=r"^CALOTYPE_DISPATCHES_PER_SLOT is not a setting any more: .*; remove"
    ):
        load_settings()


def test_a_mistyped_variable_is_refused_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_LEASE_SECOND", "3")
    with pytest.raises(SettingsError, match="did you mean CALOTYPE_LEASE_SECONDS"):
        load_settings()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_DATABASE_URL", "postgresql://calotype:hunter2@127.0.0.1/calotype")
    assert "hunter2" not in repr(Settings())


def test_a_file_of_secrets_is_read_where_the_environment_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALOTYPE_SECRETS_DIR", str(tmp_path))
    monkeypatch.delenv("CALOTYPE_DATABASE_URL", raising=False)
    (tmp_path / "calotype_database_url").write_text("postgresql://of.the.file/x\n")
    (tmp_path / "another-program's").write_text("not ours")
    assert load_settings().database_url.get_secret_value() == "postgresql://of.the.file/x"
    monkeypatch.setenv("CALOTYPE_DATABASE_URL", "postgresql://of.the.environment/x")
    assert load_settings().database_url.get_secret_value() == "postgresql://of.the.environment/x"


def test_a_file_that_is_no_setting_is_named_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALOTYPE_SECRETS_DIR", str(tmp_path))
    (tmp_path / "calotype_databse_url").write_text("x")
    with pytest.raises(SettingsError, match=r"calotype_databse_url is not .*CALOTYPE_DATABASE_URL"):
        load_settings()


def test_a_folder_of_secrets_that_is_named_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALOTYPE_SECRETS_DIR", str(tmp_path / "no"))
    with pytest.raises(SettingsError, match="CALOTYPE_SECRETS_DIR"):
        load_settings()


def test_S42_orphans_are_never_as_young_as_an_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_UPLOAD_SECONDS", "10000")
    with pytest.raises(SettingsError, match=r"CALOTYPE_ORPHAN_SECONDS.*100300"):
        load_settings()


def database_url_from(monkeypatch: pytest.MonkeyPatch, value: str) -> str:
    monkeypatch.setenv("CALOTYPE_DATABASE_URL", value)
    return load_settings().database_url.get_secret_value()


def broker_url_from(monkeypatch: pytest.MonkeyPatch, value: str) -> str:
    monkeypatch.setenv("CALOTYPE_BROKER_URL", value)
    return load_settings().broker_url.get_secret_value()


@pytest.mark.parametrize(
    "scheme",
    [
        "postgres",
        "postgresql",
        "POSTGRES",
        "pgsql",
        "postgresql+psycopg2",
        "postgresql+psycopg",
        "postgres+asyncpg",
    ],
)
@pytest.mark.parametrize("around", ["{}", " {}\n", '"{}"', "'{}' ", "\t{}\r\n"])
def test_S33_every_spelling_of_a_database_url_is_read(
    monkeypatch: pytest.MonkeyPatch, scheme: str, around: str
) -> None:
    rest = "://u:p%40ss@h:5432/d?sslmode=require"
    assert database_url_from(monkeypatch, around.format(scheme + rest)) == "postgresql" + rest


@pytest.mark.parametrize(
    ("scheme", "read"),
    [
        ("redis", "redis"), ("Redis", "redis"), ("valkey", "redis"), ("redis+tcp", "redis"),
        ("rediss", "rediss"), ("valkeys", "rediss"), ("redis+tls", "rediss"), ("redis+ssl", "rediss"),
    ],
)  # fmt: skip
def test_S33_every_spelling_of_a_broker_url_is_read(
    monkeypatch: pytest.MonkeyPatch, scheme: str, read: str
) -> None:
    assert broker_url_from(monkeypatch, f" '{scheme}://:pw@h:6379/0'\n") == f"{read}://:pw@h:6379/0"


@pytest.mark.parametrize(
    "url",
    [
        "jdbc:postgresql://h/d?user=u&password=hunter2", "mysql://u:hunter2@h/d", "sqlite:///hunter2.db",
        "host=h user=u password=hunter2", "u:hunter2@h:5432/d", "hunter2", "postgres:/u:hunter2@h/d",
        "postgresql://u:hun/ter2@h/d", "postgresql://u:p#hunter2@h/d", "postgresql://u:hunter2@h:port/d",
        "postgresql://u:hunter2@h/d?schema=public&pgbouncer=true", "postgresql://u:p@h/d?x?y@hunter2=1",
        "postgresql://u:hunter2@h:99999/d", "postgresql://u:hunter2@[h/d", "postgresql://u:p hunter2@h/d",
    ],
)  # fmt: skip
def test_S33_what_is_no_database_url_is_told_by_its_setting_and_the_right_spelling_without_the_password(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with pytest.raises(
        SettingsError, match=r"^CALOTYPE_DATABASE_URL: .*postgresql://USER:PASSWORD@HOST"
    ) as caught:
        database_url_from(monkeypatch, url)
    assert not any(piece in str(caught.value) for piece in ("hunter2", "ter2", "hun/"))


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:hunter2@h//",
        "localhost:6379",
        "hunter2@h:6379/0",
        "redis://:hun/ter2@h:6379/0",
        "redis:6379",
    ],
)
def test_S33_what_is_no_broker_url_is_told_likewise(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(SettingsError, match=r"^CALOTYPE_BROKER_URL: .*redis://:PASSWORD@HOST") as caught:
        broker_url_from(monkeypatch, url)
    assert not any(piece in str(caught.value) for piece in ("hunter2", "ter2", "hun/"))


def test_S33_an_at_sign_of_a_password_is_not_where_the_host_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    url = database_url_from(monkeypatch, "postgres://u@corp:p@ss@h:5432/d?options=-c%20a@b")
    assert url == "postgresql://u%40corp:p%40ss@h:5432/d?options=-c%20a@b"


def test_S33_what_another_program_reads_out_of_the_same_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="does not know: schema, pgbouncer;"):
        database_url_from(monkeypatch, "postgres://u:p@h/d?schema=public&sslmode=require&pgbouncer=true")
    url = "postgresql:///d?host=/run/postgresql&user=u&channel_binding=require&application_name="
    assert database_url_from(monkeypatch, url) == url


def test_S33_spaces_and_quotes_around_any_value_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "LEASE_SECONDS": '"45"', "WEBHOOK_PORTS": "'443, 8443' ", "S3_ENDPOINT": ' "http://h:8333"\n',
        "S3_SECRET_KEY": "'secret'", "LOG_LEVEL": " debug ", "BUCKET": "it's",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"CALOTYPE_{name}", value)
    settings = load_settings()
    assert (settings.lease_seconds, settings.webhook_ports) == (45, (443, 8443))
    assert (settings.s3_endpoint, settings.s3_secret_key.get_secret_value()) == ("http://h:8333", "secret")
    assert (settings.log_level, settings.bucket) == ("debug", "it's")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("https://h/prefix/", "https://h/prefix"),
        ("https://h/", "https://h"),
        ("http://h:8/a/b.c", "http://h:8/a/b.c"),
    ],
)
def test_S12_a_public_url_may_have_a_prefix(monkeypatch: pytest.MonkeyPatch, value: str, read: str) -> None:
    monkeypatch.setenv("CALOTYPE_PUBLIC_URL", value)
    assert load_settings().public_url == read


@pytest.mark.parametrize(
    "value",
    [
        "https://h//elsewhere.example",
        "https://h/a/../b",
        "https://h/a?b",
        "https://h/a#",
        "https://u@h/a",
        "https://h/a b",
    ],
)
def test_S12_a_public_url_that_would_lead_links_astray_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CALOTYPE_PUBLIC_URL", value)
    with pytest.raises(SettingsError, match=r"^CALOTYPE_PUBLIC_URL: "):
        load_settings()


def test_an_endpoint_for_traces_is_an_address_and_needs_their_packages() -> None:
    with pytest.raises(SettingsError, match=r"CALOTYPE_TRACES_ENDPOINT.*http://HOST:PORT"):
        load_settings(traces_endpoint="collector:4318")
    try:
        import opentelemetry.exporter  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(
            SettingsError, match=r"CALOTYPE_TRACES_ENDPOINT.*OpenTelemetry is not installed: run pip install"
        ):
            load_settings(traces_endpoint="http://collector:4318/v1/traces")
    assert load_settings(traces_endpoint="").traces_endpoint == ""


def test_the_store_needs_keys_or_a_chain_but_not_both() -> None:
    there = {"s3_endpoint": "http://127.0.0.1:1", "s3_access_key": "", "s3_secret_key": ""}
    with pytest.raises(SettingsError, match="CALOTYPE_S3_ACCESS_KEY is not set"):
        load_settings(**there).require_store()
    load_settings(**{**there, "s3_access_key": "a", "s3_secret_key": "b"}).require_store()
    load_settings(**there, s3_credentials="chain").require_store()
    with pytest.raises(SettingsError, match="CALOTYPE_S3_SECRET_KEY is set, and"):
        load_settings(**{**there, "s3_secret_key": "b"}, s3_credentials="chain").require_store()
