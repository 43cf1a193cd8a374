"""What one GPU does beside what it could do: generation, a GRPO step and a DPO step, on random weights in the shape of Qwen3-0.6B.

`python bench/gpu.py` measures the GPU's own copy and matrix rates first, then each row, and writes bench/results/gpu.{json,md} with the
bound on paper beside it: bytes that must be read over the copy rate, or FLOP over the matrix rate, whichever takes longer. Without a
GPU it writes the bounds alone, for the rates of an H100 80GB. `--tiny` runs every row on the processor, to see that it runs.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch

import common
from rather.core import Comparison, Task, Trajectory
from rather.learners.common import Attempts, Optimisation
from rather.learners.dpo import DPO
from rather.learners.grpo import GRPO, Group
from rather.text import engine
from rather.text.policy import TextPolicy
from rather.text.transformer import Shape, Transformer

QWEN3 = Shape("qwen3", 151_936, 1024, 28, 16, 8, 128, 3072, 40_960, 1e-6, True, rope_theta=1e6, qk_norm=True)
H100 = {"bytes": 3.0e12, "flops": 798e12}
"""Measured: bytes read and written a second by a copy, FLOP a second of a bfloat16 product of 8192 x 8192."""
PAIRS = 16


@dataclass(frozen=True)
class Work:
    """Rows of prompts and answers, in tokens; `groups` prompts are different."""

    rows: int
    groups: int
    prompt: int = 256
    answer: int = 256


def sizes(s: Shape) -> tuple[int, int]:
    """Weights of the blocks, and of the head."""
    heads, kv = s.heads * s.head_width, s.kv_heads * s.head_width
    return s.layers * s.width * (2 * heads + 2 * kv + 3 * s.mlp_width), s.vocabulary * s.width


def forward(s: Shape, tokens: int, predicted: int, pairs: float) -> float:
    """FLOP of a forward pass over `tokens`, with logits of those `predicted`, that attend to `pairs` of tokens."""
    blocks, head = sizes(s)
    return 2 * (blocks * tokens + head * predicted) + 4 * s.layers * s.heads * s.head_width * pairs


def generation(s: Shape, w: Work, rates: dict[str, float]) -> float:
    """Seconds at least: each prompt is read once, then every step reads all weights and each row's keys and values."""
    cached = 2 * 2 * s.layers * s.kv_heads * s.head_width
    read = forward(s, w.groups * w.prompt, w.groups, w.groups * w.prompt**2 / 2) / rates["flops"]
    total = read
    for n in range(w.answer):
        length = w.prompt + n
        bytes_ = 2 * sum(sizes(s)) + w.rows * length * cached
        total += max(bytes_ / rates["bytes"], forward(s, w.rows, w.rows, w.rows * length) / rates["flops"])
    return total


def training(s: Shape, w: Work, references: int) -> float:
    """FLOP of a step on answers, each prompt forwarded once: forward and twice as much backward, and the passes of references."""
    tokens, answers = w.groups * w.prompt + w.rows * w.answer, w.rows * w.answer
    pairs = w.groups * w.prompt**2 / 2 + w.rows * (w.prompt * w.answer + w.answer**2 / 2)
    return (3 + references) * forward(s, tokens, answers, pairs)


def bounds(s: Shape, rates: dict[str, float]) -> dict[str, tuple[float, str, int]]:
    """Of each row: seconds at least, the bound that it is, and the tokens that are counted."""
    found: dict[str, tuple[float, str, int]] = {}
    for rows in (64, 256):
        w = Work(rows, rows)
        found[f"generation, {rows} rows"] = (generation(s, w, rates), "bytes", rows * w.answer)
    w = Work(64, 8)
    found["GRPO step, 8 x 8"] = (generation(s, w, rates) + training(s, w, 0) / rates["flops"], "bytes, then FLOP", w.rows * w.answer)
    w, counted = Work(2 * PAIRS, PAIRS), 2 * PAIRS * 512
    found["DPO step, reference in it"] = (training(s, w, 1) / rates["flops"], "FLOP", counted)
    found["DPO step, reference before"] = (training(s, w, 0) / rates["flops"], "FLOP", counted)
    return found


class Words:
    """Enough of a tokenizer: random prompts, and answers that never end."""

    stop = frozenset[int]()

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def encode_prompt(self, prompt: str) -> list[int]:
        """So many random tokens as the prompt's second word says, drawn with its first as the seed."""
        seed, length = map(int, prompt.split())
        return np.random.default_rng(seed).integers(0, self.vocabulary, length).tolist()

    def decode(self, tokens: list[int]) -> str:
        """Nothing is looked at."""
        return ""


def made(s: Shape, on: torch.device, train: bool) -> TextPolicy:
    """A policy with random weights."""
    generator = torch.Generator(on).manual_seed(0)
    with torch.device(on):
        model = Transformer(s, torch.bfloat16)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.02, generator=generator)
    model = model.to(on, torch.float32 if train else torch.bfloat16).requires_grad_(train)
    return TextPolicy(model, Words(s.vocabulary))  # pyright: ignore[reportArgumentType]


def timed(work: Callable[[], Any], on: torch.device, turns: int = 6) -> list[float]:
    """Seconds of each turn but the first."""
    found = []
    for _ in range(turns):
        if on.type == "cuda":
            torch.cuda.synchronize()
        since = time.perf_counter()
        work()
        if on.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - since)
    return found[1:]


