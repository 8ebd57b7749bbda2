"""The front door as a person meets it, in a real browser, with scripts and without."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from catalogue.warnings import RequestWarning
from tests.browser.conftest import Hand

PROMPT = "a red circle on a paper background"
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


@contextmanager
def visit(browser: Browser, site: str, *, scripts: bool, expected: tuple[str, ...] = ()) -> Iterator[Page]:
    """A person's first visit. Fails when anything is loaded from elsewhere, or the console complains.

    `expected` are pieces of the complaints that a test provokes.
    """
    context = browser.new_context(java_script_enabled=scripts, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    hosts: set[str | None] = set()
    complaints: list[str] = []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(site)
    yield page
    context.close()
    assert hosts == {"127.0.0.1"}
    assert [line for line in complaints if not any(piece in line for piece in expected)] == []


def give_key(page: Page, api_key: str) -> None:
    page.get_by_label("API key").fill(api_key)
    page.get_by_role("button", name="Open").click()


def expect_pictures(pictures: Locator, count: int) -> None:
    """So many images, each really drawn on the screen."""
    expect(pictures).to_have_count(count)
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") == 128


def expect_no_sideways_scrolling(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def screenshots(page: Page, folder: Path, name: str) -> None:
    """In light and dark, wide and as narrow as a small telephone; none of them scrolls sideways."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=folder / f"{name}-{scheme}-{width}.png", full_page=True)
            expect_no_sideways_scrolling(page)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_with_scripts_a_job_moves_under_the_eyes_of_who_drew_it(
    browser: Browser, site: str, hand: Hand, api_key: str, tmp_path: Path
) -> None:
    with visit(browser, site, scripts=True) as page:
        screenshots(page, tmp_path, "without-key")
        give_key(page, api_key)
        expect(page.get_by_role("heading", name="Latest jobs")).to_be_visible()
        expect(page.get_by_label("API key")).to_have_count(0)  # the session draws

        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_label("Images").fill("2")
        page.get_by_role("button", name="Draw").click()
        card = page.locator("#jobs .card")
        expect(card).to_have_count(1)
        expect(card).to_contain_text("queued")
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
        assert urlsplit(page.url).path == "/"

        job_id = card.get_attribute("id")
        assert job_id
        hand.begin(job_id, 0.4)
        expect(card.get_by_role("progressbar")).to_have_js_property("value", 0.4)
        page.get_by_label("Prompt", exact=True).fill("typed while it runs")
        screenshots(page, tmp_path, "running")
        hand.finish(job_id, [RequestWarning("prompt_cut", "prompt", "its end was not used")])
        expect_pictures(card.get_by_role("img"), 2)
        expect(card).to_contain_text("succeeded")
        expect(card).to_contain_text("its end was not used")
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("typed while it runs")

        page.get_by_role("button", name="Draw").press("Enter")
        expect(card).to_have_count(2)
        screenshots(page, tmp_path, "jobs")
        page.get_by_role("link", name=PROMPT, exact=True).click()
        expect_pictures(page.get_by_role("figure").get_by_role("img"), 2)
        screenshots(page, tmp_path, "job")
        page.set_viewport_size({"width": 360, "height": 900})
        table = page.get_by_role("region", name="Parameters")
        assert table.evaluate("region => region.scrollWidth <= region.clientWidth")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("button", name="Open")).to_be_visible()


def test_without_scripts_a_job_is_drawn_just_the_same(
    browser: Browser, site: str, hand: Hand, api_key: str, tmp_path: Path
) -> None:
    with visit(browser, site, scripts=False) as page:
        give_key(page, api_key)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_role("heading", name=PROMPT)).to_be_visible()
        expect(page.locator("#job")).to_contain_text("queued")

        job_id = urlsplit(page.url).path.rpartition("/")[2]
        hand.begin(job_id, 0.5)  # the page loads itself again
        expect(page.get_by_role("progressbar")).to_have_js_property("value", 0.5)
        hand.finish(job_id)
        expect(page.get_by_role("figure").get_by_role("img")).to_have_count(1)
        expect_pictures(page.get_by_role("figure").get_by_role("img"), 1)
        page.screenshot(path=tmp_path / "without-scripts-job.png", full_page=True)
        page.get_by_role("link", name="Draw", exact=True).click()
        expect_pictures(page.locator("#jobs .card").get_by_role("img"), 1)
        page.screenshot(path=tmp_path / "without-scripts-front.png", full_page=True)


@pytest.mark.parametrize("scripts", [True, False])
def test_what_is_wrong_is_told_beside_its_field(
    browser: Browser, site: str, hand: Hand, api_key: str, tmp_path: Path, scripts: bool
) -> None:
    hand.beat()
    with visit(browser, site, scripts=scripts, expected=("401", "422")) as page:
        give_key(page, "calo_abcdefgh_wrong")
        expect(page.get_by_label("API key")).to_have_accessible_description(
            "starts with calo_; this browser may then draw and read your jobs for 12 hours "
            "this API key is unknown or was revoked"
        )
        give_key(page, api_key)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_text("More settings").click()
        page.get_by_label("Steps").fill("999")
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_label("Steps")).to_have_attribute("aria-invalid", "true")
        expect(page.get_by_label("Steps")).to_have_value("999")
        expect(page.get_by_text("is above 150")).to_be_visible()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
        screenshot = tmp_path / f"wrong-{'with' if scripts else 'without'}-scripts.png"
        page.screenshot(path=screenshot, full_page=True)


def test_the_api_is_tried_on_a_page_of_its_own(browser: Browser, site: str) -> None:
    with visit(browser, site, scripts=True) as page:
        page.get_by_role("link", name="API", exact=True).click()
        expect(page.get_by_text("Submit a job")).to_be_visible()


def test_the_page_is_worked_by_keyboard_alone(browser: Browser, site: str, hand: Hand, api_key: str) -> None:
    hand.beat()
    with visit(browser, site, scripts=True) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(api_key)
        page.keyboard.press("Enter")
        expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
        page.keyboard.type(PROMPT)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#jobs .card")).to_have_count(1)
