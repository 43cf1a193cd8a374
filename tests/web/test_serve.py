"""`rather serve` as a command, killed with -9 while people answer."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from questions import question

from rather.store import Store
from rather.store.quality import Asking


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder: Path, at: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rather", "serve", "run.toml", "--port", str(at)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    return process


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text('[run]\nname = "r"\n')
    store = Store(str(tmp_path / "runs/r/store.db"))
    store.ask("r", [question(i) for i in range(60)])
    store.set_asking("r", Asking(repeats=0))
    store.close()
    return tmp_path


def test_acknowledged_answers_are_there_once_however_often_the_server_is_killed(run: Path) -> None:
    at = port()
    process = start(run, at)
    link = next(line for line in process.stdout or [] if "/join/" in line).split()[-1]
    assert link.startswith(f"http://127.0.0.1:{at}/join/")
    client = httpx.Client(base_url=f"http://127.0.0.1:{at}", headers={"Authorization": f"Bearer {link.rsplit('/', 1)[1]}"}, timeout=2)
    acknowledged: dict[int, int] = {}

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
            sent = {"question": found["id"], "choice": "left", "key": f"answer-{found['id']}"}
            acknowledged[found["id"]] = insist("POST", "/api/answers", json=sent).json()["label"]
            time.sleep(0.02)

    person = threading.Thread(target=answer_all)
    person.start()
    for kills in range(1, 4):
        while len(acknowledged) < 12 * kills and person.is_alive():
            time.sleep(0.01)
        stop(process)
        process = start(run, at)
    person.join(120)
    assert not person.is_alive()
    stop(process)
    client.close()
    store = Store(str(run / "runs/r/store.db"))
    history = store.history("r")
    store.close()
    assert len(acknowledged) == 60
    assert sorted(row["id"] for row in history) == sorted(acknowledged.values()), "each once, and none beside them"


def test_the_owners_link_is_printed_once(run: Path) -> None:
    for expected in ("The owner's link", "--new-link makes another"):
        process = start(run, port())
        assert expected in next(iter(process.stdout or []))
        stop(process)
