"""The promises of the address and of timeouts: a place and nothing else, and time for what takes long."""

import pytest

from client.calotype import Client, ConfigurationError, calls
from client.calotype.connection import Connection, connection_to


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://user:hunter2@127.0.0.1:8000", "user"),
        ("https://hunter2@host.example", "user"),
        ("http://:hunter2@host.example/prefix", "user"),
        ("http://user:hunter2@host.example:port", "user"),
        ("http://127.0.0.1:8000/?", "query"),
        ("http://127.0.0.1:8000?", "query"),
        ("http://127.0.0.1:8000/?token=hunter2", "query"),
        ("http://127.0.0.1:8000/#hunter2", "fragment"),
        ("http://127.0.0.1:8000#", "fragment"),
    ],
)
def test_an_address_with_more_than_a_place_is_refused_without_showing_its_password(
    url: str, rule: str
) -> None:
    with pytest.raises(ConfigurationError, match=rule) as failed:
        Client(url=url, api_key="calo_1")
    assert failed.value.code == "configuration"
    assert "hunter2" not in str(failed.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/", "https://host.example/a/prefix", "http://[::1]:80"]
)
def test_an_address_with_a_port_or_a_prefix_is_taken(url: str) -> None:
    with Client(url=url, api_key="calo_1") as client:
        assert client.url == url.rstrip("/")


@pytest.fixture
def connection() -> Connection:
    return connection_to("http://a.example", "calo_1", timeout_seconds=30, ca_file=None, version="1")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_answer_to_a_csv_is_awaited_in_proportion_to_its_rows(connection: Connection, end: bytes) -> None:
    def timeout_of(num_rows: int) -> dict[str, float]:
        content = b"prompt" + end + (b"a red heart" + end) * num_rows
        call = calls.upload_csv("a.csv", content, {}, idempotency_key=None)
        timeout: dict[str, float] = connection.request_options(call)["timeout"].as_dict()
        return timeout

    assert timeout_of(1)["read"] == pytest.approx(30, abs=0.1)
    assert timeout_of(100_000)["read"] == pytest.approx(330, abs=0.1)
    assert timeout_of(100_000)["connect"] == timeout_of(100_000)["write"] == 30


def test_the_retry_of_a_batch_is_awaited_like_the_largest_csv(connection: Connection) -> None:
    call = calls.retry_batch("bat_1", idempotency_key=None)
    assert connection.request_options(call)["timeout"].read == 330
    assert connection.request_options(calls.get_batch("bat_1"))["timeout"].read == 30
