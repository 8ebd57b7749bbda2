"""docs/howto/receive-webhooks.md has a working receiver, and the schedule, events and codes of the code."""

import re
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks import Webhook

from catalogue.states import TERMINAL
from client import calotype
from settings import ROOT, Settings
from tasks.webhooks.client import ATTEMPT_CODES, Answer
from tasks.webhooks.deliver import judge

from .conftest import ReadTable

PAGE = "docs/howto/receive-webhooks.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_receiver_of_the_page_accepts_signed_messages_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    monkeypatch.setitem(sys.modules, "calotype", calotype)  # its name where it is installed
    names: dict[str, Any] = {"__name__": "receiver"}
    exec(code, names)
    client = names["app"].test_client()
    body = '{"type":"job.succeeded","data":{"id":"job_1","state":"succeeded"}}'
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "whd_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("whd_1", now, body),
    }
    assert [client.post("/calotype", data=body, headers=headers).status_code for _ in range(2)] == [204, 204]
    assert client.post("/calotype", data=body + " ", headers=headers).status_code == 401
    assert capsys.readouterr().out == "job.succeeded job_1 succeeded\n"


def test_every_event_is_documented(read_table: ReadTable) -> None:
    documented = {
        name for row in read_table(PAGE, "## What is sent") for name in re.findall(r"`([a-z.]+)`", row[0])
    }
    events = {f"job.{state}" for state in TERMINAL} | {"batch.completed"}
    assert events == {name for name in documented if "." in name}


def test_every_code_of_an_attempt_is_documented(read_table: ReadTable) -> None:
    rows = read_table(PAGE, "## When it does not arrive")
    documented = {code for row in rows for code in re.findall(r"`(\w+)`", row[0])}
    judged = {judge(Answer(1, status)).error_code for status in (302, 410, 500)}
    assert documented == {*ATTEMPT_CODES.values(), *judged, "sender_lost", "internal_error"}


def test_the_documented_schedule_is_the_default() -> None:
    settings = Settings()
    words = "5 seconds, 30 seconds, 5 minutes, 30 minutes, 2 hours and 8 hours"
    assert words in " ".join(TEXT.split())
    assert settings.webhook_retry_seconds == (5, 30, 300, 1800, 7200, 28800)
    assert f"{settings.webhook_timeout_seconds:g} seconds" in TEXT
