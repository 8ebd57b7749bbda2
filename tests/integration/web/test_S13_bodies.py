"""S13: bodies as clients send them: compressed, with a byte-order mark, as another kind of JSON."""

import gzip
import io
import zlib

import pytest

from tests.integration.web.conftest import Client, assert_problem

JOB = b'{"prompt": "a red heart"}'


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (gzip.compress(JOB), {"Content-Encoding": "gzip"}),
        (zlib.compress(JOB), {"Content-Encoding": "deflate"}),
        (JOB, {"Content-Encoding": "identity"}),
        (b"\xef\xbb\xbf" + JOB, {}),
        (JOB, {"Content-Type": "application/json; charset=UTF-8"}),
        (JOB, {"Content-Type": 'Application/JSON; charset="utf-8"'}),
        (JOB, {"Content-Type": "application/vnd.example+json"}),
    ],
)
def test_S13_a_job_is_read_as_clients_send_it(client: Client, data: bytes, headers: dict[str, str]) -> None:
    headers = {"Content-Type": "application/json", **headers}
    answer = client("POST", "/v1/jobs", data=data, headers=headers)
    assert (answer.status_code, answer.get_json()["prompt"]) == (202, "a red heart")


@pytest.mark.parametrize(
    ("data", "headers", "status", "code", "words"),
    [
        (JOB, {"Content-Encoding": "br"}, 415, "unsupported_media_type", "'br'"),
        (JOB, {"Content-Encoding": "gzip"}, 400, "malformed_body", "cannot be decompressed as gzip"),
        (gzip.compress(bytes(10_000_000)), {"Content-Encoding": "gzip"}, 413, "body_too_large", "65536"),
        ('{"prompt": "a"}'.encode("utf-16"), {}, 400, "malformed_body", "UTF-16"),
        (
            JOB,
            {"Content-Type": "application/json; charset=utf-16"},
            415,
            "unsupported_media_type",
            "'utf-16'",
        ),
        (JOB, {"Content-Type": "application/jsonp"}, 415, "unsupported_media_type", "application/json"),
        (JOB, {"Content-Type": "text/json"}, 415, "unsupported_media_type", "text/json"),
    ],
)
def test_S13_what_is_not_read_is_named(
    client: Client, data: bytes, headers: dict[str, str], status: int, code: str, words: str
) -> None:
    headers = {"Content-Type": "application/json", **headers}
    answer = client("POST", "/v1/jobs", data=data, headers=headers)
    assert words in assert_problem(answer, status, code)["detail"]
    if headers.get("Content-Encoding") == "br":
        assert answer.headers["Accept-Encoding"] == "gzip, deflate"
    elif status == 415:
        assert answer.headers["Accept"] == "application/json"


def test_S13_a_compressed_upload_is_read_and_bounded_as_a_plain_one(client: Client) -> None:
    def upload(text: bytes) -> bytes:
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n%b\r\n--x--\r\n'
        return gzip.compress(part % text)

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Encoding": "gzip"}
    made = client("POST", "/v1/batches", data=upload(b"prompt\na red heart\n"), headers=headers)
    assert (made.status_code, made.get_json()["num_jobs"]) == (202, 1)
    large = client("POST", "/v1/batches", data=upload(b"a" * 50_200_000), headers=headers)
    assert "50000000 bytes" in assert_problem(large, 413, "body_too_large")["detail"]
    other = client("POST", "/v1/batches", data=b"x", headers={**headers, "Content-Encoding": "zstd"})
    assert "'zstd'" in assert_problem(other, 415, "unsupported_media_type")["detail"]
    plain = {"file": (io.BytesIO(b"prompt\na red heart\n"), "prompts.csv")}
    assert client("POST", "/v1/batches", data=plain).status_code == 202
