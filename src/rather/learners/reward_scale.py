"""How large rewards are: what PPO divides them by, so that its critic learns numbers near 1.

Shape letters: B trajectories or pieces of them, T actions (padded).
"""

import torch
from torch import Tensor

from rather.losses import gae

SMALLEST = 1e-4
"""Sums that differ by less than this share of their size are all the same, and rewards stay as they are."""


class RewardScale:
    """The standard deviation of the discounted sums of rewards to come, over all actions that it has seen.

    A sum ends where its row does, as a segment of an episode.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def see(self, rewards: Tensor, mask: Tensor, gamma: float) -> float:
        """Take rewards (B, T) into account; returns the standard deviation, or 1 where all sums have been the same."""
        ended = torch.ones(len(rewards), device=rewards.device)
        nothing = rewards.new_zeros(rewards.shape[0], rewards.shape[1] + 1)
        sums = gae(rewards, nothing, mask, ended, gamma, 1.0)[0][mask.bool()].double()
        count, mean = len(sums), float(sums.mean())
        total = self.count + count
        apart = mean - self.mean
        self.squares += float((sums - mean).square().sum()) + apart**2 * self.count * count / total  # Chan et al. 1979
        self.mean += apart * count / total
        self.count = total
        std = (self.squares / total) ** 0.5
        return std if std > SMALLEST * abs(self.mean) else 1.0

    def state_dict(self) -> list[float]:
        """All that it knows."""
        return [self.count, self.mean, self.squares]

    def load_state_dict(self, state: list[float]) -> None:
        """Take `state` back."""
        self.count, self.mean, self.squares = state
