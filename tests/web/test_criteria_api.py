"""Preferences on criteria over HTTP, on both databases."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clients import OPEN, answer_to, browser, given, program
from questions import of_four, question

from conftest import served
from rather.core import Label
from rather.store import Store, own
from rather.store.people import invite
from rather.store.quality import Asking

Serve = Callable[..., str]
ASKED = ("helpful", "honest")
LEFT, A_LITTLE_RIGHT, TIE = {"choice": "left"}, {"choice": "right", "slight": True}, {"choice": "tie"}


@pytest.fixture
def store(either: Store) -> Store:
    return either


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def left_of(label: Label) -> dict[str, float]:
    """What a label says for the side that was shown first."""
    return {name: p if label.shown == "ab" else 1 - p for name, p in label.criteria.items()}


def labels(store: Store) -> list[Label]:
    return [x.label for x in own.answers(store, "r", "ann", 2**31 - 1)]


def test_an_answer_says_a_preference_on_each_criterion_in_terms_of_what_was_shown(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(6)])
    ann = program(serve(criteria=ASKED), store, "ann")
    for _ in range(6):
        shown = given(ann)
        assert shown["criteria"] == [*ASKED]
        sent = answer_to(shown, criteria={"honest": A_LITTLE_RIGHT, "helpful": LEFT})
        assert ann.post("/api/answers", json=sent).status_code == 200
        assert ann.post("/api/answers", json=sent).status_code == 200, "sent again it counts once"
    assert {x.shown for x in labels(store)} == {"ab", "ba"}
    assert [left_of(x) for x in labels(store)] == [{"helpful": 1.0, "honest": 0.25}] * 6
    said = {"helpful": {"choice": "left", "slight": False}, "honest": {"choice": "right", "slight": True}}
    found = ann.get("/api/answers").json()["answers"]
    assert [x["criteria"] for x in found] == [said] * 6
    number = found[0]["question"]
    assert ann.get(f"/api/questions/{number}").json()["criteria"] == [*ASKED]
    again = answer_to(ann.get(f"/api/questions/{number}").json(), key="changed my mind", criteria={"helpful": TIE})
    assert ann.post("/api/answers", json=again).status_code == 200
    assert ann.get("/api/answers").json()["answers"][0]["criteria"] == {"helpful": {"choice": "tie", "slight": False}}


def test_programs_may_leave_criteria_out(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(3)])
    ann = program(serve(criteria=ASKED), store, "ann")
    for said in ({}, {"criteria": {}}, {"criteria": {"honest": TIE}, "choice": "both_bad"}):
        assert ann.post("/api/answers", json=answer_to(given(ann), **said)).status_code == 200
    assert [x.criteria for x in labels(store)] == [{"honest": 0.5}, {}, {}]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"criteria": {"brave": LEFT}}, "'brave' is no criterion of this page; it asks for helpful, honest"),
        ({"criteria": {"helpful": LEFT, "honest": LEFT, "Honest": LEFT}}, "'Honest' is no criterion"),
        ({"criteria": {"": LEFT}}, "'' is no criterion"),
        ({"criteria": {"__proto__": LEFT}}, "'__proto__' is no criterion"),
        ({"choice": "skip", "criteria": {"helpful": LEFT}}, "is skipped; leave out what is said on criteria"),
        ({"criteria": {"helpful": {"choice": "place"}}}, "Input should be 'left', 'right' or 'tie'"),
        ({"criteria": {"helpful": {"choice": "both_bad"}}}, "Input should be 'left', 'right' or 'tie'"),
        ({"criteria": {"helpful": {"choice": "left", "place": 2}}}, "Extra inputs are not permitted"),
        ({"criteria": {"helpful": "left"}}, "valid dictionary or object"),
        ({"criteria": ["helpful"]}, "valid dictionary"),
    ],
)
def test_what_is_no_preference_on_a_criterion_is_refused(store: Store, serve: Serve, said: dict[str, Any], sentence: str) -> None:
    store.ask("r", [question(0)])
    ann = program(serve(criteria=ASKED), store, "ann")
    refused = ann.post("/api/answers", json=answer_to(given(ann), **said))
    assert refused.status_code == 422
    assert sentence in refused.text
    assert store.history("r") == []


def test_criteria_compare_two_sides(store: Store, serve: Serve) -> None:
    store.ask("r", [of_four(0)])
    ann = program(serve(criteria=ASKED), store, "ann")
    shown = given(ann)
    assert shown["criteria"] == []
    refused = ann.post("/api/answers", json=answer_to(shown, choice="place", place=2, criteria={"helpful": LEFT}))
    assert (refused.status_code, refused.json()["detail"]) == (422, f"question {shown['id']} has 4 sides; criteria compare two")
    assert ann.post("/api/answers", json=answer_to(shown, choice="place", place=2)).status_code == 200


def test_without_criteria_none_are_asked_for_or_taken(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    ann = program(serve(), store, "ann")
    shown = given(ann)
    assert shown["criteria"] == []
    refused = ann.post("/api/answers", json=answer_to(shown, criteria={"helpful": LEFT}))
    assert (refused.status_code, refused.json()["detail"]) == (422, "'helpful' is no criterion of this page; it asks for none")


def test_an_answer_that_waited_while_the_owner_changed_the_list_is_kept(store: Store) -> None:
    store.ask("r", [question(i) for i in range(2)])
    store.set_asking("r", Asking(repeats=0))
    token = invite(store, "ann")
    with served(store, "r", criteria=("helpful",)) as url:
        ann = browser(url, token)
        first = given(ann)
        second = given(ann, (first["id"],))
        assert ann.post("/api/answers", json=answer_to(first, criteria={"helpful": LEFT})).status_code == 200
    with served(store, "r", criteria=("honest",)) as url:
        ann = browser(url, token)
        assert ann.post("/api/answers", json=answer_to(second, criteria={"helpful": LEFT})).status_code == 200
        assert ann.get("/api/answers").json()["answers"][0]["criteria"] == {"helpful": {"choice": "left", "slight": False}}


def test_owners_download_what_was_preferred_on_a_criterion(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(2)])
    url = serve(criteria=ASKED)
    ann, olga = program(url, store, "ann"), browser(url, invite(store, "olga", "owner"))
    assert 'id="criterion"' not in olga.get("/").text
    for said in ({"criteria": {"honest": TIE, "helpful": LEFT}}, {"criteria": {"honest": LEFT}}):
        assert ann.post("/api/answers", json=answer_to(given(ann), **said)).status_code == 200
    rows = olga.get("/api/export?form=comparisons&criterion=helpful").text.splitlines()
    assert len(rows) == 1
    assert len(olga.get("/api/export?form=comparisons").text.splitlines()) == 2
    refused = olga.get("/api/export?form=all&criterion=helpful")
    assert (refused.status_code, "has every criterion in its column" in refused.json()["detail"]) == (422, True)
    refused = olga.get("/api/export?form=trl&criterion=brave")
    assert refused.json()["detail"] == "no answer says anything on 'brave'; the criteria in the store are helpful, honest"
    assert any(x["what"] == "exported comparisons as jsonl, on helpful" for x in olga.get("/api/audit").json())
