"""What files cost: `python bench/edges.py` imports 100,000 comparisons, asks for the status and exports them again.

Each command is a process of its own, as a user runs it, imports of Python included: CPU seconds and peak memory, three turns.
It exits with 1 where the median of the seconds or the most memory is above its limit.
"""

import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import about, headline, publish

PAIRS, TURNS = 100_000, 3
LIMITS = {"import": (20, None), "status": (2, None), "export": (10, 300)}
"""CPU seconds and MiB that each is meant to stay below."""


def write_pairs(path: Path) -> float:
    """A JSONL file of random English-like answers; returns its size in MB."""
    chance = random.Random(0)
    words = [json.loads(line)["prompt"] for line in Path("src/rather/data/prompts.jsonl").read_text().splitlines()]
    words = sorted({word for prompt in words for word in prompt.split()})

    def text(count: int) -> str:
        return " ".join(chance.choices(words, k=count))

    with path.open("w") as file:
        for number in range(PAIRS):
            file.write(json.dumps({"prompt": f"{number}: {text(12)}", "chosen": text(28), "rejected": text(28)}) + "\n")
    return path.stat().st_size / 1e6


def measure(folder: Path, *arguments: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of one command."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        subprocess.run([sys.executable, "-m", "rather", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        os.write(write, json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]).encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"rather {' '.join(arguments)} failed")
    seconds, mib = json.loads(os.read(read, 1000))
    return seconds, mib


def main() -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LIMITS}
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = write_pairs(folder / "pairs.jsonl")
            (folder / "run.toml").write_text("")
            found["import"].append(measure(folder, "import", "run.toml", "pairs.jsonl"))
            found["status"].append(measure(folder, "status", "run.toml"))
            found["export"].append(measure(folder, "export", "run.toml", "out.jsonl"))
    where = f"Python {platform.python_version()}, {platform.processor() or platform.machine()}, {os.cpu_count()} processors"
    rows, above = [], []
    for name, (seconds, mib) in LIMITS.items():
        cpu, peak = zip(*found[name], strict=True)
        rows.append(
            f"| `rather {name}` | {median(cpu):.1f} ({min(cpu):.1f} to {max(cpu):.1f}) | {seconds} | {max(peak):.0f} | {mib or ''} |"
        )
        if median(cpu) > seconds or (mib and max(peak) > mib):
            limit = f"{seconds} CPU s" + (f" and {mib} MiB" if mib else "")
            above.append(f"rather {name} took {median(cpu):.2f} CPU s and {max(peak):.0f} MiB; it may take {limit}")
        called = f"{name}_100k_{'cpu_s' if name == 'import' else 's'}"
        headline(called, round(median(cpu), 1), [round(min(cpu), 1), round(max(cpu), 1)], "CPU s", "bench/edges.py", where)
    publish(
        "edges",
        {"pairs": PAIRS, "megabytes": size, "cpu_s_and_mib": found},
        [
            "# Files in and out",
            "",
            f"{about('bench/edges.py', where)}; {PAIRS:,} comparisons, {size:.0f} MB of JSONL, SQLite; median of {TURNS} turns (least to most).",
            "",
            "| command | CPU s | at most | peak MiB | at most |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )
    if above:
        sys.exit("\n".join(above))


if __name__ == "__main__":
    main()
