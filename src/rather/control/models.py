"""Policies and critics for control: observations go in as flat vectors, a Discrete one as one-hot.

Shape letters: B trajectories, T actions (padded), N observations, I inputs, A action dimensions or choices.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn

from rather.control.normalizer import Normalizer
from rather.control.saved import restore_module, save_module
from rather.core import Batch, Perturbation, Trajectory
from rather.errors import ConfigError
from rather.learners.common import pessimistic

Layers = list[tuple[np.ndarray, np.ndarray]]
"""Weights (before, after) and biases of a net, float64."""


class PerturbedLayers(Protocol):
    """Gives the layers of a policy's net under a perturbation."""

    def layers(self, perturbation: Perturbation | None) -> Layers: ...


class Perceptron(nn.Module):
    """Tanh layers with orthogonal weights, the last one linear and scaled by `gain`; none `hidden`: a linear map, on one-hot a table."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, gain: float, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ParameterList()
        sizes = [inputs, *hidden, outputs]
        for i, (before, after) in enumerate(pairwise(sizes)):
            weight = nn.init.orthogonal_(torch.empty(after, before), gain if i == len(sizes) - 2 else 2**0.5, generator=generator)
            self.layers += [nn.Parameter(weight.t().contiguous()), nn.Parameter(torch.zeros(after))]

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., outputs)."""
        rows = x.reshape(-1, x.shape[-1])
        return _Layers.apply(rows, *self.layers).view(*x.shape[:-1], -1)  # type: ignore[union-attr]

    def arrays(self) -> Layers:
        """Weights (before, after) and biases in float64."""
        found = [p.detach().numpy().astype(np.float64) for p in self.layers]
        return list(zip(found[0::2], found[1::2], strict=True))


def layers_forward(x: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs (N, O) for inputs (N, I), or (K, N, O) for (K, N, I) of K nets at once, and what every layer was given.

    `layers` are weights (I, O) and biases (O,) in turn, or (K, I, O) and (K, 1, O).
    """
    product, given = torch.addmm if x.dim() == 2 else torch.baddbmm, [x]
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        # tanh(x) = 2 sigmoid(2 x) - 1, which takes less than half of torch.tanh's time.
        given.append(product(bias, given[-1], weight, beta=2, alpha=2).sigmoid_().mul_(2).sub_(1))
    return product(layers[-1], given[-1], layers[-2]), given


def layers_backward(of: Tensor, given: Sequence[Tensor], layers: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Derivatives by `layers`, and by what the first layer makes of its inputs, from derivatives by the outputs."""
    found: list[Tensor] = []
    for i in reversed(range(len(given))):
        found = [given[i].mT @ of, of.sum(-2, keepdim=of.dim() == 3), *found]
        if i:
            of = torch.ops.aten.tanh_backward(of @ layers[2 * i].mT, given[i])
    return found, of


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Tensor) -> Tensor:
        out, given = layers_forward(x, layers)
        ctx.save_for_backward(*given, *layers)
        return out

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 3
        given, layers = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        found, of = layers_backward(of_outputs[0], given, layers)
        return of @ layers[0].mT if ctx.needs_input_grad[0] else None, *found


def through(network: nn.Module, x: Tensor) -> Tensor:
    """What a network that maps (N, I), float32, to (N, O) or (N,) makes of (..., I): (..., O), where (N,) counts as O = 1."""
    rows = network(x.reshape(-1, x.shape[-1]).float())
    return rows.reshape(*x.shape[:-1], -1)


