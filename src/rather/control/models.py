"""Policies and critics for control: observations go in as flat vectors, a Discrete one as one-hot.

Shape letters: B trajectories, T actions (padded), N observations, I inputs, A action dimensions or choices.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rather.core import Batch, Trajectory
from rather.errors import ConfigError


class Normaliser(nn.Module):
    """Observations minus their running mean, over their running deviation, cut at 10; saved with whoever uses it.

    It learns from `update` alone, so that a policy stays the same while it acts and while it is evaluated.
    """

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

    def forward(self, observations: Tensor) -> Tensor:
        if self.count == 0:
            return observations
        deviation = (self.square / self.count).sqrt().clamp(min=1e-4)
        return ((observations - self.mean.float()) / deviation.float()).clamp(-10, 10)


def perceptron(inputs: int, hidden: Sequence[int], outputs: int, gain: float, generator: torch.Generator) -> nn.Sequential:
    """Tanh layers with orthogonal weights, the last one scaled by `gain`; no `hidden` layer: a linear map, and on one-hot a table."""
    layers: list[nn.Module] = []
    sizes = [inputs, *hidden, outputs]
    for i, (before, after) in enumerate(pairwise(sizes)):
        layer, last = nn.Linear(before, after), i == len(sizes) - 2
        nn.init.orthogonal_(layer.weight, gain if last else 2**0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


class ControlPolicy(nn.Module):
    """A categorical policy for Discrete actions, a Gaussian one with a learnt deviation for a Box."""

    memoryless = True

    def __init__(self, inputs: int, actions: Space, hidden: Sequence[int] = (64, 64), normalise: bool = True, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        if isinstance(actions, Discrete):
            outputs, self.first = int(actions.n), int(actions.start)
            self.log_deviation = None
        elif isinstance(actions, Box) and len(actions.shape) == 1:
            outputs, self.first = actions.shape[0], 0
            self.log_deviation = nn.Parameter(torch.zeros(outputs))
        else:
            raise ConfigError(f"a policy chooses from a Discrete space or a Box of one dimension, not {actions}")
        self.name, self.noises = "policy@0", 1 if self.log_deviation is None else outputs
        self.normaliser = Normaliser(inputs) if normalise else None
        self.net = perceptron(inputs, hidden, outputs, 0.01, generator)

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return collate(trajectories)

    @torch.no_grad()
    def act(self, observations: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions (N,) or (N, A) for observations (N, I), and their log-probabilities (N,).

        `noise` (N, `noises`) is what chance contributes: uniform in [0, 1) for a choice, standard normal for a Gaussian.
        """
        out = self._outputs(torch.from_numpy(observations))
        given = torch.from_numpy(noise)
        if self.log_deviation is None:
            p = out.softmax(-1).double().cumsum(-1)
            chosen = torch.searchsorted(p, given * p[:, -1:], right=True)[:, 0].clamp(max=out.shape[1] - 1)
            return (chosen + self.first).numpy(), out.log_softmax(-1).gather(1, chosen[:, None])[:, 0].numpy()
        actions = out + self.log_deviation.exp() * given.float()
        return actions.numpy(), self._score(out, actions).numpy()

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) of the actions, and entropies (B, T); 0 where the mask is 0."""
        out = self._outputs(batch.observations[:, :-1])
        if self.log_deviation is None:
            logs = out.log_softmax(-1)
            logprobs = logs.gather(-1, (batch.actions.long() - self.first).clamp(min=0)[..., None])[..., 0]
            entropy = -(logs.exp() * logs).sum(-1)
        else:
            logprobs = self._score(out, batch.actions)
            entropy = (self.log_deviation + 0.5 * np.log(2 * np.pi * np.e)).sum().expand_as(logprobs)
        return logprobs * batch.mask, entropy * batch.mask

    def save(self, folder: Path) -> None:
        """Write weights and observation statistics."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "policy.safetensors")

    def restore(self, folder: Path) -> None:
        """Take over what `save` wrote, in place."""
        self.load_state_dict(load_file(folder / "policy.safetensors"))

    def _outputs(self, observations: Tensor) -> Tensor:
        return self.net(observations if self.normaliser is None else self.normaliser(observations))

    def _score(self, mean: Tensor, actions: Tensor) -> Tensor:
        assert self.log_deviation is not None
        scaled = (actions - mean) * (-self.log_deviation).exp()
        return (-0.5 * scaled.square() - self.log_deviation - 0.5 * float(np.log(2 * np.pi))).sum(-1)


class ControlCritic(nn.Module):
    """V(s) of every state, the last one included; it sees observations as the policy does, whose `normaliser` it shares."""

    def __init__(self, inputs: int, hidden: Sequence[int] = (64, 64), normaliser: Normaliser | None = None, seed: int = 0) -> None:
        super().__init__()
        self.net = perceptron(inputs, hidden, 1, 1.0, torch.Generator().manual_seed(seed + 1))
        self.normaliser = [normaliser]  # in a list: it is the policy's, and is saved with the policy

    def values(self, batch: Batch) -> Tensor:
        """Values (B, T + 1)."""
        (normaliser,) = self.normaliser
        return self.net(batch.observations if normaliser is None else normaliser(batch.observations))[..., 0]


def collate(trajectories: Sequence[Trajectory]) -> Batch:
    """Pad on the right; attempts at one task form a group. After the last observation of a row comes that observation again."""
    lengths = [len(t.rewards) for t in trajectories]  # type: ignore[arg-type]
    longest = max(lengths)

    def padded(values: np.ndarray, length: int, mode: str) -> np.ndarray:
        missing = length - len(values)
        edges = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, edges, mode=mode) if missing else values  # type: ignore[call-overload]

    def stacked(name: str, length: int, mode: str = "constant") -> Tensor:
        return torch.from_numpy(np.stack([padded(getattr(t, name), length, mode) for t in trajectories]))

    keys: dict[tuple[str, str], int] = {}
    groups = [keys.setdefault((t.task.source, t.task.key), len(keys)) for t in trajectories]
    return Batch(
        observations=stacked("observations", longest + 1, "edge").float(),
        actions=stacked("actions", longest),
        mask=(torch.arange(longest) < torch.tensor(lengths)[:, None]).float(),
        logprobs=stacked("logprobs", longest).float(),
        rewards=stacked("rewards", longest).float(),
        terminated=torch.tensor([t.terminated for t in trajectories]),
        groups=torch.tensor(groups),
    )
