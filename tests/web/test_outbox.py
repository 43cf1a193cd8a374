"""Answers between the screen and the server, in a real browser: none lost, none doubled, none somebody else's."""

from collections.abc import Callable

import pytest
from browser import enter, prefer_good, prefer_good_till_the_end, press, until_it_takes_keys
from playwright.sync_api import BrowserContext, Page, expect
from process import until
from questions import of_four, question

from rather.store import Store
from rather.store.people import invite

Serve = Callable[..., str]


def good_or_poor(store: Store, count: int) -> None:
    store.ask("r", [question(i, left="good", right="poor") for i in range(count)])


def key_of_good(page: Page) -> str:
    return "1" if "good" in page.locator("#side-1").inner_text() else "2"


def test_two_links_in_one_browser_are_two_people(context: BrowserContext, store: Store, serve: Serve) -> None:
    good_or_poor(store, 8)
    url = serve(overlap=2)
    ann, bob = (enter(context, url, store, name) for name in ("ann", "bob"))
    for _ in range(8):
        prefer_good(ann)
        prefer_good(bob)
    until(lambda: len(store.labels("r")) == 16)
    assert sorted(x.judge for x in store.labels("r")) == ["ann"] * 8 + ["bob"] * 8
    assert all(x.preference == 1.0 for x in store.labels("r")), "both preferred the good side, wherever it was"
    ann.reload()
    expect(ann.locator("#progress")).to_have_text("8 of your 8 answered")


def test_what_two_tabs_of_one_person_answer_offline_is_kept_of_both(context: BrowserContext, store: Store, serve: Serve) -> None:
    good_or_poor(store, 8)
    one = enter(context, serve(), store, "ann")
    prefer_good(one)
    two = context.new_page()
    two.goto(one.url)
    for page in (one, two):
        page.wait_for_function("() => ahead !== null")
    context.set_offline(True)
    answered = set()
    for page in (one, two, one):
        until_it_takes_keys(page)
        if page.locator("#question").is_visible():
            answered.add(page.locator("#question").get_attribute("data-number"))
            page.keyboard.press(key_of_good(page))
    assert len(answered) >= 2
    one.close()
    context.set_offline(False)
    two.reload()
    until(lambda: {str(x.comparison) for x in store.labels("r")} >= answered)
    prefer_good_till_the_end(two)
    until(lambda: len(store.labels("r")) == 8)
    assert all(x.preference == 1.0 for x in store.labels("r"))


def test_an_answer_in_one_tab_moves_the_other_on(context: BrowserContext, store: Store, serve: Serve) -> None:
    good_or_poor(store, 4)
    one = enter(context, serve(), store, "ann")
    two = context.new_page()
    two.goto(one.url)
    number = one.locator("#question").get_attribute("data-number") or ""
    expect(two.locator("#question")).to_have_attribute("data-number", number)
    prefer_good(one)
    expect(two.locator("#question")).not_to_have_attribute("data-number", number)


FILL = """async () => {
  const cache = await caches.open("ballast");
  for (let size = 1_000_000, i = 0; size > 10; i += 1) {
    try { await cache.put(`/ballast/${i}`, new Response(new Uint8Array(size))); } catch (error) { size = Math.floor(size / 2); }
  }
}"""


@pytest.mark.parametrize("trouble", ["full", "blocked", "damaged"])
def test_a_browser_that_keeps_nothing_says_so_and_loses_nothing(context: BrowserContext, store: Store, serve: Serve, trouble: str) -> None:
    good_or_poor(store, 6)
    if trouble != "full":
        broken = {
            "blocked": "Object.defineProperty(window, 'indexedDB', { get() { throw new DOMException('no', 'SecurityError'); } })",
            "damaged": "IDBObjectStore.prototype.add = () => { throw new DOMException('damaged', 'UnknownError'); }",
        }
        context.add_init_script(broken[trouble])
    page = enter(context, serve(), store, "ann")
    if trouble == "full":
        session = context.new_cdp_session(page)
        session.send("Storage.overrideQuotaForOrigin", {"origin": page.url.partition("/label")[0], "quotaSize": 2_000_000})
        page.evaluate(FILL)
    page.wait_for_function("() => ahead !== null")
    context.set_offline(True)
    until_it_takes_keys(page)
    page.keyboard.press(key_of_good(page))
    expect(page.locator("#kept")).to_contain_text("1 kept here until the server has them. This browser has no room to keep answers")
    until_it_takes_keys(page)
    page.keyboard.press(key_of_good(page))
    expect(page.locator("#kept")).to_contain_text("2 kept here")
    context.set_offline(False)
    until(lambda: len(store.labels("r")) == 2)
    expect(page.locator("#kept")).to_have_text("")
    prefer_good_till_the_end(page)
    until(lambda: len(store.labels("r")) == 6)
    assert all(x.preference == 1.0 for x in store.labels("r"))
    assert len(store.history("r")) == 6


