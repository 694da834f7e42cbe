"""The page of `clip web` in Chromium: every tab, what people do there, and that it asks no other machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from clip import samples
from clip.embedding import embed_into
from clip.search import Index
from tests.chromium import chromium
from tests.web import Web, serving_page

pytestmark = pytest.mark.browser

CIRCLE = samples.pictures()["a large solid red circle"]
TABS = ["Classify", "Agreement", "Similarity", "Search"]
TRAP = "<img src=x onerror=\"document.title = 'run'\">"

expect.set_options(timeout=30_000)  # milliseconds; other programs may keep the machine busy


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("page")
    pictures = list(map(str, samples.pictures().values()))
    embed_into(folder / "embeddings", pictures, backend="numpy", workers=0)
    Index.build(folder / "embeddings", folder / "index.lance")
    with serving_page(folder, "--index", folder / "index.lance") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@contextmanager
def opened(browser: Browser, web: Web, **options: Any) -> Iterator[Page]:
    """The page; it may not write to the console, nor ask another machine."""
    told: list[str] = []
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.on("request", lambda request: asked(request.url))
        page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))

        def asked(url: str) -> None:
            if not url.startswith((web.address, "data:", "blob:")):
                told.append(url)

        page.goto(web.address)
        expect(page.get_by_role("button", name="Classify", exact=True)).to_be_visible(timeout=30_000)
        yield page
        assert told == []


@pytest.fixture
def page(browser, web) -> Iterator[Page]:
    with opened(browser, web) as found:
        yield found


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    expect(page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")


def choose(page: Page, path: object) -> None:
    page.locator("input[type=file]").first.set_input_files(str(path))
    expect(page.get_by_role("button", name="Remove Image").or_(page.get_by_label("Clear")).first).to_be_visible()


def test_a_picture_is_classified_by_the_model_and_the_framework_that_are_chosen(page):
    choose(page, CIRCLE)
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_test_id("label-output-value")).to_have_text("red circle")
    page.get_by_role("tab", name="Agreement").click()
    page.get_by_role("button", name="Compare the frameworks").click()
    expect(page.get_by_text("They agree")).to_be_visible(timeout=60_000)


def test_presets_and_examples(page):
    page.get_by_role("button", name="mood", exact=True).click()
    expect(page.get_by_label("Template")).to_have_value("A {} person")
    expect(page.get_by_label("Categories, one in each line")).to_have_value("happy\nsad\ncalm\nangry\nfunny\ncrying")
    page.get_by_role("button", name="shapes", exact=True).click()
    page.get_by_role("button", name="a large solid red circle").click()
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_test_id("label-output-value")).to_have_text("red circle")


def test_faults_are_sentences_on_the_page(page):
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_text("There is no picture; upload or paste one, or give its address.")).to_be_visible()
    page.get_by_label("Or its address").fill("http://127.0.0.1/x.png")
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_text("not public").or_(page.get_by_text("public internet")).first).to_be_visible()


def test_texts_are_shown_as_they_are(page):
    choose(page, CIRCLE)
    page.get_by_label("Categories, one in each line").fill(f"red circle\n{TRAP}")
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_test_id("label-output-value")).to_have_text("red circle")
    expect(page.get_by_text("<img src=x").first).to_be_visible()
    assert page.title() == "TriCLIP"


def test_a_heat_map_of_the_drawn_pictures(page):
    open_tab(page, "Similarity")
    page.get_by_role("button", name="4 drawn pictures").click()
    expect(page.get_by_role("button", name="Remove this file").first).to_be_visible()
    page.get_by_role("button", name="Compare pictures and texts").click()
    expect(page.locator("img[src*='file=']").last).to_be_visible(timeout=30_000)


def test_an_index_is_searched(page):
    open_tab(page, "Search")
    page.get_by_label("Text", exact=True).fill("a red circle")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_text("a-large-solid-red-circle.png").first).to_be_visible(timeout=30_000)


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_nothing_of_what_is_found_is_cut(browser, web, size):
    cut = "part => part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight"
    with opened(browser, web, viewport=dict(zip(("width", "height"), size))) as page:
        if not page.get_by_role("tab", name="Search", exact=True).is_visible():
            page.get_by_label("More tabs").click()
        page.get_by_role("tab", name="Search", exact=True).or_(page.get_by_role("button", name="Search")).first.click()
        page.get_by_label("Text", exact=True).fill("a red circle")
        page.get_by_label("Text", exact=True).press("Enter")
        expect(page.locator(".found img")).to_have_count(8, timeout=30_000)
        assert not page.locator(".found .grid-wrap").evaluate(cut)
        assert not any(caption.evaluate(cut) for caption in page.locator(".found .caption-label").all())


def test_the_button_is_in_the_window_of_a_laptop(browser, web):
    with opened(browser, web, viewport={"width": 1280, "height": 900}) as page:
        box = page.get_by_role("button", name="Classify", exact=True).bounding_box()
        assert box["y"] + box["height"] <= 900


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_its_width(browser, web, scheme):
    with opened(browser, web, viewport={"width": 390, "height": 800}, color_scheme=scheme) as page:
        for name in TABS:
            if not page.get_by_role("tab", name=name, exact=True).is_visible():
                page.get_by_label("More tabs").or_(page.locator(".overflow-menu button")).first.click()
            page.get_by_role("tab", name=name, exact=True).or_(page.get_by_role("button", name=name)).first.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_phone_shows_how_far_the_frameworks_are_apart(browser, web):
    with opened(browser, web, viewport={"width": 390, "height": 844}) as page:
        choose(page, CIRCLE)
        page.get_by_role("tab", name="Agreement").click()
        page.get_by_role("button", name="Compare the frameworks").click()
        expect(page.get_by_text("They agree")).to_be_visible(timeout=60_000)
        difference = page.get_by_role("gridcell").or_(page.get_by_role("cell")).get_by_text("0.0e+00", exact=True).last
        expect(difference).to_be_in_viewport(ratio=1)


def test_the_keyboard_alone_is_enough(page):
    choose(page, CIRCLE)
    button = page.get_by_role("button", name="Classify", exact=True)
    for _ in range(60):
        page.keyboard.press("Tab")
        if button.evaluate("button => button === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("label-output-value")).to_have_text("red circle")
