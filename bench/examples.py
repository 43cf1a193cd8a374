"""The examples `car`, `loophole` and `rlvr` on several seeds: `python bench/examples.py car 0 1 2 3 4`.

`car` and `loophole` run under `rather hack`, which compares the reward with the gold reward; `rlvr` and `loophole-mended` under `rather loop`:
that is `loophole` in three rounds with hack.then = "mend", where a simulated judge who likes what gold likes compares 100 pairs after the
first alarm of round 0, and 50 after one of round 1. One run after the other, one thread each. Writes bench/results/EXAMPLE.{json,md} after each seed; seeds that are there already are kept, with their own commit.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import common
from cpu import processor
from rather.hacking.alarm import Point, alarm, lookouts, points

Row = dict[str, Any]
WINDOW = 3
"""Steps whose mean gold is measured by."""
MENDED = [
    "loop.rounds=3", "hack.then=mend", "train.checkpoint_every=1", "query.questions=150",
    'judge.panel=[{name="reader", utility="brief", temperature=0.3}]',
]  # fmt: skip


def run(example: str, seed: int) -> Row:
    """What one run comes to."""
    with tempfile.TemporaryDirectory() as folder:
        file, _, mended = example.partition("-")
        command = "loop" if mended or file == "rlvr" else "hack"
        settings = [
            f"run.folder={folder}",
            "run.name=r",
            f"run.seed={seed}",
            "run.threads=1",
            *(["eval.prompts=60"] if example == "rlvr" else []),
            *(MENDED if mended else []),
        ]
        subprocess.run(
            [sys.executable, "-m", "rather", command, f"src/rather/data/examples/{file}.toml", *settings],
            check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        lines = {name: (Path(folder) / name / "metrics.jsonl").read_text() for name in ("r", "r-written") if (Path(folder) / name).exists()}
    return {name: MEASURES[example]([json.loads(line) for line in text.splitlines()]) for name, text in lines.items()}


def car(rows: Sequence[Row]) -> Row:
    """Return and laps of deterministic actions after training, and the alarms."""
    after, steps = _last(rows, "eval"), [row for row in rows if row["phase"].startswith("train-ppo")]
    rounds = [[row for row in steps if row["phase"] == phase] for phase in dict.fromkeys(row["phase"] for row in steps)]
    watched = lookouts([points(one, "score" if "score" in one[0] else "return") for one in rounds])
    seen = [(number, lookout.raised) for number, lookout in enumerate(watched)]
    kept = {key: after[key] for what in ("return", "gold") for key in (f"{what}_policy", f"{what}_policy_stderr")}
    return kept | {"steps": len(steps), "alarms": [asdict(a) | {"round": number} for number, a in seen if a is not None]}


def loophole(rows: Sequence[Row]) -> Row:
    """Gold at first, at its best and in the end, means of `WINDOW` steps; the alarm with the sign that gold turns, and without."""
    found = points([row for row in rows if row["phase"].startswith("train-grpo")], "score")
    gold = [sum(p.gold.mean for p in found[i - WINDOW : i] if p.gold is not None) / WINDOW for i in range(WINDOW, len(found) + 1)]
    best = max(range(len(gold)), key=lambda i: gold[i])

    def seen(found: Sequence[Point]) -> Row | None:
        if (a := alarm(found)) is None or a.gold is None:
            return None
        return {"step": a.step, "sign": a.sign, "lost": (a.gold[0] - a.gold[1]) / (a.gold[0] - gold[0])}

    without = [replace(p, gold_correlation=None) for p in found]
    return {
        "first": gold[0],
        "best": gold[best],
        "best_step": best + WINDOW,
        "last": gold[-1],
        "alarm": seen(found),
        "without": seen(without),
    }


def mended(rows: Sequence[Row]) -> Row:
    """Gold at first, at its best before the first alarm and in the end, means of `WINDOW` steps; each round's alarm, and questions."""
    phases = [f"train-grpo-{number}" for number in range(3)]
    rounds = [points([row for row in rows if row["phase"] == phase], "score") for phase in phases]
    gold = [[p.gold.mean for p in one if p.gold is not None] for one in rounds]
    before = [sum(gold[0][i - WINDOW : i]) / WINDOW for i in range(WINDOW, len(gold[0]) + 1)]
    raised = [lookout.raised for lookout in lookouts(rounds)]
    return {
        "first": before[0], "best": max(before), "alarms": [None if a is None else a.step for a in raised],
        "ends": [sum(one[-WINDOW:]) / WINDOW for one in gold], "steps": [len(one) for one in gold],
        "questions": sum(int(row["questions"]) for row in rows if row["phase"].startswith("sample-")),
    }  # fmt: skip


