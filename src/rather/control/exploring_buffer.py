"""A replay buffer whose steps are rewarded when they are drawn: by how new the states are that they led to.

Shape letters: T steps in the buffer, N environments, B steps that are drawn, I numbers of an observation.
"""

from typing import Any

import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from rather.control.state_entropy import StateEntropy


class ExploringBuffer(ReplayBuffer):
    """Draws steps with the rewards of `entropy` among all states in the buffer; the environment's own rewards stay in it, unseen."""

    def __init__(self, *given: Any, entropy: StateEntropy, **named: Any) -> None:
        super().__init__(*given, **named)
        self.entropy = entropy

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Steps that are drawn at random, rewarded (B, 1) as of now."""
        drawn = super().sample(batch_size, env)
        visited = torch.from_numpy(self.next_observations[: self.size()].reshape(-1, drawn.next_observations.shape[1]))
        return drawn._replace(rewards=self.entropy.among(drawn.next_observations, visited)[:, None])
