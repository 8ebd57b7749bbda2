"""S12: the whole page in a real browser, through a real proxy that serves it under a prefix."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from local.endpoints import Embedded
from tests.browser.conftest import Hand
from tests.browser.test_front_door import PROMPT, expect_pictures, give_key, visit
from tests.served import served
from tests.stripping_proxy import Proxied, proxied

PREFIX = "/studio/images"


@pytest.fixture(scope="module", params=[True, False], ids=["stripped", "left"])
def proxy(migrated: Embedded, chromium: str, request: pytest.FixtureRequest) -> Iterator[Proxied]:
    """The application behind a proxy of either kind."""
    assert chromium
    with proxied(PREFIX, strips=request.param) as front:
        settings = {"CALOTYPE_WEB_THREADS": "8", "CALOTYPE_PUBLIC_URL": front.url}
        with served(migrated.environment_of("api") | settings) as server:
            front.upstream_port = server.port
            yield front


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
def test_S12_a_person_signs_in_draws_looks_and_signs_out_under_a_prefix(
    browser: Browser, proxy: Proxied, hand: Hand, api_key: str, scripts: bool
) -> None:
    hand.beat()
    proxy.strays.clear()
    with visit(browser, f"{proxy.url}/", scripts=scripts) as page:
        give_key(page, api_key)
        expect(page.get_by_role("heading", name="Latest jobs")).to_be_visible()
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_role("button", name="Draw").click()
        if scripts:
            page.locator("#jobs .card a").first.click()
        expect(page.get_by_role("heading", name=PROMPT)).to_be_visible()
        job_id = urlsplit(page.url).path.rpartition("/")[2]
        hand.begin(job_id, 0.5)
        expect(page.get_by_role("progressbar")).to_have_js_property("value", 0.5)
        hand.finish(job_id)
        expect_pictures(page.get_by_role("figure").get_by_role("img"), 1)
        page.get_by_role("link", name="Jobs").click()
        expect_pictures(page.locator("#jobs .card").get_by_role("img"), 1)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("button", name="Open")).to_be_visible()
    assert proxy.strays == []


def test_S12_swagger_tries_the_api_under_the_prefix(browser: Browser, proxy: Proxied, api_key: str) -> None:
    proxy.strays.clear()
    with visit(browser, f"{proxy.url}/docs", scripts=True) as page:
        page.get_by_role("button", name="Authorize").click()
        page.locator(".auth-container input").fill(api_key)
        page.get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close").click()
        page.get_by_text("/v1/models").click()
        page.get_by_role("button", name="Try it out").click()
        with page.expect_response(f"{proxy.url}/v1/models") as answered:
            page.get_by_role("button", name="Execute").click()
        assert answered.value.status == 200
    assert proxy.strays == []


def test_S12_an_upload_is_as_large_under_the_prefix_as_without(proxy: Proxied, api_key: str) -> None:
    """The front decides by the path how much it reads before a thread has the request."""
    rows = b"prompt\n" + b"a red heart on a white background\n" * 6_000
    answer = httpx2.post(
        f"{proxy.url}/v1/batches",
        files={"file": ("many.csv", rows, "text/csv")},
        headers={"Authorization": f"Bearer {api_key}"},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 202, answer.text
    assert answer.json()["links"]["self"].startswith(f"{proxy.url}/v1/batches/")
