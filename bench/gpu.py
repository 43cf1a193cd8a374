"""What one GPU does beside what it could do: generation, a GRPO step and a DPO step, on random weights in the shape of Qwen3-0.6B.

`python bench/gpu.py` measures the GPU's own copy and matrix rates first, then each row, and writes bench/results/gpu.{json,md} with the
bound on paper beside it: bytes that must be read over the copy rate, or FLOP over the matrix rate, whichever takes longer; and beside what
`transformers` and TRL take on the same card, where they are installed. Without a GPU it writes the bounds alone, for the rates of an H100 80GB. `--tiny` runs every row on the processor, to see that it runs.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

import common
from rather.core import Comparison, Perturbation, Task, Trajectory
from rather.kernels.quantized import Bits, quantize
from rather.kernels.quantized_rows import laid
from rather.learners.common import WITHOUT_GRADIENT, in_parts
from rather.learners.dpo import DPO
from rather.learners.grpo import GRPO
from rather.learners.rollouts import Rollouts
from rather.text import engine, lora
from rather.text.linear import Linear, QuantizedEmbedding, QuantizedLinear
from rather.text.policy import TextPolicy
from rather.text.shape import Shape
from rather.text.transformer import Transformer
from rather.zeroth.spaces.weights import LowRank

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


def generation(s: Shape, w: Work, rates: dict[str, float], blocks: float = 2, head: float = 2) -> float:
    """Seconds at least: each prompt is read once, then every step reads all weights, of so many bytes, and each row's keys and values."""
    cached = 2 * 2 * s.layers * s.kv_heads * s.head_width
    read = forward(s, w.groups * w.prompt, w.groups, w.groups * w.prompt**2 / 2) / rates["flops"]
    total = read
    for n in range(w.answer):
        length = w.prompt + n
        bytes_ = blocks * sizes(s)[0] + head * sizes(s)[1] + w.rows * length * cached
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
    for name, held in (("bfloat16", (2, 2)), ("int8", (34 / 32, 34 / 32)), ("q4", (18 / 32, 34 / 32))):
        for rows in (64, 1):
            w = Work(rows, rows)
            found[f"generation, {rows} row{'s' * (rows > 1)}, {name}"] = (generation(s, w, rates, *held), "bytes", rows * w.answer)
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


def quantized(policy: TextPolicy, bits: Bits) -> TextPolicy:
    """The policy with quantized weights, the head in 8 bits."""
    model = policy.model
    head = laid([quantize(model.unembedding.weight.detach(), 8)], model.device)
    for name, layer in [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear)]:
        held = head if name == "unembedding" else laid([quantize(layer.weight.detach(), bits)], model.device)
        model.set_submodule(name, QuantizedLinear(layer, held))
    model.set_submodule("embedding", QuantizedEmbedding(head, model.dtype))
    return policy


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


Found = dict[str, tuple[list[float], float]]
"""Of each row: seconds of the turns, and the most GiB held."""


