"""The peers' side: `peer.py generate-ROWS|dpo|reward|grpo|ppo VARIANT`, with `transformers` and TRL in an environment of their own."""

import sys
import warnings
from typing import Any

import common

if sys.argv[1] == "ppo":  # the last TRL that has it
    sys.path.insert(0, common.TRL_WITH_PPO)

warnings.filterwarnings("ignore")
import datasets  # pyright: ignore[reportMissingImports]
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()

task, variant = common.arguments()
torch.set_num_threads(2)
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(common.MODEL)
tokenizer.pad_token = "<|endoftext|>"

VARIANTS = {
    "default": {},  # TRL's own: bfloat16 autocast and gradient checkpointing
    "float32": {"bf16": False, "gradient_checkpointing": False},
    "bfloat16": {"bf16": True, "gradient_checkpointing": False},
}


class Steps(TrainerCallback):
    """A turn is an optimizer step, with the data and the logging up to the next."""

    def __init__(self) -> None:
        self.clock, self.running = common.Clock(), False

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self.on_train_end()
        self.clock.start()
        self.running = True

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        if self.running:
            self.clock.stop()
        self.running = False


def rows(count: int) -> list[dict[str, str]]:
    """The pairs as text; a few tokens more or less after tokenising again are cut by max_length."""
    return [dict(zip(("prompt", "chosen", "rejected"), map(tokenizer.decode, x), strict=True)) for x in common.pairs(count)]


task, _, count = task.partition("-")
if task == "generate":
    dtype = getattr(torch, variant)
    model: Any = AutoModelForCausalLM.from_pretrained(common.MODEL, dtype=dtype).eval()
    chats = [[{"role": "user", "content": p}] for p in common.instructions(int(count))]
    tokenizer.padding_side = "left"
    texts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    how = {"do_sample": True, "top_k": 0, "max_new_tokens": common.NEW, "min_new_tokens": common.NEW}
    clock = common.Clock().time(lambda: model.generate(**batch, **how, pad_token_id=tokenizer.pad_token_id))
    common.emit(f"transformers {variant}", len(chats) * common.NEW, clock, ("transformers",))
elif task == "grpo":
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    steps = Steps()
    prompts = [{"prompt": text} for text in common.texts(common.GROUPS * common.TURNS, tokenizer.encode, tokenizer.decode)]
    how = GRPOConfig(
        output_dir="/tmp/rather-bench", per_device_train_batch_size=8, gradient_accumulation_steps=common.GROUPS * common.SIZE // 8,
        num_generations=common.SIZE, max_completion_length=common.NEW, generation_kwargs={"min_new_tokens": common.NEW}, max_steps=common.TURNS,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, learning_rate=1e-6, seed=0, logging_steps=1, **VARIANTS[variant],
    )  # fmt: skip
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(common.MODEL, dtype=torch.float32)
    trainer = GRPOTrainer(
        model=model, args=how, processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(prompts), callbacks=[steps],
        reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],
    )  # fmt: skip
    trainer.train()
    common.emit(f"TRL {variant}", common.GROUPS * common.SIZE * common.NEW, steps.clock, ("trl", "transformers"))
elif task == "ppo":
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]

    class Updates(TrainerCallback):
        """A turn is an update, with its generation."""

        clock = common.Clock()

        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            self.clock.start()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            self.clock.stop()
            if len(self.clock.wall) < common.TURNS:
                self.clock.start()

    def scorer() -> torch.nn.Module:
        """A model with one number at the end."""
        model = AutoModelForSequenceClassification.from_pretrained(common.MODEL, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    tokenizer.padding_side = "left"
    texts = common.texts(common.EPISODES * common.TURNS, tokenizer.encode, tokenizer.decode)
    prompts = [{"input_ids": tokenizer.encode(text)} for text in texts]
    data = datasets.Dataset.from_list(prompts)
    how = PPOConfig(
        output_dir="/tmp/rather-bench", per_device_train_batch_size=8, gradient_accumulation_steps=common.EPISODES // 8, num_mini_batches=1, num_ppo_epochs=1,
        local_rollout_forward_batch_size=common.EPISODES, response_length=common.NEW, total_episodes=common.EPISODES * common.TURNS, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, num_sample_generations=0, learning_rate=1e-6, seed=0, **VARIANTS[variant],
    )  # fmt: skip
    policy, reference = (AutoModelForCausalLM.from_pretrained(common.MODEL, dtype=torch.float32) for _ in range(2))
    trainer = PPOTrainer(
        args=how, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=scorer(), value_model=scorer(),
        train_dataset=data, eval_dataset=data.select(range(2)), callbacks=[Updates()],
    )  # fmt: skip
    trainer.train()
    common.emit(f"TRL 1.12.0 {variant}", common.EPISODES * common.NEW, Updates.clock, ("transformers",))
else:
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer  # pyright: ignore[reportMissingImports]

    shared = {
        "output_dir": "/tmp/rather-bench", "per_device_train_batch_size": common.PAIRS, "max_steps": common.TURNS, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-6, "seed": 0, "logging_steps": 1,
    }  # fmt: skip
    data = rows(common.PAIRS * common.TURNS)
    steps = Steps()
    length = common.PROMPT + common.ANSWER
    if task == "dpo":
        model = AutoModelForCausalLM.from_pretrained(common.MODEL, dtype=torch.float32)
        trainer = DPOTrainer(
            model=model, args=DPOConfig(**shared, max_length=length, **VARIANTS[variant]), processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(data), callbacks=[steps],
        )  # fmt: skip
    else:
        model = AutoModelForSequenceClassification.from_pretrained(common.MODEL, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
        joined = [{k: r["prompt"] + r[k] for k in ("chosen", "rejected")} for r in data]
        trainer = RewardTrainer(
            model=model, args=RewardConfig(**shared, max_length=None, **VARIANTS[variant]), processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(joined), callbacks=[steps],
        )  # fmt: skip
    counted = [0]
    inner = trainer.compute_loss

    def counting(model: object, inputs: dict, *args: object, **kwargs: object) -> object:
        counted[0] = int(inputs["attention_mask"].sum())
        return inner(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    trainer.train()
    common.emit(f"TRL {variant}", counted[0], steps.clock, ("trl", "transformers"))
