"""What a person finds beside the questions: their own answers, comments, the owner's guidelines, the keys, and the way out."""

import re
from collections.abc import Callable
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import enter, press, tap, until_it_takes_keys
from playwright.sync_api import Browser, BrowserContext, Page, expect
from process import until
from questions import of_four, question

from conftest import served
from rather.core import Label
from rather.store import Store
from rather.store.people import invite

Serve = Callable[..., str]
PHONE = {"width": 360, "height": 740}


def ask(store: Store, count: int) -> None:
    store.ask("r", [question(i, f"What is {i}?", "good", "poor") for i in range(count)])


def good(page: Page, better: bool = True) -> str:
    """The key of the good side, or of the other one."""
    left = "good" in page.locator("#side-1").inner_text()
    return "1" if left is better else "2"


def number(page: Page) -> int:
    return int(page.locator("#question").get_attribute("data-number") or 0)


def sent(page: Page) -> None:
    page.wait_for_function("() => outbox.length === 0")


def clean(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert not found, [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found]


# The list


def test_own_answers_are_listed_changed_and_withdrawn(chromium: Browser, context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 6)
    url = serve()
    page = enter(context, url, store, "ann")
    first = number(page)
    for key in (good(page), "Shift+2", "="):
        press(page, key)
    sent(page)
    waits = number(page)
    tap(page, "l")
    rows = page.locator("#own-list button")
    expect(rows).to_have_count(3)
    assert [re.sub(r"\s+", " ", x) for x in rows.locator(".said").all_inner_texts()][:2] == ["tie", "right is a little better"]
    expect(rows.nth(2)).to_contain_text("What is 0?")
    assert re.search(r"\d\d", rows.nth(2).locator(".soft").inner_text()), "when it was given"
    clean(page)
    rows.nth(2).click()
    expect(page.locator("#own")).to_be_hidden()
    expect(page.locator("#earlier-what")).to_contain_text("is better. Answer again to change it.")
    assert number(page) == first
    expect(page.locator("#return")).to_be_focused()
    clean(page)
    until_it_takes_keys(page)
    page.keyboard.press(good(page, better=False))
    expect(page.locator("#earlier")).to_be_hidden()
    assert number(page) == waits, "the current question is back"
    until(lambda: {x.comparison: x.preference for x in store.labels("r")}[first] == 0.0)
    assert len(store.labels("r")) == 3
    tap(page, "l")
    expect(rows).to_have_count(3)
    rows.nth(0).click()
    expect(page.locator("#earlier")).to_be_visible()
    assert number(page) == first, "the newest counts, and comes first"
    until_it_takes_keys(page)
    page.get_by_role("button", name="withdraw").click()
    expect(page.locator("#earlier")).to_be_hidden()
    assert number(page) == waits
    until(lambda: first not in {x.comparison for x in store.labels("r")})
    seen = set()
    for _ in range(4):  # all that is open comes, what was withdrawn among it
        seen.add(number(page))
        press(page, good(page))
    until(lambda: len(store.labels("r")) == 6)
    assert {first, waits} <= seen
    assert not page.locator("#refused").inner_text()


def test_answers_of_another_device_are_there_too_and_the_current_question_is_kept(chromium: Browser, store: Store, serve: Serve) -> None:
    ask(store, 4)
    url, token = serve(), invite(store, "ann")
    devices = [chromium.new_context() for _ in range(2)]
    one, two = (context.new_page() for context in devices)
    one.goto(f"{url}/join#{token}")
    press(one, "=")
    sent(one)
    two.goto(f"{url}/join#{token}")
    expect(two.locator("#question")).to_be_visible()
    waits = number(two)
    tap(two, "c")
    two.keyboard.type("not yet said")
    two.keyboard.press("Escape")
    tap(two, "l")
    two.locator("#own-list button").click()
    expect(two.locator("#earlier")).to_be_visible()
    expect(two.locator("#comment")).to_have_value("")
    earlier = number(two)
    assert earlier != waits
    tap(two, "Escape")
    expect(two.locator("#earlier")).to_be_hidden()
    assert number(two) == waits
    expect(two.locator("#comment")).to_have_value("not yet said")
    two.reload()
    expect(two.locator("#question")).to_be_visible()
    assert number(two) == waits
    tap(two, "l")
    two.locator("#own-list button").click()
    expect(two.locator("#earlier")).to_be_visible()
    tap(two, "u")  # withdraws what is looked at
    until(lambda: store.labels("r") == [])
    assert number(two) == waits
    for context in devices:
        context.close()


def test_older_answers_come_fifty_at_a_time(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 130)
    page = enter(context, serve(), store, "ann")
    mine = number(page)
    store.answer_all([Label(n, "ann", 1.0, seconds=2.0) for n in range(1, 131) if n != mine][:120])
    tap(page, "l")
    rows, older = page.locator("#own-list button"), page.get_by_role("button", name="show older")
    for count in (50, 100, 120):
        expect(rows).to_have_count(count)
        if count < 120:
            older.click()
    expect(older).to_be_hidden()
    expect(rows.nth(100)).to_be_focused()
    assert len(set(rows.locator(".begins").all_inner_texts())) == 120
    rows.nth(0).click()  # it was never given out on a page
    expect(page.locator("#own-message")).to_contain_text("cannot be changed here any more")
    expect(page.locator("#own")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#own")).to_be_hidden()


def test_a_change_made_offline_waits_in_the_outbox_as_any_answer(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 4)
    page = enter(context, serve(), store, "ann")
    first = number(page)
    press(page, "=")
    sent(page)
    tap(page, "l")
    page.locator("#own-list button").click()
    expect(page.locator("#earlier")).to_be_visible()
    context.set_offline(True)
    until_it_takes_keys(page)
    page.keyboard.press(good(page))
    expect(page.locator("#kept")).to_contain_text("1 kept here")
    expect(page.locator("#progress")).to_have_text("1 of your 4 answered")  # a change is no answer more
    tap(page, "l")
    expect(page.locator("#own-message")).to_contain_text("cannot be reached")
    page.keyboard.press("Escape")
    page.close()
    context.set_offline(False)
    again = context.new_page()
    again.goto(page.url)
    until(lambda: [(x.comparison, x.preference) for x in store.labels("r")] == [(first, 1.0)])


def test_an_answer_to_four_sides_is_told_by_its_place(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [of_four(0), question(1)])
    page = enter(context, serve(), store, "ann")
    press(page, "3")
    press(page, "b")
    sent(page)
    until_it_takes_keys(page)
    page.keyboard.press("l")
    expect(page.locator("#own-list .said")).to_have_text(["both bad", "3 is best"])
    page.locator("#own-list button").nth(1).click()
    expect(page.locator(".side")).to_have_count(4)
    until_it_takes_keys(page)
    page.get_by_role("button", name="1 is best").click()
    until(lambda: len(store.history("r")) == 3)
    expect(page.locator("#message")).to_contain_text("nothing to compare")


# A comment


def test_a_comment_goes_with_the_next_answer_and_is_listed(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 5)
    page = enter(context, serve(), store, "ann")
    tap(page, "c")
    expect(page.locator("#comment")).to_be_focused()
    page.keyboard.type("1 b = s u l g ?")  # letters, not answers
    assert store.history("r") == []
    page.keyboard.press("Enter")
    clean(page)
    press(page, good(page))
    expect(page.locator("#remark-row")).to_be_hidden()
    press(page, good(page))
    for key, name in (("b", "so bad"), ("s", "a matter of taste")):
        tap(page, "c")
        page.keyboard.type(name)
        page.keyboard.press("Escape")
        if key == "s":
            tap(page, "s")
            expect(page.locator("#reason")).to_have_value("a matter of taste")
            key = "1"
        press(page, key)
    until(lambda: len(store.labels("r")) == 4)
    said = [(x.preference, x.reason) for x in store.labels("r")]
    assert said == [(1.0, "1 b = s u l g ?"), (1.0, ""), (0.5, "both bad: so bad"), (None, "cannot tell: a matter of taste")]
    sent(page)
    tap(page, "l")
    expect(page.locator("#own-list .said")).to_have_count(4)
    words = [re.sub("left|right", "it", x) for x in page.locator("#own-list .said").all_inner_texts()]
    assert words == ["skipped: cannot tell: a matter of taste", "both bad: so bad", "it is better", "it is better: 1 b = s u l g ?"]
    page.locator("#own-list button").nth(1).click()
    expect(page.locator("#comment")).to_have_value("so bad")  # it stays with the answer, unless it is taken away
    tap(page, "c")
    page.locator("#comment").fill("")
    page.keyboard.press("Enter")
    tap(page, "b")
    until(lambda: [x.reason for x in store.labels("r") if x.preference == 0.5] == ["both bad"])


def test_a_comment_is_never_sent_with_another_question(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 6)
    page = enter(context, serve(), store, "ann")
    other = context.new_page()
    other.goto(page.url)
    expect(other.locator("#question")).to_have_attribute("data-number", str(number(page)))
    page.bring_to_front()
    tap(page, "c")
    page.keyboard.type("half a sent")
    other.bring_to_front()
    press(other, "=")
    page.bring_to_front()
    before = number(page)
    expect(page.locator("#comment")).to_have_value("")
    page.keyboard.type("ence b1=2")
    until_it_takes_keys(page)
    page.keyboard.type("b1=2s")
    expect(page.locator("#comment")).to_have_value("")
    assert number(page) == before, "what is typed on is neither a comment nor an answer"
    until(lambda: [x.reason for x in store.labels("r")] == [""])
    page.keyboard.press("Escape")
    press(page, "=")
    until(lambda: [x.reason for x in store.labels("r")] == ["", ""])
    tap(page, "s")
    expect(page.locator("#why")).to_be_visible()
    other.bring_to_front()
    expect(other.locator("#question")).to_have_attribute("data-number", str(number(page)))
    press(other, "=")
    page.bring_to_front()
    page.keyboard.press("1")
    expect(page.locator("#refused")).to_contain_text("Nothing was skipped")
    until(lambda: [x.preference for x in store.labels("r")] == [0.5] * 3)


# Guidelines and keys

RULES = "# Be strict\n\n1. **Right** before nice.\n2. <script>alert(1)</script> is text.\n\n$\\frac{a}{b}$\n\n" + "More.\n\n" * 60


def test_guidelines_come_before_the_first_question_until_they_have_been_read(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 5)
    url, token = serve(guidelines=RULES), invite(store, "ann")
    page = context.new_page()
    page.goto(f"{url}/join#{token}")
    dialog = page.get_by_role("dialog", name="Guidelines")
    expect(dialog).to_be_visible()
    expect(dialog.locator("ol li").nth(1)).to_have_text("<script>alert(1)</script> is text.")
    expect(dialog.locator("math mfrac")).to_be_visible()
    assert dialog.locator(".whole").evaluate("(e) => e.scrollTop") == 0
    expect(page.get_by_role("button", name="I have read this")).to_be_in_viewport()
    clean(page)
    page.wait_for_timeout(1000)
    page.keyboard.press("1")
    assert page.evaluate("() => current") is None, "no question is given out before"
    page.keyboard.press("Escape")
    press(page, "=")
    page.reload()
    expect(dialog).to_be_visible()  # nobody has said that they have read them
    page.get_by_role("button", name="I have read this").click()
    expect(dialog).to_be_hidden()
    press(page, "=")
    page.reload()
    expect(page.locator("#question")).to_be_visible()
    expect(dialog).to_be_hidden()
    tap(page, "g")
    expect(dialog).to_be_visible()
    page.wait_for_timeout(3000)
    dialog.get_by_role("button", name="close").click()
    press(page, "=")
    until(lambda: len(store.labels("r")) == 3)
    last = store.labels("r")[-1].seconds
    assert last is not None
    assert last < 2.5, "reading is not counted"
    page.get_by_role("button", name="guidelines").click()
    expect(dialog).to_be_visible()


def test_other_guidelines_are_read_anew(context: BrowserContext, store: Store) -> None:
    ask(store, 3)
    token, page, port = invite(store, "ann"), context.new_page(), 0
    dialog = page.get_by_role("dialog", name="Guidelines")
    for rules, new in (("Be kind.", True), ("Be kind.", False), ("Be very kind.", True)):
        with served(store, "r", rules, port) as url:
            port = int(url.rpartition(":")[2])
            page.goto(f"{url}/join#{token}")
            if new:
                page.get_by_role("button", name="I have read this").click()
            expect(page.locator("#question")).to_be_visible()
            expect(dialog).to_be_hidden()
            page.goto("about:blank")


def test_where_nothing_can_be_kept_guidelines_come_until_there_is_an_answer(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 3)
    context.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })")
    page = context.new_page()
    page.goto(f"{serve(guidelines='Be kind.')}/join#{invite(store, 'ann')}")
    for _ in range(2):
        page.get_by_role("button", name="I have read this").click()
        expect(page.locator("#question")).to_be_visible()
        page.reload()
    page.get_by_role("button", name="I have read this").click()
    press(page, "=")
    sent(page)
    page.reload()
    expect(page.locator("#question")).to_be_visible()
    expect(page.locator("#guidelines")).to_be_hidden()


