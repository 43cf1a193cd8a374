"""What learners share: the order of the data, pairs of sides as rows of a batch, and the optimiser's step.

Shape letters: B trajectories, N comparisons, K ensemble members.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rather.core import Batch, Comparison, Trajectory
from rather.errors import TrainingError


class Model(Protocol):
    """What a learner trains: it collates trajectories, and goes to disk and back."""

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch: ...

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Optimisation:
    """How to optimise: `steps` steps of AdamW on `batch_size` items, the learning rate warmed up and then scheduled.

    A batch is forwarded and backwarded in parts of about `micro_tokens` actions, which bounds memory and changes no gradient.
    """

    steps: int
    batch_size: int = 8
    lr: float = 1e-4
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    micro_tokens: int = 1024
    seed: int = 0

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        if self.schedule == "linear":
            return 1 - progress
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0


class Order:
    """Goes through `count` items again and again, in a new order each time: the place of epoch e depends on e and the seed alone."""

    def __init__(self, count: int, seed: int) -> None:
        if not count:
            raise TrainingError("there is nothing to learn from: the run has no labels yet; run `rather label` first")
        self.count, self.seed, self.place = count, seed, 0

    def take(self, wanted: int) -> list[int]:
        """The next `wanted` items; fewer than `count` of them are all different."""
        taken = []
        for place in range(self.place, self.place + wanted):
            epoch, index = divmod(place, self.count)
            taken.append(self._shuffled(epoch)[index])
        self.place += wanted
        return taken

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.count, generator=generator).tolist()


class Stepper:
    """AdamW with its schedule: `step` clips, checks, moves and clears the gradients."""

    def __init__(self, parameters: Sequence[nn.Parameter], how: Optimisation) -> None:
        self.parameters, self.how, self.steps = list(parameters), how, 0
        self.optimiser = torch.optim.AdamW(self.parameters, lr=how.lr, weight_decay=how.weight_decay, betas=(0.9, 0.999), fused=True)

    def step(self, loss: float) -> dict[str, float]:
        """Move by the gradients that have been gathered.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.how.max_grad_norm).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"loss {loss}, gradient norm {norm}"
            raise TrainingError(f"step {self.steps + 1} is not finite ({what}); lower train.lr (now {self.how.lr:g})")
        lr = self.how.lr * self.how.factor(self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        return {"loss": loss, "grad_norm": norm, "lr": lr}

    def state_dict(self) -> dict[str, Any]:
        """Moments and the number of steps."""
        state = self.optimiser.state_dict()["state"]
        return {"steps": self.steps, "moments": [state[i] for i in range(len(state))]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.steps = state["steps"]
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": dict(enumerate(state["moments"])), "param_groups": groups})


@dataclass(frozen=True)
class Pairs:
    """N comparisons as rows of one batch: `sides` (B,) says which of the 2 N sides a row belongs to (2 i: a, 2 i + 1: b)."""

    batch: Batch
    sides: Tensor
    preference: Tensor

    @classmethod
    def of(cls, model: Model, comparisons: Sequence[Comparison]) -> "Pairs":
        """Collate comparisons that have a preference."""
        rows, sides = [], []
        for i, comparison in enumerate(comparisons):
            for offset, side in enumerate((comparison.a, comparison.b)):
                rows += side
                sides += [2 * i + offset] * len(side)
        batch = model.collate(rows)
        device = batch.mask.device
        preference = torch.tensor([c.preference for c in comparisons], device=device, dtype=torch.float32)
        return cls(batch, torch.tensor(sides, device=device), preference)

    def __len__(self) -> int:
        return len(self.preference)

    def split(self, tokens: int) -> Iterator[tuple["Pairs", slice]]:
        """Parts of whole comparisons with at most about `tokens` actions each, and which rows they are."""
        counts = torch.zeros(2 * len(self), dtype=torch.float32, device=self.sides.device)
        counts = counts.index_add(0, self.sides, self.batch.mask.sum(-1)).view(-1, 2).sum(-1).tolist()
        ends, used = [], 0.0
        for i, count in enumerate(counts):
            if used and used + count > tokens:
                ends.append(i)
                used = 0.0
            used += count
        for start, end in zip([0, *ends], [*ends, len(self)], strict=True):
            first, last = torch.searchsorted(self.sides, torch.tensor([2 * start, 2 * end], device=self.sides.device)).tolist()
            rows = slice(first, last)
            yield Pairs(self.batch.select(rows), self.sides[rows] - 2 * start, self.preference[start:end]), rows

    def scores(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the sides a and b, (..., N) each, from the scores (..., B) of the rows: the mean of each side."""
        total = rows.new_zeros(*rows.shape[:-1], 2 * len(self)).index_add(-1, self.sides, rows)
        counts = torch.bincount(self.sides, minlength=2 * len(self))
        mean = total / counts
        return mean[..., 0::2], mean[..., 1::2]


def agreement(scores_a: Tensor, scores_b: Tensor, preference: Tensor) -> Tensor:
    """Which comparisons the scores order as the preference does, (N,) in {0, 1}; NaN where the preference is a tie."""
    right = ((scores_a > scores_b) == (preference > 0.5)).float()
    return torch.where(preference == 0.5, torch.nan, right)


class Means:
    """Means of several quantities over all parts of a batch, weighted by counts; NaN entries are left out."""

    def __init__(self) -> None:
        self.totals: dict[str, list[float]] = {}

    def add(self, **values: Tensor) -> None:
        """Add every entry of each tensor."""
        for name, tensor in values.items():
            known = tensor.detach()[~tensor.detach().isnan()]
            total = self.totals.setdefault(name, [0.0, 0.0])
            total[0] += known.sum().item()
            total[1] += known.numel()

    def result(self) -> dict[str, float]:
        """The means; a quantity without entries is left out."""
        return {name: total / count for name, (total, count) in self.totals.items() if count}
