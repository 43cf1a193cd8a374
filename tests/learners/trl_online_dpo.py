"""TRL's own step of online DPO on given answers; run by the benchmarks' Python, with a JSON object as input."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from trl.experimental.online_dpo import OnlineDPOTrainer


def main() -> None:
    """Write the loss and the norm of its gradient."""
    given = json.load(sys.stdin)
    policy, reference = (AutoModelForCausalLM.from_pretrained(given[name], dtype=torch.float32) for name in ("policy", "reference"))

    def padded(rows: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, rows))
        empty = [[0] * (longest - len(row)) for row in rows]
        ids = [e + row if left else row + e for row, e in zip(rows, empty, strict=True)]
        mask = [[0] * len(e) + [1] * len(row) if left else [1] * len(row) + [0] * len(e) for row, e in zip(rows, empty, strict=True)]
        return torch.tensor(ids), torch.tensor(mask)

    pairs: list[dict[str, Any]] = given["pairs"]
    prompts = padded([pair["prompt"] for pair in pairs] * 2, True)
    completions = padded([pair[side] for side in ("a", "b") for pair in pairs], False)
    rewards = torch.tensor([pair["preference"] for pair in pairs] + [1 - pair["preference"] for pair in pairs])
    stats: Any = type("Stats", (dict,), {"__missing__": lambda self, key: self.setdefault(key, [])})()
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(
            use_vllm=False, missing_eos_penalty=None, loss_type=given["loss"], torch_empty_cache_steps=None, optim="adamw_torch", n_gpu=1,
            gradient_accumulation_steps=1,
        ),
        model=policy, ref_model=reference, beta=given["beta"], eos_token_ids=[0], max_length=10_000, stats=stats,
        reward_funcs=["judge"], processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, backward=lambda loss: loss.backward()),
        _generate=lambda model, prompts_, images: (*prompts, *completions, None),
        _calculate_rewards_from_functions=lambda **_: rewards,
    )  # fmt: skip
    trainer._forward = OnlineDPOTrainer._forward.__get__(trainer)
    policy.train(False)
    policy.train = lambda: policy  # no dropout either way
    loss = OnlineDPOTrainer.training_step(trainer, policy, {"prompt": [""] * len(pairs)})
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    json.dump({"loss": float(loss), "grad_norm": float(norm)}, sys.stdout)


if __name__ == "__main__":
    main()
