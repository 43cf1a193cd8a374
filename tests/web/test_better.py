"""Better answers that people write, and one side alone: over HTTP and in a real Chromium."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import SOON_MS, enter, press, tap
from clients import answer_to, given, program
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, BrowserContext, Page, expect
from process import until
from questions import of_four, question

from rather.core import Comparison, Task, Trajectory
from rather.store import Store
from rather.store.people import erase, invite
from rather.store.quality import Asking
from rather.web.app import create
from rather.web.project import Project

Serve = Callable[..., str]
BETTER = "A better one, with `code`"


def alone(number: int) -> Comparison:
    task = Task("test", str(number), f"Say {number}.")
    return Comparison((Trajectory(task, "p@0", f"one {number}"),), (), key=f"alone{number}")


def client_of(store: Store, name: str) -> Any:
    app = create(store, Project("r", "Which is better?"), "key")
    return TestClient(app, base_url="http://localhost", headers={"Authorization": f"Bearer {invite(store, name)}"})


@pytest.fixture
def ann(either: Store) -> Any:
    either.set_asking("r", Asking(overlap=3, repeats=0, gold=0, random=0))
    return client_of(either, "ann")


def better(client: Any, **said: object) -> Any:
    return client.post("/api/answers", json=answer_to(given(client), choice="both_bad", seconds=0.0, better=BETTER) | said)


def test_a_better_answer_goes_with_its_answer(either: Store, ann: Any) -> None:
    either.ask("r", [question(0)])
    shown = given(ann)
    said = answer_to(shown, choice="both_bad", better=BETTER, seconds=0.0, reason="why")
    first = ann.post("/api/answers", json=said)
    assert (first.status_code, ann.post("/api/answers", json=said).json()) == (200, first.json()), "sent twice"
    pairs = [(c.a[0].text, c.b[0].text, c.preference) for c in either.answered("r", "train").comparisons]
    assert pairs == [("one 0", "two 0", 0.5), (BETTER, "one 0", 1.0), (BETTER, "two 0", 1.0)]
    (mine,) = ann.get("/api/answers").json()["answers"]
    assert (mine["choice"], mine["reason"], mine["better"], mine["question"]) == ("both_bad", "why", BETTER, shown["id"])
    ben = client_of(either, "ben")
    both = [given(ben), given(ben, (shown["id"],))]
    assert [len(q["sides"]) for q in both] == [2, 3]
    assert {side[0]["text"] for side in both[1]["sides"]} == {BETTER, "one 0", "two 0"}
    assert given(ann) is None
    assert ann.post("/api/undo", json={"question": shown["id"], "key": said["key"]}).json() == {"undone": True}
    assert either.answered("r", "train").comparisons == []
    assert ann.get("/api/answers").json() == {"answers": []}
    assert ann.post("/api/answers", json=said).json() == first.json(), "a late copy changes nothing"
    assert either.answered("r", "train").comparisons == []


def test_it_is_refused_where_it_says_nothing(either: Store, ann: Any) -> None:
    either.ask("r", [question(0)])
    for said in (
        {"better": ""}, {"better": " \n"}, {"better": "\u200b\u2060"}, {"better": "one 0"}, {"better": " two 0 "}, {"better": "x" * 20_001},
        {"better": "nul \0"}, {"better": BETTER, "choice": "left"}, {"better": BETTER, "choice": "tie"},
        {"better": BETTER, "choice": "skip"},
    ):  # fmt: skip
        refused = better(ann, **said)
        assert refused.status_code == 422, said
    assert either.history("r") == []
    assert better(ann, better="\u0416" * 20_000).status_code == 200, "the longest one fits into a request"
    longest = either.answered("r", "train").comparisons[-1]
    assert longest.a[0].text == "\u0416" * 20_000


def test_every_question_of_two_answers_takes_one_alike(either: Store, ann: Any) -> None:
    either.set_asking("r", Asking(overlap=3, repeats=0, gold=1.0, random=0))
    (gold,) = either.ask("r", [question(0)], "gold")
    either.probe(gold, 1.0)
    either.ask("r", [question(1)], "eval-0")
    either.ask("r", [question(2)])
    answers = [better(ann, key=f"key-number-{i}") for i in range(3)]
    assert [x.status_code for x in answers] == [200] * 3
    assert {tuple(x.json()) for x in answers} == {("label",)}
    listed = [sorted(x) for x in ann.get("/api/answers").json()["answers"]]
    assert len(listed) == 3
    assert listed[0] == listed[1] == listed[2]
    assert [q.purpose for q in either.questions("r")] == ["gold", "eval-0", "train", "same", "same", "train"]


def test_one_alone_is_good_or_bad_and_nothing_else(either: Store, ann: Any) -> None:
    one, two = either.ask("r", [alone(0), alone(1)], "unpaired")
    either.ask("r", [question(2)])
    shown = given(ann)
    assert (shown["id"], shown["order"], len(shown["sides"])) == (one, "a", 1)
    for choice in ("left", "right", "tie", "both_bad", "place"):
        assert ann.post("/api/answers", json=answer_to(shown, choice=choice)).status_code == 422, choice
    for more in ({"choice": "good", "slight": True}, {"choice": "both_bad", "better": BETTER}, {"choice": "good", "order": ""}):
        assert ann.post("/api/answers", json=answer_to(shown, **more)).status_code == 422, more
    assert ann.post("/api/answers", json=answer_to(shown, choice="good", seconds=0.0, reason="clear")).status_code == 200
    assert ann.post("/api/answers", json=answer_to(given(ann), choice="bad", seconds=0.0)).status_code == 200
    pair = given(ann)
    assert ann.post("/api/answers", json=answer_to(pair, choice="good")).status_code == 422, "of two sides none is good"
    assert [(x.comparison, x.preference, x.shown, x.reason) for x in either.labels("r")] == [(one, 1.0, "a", "clear"), (two, 0.0, "a", "")]
    listed = ann.get("/api/answers").json()["answers"]
    assert [(x["choice"], x["reason"], x["sides"], x["beginning"]) for x in listed] == [
        ("bad", "", 1, "Say 1."),
        ("good", "clear", 1, "Say 0."),
    ]
    assert ann.post("/api/undo", json={"question": one}).json() == {"undone": True}


# The page


def write(page: Page, text: str) -> None:
    tap(page, "w")
    expect(page.locator("#writing")).to_be_visible()
    page.locator("#better").press_sequentially(text)


def clean(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert not found, [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found]


def test_a_better_answer_is_written_kept_as_a_draft_and_sent(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(3)])
    page = enter(context, serve(), store, "ann")
    asked = page.locator("#question").get_attribute("data-number")
    write(page, "1 = bw? s2")
    clean(page)
    page.keyboard.press("Escape")
    expect(page.locator("#writing")).to_be_hidden()
    expect(page.locator("#question")).to_have_attribute("data-number", asked or "")
    tap(page, "w")
    expect(page.locator("#better")).to_have_value("1 = bw? s2")
    page.locator("#better").fill("one 0")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#writing-message")).to_contain_text("one of the answers above")
    page.locator("#better").fill(f"{BETTER}\nand 1 more line")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#writing")).to_be_hidden()
    expect(page.locator("#question")).not_to_have_attribute("data-number", asked or "")
    until(lambda: len(store.labels("r")) == 2)
    assert store.questions("r")[-1].comparison.a[0].text == f"{BETTER}\nand 1 more line"
    tap(page, "l")
    expect(page.locator("#own-list .said")).to_contain_text("both bad; better: A better one")
    page.keyboard.press("Escape")
    tap(page, "u")
    expect(page.locator("#question")).to_have_attribute("data-number", asked or "")
    until(lambda: store.labels("r") == [])
    tap(page, "w")
    expect(page.locator("#better")).to_have_value(f"{BETTER}\nand 1 more line")
    page.locator("#better").fill("Mended")
    page.locator("#send-better").click()
    until(lambda: [c.a[0].text for c in store.answered("r", "train").comparisons][1:] == ["Mended", "Mended"])
    assert page.locator("#refused").inner_text() == ""


def test_it_waits_for_the_network_and_survives_a_reload(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(3)])
    url = serve()
    page = enter(context, url, store, "ann")
    page.wait_for_function("() => ahead !== null")
    context.set_offline(True)
    write(page, BETTER)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#kept")).to_contain_text("1 kept here")
    assert store.labels("r") == []
    page.close()
    context.set_offline(False)
    again = context.new_page()
    again.goto(url)
    until(lambda: len(store.labels("r")) == 2)
    assert len(store.questions("r")) == 4


def test_where_none_can_be_written_the_page_offers_none(context: BrowserContext, store: Store, serve: Serve) -> None:
    task = Task("test", "8", "Which?")
    a, b, *others = ((Trajectory(task, "p@0", f"side {i}"),) for i in range(8))
    store.ask("r", [of_four(0), Comparison(a, b, key="8", others=tuple(others))], scores=[2.0, 1.0])
    page = enter(context, serve(), store, "ann")
    button = page.locator("#write")
    expect(button).to_be_visible()
    button.click(delay=SOON_MS)
    expect(page.locator("#writing")).to_be_visible()
    page.keyboard.press("Escape")
    press(page, "b")
    expect(button).to_be_hidden()
    tap(page, "w")
    expect(page.locator("#writing")).to_be_hidden()


def test_one_alone_has_two_buttons(chromium: Browser, store: Store, serve: Serve) -> None:
    store.ask("r", [alone(i) for i in range(3)], "unpaired")
    context = chromium.new_context(viewport={"width": 360, "height": 740})
    page = enter(context, serve(), store, "ann")
    visible = [re.sub(r"\s+", " ", x).strip() for x in page.locator("nav button:visible").all_inner_texts()]
    assert visible == ["good", "bad", "s skip", "u undo", "more"] or visible == ["good", "bad", "skip", "undo", "more"]
    clean(page)
    assert not re.search("left|right|upper|lower", page.locator("#question").inner_text() + page.locator("nav").inner_text())
    asked = page.locator("#question").get_attribute("data-number")
    for key in ("=", "b", "w", "3"):
        tap(page, key)
        expect(page.locator("#question")).to_have_attribute("data-number", asked or "")
    press(page, "1")
    press(page, "2")
    tap(page, "u")
    until(lambda: [x.preference for x in store.labels("r")] == [1.0])
    press(page, "2")
    tap(page, "c")
    page.keyboard.type("fine")
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    until(lambda: [(x.preference, x.reason) for x in store.labels("r")] == [(1.0, ""), (0.0, ""), (1.0, "fine")])
    context.close()


def test_who_is_erased_takes_what_they_wrote_along(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(2)])
    client = program(serve(), store, "ann")
    assert better(client).status_code == 200
    erase(store, "ann", "r")
    assert client.get("/api/next").status_code == 401
    assert len(store.questions("r")) == 2
