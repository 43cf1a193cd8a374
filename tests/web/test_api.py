"""The server, spoken to over HTTP by programs and as a browser would."""

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from questions import of_four, question
from sqlalchemy import select

from rather.errors import ConfigError
from rather.store import Store
from rather.store.asking import repeat
from rather.store.people import bearer, invite, person, revoke
from rather.store.quality import Asking
from rather.store.tables import judge
from rather.web.serve import owner_link, server
from rather.web.words import html

Serve = Callable[..., str]


OPEN: list[httpx.Client] = []


@pytest.fixture
def store(either: Store) -> Store:
    return either


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def client_of(url: str, **more: Any) -> httpx.Client:
    OPEN.append(httpx.Client(base_url=url, **more))
    return OPEN[-1]


def program(url: str, store: Store, name: str) -> httpx.Client:
    """A program with an invite token."""
    return client_of(url, headers={"Authorization": f"Bearer {invite(store, name)}"})


def browser(url: str, token: str) -> httpx.Client:
    """What a browser sends once it has opened an invite link."""
    client = client_of(url, follow_redirects=True)
    page = client.get(f"/join/{token}").text
    known = page.split('name="rather-token" content="')[1].split('"')[0]
    client.headers.update({"Origin": url, "X-Rather-Token": known})
    return client


def test_two_people_answer_all_questions_and_no_question_twice(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(6)])
    url = serve()
    ann, bob = program(url, store, "ann"), program(url, store, "bob")
    seen = []
    for turn in range(6):
        who = (ann, bob)[turn % 2]
        found = who.get("/api/next").json()["question"]
        seen.append(found["id"])
        sent = {"question": found["id"], "choice": "left", "key": f"answer-{turn}", "seconds": 1.5}
        assert who.post("/api/answers", json=sent).status_code == 200
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert ann.get("/api/next").json() == {"question": None, "progress": {"mine": 3, "questions": 6}, "problem": ""}
    labels = store.labels("r")
    assert [x.judge for x in labels] == ["ann", "bob"] * 3
    for x in labels:  # "left" is what was shown on the left
        assert x.preference == (1.0 if x.left == "a" else 0.0)
        assert x.seconds == 1.5
    assert {x.left for x in labels} == {"a", "b"}


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
    shown = ann.get("/api/next").json()["question"]
    assert ann.post("/api/answers", json={"question": 1, "key": "12345678", **sent}).status_code == 200
    (label,) = store.labels("r")
    swapped = shown["sides"][0][0]["text"] == "two 0"
    assert label.left == ("b" if swapped else "a")
    assert label.preference == (1 - preference if swapped and preference is not None else preference)
    assert label.reason == reason


def test_the_best_of_four_is_the_one_at_that_place(store: Store, serve: Serve) -> None:
    store.ask("r", [of_four(i) for i in range(6)] + [question(9)])
    url = serve()
    people = [program(url, store, name) for name in ("ann", "bob")]
    store.set_asking("r", Asking(overlap=2, gold=0, repeats=0))
    for client in people:
        for _ in range(7):
            shown = client.get("/api/next").json()["question"]
            words = [side[0]["text"].split()[0] for side in shown["sides"]]
            assert words in (["one", "two", "three", "four"], ["four", "three", "two", "one"], ["one", "two"], ["two", "one"])
            sent = {"question": shown["id"], "key": f"12345678{shown['id']}"}
            four = len(words) == 4
            wrong = [{"choice": "left"}, {"choice": "place", "place": 5}] if four else [{"choice": "place"}]
            assert [client.post("/api/answers", json=sent | w).status_code for w in wrong] == [422] * len(wrong)
            given = {"choice": "place", "place": words.index("three") + 1} if four else {"choice": "tie"}
            assert client.post("/api/answers", json=sent | given).status_code == 200
    labels = [x for x in store.labels("r") if x.comparison <= 6]
    assert [(x.best, x.preference) for x in labels] == [(2, 0.0)] * 12
    assert {x.left for x in labels} == {"a", "b"}, "the order is turned round"
    for c in store.answered("r", each=True, only=lambda c: bool(c.others)).comparisons:
        assert (c.a[0].text or "").startswith("three")
        assert c.preference == 1.0


