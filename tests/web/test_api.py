"""The server, spoken to over HTTP by programs and as a browser would."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator

import httpx
import pytest
from clients import OPEN, answer, answer_to, browser, client_of, enter, given, program
from itsdangerous import TimestampSigner
from questions import of_four, question
from sqlalchemy import select

from rather.store import Store
from rather.store.asking import repeat
from rather.store.people import bearer, everybody, invite, revoke, session_key
from rather.store.quality import Asking
from rather.store.tables import invitation
from rather.web import guard
from rather.web.serve import owner_link
from rather.web.words import html

Serve = Callable[..., str]


@pytest.fixture
def store(either: Store) -> Store:
    return either


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def test_two_people_answer_all_questions_and_no_question_twice(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(6)])
    url = serve()
    ann, bob = program(url, store, "ann"), program(url, store, "bob")
    seen = []
    for turn in range(6):
        who = (ann, bob)[turn % 2]
        shown = given(who)
        seen.append(shown["id"])
        assert who.post("/api/answers", json=answer_to(shown, seconds=0.75)).status_code == 200
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    ended = {"mine": 3, "share": 3, "minutes": 0}
    assert ann.get("/api/next").json() == {"question": None, "progress": ended, "problem": ""}
    labels = store.labels("r")
    assert [x.judge for x in labels] == ["ann", "bob"] * 3
    for x in labels:  # "left" is what was shown on the left
        assert x.preference == (1.0 if x.shown == "ab" else 0.0)
        assert x.seconds == 0.75
    assert {x.shown for x in labels} == {"ab", "ba"}


@pytest.mark.parametrize(
    ("sent", "preference", "reason"),
    [
        ({"choice": "right"}, 0.0, ""),
        ({"choice": "right", "slight": True}, 0.25, ""),
        ({"choice": "tie"}, 0.5, ""),
        ({"choice": "both_bad"}, 0.5, "both bad"),
        ({"choice": "skip"}, None, "skipped"),
        ({"choice": "skip", "reason": "I cannot read it"}, None, "I cannot read it"),
    ],
)
def test_what_an_answer_means(store: Store, serve: Serve, sent: dict[str, object], preference: float | None, reason: str) -> None:
    store.ask("r", [question(0)])
    ann = program(serve(), store, "ann")
    shown = given(ann)
    assert ann.post("/api/answers", json=answer_to(shown, **sent)).status_code == 200
    (label,) = store.labels("r")
    swapped = shown["sides"][0][0]["text"] == "two 0"
    assert label.shown == shown["order"] == ("ba" if swapped else "ab")
    assert label.preference == (1 - preference if swapped and preference is not None else preference)
    assert label.reason == reason


def test_the_best_of_four_is_the_one_at_that_place(store: Store, serve: Serve) -> None:
    store.ask("r", [of_four(i) for i in range(6)] + [question(9)])
    url = serve()
    people = [program(url, store, name) for name in ("ann", "bob")]
    store.set_asking("r", Asking(overlap=2, gold=0, repeats=0))
    for client in people:
        for _ in range(7):
            shown = given(client)
            words = [side[0]["text"].split()[0] for side in shown["sides"]]
            assert words == [("one", "two", "three", "four")["abcd".index(letter)] for letter in shown["order"]]
            sent = answer_to(shown)
            four = len(words) == 4
            wrong = [{"choice": "left"}, {"choice": "place", "place": 5}] if four else [{"choice": "place"}]
            assert [client.post("/api/answers", json=sent | w).status_code for w in wrong] == [422] * len(wrong)
            said = {"choice": "place", "place": words.index("three") + 1} if four else {"choice": "tie"}
            assert client.post("/api/answers", json=sent | said).status_code == 200
    labels = [x for x in store.labels("r") if x.comparison <= 6]
    assert [(x.best, x.preference) for x in labels] == [(2, 0.0)] * 12
    assert len({x.shown for x in labels}) > 6, "any order"
    for c in store.answered("r", each=True, only=lambda c: bool(c.others)).comparisons:
        assert (c.a[0].text or "").startswith("three")
        assert c.preference == 1.0


def test_an_answer_or_an_undo_sent_twice_counts_once(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(2)])
    ann = program(serve(), store, "ann")
    shown = given(ann)
    sent = answer_to(shown)
    first, *again = [ann.post("/api/answers", json=sent).json() for _ in range(3)]
    assert again == [first] * 2
    assert answer(ann).json() != first
    assert [ann.post("/api/undo", json={"question": shown["id"]}).json()["undone"] for _ in range(3)] == [True, False, False]
    (other,) = {1, 2} - {shown["id"]}
    assert [x.comparison for x in store.labels("r")] == [other], "the other answer stays"
    assert ann.post("/api/answers", json=sent).json() == first, "an old answer that comes late does not come back"
    assert [x.comparison for x in store.labels("r")] == [other]
    assert ann.post("/api/answers", json=sent | {"key": "another one"}).status_code == 200
    old = {"question": shown["id"], "key": sent["key"]}
    assert ann.post("/api/undo", json=old).json() == {"undone": False}, "an old undo that comes late takes nothing back"
    assert len(store.labels("r")) == 2


def test_the_next_question_can_be_fetched_while_one_is_being_read(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(3)])
    url = serve()
    ann, bob = program(url, store, "ann"), program(url, store, "bob")
    first = ann.get("/api/next").json()["question"]["id"]
    assert ann.get("/api/next").json()["question"]["id"] == first, "a reload shows the same question"
    second = ann.get("/api/next", params={"held": [first]}).json()["question"]["id"]
    assert second != first
    third = bob.get("/api/next").json()["question"]["id"]
    assert sorted([first, second, third]) == [1, 2, 3], "nobody else gets what ann has at hand"
    assert ann.get("/api/next", params={"held": [first, second]}).json()["question"] is None


def test_nobody_gets_in_without_an_invitation_that_holds(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0, "a secret prompt")])
    url = serve()
    for client in (client_of(url), client_of(url, headers={"Authorization": "Bearer guessed-token"})):
        for path in ("/", "/label/1", "/owner/1", "/api/next", "/api/overview", "/api/questions/1", "/api/answers", "/api/next?as=1"):
            refused = client.get(path)
            assert refused.status_code == 401, path
            assert "secret prompt" not in refused.text
        assert enter(client, "guessed").status_code == 401
        for path in ("/api/answers", "/api/undo", "/api/people", "/api/leave"):
            sent = {"question": 1, "lease": "x", "order": "ab", "invitation": 1, "choice": "left", "key": "12345678", "name": "eve"}
            assert client.post(path, json=sent).status_code == 401, path
    invite(store, "late", days=-1)
    token = invite(store, "ann")
    ann = browser(url, token)
    assert ann.get("/api/next").status_code == 200
    (mine,) = everybody(store)
    assert ann.get(f"/owner/{mine.invitation}").status_code == 401
    assert ann.get("/label/x").status_code == 401
    assert ann.get("/api/overview").status_code == 403
    assert ann.post("/api/people", json={"name": "eve"}).status_code == 403
    revoke(store, "ann")
    assert ann.get("/api/next").status_code == 401, "the session ends with the invitation"
    assert enter(client_of(url), token).status_code == 401
    assert everybody(store) == []
    assert store.labels("r") == []


def test_what_other_sites_send_in_a_browser_changes_nothing(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    ann = browser(serve(), invite(store, "ann"))
    sent = answer_to(given(ann))
    for wrong in (
        {"Origin": "https://evil.example"},
        {"Origin": ""},
        {"X-Rather-Token": "guess"},
        {"X-Rather-Token": ""},
        {"X-Rather-Token": b"\xe4"},
    ):
        assert ann.post("/api/answers", json=sent, headers=wrong).status_code == 403, wrong
    assert store.labels("r") == []
    assert enter(ann, "guessed").status_code == 401
    assert ann.post("/api/join", json={"secret": invite(store, "eve")}, headers={"Origin": "https://evil.example"}).status_code == 403
    assert given(ann)["id"] == sent["question"], "neither ends the session, nor makes it another one"
    assert ann.post("/api/answers", json=sent).status_code == 200


def test_the_owner_invites_and_revokes(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    url = serve()
    link = owner_link(store, "r", url)
    assert link is not None
    assert owner_link(store, "r", url) is None, "it is shown once"
    owner = browser(url, link.partition("#")[2])
    made = owner.post("/api/people", json={"name": " Ann  B."}).json()["link"]
    token = made.partition("#")[2]
    assert len(token) >= 22, "128 bits"
    with store.transaction() as connection:
        assert token not in repr(connection.execute(select(invitation)).all()), "the store keeps its hash alone"
    ann = browser(url, token)
    assert answer(ann, choice="tie").status_code == 200
    while (found := owner.get("/api/overview").json())["as_of"] is None:
        pass  # the figures are counted in the background
    assert [(p["name"], p["role"], p["answers"]) for p in found["people"]] == [("Ann B.", "annotator", 1), ("owner", "owner", 0)]
    numbers = {p["name"]: p["id"] for p in found["people"]}
    assert "(renew)" in owner.post("/api/people", json={"name": "Ann B."}).json()["detail"], "it asks first"
    assert bearer(store, token) is not None
    again = owner.post("/api/people", json={"name": "Ann B.", "renew": True}).json()["link"].partition("#")[2]
    assert bearer(store, token) is None, "a new link ends the old one"
    assert ann.get("/api/next").status_code == 401, "and the sessions that were begun by it"
    assert owner.delete(f"/api/people/{numbers['owner']}").status_code == 409
    assert owner.delete("/api/people/99").status_code == 404
    assert owner.delete("/api/people/a%00b").status_code == 422
    assert owner.post("/api/people", json={"name": "owner", "renew": True}).status_code == 409
    assert owner.delete(f"/api/people/{numbers['Ann B.']}").json() == {"revoked": True}
    assert enter(client_of(url), again).status_code == 401
    assert len(store.labels("r")) == 1, "answers stay"


def test_limits(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "ANSWERS_A_SECOND", 1.0)  # however slow this machine is
    store.ask("r", [question(i) for i in range(80)])
    ann = program(serve(), store, "ann")
    sent = answer_to(given(ann))
    codes = [ann.post("/api/answers", json=sent | {"key": f"answer-{i}"}).status_code for i in range(80)]
    assert 429 in codes
    assert set(codes) == {200, 429}
    assert len(store.history("r")) == codes.count(200), "what was refused was not kept, what was kept was acknowledged"
    assert ann.post("/api/undo", content=b" " * 140_000).status_code == 413
    assert ann.post("/api/undo", content=iter([b"{}"])).status_code == 413, "a body of unknown length"


@pytest.mark.parametrize(
    "sent",
    [
        {"choice": "best"},
        {"question": 10**30},
        {"key": "short"},
        {"seconds": -1},
        {"seconds": 60},
        {"order": "ac!"},
        {"invitation": 0},
        {"choice": "skip", "reason": "a\0b"},
    ],
)
def test_what_is_no_answer_is_refused(store: Store, serve: Serve, sent: dict[str, object]) -> None:
    store.ask("r", [question(0)])
    assert answer(program(serve(), store, "ann"), **sent).status_code == 422
    assert store.labels("r") == []


def test_a_question_of_another_run_or_for_somebody_else_is_not_found(store: Store, serve: Serve) -> None:
    store.ask("other", [question(0)])
    store.ask("r", [question(i) for i in range(9)])
    ann, bob = (program(serve(), store, name) for name in ("ann", "bob"))
    first = given(bob)
    for _ in range(9):
        assert answer(bob).status_code == 200
    again = repeat(store, "r", "bob")
    for number in (1, first["id"], again, 99):
        assert ann.post("/api/answers", json=answer_to(first, question=number)).status_code == 404
    store.set_asking("r", Asking(repeats=1.0))
    assert given(bob)["id"] == again
    assert answer(bob).status_code == 200
    assert store.labels("other") == []
    assert {x.judge for x in store.labels("r")} == {"bob"}


def test_every_answer_carries_the_headers(store: Store, serve: Serve) -> None:
    url = serve()
    for path in ("/", "/static/label.js", "/api/next", "/nothing"):
        headers = httpx.get(url + path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    cookie = enter(client_of(url), invite(store, "ann")).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie


def test_whoever_has_a_copy_of_the_store_gets_in_nowhere(store: Store, serve: Serve) -> None:
    url, token = serve(), invite(store, "boss", "owner")
    client = client_of(url)
    name = enter(client, token).headers["set-cookie"].partition("=")[0]
    (boss,) = everybody(store)
    with store.transaction() as connection:
        kept = connection.execute(select(invitation.c.hash)).scalar_one()

    def forged(secret: str) -> int:
        session = {"entered": {str(boss.invitation): secret}, "token": "mine"}
        signed = TimestampSigner(session_key(store)).sign(b64encode(json.dumps(session).encode())).decode()
        return httpx.get(f"{url}/api/overview?as={boss.invitation}", cookies={name: signed}).status_code

    assert forged(token) == 200, "a session looks like this"
    assert [forged(secret) for secret in (kept, kept[:16], session_key(store), "", "%")] == [401] * 5


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "![x](https://evil.example/x.png)",
        "<svg/onload=alert(1)>",
        '<a href="https://a" onclick="alert(1)" style="position:fixed">x</a>',
        "[x](data:text/html,<script>alert(1)</script>)",
        "`<script>`\u202e",
    ],
)
def test_hostile_words_become_harmless(hostile: str) -> None:
    found = html(hostile).lower()
    for bad in ("<script", "<img", "<svg", 'href="javascript', 'href="data', "<style"):
        assert bad not in found
    assert "onclick=" not in found.replace("&quot;", '"').split("&lt;")[0]


def test_markdown_is_shown() -> None:
    found = html("**bold** `x < 1`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n[link](https://example.org)")
    assert "<strong>bold</strong>" in found
    assert "<code>x &lt; 1</code>" in found
    assert '<td dir="auto">1</td>' in found
    assert 'href="https://example.org"' in found
    assert "noopener" in found


def test_the_owner_changes_exports_and_erases_and_all_is_written_down(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(8)])
    url = serve()
    owner = browser(url, (owner_link(store, "r", url) or "").partition("#")[2])
    ann = program(url, store, "ann")
    for number in range(1, 8):
        assert answer(ann, seconds=0.1 if number == 1 else 0.9, reason="=1+1").status_code == 200
    assert owner.put("/api/asking", json={"overlap": 2, "leave_out": ["gold"]}).json()["overlap"] == 2
    assert owner.put("/api/asking", json={"gold": 1.5}).status_code == 422
    assert owner.get("/api/overview").json()["complete"] == 0, "two answers are wanted now"
    rows = [json.loads(line) for line in owner.get("/api/export?form=all&file=jsonl").text.splitlines()]
    assert [row["flags"] for row in rows] == [["fast"]] + [[]] * 6
    assert "'=1+1" in owner.get("/api/export?form=all&file=csv").text, "no formula for a spreadsheet"
    assert owner.get("/api/export?form=trl&file=parquet").content[:4] == b"PAR1"
    assert len(owner.get("/api/export?form=trl").text.splitlines()) == 7
    for path in ("/api/export", "/api/audit", "/api/overview"):
        assert ann.get(path).status_code == 403
    numbers = {p["name"]: p["id"] for p in owner.get("/api/overview").json()["people"]}
    assert owner.delete(f"/api/people/{numbers['owner']}/answers").status_code == 409
    assert owner.delete(f"/api/people/{numbers['ann']}/answers").json() == {"rows": 7}
    assert ann.get("/api/next").status_code == 401
    assert store.labels("r") == []
    written = [x["what"] for x in owner.get("/api/audit").json()]
    assert written[0] == "erased one person with 7 rows"
    assert "set overlap to 2, leave_out to ['gold']" in written
    assert "exported all as csv" in written
