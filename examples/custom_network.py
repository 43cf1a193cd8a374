"""PPO on Pendulum with networks of your own, paid by a reward function of your own.

python examples/custom_network.py [environment steps]
Expect a mean return of about -160 in the end (untrained: -1300), in 50 seconds of CPU time.
"""

import sys

import torch
from torch import nn

from rather import control

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
torch.manual_seed(0)  # of your networks' weights


class Residual(nn.Module):
    """Maps observations (B, 3) to (B, 1): Pendulum has one action dimension, and a critic says one value."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(observations))
        return self.last(hidden + torch.tanh(self.second(hidden)))


def reward(observation, action, next_observation) -> float:
    """Called for each step: the height of the tip, from -1 to 1, less what spinning and pushing cost."""
    height, _, speed = next_observation
    return height - 0.01 * speed**2 - 0.001 * action[0] ** 2


agent = control.PPO("Pendulum-v1", policy=Residual(), critic=Residual(), reward=reward, gamma=0.95)
print(f"untrained: mean return {agent.evaluate(20).mean:.0f}")
agent.train(steps)
mean, stderr = agent.evaluate(20)
print(f"trained: mean return {mean:.0f} +- {1.96 * stderr:.0f} by the environment's own reward")
