"""The page in a real Chromium (Debian's), driven through Playwright."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from questions import question

from rather.store import Store
from rather.store.people import invite

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
Serve = Callable[..., str]
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context()
    yield made
    made.close()


def enter(context: BrowserContext, url: str, store: Store, name: str) -> Page:
    page = context.new_page()
    page.goto(f"{url}/join/{invite(store, name)}")
    expect(page.locator("#question")).to_be_visible()
    return page


def shown(page: Page) -> str:
    return page.locator("#left").inner_text() + " | " + page.locator("#right").inner_text()


def press(page: Page, key: str) -> None:
    """Press a key once there is a question, and wait for another one or for none."""
    expect(page.locator("#question")).to_be_visible()
    before = shown(page)
    page.keyboard.press(key)
    page.wait_for_function(
        "before => document.getElementById('question').hidden || "
        "document.getElementById('left').innerText + ' | ' + document.getElementById('right').innerText !== before",
        arg=before,
    )


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_people_at_once_with_keys_alone(chromium: Browser, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i, left="good", right="poor") for i in range(20)])
    url = serve(overlap=2)
    contexts = [chromium.new_context() for _ in range(2)]
    pages = [enter(c, url, store, name) for c, name in zip(contexts, ("ann", "bob"), strict=True)]
    for _ in range(20):
        for page in pages:
            press(page, "1" if "good" in page.locator("#left").inner_text() else "2")
    until(lambda: len(store.labels("r")) == 40)
    assert all(x.preference == 1.0 for x in store.labels("r")), "both preferred the good side, wherever it was"
    assert {x.left for x in store.labels("r")} == {"a", "b"}
    for page in pages:
        expect(page.locator("#message")).to_contain_text("nothing to compare")
        expect(page.locator("#progress")).to_have_text("20 of 20 answered")
    for c in contexts:
        c.close()


def test_undo_brings_the_question_back(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(3)])
    page = enter(context, serve(), store, "ann")
    first = shown(page)
    press(page, "1")
    until(lambda: len(store.labels("r")) == 1)
    press(page, "u")
    assert shown(page) == first
    until(lambda: store.labels("r") == [])
    for _ in range(3):
        press(page, "=")
    until(lambda: [x.preference for x in store.labels("r")] == [0.5] * 3)


def test_answers_survive_a_lost_connection_and_a_reload(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(5)])
    page = enter(context, serve(), store, "ann")
    page.wait_for_function("() => ahead !== null")
    context.set_offline(True)
    press(page, "1")
    page.keyboard.press("2")
    expect(page.locator("#kept")).to_contain_text("2 kept here")
    time.sleep(1.5)
    assert store.labels("r") == []
    context.set_offline(False)
    page.reload()
    expect(page.locator("#question")).to_be_visible()
    until(lambda: len(store.labels("r")) == 2)
    for _ in range(3):
        press(page, "=")
    until(lambda: len(store.labels("r")) == 5)
    assert len(store.history("r")) == 5, "none was kept twice"
    expect(page.locator("#kept")).to_have_text("")


HOSTILE = [
    "<script>window.hacked=1</script>", "<img src=x onerror='window.hacked=1'>", "<svg onload='window.hacked=1'></svg>",
    "[click](javascript:window.hacked=1)", "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<style>body{display:none}</style>", "<a href='#' onmouseover='window.hacked=1'>x</a>", "</div><script>window.hacked=1</script>",
    "{{ 7 * 7 }}", "${window.hacked=1}", "<details open ontoggle=window.hacked=1>", "\u202eevil\u2066",
]  # fmt: skip


def test_hostile_words_do_nothing(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i, words, words, words) for i, words in enumerate(HOSTILE)])
    page = enter(context, serve(), store, "ann")
    for _ in HOSTILE:
        expect(page.locator("nav")).to_be_visible()
        for element in page.locator("#question a").all():
            element.hover()
        assert page.evaluate("window.hacked") is None
        assert page.locator("#question script, #question img, #question svg, #question iframe, #question style").count() == 0
        press(page, "s")
    until(lambda: len(store.labels("r")) == len(HOSTILE))


def test_it_fits_a_phone(chromium: Browser, store: Store, serve: Serve, tmp_path: Path) -> None:
    store.ask("r", [question(0, left="word " * 80, right="x" * 400)])
    phone = chromium.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    page = enter(phone, serve(), store, "ann")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing to scroll sideways"
    page.get_by_role("button", name="tie").tap()
    until(lambda: len(store.labels("r")) == 1)
    phone.close()


def test_the_owner_makes_and_revokes_a_link(context: BrowserContext, store: Store, serve: Serve) -> None:
    url = serve()
    page = context.new_page()
    page.goto(f"{url}/join/{invite(store, 'owner', 'owner')}")
    page.get_by_label("Invite somebody").fill("Ann")
    page.keyboard.press("Enter")
    expect(page.locator("#link")).to_contain_text("/join/")
    page.get_by_role("button", name="Revoke Ann").click()
    expect(page.get_by_role("button", name="Revoke Ann")).to_have_count(0)
