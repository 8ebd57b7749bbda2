"""S34: what a view reads of a request behind the front: PEP 3333, and no header that passes for another."""

import io
from typing import Any

import pytest

from web.front.wsgi import WaitingClient, environ_of


def environ(target: bytes = b"/", peer: str = "10.0.0.1", *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    scope = {
        "method": "GET",
        "raw_path": target,
        "query_string": b"a=%C3%A9",
        "http_version": "1.1",
        "headers": list(headers),
        "client": (peer, 5000),
        "server": ("10.0.0.2", 8000),
    }
    return environ_of(scope, io.BytesIO(b"body"), 4, WaitingClient())


def test_S34_a_path_is_bytes_and_a_query_stays_as_it_was_sent() -> None:
    found = environ(b"/v1/%C3%A9%2Fb")
    assert found["PATH_INFO"].encode("latin-1").decode() == "/v1/é/b"
    assert found["QUERY_STRING"] == "a=%C3%A9"


def test_S34_a_body_that_came_in_chunks_has_its_length() -> None:
    found = environ(b"/", "10.0.0.1", (b"transfer-encoding", b"chunked"))
    assert (found["CONTENT_LENGTH"], found["wsgi.input"].read()) == ("4", b"body")
    assert "HTTP_TRANSFER_ENCODING" not in found


def test_S34_headers_are_joined_and_one_with_an_underscore_passes_for_no_other() -> None:
    found = environ(
        b"/",
        "10.0.0.1",
        (b"accept", b"a"),
        (b"accept", b"b"),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
        (b"x_request_id", b"forged"),
        (b"content-type", b"text/csv"),
    )
    assert (found["HTTP_ACCEPT"], found["HTTP_COOKIE"]) == ("a,b", "a=1; b=2")
    assert (found["CONTENT_TYPE"], "HTTP_X_REQUEST_ID" in found) == ("text/csv", False)


@pytest.mark.parametrize(
    ("peer", "said", "scheme"),
    [("127.0.0.1", b"https", "https"), ("127.0.0.1", b"http", "http"), ("10.0.0.1", b"https", "http")],
)
def test_S34_only_a_proxy_on_this_machine_says_that_clients_came_by_https(
    peer: str, said: bytes, scheme: str
) -> None:
    assert environ(b"/", peer, (b"x-forwarded-proto", said))["wsgi.url_scheme"] == scheme
