"""`rather serve` as a command, killed with -9 while people answer."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import enter, prefer_good, prefer_good_till_the_end
from clients import answer_to
from playwright.sync_api import BrowserContext
from process import Server, until
from questions import question

from rather.store import Store
from rather.store.quality import Asking


@pytest.fixture
def run(tmp_path: Path, where: str) -> Iterator[Store]:
    """A run of 60 questions; `tmp_path` is the folder to serve it from."""
    (tmp_path / "run.toml").write_text(f'[run]\nname = "r"\nstore = "{where}"\n')
    store = Store(where)
    store.ask("r", [question(i, left="good", right="poor") for i in range(60)])
    store.set_asking("r", Asking(repeats=0))
    yield store
    store.close()


@pytest.mark.slow
def test_acknowledged_answers_are_there_once_however_often_the_server_is_killed(run: Store, tmp_path: Path) -> None:
    acknowledged: dict[int, int] = {}
    with Server(tmp_path) as server:
        token = server.link.partition("#")[2]
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=2) as client:

            def insist(method: str, path: str, **what: object) -> httpx.Response:
                while True:
                    try:
                        answer = client.request(method, path, **what)  # type: ignore[arg-type]
                    except httpx.TransportError:
                        time.sleep(0.05)
                        continue
                    if answer.status_code == 200:
                        return answer
                    time.sleep(0.1)

            def answer_all() -> None:
                while (found := insist("GET", "/api/next").json()["question"]) is not None:
                    acknowledged[found["id"]] = insist("POST", "/api/answers", json=answer_to(found)).json()["label"]
                    time.sleep(0.02)

            person = threading.Thread(target=answer_all)
            person.start()
            for kills in range(1, 4):
                until(lambda kills=kills: len(acknowledged) >= 12 * kills or not person.is_alive())
                server.kill()
                server.start()
            person.join(120)
            assert not person.is_alive()
    assert len(acknowledged) == 60
    assert sorted(row["id"] for row in run.history("r")) == sorted(acknowledged.values()), "each once, and none beside them"


@pytest.mark.slow
def test_people_answer_on_while_the_server_is_killed(context: BrowserContext, run: Store, tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        page = enter(context, server.url, run, "ann")
        for turn in range(1, 41):
            prefer_good(page)
            if turn not in (15, 35):
                continue
            server.kill()
            kept = len(run.history("r"))
            for _ in range(5):  # what is at hand can be answered without a server
                page.keyboard.press("1" if "good" in page.locator("#side-1").inner_text() else "2")
                page.wait_for_timeout(200)
            assert len(run.history("r")) == kept, "the server is gone"
            server.start()
        prefer_good_till_the_end(page)
        until(lambda: len(run.labels("r")) == 60)
    assert len(run.history("r")) == 60, "nothing was lost and nothing counts twice"
    assert all(x.preference == 1.0 for x in run.labels("r"))


def test_the_owners_link_is_printed_once(run: Store, tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        assert "The owner's link" in server.log.read_text()
        server.kill()
        server.start()
        until(lambda: "--new-link makes another" in server.log.read_text())
    assert server.log.read_text().count("/join#") == 1
