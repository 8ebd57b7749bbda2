"""S26: after Draw the eye, the focus and the voice are at the new job, on a telephone above all."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import Hand
from tests.browser.test_front_door import (
    PROMPT,
    expect_no_sideways_scrolling,
    give_key,
    visit,
)

PHONE = {"width": 360, "height": 740}


@contextmanager
def phone(browser: Browser, site: str, *, scripts: bool, scheme: str) -> Iterator[Page]:
    with visit(browser, site, scripts=scripts) as page:
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        yield page


def draw_with_settings_open(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_text("More settings").click()
    page.get_by_label("Steps").fill("9")
    page.get_by_role("button", name="Draw").click()


def expect_in_sight(page: Page, thing: Locator) -> None:
    """All of it is on the screen."""
    expect(thing).to_be_in_viewport(ratio=0.99)
    expect_no_sideways_scrolling(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_S26_with_scripts_the_page_goes_to_the_new_card(
    browser: Browser, site: str, hand: Hand, api_key: str, tmp_path: Path, scheme: str
) -> None:
    hand.beat()
    with phone(browser, site, scripts=True, scheme=scheme) as page:
        give_key(page, api_key)
        for number in (1, 2):
            draw_with_settings_open(page) if number == 1 else page.get_by_role("button", name="Draw").click()
            expect(page.locator("#jobs .card")).to_have_count(number)
            card = page.locator("#jobs .card.new")
            expect(card).to_have_count(1)
            expect(card).to_be_focused()
            expect_in_sight(page, card)
            expect(page.get_by_role("status").filter(has_text="Accepted")).to_have_count(1)
            assert page.url.endswith(f"#{card.get_attribute('id')}")
        page.screenshot(path=tmp_path / f"new-card-{scheme}.png")
        # The list is looked at again every second: the mark and the focus stay where they are.
        hand.begin(str(card.get_attribute("id")), 0.4)
        expect(card.get_by_role("progressbar")).to_have_js_property("value", 0.4)
        expect(card).to_be_focused()
        expect(page.get_by_label("Steps")).to_have_value("9")
        card.get_by_role("link", name="Back to the form").click()
        expect(page.get_by_role("heading", name="Draw")).to_be_in_viewport()
        page.screenshot(path=tmp_path / f"back-at-the-form-{scheme}.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_S26_without_scripts_the_answer_begins_at_the_new_job(
    browser: Browser, site: str, hand: Hand, api_key: str, tmp_path: Path, scheme: str
) -> None:
    hand.beat()
    with phone(browser, site, scripts=False, scheme=scheme) as page:
        give_key(page, api_key)
        draw_with_settings_open(page)
        job = page.locator("#job")
        expect(job).to_be_visible()
        assert re.search(r"/jobs/job_\w{26}#job$", page.url)
        expect(job).to_be_focused()
        expect_in_sight(page, page.get_by_role("heading", name=PROMPT))
        expect(job.get_by_role("status")).to_contain_text("queued")
        page.screenshot(path=tmp_path / f"job-without-scripts-{scheme}.png")


def test_S26_who_sees_the_new_card_stays_where_they_were(
    browser: Browser, site: str, hand: Hand, api_key: str
) -> None:
    """On a wide screen the form stands beside the jobs, and the next prompt can be typed at once."""
    hand.beat()
    with visit(browser, site, scripts=True) as page:
        give_key(page, api_key)
        prompt = page.get_by_label("Prompt", exact=True)
        prompt.fill(PROMPT)
        prompt.press("Control+Enter")
        expect(page.locator("#jobs .card.new")).to_be_in_viewport()
        expect(prompt).to_be_focused()
        expect(page.get_by_role("status").filter(has_text="Accepted")).to_have_count(1)


def test_S26_a_page_without_scripts_that_loads_itself_again_stays_where_it_was_scrolled_to(
    browser: Browser, site: str, hand: Hand, api_key: str
) -> None:
    hand.beat()
    with phone(browser, site, scripts=False, scheme="light") as page:
        give_key(page, api_key)
        draw_with_settings_open(page)
        expect(page.locator("#job")).to_be_visible()
        page.get_by_role("heading", name="The same job from a shell").scroll_into_view_if_needed()
        with page.expect_navigation():
            pass
        expect(page.get_by_role("heading", name="The same job from a shell")).to_be_in_viewport()
