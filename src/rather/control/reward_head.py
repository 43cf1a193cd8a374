"""The reward head for control: Bayesian logistic regression on what observations and actions are, fitted in a moment.

r(s, a) = w.f(x), x the scaled observation and the action together; f are x itself, |x|, and all products of two of x. A net has to find
such features first, which takes more comparisons than it takes to weigh them.

Shape letters: B trajectories, T actions (padded), N rows, I numbers of an observation, A of an action, C = I + A, n comparisons,
G groups of C features, K members, S samples.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Space
from torch import Tensor, nn

from rather.control.models import ControlReward, collate
from rather.core import Batch, Comparison, Trajectory
from rather.learners import saved_head
from rather.learners.head import Array, Learned, Raw, learn

PRODUCTS = 64
"""Of more numbers than that only the squares are taken, since there would be thousands of products."""
ROUNDED = 0.1
"""|x| is sqrt(x^2 + ROUNDED^2), which has a slope everywhere."""


class LinearReward(nn.Module):
    """Rewards (N,) of observations (N, I) and actions (N, A): a weight for each feature, 0 at first."""

    weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(3 if width > PRODUCTS else 2 + width, width))

    def features(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Groups (N, G, C): x, |x|, and for each of x its products with all of x, or the squares of x."""
        x = torch.cat([observations, actions], -1)
        products = x[:, None].square() if len(self.weight) == 3 else x[:, :, None] * x[:, None]
        return torch.cat([x[:, None], _rounded(x)[:, None], products], 1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The sum of weights times `features`, which are not laid out."""
        x, (plain, size), products = torch.cat([observations, actions], -1), self.weight[:2], self.weight[2:]
        of_products = x.square() * products if len(self.weight) == 3 else x * (x @ products)
        return x @ plain + _rounded(x) @ size + of_products.sum(-1)


class RewardHead(ControlReward):
    """A reward that `learn` fits to all comparisons at once, and that knows how sure it is; see `learners.head`.

    The evidence decides whether x alone counts, x and |x|, or products, too. Each of several members is a draw from the posterior; their
    mean is its maximum. A reward is lower by `pessimism` standard deviations of the posterior.
    """

    def __init__(self, inputs: int, actions: Space, width: int, members: int = 1, seed: int = 0) -> None:
        super().__init__(inputs, actions, networks=[LinearReward(inputs + width) for _ in range(members)])
        self.seed = seed
        self.known: Learned | None = None

    def learn(self, comparisons: Sequence[Comparison], temperatures: bool = True) -> Learned:
        """Learn from all of these comparisons, which have a preference, and from no others.

        Raises:
            TrainingError: there are none, or a number in them is not finite.
        """
        preference, features = np.array([c.preference for c in comparisons], np.float64), self.sides(comparisons)
        groups = features.shape[2]
        judges = [c.judge if temperatures else "" for c in comparisons]
        self.known = learn(features, preference, judges, [(0,), (0, 1), tuple(range(groups))])
        chosen = [*self.known.choice.groups]
        weights = np.zeros((self.members, *features.shape[2:]), np.float32)
        weights[:, chosen] = self.known.raw(self.members, self.seed).reshape(self.members, len(chosen), -1)
        for network, weight in zip(self.networks, weights, strict=True):
            network.weight = torch.from_numpy(weight)
        return self.known

    @property
    def learned(self) -> Learned:
        """What has been learned."""
        assert self.known is not None
        return self.known

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T): the most likely ones, less `pessimism` standard deviations of the posterior."""
        mean = self.each(batch).mean(0)
        if not self.pessimism:
            return mean
        steps = self._features(batch)
        steps = steps.reshape(-1, *steps.shape[2:])
        variance = self.learned.differences(np.stack([steps, np.zeros_like(steps)], 1))[1]  # of a step and nothing
        return (mean - self.pessimism * torch.from_numpy(np.sqrt(variance)).view_as(mean).float()) * batch.mask

    def sampled(self, trajectories: Sequence[Trajectory], count: int) -> Tensor:
        """Scores (S, N) of trajectories by weights drawn from the posterior, but for a constant in each row."""
        x = self.learned.choice.of(self.features(trajectories))
        return torch.from_numpy(self.learned.posterior.sample(np.random.default_rng(self.seed), count) @ x.T)

    def features(self, trajectories: Sequence[Trajectory]) -> Raw:
        """Raw features (N, G, C) of trajectories: sums over their steps."""
        return np.stack([self._features(collate([t]))[0].sum(0) for t in trajectories])

    def sides(self, comparisons: Sequence[Comparison]) -> Raw:
        """Raw features (n, 2, G, C) of the sides of comparisons: means over the trajectories of a side."""
        return np.stack([np.stack([self.features(side).mean(0) for side in c.sides]) for c in comparisons])

    def differences(self, comparisons: Sequence[Comparison]) -> tuple[Array, Array]:
        """Means (n,) and variances (n,) of the differences of the scores of sides a and b."""
        return self.learned.differences(self.sides(comparisons))

    def log_odds(self, comparisons: Sequence[Comparison]) -> Array:
        """Log-odds (n,) that a is better in the eyes of whoever judged; 0 while nothing has been learned."""
        if self.known is None:
            return np.zeros(len(comparisons))
        return self.known.log_odds(self.sides(comparisons), [c.judge for c in comparisons])

    def save(self, folder: Path) -> None:
        """Write weights, observation statistics and the posterior."""
        super().save(folder)
        saved_head.save(folder, self.learned, seed=self.seed)

    def restore(self, folder: Path) -> None:
        """Take over what `save` wrote, in place."""
        super().restore(folder)
        self.known = saved_head.restored(folder)

    def _features(self, batch: Batch) -> Raw:
        """Raw features (B, T, G, C) of every step."""
        observations, actions = self._seen(batch)
        (member, *_) = self.networks
        assert isinstance(member, LinearReward)
        found = member.features(observations.flatten(0, 1), actions.flatten(0, 1))
        return found.view(*batch.mask.shape, *found.shape[1:]).numpy()


def _rounded(x: Tensor) -> Tensor:
    """|x|, almost."""
    return (x.square() + ROUNDED**2).sqrt()
