"""Requests as typed clients and people write them: nulls, numbers, repetitions, and every fault at once."""

import io
import json
from typing import Any

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.submissions import create
from tests.fixtures.new_jobs import new_job
from tests.integration.web.conftest import Client, Draw, assert_problem
from web.api.request_headers import digest_of
from web.api.schemas import JobRequest

KEY = {"Idempotency-Key": "k-1"}
OPTIONAL = [name for name, field in JobRequest.model_fields.items() if not field.is_required()]


def send(client: Client, body: str, **headers: str) -> Any:
    return client("POST", "/v1/jobs", data=body.encode(), content_type="application/json", headers=headers)


def faults(answer: Any, code: str = "invalid_request") -> set[tuple[str, str]]:
    """Where each fault is; every one of them says something."""
    problem = assert_problem(answer, 422, code)
    assert all(fault["detail"] for fault in problem["errors"])
    assert problem["num_errors"] == len(problem["errors"])
    kinds = ("pointer", "parameter", "field")
    return {(kind, str(fault[kind])) for fault in problem["errors"] for kind in kinds if kind in fault}


def detail_of(answer: Any, name: str) -> str:
    details = [
        str(fault["detail"])
        for fault in answer.get_json()["errors"]
        if name in (fault.get("pointer"), fault.get("parameter"))
    ]
    assert len(details) == 1, answer.get_json()
    return details[0]


@pytest.mark.parametrize("name", OPTIONAL)
def test_S6_null_for_an_optional_field_means_that_it_is_not_given(client: Client, name: str) -> None:
    without, with_null = client.submit(seed=7), client.submit(**{"seed": 7, name: None})
    assert with_null.status_code == 202, with_null.get_data(as_text=True)
    asked = [
        field
        for field in JobRequest.model_fields
        if field not in ("preset", "deadline_seconds", "webhook_url")
    ]
    first, second = without.get_json(), with_null.get_json()
    same = [field for field in asked if not (name == "seed" and field == "seed")]
    assert {field: first[field] for field in same} == {field: second[field] for field in same}


def test_S6_null_for_every_optional_field_at_once_is_a_job(client: Client) -> None:
    assert client.submit(**dict.fromkeys(OPTIONAL)).status_code == 202


def test_S6_null_for_a_required_field_is_told_as_missing(client: Client) -> None:
    answer = client.submit(prompt=None)
    assert faults(answer) == {("pointer", "#/prompt")}
    assert detail_of(answer, "#/prompt") == "is required"


def test_S6_a_name_that_is_not_known_is_refused_also_with_null(client: Client) -> None:
    assert faults(client.submit(num_stepz=None)) == {("pointer", "#/num_stepz")}


def test_S6_the_document_says_that_what_is_not_required_may_be_null(client: Client) -> None:
    document = client("GET", "/openapi.json").get_json()
    bodies = [
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for item in document["paths"].values()
        for operation in item.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]
    assert bodies
    for name in bodies:
        schema = document["components"]["schemas"][name]
        for field, kind in schema["properties"].items():
            may_be_null = any(part.get("type") == "null" for part in kind.get("anyOf", []))
            assert may_be_null == (field not in schema["required"]), field


@pytest.mark.parametrize(
    "written", ['"width": 128.0, "height": 1.28e2', '"seed": 9007199254740992.0', '"num_images": 2.0']
)
def test_S6_a_whole_number_may_be_written_with_a_point(client: Client, written: str) -> None:
    answer = send(client, '{"prompt": "a red heart", ' + written + "}")
    assert answer.status_code == 202
    asked = json.loads("{" + written + "}")
    assert {name: answer.get_json()[name] for name in asked} == asked
    assert all(type(answer.get_json()[name]) is int for name in asked)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("128.5", "integer, without a fraction"),
        ("true", "integer"),
        ('"128"', "integer"),
        ("[128]", "integer"),
        ("9007199254740994.0", "above 2^53 write it without a point"),
        ("1e300", "above 2^53 write it without a point"),
    ],
)
@pytest.mark.parametrize("name", ["width", "seed", "num_images", "num_inference_steps", "output_quality"])
def test_S6_what_is_no_whole_number_is_refused_in_words(
    client: Client, name: str, written: str, said: str
) -> None:
    answer = send(client, f'{{"prompt": "a", "{name}": {written}}}')
    assert ("pointer", f"#/{name}") in faults(answer)
    assert said in detail_of(answer, f"#/{name}")


SAME = [
    '{"prompt": "caf\u00e9", "num_inference_steps": 20, "guidance_scale": 2, "seed": 1}',
    '{"seed": 1, "guidance_scale": 2.0, "num_inference_steps": 20.0, "prompt": "caf\u00e9"}',
    '{"prompt":"cafe\u0301","num_inference_steps":2e1,"guidance_scale":2.00,"seed":1,"width":null,"lane":null}',
    '{"prompt": "caf\\u00e9", "num_inference_steps": 20, "guidance_scale": 2, "seed": 1, '
    '"lane": "interactive", "num_images": 1, "strict": false, "output_format": "png", "negative_prompt": ""}',
]  # fmt: skip