def test_a_key_lists_all_keys(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 2)
    page = enter(context, serve(), store, "ann")
    until_it_takes_keys(page)
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_be_visible()
    clean(page)
    keys = set(dialog.locator("kbd").all_inner_texts())
    known = set(page.evaluate("() => Object.keys(commands)"))
    assert {k.lower() for k in keys} >= (known - {" ", "escape"}) | {"space", "esc", "1", "2"}
    assert "g" not in keys | known, "there are no guidelines"
    for key in ("1", "=", "l", "c"):
        page.keyboard.press(key)
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="keys").click()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="keys")).to_be_focused()
    assert store.history("r") == []


# How far one is, and the way out


def test_progress_says_how_many_are_ones_own_and_how_long_they_take(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 60)
    url = serve(overlap=2)
    for name in ("ann", "bob"):
        invite(store, name)
    store.answer_all([Label(n, "ann", 1.0, seconds=16.6) for n in range(1, 18)])
    page = enter(context, url, store, "ann")
    expect(page.locator("#progress")).to_have_text("17 of your 60, about 12 minutes left")
    press(page, "=")
    expect(page.locator("#progress")).to_have_text("18 of your 60, about 12 minutes left")
    expect(page.get_by_role("progressbar", name="18 of your 60")).to_have_js_property("value", 18)
    expect(page.locator("header")).to_contain_text("ann")


