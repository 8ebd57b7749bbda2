"""Files over HTTP: what every kind of file gets, whose files they are, and links to put large ones under."""

import base64
import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.test import TestResponse

from storage import files, jobs
from storage.blobs import Blobs
from storage.database import Database
from tasks.errors import ImageUnreadable
from tasks.images.facts import ImageLimits, read
from tests.fixtures.image_files import FILES, HEIGHT, WIDTH, encoded, files_of, photo, turned
from tests.integration.web.conftest import Client, assert_problem
from web.api.image_checks import ImageChecks
from web.refusals import Busy
from web.wiring import EXTENSION, Wiring

LIMITS = ImageLimits(33_554_432, 50_000_000, 16_384)
NOBODYS = "file_" + "0" * 64
PICTURE = encoded(photo())


def send(client: Client, data: bytes, name: str = "a.png") -> TestResponse:
    return client("POST", "/v1/files", data={"file": (io.BytesIO(data), name)})


def begin(client: Client, data: bytes, **changes: Any) -> TestResponse:
    declared = {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data), "media_type": "image/png"}
    return client("POST", "/v1/files/uploads", json={**declared, **changes})


def put(upload: Any, data: bytes, **headers: str) -> httpx2.Response:
    return httpx2.put(
        upload["url"], content=data, headers={**upload["headers"], **headers}, trust_env=False, timeout=30
    )


@pytest.fixture
def small(app: Flask) -> Iterator[ImageChecks]:
    """Checks that take files of 3,000 bytes at most, and do not wait for each other."""
    usual: Wiring = app.extensions[EXTENSION]
    checks = ImageChecks(ImageLimits(3000, 10_000, 100), wait_seconds=0.01)
    app.extensions[EXTENSION] = replace(usual, image_checks=checks)
    yield checks
    app.extensions[EXTENSION] = usual


def test_a_file_is_answered_with_what_is_known_of_it(client: Client) -> None:
    answer = send(client, PICTURE)
    assert answer.status_code == 201
    file = answer.get_json()
    digest = hashlib.sha256(PICTURE).hexdigest()
    assert file["id"] == f"file_{digest}"
    assert answer.headers["Location"].endswith(f"/v1/files/{file['id']}")
    assert (file["sha256"], file["num_bytes"], file["media_type"]) == (digest, len(PICTURE), "image/png")
    assert (file["width"], file["height"]) == (WIDTH, HEIGHT)
    assert file["expires_at"] > file["created_at"]
    shown = client("GET", f"/v1/files/{file['id']}")
    assert (shown.status_code, shown.get_json()) == (200, file)


def test_the_same_bytes_again_are_the_same_file_whatever_they_are_called(client: Client) -> None:
    first = send(client, PICTURE).get_json()
    again = send(client, PICTURE, name="другое имя.txt")
    assert again.status_code == 200
    assert (again.get_json()["id"], again.get_json()["created_at"]) == (first["id"], first["created_at"])
    assert again.get_json()["expires_at"] > first["expires_at"]


def test_the_size_is_the_one_that_people_see(client: Client) -> None:
    file = send(client, turned("JPEG", 6)).get_json()
    assert (file["width"], file["height"]) == (HEIGHT, WIDTH)