@pytest.mark.parametrize("repetition", SAME)
def test_S9_the_same_request_in_other_words_gives_the_same_job(client: Client, repetition: str) -> None:
    first = send(client, SAME[0], **KEY)
    again = send(client, repetition, **KEY)
    assert (first.status_code, again.status_code) == (202, 202), again.get_data(as_text=True)
    assert again.get_json()["id"] == first.get_json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers


@pytest.mark.parametrize(
    "other",
    [
        '{"prompt": "caf\u00e9", "num_inference_steps": 21, "guidance_scale": 2, "seed": 1}',
        '{"prompt": "Caf\u00e9", "num_inference_steps": 20, "guidance_scale": 2, "seed": 1}',
        '{"prompt": "caf\u00e9", "num_inference_steps": 20, "guidance_scale": 2, "seed": 1, "strict": true}',
        '{"prompt": "caf\u00e9", "num_inference_steps": 20, "guidance_scale": 2}',
        '{"prompt": "caf\u00e9", "num_inference_steps": 20, "guidance_scale": 2, "seed": 1, "width": 128}',
    ],
)
def test_S9_another_request_under_the_same_key_is_refused(client: Client, other: str) -> None:
    """What the model takes by itself is not the same when it is given: the model's choice may change."""
    assert send(client, SAME[0], **KEY).status_code == 202
    assert_problem(send(client, other, **KEY), 422, "idempotency_key_reused")


def test_S9_a_job_that_was_made_under_the_earlier_digest_is_found_by_the_same_bytes(
    client: Client, database: Database, account: str
) -> None:
    body = SAME[0].encode()
    new = new_job(
        account, prompt="caf\u00e9", num_inference_steps=20, guidance_scale=2.0,
        idempotency_key=KEY["Idempotency-Key"], request_hash=digest_of(body),
    )  # fmt: skip
    made, *_ = create(database, new, redispatch_seconds=15)
    again = send(client, SAME[0], **KEY)
    assert (again.status_code, again.get_json()["id"]) == (202, made.id)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert_problem(send(client, SAME[1], **KEY), 422, "idempotency_key_reused")


def test_S9_a_retry_is_the_same_whatever_its_body(client: Client, draw: Draw) -> None:
    job_id = client.submit().get_json()["id"]
    draw(job_id)
    bodies: list[dict[str, Any]] = [{}, {"json": {}}, {"data": b"x", "content_type": "text/plain"}]
    ids = {
        client("POST", f"/v1/jobs/{job_id}/retry", headers=KEY, **body).get_json()["id"] for body in bodies
    }
    assert len(ids) == 1


def test_S9_a_batch_is_the_same_by_its_file_and_its_fields(client: Client) -> None:
    def upload(data: bytes, name: str, **form: str) -> Any:
        return client("POST", "/v1/batches", headers=KEY, data={**form, "file": (io.BytesIO(data), name)})

    hook = {"model": "tiny", "webhook_url": "https://example.com/x"}
    first = upload(b"prompt\na\n", "one.csv", **hook)
    again = upload(b"prompt\na\n", "two.csv", **dict(reversed(hook.items())))
    assert first.get_json()["id"] == again.get_json()["id"]
    assert_problem(upload(b"prompt\nb\n", "one.csv", **hook), 422, "idempotency_key_reused")
    assert_problem(upload(b"prompt\na\n", "one.csv"), 422, "idempotency_key_reused")


def test_S10_every_field_that_is_wrong_is_named_at_once(client: Client) -> None:
    answer = client.submit(width=999, guidance_scale=-3, scheduler="foo")
    assert faults(answer) == {("pointer", f"#/{name}") for name in ("width", "guidance_scale", "scheduler")}
    details = [fault["detail"] for fault in answer.get_json()["errors"]]
    for limit in ("64 to 256", "multiple of 8", "36864", "equal to 0", "ddim, euler"):
        assert any(limit in detail for detail in details), limit


def test_S10_headers_queries_unknown_fields_types_and_limits_are_told_together(client: Client) -> None:
    body = {
        "prompt": "\ud800", "stepz": 1, "width": "128", "height": 9999, "num_images": 9, "seed": 1.5,
        "webhook_url": "https://10.0.0.1/", "output_quality": 50, "lane": "express", "preset": "nope",
    }  # fmt: skip
    answer = client(
        "POST", "/v1/jobs?wait=5", data=json.dumps(body), content_type="application/json",
        headers={"Idempotency-Key": ""},
    )  # fmt: skip
    assert faults(answer) == {
        *(("pointer", f"#/{name}") for name in body),
        ("parameter", "Idempotency-Key"),
        ("parameter", "wait"),
    }


def test_S10_with_an_unknown_model_what_does_not_depend_on_it_is_named_too(client: Client) -> None:
    answer = client.submit(
        model="huge", width=999, num_images=9, webhook_url="https://10.0.0.1/", output_quality=50, x=1
    )
    named = {"model", "num_images", "webhook_url", "output_quality", "x"}
    assert faults(answer) == {("pointer", f"#/{name}") for name in named}


