"""S13: pages of other origins may read the API where a setting names them, and nothing of our own pages."""

from collections.abc import Iterator

import httpx2
import pytest

from catalogue.catalogue import SettingsError
from local.endpoints import Embedded
from settings import Settings, load_settings
from tests.served import Served, served

OURS, THEIRS = "https://app.example.com", "https://evil.example.com"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, prefer"}


@pytest.fixture(scope="module")
def server(migrated: Embedded) -> Iterator[Served]:
    origins = f"{OURS}, http://localhost:5173"
    with served(migrated.environment_of("api") | {"CALOTYPE_CORS_ORIGINS": origins}) as found:
        yield found


@pytest.fixture
def http(server: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, trust_env=False, timeout=60) as found:
        yield found


def said(answer: httpx2.Response) -> dict[str, str]:
    return {
        name.removeprefix("access-control-"): value
        for name, value in answer.headers.items()
        if name.startswith("access-control-")
    }


@pytest.mark.parametrize("origin", [OURS, "http://localhost:5173"])
def test_S13_a_browser_that_asks_first_is_told_what_it_may_send_and_for_how_long(
    http: httpx2.Client, origin: str
) -> None:
    for path in ("/v1/jobs", "/v1/batches", "/v1/nothing", "/healthz", "/openapi.json"):
        answer = http.options(path, headers={"Origin": origin, **ASKS})
        assert (answer.status_code, answer.content) == (204, b"")
        told = said(answer)
        assert told["allow-origin"] == origin
        assert "allow-credentials" not in told
        assert {"GET", "HEAD", "POST", "DELETE"} <= set(told["allow-methods"].split(", "))
        assert {"Authorization", "Content-Type", "Idempotency-Key", "Prefer", "X-Request-ID"} <= set(
            told["allow-headers"].split(", ")
        )
        assert int(told["max-age"]) >= 600
        assert answer.headers["Vary"] == "Origin"


def test_S13_every_answer_of_the_api_can_be_read_errors_and_those_of_the_front_too(
    http: httpx2.Client, api_key: str
) -> None:
    key = {"Authorization": f"Bearer {api_key}"}
    asked: list[tuple[str, str, dict[str, str], bytes, int]] = [
        ("GET", "/healthz", {}, b"", 200),
        ("GET", "/readyz", {}, b"", 200),
        ("GET", "/v1/jobs", key, b"", 200),
        ("POST", "/v1/jobs", {**key, "Content-Type": "application/json"}, b'{"prompt": "a red heart"}', 202),
        ("POST", "/v1/jobs", {**key, "Content-Type": "application/json"}, b" " * 100_000, 413),
        ("GET", "/v1/jobs", {}, b"", 401),
        ("GET", "/v1/nothing", key, b"", 404),
        ("PUT", "/v1/jobs", key, b"", 405),
        ("GET", "/v1/jobs", {f"X-{number}": "" for number in range(101)}, b"", 431),
    ]
    for method, path, headers, body, status in asked:
        answer = http.request(method, path, headers={"Origin": OURS, **headers}, content=body)
        assert answer.status_code == status
        told = said(answer)
        assert told["allow-origin"] == OURS, (method, path)
        assert {
            "Location",
            "Retry-After",
            "Preference-Applied",
            "Idempotent-Replayed",
            "X-Request-ID",
        } <= set(told["expose-headers"].split(", "))
        assert "allow-credentials" not in told
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize(
    "origin",
    [
        THEIRS,
        "null",
        OURS + "/",
        OURS.upper(),
        OURS + ":443",
        "http://app.example.com",
        OURS + ".evil.com",
        "",
    ],
)
def test_S13_another_origin_is_told_nothing_and_caches_know_why(http: httpx2.Client, origin: str) -> None:
    for answer in (
        http.options("/v1/jobs", headers={"Origin": origin, **ASKS}),
        http.get("/healthz", headers={"Origin": origin}),
    ):
        assert answer.is_success
        assert said(answer) == {}
        assert answer.headers["Vary"] == "Origin"


