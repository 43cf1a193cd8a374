"""Quantized weights beside bfloat16: `python bench/quantized.py`, SmolLM2-135M on one core; llama.cpp is beside them in `bench/cpu.py`.

Each decodes the same requests turn by turn, since a shared machine has moods; the first turn does not count. DPO trains an adapter. Memory
is what a process of its own holds at most while it loads the model and decodes once. KL is what the answers of the model in bfloat16 lose.
"""

import subprocess
import sys
import time
from statistics import mean, median

import torch

import rather
from common import MODEL, NEW, TURNS, about, headline, instructions, pairs, peak_gib, publish
from cpu import prepare, processor
from rather.text import engine
from rather.text.packing import pack
from rather.text.policy import TextPolicy

KINDS = ("auto", "int8", "q4")
ANSWERS = 200


def opened(kind: str) -> TextPolicy:
    """The model with such weights."""
    found = rather.load(MODEL, dtype="bfloat16", weights=kind, device="cpu")  # type: ignore[arg-type]
    assert isinstance(found, TextPolicy)
    return found


def decode(policy: TextPolicy, rows: int) -> float:
    """CPU seconds of `NEW` tokens in each of so many rows."""
    asked = [engine.Request(tuple(policy.tokens.encode_prompt(p)), i) for i, p in enumerate(instructions(rows))]
    since = time.process_time()
    engine.generate(policy.model, asked, engine.Sampling(NEW), frozenset(), rows=rows)
    return time.process_time() - since


def learner(policy: TextPolicy) -> rather.DPO:
    """DPO of an adapter."""
    decoded = [[policy.tokens.decode(x) for x in pair] for pair in pairs(4)]
    rows = [{"prompt": prompt, "chosen": a, "rejected": b} for prompt, a, b in decoded]
    return rather.DPO(policy, rather.comparisons(rows), batch_size=4, epochs=1000, adapter=rather.LoRA(rank=16))


def train(dpo: rather.DPO) -> float:
    """CPU seconds of a step."""
    since = time.process_time()
    dpo.step()
    return time.process_time() - since


@torch.no_grad()
def kl(policy: TextPolicy, texts: list[tuple[tuple[int, ...], list[int]]], expected: list[torch.Tensor]) -> list[float]:
    """Nats a token that each answer's next-token distributions are away from those `expected`."""
    found = []
    for (prompt, answer), before in zip(texts, expected, strict=True):
        after = logprobs(policy, prompt, answer)
        found.append(float((before.exp() * (before - after)).sum(-1).mean()))
    return found


@torch.no_grad()
def logprobs(policy: TextPolicy, prompt: tuple[int, ...], answer: list[int]) -> torch.Tensor:
    """Log-probabilities (T, V) before each token of an answer."""
    laid = pack([torch.tensor(prompt)], [torch.tensor(answer)], torch.bfloat16)
    hidden = policy.model(laid.ids, laid.positions, laid)[laid.before[0]]
    return policy.model.logits(hidden).float().log_softmax(-1)


def main() -> None:
    """Measure all kinds."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["peak"]:
        decode(opened(sys.argv[2]), 8)
        print(peak_gib())
        return
    prepare()
    policies = {kind: opened(kind) for kind in KINDS}
    learners = {kind: learner(policies[kind]) for kind in KINDS}
    taken = {}
    for what, work in {
        "1 row, tokens": lambda kind: decode(policies[kind], 1) / NEW,
        "8 rows, tokens": lambda kind: decode(policies[kind], 8) / NEW / 8,
        "DPO with LoRA, steps": lambda kind: train(learners[kind]),
    }.items():
        taken[what] = {kind: [] for kind in KINDS}
        for turn in range(2 * TURNS + 1):
            for kind in KINDS if turn % 2 else reversed(KINDS):
                taken[what][kind].append(work(kind))
    asked = [engine.Request(tuple(policies["auto"].tokens.encode_prompt(p)), i) for i, p in enumerate(instructions(8) * (ANSWERS // 8))]
    answers = engine.generate(policies["auto"].model, asked, engine.Sampling(NEW), policies["auto"].tokens.stop, rows=32)
    texts = [(r.prompt, a.tokens) for r, a in zip(asked, answers, strict=True)]
    expected = [logprobs(policies["auto"], *text) for text in texts]
    away = {kind: kl(policies[kind], texts, expected) for kind in KINDS[1:]}
    peaks = {kind: float(subprocess.check_output([sys.executable, __file__, "peak", kind], text=True).split()[-1]) for kind in KINDS}
    command = "bench/quantized.py"
    lines = [f"{about(command, processor())}, one thread; medians of {2 * TURNS} turns, ratios turn by turn with their range.", ""]
    lines += ["A folder in float32, quantized to Q8_0 and Q4_0 while it is read; bfloat16 is the same rounded.", ""]
    lines += ["| what | bfloat16 | int8 | q4 |", "|---|---|---|---|"]
    for what, of in taken.items():
        speeds = {kind: [1 / s for s in of[kind][1:]] for kind in KINDS}
        cells = [f"{median(speeds['auto']):.2f}"]
        for kind in KINDS[1:]:
            ratios = sorted(a / b for a, b in zip(speeds[kind], speeds["auto"], strict=True))
            if (what, kind) == ("1 row, tokens", "int8"):
                spread = [round(ratios[0], 2), round(ratios[-1], 2)]
                headline("q8_1_row_vs_bfloat16", round(median(ratios), 2), spread, "x", command, processor())
            cells.append(f"{median(speeds[kind]):.2f} ({median(ratios):.2f} x, {ratios[0]:.2f} to {ratios[-1]:.2f})")
        lines.append(f"| {what} a CPU second | {' | '.join(cells)} |")
    lines.append(f"| peak memory of a process that decodes 8 rows, GiB | {' | '.join(f'{peaks[kind]:.2f}' for kind in KINDS)} |")
    lines.append(
        f"| KL from bfloat16, nats a token, mean of {ANSWERS} answers | 0 | {' | '.join(f'{mean(away[k]):.4f}' for k in KINDS[1:])} |"
    )
    publish("quantized", {"cpu_s": taken, "peak_gib": peaks, "kl": away}, lines)


if __name__ == "__main__":
    main()