def hardware(on: torch.device) -> dict[str, float]:
    """The rates of this GPU."""
    n = 8192 if on.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=on, dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(n * n * 8, device=on, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy, product = min(timed(lambda: target.copy_(source), on, 20)), min(timed(lambda: a @ b, on, 20))
    return {"bytes": 2 * 2 * source.numel() / copy, "flops": 2 * n**3 / product}


def measured(s: Shape, on: torch.device) -> dict[str, tuple[list[float], float]]:
    """Of each row: seconds of the turns, and the most GiB held."""
    found: dict[str, tuple[list[float], float]] = {}
    w = Work(64, 64) if on.type == "cuda" else Work(8, 8, 16, 16)
    big = on.type == "cuda"

    def note(name: str, work: Callable[[], Any]) -> None:
        if big:
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(work, on, 6 if big else 2)
        found[name] = seconds, torch.cuda.max_memory_allocated() / 2**30 if big else 0.0
        print(name, seconds, flush=True)

    policy = made(s, on, False)
    for rows in (64, 256) if big else (8,):
        requests = [engine.Request(tuple(policy.tokens.encode_prompt(f"{i} {w.prompt}")), i) for i in range(rows)]
        sampling = engine.Sampling(w.answer)
        note(f"generation, {rows} rows", lambda r=requests, s=sampling: engine.generate(policy.model, r, s, frozenset(), rows=len(r)))
    trained = made(s, on, True)
    tasks = [Task("bench", str(i), f"{i} {w.prompt}") for i in range(8 if big else 2)]

    class Paid:
        """Every other answer is right, so that every group teaches something."""

        def sample(self, tasks: list[Task], seed: int) -> list[Trajectory]:
            """Answers with their scores."""
            requests = [engine.Request(tuple(trained.tokens.encode_prompt(str(t.prompt))), i) for i, t in enumerate(tasks)]
            answers = trained.generate(requests, engine.Sampling(w.answer), len(tasks), lambda n: None)
            last = np.arange(w.answer) == w.answer - 1
            return [
                Trajectory(
                    t, "p", "", observations=np.array(r.prompt), actions=np.array(a.tokens), logprobs=np.array(a.logprobs),
                    rewards=(last * (i % 2)).astype(np.float32),
                )
                for i, (t, r, a) in enumerate(zip(tasks, requests, answers, strict=True))
            ]  # fmt: skip

        def sync(self) -> None:
            """Nothing to do."""

    parameters = list(trained.model.parameters())
    how = Optimisation(100, lr=1e-6, micro_tokens=8192)
    source = Attempts(trained, Paid(), lambda n: [t for t in tasks for _ in range(8 if big else 4)], 0)
    note("GRPO step, 8 x 8", GRPO(trained, source, parameters, how, Group()).step)
    pairs = PAIRS if big else 2
    chance = np.random.default_rng(0)

    def side(task: Task) -> tuple[Trajectory, ...]:
        prompt = np.array(trained.tokens.encode_prompt(str(task.prompt)))
        return (Trajectory(task, "p", "", observations=prompt, actions=chance.integers(0, s.vocabulary, w.answer)),)

    asked = [Comparison(side(t), side(t), preference=1.0, key=t.key) for t in (Task("b", str(i), f"{i} {w.prompt}") for i in range(pairs))]
    how = replace(how, batch_size=pairs)
    for name, when in (("DPO step, reference in it", "each"), ("DPO step, reference before", "once")):
        note(name, DPO(trained, policy, asked, parameters, how, when=when).step)
    return found


def main() -> None:
    """Measure what can be measured here, and write it beside the bounds."""
    tiny = "--tiny" in sys.argv[1:]
    on = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    if tiny:
        shape = Shape("qwen3", 512, 64, 2, 4, 2, 16, 128, 256, 1e-6, True, qk_norm=True)
        measured(shape, on)
        return
    here = on.type == "cuda"
    rates, found = (hardware(on), measured(QWEN3, on)) if here else (H100, {})
    machine = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        if here
        else "no GPU was at hand: bounds on paper, at the rates of an H100 80GB"
    )
    about = common.about("bench/gpu.py", machine)
    lines = [
        "# On one GPU, in the shape of Qwen3-0.6B", "", f"{about}.", "",
        f"Copying {rates['bytes'] / 1e12:.2f} TB/s, bfloat16 products {rates['flops'] / 1e12:.0f} TFLOP/s. Prompts and answers of 256 tokens; DPO on {PAIRS} pairs,",
        "tokens counted as TRL forwards them (each prompt twice). The bound is of what must be read or computed at least, each prompt once.", "",
        "| row | at least | that is | tokens/s at most | measured | tokens/s | of the bound | peak GiB |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, (least, kind, tokens) in bounds(QWEN3, rates).items():
        cells = [name, f"{least:.3f} s", kind, f"{tokens / least:,.0f}", *["not measured"] * bool(not found), *["-"] * 3 * bool(not found)]
        if found:
            seconds, peak = found[name]
            cells += [f"{median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})", f"{tokens / median(seconds):,.0f}"]
            cells += [f"{100 * least / median(seconds):.0f} %", f"{peak:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    common.publish("gpu", {"about": about, "rates": rates, "measured": json.loads(json.dumps(found))}, lines)


if __name__ == "__main__":
    main()
