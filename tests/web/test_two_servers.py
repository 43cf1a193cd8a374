"""Two `rather serve` processes on one PostgreSQL, as on two machines: what happens at one holds at the other with the very next request."""

import os
import re
import shutil
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import enter, shown, until_it_takes_keys
from clients import OPEN, answer_to, client_of, given
from playwright.sync_api import Browser, BrowserContext, Page, expect
from process import Server, listens, until
from questions import question
from test_proxy import free_port, nginx

from rather.core import Label
from rather.store import Store
from rather.store.people import invite
from rather.store.quality import Asking

pytestmark = pytest.mark.slow
Two = tuple[Server, Server]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


@pytest.fixture
def store(postgres: Callable[[str], str]) -> Iterator[Store]:
    made = Store(postgres(f"two_{uuid.uuid4().hex}"))
    made.set_asking("r", Asking(overlap=2, repeats=0))
    yield made
    made.close()


def machine(folder: Path, store: Store) -> Path:
    """A folder of its own, as on another machine; only the store is shared."""
    folder.mkdir()
    (folder / "run.toml").write_text(f'[run]\nname = "r"\nstore = "{store.where}"\n')
    return folder


@pytest.fixture
def two(store: Store, tmp_path: Path) -> Iterator[Two]:
    with Server(machine(tmp_path / "a", store)) as first, Server(machine(tmp_path / "b", store)) as second:
        assert first.link
        assert not second.link, "the owner has one"
        yield first, second


def at(server: Server, token: str) -> httpx.Client:
    return client_of(server.url, headers={"Authorization": f"Bearer {token}"})


def good_or_poor(store: Store, count: int) -> list[int]:
    return store.ask("r", [question(i, left="good", right="poor") for i in range(count)])


def prefer_good(page: Page) -> None:
    """Answer what is there, if anything is."""
    if page.locator("#question").is_visible():
        until_it_takes_keys(page)
        page.keyboard.press("1" if "good" in page.locator("#side-1").inner_text() else "2")


def answer_all(client: httpx.Client, told: list[Any]) -> None:
    """Answer until there is nothing left."""
    while (found := given(client)) is not None:
        choice = "left" if "good" in found["sides"][0][0]["text"] else "right"
        told.append(client.post("/api/answers", json=answer_to(found, choice=choice)).status_code)
        threading.Event().wait(0.15)


def test_two_browsers_and_two_programs_at_two_servers_give_each_question_its_answers(chromium: Browser, store: Store, two: Two) -> None:
    numbers = good_or_poor(store, 40)
    contexts = [chromium.new_context() for _ in two]
    told: list[Any] = []
    programs = [
        threading.Thread(target=answer_all, args=(at(x, invite(store, f"sim {i}", simulated=True)), told)) for i, x in enumerate(two)
    ]
    pages = [enter(context, server.url, store, name) for context, server, name in zip(contexts, two, ("ann", "ben"), strict=True)]
    for thread in programs:
        thread.start()

    def done() -> bool:
        for page in pages:
            prefer_good(page)
        return len(store.labels("r")) >= 2 * len(numbers)

    until(done)
    for thread in programs:
        thread.join(60)
    assert Counter(x.comparison for x in store.labels("r")) == dict.fromkeys(numbers, 2), "each as often as wanted, none more often"
    assert len(store.history("r")) == 2 * len(numbers)
    assert {x.judge for x in store.labels("r")} == {"ann", "ben", "sim 0", "sim 1"}, "all of them had some"
    assert all(x.preference == 1.0 for x in store.labels("r"))
    assert set(told) == {200}
    for context in contexts:
        context.close()


def test_a_session_of_one_server_is_one_of_the_other_and_undo_reaches_across(context: BrowserContext, store: Store, two: Two) -> None:
    good_or_poor(store, 6)
    here, there = two
    page = enter(context, here.url, store, "ann")
    other = context.new_page()
    other.goto(page.url.replace(here.url, there.url))  # with the cookie of the first
    expect(other.locator("#question")).to_be_visible()
    first = shown(page)
    assert shown(other) == first, "it is before her, wherever she is"
    until_it_takes_keys(page)
    page.keyboard.press("=")
    until(lambda: len(store.labels("r")) == 1)
    other.reload()
    expect(other.locator("#progress")).to_have_text(re.compile("^1 of your 6"))
    expect(other.locator("#question")).to_be_visible()
    until_it_takes_keys(other)
    other.keyboard.press("u")
    until(lambda: store.labels("r") == [])
    expect(other.locator("#side-1")).to_contain_text(first.split(" | ")[0])
    page.reload()
    expect(page.locator("#progress")).to_have_text(re.compile("^0 of your 6"))


def test_a_cookie_that_no_server_of_the_store_has_signed_is_refused_in_a_sentence(two: Two, store: Store) -> None:
    client = client_of(two[0].url)
    (name,) = client.post("/api/join", json={"secret": invite(store, "ann")}, headers={"Origin": two[0].url}).cookies
    for forged in ("", "e30=.aaaa.bbbb", client.cookies[name][:-4]):
        refused = httpx.get(f"{two[1].url}/api/next?as=1", cookies={name: forged})
        assert (refused.status_code, "open the invite link" in refused.json()["detail"]) == (401, True)