def rlvr(rows: Sequence[Row]) -> Row:
    """Held-out scores before and after, with their intervals."""
    after = _last(rows, "eval")
    return {f"score_{who}{end}": after[f"score_{who}{end}"] for who in ("base", "policy") for end in ("", "_low", "_high")}


def _last(rows: Sequence[Row], phase: str) -> Row:
    return [row for row in rows if row["phase"].startswith(phase)][-1]


MEASURES = {"car": car, "loophole": loophole, "loophole-mended": mended, "rlvr": rlvr}
HEADS = {
    "car": "| seed | hand-written reward: return | laps | alarm at step | 150 comparisons: return | laps | alarm (round, step, what gold fell from and to) | CPU s |",
    "loophole": "| seed | gold at first | at its best (step) | in the end | alarm at step, share of its gain that gold had lost | without the sign that gold turns | CPU s |",
    "loophole-mended": "| seed | gold at first | at its best before the alarm | at the end of each round | alarm at step | questions | CPU s |",
    "rlvr": "| seed | before | after | CPU s |",
}


def cells(example: str, found: Row) -> list[str]:
    """What a line of the table says of a seed."""
    run = found["r"]
    if example == "car":
        return [*_driven(found["r-written"], False), *_driven(run, True)]
    if example == "rlvr":
        return [
            "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * run[f"score_{who}{end}"] for end in ("", "_low", "_high")))
            for who in ("base", "policy")
        ]
    if example == "loophole-mended":
        ends = ", ".join(f"{gold:.2f}" for gold in run["ends"])
        alarms = ", ".join("none" if step is None else str(step) for step in run["alarms"])
        return [f"{run['first']:.2f}", f"{run['best']:.2f}", ends, alarms, str(run["questions"])]
    alarms = [f"{a['step']}, {100 * a['lost']:.0f} %" if a else "none" for a in (run["alarm"], run["without"])]
    return [f"{run['first']:.2f}", f"{run['best']:.2f} ({run['best_step']})", f"{run['last']:.2f}", *alarms]


def _driven(run: Row, rounds: bool) -> list[str]:
    alarms = [
        f"{a['round']}, {a['step']}, {a['gold'][0]:.3f} to {a['gold'][1]:.3f}" if rounds else f"{a['step']} of {run['steps']}"
        for a in run["alarms"]
    ]
    ends = [
        f"{run[f'{what}_policy']:.{digits}f} +- {1.96 * run[f'{what}_policy_stderr']:.{digits}f}"
        for what, digits in (("return", 0), ("gold", 3))
    ]
    return [*ends, "; ".join(alarms) or "none"]


def main() -> None:
    """Run the seeds that are named and not there yet."""
    example, *seeds = sys.argv[1:]
    path = Path(f"bench/results/{example}.json")
    rows: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}
    for seed in [seed for seed in seeds if seed not in rows]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = run(example, int(seed))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        rows[seed] = {"about": common.about(f"bench/examples.py {example}", processor()), "cpu_s": cpu_s, **found}
        rows = dict(sorted(rows.items(), key=lambda item: int(item[0])))
        abouts = dict.fromkeys(row["about"] for row in rows.values())
        lines = [
            f"# The example `{example}` on several seeds", "",
            *(f"{about}: seeds {', '.join(seed for seed in rows if rows[seed]['about'] == about)}.  " for about in abouts), "",
            HEADS[example], "|---" * (HEADS[example].count("|") - 1) + "|",
            *("| " + " | ".join([seed, *cells(example, row), f"{row['cpu_s']:.0f}"]) + " |" for seed, row in rows.items()),
        ]  # fmt: skip
        common.publish(example, rows, lines)


if __name__ == "__main__":
    main()
