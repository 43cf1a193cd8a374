"""How observations are scaled.

Shape letters: N observations, I inputs.
"""

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Observations minus their running mean, over their running standard deviation, cut at `LIMIT`; saved with whoever uses it.

    It learns from `update` alone, so that a policy stays the same while it acts and while it is evaluated.
    """

    LIMIT = 10.0

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, observations: Tensor) -> None:
        """Take (N, I) into account (Chan et al. 1979)."""
        new, n = observations.double(), len(observations)
        mean, total = new.mean(0), self.count + n
        shift = mean - self.mean
        self.square += (new - mean).square().sum(0) + shift.square() * self.count * n / total
        self.mean += shift * n / total
        self.count.copy_(total)

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (I,), float64; 0 and 1 before anything was seen."""
        if self.count == 0:
            return self.mean, torch.ones_like(self.mean)
        return self.mean, (self.square / self.count).sqrt().clamp(min=1e-4)

    def forward(self, observations: Tensor) -> Tensor:
        if self.count == 0:
            return observations.float()
        mean, std = self.scale()
        return ((observations - mean.float()) / std.float()).clamp(-self.LIMIT, self.LIMIT)