def test_S10_nothing_is_said_of_what_depends_on_a_field_that_cannot_be_read(client: Client) -> None:
    """A width of 256 is too large beside the default height, and nobody knows which height was meant."""
    assert faults(client.submit(width=256, height="tall")) == {("pointer", "#/height")}
    assert faults(client.submit(output_format="gif", output_quality=50)) == {("pointer", "#/output_format")}


def test_S10_a_header_and_a_limit_of_the_model_are_told_together(client: Client) -> None:
    answer = client.submit(scheduler="foo", headers={"Idempotency-Key": "a" * 256})
    assert faults(answer) == {("pointer", "#/scheduler"), ("parameter", "Idempotency-Key")}
    assert "1 to 255" in detail_of(answer, "Idempotency-Key")


def test_S10_an_upload_is_told_of_its_fields_and_its_header_together(client: Client) -> None:
    form = {"file": (io.BytesIO(b"prompt\na\n"), "a.csv"), "lane": "bulk", "webhook_url": "http://x"}
    answer = client("POST", "/v1/batches", headers={"Idempotency-Key": ""}, data=form)
    named = {("pointer", "#/lane"), ("pointer", "#/webhook_url"), ("parameter", "Idempotency-Key")}
    assert faults(answer) == named


def test_S10_without_a_key_nothing_of_the_request_is_told(client: Client) -> None:
    answer = client.http.post("/v1/jobs?x=1", json={"width": "a"}, headers={"Idempotency-Key": ""})
    assert "errors" not in assert_problem(answer, 401, "unauthenticated")


STATES = "'queued', 'running', 'succeeded', 'failed', 'canceled' or 'expired'"


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("/v1/jobs?state=done", "state", STATES),
        ("/v1/jobs?state=queued&state=done&state=finished", "state", STATES),
        ("/v1/jobs?state=queued,running", "state", STATES),
        ("/v1/jobs?" + "&".join(["state=queued"] * 7), "state", "at most 6 values"),
        ("/v1/jobs?status=queued", "status", "names are: limit, cursor, state, tier, lane, batch_id"),
        ("/v1/jobs?lane=fast", "lane", "'interactive' or 'bulk'"),
        ("/v1/jobs?limit=0", "limit", "greater than or equal to 1"),
        ("/v1/jobs?limit=201", "limit", "less than or equal to 200"),
        ("/v1/jobs?limit=", "limit", "integer"),
        ("/v1/jobs?limit=5&limit=6", "limit", "appears 2 times; it may appear once"),
        ("/v1/jobs?cursor=nonsense", "cursor", "next_cursor"),
        ("/v1/jobs?batch_id=1", "batch_id", "pattern"),
        ("/v1/batches?state=running", "state", "names are: limit, cursor"),
        ("/v1/webhook-deliveries?state=sent", "state", "'pending', 'delivered' or 'failed'"),
        ("/v1/webhook-receivers?state=paused", "state", "there are none"),
        ("/v1/tiers?model=tiny", "model", "there are none"),
        ("/v1/models?x", "x", "there are none"),
    ],
)
def test_S11_a_fault_of_a_query_names_its_parameter_and_what_there_is(
    client: Client, path: str, name: str, said: str
) -> None:
    answer = client("GET", path)
    assert faults(answer) == {("parameter", name)}
    assert said in detail_of(answer, name)


def test_S11_every_fault_of_a_query_is_told_at_once(client: Client) -> None:
    answer = client("GET", "/v1/jobs?state=done&limit=x&colour=red&lane=fast")
    assert faults(answer) == {("parameter", name) for name in ("state", "limit", "colour", "lane")}


@pytest.mark.parametrize("index", ["x", "-1", "1.5", "%20"])
def test_S11_a_fault_of_a_path_names_its_parameter(client: Client, index: str) -> None:
    job_id = client.submit().get_json()["id"]
    problem = assert_problem(client("GET", f"/v1/jobs/{job_id}/images/{index}"), 404, "not_found")
    assert [fault["parameter"] for fault in problem["errors"]] == ["index"]
    assert "index" in problem["detail"]


def test_S11_what_a_wait_may_be_is_told(client: Client) -> None:
    job_id = client.submit().get_json()["id"]
    for wish, said in (("soon", "number"), ("-1", "equal to 0"), ("nan", "finite")):
        answer = client("GET", f"/v1/jobs/{job_id}?wait={wish}")
        assert faults(answer) == {("parameter", "wait")}
        assert said in detail_of(answer, "wait")


def test_S9_no_text_of_a_request_stands_in_its_digest(client: Client, database: Database) -> None:
    client.submit(prompt="confidential", headers={"Idempotency-Key": "digest-1"})
    with database.transaction() as connection:
        query = text("SELECT request_hash FROM jobs WHERE idempotency_key = 'digest-1'")
        digests = connection.execute(query).scalars().all()
    assert all(len(digest) == 64 for digest in digests)
    assert digests
