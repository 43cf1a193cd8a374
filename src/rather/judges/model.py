"""A reward model as a judge."""

from collections.abc import Sequence

import torch

from rather.core import Comparison, RewardModel, Trajectory
from rather.learners.common import Pairs, in_parts


class ModelJudge:
    """P(a better) = sigmoid(s_a - s_b), s the mean score of the ensemble."""

    kind = "reward-model"

    def __init__(self, name: str, model: RewardModel, micro_batch_tokens: int = 1536, batch_size: int = 16) -> None:
        self.name, self.model, self.micro_batch_tokens, self.batch_size = name, model, micro_batch_tokens, batch_size

    @torch.no_grad()
    def judge(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """An answer to each."""
        answers: list[float | None] = []
        for a, b in self.scores(comparisons):
            answers += torch.sigmoid(a - b).mean(0).tolist()
        return answers

    def each(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """Scores (K, N) of trajectories by themselves, by which questions are chosen (see `rather.pipeline.strategies`)."""
        padded = [*trajectories, *trajectories[-1:]] if len(trajectories) % 2 else trajectories
        found = self.scores([Comparison((a,), (b,)) for a, b in zip(padded[0::2], padded[1::2], strict=True)])
        both = [torch.cat([pair[side] for pair in found], 1) for side in (0, 1)]
        return torch.stack(both, -1).flatten(1)[:, : len(trajectories)]

    @torch.no_grad()
    def scores(self, comparisons: Sequence[Comparison]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Scores (K, n) of the sides a and b, batch after batch."""
        found = []
        for start in range(0, len(comparisons), self.batch_size):
            chosen = comparisons[start : start + self.batch_size]
            pairs = Pairs.of(self.model, [Comparison(c.a, c.b, 0.5) for c in chosen])
            (rows,) = in_parts(pairs.batch, self.micro_batch_tokens, lambda part: (self.model.scores(part).T,))
            found.append(pairs.scores(rows.T))
        return found