def test_logging_out_ends_at_a_page_that_says_so(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 3)
    url, token = serve(), invite(store, "ann")
    page = context.new_page()
    page.goto(f"{url}/join#{token}")
    press(page, "=")
    sent(page)
    page.get_by_role("button", name="log out").click()
    expect(page.locator("h1")).to_have_text("You are logged out")
    expect(page.locator("main")).to_contain_text("Your link lets you in again")
    clean(page)
    page.goto(f"{url}/label/1")
    expect(page.locator("h1")).to_contain_text("needs your invite link")
    page.goto(f"{url}/join#{token}")
    expect(page.locator("#progress")).to_contain_text("1 of your 3")


def test_logging_out_asks_first_while_answers_wait(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 4)
    url, token = serve(), invite(store, "ann")
    page = context.new_page()
    page.goto(f"{url}/join#{token}")
    expect(page.locator("#question")).to_be_visible()
    page.wait_for_function("() => ahead !== null")
    page.route("**/api/answers*", lambda route: route.abort())
    press(page, good(page))
    expect(page.locator("#kept")).to_contain_text("1 kept here")
    page.get_by_role("button", name="log out").click()
    asks = page.get_by_role("dialog", name="Log out?")
    expect(asks).to_contain_text("1 answer has not reached the server yet. It is kept in this browser")
    clean(page)
    page.get_by_role("button", name="stay here").click()
    context.set_offline(True)
    page.get_by_role("button", name="log out").click()
    page.locator("#leave").click()
    expect(page.locator("#refused")).to_have_text("You are not logged out: the server cannot be reached.")
    context.set_offline(False)
    page.get_by_role("button", name="log out").click()
    page.locator("#leave").click()
    expect(page.locator("h1")).to_have_text("You are logged out")
    assert store.history("r") == []
    page.unroute_all()
    page.goto(f"{url}/join#{token}")
    until(lambda: [x.preference for x in store.labels("r")] == [1.0])


