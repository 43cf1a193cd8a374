"""What it costs that every row answers under a direction of its own: 32 policies, two prompts each, in one pass.

`python bench/directions.py` writes bench/results/directions.{json,md}. "plain": the same rows without directions; "one by one": each policy's
weights put together before it answers, as is done where directions are written into the weights; eight of the policies, for want of
patience.
"""

import os
import sys
import time
from statistics import median

import common
from cpu import Side, prepare, processor

POLICIES, PROMPTS, NEW = 32, 2, 48
PAIRS = [("steering", "plain"), ("low_rank", "plain"), ("lora", "plain"), ("low_rank", "one_by_one"), ("steering", "one_by_one")]


def child(variant: str) -> None:
    """One variant, a turn whenever it is told to."""
    import torch

    from rather.core import Perturbation
    from rather.text import engine, load, lora
    from rather.text.policy import TextPolicy
    from rather.zeroth.spaces.steering import steering
    from rather.zeroth.spaces.weights import Factors, LowRank, Weights

    torch.set_num_threads(2)
    policy = load.policy(common.MODEL, torch.device("cpu"), load.dtype("auto", torch.device("cpu")), variant == "one_by_one", 1.0)
    prompts = [tuple(policy.tokens.encode_prompt(p)) for p in common.instructions(PROMPTS)]
    assert isinstance(policy, TextPolicy)
    policies = POLICIES // 4 if variant == "one_by_one" else POLICIES
    twins: list[Perturbation | None] = [Perturbation(k // 2, 0.002 * (-1) ** k) for k in range(policies)]
    match variant:
        case "steering":
            policy.space = steering(policy.model, prompts)
        case "low_rank":
            policy.space = LowRank(policy.model)
        case "lora":
            lora.add(policy.model, "policy", 1, 1.0, 0)
            policy.adapter, policy.space = "policy", Factors(policy.model, "policy")
        case "one_by_one":
            policy.space = Weights(policy.model)
        case _:
            twins = [None]
    requests = [engine.Request(p, i, k % len(twins)) for k in range(policies) for i, p in enumerate(prompts)]
    policy.tokens.stop = frozenset()
    how = engine.Sampling(NEW)
    first = engine.Sampling(1)
    whole, reading = common.Clock(), list[float]()
    for _ in range(common.TURNS):
        whole.start()
        policy.answer(requests, how, len(requests), lambda n: None, twins)
        whole.stop()
        since = time.process_time()
        policy.answer(requests, first, len(requests), lambda n: None, twins)
        reading.append(time.process_time() - since)
    common.emit(variant, len(requests) * NEW, whole, ("rather",), reading_cpu_s=reading[1:])


class Ours(Side):
    """A variant in a process of its own."""

    def __init__(self, variant: str) -> None:
        self.begin([sys.executable, __file__, "--one", variant], os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"})


def compare(name: str, beside: str) -> tuple[dict, str]:
    """A variant and what it is measured beside, turn by turn."""
    sides = [Ours(name), Ours(beside)]
    for _ in range(common.TURNS):
        for side in sides:
            side.turn()
    a, b = (side.row for side in sides)
    cells = [name, beside]
    for read in (0, 1):  # with the reading of prompts, and without
        seconds = [[s - read * r for s, r in zip(row["cpu_s"], row["reading_cpu_s"], strict=True)] for row in (a, b)]
        ratios = [(a["tokens"] / x) / (b["tokens"] / y) for x, y in zip(*seconds, strict=True)]
        cells += [f"{median(row['tokens'] / s for s in each):.0f}" for row, each in zip((a, b), seconds, strict=True)]
        cells.append(f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})")
    line = "| " + " | ".join([*cells, f"{a['peak_gib']:.2f}", f"{b['peak_gib']:.2f}"]) + " |"
    print(line, flush=True)
    return {"side": a, "beside": b}, line


def main() -> None:
    """Measure all."""
    prepare()
    found = [compare(*pair) for pair in PAIRS]
    about = common.about("bench/directions.py", f"{processor()}, two threads")
    lines = [
        "# A direction a row", "", f"{about}.", "",
        f"SmolLM2-135M in the processor's own precision; {POLICIES} policies (mirrored pairs), {PROMPTS} prompts each, {NEW} tokens, in one pass; medians of",
        f"{common.TURNS - 1} turns, ratios of neighboring turns. Plain generation reads each prompt once; policies that differ read it for themselves (steered ones from",
        "the first steered layer on): what an answer's length divides. So the ratio without reading stands beside the whole.", "",
        "| directions | beside | tokens a CPU second | its | ratio | decoding alone | its | ratio | peak GiB | its |", "|---" * 10 + "|", *(line for _, line in found),
    ]  # fmt: skip
    common.publish("directions", {"about": about, "rows": [row for row, _ in found]}, lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        child(sys.argv[2])
    else:
        main()
