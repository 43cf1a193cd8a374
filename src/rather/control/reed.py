"""REED (Metcalf et al. 2023): the hidden layers of reward nets learn to predict the next state as well, which needs no labels.

Shape letters: B trajectories, T steps (padded), K members, N rows, D units.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from rather.control.models import ControlReward
from rather.control.surf import SURF, Unlabeled
from rather.core import Batch, Comparison
from rather.learners.common import Means, parts, put, used
from rather.learners.reward_settings import REEDSettings, RewardOptions
from rather.learners.train import Callback

PROJECTION, BOTTLENECK = 64, 16
"""Units in which states are compared, and of the predictor's hidden layer: a quarter, as in SimSiam (Chen and He 2021)."""


class REED(SURF):
    """Fits reward nets as `SURF` does, while their hidden layers learn to predict the next state (Metcalf et al. 2023, distillation).

    Each step adds `settings.dynamics` times the mean of `Dynamics` over two fragments for each comparison, as long as its own: cut from
    what `unlabeled` says, or without it the sides of the comparison. Departures from the paper: it alternates epochs of both losses, which
    are added here; and observations and actions have one layer together.

    Raises:
        ConfigError: there are to be pseudo-labels, and nothing is unlabeled.
        DataError: nothing unlabeled is as long as the fragments.
    """

    def __init__(
        self,
        model: ControlReward,
        comparisons: Sequence[Comparison],
        parameters: Sequence[nn.Parameter],
        settings: REEDSettings,
        unlabeled: Unlabeled | None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        **options: Unpack[RewardOptions],
    ) -> None:
        self.dynamics, self.weight = Dynamics(model, seed), settings.dynamics
        every = [*parameters, *self.dynamics.parameters()]
        super().__init__(model, comparisons, every, settings, unlabeled, seed, callbacks, **options)

    def further(self, chosen: Sequence[int], means: Means) -> Tensor | float:
        """The losses of pseudo-labels and dynamics, whose gradient is left in the parameters."""
        loss = super().further(chosen, means)
        pairs = [self.pair(i, f"{self.taken}/{self.names[i]}/dynamics") for i in chosen] if self.pool else self.batch(chosen)
        batch = self.model.collate([t for c in pairs for side in (c.a, c.b) for t in side])
        steps = batch.mask.sum()
        for rows in parts(batch, self.how.micro_batch_tokens):
            part = batch.select(rows)
            losses = self.dynamics(part)
            part_loss = self.weight * (losses * part.mask).sum() / (len(losses) * steps)
            part_loss.backward()
            loss = loss + part_loss.detach()
            means.add(dynamics_loss=used(part.mask.expand_as(losses), losses))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """That of `Reward`, and what predicts the next state."""
        return super().state_dict() | {"dynamics": [p.detach() for p in self.dynamics.parameters()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        super().load_state_dict(state)
        put(state["dynamics"], [*self.dynamics.parameters()])


class Dynamics(nn.Module):
    """How far each member of `model` is from predicting the next state: -cos(h(g(p(z))), stop_gradient(g(f(s')))).

    z is the last hidden layer at (s, a). f(s') is the first hidden layer, where the action is 0. p and g are linear; h has a hidden layer
    with ReLU. p, g and h belong to the fit alone. Departure from SimSiam: h has no batch normalization.
    """

    def __init__(self, model: ControlReward, seed: int) -> None:
        super().__init__()
        self.model = [model]  # in a list: its parameters are not these
        first, last = model.layers[0].shape[-1], model.layers[-2].shape[1]
        generator = torch.Generator().manual_seed(seed + 1)
        self.layers = nn.ParameterList()
        for before, after in ((last, first), (first, PROJECTION), (PROJECTION, BOTTLENECK), (BOTTLENECK, PROJECTION)):
            weight = torch.randn(model.members, before, after, generator=generator) / before**0.5
            self.layers += [nn.Parameter(weight), nn.Parameter(torch.zeros(model.members, 1, after))]

    def forward(self, batch: Batch) -> Tensor:
        """Losses (K, B, T) of every step, -1 at best; those of padding say nothing."""
        (model,) = self.model
        to_next, project, narrow, widen = zip(self.layers[0::2], self.layers[1::2], strict=True)
        predicted = linear(model.outputs(batch, to_next).flatten(1, 2), *project)
        predicted = linear(linear(predicted, *narrow).relu(), *widen)
        after = model.scaled(batch.observations[:, 1:]).flatten(0, 1).expand(model.members, -1, -1)
        weight, bias = [*model.layers][:2]
        encoded = linear(linear(after, weight[:, : after.shape[-1]], bias).tanh(), *project)
        return dynamics_loss(predicted, encoded).view(model.members, *batch.mask.shape)


def dynamics_loss(predicted: Tensor, encoded: Tensor) -> Tensor:
    """-cos(predicted, stop_gradient(encoded)) over the last dimension (Chen and He 2021, equation 1)."""
    return -nn.functional.cosine_similarity(predicted, encoded.detach(), dim=-1)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(K, N, D) to (K, N, O), each member by its own weights (K, D, O) and biases (K, 1, O)."""
    return torch.baddbmm(bias, x, weight)
