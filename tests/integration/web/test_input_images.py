"""A request names the images that it begins with: they go all the way, and what cannot be creates nothing."""

import base64
import csv
import hashlib
import io
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from flask import Flask

from catalogue.catalogue import tier_for
from settings import Settings
from storage import files
from storage.blobs import Blobs
from storage.database import Database
from storage.job_views import get
from tasks.errors import DownloadFailed
from tasks.images.download import ImageDownload
from tests.fixtures.catalogues import catalogue_with
from tests.fixtures.pictures import picture
from tests.integration.tasks.receiver import Receiver, answer
from tests.integration.web.conftest import Client, Draw, assert_problem
from web.api.admission import Admission
from web.api.batch_rows import ROWS_AT_ONCE
from web.app import create_app
from web.wiring import EXTENSION, Wiring

OUTLINED = """
[models.tiny.presets.outlined]
strength = 0.5
loras = [{ name = "outline", scale = 0.8 }]
"""
NOBODYS = "file_" + "0" * 64


@pytest.fixture
def preset(app: Flask, tmp_path: Path) -> Iterator[None]:
    """The API serves a model with a preset that has an adapter, until the test ends."""
    usual: Wiring = app.extensions[EXTENSION]
    catalogue = catalogue_with(tmp_path, OUTLINED)
    app.extensions[EXTENSION] = replace(usual, catalogue=catalogue, admission=Admission(catalogue, tier_for))
    yield
    app.extensions[EXTENSION] = usual


def upload(client: Client, data: bytes) -> str:
    response = client("POST", "/v1/files", data={"file": (io.BytesIO(data), "picture.png")})
    assert response.status_code in (200, 201), response.get_data(as_text=True)
    return str(response.get_json()["id"])


def upload_csv(client: Client, text: str) -> Any:
    return client("POST", "/v1/batches", data={"file": (io.BytesIO(text.encode()), "prompts.csv")})


def faults(body: dict[str, Any]) -> dict[str, str]:
    return {error["pointer"]: error["detail"] for error in body["errors"]}


