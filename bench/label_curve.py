"""Which questions to ask in control: returns over the number of comparisons, by strategy, on two tasks.

`python bench/label_curve.py [--seeds 5] [--most 1400] [task]...` runs `rather loop` on the examples reacher (a reward head) and pendulum
(nets) with each strategy and number of comparisons, seeds 30 to 34, one thread a run, and writes bench/results/label-curve.{json,md}.
Runs that are finished are kept and not run again. The area is the mean return over the logarithm of the number of comparisons.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import common
import labels

TASKS = {"reacher": "src/rather/data/examples/reacher.toml", "pendulum": "src/rather/data/examples/pendulum.toml"}
STRATEGIES = ("random", "disagreement", "near_tie", "large_gap", "bald", "d_optimal")
COUNTS = (25, 100, 400, 1400)
FIRST = 30
FILE = Path("bench/results/label-curve.json")

Runs = dict[str, dict[str, Any]]
"""What was found, by task/strategy/comparisons/seed."""


def changes(strategy: str, count: int) -> list[str]:
    """Settings of a run. Nets need several members to disagree; nothing is asked at random but by that strategy."""
    return [f"query.comparisons={count}", f"query.strategy={strategy}", "query.random_share=0"]


def area(runs: Runs, task: str, strategy: str, seed: int) -> float | None:
    """The mean return over the logarithm of the number of comparisons, as far as all of `COUNTS` are there; None: they are not."""
    found = [runs.get(f"{task}/{strategy}/{count}/{seed}") for count in COUNTS]
    returns = [run["return"] for run in found if run is not None]
    if len(returns) < len(COUNTS):
        return None
    x = np.log(COUNTS)
    return float(np.trapezoid(returns, x) / (x[-1] - x[0]))


def table(runs: Runs, task: str) -> Iterator[str]:
    """Returns of each seed by strategy and number of comparisons, and areas."""
    seeds = sorted({int(key.split("/")[3]) for key in runs if key.startswith(f"{task}/")})
    yield f"| strategy | {' | '.join(f'{count} comparisons' for count in COUNTS)} | area, median | less that of random, each seed |"
    yield "|---" * (len(COUNTS) + 3) + "|"
    for strategy in STRATEGIES:
        cells = list[str]()
        for count in COUNTS:
            each = [runs[key]["return"] for seed in seeds if (key := f"{task}/{strategy}/{count}/{seed}") in runs]
            cells.append(f"{np.median(each):.1f} ({', '.join(f'{x:.1f}' for x in each)})" if each else "")
        if not any(cells):
            continue
        areas = {seed: a for seed in seeds if (a := area(runs, task, strategy, seed)) is not None}
        plain = {seed: area(runs, task, "random", seed) for seed in areas}
        gains = [f"{areas[seed] - base:+.1f}" for seed, base in plain.items() if base is not None] if strategy != "random" else []
        yield (
            f"| {strategy} | {' | '.join(cells)} | {np.median([*areas.values()]):.1f} | {', '.join(gains)} |"
            if areas
            else (f"| {strategy} | {' | '.join(cells)} | | |")
        )


def publish(runs: Runs) -> None:
    """Write what has been found."""
    about = common.about("bench/label_curve.py", "simulated oracle, one thread a run")
    commits = sorted({str(run["commit"]) for run in runs.values()})
    lines = [
        f"# Which questions to ask in control\n\n{about}; runs of commits {', '.join(commits)}. True return of held-out episodes, median (each seed)."
    ]
    for task in TASKS:
        if any(key.startswith(f"{task}/") for key in runs):
            lines += ["", f"## {task}", "", *table(runs, task)]
    common.publish("label-curve", {"about": about, "runs": runs}, lines)


def main() -> None:
    """Every run that is missing, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=[*TASKS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    given = parser.parse_args()
    runs: Runs = json.loads(FILE.read_text())["runs"] if FILE.exists() else {}
    settings = {task: hashlib.sha256(Path(TASKS[task]).read_bytes()).hexdigest()[:8] for task in TASKS}
    runs = {key: run for key, run in runs.items() if run["settings"] == settings[key.split("/")[0]]}
    for seed in range(FIRST, FIRST + given.seeds):
        for task in given.tasks:
            for count in (n for n in COUNTS if n <= given.most):
                for strategy in STRATEGIES:
                    key = f"{task}/{strategy}/{count}/{seed}"
                    if key in runs:
                        continue
                    found = labels.ours(TASKS[task], seed, *changes(strategy, count))
                    runs[key] = found | {"commit": common.commit(), "settings": settings[task]}
                    print(key, found["return"], file=sys.stderr, flush=True)
                    publish(runs)


if __name__ == "__main__":
    main()