def test_a_link_opens_the_bytes_that_were_sent(client: Client) -> None:
    data = turned("JPEG", 8)
    file = send(client, data).get_json()
    answer = client("GET", f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (302, "no-store")
    opened = httpx2.get(answer.headers["Location"], trust_env=False)
    assert (opened.status_code, opened.content) == (200, data)
    assert opened.headers["content-type"] == "image/jpeg"
    head = client("HEAD", f"/v1/files/{file['id']}/content")
    assert httpx2.head(head.headers["Location"], trust_env=False).status_code == 200


def test_a_list_goes_on_at_its_cursor(client: Client) -> None:
    made = [send(client, encoded(photo(8 + number, 8))).get_json()["id"] for number in range(5)]
    found: list[str] = []
    cursor = ""
    for _ in range(3):
        page = client("GET", f"/v1/files?limit=2{cursor}").get_json()
        found += [file["id"] for file in page["files"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert page["next_cursor"] is None
    assert found == made[::-1]


@pytest.mark.parametrize("row", FILES)
def test_each_kind_of_file_gets_what_it_is_read_as(client: Client, row: str) -> None:
    """What that is for each row of the page, docs/test_files_page.py says."""
    num_taken = 0
    for kind, data in files_of(row).items():
        answer = send(client, data)
        try:
            facts = read(data, LIMITS)
        except ImageUnreadable as error:
            said = str(error)
            body = assert_problem(answer, 422, "invalid_image")
            assert body["detail"] == f"file: {said}"
            assert body["errors"] == [{"pointer": "#/file", "detail": said}]
        else:
            num_taken += 1
            assert answer.status_code == 201, (kind, answer.get_data(as_text=True))
            assert (answer.get_json()["width"], answer.get_json()["height"]) == (facts.width, facts.height)
    assert len(client("GET", "/v1/files").get_json()["files"]) == num_taken


def test_a_file_with_too_many_bytes_is_refused_by_its_size(client: Client, small: ImageChecks) -> None:
    body = assert_problem(send(client, bytes(small.limits.max_bytes + 1)), 413, "body_too_large")
    assert body["detail"] == "file: is larger than 3000 bytes"
    body = assert_problem(send(client, bytes(100_000)), 413, "body_too_large")
    assert body["detail"] == "file: is larger than 3000 bytes"
    body = assert_problem(begin(client, bytes(3001)), 422, "invalid_request")
    assert body["detail"] == "num_bytes: should be at most 3000"


def test_one_image_is_looked_at_at_a_time(client: Client, small: ImageChecks) -> None:
    data = encoded(photo(9, 9))
    with small._turn:
        answer = send(client, data)
        assert_problem(answer, 503, "busy")
        assert answer.headers["Retry-After"]
    assert send(client, data).status_code == 201


def test_no_more_files_come_in_at_once_than_there_is_room_for(client: Client, app: Flask) -> None:
    usual: Wiring = app.extensions[EXTENSION]
    checks = ImageChecks(usual.image_checks.limits, max_held_bytes=len(PICTURE))
    app.extensions[EXTENSION] = replace(usual, image_checks=checks)
    try:
        with checks.room(1):
            assert_problem(send(client, PICTURE), 503, "busy")
            upload = begin(client, PICTURE).get_json()
            assert put(upload, PICTURE).status_code == 200
            assert_problem(client("POST", f"/v1/files/{upload['id']}/complete"), 503, "busy")
        assert send(client, PICTURE).status_code == 201
        with checks.room(len(PICTURE)):
            assert send(client, PICTURE).status_code == 200, "it is there, and takes none"
    finally:
        app.extensions[EXTENSION] = usual


def test_a_file_that_is_larger_than_all_of_the_room_comes_in_alone(small: ImageChecks) -> None:
    checks = ImageChecks(small.limits, max_held_bytes=1)
    with checks.room(1000), pytest.raises(Busy), checks.room(1):
        pytest.fail("there was room")
    with checks.room(1):
        pass


@pytest.mark.parametrize(
    ("options", "status", "code", "pointer"),
    [
        ({"json": {}}, 415, "unsupported_media_type", None),
        ({"data": PICTURE, "content_type": "image/png"}, 415, "unsupported_media_type", None),
        ({"data": {}, "content_type": "multipart/form-data; boundary=x"}, 422, "invalid_request", "#/file"),
        ({"data": {"file": "text"}, "content_type": "multipart/form-data"}, 422, "invalid_request", "#/file"),
        ({"data": {"image": (io.BytesIO(PICTURE), "a.png")}}, 422, "invalid_request", "#/image"),
        (
            {"data": {"file": [(io.BytesIO(PICTURE), "a"), (io.BytesIO(PICTURE), "b")]}},
            422,
            "invalid_request",
            "#/file",
        ),
    ],
)
def test_a_form_that_is_wrong_is_told_what_it_needs(
    client: Client, options: Any, status: int, code: str, pointer: str | None
) -> None:
    body = assert_problem(client("POST", "/v1/files", **options), status, code)
    if pointer is not None:
        assert pointer in [error["pointer"] for error in body["errors"]]


def test_another_accounts_file_is_not_there(client: Client, stranger: Client) -> None:
    file = send(client, PICTURE).get_json()
    coming = begin(client, encoded(photo(7, 7))).get_json()
    for file_id in (file["id"], NOBODYS, "file_1", "file_" + "g" * 64, "%00", f"{file['id']}%0A"):
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/complete")):
            assert_problem(stranger(method, f"/v1/files/{file_id}{path}"), 404, "not_found")
    assert_problem(stranger("POST", f"/v1/files/{coming['id']}/complete"), 404, "not_found")
    assert stranger("GET", "/v1/files").get_json()["files"] == []
    assert send(stranger, PICTURE).status_code == 201, "whether others have it is not told"
    assert stranger("DELETE", f"/v1/files/{file['id']}").status_code == 204
    assert client("GET", f"/v1/files/{file['id']}").status_code == 200


def test_nobody_sends_or_sees_a_file_without_a_key(app: Flask) -> None:
    nobody = Client(app.test_client(), "calo_nobody")
    assert_problem(send(nobody, PICTURE), 401, "unauthenticated")
    assert_problem(begin(nobody, PICTURE), 401, "unauthenticated")
    assert_problem(nobody("GET", "/v1/files"), 401, "unauthenticated")


def test_a_deleted_file_is_gone_until_it_is_sent_again(client: Client) -> None:
    path = f"/v1/files/{send(client, PICTURE).get_json()['id']}"
    answer = client("DELETE", path)
    assert (answer.status_code, answer.data) == (204, b"")
    for method, more in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/complete")):
        assert_problem(client(method, path + more), 404, "not_found")
    assert client("GET", "/v1/files").get_json()["files"] == []
    assert send(client, PICTURE).status_code == 201
    opened = httpx2.get(client("GET", f"{path}/content").headers["Location"], trust_env=False)
    assert opened.content == PICTURE


def test_a_file_that_an_open_job_names_stays(client: Client, database: Database, account: str) -> None:
    file_id = send(client, PICTURE).get_json()["id"]
    job_id = client.submit().get_json()["id"]
    database.run(lambda connection: files.link(connection, account, [(job_id, [file_id])]))
    assert client("GET", f"/v1/files/{file_id}").get_json()["expires_at"] is None
    body = assert_problem(client("DELETE", f"/v1/files/{file_id}"), 409, "file_in_use")
    assert job_id in body["detail"]
    jobs.cancel(database, account, job_id)
    assert client("DELETE", f"/v1/files/{file_id}").status_code == 204


def test_a_large_file_is_put_under_a_link_and_is_then_like_any_other(client: Client) -> None:
    answer = begin(client, PICTURE)
    assert answer.status_code == 201
    upload = answer.get_json()
    assert_problem(client("GET", f"/v1/files/{upload['id']}"), 404, "not_found")
    assert client("GET", "/v1/files").get_json()["files"] == []
    assert put(upload, PICTURE).status_code == 200
    path = f"/v1/files/{upload['id']}/complete"
    done = client("POST", path)
    assert done.status_code == 201
    assert done.get_json() == client("GET", f"/v1/files/{upload['id']}").get_json()
    assert (done.get_json()["width"], done.get_json()["sha256"]) == (
        WIDTH,
        hashlib.sha256(PICTURE).hexdigest(),
    )
    again = client("POST", path)
    assert (again.status_code, again.get_json()) == (200, done.get_json())
    there = begin(client, PICTURE)
    assert (there.status_code, there.get_json()["id"]) == (200, upload["id"])


def test_nothing_else_can_be_put_under_the_link(client: Client) -> None:
    upload = begin(client, PICTURE).get_json()
    other = bytes(len(PICTURE))
    checksum = base64.b64encode(hashlib.sha256(other).digest()).decode()
    longer = str(len(PICTURE) + 1)
    assert put(upload, other).status_code >= 400, "the store compares the digest"
    assert put(upload, other, **{"x-amz-checksum-sha256": checksum}).status_code == 403
    assert put(upload, PICTURE + b"1", **{"Content-Length": longer}).status_code == 403
    assert put(upload, PICTURE, **{"Content-Type": "text/html"}).status_code == 403
    assert httpx2.get(upload["url"], trust_env=False).status_code == 403
    body = assert_problem(client("POST", f"/v1/files/{upload['id']}/complete"), 409, "file_not_uploaded")
    assert "nothing has been uploaded" in body["detail"]


@pytest.mark.parametrize("others", [bytes(len(PICTURE)), PICTURE[:-1]])
def test_other_bytes_than_were_declared_are_not_taken_even_where_the_store_took_them(
    client: Client, database: Database, blobs: Blobs, others: bytes
) -> None:
    upload = begin(client, PICTURE).get_json()
    with database.transaction() as connection:
        query = text("SELECT object_key FROM files WHERE id = :id AND state = 'uploading'")
        keys = connection.execute(query, {"id": upload["id"]}).scalars().all()
    (key,) = [key for key in keys if key in upload["url"]]
    blobs.put(key, others, content_type="image/png", budget_seconds=10)
    assert_problem(client("POST", f"/v1/files/{upload['id']}/complete"), 409, "file_not_uploaded")
    assert_problem(client("GET", f"/v1/files/{upload['id']}"), 404, "not_found")


def test_what_was_put_is_looked_at_like_what_is_sent(client: Client) -> None:
    broken = PICTURE[:-100]
    upload = begin(client, broken).get_json()
    assert put(upload, broken).status_code == 200
    body = assert_problem(client("POST", f"/v1/files/{upload['id']}/complete"), 422, "invalid_image")
    assert body["detail"].startswith("the file is broken or cut off")
    jpeg = encoded(photo(), "JPEG")
    upload = begin(client, jpeg).get_json()
    assert put(upload, jpeg).status_code == 200
    body = assert_problem(client("POST", f"/v1/files/{upload['id']}/complete"), 422, "invalid_image")
    assert body["detail"] == "the file is image/jpeg but was declared as image/png"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sha256": "0" * 63}, "sha256"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"num_bytes": 0}, "num_bytes"),
        ({"num_bytes": 10**12}, "num_bytes"),
        ({"media_type": "image/gif"}, "media_type"),
        ({"name": "a.png"}, "name"),
    ],
)
def test_a_declaration_that_is_wrong_is_told_the_field(
    client: Client, changes: dict[str, Any], field: str
) -> None:
    body = assert_problem(begin(client, PICTURE, **changes), 422, "invalid_request")
    assert [error["pointer"] for error in body["errors"]] == [f"#/{field}"]
