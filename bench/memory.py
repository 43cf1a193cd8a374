"""Peak memory of LoRA training on long conversations: `memory.py HH.jsonl.gz [MODEL]`, a JSONL file of HH's strings.

Each learner is a process of its own, with the settings' defaults in bfloat16, on the 64 pairs that are longest among those whose conversations
have at most 1,024 tokens. Peaks are what the system says of the process (getrusage).
"""

import gzip
import json
import platform
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MOST, PAIRS, STEPS = 1024, 64, 4
LEARNERS = ("dpo", "reward", "ppo", "grpo")
RESULTS = Path("bench/results/memory")


def messages(text: str) -> list[dict[str, str]]:
    """A conversation from HH's string."""
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    return [{"role": {"Human": "user"}.get(r, "assistant"), "content": c.strip()} for r, c in zip(parts[::2], parts[1::2], strict=True)]


def measure(name: str, data: str, model: str) -> dict[str, Any]:
    """Train for a few steps."""
    from rather import build
    from rather.config import Config
    from rather.core import Answered, Comparison, Task, Trajectory

    config = Config.model_validate(
        {
            "model": {"path": model, "dtype": "bfloat16", "device": "cpu"},
            "train": {"learner": name, "reward": "labels", "steps": STEPS},
            "reward": {"temperatures": False},
        }
    )
    start = build.start_policy(config)
    encode = start.tokens.encode_prompt
    pairs: list[tuple[int, Comparison]] = []
    with gzip.open(data, "rt") if data.endswith(".gz") else Path(data).open() as file:
        for i, line in enumerate(file):
            row = json.loads(line)
            chosen, rejected = messages(row["chosen"]), messages(row["rejected"])
            if chosen[:-1] != rejected[:-1] or len(row["chosen"]) + len(row["rejected"]) > 12 * MOST:
                continue
            task = Task("hh", str(i), chosen[:-1])
            texts = [(Trajectory(task, "hh", conversation[-1]["content"]),) for conversation in (chosen, rejected)]
            if len(row["chosen"]) + len(row["rejected"]) > 4 * MOST:  # characters: the short ones need not be counted
                batch = start.collate([t for side in texts for t in side]) if len(encode(chosen[:-1])) < MOST else None
                if batch is not None and batch.prompts is not None and batch.prompts[0, 1] + batch.mask.sum(-1).max() <= MOST:
                    size = int(batch.prompts[0, 1] + batch.mask.sum())
                    pairs.append((size, Comparison(texts[0], texts[1], 1.0, str(i), "hh")))
    pairs = sorted(pairs, key=lambda pair: -pair[0])[:PAIRS]
    comparisons = [c for _, c in pairs]
    payer = None
    if name in ("ppo", "grpo"):
        from rather.text.policy import TextReward

        payer = TextReward(build.trained_policy(config, start, "reward")[0], 1, 0)
    policy, parameters = build.trained_policy(config, start, "reward" if name == "reward" else "policy")
    if payer is None:
        data_ = Answered(comparisons, 0, [])
        learner = build.learner(config, name, start, policy, parameters, data_, STEPS, lambda n: None)
    else:
        tasks = [c.a[0].task for c in comparisons]
        room = config.sample.max_tokens
        tasks = [t for t in tasks if t.prompt is not None and len(encode(t.prompt)) + room <= MOST]
        learner = build.improver(config, start, policy, parameters, tasks, payer, STEPS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(STEPS):
        learner.step()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "learner": name, "tokens of the largest pair": pairs[0][0], "micro_batch_tokens": config.train.micro_batch_tokens,
        "resident before, GiB": round(before / 2**20, 2), "peak, GiB": round(used.ru_maxrss / 2**20, 2), "CPU s": round(used.ru_utime + used.ru_stime),
    }  # fmt: skip


def main() -> None:
    """Measure every learner in a process of its own, and write what was found."""
    data, model = sys.argv[1], (sys.argv[2:] or ["models/SmolLM2-135M-Instruct.Q4_1.gguf"])[0]
    rows = []
    for name in LEARNERS:
        done = subprocess.run([sys.executable, __file__, "--one", name, data, model], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True).stdout.strip()
    about = {
        "command": f"python bench/memory.py {Path(data).name}", "commit": commit, "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": _processor(), "model": Path(model).name,
    }  # fmt: skip
    RESULTS.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    lines = [f"{key}: {value}" for key, value in about.items()]
    table = [
        "| " + " | ".join(rows[0]) + " |",
        "|---" * len(rows[0]) + "|",
        *("| " + " | ".join(map(str, r.values())) + " |" for r in rows),
    ]
    RESULTS.with_suffix(".md").write_text("\n".join(["# Peak memory on long conversations", "", *lines, "", *table]) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(measure(*sys.argv[2:5])))
    else:
        main()
