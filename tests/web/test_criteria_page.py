"""Preferences on criteria on the page, in a real Chromium: one step after the other, the whole last."""

import re
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import enter, press, tap, until_it_takes_keys
from playwright.sync_api import Browser, BrowserContext, Page, expect
from process import until
from questions import of_four, question

from rather.store import Store, own

Serve = Callable[..., str]
ASKED = ("helpful", "honest")
PHONE = {"width": 360, "height": 740}


@pytest.fixture
def phone(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context(viewport=PHONE, has_touch=True)  # type: ignore[arg-type]
    yield made
    made.close()


def ask(store: Store, count: int) -> None:
    store.ask("r", [question(i, f"What is {i}?") for i in range(count)])


def number(page: Page) -> int:
    return int(page.locator("#question").get_attribute("data-number") or 0)


def asks(page: Page, what: str) -> None:
    """The page asks that now, and marks its chip."""
    sentence = "Which is better overall?" if what == "overall" else f"Which is more: {what}?"
    expect(page.locator("#asked")).to_contain_text(sentence)
    expect(page.locator("#chips [aria-current]")).to_have_count(1)
    expect(page.locator("#chips [aria-current] bdi")).to_have_text(what)


def chips(page: Page) -> list[str]:
    return [re.sub(r"\s+", " ", x).strip() for x in page.locator("#chips button").all_inner_texts()]


def said(store: Store) -> list[tuple[float | None, dict[str, float]]]:
    """What ann's answers that count say for what was shown first, the latest first."""
    found = []
    for label in (x.label for x in own.answers(store, "r", "ann", 2**31 - 1)):
        turned = [p if p is None or label.shown == "ab" else 1 - p for p in (label.preference, *label.criteria.values())]
        found.append((turned[0], dict(zip(label.criteria, turned[1:], strict=True))))
    return found


def clean(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert not found, [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found]


def test_the_same_keys_answer_one_step_after_the_other_and_the_last_one_sends(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 3)
    page = enter(context, serve(criteria=ASKED), store, "ann")
    first = number(page)
    asks(page, "helpful")
    clean(page)
    assert chips(page) == ["helpful", "honest", "overall"]
    assert [x.is_disabled() for x in page.locator("#chips button").all()] == [False, True, True]
    tap(page, "1")
    asks(page, "honest")
    assert "helpful: left" in page.locator("#asked").inner_text(), "a screen reader hears what was said"
    tap(page, "Shift+2")
    asks(page, "overall")
    assert chips(page) == ["helpful: left", "honest: right, a little", "overall"]
    clean(page)
    assert said(store) == []
    assert number(page) == first
    press(page, "=")
    asks(page, "helpful")
    assert chips(page) == ["helpful", "honest", "overall"], "the next question begins anew"
    until(lambda: said(store) == [(0.5, {"helpful": 1.0, "honest": 0.25})])
    for key in ("=", "2"):
        tap(page, key)
    press(page, "2")
    until(lambda: said(store)[0] == (0.0, {"helpful": 0.5, "honest": 0.0}))
    assert not page.locator("#refused").inner_text()


def test_a_click_goes_back_to_a_step_and_on_to_the_first_that_is_open(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 2)
    page = enter(context, serve(criteria=("a", "b", "c")), store, "ann")
    for _ in range(3):
        until_it_takes_keys(page)
        page.get_by_role("button", name="left is better").click()
    asks(page, "overall")
    page.locator("#chips button").nth(1).click()
    asks(page, "b")
    assert chips(page)[1] == "b: left", "until it is said anew"
    until_it_takes_keys(page)
    page.get_by_role("button", name="right is better").click()
    asks(page, "overall")
    assert chips(page) == ["a: left", "b: right", "c: left", "overall"]
    page.locator("#chips button").nth(0).click()
    page.locator("#chips button").nth(3).click()
    asks(page, "overall")
    expect(page.locator("#chips button").nth(3)).to_be_focused()
    press(page, "1")
    until(lambda: said(store) == [(1.0, {"a": 1.0, "b": 0.0, "c": 1.0})])


def test_undo_goes_one_step_back_and_then_takes_the_last_question_back_whole(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 3)
    page = enter(context, serve(criteria=ASKED), store, "ann")
    first = number(page)
    for key in ("1", "1"):
        tap(page, key)
    press(page, "1")
    until(lambda: len(said(store)) == 1)
    second = number(page)
    tap(page, "2")
    tap(page, "2")
    asks(page, "overall")
    tap(page, "u")
    asks(page, "honest")
    assert chips(page) == ["helpful: right", "honest", "overall"], "what was said there is taken back"
    tap(page, "u")
    asks(page, "helpful")
    assert (number(page), len(said(store))) == (second, 1)
    press(page, "u")
    assert number(page) == first
    assert chips(page) == ["helpful", "honest", "overall"]
    until(lambda: said(store) == [])
    for key in ("=", "="):
        tap(page, key)
    press(page, "2")
    until(lambda: said(store) == [(0.0, {"helpful": 0.5, "honest": 0.5})])
    page.reload()
    expect(page.locator("#question")).to_be_visible()
    press(page, "u")
    assert number(page) == first, "after a reload, too"
    asks(page, "helpful")
    assert chips(page) == ["helpful", "honest", "overall"]


def test_a_double_press_answers_one_step(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 2)
    page = enter(context, serve(criteria=ASKED), store, "ann")
    until_it_takes_keys(page)
    page.keyboard.press("1")
    page.keyboard.press("1")
    asks(page, "honest")
    until_it_takes_keys(page)
    page.get_by_role("button", name="left is better").dblclick()
    asks(page, "overall")
    before = number(page)
    page.wait_for_timeout(100)
    assert number(page) == before
    assert said(store) == []


def test_skip_and_both_bad_end_the_question_at_once(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 3)
    page = enter(context, serve(criteria=ASKED), store, "ann")
    tap(page, "1")
    asks(page, "honest")
    press(page, "b")
    until(lambda: said(store) == [(0.5, {"helpful": 1.0})])
    tap(page, "1")
    asks(page, "honest")
    tap(page, "s")
    before = str(number(page))
    page.keyboard.press("1")
    expect(page.locator("#question")).not_to_have_attribute("data-number", before)
    until(lambda: len(said(store)) == 2)
    assert said(store)[0] == (None, {})
    assert not page.locator("#refused").inner_text()
    asks(page, "helpful")


def test_what_was_said_offline_reaches_the_store_whole(context: BrowserContext, store: Store, serve: Serve) -> None:
    ask(store, 3)
    page = enter(context, serve(criteria=("__proto__", "0", "<b>bold</b>")), store, "ann")
    page.wait_for_function("() => ahead !== null")
    asks(page, "__proto__")
    context.set_offline(True)
    for key in ("1", "Shift+1", "2"):
        tap(page, key)
    assert chips(page) == ["__proto__: left", "0: left, a little", "<b>bold</b>: right", "overall"]
    press(page, "=")
    expect(page.locator("#kept")).to_contain_text("1 kept here")
    context.set_offline(False)
    page.reload()
    until(lambda: said(store) == [(0.5, {"0": 0.75, "<b>bold</b>": 0.0, "__proto__": 1.0})])


def test_an_earlier_answer_says_criteria_anew_and_the_current_question_keeps_its_own(
    context: BrowserContext, store: Store, serve: Serve
) -> None:
    ask(store, 3)
    page = enter(context, serve(criteria=ASKED), store, "ann")
    first = number(page)
    tap(page, "1")
    tap(page, "Shift+2")
    press(page, "1")
    until(lambda: len(said(store)) == 1)
    waits = number(page)
    tap(page, "2")
    asks(page, "honest")
    tap(page, "l")
    row = page.locator("#own-list button")
    expect(row).to_have_count(1)
    seen = re.sub(r"\s+", " ", row.locator(".said").inner_text())
    assert seen == "left is better; helpful: left; honest: right, a little"
    row.click()
    expect(page.locator("#earlier")).to_be_visible()
    asks(page, "overall")
    assert (number(page), chips(page)) == (first, ["helpful: left", "honest: right, a little", "overall"]), "as they were said"
    page.get_by_role("button", name="helpful").click()
    tap(page, "2")
    asks(page, "overall")
    tap(page, "2")
    expect(page.locator("#earlier")).to_be_hidden()
    assert number(page) == waits
    asks(page, "honest")
    assert chips(page) == ["helpful: right", "honest", "overall"]
    until(lambda: said(store) == [(0.0, {"helpful": 0.0, "honest": 0.25})])


def test_more_than_two_sides_and_pages_without_criteria_are_asked_about_the_whole_alone(
    context: BrowserContext, store: Store, serve: Serve
) -> None:
    store.ask("r", [of_four(0)])
    page = enter(context, serve(criteria=ASKED), store, "ann")
    expect(page.locator("#steps")).to_be_hidden()
    tap(page, "3")
    until(lambda: [criteria for _, criteria in said(store)] == [{}])
    page.goto("about:blank")  # or it would be given the next question
    page.wait_for_timeout(1000)
    ask(store, 1)
    page = enter(context, serve(), store, "bob")
    expect(page.locator("#steps")).to_be_hidden()
    tap(page, "1")
    until(lambda: len(store.labels("r")) == 2)


LONG = tuple(f"{letter} whole long name of forty characters {letter}" for letter in "abcdef")


@pytest.mark.parametrize("criteria", [ASKED, LONG], ids=["two short", "six long"])
def test_the_row_fits_on_a_phone(phone: BrowserContext, store: Store, serve: Serve, criteria: tuple[str, ...]) -> None:
    ask(store, 2)
    page = enter(phone, serve(criteria=criteria), store, "ann")
    for name in criteria:
        asks(page, name)
        bar, row = (page.locator(x).bounding_box() for x in ("nav", "#steps"))
        assert bar
        assert row
        assert bar["height"] - row["height"] <= 740 / 5
        assert row["height"] <= 740 / 8
        assert bar["y"] + bar["height"] <= 740
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        chip = page.locator("#chips [aria-current]").bounding_box()
        assert chip
        assert 0 <= chip["x"] <= 360 - chip["width"], "the chip of this step is in sight"
        assert chip["height"] >= 32
        for button in page.locator("nav > button:visible").all():
            assert (button.bounding_box() or {"height": 0})["height"] >= 40
        until_it_takes_keys(page)
        page.get_by_role("button", name="upper is better").tap()
    asks(page, "overall")
    assert chips(page)[0] == f"{criteria[0]}: upper"
    clean(page)
    page.get_by_role("button", name="undo").tap()
    asks(page, criteria[-1])
    page.locator("#chips button").nth(0).tap()
    asks(page, criteria[0])
    until_it_takes_keys(page)
    page.get_by_role("button", name="lower is better").tap()
    asks(page, criteria[-1])
    until_it_takes_keys(page)
    page.locator("[data-choice=tie]").tap()
    before = number(page)
    until_it_takes_keys(page)
    page.locator("[data-choice=tie]").tap()
    until(lambda: len(said(store)) == 1)
    assert number(page) != before
    assert said(store)[0][1] == dict.fromkeys(criteria, 1.0) | {criteria[0]: 0.0, criteria[-1]: 0.5}