def test_an_answer_or_an_undo_sent_twice_counts_once(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(2)])
    ann = program(serve(), store, "ann")
    sent = {"question": 1, "choice": "left", "key": "the-same-key"}
    first, *again = [ann.post("/api/answers", json=sent).json() for _ in range(3)]
    assert again == [first] * 2
    assert ann.post("/api/answers", json={**sent, "question": 2, "key": "another-key"}).json() != first
    assert [ann.post("/api/undo", json={"question": 1}).json()["undone"] for _ in range(3)] == [True, False, False]
    assert [x.comparison for x in store.labels("r")] == [2], "the other answer stays"
    assert ann.post("/api/answers", json=sent).json() == first, "an old answer that comes late does not come back"
    assert [x.comparison for x in store.labels("r")] == [2]


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
        for method, path in [("GET", "/"), ("GET", "/owner"), ("GET", "/api/next"), ("GET", "/api/overview"), ("GET", "/join/guessed")]:
            answer = client.request(method, path)
            assert answer.status_code == 401, path
            assert "secret prompt" not in answer.text
        for path in ("/api/answers", "/api/undo", "/api/people"):
            assert client.post(path, json={"question": 1, "choice": "left", "key": "12345678", "name": "eve"}).status_code == 401, path
    invite(store, "late", days=-1)
    token = invite(store, "ann")
    ann = browser(url, token)
    assert ann.get("/api/next").status_code == 200
    assert ann.get("/owner").status_code == 401
    assert ann.get("/api/overview").status_code == 403
    assert ann.post("/api/people", json={"name": "eve"}).status_code == 403
    revoke(store, "ann")
    assert ann.get("/api/next").status_code == 401, "the session ends with the invitation"
    assert httpx.get(f"{url}/join/{token}").status_code == 401
    assert person(store, "late") is None
    assert store.labels("r") == []


def test_what_other_sites_send_in_a_browser_changes_nothing(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    ann = browser(serve(), invite(store, "ann"))
    sent = {"question": 1, "choice": "left", "key": "12345678"}
    for wrong in (
        {"Origin": "https://evil.example"},
        {"Origin": ""},
        {"X-Rather-Token": "guess"},
        {"X-Rather-Token": ""},
        {"X-Rather-Token": b"\xe4"},
    ):
        assert ann.post("/api/answers", json=sent, headers=wrong).status_code == 403, wrong
    assert store.labels("r") == []
    assert ann.get("/join/guessed").status_code == 401, "and a wrong link does not end the session"
    assert ann.post("/api/answers", json=sent).status_code == 200


def test_the_owner_invites_and_revokes(store: Store, serve: Serve) -> None:
    store.ask("r", [question(0)])
    url = serve()
    link = owner_link(store, url)
    assert link is not None
    assert owner_link(store, url) is None, "it is shown once"
    owner = browser(url, link.rsplit("/", 1)[1])
    made = owner.post("/api/people", json={"name": "Ann B."}).json()["link"]
    token = made.rsplit("/", 1)[1]
    assert len(token) >= 22, "128 bits"
    with store.transaction() as connection:
        assert token not in repr(connection.execute(select(judge)).all()), "the store keeps its hash alone"
    ann = browser(url, token)
    assert ann.post("/api/answers", json={"question": 1, "choice": "tie", "key": "12345678"}).status_code == 200
    found = owner.get("/api/overview").json()
    assert [(p["name"], p["role"], p["answers"]) for p in found["people"]] == [("Ann B.", "annotator", 1), ("owner", "owner", 0)]
    again = owner.post("/api/people", json={"name": "Ann B."}).json()["link"]
    assert bearer(store, token) is None, "a new link ends the old one"
    assert owner.delete("/api/people/owner").status_code == 409
    assert owner.delete("/api/people/a%00b").status_code == 422
    assert owner.post("/api/people", json={"name": "owner"}).status_code == 409
    assert owner.delete("/api/people/Ann B.").json() == {"revoked": True}
    assert httpx.get(url + again).status_code == 401
    assert len(store.labels("r")) == 1, "answers stay"


def test_limits(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(80)])
    ann = program(serve(), store, "ann")
    codes = [ann.post("/api/answers", json={"question": i + 1, "choice": "left", "key": f"answer-{i}"}).status_code for i in range(80)]
    assert 429 in codes
    assert set(codes) == {200, 429}
    assert len(store.labels("r")) == codes.count(200), "what was refused was not kept, what was kept was acknowledged"
    assert ann.post("/api/undo", content=b" " * 70_000).status_code == 413
    assert ann.post("/api/undo", content=iter([b"{}"])).status_code == 413, "a body of unknown length"