@pytest.mark.slow
def test_questions_of_ten_thousand_words_a_side_leave_room_for_answers(context: BrowserContext, store: Store, serve: Serve) -> None:
    words = "word " * 10_000
    store.ask("r", [of_four(i, tuple(f"{x} {words}" for x in ("one", "two", "three", "four"))) for i in range(14)])
    page = enter(context, serve(), store, "ann")
    for _ in range(13):
        press(page, "1")
    page.wait_for_function("() => outbox.length === 0")
    press(page, "u")
    press(page, "2")
    until(lambda: len(store.labels("r")) == 13)


KEYS = "for (const key of ['1', '1', 's']) document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));"
CLICKS = "for (const choice of ['left', 'left', 'tie']) document.querySelector(`nav [data-choice=${choice}]`).click();"


def test_a_second_press_so_soon_does_nothing(context: BrowserContext, store: Store, serve: Serve) -> None:
    good_or_poor(store, 4)
    page = enter(context, serve(), store, "ann")
    page.wait_for_function("() => ahead !== null")
    for count, at_once in ((1, KEYS), (2, CLICKS), (3, KEYS + CLICKS)):
        until_it_takes_keys(page)
        page.evaluate(f"() => {{ {at_once} }}")
        expect(page.locator("#why")).to_be_hidden()
        until(lambda count=count: len(store.history("r")) == count)
        page.wait_for_function("() => current !== null")
    until_it_takes_keys(page)
    assert len(store.history("r")) == 3


def test_answers_that_wait_go_out_under_a_new_link(context: BrowserContext, store: Store, serve: Serve) -> None:
    good_or_poor(store, 5)
    url = serve()
    page = enter(context, url, store, "ann")
    page.wait_for_function("() => ahead !== null")
    context.set_offline(True)
    until_it_takes_keys(page)
    page.keyboard.press(key_of_good(page))
    expect(page.locator("#kept")).to_contain_text("1 kept here")
    token = invite(store, "ann")
    context.set_offline(False)
    expect(page.locator("#kept")).to_contain_text("it may have expired or been revoked")
    assert store.labels("r") == []
    again = context.new_page()
    again.goto(f"{url}/join#{token}")
    until(lambda: [x.preference for x in store.labels("r")] == [1.0])


def test_the_secret_of_a_link_stays_in_the_browser(context: BrowserContext, store: Store, serve: Serve) -> None:
    good_or_poor(store, 1)
    token, asked = invite(store, "ann"), []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{serve()}/join#{token}")
    expect(page.locator("#question")).to_be_visible()
    assert page.url.endswith("/label/1")
    assert asked
    assert not [url for url in asked if token in url and "#" not in url], "no address that was asked for has it"
    page.go_back()
    assert token not in page.url


def test_another_link_that_is_opened_in_the_same_tab_lets_in(context: BrowserContext, store: Store, serve: Serve) -> None:
    good_or_poor(store, 1)
    url, page = serve(), context.new_page()
    page.goto(f"{url}/join#{invite(store, 'ann', days=-1)}")
    expect(page.locator("#message")).to_contain_text("expired or been taken back")
    page.evaluate("(secret) => { location.hash = secret; }", invite(store, "ann"))  # as if pasted: nothing but the hash is another
    expect(page.locator("#question")).to_be_visible()


def test_a_link_that_does_not_hold_says_so(context: BrowserContext, serve: Serve) -> None:
    page = context.new_page()
    url = serve()
    page.goto(f"{url}/join#wrong")
    expect(page.locator("#message")).to_contain_text("expired or been taken back")
    page.goto(f"{url}/join")
    page.reload()
    expect(page.locator("#message")).to_contain_text("what stands behind its #")
    page.goto(f"{url}/")
    expect(page.locator("h1")).to_contain_text("needs your invite link")