def test_what_an_owner_does_at_one_server_holds_at_the_other_at_once(store: Store, two: Two, tmp_path: Path) -> None:
    good_or_poor(store, 6)
    (other,) = store.ask("other", [question(0)])
    here, there = two
    owner = at(here, here.link.partition("#")[2])
    away = at(there, here.link.partition("#")[2])
    tokens = {name: owner.post("/api/people", json={"name": name}).json()["link"].partition("#")[2] for name in ("ann", "ben", "cem")}
    ann, ben, cem = (at(there, tokens[name]) for name in tokens)

    assert owner.put("/api/asking", json={"overlap": 1, "random": 0}).status_code == 200
    numbers = [given(x)["id"] for x in (ann, ben, cem)]
    assert len(set(numbers)) == 3
    assert owner.put("/api/asking", json={"overlap": 3}).status_code == 200
    shared = ann.get("/api/next", params={"held": numbers[0]}).json()["question"]["id"]
    assert shared in numbers, "others are asked, too, with the very next question"

    for client in (ann, ben):
        assert client.post("/api/answers", json=answer_to(given(client), reason=f"a secret of {numbers}")).status_code == 200
    mine = at(here, tokens["ann"])
    assert mine.get("/api/next").json()["progress"]["mine"] == 1, "an answer counts at the other server at once"
    assert mine.post("/api/undo", json={"question": numbers[0]}).json() == {"undone": True}
    assert ann.get("/api/next").json()["progress"]["mine"] == 0
    assert ann.post("/api/answers", json=answer_to(given(ann), key="once more")).status_code == 200

    judges = {p["name"]: p["id"] for p in owner.get("/api/overview").json()["people"]}
    assert owner.delete(f"/api/people/{judges['cem']}").json() == {"revoked": True}
    assert cem.get("/api/next").status_code == 401

    until(lambda: {p["name"]: p["answers"] for p in away.get("/api/overview").json()["people"]}.get("ann") == 1)
    store.answer(Label(other, "ann", 1.0))  # so that her name stays in the store
    assert owner.delete(f"/api/people/{judges['ann']}/answers").json()["rows"] == 3
    seen = away.get("/api/overview")
    assert "ann" not in {p["name"] for p in seen.json()["people"]}
    assert "ann" not in {x["judge"] for x in seen.json()["flagged"] or ()}
    assert ann.get("/api/next").status_code == 401
    assert "ann" not in away.get("/api/export").text.split('"')

    with Server(machine(tmp_path / "c", store), "--new-link") as renewed:
        assert renewed.link
        assert owner.get("/api/overview").status_code == 401, "the old link ends at the server that is running, too"
        assert at(here, renewed.link.partition("#")[2]).get("/api/overview").status_code == 200


@pytest.fixture
def balanced(store: Store, tmp_path: Path, certificate: tuple[str, str]) -> Iterator[tuple[Two, str]]:
    """Both servers behind one nginx, which takes them in turn: they and the address."""
    if shutil.which("nginx") is None:
        pytest.skip("needs Debian's nginx")
    plain, tls = free_port(), free_port()
    outer = f"https://localhost:{tls}/labels"
    with Server(machine(tmp_path / "a", store), "--url", outer) as first, Server(machine(tmp_path / "b", store), "--url", outer) as second:
        command = nginx(tmp_path, first.port, plain, tls, certificate)
        written = (tmp_path / "nginx.conf").read_text()
        several = f"upstream page {{ server 127.0.0.1:{first.port}; server 127.0.0.1:{second.port}; }}\n\n    server {{"
        text = written.replace("server {", several, 1).replace(f"http://127.0.0.1:{first.port}", "http://page")
        (tmp_path / "nginx.conf").write_text(text)
        with (tmp_path / "proxy.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
            try:
                until(lambda: listens(tls) or process.poll() is not None, 20)
                assert process.poll() is None, (tmp_path / "proxy.log").read_text()
                yield (first, second), outer
            finally:
                process.terminate()
                process.wait()


def test_people_behind_one_proxy_notice_nothing_of_two_servers_nor_of_one_that_dies(
    chromium: Browser, store: Store, balanced: tuple[Two, str]
) -> None:
    (first, _), outer = balanced
    good_or_poor(store, 12)
    context = chromium.new_context(ignore_https_errors=True)
    page = context.new_page()
    failed: list[str] = []
    page.on("response", lambda found: failed.append(f"{found.status} {found.url}") if found.status >= 400 else None)
    page.goto(f"{outer}/join#{invite(store, 'ann')}")
    expect(page.locator("#question")).to_be_visible()

    def answered(count: int) -> bool:
        prefer_good(page)
        return len(store.labels("r")) >= count

    until(lambda: answered(6))
    assert failed == [], "each server knows the sessions of the other"
    first.kill()
    until(lambda: answered(12))
    assert len(store.history("r")) == 12
    assert all(x.preference == 1.0 for x in store.labels("r"))
    context.close()