@pytest.mark.parametrize(
    "sent",
    [
        {"question": 1, "choice": "best", "key": "12345678"},
        {"question": 10**30, "choice": "left", "key": "12345678"},
        {"question": 1, "choice": "left", "key": "short"},
        {"question": 1, "choice": "left", "key": "12345678", "seconds": -1},
        {"question": 1, "choice": "skip", "key": "12345678", "reason": "a\0b"},
    ],
)
def test_what_is_no_answer_is_refused(store: Store, serve: Serve, sent: dict[str, object]) -> None:
    store.ask("r", [question(0)])
    assert program(serve(), store, "ann").post("/api/answers", json=sent).status_code == 422
    assert store.labels("r") == []


def test_a_question_of_another_run_or_for_somebody_else_is_not_found(store: Store, serve: Serve) -> None:
    store.ask("other", [question(0)])
    store.ask("r", [question(i) for i in range(9)])
    ann, bob = (program(serve(), store, name) for name in ("ann", "bob"))
    for number in range(2, 11):
        assert bob.post("/api/answers", json={"question": number, "choice": "left", "key": f"12345678{number}"}).status_code == 200
    again = repeat(store, "r", "bob")
    for number in (1, again, 99):
        assert ann.post("/api/answers", json={"question": number, "choice": "left", "key": "12345678"}).status_code == 404
    assert bob.post("/api/answers", json={"question": again, "choice": "left", "key": "12345678"}).status_code == 200
    assert store.labels("other") == []
    assert {x.judge for x in store.labels("r")} == {"bob"}


def test_every_answer_carries_the_headers_and_the_key_is_private(store: Store, serve: Serve, tmp_path: Path) -> None:
    url = serve()
    for path in ("/", "/static/label.js", "/api/next", "/nothing"):
        headers = httpx.get(url + path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert stat.S_IMODE((tmp_path / "run" / "secret.key").stat().st_mode) == 0o600
    cookie = httpx.get(f"{url}/join/{invite(store, 'ann')}").headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie


def test_another_address_needs_tls_or_a_flag(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--certificate"):
        server(store, tmp_path, "r", "?", "0.0.0.0", 8008)
    server(store, tmp_path, "r", "?", "0.0.0.0", 8008, insecure=True)


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
    owner = browser(url, (owner_link(store, url) or "").rsplit("/", 1)[1])
    ann = program(url, store, "ann")
    for number in range(1, 8):
        sent = {"question": number, "choice": "left", "key": f"answer-{number}", "seconds": 0.1 if number == 1 else 3.0, "reason": "=1+1"}
        assert ann.post("/api/answers", json=sent).status_code == 200
    assert owner.put("/api/asking", json={"overlap": 2, "flagged": False}).json()["overlap"] == 2
    assert owner.put("/api/asking", json={"gold": 1.5}).status_code == 422
    assert owner.get("/api/overview").json()["complete"] == 0, "two answers are wanted now"
    rows = [json.loads(line) for line in owner.get("/api/export?form=all&file=jsonl").text.splitlines()]
    assert [row["flags"] for row in rows] == [["fast"]] + [[]] * 6
    assert "'=1+1" in owner.get("/api/export?form=all&file=csv").text, "no formula for a spreadsheet"
    assert owner.get("/api/export?form=trl&file=parquet").content[:4] == b"PAR1"
    assert len(owner.get("/api/export?form=trl").text.splitlines()) == 7
    for path in ("/api/export", "/api/audit", "/api/overview"):
        assert ann.get(path).status_code == 403
    assert owner.delete("/api/people/owner/answers").status_code == 409
    assert owner.delete("/api/people/ann/answers").json() == {"rows": 7}
    assert ann.get("/api/next").status_code == 401
    assert store.labels("r") == []
    written = [x["what"] for x in owner.get("/api/audit").json()]
    assert written[0] == "erased one person with 7 rows"
    assert "set overlap to 2, flagged to False" in written
    assert "exported all as csv" in written
