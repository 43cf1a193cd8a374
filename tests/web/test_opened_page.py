"""The owner opens a question: over HTTP, and in a real Chromium."""

import re
from collections.abc import Callable

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from clients import answer_to, given, program
from playwright.sync_api import BrowserContext, Page, expect
from process import until
from questions import of_four, question
from test_page import HOSTILE

from conftest import served
from rather.core import Comparison, Label, Task, Trajectory
from rather.store import Store
from rather.store.decisions import decided
from rather.store.people import invite
from rather.web import demo as example

Serve = Callable[..., str]


@pytest.fixture
def asked(either: Store) -> Store:
    either.ask("another run", [question(9)])
    either.ask("r", [question(0, "A *prompt*?"), of_four(1), question(2)])
    return either


def test_a_question_is_opened_by_its_number_or_at_random(asked: Store) -> None:
    with served(asked, "r") as url:
        owner, ann = program(url, asked, "owner", role="owner"), program(url, asked, "ann")
        none = owner.get("/api/owner/questions/random")
        assert (none.status_code, none.json()["detail"]) == (404, "no question has been answered yet")
        shown = given(ann)
        assert shown["id"] == 2
        ann.post("/api/answers", json=answer_to(shown, seconds=0.0, reason="because"))
        found = owner.get("/api/owner/questions/2").json()
        assert found["question"]["order"] == "ab"
        assert ["one" in side[0]["html"] for side in found["question"]["sides"]] == [True, False], "a first, whatever people see"
        assert "<em>prompt</em>" in found["question"]["prompt"]
        better = {"ab": "a is better", "ba": "b is better"}[shown["order"]]
        (said,) = found["answers"]
        assert (said["judge"], said["said"], said["order"], said["flags"]) == ("ann", better, shown["order"], ["fast"])
        assert (said["reason"], said["seconds"], said["counts"]) == ("because", 0.0, True)
        assert owner.get("/api/owner/questions/3").json()["question"]["order"] == "abcd"
        assert owner.get("/api/owner/questions/random").json() == found
        for missing in (1, 99):
            refused = owner.get(f"/api/owner/questions/{missing}")
            assert (refused.status_code, refused.json()["detail"]) == (404, f"this run has no question {missing}")
        assert owner.get("/api/owner/questions/2147483648").status_code == 422
        for number in ("2", "random"):
            assert ann.get(f"/api/owner/questions/{number}").status_code == 403
            assert httpx.get(f"{url}/api/owner/questions/{number}").status_code == 401


def test_the_owner_decides_and_takes_it_back(asked: Store) -> None:
    with served(asked, "r") as url:
        owner, ann = program(url, asked, "owner", role="owner"), program(url, asked, "ann")
        task = Task("test", "alone", "Which?")
        (alone,) = asked.ask("r", [Comparison((Trajectory(task, "p@0", "good?"),), (), key="alone")], "unpaired")
        asked.answer(Label(2, "ann", 1.0, "", 5.0))
        path = "/api/owner/questions/{}/decision".format

        def learned() -> dict[str, float | None]:
            return {c.key: c.preference for c in asked.answered("r", "train").comparisons}

        assert owner.put(path(2), json={"choice": "b", "reason": "a is false"}).status_code == 200
        assert learned()["q0"] == 0.0, "the decision is learned from, and no answer"
        said = owner.get("/api/owner/questions/2").json()["answers"]
        assert [(x["judge"], x["said"], x["reason"]) for x in said] == [
            ("ann", "a is better", ""),
            ("owner", "decided: b is better", "a is false"),
        ]
        assert owner.put(path(2), json={"choice": "tie"}).status_code == 200
        assert learned()["q0"] == 0.5
        assert owner.delete(path(2)).status_code == 200
        assert learned()["q0"] == 1.0
        again = owner.delete(path(2))
        assert (again.status_code, again.json()["detail"]) == (404, "nothing is decided about question 2")
        assert owner.put(path(3), json={"choice": "c"}).status_code == 200
        assert [(x.best, x.preference) for x in decided(asked, "r").values()] == [(2, 0.0)]
        assert owner.put(path(alone), json={"choice": "good"}).status_code == 200
        assert decided(asked, "r")[alone].preference == 1.0
        assert owner.get(f"/api/owner/questions/{alone}").json()["question"]["order"] == "a"
        for number, choice, sides in ((2, "c", "2 sides"), (2, "good", "2 sides"), (alone, "a", "1 side"), (3, "e", "4 sides")):
            refused = owner.put(path(number), json={"choice": choice})
            assert (refused.status_code, refused.json()["detail"]) == (
                422, f"question {number} has {sides}; {choice!r} decides nothing about it",
            )  # fmt: skip
        for method, path_ in (("PUT", path(1)), ("DELETE", path(99))):
            assert owner.request(method, path_, json={"choice": "a"}).status_code == 404
        assert owner.put(path(2), json={"choice": "a", "reason": "x\0"}).status_code == 422
        assert ann.put(path(2), json={"choice": "a"}).status_code == ann.delete(path(2)).status_code == 403
        done = [x["what"] for x in owner.get("/api/audit").json()]
        assert done == [
            f"decided question {alone}: good", "decided question 3: c", "took the decision about question 2 back",
            "decided question 2: tie", "decided question 2: b",
        ]  # fmt: skip


