"""What an answer must say to be kept: how the question was given, and to whom."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import OPEN, answer, answer_to, browser, client_of, enter, given, pass_by, program
from questions import of_four, question

from rather.core import Comparison, Label, Task, Trajectory
from rather.store import Store, tables
from rather.store.people import erase, everybody, invite, note, noted
from rather.store.quality import Asking
from rather.web.serve import owner_link

Serve = Callable[..., str]


@pytest.fixture
def store(either: Store) -> Store:
    return either


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def test_an_answer_is_kept_only_if_question_order_invitation_and_token_belong_together(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(3)] + [of_four(9)])
    url = serve()
    ann, bob = program(url, store, "ann"), program(url, store, "bob")
    shown, others = given(ann), given(bob)
    turned = shown["order"][::-1]
    for wrong in ({"order": turned}, {"lease": others["lease"]}, {"lease": ""}, {"invitation": others["invitation"]}):
        refused = ann.post("/api/answers", json=answer_to(shown, **wrong))
        assert refused.status_code == 409, wrong
        assert "was not shown to you like this" in refused.json()["detail"]
    assert ann.post("/api/answers", json=answer_to(others)).status_code == 404, "it was given to bob"
    assert bob.post("/api/answers", json=answer_to(shown)).status_code == 404
    assert store.history("r") == []
    assert ann.post("/api/answers", json=answer_to(shown)).status_code == 200
    (label,) = store.labels("r")
    assert (label.judge, label.shown, label.preference) == ("ann", shown["order"], float(shown["order"] == "ab"))


def test_two_links_in_one_browser_are_two_people(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(8)])
    url = serve(overlap=2)
    client = client_of(url, follow_redirects=True)
    pages = [enter(client, invite(store, name)).json()["page"] for name in ("ann", "bob")]
    assert [client.get(f"/{page}").status_code for page in pages] == [200, 200]
    token = client.get(f"/{pages[0]}").text.split('name="rather-token" content="')[1].split('"')[0]
    headers = {"Origin": url, "X-Rather-Token": token}
    ann, bob = (f"as={page.rpartition('/')[2]}" for page in pages)
    for _ in range(8):
        for mine, other in ((ann, bob), (bob, ann)):
            shown = client.get(f"/api/next?{mine}").json()["question"]
            assert client.post(f"/api/answers?{other}", json=answer_to(shown), headers=headers).status_code in (404, 409)
            assert client.post(f"/api/answers?{mine}", json=answer_to(shown), headers=headers).status_code == 200
    labels = store.labels("r")
    assert sorted(x.judge for x in labels) == ["ann"] * 8 + ["bob"] * 8
    assert all(x.preference == float(x.shown == "ab") for x in labels), "whoever prefers the left side prefers what stood on the left"
    assert {x.shown for x in labels} == {"ab", "ba"}


def test_who_comes_too_late_is_heard_and_flagged(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    url = serve()
    ann, bob = program(url, store, "ann"), program(url, store, "bob")
    shown = given(ann)
    assert given(bob) is None
    pass_by(store, 601)
    assert answer(bob, seconds=0.5).status_code == 200
    assert ann.post("/api/answers", json=answer_to(shown, seconds=0.5)).status_code == 200
    assert [(x.judge, "late" in x.flags) for x in store.labels("r")] == [("bob", False), ("ann", True)]
    change = answer_to(shown, choice="tie", key="changed her mind", seconds=0.5)
    assert ann.post("/api/answers", json=change).status_code == 200, "it is hers to change"


def test_who_undoes_an_answer_has_the_question_again_and_nobody_else(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    url = serve()
    ann, bob = program(url, store, "ann"), program(url, store, "bob")
    shown = given(ann)
    assert ann.post("/api/answers", json=answer_to(shown)).status_code == 200
    assert ann.post("/api/undo", json={"question": shown["id"]}).json() == {"undone": True}
    assert given(bob) is None
    again = given(ann)
    assert {k: again[k] for k in ("id", "lease", "order")} == {k: shown[k] for k in ("id", "lease", "order")}
    assert ann.post("/api/answers", json=answer_to(again, key="once more")).status_code == 200
    assert [x.flags for x in store.labels("r")] == [("fast",)], "not late"


def test_the_time_an_answer_took_is_what_can_have_passed(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(3)])
    ann = program(serve(), store, "ann")
    shown = given(ann)
    assert ann.post("/api/answers", json=answer_to(shown, seconds=30)).status_code == 422
    pass_by(store, 40)
    assert ann.post("/api/answers", json=answer_to(shown, seconds=30)).status_code == 200
    assert answer(ann).status_code == 200, "without any it is taken"
    assert answer(ann, choice="skip").status_code == 200
    assert [x.flags for x in store.labels("r")] == [(), ("fast",), ()], "and flagged, if it says anything"


def test_a_repeat_shows_the_sides_the_other_way_round(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(9)])
    ann = program(serve(), store, "ann")
    orders = {}
    for _ in range(8):
        shown = given(ann)
        orders[shown["id"]] = shown["order"]
        assert ann.post("/api/answers", json=answer_to(shown)).status_code == 200
    store.set_asking("r", Asking(repeats=1.0))
    again = given(ann)
    original = store.probes("r")[again["id"]][1]
    assert original is not None
    assert again["order"] == orders[original][::-1]


def test_own_answers_are_listed_and_their_questions_shown_again(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(4)] + [of_four(7)])
    url = serve(overlap=2)
    ann, bob = program(url, store, "ann"), program(url, store, "bob")
    sent: dict[int, dict[str, Any]] = {}
    kinds = [{"choice": "right", "reason": "shorter"}, {"choice": "left", "slight": True}, {"choice": "both_bad", "reason": "x: y"}]
    kinds = [*kinds, {"choice": "skip", "reason": "dull"}]
    begun = time.time()
    while (shown := given(ann)) is not None:
        said: dict[str, Any] = {"choice": "place", "place": 3} if len(shown["order"]) == 4 else kinds.pop()
        sent[shown["id"]] = said
        assert ann.post("/api/answers", json=answer_to(shown, **said)).status_code == 200
    found = {x["question"]: x for x in ann.get("/api/answers").json()["answers"]}
    assert found.keys() == sent.keys()
    for number, said in sent.items():
        assert {k: found[number][k] for k in said} == said
        assert found[number]["sides"] == (4 if said["choice"] == "place" else 2)
        assert begun - 1 <= found[number]["created"] <= time.time() + 1
        assert found[number]["beginning"] == "Which?"
    some = next(iter(sent))
    assert ann.get(f"/api/questions/{some}").json()["id"] == some
    assert bob.get(f"/api/questions/{some}").status_code == 404
    assert bob.get("/api/answers").json() == {"answers": []}
    latest = max(x["label"] for x in found.values())
    assert len(ann.get("/api/answers", params={"before": latest}).json()["answers"]) == 4


CONVERSATION = [
    {"role": "user", "content": "First\nthis"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "then  that"},
]


def test_a_list_of_own_answers_says_how_each_question_begins(store: Store, serve: Serve) -> None:
    prompts = {
        "long": "a word " * 100,
        "talk": CONVERSATION,
        "none": None,
        "empty": "",
        "odd": "bell\x07 and \u202e more",
        "call": [{"role": "tool"}],
    }
    asked = []
    for key, prompt in prompts.items():
        task = Task("test", key, prompt)
        asked.append(Comparison((Trajectory(task, "p", "left\n answer"),), (Trajectory(task, "p", "right"),), key=key))
    steps = Trajectory(Task("test", "drive", None), "p", None, rewards=np.ones(3, np.float32))
    asked.append(Comparison((steps,), (steps,), key="clips"))
    numbers = dict(zip([*prompts, "clips"], store.ask("r", asked), strict=True))
    ann = program(serve(), store, "ann")
    for number in numbers.values():
        store.answer(Label(number, "ann", 0.5))
    found = {x["question"]: x["beginning"] for x in ann.get("/api/answers").json()["answers"]}
    begins = {key: found[number] for key, number in numbers.items()}
    assert begins.pop("long") == ("a word " * 100)[:159].rstrip() + "\u2026"
    assert begins.pop("odd") == "bell\u2407 and \u202e more"
    expected = {"talk": "then that", "none": "left answer", "empty": "left answer", "call": "left answer", "clips": ""}
    assert begins == expected


def test_an_invitation_is_to_one_run_or_to_every_run(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0, "a secret prompt")])
    url = serve()
    assert program(url, store, "ann", run="r").get("/api/next").status_code == 200
    assert program(url, store, "zoe").get("/api/next").status_code == 200
    stranger = program(url, store, "eve", run="another")
    assert stranger.get("/api/next").status_code == 401
    assert enter(client_of(url), invite(store, "eve", run="another")).status_code == 401
    owner = browser(url, (owner_link(store, "r", url) or "").partition("#")[2])
    token = owner.post("/api/people", json={"name": "Bob"}).json()["link"].partition("#")[2]
    assert [(p.name, p.run) for p in everybody(store, "r")] == [("ann", "r"), ("zoe", None), ("owner", "r"), ("Bob", "r")]
    assert token
    owner.post("/api/people", json={"name": "Cem", "every_run": True})
    assert [p.name for p in everybody(store, "elsewhere")] == ["zoe", "Cem"]


def test_the_former_owner_is_out_at_once(store: Store, serve: Serve) -> None:
    url = serve()
    owner = browser(url, (owner_link(store, "r", url) or "").partition("#")[2])
    assert owner.get("/api/export").status_code == 200
    assert owner_link(store, "r", url, renew=True)
    for path in ("/api/export", "/api/overview", "/api/next"):
        assert owner.get(path).status_code == 401


def test_an_owner_who_opens_an_annotators_link_stays_owner(store: Store, serve: Serve) -> None:
    url = serve()
    owner = browser(url, (owner_link(store, "r", url) or "").partition("#")[2])
    link = owner.post("/api/people", json={"name": "ann"}).json()["link"]
    assert owner.post("/api/join", json={"secret": link.partition("#")[2]}).json()["page"].startswith("label/")
    assert owner.get("/api/overview").status_code == 200
    assert owner.post("/api/people", json={"name": "bob"}).status_code == 200


@pytest.mark.parametrize("name", ["Jürgen", "李雷", "José María", "O'Brien", "Müller-Lüdenscheidt, Dr.", "अमित शर्मा", "محمد", "Zoë 🙂"])
def test_names_as_people_have_them(store: Store, serve: Serve, name: str) -> None:
    url = serve()
    owner = browser(url, (owner_link(store, "r", url) or "").partition("#")[2])
    link = owner.post("/api/people", json={"name": name}).json()["link"]
    assert enter(client_of(url), link.partition("#")[2]).status_code == 200
    (number,) = [p["id"] for p in owner.get("/api/overview").json()["people"] if p["name"] == name]
    assert owner.delete(f"/api/people/{number}").json() == {"revoked": True}


def test_names_that_are_none_or_somebody_elses_are_refused(store: Store, serve: Serve) -> None:
    url = serve()
    owner = browser(url, (owner_link(store, "r", url) or "").partition("#")[2])
    for none in ("", "  ", "..", ".", "-", "a" * 81, "a\nb\0", "\u202eevil", "a\ud800"):
        sent = owner.post("/api/people", content=json.dumps({"name": none}), headers={"Content-Type": "application/json"})
        assert sent.status_code == 422, repr(none)
    assert owner.post("/api/people", json={"name": "Ann"}).status_code == 200
    for like in ("ann", "ANN", "\uff21nn"):
        assert "hard to tell from 'Ann'" in owner.post("/api/people", json={"name": like}).json()["detail"]


def test_erasing_one_runs_answers_leaves_anothers(store: Store, serve: Serve) -> None:
    for run in ("r", "other"):
        store.ask(run, [question(0)])
    url = serve()
    ann = program(url, store, "ann")
    assert answer(ann).status_code == 200
    asked = store.lease("other", "ann")
    assert asked is not None
    store.answer(Label(asked.id, "ann", 1.0))
    assert erase(store, "ann", "r") == 1
    assert ann.get("/api/next").status_code == 401
    assert (len(store.labels("r")), len(store.labels("other"))) == (0, 1)
    assert erase(store, "ann", "other") == 1
    assert "ann" not in store.judges()


SECRETS = ("Hildegard Zweistein", "because of my neighbor")


def test_erasure_leaves_nothing_in_any_file(store: Store, serve: Serve, where: str) -> None:
    store.ask("r", [question(i) for i in range(30)])
    url = serve()
    owner = browser(url, (owner_link(store, "r", url) or "").partition("#")[2])
    link = owner.post("/api/people", json={"name": SECRETS[0]}).json()["link"]
    client = browser(url, link.partition("#")[2])
    for _ in range(20):
        assert answer(client, choice="skip", reason=SECRETS[1]).status_code == 200
    note(store, "owner", "revoked", store.add_judge(SECRETS[0], "person"))
    assert any(SECRETS[0] in x["whom"] for x in noted(store))
    assert holds(store, where, SECRETS), "it was there"
    (number,) = [p["id"] for p in owner.get("/api/overview").json()["people"] if p["name"] == SECRETS[0]]
    assert owner.delete(f"/api/people/{number}/answers").json() == {"rows": 20}
    assert not holds(store, where, SECRETS)
    assert not any(x["whom"] for x in noted(store) if x["what"] == "revoked")


def holds(store: Store, where: str, words: tuple[str, ...]) -> list[str]:
    """Files of the database in which any of the words stand: the store and its log, or the tables of PostgreSQL as they lie on the disk."""
    if "://" not in where:
        paths = list(Path(where).parent.glob(f"{Path(where).name}*"))
    else:
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("CHECKPOINT")
            folder = connection.exec_driver_sql("show data_directory").scalar()
            names = [connection.exec_driver_sql(f"select pg_relation_filepath('{t}')").scalar() for t in tables.metadata.tables]
        paths = [Path(str(folder)) / str(name) for name in names]
    return [str(path) for path in paths if any(word.encode() in path.read_bytes() for word in words)]