def test_a_job_keeps_the_files_that_it_names_and_a_retry_names_them_again(
    client: Client, database: Database, account: str, draw: Draw
) -> None:
    image, mask = upload(client, picture(96, 64)), upload(client, picture(96, 64, 255, mode="L"))
    job = client.submit(image=image, mask_image=mask, strength=0.5).get_json()
    assert (job["image"], job["mask_image"], job["strength"]) == ([image], mask, 0.5)
    kept = get(database, account, job["id"]).parameters
    assert (kept.image, kept.mask_image, kept.strength) == ((image,), mask, 0.5)
    draw(job["id"])
    again = client("POST", f"/v1/jobs/{job['id']}/retry").get_json()
    assert (again["image"], again["mask_image"], again["seed"]) == ([image], mask, job["seed"])


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((96, 64), (96, 64)),
        ((1000, 500), (256, 128)),  # the model's longest side
        ((300, 300), (192, 192)),  # the pixels of its largest tier
        ((100, 61), (104, 64)),  # multiples of 8, and its shortest side
    ],
)
def test_a_job_without_a_size_is_as_large_as_its_image_as_far_as_the_model_can(
    client: Client, size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    job = client.submit(image=upload(client, picture(*size))).get_json()
    assert (job["width"], job["height"]) == drawn
    asked = client.submit(image=upload(client, picture(*size)), width=64, height=128).get_json()
    assert (asked["width"], asked["height"]) == (64, 128)


def test_a_job_can_carry_a_small_image_itself_which_becomes_a_file(client: Client) -> None:
    data = picture(64, 64)
    carried = "data:image/png;base64," + base64.b64encode(data).decode()
    headers = {"Idempotency-Key": "carried"}
    first = client.submit(image=carried, headers=headers)
    again = client.submit(image=[carried], headers=headers)
    id = "file_" + hashlib.sha256(data).hexdigest()
    assert first.get_json()["image"] == [id]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert client("GET", f"/v1/files/{id}").get_json()["width"] == 64


@pytest.mark.parametrize(
    ("fields", "pointer", "detail"),
    [
        ({"image": NOBODYS}, "#/image/0", "is not a file of this account"),
        ({"image": "https://example.com/a.png"}, "#/image/0", "should be the id of a file"),
        ({"image": "data:image/png;base64,!!"}, "#/image/0", "is not a data URL"),
        ({"image": "data:image/png;base64,aGVsbG8="}, "#/image/0", "image"),
        ({"image": [NOBODYS] * 9}, "#/image", "at most 8"),
        ({"mask_image": NOBODYS}, "#/mask_image", "is not a file of this account"),
        ({"strength": 0.5}, "#/strength", "image"),
        ({"loras": [{"name": "nobody"}]}, "#/loras/0/name", "is not one of this model's adapters"),
        ({"loras": [{"name": "a", "scale": 5}]}, "#/loras/0/scale", "less than or equal to 4"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_by_name_and_creates_nothing(
    client: Client, fields: dict[str, Any], pointer: str, detail: str
) -> None:
    body = assert_problem(client.submit(**fields), 422, "invalid_request")
    found = faults(body)
    assert detail in found[pointer], found
    assert client("GET", "/v1/jobs").get_json()["jobs"] == []


def test_a_mask_needs_the_image_that_it_is_of(client: Client) -> None:
    mask = upload(client, picture(128, 128, 255, mode="L"))
    found = faults(assert_problem(client.submit(mask_image=mask), 422, "invalid_request"))
    assert any("image" in detail for detail in found.values())


def test_a_file_of_another_account_is_as_if_it_were_not_there(client: Client, stranger: Client) -> None:
    theirs = upload(stranger, picture(colour=(1, 2, 3)))
    told = faults(assert_problem(client.submit(image=theirs), 422, "invalid_request"))
    nobodys = faults(assert_problem(client.submit(image=NOBODYS), 422, "invalid_request"))
    assert told["#/image/0"].replace(theirs, "X") == nobodys["#/image/0"].replace(NOBODYS, "X")


def test_a_deleted_file_is_named_no_more_and_one_that_a_job_waits_for_is_not_deleted(
    client: Client, draw: Draw
) -> None:
    id = upload(client, picture(colour=(9, 9, 9)))
    job = client.submit(image=id).get_json()
    assert client("DELETE", f"/v1/files/{id}").status_code == 409
    draw(job["id"])
    assert client("DELETE", f"/v1/files/{id}").status_code == 204
    assert_problem(client.submit(image=id), 422, "invalid_request")
    retried = client("POST", f"/v1/jobs/{job['id']}/retry")
    assert id in assert_problem(retried, 409, "not_served")["detail"]


def test_adapters_are_stored_and_shown(client: Client) -> None:
    job = client.submit(loras=[{"name": "outline", "scale": 0.5}, {"name": "ink"}]).get_json()
    assert job["loras"] == [{"name": "outline", "scale": 0.5}, {"name": "ink", "scale": 1.0}]
    assert client.submit().get_json()["loras"] == []
    (model,) = client("GET", "/v1/models").get_json()["models"]
    assert [lora["name"] for lora in model["loras"]] == ["outline", "ink"]
    assert model["tasks"] == ["text-to-image", "image-to-image", "inpainting"]


@pytest.mark.usefixtures("preset")
def test_a_preset_sets_adapters_and_strength_unless_the_request_does(client: Client) -> None:
    image = upload(client, picture())
    job = client.submit(preset="outlined", image=image).get_json()
    assert (job["loras"], job["strength"]) == ([{"name": "outline", "scale": 0.8}], 0.5)
    own = client.submit(preset="outlined", image=image, loras=[], strength=0.7).get_json()
    assert (own["loras"], own["strength"]) == ([], 0.7)


def test_a_csv_names_files_and_adapters_and_its_report_can_be_uploaded_again(
    client: Client, draw: Draw
) -> None:
    id = upload(client, picture(colour=(3, 3, 3)))
    text = f"prompt,image,strength,loras\na heart,{id},0.5,outline:0.8\na star,,,\n"
    batch = upload_csv(client, text).get_json()
    jobs = client("GET", f"/v1/jobs?batch_id={batch['id']}").get_json()["jobs"]
    heartbeat = next(job for job in jobs if job["prompt"] == "a heart")
    assert (heartbeat["image"], heartbeat["strength"]) == ([id], 0.5)
    assert heartbeat["loras"] == [{"name": "outline", "scale": 0.8}]
    for job in jobs:
        draw(job["id"])
    report = client("GET", f"/v1/batches/{batch['id']}/results.csv").get_data(as_text=True)
    row = next(iter(csv.DictReader(io.StringIO(report.removeprefix("\ufeff")))))
    assert (row["image"], row["loras"]) == (id, "outline:0.8")
    again = upload_csv(client, report).get_json()
    assert again["rows"]["already_succeeded"] == 2, again


@pytest.mark.parametrize(
    "cell", [NOBODYS, "data:image/png;base64;AAAA", "ftp://example.com/a.png", "abc", f"{NOBODYS}|{NOBODYS}"]
)
def test_a_row_that_names_no_file_of_the_account_is_reported_by_its_line(client: Client, cell: str) -> None:
    response = upload_csv(client, f"prompt,image\na heart,{cell}\n")
    body = assert_problem(response, 422, "invalid_csv")
    assert [(error["line"], error["field"]) for error in body["errors"]] == [(2, "image")]


def test_a_report_of_a_spreadsheet_with_semicolons_can_be_uploaded_again(client: Client, draw: Draw) -> None:
    text = "prompt,loras\na heart,outline:1.125 ink:0.1234567\n"
    batch = upload_csv(client, text).get_json()
    (job,) = client("GET", f"/v1/jobs?batch_id={batch['id']}").get_json()["jobs"]
    draw(job["id"])
    report = client("GET", f"/v1/batches/{batch['id']}/results.csv?delimiter=semicolon").get_data(
        as_text=True
    )
    again = upload_csv(client, report).get_json()
    assert (again["rows"]["already_succeeded"], again["rows"]["new"]) == (1, 0), again


def test_a_batch_whose_file_was_deleted_is_not_tried_again_and_the_line_is_named(client: Client) -> None:
    kept, gone = upload(client, picture(colour=(5, 5, 5))), upload(client, picture(colour=(6, 6, 6)))
    batch = upload_csv(client, f"prompt,image\na heart,{kept}\na star,{gone}\n").get_json()
    client("DELETE", f"/v1/batches/{batch['id']}")
    assert client("DELETE", f"/v1/files/{gone}").status_code == 204
    body = assert_problem(client("POST", f"/v1/batches/{batch['id']}/retry"), 409, "not_served")
    assert [error["line"] for error in body["errors"]] == [3]
    assert gone in body["errors"][0]["detail"]


def test_the_form_of_the_page_draws_a_job_with_an_image_again(app: Flask, client: Client) -> None:
    image = upload(client, picture(96, 64))
    job = client.submit(image=image, strength=0.5, loras=[{"name": "outline", "scale": 0.1234567}]).get_json()
    browser = app.test_client()
    browser.post("/session", data={"api_key": client.key})
    page = browser.get(f"/?from={job['id']}").get_data(as_text=True)
    fields = dict(re.findall(r'<input[^>]* name="([^"]+)"[^>]* value="([^"]*)"', page))
    fields |= {"prompt": job["prompt"], "tier": job["tier"]}
    answer = browser.post("/", data=fields)
    assert answer.status_code == 303, answer.get_data(as_text=True)[-3000:]
    newest, before = client("GET", "/v1/jobs").get_json()["jobs"]
    same = ("image", "strength", "loras", "width", "height", "seed")
    assert [newest[name] for name in same] == [before[name] for name in same]
    again = browser.post("/", data={**fields, "once": "0" * 32, "width": "", "height": ""})
    assert again.status_code == 303
    newest = client("GET", "/v1/jobs").get_json()["jobs"][0]
    assert (newest["width"], newest["height"]) == (96, 64), "the size of its image, and not that of the tier"


def test_what_is_wrong_with_an_image_stands_beside_its_field(app: Flask, client: Client) -> None:
    browser = app.test_client()
    fields = {"prompt": "a heart", "image": NOBODYS, "loras": "nobody", "api_key": client.key}
    page = browser.post("/", data=fields).get_data(as_text=True)
    for name, why in (("image", "is not a file of this account"), ("loras", "is not one of this model")):
        assert (
            why in page.partition(f'id="{name}"')[2][:1500]
            or why in page.partition(f'for="{name}"')[2][:1500]
        )


def test_a_file_whose_object_was_lost_is_mended_by_sending_it_again(
    client: Client, blobs: Blobs, database: Database, account: str
) -> None:
    id = upload(client, picture(colour=(8, 8, 8)))
    blobs.delete(files.object_keys(database, account, [id])[id])
    assert upload(client, picture(colour=(8, 8, 8))) == id
    assert blobs.get(files.object_keys(database, account, [id])[id]) == picture(colour=(8, 8, 8))


def test_nothing_is_stored_of_a_request_that_is_refused(client: Client) -> None:
    carried = "DATA:image/png;charset=x;base64," + base64.b64encode(picture(colour=(7, 7, 1))).decode()
    assert_problem(client.submit(image=carried, width=9), 422, "invalid_request")
    assert client("GET", "/v1/files").get_json()["files"] == []
    assert client.submit(image=carried).status_code == 202


@pytest.mark.parametrize(
    ("loras", "detail"),
    [
        ([{"name": "outline", "x": 1}], "is unknown; the known names are: name, scale"),
        (["outline"], "should be an object such as"),
    ],
)
def test_an_entry_that_is_no_adapter_is_told_what_one_is(client: Client, loras: Any, detail: str) -> None:
    body = assert_problem(client.submit(loras=loras), 422, "invalid_request")
    assert [error["detail"][: len(detail)] for error in body["errors"]] == [detail]


@pytest.fixture
def images_by_url(app: Flask, tmp_path: Path) -> Iterator[Callable[[bytes], Receiver]]:
    """Serves a file by https on loopback, which the API may fetch from here."""
    ca, ca_file = trustme.CA(), tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    usual: Wiring = app.extensions[EXTENSION]
    loopback = [ipaddress.ip_network("127.0.0.0/8")]
    download = ImageDownload(max_bytes=100_000, timeout_seconds=5, allowed_networks=loopback, ca_file=ca_file)
    app.extensions[EXTENSION] = replace(usual, download=download, max_csv_urls=2)
    receivers = []

    def serve(data: bytes) -> Receiver:
        receivers.append(Receiver(ca, answer(200, data)))
        return receivers[-1]

    yield serve
    app.extensions[EXTENSION] = usual
    for receiver in receivers:
        receiver.close()


def test_a_csv_names_images_by_url_each_of_which_is_fetched_once(
    client: Client, images_by_url: Callable[[bytes], Receiver]
) -> None:
    data = picture(colour=(4, 4, 4))
    receiver = images_by_url(data)
    url = f"https://localhost:{receiver.port}/a.png"
    rows = f"a heart,{url}\n" * (ROWS_AT_ONCE + 1)  # the last is read with a later page
    batch = upload_csv(client, f"prompt,image\n{rows}").get_json()
    assert batch["num_jobs"] == ROWS_AT_ONCE + 1
    jobs = client("GET", f"/v1/jobs?batch_id={batch['id']}").get_json()["jobs"]
    assert {job["image"][0] for job in jobs} == {"file_" + hashlib.sha256(data).hexdigest()}
    assert len(receiver.received) == 1


@pytest.mark.usefixtures("images_by_url")
@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://10.0.0.1/a.png", "an address that is not public"),
        ("http://localhost/a.png", "only https URLs are fetched"),
        ("https://localhost:1/a.png", "cannot be reached"),
    ],
)
def test_a_url_that_leads_inside_or_nowhere_is_reported_by_its_line(
    client: Client, url: str, why: str
) -> None:
    body = assert_problem(upload_csv(client, f"prompt,image\na heart,{url}\n"), 422, "invalid_csv")
    assert [(error["line"], error["field"]) for error in body["errors"]] == [(2, "image")]
    assert why in body["errors"][0]["detail"]


def test_no_image_is_fetched_from_a_network_that_was_opened_for_webhooks(settings: Settings) -> None:
    inside = (ipaddress.ip_network("127.0.0.0/8"),)
    closed = create_app(settings.model_copy(update={"webhook_allowed_networks": inside}))
    opened = create_app(settings.model_copy(update={"fetch_allowed_networks": inside}))
    for app, why in ((closed, "not public|not downloaded from"), (opened, "cannot be reached")):
        with pytest.raises(DownloadFailed, match=why):
            app.extensions[EXTENSION].download.get("https://127.0.0.1:1/a.png")


def test_a_body_too_large_for_its_image_is_told_where_to_send_it(client: Client) -> None:
    carried = "data:image/png;base64," + "A" * 70_000
    detail = assert_problem(client.submit(image=carried), 413, "body_too_large")["detail"]
    assert "POST /v1/files" in detail


def test_no_image_and_too_many_urls_are_reported_by_line(
    client: Client, images_by_url: Callable[[bytes], Receiver]
) -> None:
    receiver = images_by_url(b"<html>")
    urls = [f"https://localhost:{receiver.port}/{number}.png" for number in range(3)]
    rows = "".join(f"a heart,{url}\n" for url in urls)
    body = assert_problem(upload_csv(client, "prompt,image\n" + rows), 422, "invalid_csv")
    details = [error["detail"] for error in body["errors"]]
    assert "more than 2 images by URL" in details[2]
    assert len(receiver.received) == 2
