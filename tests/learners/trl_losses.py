"""The losses of TRL's trainers on a batch of rows: `trl_peer.py` has the benchmarks' Python run this.

Reads {"model", "reference", "folder", "rows", "asked": {name: [trainer, settings]}} and writes {name: loss}.
"""

import json
import sys
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

TRAINERS: dict[str, Any] = {
    "dpo": (DPOTrainer, DPOConfig), "kto": (KTOTrainer, KTOConfig), "cpo": (CPOTrainer, CPOConfig), "orpo": (ORPOTrainer, ORPOConfig),
}  # fmt: skip


def loss(asked: dict[str, Any], trainer: str, settings: dict[str, Any]) -> float:
    kind, config = TRAINERS[trainer]
    rows = asked["rows"]
    args = config(
        output_dir=asked["folder"], per_device_train_batch_size=len(rows), report_to="none", use_cpu=True, bf16=False, max_length=None,
        gradient_checkpointing=False, **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    reference = {}
    if trainer in ("dpo", "kto"):
        reference["ref_model"] = AutoModelForCausalLM.from_pretrained(asked["reference"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.pad_token = tokenizer.unk_token
    made = kind(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **reference)
    (batch,) = made.get_train_dataloader()
    with torch.no_grad():
        return float(made.compute_loss(made.model, batch))


if __name__ == "__main__":
    told = json.load(sys.stdin)
    print("\n" + json.dumps({name: loss(told, *how) for name, how in told["asked"].items()}))