class ControlPolicy(nn.Module):
    """A categorical policy for Discrete actions, a Gaussian one with a learned std for a Box. `space` is what may be perturbed.

    A `network` maps observations (B, I) to logits (B, number of choices) or means (B, A); without one it is a `Perceptron`.
    """

    memoryless = True
    space: PerturbedLayers | None = None

    def __init__(
        self,
        inputs: int,
        actions: Space,
        hidden: Sequence[int] = (64, 64),
        normalize: bool = True,
        seed: int = 0,
        network: nn.Module | None = None,
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        if isinstance(actions, Discrete):
            outputs, self.first = int(actions.n), int(actions.start)
            self.log_std = None
        elif isinstance(actions, Box) and len(actions.shape) == 1:
            outputs, self.first = actions.shape[0], 0
            self.log_std = nn.Parameter(torch.full((outputs,), log_std_init))
        else:
            raise ConfigError(f"a policy chooses from a Discrete space or a Box of one dimension, not {actions}")
        self.name, self.noises, self.inputs = "policy@0", 1 if self.log_std is None else outputs, inputs
        self.normalizer = Normalizer(inputs) if normalize else None
        self.outputs = outputs
        self.net = Perceptron(inputs, hidden, outputs, 0.01, generator) if network is None else network

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return collate(trajectories)

    def numpy_policy(self, layers: "Sequence[Layers] | None" = None) -> "NumpyPolicy":
        """The policy as it is now, ready to act; with `layers`, as many policies of its kind, side by side."""
        return NumpyPolicy(self, layers)

    def noise(self, chance: np.random.Generator, *shape: int) -> np.ndarray:
        """What actions are drawn by, (*shape, noises): uniform numbers for choices, else those of a standard normal."""
        draw = chance.random if self.log_std is None else chance.standard_normal
        return draw((*shape, self.noises))

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T) of the actions, and entropies (B, T); 0 where the mask is 0."""
        out = self._outputs(batch.observations[:, : batch.mask.shape[1]])
        if self.log_std is None:
            logs = out.log_softmax(-1)
            logprobs = logs.gather(-1, (batch.actions.long() - self.first).clamp(min=0)[..., None])[..., 0]
            entropy = -(logs.exp() * logs).sum(-1)
        else:
            logprobs = self._score(out, batch.actions)
            entropy = (self.log_std + 0.5 * np.log(2 * np.pi * np.e)).sum().expand_as(logprobs)
        return logprobs * batch.mask, entropy * batch.mask

    def look(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T), and what a critic judges by: the observations (B, T + 1, I)."""
        return self.evaluate(batch)[0], batch.observations

    def save(self, folder: Path) -> None:
        """Write weights and observation statistics."""
        save_module(self, folder / "policy.safetensors")

    def restore(self, folder: Path) -> None:
        """Take over what `save` wrote, in place."""
        restore_module(self, folder / "policy.safetensors")

    def _outputs(self, observations: Tensor) -> Tensor:
        return through(self.net, observations if self.normalizer is None else self.normalizer(observations))

    def _score(self, mean: Tensor, actions: Tensor) -> Tensor:
        assert self.log_std is not None
        scaled = (actions - mean) * (-self.log_std).exp()
        return (-0.5 * scaled.square() - self.log_std - 0.5 * float(np.log(2 * np.pi))).sum(-1)