def test_S13_no_page_and_no_session_of_ours_is_opened(http: httpx2.Client) -> None:
    for path in ("/", "/jobs", "/jobs/job_x", "/session", "/session/end", "/docs", "/docs/try", "/nothing"):
        for answer in (
            http.options(path, headers={"Origin": OURS, **ASKS}),
            http.get(path, headers={"Origin": OURS}),
        ):
            assert said(answer) == {}, path


def test_S13_off_is_the_default_and_a_star_opens_to_everyone(migrated: Embedded) -> None:
    with served(migrated.environment_of("api")) as closed:
        answer = httpx2.get(f"{closed.url}/healthz", headers={"Origin": OURS}, trust_env=False)
        assert (said(answer), "Vary" in answer.headers) == ({}, False)
        answer = httpx2.options(f"{closed.url}/v1/jobs", headers={"Origin": OURS, **ASKS}, trust_env=False)
        assert (answer.status_code, answer.headers["Allow"], said(answer)) == (
            204,
            "GET, HEAD, OPTIONS, POST",
            {},
        )
    # Below a prefix that the proxy may have taken away, or left.
    settings = {"CALOTYPE_CORS_ORIGINS": "*", "CALOTYPE_PUBLIC_URL": "https://images.example.com/draw"}
    with served(migrated.environment_of("api") | settings) as opened:
        for answer in (
            httpx2.options(f"{opened.url}/draw/v1/jobs", headers={"Origin": THEIRS, **ASKS}, trust_env=False),
            httpx2.get(f"{opened.url}/v1/jobs", headers={"Origin": THEIRS}, trust_env=False),
            httpx2.options(f"{opened.url}/v1/jobs", headers={"Origin": THEIRS, **ASKS}, trust_env=False),
        ):
            assert said(answer)["allow-origin"] == "*"
            assert "allow-credentials" not in said(answer)


def test_S12_S13_a_prefix_of_letters_beyond_ascii_opens_the_same_paths(
    migrated: Embedded, api_key: str
) -> None:
    settings = {"CALOTYPE_CORS_ORIGINS": "*", "CALOTYPE_PUBLIC_URL": "https://h.example.com/b%C3%BCcher"}
    settings["CALOTYPE_MAX_CSV_ROWS"] = "10000"
    with served(migrated.environment_of("api") | settings) as opened:
        large = "prompt\n" + "a red heart\n" * 10_001  # beyond what anything but an upload may bring
        answer = httpx2.post(
            f"{opened.url}/b%C3%BCcher/v1/batches",
            files={"file": ("large.csv", large)},
            headers={"Authorization": f"Bearer {api_key}", "Origin": THEIRS},
            trust_env=False,
        )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_csv")  # read, and one row too many
    assert said(answer)["allow-origin"] == "*"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://app.example.com/", "did you mean https://app.example.com?"),
        ("https://app.example.com/page", "did you mean https://app.example.com?"),
        ("https://App.example.com", "did you mean https://app.example.com?"),
        ("https://app.example.com:443", "did you mean https://app.example.com?"),
        ("http://localhost:80", "did you mean http://localhost?"),
        ("app.example.com", "not an address"),
        ("null", "not an address"),
        ("https://*.example.com", "full host name"),
        ("https://bücher.example", "ASCII"),
        ("https://user@app.example.com", "without user"),
        ("*, https://app.example.com", "must be the only value"),
    ],
)
def test_S13_an_origin_that_no_browser_sends_is_refused_with_the_way_to_write_it(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setenv("CALOTYPE_CORS_ORIGINS", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "CALOTYPE_CORS_ORIGINS" in str(refused.value)
    assert words in str(refused.value)


def test_S13_origins_are_written_with_commas_and_one_with_a_port_or_an_address_is_one() -> None:
    origins = "https://app.example.com, http://localhost:5173,http://[::1]:8080"
    assert Settings(cors_origins=origins).cors_origins == (
        "https://app.example.com",
        "http://localhost:5173",
        "http://[::1]:8080",
    )
