"""No webhook URL that literally points inside is stored."""

import pytest

from web.api.webhook_url import check_webhook_url


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://hooks.example.com:8443/a/b?c=d",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/hook",
        "https://xn--bcher-kva.example/",
        "https://deadbeef.example/",
    ],
)
def test_a_public_https_address_is_kept(url: str) -> None:
    assert check_webhook_url(url) == url


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "0", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "10.1.2.3",
        "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "192.88.99.1", "[::1]", "[::]", "[fe80::1]",
        "[fd00::1]", "[ff02::1]", "[::ffff:127.0.0.1]", "[::ffff:8.8.8.8]", "[::127.0.0.1]",
        "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fec0::1]", "[2001:db8::1]", "localhost", "LOCALHOST.",
        "a.localhost", "printer.local", "metadata.google.internal", "127.0.0.1.", "user@example.com",
        "user:word@example.com", "", "-", "a_b.example", "exa%6dple.com", "exämple.com",
    ],
)  # fmt: skip
def test_an_address_that_leads_inside_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        check_webhook_url(f"https://{host}/hook")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "ftp://example.com",
        "file:///etc/passwd",
        "//example.com",
        "example.com",
        "https:example.com",
        "https://example.com:99999/",
        "https://exam\nple.com/",
        "https://example.com\\@127.0.0.1/",
        "https://[::1/",
        "https://example.com:0/",
        "https://[2606:4700::1111%25lo]/",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_what_is_no_plain_https_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        check_webhook_url(url)