def test_the_owner_decides_on_the_page(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [of_four(0), question(1)])
    page = enter_owner(context, serve(), store)
    page.get_by_label("Question number").fill("1")
    expect(page.locator("button[type=submit]:disabled")).to_have_count(0)  # the page is whole
    page.keyboard.press("Enter")
    expect(page.locator("#choices label")).to_have_text([" a is best", " b is best", " c is best", " d is best", " tie"])
    page.get_by_label("c is best").check()
    page.get_by_label("because").fill("<i>clear</i>")
    expect(page.get_by_role("button", name="Take the decision back")).to_be_hidden()
    page.get_by_role("button", name="Decide").click()
    expect(page.locator("#said tr td").nth(1)).to_have_text("decided: c is best")
    expect(page.locator("#said tr td").nth(5)).to_have_text("<i>clear</i>")
    assert [x.best for x in decided(store, "r").values()] == [2]
    assert not Axe().run(page).response["violations"]
    page.get_by_role("button", name="Take the decision back").click()
    expect(page.locator("#said tr.past")).to_have_count(2)
    expect(page.get_by_role("button", name="Take the decision back")).to_be_hidden()
    assert decided(store, "r") == {}
    page.get_by_label("Question number").fill("2")
    expect(page.locator("button[type=submit]:disabled")).to_have_count(0)  # the page is whole
    page.keyboard.press("Enter")
    expect(page.locator("#choices label")).to_have_text([" a is better", " b is better", " tie"])
    assert page.locator("#choices input:checked").count() == 0


def enter_owner(context: BrowserContext, url: str, store: Store) -> Page:
    page = context.new_page()
    page.goto(f"{url}/join#{invite(store, 'owner', 'owner')}")
    expect(page.locator("#totals")).to_contain_text("questions have")
    return page


