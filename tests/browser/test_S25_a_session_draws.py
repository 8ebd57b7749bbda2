"""S25: who has signed in draws, cancels and tries again, and loses nothing to another tab."""

import pytest
from playwright.sync_api import Browser, expect

from storage import accounts
from storage.database import Database
from tests.browser.conftest import Hand
from tests.browser.test_front_door import PROMPT, give_key, visit

BOTH = pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])


@BOTH
def test_S25_after_a_sign_in_in_another_tab_the_form_says_so_and_keeps_what_was_typed(
    browser: Browser, site: str, hand: Hand, api_key: str, database: Database, scripts: bool
) -> None:
    hand.beat()
    account = accounts.create_account(database, "another tab")
    other_key = accounts.create_key(database, account, "test").plaintext
    with visit(browser, site, scripts=scripts, expected=("403",)) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        give_key(page, api_key)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_text("More settings").click()
        page.get_by_label("Steps").fill("9")
        tab = page.context.new_page()
        tab.goto(f"{site}/")
        tab.get_by_role("button", name="Sign out").click()
        give_key(tab, other_key)
        expect(tab.get_by_role("heading", name="Latest jobs")).to_be_visible()

        page.get_by_role("button", name="Draw").click()
        message = page.get_by_role("alert").filter(has_text="belongs to an earlier session")
        expect(message).to_be_in_viewport()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
        expect(page.get_by_label("Steps")).to_have_value("9")
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_text("queued").first).to_be_visible()


@BOTH
def test_S25_after_a_sign_out_in_another_tab_the_form_asks_for_the_key_and_then_draws(
    browser: Browser, site: str, hand: Hand, api_key: str, scripts: bool
) -> None:
    hand.beat()
    with visit(browser, site, scripts=scripts, expected=("401",)) as page:
        give_key(page, api_key)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        tab = page.context.new_page()
        tab.goto(f"{site}/")
        tab.get_by_role("button", name="Sign out").click()
        expect(tab.get_by_role("button", name="Open")).to_be_visible()

        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_text("what you typed is kept")).to_be_visible()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
        page.get_by_label("API key").fill(api_key)
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_text("queued").first).to_be_visible()


@BOTH
def test_S25_a_job_is_canceled_and_tried_again_from_its_page(
    browser: Browser, site: str, hand: Hand, api_key: str, scripts: bool
) -> None:
    hand.beat()
    with visit(browser, site, scripts=scripts) as page:
        give_key(page, api_key)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_role("button", name="Draw").click()
        if scripts:
            page.locator("#jobs .card .prompt a").click()
        expect(page.get_by_role("heading", name=PROMPT)).to_be_visible()
        first = page.url
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#job")).to_contain_text("canceled")
        page.get_by_role("button", name="Retry").click()
        expect(page.locator("#job")).to_contain_text("queued")
        expect(page.get_by_role("row", name="retry of")).to_be_visible()
        assert page.url.partition("#")[0] != first.partition("#")[0]
        button = page.get_by_role("button", name="Cancel")
        button.focus()
        if scripts:
            with page.expect_response(lambda answer: "/jobs/job_" in answer.url):
                pass
            expect(button).to_be_focused()