class Bench:
    """What is measured, one row after the other."""

    def __init__(self, shape: Shape, on: torch.device) -> None:
        self.shape, self.on, self.big = shape, on, on.type == "cuda"
        self.work = Work(64, 8) if self.big else Work(8, 2, 16, 16)
        self.found: Found = {}
        self.facts: dict[str, float] = {}

    def note(self, name: str, work: Callable[[], Any], turns: int = 6) -> None:
        """Time a row."""
        if self.big:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(work, self.on, turns if self.big else 2)
        self.found[name] = seconds, torch.cuda.max_memory_allocated() / 2**30 if self.big else 0.0
        print(name, seconds, f"{self.found[name][1]:.1f} GiB", flush=True)

    def requests(self, policy: TextPolicy, rows: int, groups: int = 0) -> list[engine.Request]:
        """Prompts, all different or of so many groups."""
        prompts = [tuple(policy.tokens.encode_prompt(f"{i} {self.work.prompt}")) for i in range(groups or rows)]
        return [engine.Request(prompts[i * len(prompts) // rows], i, i) for i in range(rows)]

    def generation(self) -> None:
        """All rows plain, with a direction each, with an adapter, and with answers of uneven length."""
        policy, w = made(self.shape, self.on, False), self.work
        sampling = engine.Sampling(w.answer)
        sizes = (64, 256) if self.big else (8,)
        for rows in sizes:
            asked = self.requests(policy, rows)
            self.note(f"generation, {rows} rows", lambda r=asked: engine.generate(policy.model, r, sampling, frozenset(), rows=len(r)))
        space = LowRank(policy.model)
        for rows in sizes:
            asked = self.requests(policy, rows)
            several = space.several([Perturbation(i, 0.01) for i in range(rows)])
            answer = partial(engine.generate, policy.model, asked, sampling, frozenset(), rows=rows, several=several)
            self.note(f"generation, {rows} rows, a direction each", answer, 4)
        for p in lora.add(policy.model, "policy", 16, 32.0, 0):
            p.data = 0.01 * torch.randn_like(p)
        asked = self.requests(policy, sizes[0])
        adapted = partial(engine.generate, policy.model, asked, sampling, frozenset(), "policy", rows=len(asked))
        self.note(f"generation, {sizes[0]} rows, LoRA of rank 16", adapted, 4)
        self.uneven(policy)

    def quantized(self) -> None:
        """All rows plain and one alone, with weights in bfloat16, in 8 bits and in 4."""
        kinds: tuple[tuple[str, Bits | None], ...] = ("bfloat16", None), ("int8", 8), ("q4", 4)
        for name, bits in kinds:
            policy = made(self.shape, self.on, False)
            policy = quantized(policy, bits) if bits else policy
            for rows in (self.work.rows, 1):
                if bits or rows == 1:  # bfloat16 with many rows is measured before
                    asked, sampling = self.requests(policy, rows), engine.Sampling(self.work.answer)
                    answer = partial(engine.generate, policy.model, asked, sampling, frozenset(), rows=rows)
                    self.note(f"generation, {rows} row{'s' * (rows > 1)}, {name}", answer, 4)

    def uneven(self, policy: TextPolicy) -> None:
        """The share of computed rows that became a token, where one token in so many ends an answer: lengths are geometric."""
        made_, inner = [0], engine.Recorded.go

        def counting(work: engine.Recorded, n: int, most: int) -> engine.Drawn:
            newest = inner(work, n, most)
            made_[0] += len(newest[0][0]) * min(size for size in work.graphs if size >= n)
            return newest

        engine.Recorded.go = counting  # type: ignore[method-assign]
        asked, most = self.requests(policy, 4 * self.work.rows), 4 * self.work.answer
        stop = frozenset(range(0, self.shape.vocabulary, self.work.answer // 2))
        answers = engine.generate(policy.model, asked, engine.Sampling(most), stop, rows=self.work.rows)
        engine.Recorded.go = inner  # type: ignore[method-assign]
        if made_[0]:
            self.facts["useful share of rows"] = sum(len(a.tokens) - 1 for a in answers) / made_[0]

    def grpo(self) -> None:
        """Steps of 8 groups of 8, all weights trained: as fast as can be, and in little memory."""
        trained, w = made(self.shape, self.on, True), self.work
        tasks = [Task("bench", str(i), f"{i} {w.prompt}") for i in range(w.groups)]
        source = Rollouts(trained, Paid(trained, w.answer), lambda n: [t for t in tasks for _ in range(w.rows // w.groups)], 0)
        learner = GRPO(
            trained, source=source, parameters=list(trained.model.parameters()), steps=100, lr=1e-6, schedule="constant",
            micro_batch_tokens=9216,  # four groups
        )  # fmt: skip
        self.note("GRPO step, 8 x 8", learner.step)
        self.note("of it sampling", lambda: source.collect(0))
        batch = source.collect(0)
        (logprobs,) = in_parts(batch, 9216 // WITHOUT_GRADIENT, lambda part: trained.evaluate(part)[:1])
        apart = (logprobs - batch.logprobs).abs()[batch.mask.bool()]
        self.facts |= {"sampler and learner apart, at most": float(apart.max()), "sampler and learner apart, mean": float(apart.mean())}
        trained.model.checkpointing, learner.how = True, learner.how.model_copy(update={"micro_batch_tokens": 4608})  # two
        self.note("GRPO step, 8 x 8, checkpointing", learner.step)

    def dpo(self) -> None:
        """Steps on pairs, whole and without the optimizer."""
        trained, reference, w = made(self.shape, self.on, True), made(self.shape, self.on, False), self.work
        pairs, chance, parameters = PAIRS if self.big else 2, np.random.default_rng(0), list(trained.model.parameters())

        def side(task: Task) -> tuple[Trajectory, ...]:
            prompt = np.array(trained.tokens.encode_prompt(str(task.prompt)))
            return (Trajectory(task, "p", "", observations=prompt, actions=chance.integers(0, self.shape.vocabulary, w.answer)),)

        tasks = [Task("bench", str(i), f"{i} {w.prompt}") for i in range(pairs)]
        asked = [Comparison(side(t), side(t), preference=1.0, key=t.key) for t in tasks]
        whens: tuple[Literal["each", "once"], ...] = "each", "once"
        for name, when in zip(("DPO step, reference in it", "DPO step, reference before"), whens, strict=True):
            learner = DPO(
                trained, asked, reference, parameters, reference_logprobs=when, steps=100, batch_size=pairs, lr=1e-6, schedule="constant",
                micro_batch_tokens=12288,  # all of them
            )  # fmt: skip
            self.note(name, learner.step, 11)
            learner.stepper.step = partial(forget, parameters)  # type: ignore[method-assign]
            self.note(f"{name}, no optimizer", learner.step, 11)


class Paid:
    """Every other answer is right, so that every group teaches something."""

    def __init__(self, policy: TextPolicy, length: int) -> None:
        self.policy, self.length = policy, length

    def sample(self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None) -> list[Trajectory]:
        """Answers with their scores."""
        requests = [engine.Request(tuple(self.policy.tokens.encode_prompt(str(t.prompt))), i) for i, t in enumerate(tasks)]
        answers = self.policy.answer(requests, engine.Sampling(self.length), len(tasks), lambda n: None)
        last = np.arange(self.length) == self.length - 1
        return [
            Trajectory(
                t, "p", "", observations=np.array(r.prompt), actions=np.array(a.tokens), logprobs=np.array(a.logprobs),
                rewards=(last * (i % 2)).astype(np.float32),
            )
            for i, (t, r, a) in enumerate(zip(tasks, requests, answers, strict=True))
        ]  # fmt: skip

    def sync(self) -> None:
        """Nothing to do."""


def forget(parameters: list[torch.nn.Parameter], loss: torch.Tensor) -> dict[str, float]:
    """In the place of the optimizer's step: read the loss, and let the gradients go."""
    for p in parameters:
        p.grad = None
    return {"loss": float(loss)}


def cold() -> float:
    """Seconds from the start of a process to the first tokens of 64 rows, with nothing compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        since = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--first"], check=True, env=os.environ | {"TRITON_CACHE_DIR": folder})
        return time.perf_counter() - since


def first() -> None:
    """Make the model, and draw a few tokens."""
    policy = made(QWEN3, torch.device("cuda"), False)
    asked = Bench(QWEN3, torch.device("cuda")).requests(policy, 64)
    engine.generate(policy.model, asked, engine.Sampling(32), frozenset(), rows=64)


PEERS = {
    "generation, 64 rows": "generate", "GRPO step, 8 x 8": "grpo", "DPO step, reference in it": "dpo",
    "DPO step, reference in it, no checkpointing": "dpo-fast",
}  # fmt: skip


def peers() -> dict[str, Any]:
    """What `transformers` and TRL take, where they are installed."""
    found: dict[str, Any] = {}
    for row, what in PEERS.items():
        ran = subprocess.run([sys.executable, "bench/peer_gpu.py", what], capture_output=True, text=True, check=False)
        if ran.returncode:
            print(f"{row}: {ran.stderr.strip()[-300:]}", flush=True)
            continue
        found[row] = json.loads(ran.stdout.strip().splitlines()[-1])
        print("peer", row, found[row], flush=True)
    return found


def main() -> None:
    """Measure what can be measured here, and write it beside the bounds."""
    given = sys.argv[1:]
    on = torch.device("cuda" if torch.cuda.is_available() and "--tiny" not in given else "cpu")
    if "--first" in given:
        return first()
    shape = Shape("qwen3", 512, 64, 2, 4, 2, 16, 128, 256, 1e-6, True, qk_norm=True) if "--tiny" in given else QWEN3
    bench, here = Bench(shape, on), on.type == "cuda"
    rates = hardware(on) if here else H100
    if here or "--tiny" in given:
        for part in (bench.generation, bench.quantized, bench.grpo, bench.dpo):
            part()
    if "--tiny" in given:
        return None
    others: dict[str, Any] = {}
    if here:
        gc.collect()
        torch.cuda.empty_cache()
        bench.facts["seconds from a cold start to the first tokens"] = cold()
        others = peers()
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
        "| row | at least | that is | measured | tokens/s | of the bound | peak GiB |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    known = bounds(QWEN3, rates)
    for name in bench.found or known:
        least, kind, tokens = known.get(name) or known.get(name.rpartition(",")[0]) or (0.0, "-", 0)
        cells = [name, f"{least:.3f} s" if least else "-", kind]
        if bench.found:
            seconds, peak = bench.found[name]
            cells += [f"{median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"]
            cells += [f"{tokens / median(seconds):,.0f}", f"{100 * least / median(seconds):.0f} %"] if least else ["-", "-"]
            cells += [f"{peak:.1f}"]
        else:
            cells += ["not measured", f"at most {tokens / least:,.0f}", "-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- {name}: {value:.4g}" for name, value in bench.facts.items())]
    if others:
        lines += [
            "",
            "The peers on the same card, whole steps:",
            "",
            "| row | by | measured | peak GiB | ours is faster by |",
            "|---|---|---|---|---|",
        ]
    for row, peer in others.items():
        ours = median(bench.found[row if row in bench.found else row.rpartition(",")[0]][0])
        took = median(peer["seconds"])
        lines.append(
            f"| {row} | {peer['by']} | {took:.3f} s ({min(peer['seconds']):.3f} to {max(peer['seconds']):.3f}) | {peer['peak']:.1f} | {took / ours:.1f} x |"
        )
    common.publish("gpu", {"about": about, "rates": rates, "measured": bench.found, "facts": bench.facts, "peers": others}, lines)
    return None


if __name__ == "__main__":
    main()
