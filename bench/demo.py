"""How an example does on several seeds: `python bench/demo.py run demo 20 21 ...` runs them, one after the other.

The other examples that end in a win rate are `ppo` and `nudge`, which samples greedily, so that its columns "sampled" are greedy, too.
`blind demo 20 21 ...` then writes blind.md, twenty held-out prompts a seed with the whole sentences of base and policy in an order drawn at
random, and key.json. Mark each answer in marks-READER.txt, a line a prompt, `SEED NUMBER yes|no yes|no` (sensible or not, left and right), without
the key; `publish demo` puts it all together. A setting may follow the seeds: `run nudge 30 31 model.weights=q4`, then `publish nudge-q4`.
"""

import json
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from common import about, headline, publish
from rather.core import Comparison
from rather.judges.language import words
from rather.store import Store

FOLDER, READ = Path("runs/bench"), 20


def run(folder: Path, example: str, seed: int, settings: list[str]) -> None:
    """One run of the example and, after it, greedy against greedy; what was measured goes to SEED.json."""
    named = [f"src/rather/data/examples/{example}.toml", f"run.folder={folder}", f"run.name=seed-{seed}", f"run.seed={seed}", *settings]
    before, since = _cpu(), time.perf_counter()
    said = [_rather("loop", *named)]
    row = {"seed": seed, "cpu_s": _cpu() - before, "wall_s": time.perf_counter() - since, "sampled": _evaluated(folder, seed)}
    said.append(_rather("eval", *named, "sample.temperature=0"))
    row["greedy"] = _evaluated(folder, seed)
    (folder / f"{seed}.json").write_text(json.dumps(row))
    (folder / f"{seed}.log").write_text("\n".join(said))
    print(*said, sep="\n", flush=True)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rather(*arguments: str) -> str:
    command = [sys.executable, "-m", "rather", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _evaluated(folder: Path, seed: int) -> dict[str, Any]:
    lines = (folder / f"seed-{seed}/metrics.jsonl").read_text().splitlines()
    return next(row for row in map(json.loads, reversed(lines)) if row["phase"].startswith("eval-"))


def blind(folder: Path, seeds: list[int]) -> None:
    """The twenty prompts of each seed's report, with their answers in an order that only key.json knows."""
    lines, key, chance = [], {}, random.Random("blind")
    for seed in seeds:
        row = json.loads((folder / f"{seed}.json").read_text())["sampled"]
        asked = Store(str(folder / f"seed-{seed}/store.db")).answered(f"seed-{seed}", row["evaluation"]).comparisons
        for number, c in enumerate(asked[:: max(1, len(asked) // READ)][:READ]):
            sides = _sides(c)
            left = chance.choice(("policy", "base"))
            key[f"{seed} {number}"] = left
            shown = (left, "base" if left == "policy" else "policy")
            lines += [f"## {seed} {number}: {words(c.a[0].task.prompt or '')}", "", *(f"- {sides[who]}" for who in shown), ""]
    (folder / "blind.md").write_text("\n".join(lines))
    (folder / "key.json").write_text(json.dumps(key))


def _sides(c: Comparison) -> dict[str, str]:
    sides = {"base" if t.policy.endswith("@start") else "policy": t for t in (c.a[0], c.b[0])}
    return {who: json.dumps(_whole(t.text or ""), ensure_ascii=False) for who, t in sides.items()}


def _whole(text: str) -> str:
    """The whole sentences of an answer, if it has one: where an answer is cut off would tell whose it is."""
    ends = [
        found.end() for found in re.finditer(r"[.!?][\"'\u201d)\]*]*(?=\s|$)", text) if not re.search(r"(^|\s)\d+\.$", text[: found.end()])
    ]
    return text[: ends[-1]] if ends else text


def marked(path: Path) -> dict[int, dict[str, int]]:
    """Of each seed, how many answers of the policy and of the base model a reader has marked as sensible."""
    key = json.loads(path.with_name("key.json").read_text())
    sensible: dict[int, dict[str, int]] = {}
    for line in path.read_text().splitlines():
        seed, number, *marks = line.split()
        left = key[f"{seed} {number}"]
        for who, mark in zip((left, "base" if left == "policy" else "policy"), marks, strict=True):
            sensible.setdefault(int(seed), {"policy": 0, "base": 0})[who] += mark == "yes"
    return sensible


def results(folder: Path, example: str) -> None:
    """The table, with what was read, and the demo's headlines."""
    readers = [marked(path) for path in sorted(folder.glob("marks-*.txt"))]
    seeds = sorted(readers[0]) if readers else sorted(int(path.stem) for path in folder.glob("[0-9]*.json"))
    sensible = {seed: [reader[seed] for reader in readers] for seed in seeds}
    rows = [json.loads((folder / f"{seed}.json").read_text()) for seed in seeds]
    settings = (folder / "settings.txt").read_text().split()
    command = " ".join(["bench/demo.py run", example.partition("-")[0], *(str(r["seed"]) for r in rows), *settings])
    lines = [
        f"# The example `{example}` on several seeds",
        "",
        about(command, "SmolLM2-135M-Instruct, simulated panel"),
        "",
    ]
    if readers:
        lines += [
            f"Sensible: of {READ} held-out prompts, read blind by {len(readers)} readers, language models; in brackets the base model's. An answer is sensible that",
            "is coherent, on the subject, and does roughly what was asked, whether or not its facts are right. Readers saw whole sentences alone.",
            "",
        ]
    marks = " sensible |" if readers else ""
    lines += [
        "| seed | win rate | 95 % interval | greedy against greedy | nats a token, greedy | nats a token, sampled | words | answers that end "
        f"|{marks} CPU s |",
        "|---" * (9 + bool(readers)) + "|",
    ]
    for r in rows:
        s, g, read = r["sampled"], r["greedy"], sensible[r["seed"]]
        sensible_cell = f" {', '.join(str(x['policy']) for x in read)} ({', '.join(str(x['base']) for x in read)}) |" if read else ""
        lines.append(
            f"| {r['seed']} | {100 * s['win_rate']:.1f} % | {100 * s['win_rate_low']:.1f} to {100 * s['win_rate_high']:.1f} % "
            f"| {100 * g['win_rate']:.1f} % | {-g['nats_lost']:+.2f} | {-s['nats_lost']:+.2f} "
            f"| {s['length_policy']:.0f} ({s['length_base']:.0f}) | {100 * s['ended_policy']:.0f} % ({100 * s['ended_base']:.0f} %) "
            f"|{sensible_cell} {r['cpu_s']:.0f} |"
        )
    publish(example if example == "demo" else f"demo-{example}", {"rows": [r | {"sensible": sensible[r["seed"]]} for r in rows]}, lines)
    if example != "demo":
        return
    low = sorted((r["sampled"]["win_rate_low"] for r in rows), reverse=True)
    read = sorted((mean(x["policy"] for x in found) for found in sensible.values()), reverse=True)
    lost = sorted(r["greedy"]["nats_lost"] for r in rows)
    processors = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    machine = f"{len(processors)} x {processors[0]}"
    for name, values, unit in (("win_rate_low", low, "share"), ("sensible_of_20", read, "answers"), ("nats_lost", lost, "nats a token")):
        spread = [round(min(values), 3), round(max(values), 3)]
        headline(f"demo_{name}", round(values[min(3, len(values) - 1)], 3), spread, unit, command, machine)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", example, *seeds]:
            settings = [setting for setting in seeds if "=" in setting]
            folder = FOLDER / "-".join([example, *(setting.partition("=")[2] for setting in settings)])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "settings.txt").write_text(" ".join(settings))
            for seed in seeds[: len(seeds) - len(settings)]:
                run(folder, example, int(seed), settings)
        case ["blind", example, *seeds]:
            blind(FOLDER / example, [int(seed) for seed in seeds])
        case ["publish", example]:
            results(FOLDER / example, example)
        case _:
            sys.exit(__doc__)
