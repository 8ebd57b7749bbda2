"""The promises of the address: it names a place and nothing else."""

import pytest

from client.calotype import Client, ConfigurationError


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