def test_who_would_lose_answers_by_logging_out_is_told(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 4)
    context.add_init_script("IDBObjectStore.prototype.add = () => { throw new DOMException('damaged', 'UnknownError'); }")
    page = enter(context, serve(), store, "ann")
    page.wait_for_function("() => ahead !== null")
    context.set_offline(True)
    press(page, "=")
    page.get_by_role("button", name="log out").click()
    expect(page.locator("#leaving-what")).to_contain_text("if you log out now, this is lost")
    page.keyboard.press("Escape")
    expect(page.locator("#leaving")).to_be_hidden()
    context.set_offline(False)
    until(lambda: len(store.labels("r")) == 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_everything_is_behind_two_buttons(
    chromium: Browser, store: Store, serve: Serve, scheme: Literal["light", "dark"]
) -> None:
    ask(store, 4)
    context = chromium.new_context(viewport=PHONE, has_touch=True, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{serve(guidelines=RULES)}/join#{invite(store, 'Annabella of the very long name')}")
    expect(page.get_by_role("button", name="I have read this")).to_be_in_viewport()
    clean(page)
    page.get_by_role("button", name="I have read this").tap()
    press(page, "=")
    sent(page)
    menu = page.get_by_role("button", name="menu of Annabella")
    expect(page.get_by_role("button", name="log out")).to_be_hidden()
    for name, dialog in (("my answers", "Your answers"), ("guidelines", "Guidelines"), ("keys", "Keys")):
        menu.tap()
        expect(page.get_by_role("button", name="log out")).to_be_visible()
        clean(page)
        page.get_by_role("button", name=name).tap()
        expect(page.get_by_role("dialog", name=dialog)).to_be_visible()
        if name == "my answers":
            expect(page.locator("#own-list button")).to_have_count(1)
        clean(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.keyboard.press("Escape")
    page.get_by_role("button", name="more").tap()
    page.get_by_role("button", name="comment").tap()
    expect(page.locator("#comment")).to_be_focused()
    page.keyboard.type("short")
    clean(page)
    until_it_takes_keys(page)
    page.get_by_role("button", name="tie").tap()
    until(lambda: [x.reason for x in store.labels("r")] == ["", "short"])
    expect(page.locator("#remark-row")).to_be_hidden()
    context.close()


def test_an_undo_at_an_earlier_answer_takes_that_one_back_alone(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 3)
    page = enter(context, serve(), store, "ann")
    numbers = [number(page)]
    press(page, "1")
    sent(page)
    numbers.append(number(page))
    press(page, "2")
    sent(page)
    waits = number(page)
    tap(page, "l")
    page.locator("#own-list button").nth(1).click()
    expect(page.locator("#earlier")).to_be_visible()
    tap(page, "u")
    until(lambda: [x.comparison for x in store.labels("r")] == [numbers[1]])
    assert number(page) == waits
    page.wait_for_timeout(500)
    assert [x.comparison for x in store.labels("r")] == [numbers[1]]