class NumpyPolicy:
    """A policy's weights, copied to act with: float64 and without PyTorch, whose calls cost more than such small sums.

    In float64 a row's action does not depend on the rows beside it, beyond one in a million million. A network that is no `Perceptron`
    acts itself, in its own precision.
    """

    def __init__(self, policy: ControlPolicy, several: Sequence[Layers] | None = None) -> None:
        self.first, self.scale = policy.first, None
        self.network = None if isinstance(policy.net, Perceptron) else policy.net
        self.layers: Layers = []
        if several is None:
            if isinstance(policy.net, Perceptron):
                self.layers = policy.net.arrays()
        else:
            self.layers = [(np.stack([w for w, _ in same]), np.stack([b for _, b in same])) for same in zip(*several, strict=True)]
        self.log_std = None if policy.log_std is None else policy.log_std.detach().numpy().astype(np.float64)
        if policy.normalizer is not None and policy.normalizer.count:
            self.scale = [x.numpy().copy() for x in policy.normalizer.scale()]

    def __call__(self, observations: np.ndarray, noise: np.ndarray, which: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (N,) or (N, A) for observations (N, I), and their log-probabilities (N,).

        `noise` (N, `noises`) is what chance contributes: uniform in [0, 1) for a choice, standard normal for a Gaussian. Of several
        policies, `which` (N,) acts on each observation.
        """
        out = self._outputs(observations, which)
        if self.log_std is None:
            out -= out.max(1, keepdims=True)
            p = np.exp(out)
            totals = p.cumsum(1)
            chosen = (totals <= noise * totals[:, -1:]).sum(1)
            rows = np.arange(len(out))
            return chosen + self.first, out[rows, chosen] - np.log(totals[:, -1])
        std = np.exp(self.log_std)
        actions = (out + std * noise).astype(np.float32)
        scaled = (actions - out) / std
        return actions, (-0.5 * scaled**2 - self.log_std - 0.5 * np.log(2 * np.pi)).sum(1)

    def greedy(self, observations: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
        """Deterministic actions."""
        out = self._outputs(observations, which)
        return out.argmax(1) + self.first if self.log_std is None else out.astype(np.float32)

    def _outputs(self, observations: np.ndarray, which: np.ndarray | None) -> np.ndarray:
        out = observations.astype(np.float64)
        if self.scale is not None:
            out = ((out - self.scale[0]) / self.scale[1]).clip(-Normalizer.LIMIT, Normalizer.LIMIT)
        if self.network is not None:
            with torch.no_grad():
                return self.network(torch.from_numpy(out).float()).double().numpy()
        for i, (weight, bias) in enumerate(self.layers):
            out = out @ weight + bias if which is None else (out[:, None] @ weight[which])[:, 0] + bias[which]
            if i < len(self.layers) - 1:
                out = np.tanh(out)
        return out


class ControlCritic(nn.Module):
    """V(s) of every state, the last one included; it sees observations as the policy does, whose `normalizer` it shares.

    A `network` maps observations (B, I) to values (B, 1) or (B,); without one it is a `Perceptron`.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (64, 64),
        normalizer: Normalizer | None = None,
        seed: int = 0,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.net = Perceptron(inputs, hidden, 1, 1.0, torch.Generator().manual_seed(seed + 1)) if network is None else network
        self.normalizer = [normalizer]  # in a list: it is the policy's, and is saved with the policy

    def values(self, seen: Tensor) -> Tensor:
        """Values (B, T + 1) of observations (B, T + 1, I)."""
        (normalizer,) = self.normalizer
        return through(self.net, seen if normalizer is None else normalizer(seen))[..., 0]


class ControlReward(nn.Module):
    """K reward nets trained together: r(s, a) of every step, a score is their sum over an episode or a fragment.

    One batched product a layer serves all members. Rewards start at 0: what random weights think of long fragments would outweigh a
    handful of answers. Actions count as the environment got them, held within the bounds of its space. Inputs are
    scaled by a normalizer of its own, which `see` fills before training, so that what was learned does not move when the policy's does;
    without `normalize` they are not scaled.
    With `networks` these are the members: each maps observations (B, I) and actions (B, A), a choice as one-hot, to rewards (B,).
    """

    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        inputs: int,
        actions: Space,
        members: int = 3,
        hidden: Sequence[int] = (64, 64),
        seed: int = 0,
        networks: Sequence[nn.Module] = (),
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.members, self.pessimism = len(networks) or members, 0.0
        self.networks = nn.ModuleList(networks)
        self.first, self.choices = (int(actions.start), int(actions.n)) if isinstance(actions, Discrete) else (0, 0)
        width = self.choices or int(np.prod(actions.shape))  # type: ignore[arg-type]
        self.whole = isinstance(actions, Box) and np.issubdtype(actions.dtype, np.integer)
        for name in ("low", "high"):
            bound = torch.tensor(getattr(actions, name), dtype=torch.float32) if isinstance(actions, Box) else None
            self.register_buffer(name, bound, persistent=False)
        self.normalizer = Normalizer(inputs) if normalize else None
        self.layers = nn.ParameterList()
        if networks:
            return
        generator = torch.Generator().manual_seed(seed)
        for before, after in pairwise([inputs + width, *hidden, 1]):
            weight = torch.randn(members, before, after, generator=generator) / before**0.5
            self.layers += [nn.Parameter(weight), nn.Parameter(torch.zeros(members, 1, after))]
        nn.init.zeros_(self.layers[-2])

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return collate(trajectories)

    def see(self, trajectories: Sequence[Trajectory]) -> None:
        """Take the observations of these episodes into account when inputs are scaled."""
        if self.normalizer is not None:
            self.normalizer.update(torch.from_numpy(np.concatenate([t.observations for t in trajectories])))  # type: ignore[misc]

    def each(self, batch: Batch) -> Tensor:
        """Rewards (K, B, T) of every member."""
        if self.networks:
            observations, actions = self._seen(batch)
            rows = [network(observations.flatten(0, 1), actions.flatten(0, 1)) for network in self.networks]
            return torch.stack([r.reshape(batch.mask.shape) for r in rows]) * batch.mask
        return self.outputs(batch, [*self.layers][-2:])[..., 0] * batch.mask

    def outputs(self, batch: Batch, last: Sequence[Tensor]) -> Tensor:
        """Outputs (K, B, T, O) of every net of ours with another `last` layer, weights (K, H, O) and biases (K, 1, O)."""
        x = torch.cat(self._seen(batch), -1).flatten(0, 1).expand(self.members, -1, -1)
        return _Layers.apply(x, *[*self.layers][:-2], *last).view(self.members, *batch.mask.shape, -1)

    def scaled(self, observations: Tensor) -> Tensor:
        """Observations as the nets see them."""
        return observations.float() if self.normalizer is None else self.normalizer(observations)

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        observations = self.scaled(batch.observations[:, : batch.mask.shape[1]])
        if self.choices:
            actions = nn.functional.one_hot((batch.actions.long() - self.first).clamp(min=0), self.choices).float()
        else:
            actions = (batch.actions.round() if self.whole else batch.actions).float().clamp(self.low, self.high)
        return observations, actions

    def scores(self, batch: Batch) -> Tensor:
        """Scores (K, B) of every member."""
        return self.each(batch).sum(-1)

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T): the members' mean, less `pessimism` standard deviations of the members."""
        with torch.no_grad():
            return pessimistic(self.each(batch), self.pessimism)

    def save(self, folder: Path) -> None:
        """Write weights and observation statistics."""
        save_module(self, folder / "reward.safetensors")

    def restore(self, folder: Path) -> None:
        """Take over what `save` wrote, in place."""
        restore_module(self, folder / "reward.safetensors")


def collate(trajectories: Sequence[Trajectory]) -> Batch:
    """Pad on the right; episodes of one task form a group. After the last observation of a row comes that observation again.

    Observations are float32; pictures, which are uint8, stay so.
    """
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
    observations = stacked("observations", longest + 1, "edge")
    return Batch(
        observations=observations if observations.dtype == torch.uint8 else observations.float(),
        actions=stacked("actions", longest),
        mask=(torch.arange(longest) < torch.tensor(lengths)[:, None]).float(),
        logprobs=stacked("logprobs", longest).float(),
        rewards=stacked("rewards", longest).float(),
        terminated=torch.tensor([t.terminated for t in trajectories]),
        groups=torch.tensor(groups),
    )
