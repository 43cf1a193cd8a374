"""Rewards for visiting states far from those that were visited so far: exploration without a task, by the entropy of states.

Shape letters: B trajectories or pieces of them, T actions (padded), N states, M visited ones, I numbers of an observation.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rather.control.models import Normalizer
from rather.core import Batch
from rather.errors import ConfigError

DISTANCES = 2**22
"""So many distances, of 4 bytes each, are in memory at a time."""


LEAST = 1e-4
"""A number with a lower standard deviation counts as constant."""


class StateEntropy:
    """r = log(1 + |s' - s'_k|) over its running standard deviation: how far a step's new state s' is from its k-th nearest neighbor s'_k.

    The mean of the logarithm estimates the entropy of states up to a constant (PEBBLE, Lee et al. 2021, section 4.1); the 1 is that of APT
    (Liu and Abbeel 2021, arXiv 2103.04551), with which a state that was seen often is rewarded with 0. Neighbors are sought among `states`
    of the visited states at most, a uniform sample of all that is drawn by `seed`. Each number of a state is divided by its standard
    deviation over these, or where it has none, over the new ones, too.

    Raises:
        ConfigError: an argument is no whole number, or there is no k-th neighbor among so many states.
    """

    def __init__(self, k: int = 5, states: int = 10_000, seed: int = 0) -> None:
        if not all(type(number) is int for number in (k, states, seed)) or seed < 0:
            raise ConfigError(f"StateEntropy: k is {k!r}, states {states!r} and seed {seed!r}; take whole numbers, and a seed of 0 or more")
        if not 1 <= k < states:
            raise ConfigError(f"StateEntropy: k is {k} and states is {states}; take k of 1 or more, and more states than that")
        self.k, self.states, self.seed = k, states, seed
        self.visited, self.count = np.zeros((0, 0), np.float32), 0
        self.spread = Normalizer(1)
        self.rewarded, self.total = 0, 0.0

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T); the states count as visited from now on.

        Raises:
            ConfigError: they are pictures, or states of another environment than those before.
        """
        if batch.observations.dtype == torch.uint8:
            raise ConfigError("StateEntropy compares states number by number, which says little of pictures; take another reward")
        rows, t = batch.mask.bool().nonzero(as_tuple=True)
        states = batch.observations[rows, t + 1].float()
        self._visit(states.numpy())
        found = torch.zeros(batch.mask.shape)
        found[rows, t] = self.among(states, torch.from_numpy(self.visited))
        return found

    def among(self, states: Tensor, visited: Tensor) -> Tensor:
        """Rewards (N,) of states (N, I) among others (M, I), which are thinned out evenly where they are too many."""
        visited = visited[:: -(-len(visited) // self.states)]
        std = visited.std(0, correction=0)
        constant = std < LEAST
        if constant.any():
            std[constant] = torch.cat([visited[:, constant], states[:, constant]]).std(0, correction=0).clamp(min=LEAST)
        found = neighbor_distances(states / std, visited / std, self.k).log1p()
        self.spread.update(found[:, None])
        self.rewarded, self.total = self.rewarded + len(found), self.total + float(found.double().sum())
        std = float((self.spread.square / self.spread.count).sqrt())
        return found / std if std > 1e-4 else found

    def metrics(self) -> dict[str, float]:
        """Mean of what was rewarded since the last call, before it was divided by the standard deviation."""
        found = {"state_entropy": self.total / self.rewarded} if self.rewarded else {}
        self.rewarded, self.total = 0, 0.0
        return found

    def memory(self) -> dict[str, Any]:
        """The visited states and the running standard deviation."""
        own = {"k": self.k, "states": self.states, "seed": self.seed}
        return own | {"visited": torch.from_numpy(self.visited), "count": self.count, "spread": dict(self.spread.state_dict())}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take `memory` back.

        Raises:
            ValueError: it is that of another `k`, number of `states`, or `seed`.
        """
        for name in ("k", "states", "seed"):
            if memory[name] != getattr(self, name):
                raise ValueError(f"StateEntropy had {name} = {memory[name]}, and now {getattr(self, name)}")
        self.visited, self.count = memory["visited"].numpy().copy(), memory["count"]
        self.spread.load_state_dict(memory["spread"])

    def _visit(self, states: np.ndarray) -> None:
        """Keep a uniform sample of all states (Vitter 1985, algorithm R)."""
        if not self.count:
            self.visited = np.zeros((0, states.shape[1]), np.float32)
        if self.visited.shape[1] != states.shape[1]:
            have, width = self.visited.shape[1], states.shape[1]
            raise ConfigError(f"StateEntropy knows states of {have} numbers, and these have {width}; give each environment its own")
        room = self.states - len(self.visited)
        self.visited = np.concatenate([self.visited, states[:room]])
        late = states[room:]
        numbers = self.count + min(room, len(states)) + np.arange(len(late))
        places = np.random.default_rng([self.seed, self.count]).integers(0, numbers + 1)
        kept = places < self.states
        self.visited[places[kept]] = late[kept]  # of several at one place the last one stays
        self.count += len(states)


def neighbor_distances(states: Tensor, visited: Tensor, k: int) -> Tensor:
    """Euclidean distances (N,) of states (N, I) from their k-th nearest neighbors among the visited ones (M, I), or from the farthest.

    One that equals a state does not count: it is the state itself, where that is among them.
    """
    ranks = min(k + 1, len(visited))
    found = []
    for block in states.split(max(1, DISTANCES // len(visited))):
        distances = torch.cdist(block, visited, compute_mode="donot_use_mm_for_euclid_dist")  # which is exact, and 0 for equal states
        nearest = distances.topk(ranks, largest=False).values
        itself = (nearest[:, 0] == 0).long()
        last = (k - 1 + itself).clamp(max=ranks - 1)
        found.append(nearest.gather(1, last[:, None])[:, 0])
    return torch.cat(found)