def test_the_owner_opens_what_people_disagree_about_and_goes_back(context: BrowserContext, store: Store, serve: Serve) -> None:
    words = "<b>bold</b> <img src=x onerror='window.hacked=1'>"
    store.ask("r", [question(i) for i in range(3)])
    for name, preference in (("ann", 1.0), ("ben", 0.0)):
        store.add_judge(name, "person")
        store.answer(Label(2, name, preference, words, 4.0, "ba"))
    page = enter_owner(context, serve(), store)
    page.locator("#contested").get_by_role("link", name="question 2").click()
    expect(page).to_have_url(re.compile(r"/owner/\d+#question-2$"))
    expect(page.get_by_role("heading", name="Question 2")).to_be_focused()
    expect(page.locator("#overview")).to_be_hidden()
    expect(page.locator("#side-1")).to_have_text("one 1")
    expect(page.locator("#side-2")).to_have_text("two 1")
    expect(page.locator("#sides h2").first).to_have_text("a")
    expect(page.locator("#said tr")).to_have_count(2)
    row = page.locator("#said tr").first
    expect(row.locator("th")).to_have_text("ann")
    assert row.locator("td").all_inner_texts()[1:] == ["a is better", "b", "4.0", "", words, "yes"]
    assert page.evaluate("window.hacked") is None
    assert not Axe().run(page).response["violations"]
    before = page.locator("#side-1").element_handle()
    store.undo("r", "ann", 2)
    expect(page.locator("#said tr")).to_have_count(3)
    expect(page.locator("#said tr.past")).to_have_count(2)
    assert before is not None
    assert before.evaluate("node => node.isConnected"), "the question itself is not drawn anew"
    page.get_by_label("Question number").fill("3")
    expect(page.locator("button[type=submit]:disabled")).to_have_count(0)  # the page is whole
    page.keyboard.press("Enter")
    expect(page.locator("#side-1")).to_have_text("one 2")
    expect(page.locator("#said tr")).to_have_count(0)
    page.go_back()
    expect(page.locator("#side-1")).to_have_text("one 1")
    page.go_back()
    expect(page.locator("#overview")).to_be_visible()
    expect(page.locator("#opened")).to_be_hidden()
    page.get_by_role("button", name="One at random").click()
    expect(page.get_by_role("heading", name="Question 2")).to_be_visible()
    page.reload()
    expect(page.locator("#side-1")).to_have_text("one 1")
    page.get_by_role("link", name="All figures").click()
    expect(page.locator("#overview")).to_be_visible()
    page.get_by_label("Question number").fill("77")
    expect(page.locator("button[type=submit]:disabled")).to_have_count(0)  # the page is whole
    page.keyboard.press("Enter")
    expect(page.locator("#not-opened")).to_have_text("this run has no question 77")
    expect(page.locator("#question")).to_be_hidden()


def test_hostile_words_do_nothing_to_the_owner(context: BrowserContext, store: Store, serve: Serve) -> None:
    store.ask("r", [question(i, words, words, words) for i, words in enumerate(HOSTILE)])
    requests: list[str] = []
    page = enter_owner(context, serve(), store)
    page.on("request", lambda request: requests.append(request.url))
    for number in range(1, len(HOSTILE) + 1):
        page.evaluate("number => { location.hash = `question-${number}`; }", number)
        expect(page.locator("#question")).to_be_visible()
        expect(page.locator("#opened-about")).not_to_be_empty()
        assert page.evaluate("window.hacked") is None
        assert page.locator("#question").locator("script, img, svg, iframe, style, form, [style]").count() == 0
    assert not [url for url in requests if "evil" in url]


def test_clips_conversations_and_several_sides_are_opened(context: BrowserContext, demo_page: tuple[Store, str]) -> None:
    store, url = demo_page
    four = store.ask(example.RUN, [of_four(1)])[0]
    page = enter_owner(context, url, store)
    drive = next(q.id for q in store.questions(example.RUN) if q.why == "drive")
    page.get_by_label("Question number").fill(str(drive))
    expect(page.locator("button[type=submit]:disabled")).to_have_count(0)  # the page is whole
    page.keyboard.press("Enter")
    page.wait_for_function("() => [...document.querySelectorAll('canvas')].filter((c) => Number(c.dataset.frame) > 2).length === 2")
    page.get_by_role("button", name="pause").click()
    page.get_by_label("Question number").fill(str(four))
    expect(page.locator("button[type=submit]:disabled")).to_have_count(0)  # the page is whole
    page.keyboard.press("Enter")
    expect(page.locator("#sides h2")).to_have_text(["a", "b", "c", "d"])
    assert [text.split()[0] for text in page.locator("#sides .words").all_inner_texts()] == ["one", "two", "three", "four"]
    expect(page.locator("canvas")).to_have_count(0)
    until(lambda: page.locator("#player").is_hidden())
