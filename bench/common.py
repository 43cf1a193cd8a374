"""What both sides of a benchmark share: the work, the clock, and the line of JSON that a measurement prints.

This file needs the standard library alone (and tokens from the model folder), so that it runs in the peer's environment too.
"""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = Path("models/smollm2-bench")
PROMPTS, ANSWERS, NEW = 8, 4, 64
PAIRS, PROMPT, ANSWER = 4, 128, 128
REPEATS = 3


def instructions() -> list[str]:
    """The instructions of the generation benchmark."""
    lines = Path("src/rather/data/prompts.jsonl").read_text().splitlines()[:PROMPTS]
    return [json.loads(line)["prompt"] for line in lines]


def pairs(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt and two answers of the agreed lengths, random tokens: timing does not depend on what they say."""
    chance = random.Random(0)

    def draw(n: int) -> list[int]:
        return [chance.randrange(100, 40_000) for _ in range(n)]

    return [(draw(PROMPT), draw(ANSWER), draw(ANSWER)) for _ in range(count)]


def clock(work: Callable[[], Any], repeats: int = REPEATS, warm: int = 1) -> dict[str, list[float]]:
    """Wall and CPU seconds of each of `repeats` calls, after `warm` calls that do not count."""
    walls, cpus = [], []
    for i in range(warm + repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if i >= warm:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return {"wall_s": walls, "cpu_s": cpus}


def emit(name: str, tokens: int, seconds: dict[str, list[float]], packages: tuple[str, ...]) -> None:
    """Print a measurement: `tokens` is how many a call handles."""
    row = {
        "name": name, "tokens": tokens, **seconds, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": {p: version(p) for p in ("torch", *packages)},
    }  # fmt: skip
    print(json.dumps(row))


def arguments() -> tuple[str, str]:
    """The task and the variant on the command line; two threads that sleep when idle."""
    assert os.environ.get("OMP_WAIT_POLICY") == "PASSIVE"
    return sys.argv[1], sys.argv[2]
