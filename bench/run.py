"""`make bench`: us and the peers side by side in one run, on SmolLM2-135M and two cores; writes bench/results/cpu-*.json and .md, named after
the precision that the processor computes in.

Primary figure: tokens a CPU second, since the machine may be shared. A ratio compares with the peer's best variant.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from statistics import median

import torch

import common
from rather.cli import THREADS
from rather.text import load

PEER = Path(".venv-bench/bin/python")
OURS = ("bfloat16", "float32")
PEERS = {"generate": ("bfloat16", "float32"), "dpo": ("default", "bfloat16", "float32"), "reward": ("default", "bfloat16", "float32")}


def prepare() -> None:
    """The peers' environment, and the model as a folder that both sides read."""
    if not PEER.exists():
        subprocess.run([sys.executable, "-m", "venv", PEER.parent.parent], check=True)
        for packages in (["torch==2.13.0"], ["trl==1.16.0"]):
            subprocess.run([PEER, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    if not (common.MODEL / "model.safetensors").exists():
        from rather.text import weights
        from rather.text.tokens import Tokens

        source = Path("models/SmolLM2-135M-Instruct.Q4_1.gguf").resolve()
        weights.save(weights.load(source), common.MODEL)
        Tokens.load(source).save(common.MODEL)


def measure(task: str, side: str, variant: str) -> dict:
    """Run one side in a process of its own and read the line that it prints."""
    python = sys.executable if side == "ours" else PEER
    environment = os.environ | THREADS | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= {"TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([python, f"bench/{side}.py", task, variant], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench/{side}.py {task} {variant} failed:\n{done.stderr[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
    row = json.loads(lines[-1]) | {"task": task, "ours": side == "ours"}
    print(table([row]).splitlines()[-1], flush=True)
    return row


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table; a ratio is tokens a CPU second over the peer's best."""
    lines = [
        "| task | | tokens/CPU s | CPU s | wall s | tokens/s | peak GiB | against the peer's best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cpu, wall = median(row["cpu_s"]), median(row["wall_s"])
        peers = [r["tokens"] / median(r["cpu_s"]) for r in rows if r["task"] == row["task"] and not r["ours"]]
        ratio = f"{row['tokens'] / cpu / max(peers):.2f} x" if peers and row["ours"] else ""
        spread = f"{min(row['cpu_s']):.2f} to {max(row['cpu_s']):.2f}"
        figures = f"{row['tokens'] / cpu:.0f} | {cpu:.2f} ({spread}) | {wall:.2f} | {row['tokens'] / wall:.0f} | {row['peak_gib']:.2f}"
        lines.append(f"| {row['task']} | {row['name']} | {figures} | {ratio} |")
    return "\n".join(lines)


def processor() -> str:
    """What the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure everything, or the tasks named on the command line."""
    prepare()
    rows = []
    # Where the processor does not multiply bfloat16 it is nobody's best; the peer's default is measured all the same.
    native = str(load.dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    left_out = () if native == "bfloat16" else ("bfloat16",)
    for task in sys.argv[1:] or PEERS:
        ours = [("ours", variant) for variant in OURS if variant not in left_out]
        peers = [("peer", variant) for variant in PEERS[task] if variant not in left_out]
        for turn in zip_longest(ours, peers):  # us and the peer in turn
            rows += [measure(task, *side) for side in turn if side]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    about = {
        "command": " ".join(["python", "bench/run.py", *sys.argv[1:]]) if sys.argv[1:] else "make bench", "commit": commit, "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
    }  # fmt: skip
    folder = Path("bench/results")
    folder.mkdir(exist_ok=True)
    (folder / f"cpu-{native}.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    versions = " ".join(sorted({f"{k} {v}" for r in rows for k, v in r["versions"].items()}))
    text = f"""# On two CPU cores that compute in {native}, SmolLM2-135M

`{about["command"]}` at commit {commit}, {about["date"]}; {about["machine"]}; {versions}. Medians of {common.REPEATS} runs after a warm-up,
least and most in brackets. Generation: {common.PROMPTS} prompts x {common.ANSWERS} answers x {common.NEW} tokens. DPO and reward model:
{common.PAIRS} pairs, prompts of {common.PROMPT} and answers of {common.ANSWER} tokens, all weights trained, tokens counted as the peer forwards them
(each prompt twice); DPO with the reference scored in every step. TRL "default" is bfloat16 autocast with gradient checkpointing.

{table(rows)}
"""
    (folder / f"cpu-{native}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
