"""What answers buy on text: SmolLM2-135M nudged towards several tastes of simulated judges, beside the gradient on the same numbers.

`python bench/nudge.py` writes bench/results/nudge.{json,md}. Every run is the example `nudge` with no checks in between, so that all
answers are counted; at 120 and at 240 answers the policy and its start answer 48 held-out prompts greedily, and the judge's own utility
compares them without slips. Settings were chosen on seeds 0 to 3, the radius on seeds 10 to 14; those of the table are others.
`python bench/nudge.py "zeroth order/personal"` measures one row and keeps the others.
"""

import json
import math
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import common

SEEDS, BUDGETS, TOKENS = range(20, 25), (120, 240), 48
CRITERIA = ("cheerful", "readable", "personal", "plain", "brief")
SIDES = {
    "zeroth order": [],
    "online DPO (first order)": [
        "zeroth.estimator=dpo",
        "sample.temperature=1.0",
        "zeroth.side=1",
        "zeroth.optimizer=Adam",
        "zeroth.lr=0.03",
    ],
}

ROWS = [f"{side}/{criterion}" for side in SIDES for criterion in CRITERIA]


def one(criterion: str, seed: int, *changes: str) -> list[dict[str, float]]:
    """Win rate, words and log-probability under the start at each budget; in a process of its own with one thread."""
    import torch
    from rich.console import Console

    from rather.config import toml
    from rather.core import Policy, Trajectory
    from rather.judges.known import utility
    from rather.pipeline import build
    from rather.pipeline.run import Run

    with tempfile.TemporaryDirectory() as folder:
        panel = f'judge.panel=[{{ name = "{criterion}", utility = "{criterion}", temperature = 0.5, mistake = 0.05 }}]'
        said = [
            f"run.folder={folder}",
            f"run.seed={seed}",
            "run.threads=1",
            "zeroth.check_every=0",
            f"sample.max_tokens={TOKENS}",
            "zeroth.radius=0.095",
            "train.checkpoint_every=1000",
            panel,
            *changes,
        ]
        worth, found = utility(criterion), []
        for budget in BUDGETS:
            known = toml.load(Path("src/rather/data/examples/nudge.toml"), [*said, f"zeroth.answers={budget}"])
            run = Run(known, Console(quiet=True))
            run.train()
            greedy = known.model_copy(update={"sample": known.sample.model_copy(update={"temperature": 0.0})})
            policy, base, held_out = run.policy(1), run.domain.base_policy, run.domain.tasks[1]
            assert isinstance(policy, build.AnyPolicy)
            assert isinstance(base, build.AnyPolicy)
            after, before = (build.sampler(greedy, p, lambda n: None).sample(held_out, 0) for p in (policy, base))

            def likely(answers: list[Trajectory], base: Policy = base) -> float:
                with torch.no_grad():
                    batch = base.collate(answers)
                    return float((base.evaluate(batch)[0] * batch.mask).sum() / batch.mask.sum())

            wins = [(worth(a) > worth(b)) + 0.5 * (worth(a) == worth(b)) for a, b in zip(after, before, strict=True)]
            words = [sum(len((t.text or "").split()) for t in answers) / len(answers) for answers in (before, after)]
            lost = likely(before) - likely(after)
            found.append(
                {"answers": budget, "win_rate": sum(wins) / len(wins), "words": words[1], "words_start": words[0], "nats_lost": lost}
            )
        print(json.dumps({"found": found, "example": [before[0].text, after[0].text]}))
    return found


def run(job: tuple) -> dict:
    """`one` in a process of its own."""
    command = [sys.executable, __file__, "--one", job[0], str(job[1]), *job[2]]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Run everything, or the rows named on the command line, two runs at a time; other rows of the results stay."""
    results = Path("bench/results/nudge.json")
    data: dict[str, dict] = json.loads(results.read_text())["found"] if sys.argv[1:] and results.exists() else {}
    about = common.about("bench/nudge.py", f"seeds {SEEDS[0]} to {SEEDS[-1]}, one thread a run, two at a time")
    with ThreadPoolExecutor(2) as pool:
        under_way = {
            name: [pool.submit(run, (name.split("/")[1], seed, SIDES[name.split("/")[0]])) for seed in SEEDS]
            for name in sys.argv[1:] or ROWS
        }
        for name, runs in under_way.items():
            data[name] = {"about": about, "tokens": TOKENS, "runs": [found.result() for found in runs]}
            publish(data)


def publish(data: dict[str, dict]) -> None:
    """Write what has been found so far."""
    lines = []
    for name in [name for name in ROWS if name in data]:
        for i, budget in enumerate(BUDGETS):
            at = [r["found"][i] for r in data[name]["runs"]]
            wins = [100 * x["win_rate"] for x in at]
            each = ", ".join(f"{w:.0f}" for w in wins)
            words = f"{median(x['words_start'] for x in at):.0f} to {median(x['words'] for x in at):.0f}"
            lost = f"{median(x['nats_lost'] for x in at):.2f} ({max(x['nats_lost'] for x in at):.2f})"
            lines.append(
                f"| {name.replace('/', ' | ')} | {data[name]['tokens']} | {budget} | {median(wins):.0f} % | {each} | {words} | {lost} |"
            )
    commits = dict.fromkeys(row["about"] for row in data.values())
    head = [
        "# What answers buy on text", "", *(f"{about}: {', '.join(n for n in data if data[n]['about'] == about)}.  " for about in commits), "",
        "SmolLM2-135M, greedy answers of so many tokens at most; a simulated judge who slips 5 % of the time; win rate against the base policy on 48 held-out prompts",
        f"(chance 50 %, standard error {100 * math.sqrt(0.25 / 48):.0f} points). Nats lost: how much less likely a token of the answers is under the start",
        "than one of the base policy's own, median (worst).", "",
        "| side | criterion | tokens | answers | win rate, median | each seed | words an answer | nats lost a token |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    common.publish("nudge", {"found": data}, [*head, *lines])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    else:
        main()
