"""The peers' side of bench/gpu.py: `transformers` generates, TRL trains, on random weights in the same shape, each in a process of its own.

`python bench/peer_gpu.py generate|dpo|dpo-fast|grpo` prints a line of JSON: seconds of each turn, and the most GiB held. Whole steps are
timed, with what TRL itself does for the next batch and with its optimizer. "dpo-fast" is without gradient checkpointing.
"""

import json
import os
import sys
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback

ROWS, PAIRS, GROUPS, PROMPT, ANSWER, VOCABULARY = 64, 16, 8, 256, 256, 151_936


def model() -> Any:
    config = Qwen3Config(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128, intermediate_size=3072,
        vocab_size=VOCABULARY, tie_word_embeddings=True, max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        found = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    found.generation_config.eos_token_id, found.generation_config.pad_token_id = 1, 0
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}, unk_token="w2"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="w2", padding_side="left")


def words(count: int, seed: int) -> str:
    ids = torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in ids.tolist())


class Steps(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self.since = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.since)


def generate() -> list[float]:
    policy, seconds = model().eval(), list[float]()
    ids = torch.randint(3, VOCABULARY, (ROWS, PROMPT), device="cuda")
    for _ in range(3):
        torch.cuda.synchronize()
        since = time.perf_counter()
        with torch.no_grad():
            found = policy.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=True, top_k=0
            )
        assert found.shape == (ROWS, PROMPT + ANSWER)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - since)
    return seconds


def dpo(checkpointing: bool) -> list[float]:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]

    count, steps = 6, Steps()
    rows = range(count * PAIRS)
    data = {
        "prompt": [words(PROMPT, i) + " " for i in rows], "chosen": [words(ANSWER, 10**6 + i) for i in rows],
        "rejected": [words(ANSWER, 2 * 10**6 + i) for i in rows],
    }  # fmt: skip
    how = DPOConfig(
        output_dir="/tmp/peer", per_device_train_batch_size=PAIRS, max_steps=count, report_to=[], save_strategy="no", bf16=True,
        max_length=None, gradient_checkpointing=checkpointing, disable_tqdm=True,
    )  # fmt: skip
    given = {"args": how, "train_dataset": Dataset.from_dict(data), "processing_class": tokenizer(), "callbacks": [steps]}
    DPOTrainer(model=model(), ref_model=model(), **given).train()
    return steps.seconds


def grpo() -> list[float]:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    count, steps = 4, Steps()
    how = GRPOConfig(
        output_dir="/tmp/peer", per_device_train_batch_size=ROWS, num_generations=ROWS // GROUPS, max_completion_length=ANSWER,
        max_steps=count, report_to=[], save_strategy="no", bf16=True, disable_tqdm=True,
    )  # fmt: skip

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]

    data = Dataset.from_dict({"prompt": [words(PROMPT, i) for i in range(GROUPS * (count + 1))]})
    given = {"args": how, "train_dataset": data, "processing_class": tokenizer(), "callbacks": [steps]}
    GRPOTrainer(model=model(), reward_funcs=reward, **given).train()
    return steps.seconds


def main() -> None:
    what = sys.argv[1]
    work = {"generate": generate, "dpo": lambda: dpo(True), "dpo-fast": lambda: dpo(False), "grpo": grpo}[what]
    seconds, by = work(), f"transformers {transformers.__version__}"
    if what != "generate":
        import trl  # pyright: ignore[reportMissingImports]

        by = f"TRL {trl.__version__}"
    print(json.dumps({"by": by, "seconds": seconds[1:], "peak": torch.cuda.max_memory_allocated() / 2**30}))


if __name__ == "__main__":
    main()
