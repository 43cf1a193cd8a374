"""The page in a real Chromium (Debian's), driven through Playwright."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import enter, prefer_good, prefer_good_till_the_end, press, shown, until_it_takes_keys
from playwright.sync_api import Browser, BrowserContext, Page, expect
from process import until
from questions import of_four, question

from conftest import served
from rather.store import Store
from rather.store.people import invite
from rather.web import demo as example
from test_control_run import COUNTER, OWN, RUN

Serve = Callable[..., str]


@pytest.mark.slow
def test_two_people_answer_all_questions_while_the_network_fails(chromium: Browser, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i, left="good", right="poor") for i in range(24)])
    url = serve(overlap=2)
    contexts = [chromium.new_context() for _ in range(2)]
    pages = [enter(c, url, store, name) for c, name in zip(contexts, ("ann", "bob"), strict=True)]
    cut = 0.0
    for turn in range(24):
        for number, page in enumerate(pages):
            if turn == 8 and number == 0:
                contexts[0].set_offline(True)
                cut = time.monotonic()
            if cut and number == 0 and time.monotonic() - cut > 5:
                contexts[0].set_offline(False)
                cut = 0.0
            if cut and number == 0 and page.locator("#question").is_hidden():
                continue  # the next question has not come through
            prefer_good(page)
    contexts[0].set_offline(False)
    prefer_good_till_the_end(pages[0])
    until(lambda: len(store.labels("r")) == 48)
    assert len(store.history("r")) == 48, "nothing was lost and nothing counts twice"
    assert all(x.preference == 1.0 for x in store.labels("r")), "both preferred the good side, wherever it was"
    assert {x.shown for x in store.labels("r")} == {"ab", "ba"}
    for page in pages:
        expect(page.locator("#message")).to_contain_text("nothing to compare")
    for c in contexts:
        c.close()


def test_a_slight_preference_and_a_reason_for_skipping(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(4)])
    page = enter(context, serve(), store, "ann")
    press(page, "Shift+1")
    for keys in (["3"], ["Tab"] * 3 + list("dull") + ["Enter"], ["Enter"]):
        expect(page.locator("#question")).to_be_visible()
        until_it_takes_keys(page)
        page.keyboard.press("s")
        expect(page.locator("#why")).to_be_visible()
        before = page.locator("#question").get_attribute("data-number")
        for key in keys:
            page.keyboard.press(key)
        expect(page.locator("#question")).not_to_have_attribute("data-number", before or "")
    until(lambda: len(store.labels("r")) == 4)
    labels = store.labels("r")
    assert labels[0].preference in (0.25, 0.75)
    assert [x.reason for x in labels[1:3]] == ["broken", "dull"]
    assert {x.preference for x in labels[1:]} == {None}


def test_undo_brings_the_question_back(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(3)])
    page = enter(context, serve(), store, "ann")
    first = shown(page)
    press(page, "1")
    until(lambda: len(store.labels("r")) == 1)
    press(page, "u")
    assert shown(page) == first
    until(lambda: store.labels("r") == [])
    press(page, "=")
    page.reload()
    expect(page.locator("#question")).to_be_visible()
    page.keyboard.press("u")
    page.wait_for_function("first => document.getElementById('side-1').innerText === first", arg=first.split(" | ")[0])
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
    until_it_takes_keys(page)
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


PAYLOADS = [
    "<script>window.hacked=1</script>", "<img src=x onerror='window.hacked=1'>", "<svg onload='window.hacked=1'></svg>",
    "[click](javascript:window.hacked=1)", "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>", "![x](https://evil.example/x.png)",
    "<style>body{display:none}</style>", "<a href='#' onmouseover='window.hacked=1'>x</a>", "</div><script>window.hacked=1</script>",
    "{{ 7 * 7 }}${window.hacked=1}", "<details open ontoggle=window.hacked=1>", "\u202eevil\u2066\u200f",
    "<math><mtext><img src=x onerror=window.hacked=1>",
    "<div style='position:fixed;inset:0;background:url(//evil.example)'>",
    "<form action=//evil.example><input autofocus onfocus=window.hacked=1>",
]  # fmt: skip
AROUND = ["{}", "```\n{}\n```", "$\\text{{{}}}$ and \\({}\\)", "| a |\n|---|\n| {} |"]
HOSTILE = [around.format(payload, payload) for payload in PAYLOADS for around in AROUND]


def test_hostile_words_do_nothing(context: BrowserContext, store: Store, serve: Serve) -> None:
    assert len(set(HOSTILE)) == 60
    store.ask("r", [question(i, words, words, words) for i, words in enumerate(HOSTILE)])
    asked: list[str] = []
    page = enter(context, serve(), store, "ann")
    page.on("request", lambda request: asked.append(request.url))
    for _ in HOSTILE:
        expect(page.locator("#question")).to_be_visible()
        for element in page.locator("#question a").all():
            element.hover()
        assert page.evaluate("window.hacked") is None
        assert (
            page.locator(
                "#question script, #question img, #question svg, #question iframe, #question style, #question form, #question [style]"
            ).count()
            == 0
        )
        press(page, "=")
    until(lambda: len(store.labels("r")) == len(HOSTILE))
    assert not [url for url in asked if "evil" in url]


def test_it_fits_a_phone(chromium: Browser, store: Store, serve: Serve, tmp_path: Path) -> None:
    store.ask("r", [question(0, left="word " * 80, right="x" * 400)])
    phone = chromium.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    page = enter(phone, serve(), store, "ann")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing to scroll sideways"
    until_it_takes_keys(page)
    page.get_by_role("button", name="tie").tap()
    until(lambda: len(store.labels("r")) == 1)
    phone.close()


def test_the_owner_makes_and_revokes_a_link(context: BrowserContext, store: Store, serve: Serve) -> None:
    url = serve()
    page = context.new_page()
    page.goto(f"{url}/join#{invite(store, 'owner', 'owner')}")
    page.get_by_label("Invite somebody").fill("Ann")
    expect(page.locator("button[type=submit]:disabled")).to_have_count(0)  # the page is whole
    page.keyboard.press("Enter")
    expect(page.get_by_label("Ann's link")).to_be_visible()
    page.get_by_role("button", name="Revoke Ann").click()
    expect(page.get_by_role("button", name="Revoke Ann")).to_have_count(0)


def to_question(page: Page, selector: str) -> None:
    """Answer until such a question is on the screen."""
    expect(page.locator("#question")).to_be_visible()
    while not page.locator(selector).count():
        press(page, "=")
        expect(page.locator("#question")).to_be_visible()


def test_clips_play_in_step_frame_by_frame(context: BrowserContext, demo_page: tuple[Store, str]) -> None:
    store, url = demo_page
    page = enter(context, url, store, "ann")
    to_question(page, "canvas")
    page.wait_for_function("() => [...document.querySelectorAll('canvas')].every((c) => Number(c.dataset.frame) > 2)")
    page.keyboard.press(" ")
    frames = "() => [...document.querySelectorAll('canvas')].map((c) => Number(c.dataset.frame))"
    page.evaluate("player.seek((Math.floor(player.time / player.frame) + 0.9) * player.frame)")  # late in the frame that is shown
    stopped = page.evaluate(frames)
    assert len(stopped) == 2
    assert len(set(stopped)) == 1, "in step"
    picture = page.locator("canvas").first.screenshot()
    page.keyboard.press(".")
    page.keyboard.press(".")
    page.keyboard.press(",")
    assert page.evaluate(frames) == [stopped[0] + 1] * 2
    page.locator("#scrub").fill("50")
    assert page.evaluate(frames) == [50, 50]
    assert page.locator("canvas").first.screenshot() != picture
    time.sleep(0.3)
    assert page.evaluate(frames) == [50, 50], "it stands still"
    press(page, "1")
    to_question(page, ".batch canvas")
    assert page.locator("canvas").count() == 4
    press(page, "2")
    until(lambda: len(store.labels(example.RUN)) >= 2)


def test_clips_are_for_those_who_are_invited(demo_page: tuple[Store, str]) -> None:
    store, url = demo_page
    number = next(n for q in store.questions(example.RUN) if q.why == "drive" for n in q.trajectories[0])
    assert httpx.get(f"{url}/api/clips/{number}").status_code == 401
    headers = {"Authorization": f"Bearer {invite(store, 'ann')}"}
    found = httpx.get(f"{url}/api/clips/{number}", headers=headers)
    assert (found.headers["content-type"], found.content[8:12]) == ("image/webp", b"WEBP")
    assert "immutable" in found.headers["cache-control"]
    assert "private" in found.headers["cache-control"]
    assert "script-src 'self'" in found.headers["content-security-policy"]
    assert httpx.get(f"{url}/api/clips/1", headers=headers).status_code == 404, "words have none"


def test_motion_is_not_forced_on_anybody(chromium: Browser, demo_page: tuple[Store, str]) -> None:
    store, url = demo_page
    context = chromium.new_context(reduced_motion="reduce")
    page = enter(context, url, store, "ann")
    to_question(page, "canvas")
    page.wait_for_selector("canvas[data-ready]")
    time.sleep(0.5)
    assert page.locator("canvas").first.get_attribute("data-frame") == "0"
    context.close()


def test_clips_that_cannot_be_drawn_leave_a_reason_and_a_remedy_instead_of_blank_boxes(
    rather, context: BrowserContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    (tmp_path / "run.toml").write_text(RUN)
    picture = "np.full((16, 16, 3), int(self.place), np.uint8)"
    (tmp_path / "counter.py").write_text(COUNTER.replace(picture, "__import__('os').abort()"))
    rather("sample", "run.toml", *OWN, "judge.kind=people", "loop.rounds=1", "query.comparisons=2", code=2)
    store = Store(str(tmp_path / "runs/small/store.db"))
    assert len(store.questions("small")) == 2
    said = "the process that draws counter:Counter-v0 died by signal SIGABRT; on a machine without a display set MUJOCO_GL=egl for MuJoCo"
    with served(store, "small") as url:
        page = context.new_page()
        page.goto(f"{url}/join#{invite(store, 'ann')}")
        expect(page.locator("#message")).to_have_text(f"Some clips cannot be shown: {said}")
        page.keyboard.press("1")
        expect(page.locator("#question")).to_be_hidden()
        assert page.locator("canvas").count() == 0
        page.goto(f"{url}/join#{invite(store, 'olga', 'owner')}")
        expect(page.locator("#problems")).to_have_text(said)
        assert store.history("small") == []
    store.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(chromium: Browser, demo_page: tuple[Store, str], scheme: Literal["light", "dark"]) -> None:
    store, url = demo_page
    context = chromium.new_context(color_scheme=scheme)
    page = context.new_page()

    def clean(where: str) -> None:
        found = Axe().run(page).response["violations"]
        assert not found, (where, [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found])

    page.goto(url)
    clean("the closed page")
    page.goto(f"{url}/join#{invite(store, 'ann')}")
    expect(page.locator("#question")).to_be_visible()
    clean("words")
    until_it_takes_keys(page)
    page.keyboard.press("s")
    expect(page.locator("#why")).to_be_visible()
    clean("the dialog")
    page.keyboard.press("Escape")
    to_question(page, "canvas")
    clean("clips")
    page.goto(f"{url}/join#{invite(store, 'boss', 'owner')}")
    expect(page.locator("#people tr")).to_have_count(2)
    clean("the owner's page")
    context.close()


def test_mathematics_and_code_are_shown(context: BrowserContext, demo_page: tuple[Store, str]) -> None:
    store, url = demo_page
    page = enter(context, url, store, "ann")
    to_question(page, "#question pre code")
    expect(page.locator("#question pre")).to_contain_text("def is_even")
    to_question(page, "#question math mfrac")
    expect(page.locator("#question math msup").first).to_be_visible()


def test_one_of_four_is_picked_by_key_or_button(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [of_four(0, ("poor", "bad", "good", "worse")), question(1), of_four(2)])
    page = enter(context, serve(), store, "ann")
    expect(page.locator(".side")).to_have_count(4)
    expect(page.get_by_role("button", name="left is better", exact=False)).to_be_hidden()
    place = [page.locator(f"#side-{i}").inner_text().split()[0] for i in (1, 2, 3, 4)].index("good") + 1
    assert not Axe().run(page).response["violations"]
    page.keyboard.press("5")  # there is no fifth side
    press(page, str(place))
    until(lambda: [(x.best, x.preference) for x in store.labels("r")] == [(2, 0.0)])
    expect(page.locator(".side")).to_have_count(2)
    expect(page.get_by_role("button", name="3 is best")).to_be_hidden()
    press(page, "=")
    expect(page.locator(".side")).to_have_count(4)
    first = page.locator("#side-1").inner_text().split()[0]
    until_it_takes_keys(page)
    page.get_by_role("button", name="1 is best").click()
    until(lambda: len(store.labels("r")) == 3)
    label = next(x for x in store.labels("r") if x.comparison == 3)
    assert ("one", "two", "three", "four")[label.best] == first
    page.keyboard.press("u")
    until(lambda: len(store.labels("r")) == 2)
