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


class StateEntropy:
    """r = log(1 + |s' - s'_k|) over its running standard deviation: how far a step's new state s' is from its k-th nearest neighbor s'_k.

    The mean of the logarithm estimates the entropy of states up to a constant (PEBBLE, Lee et al. 2021, section 4.1); the 1 is that of APT
    (Liu and Abbeel 2021, arXiv 2103.04551), with which a state that was seen often is rewarded with 0. Neighbors are sought among `states`
    of the visited states at most, a uniform sample of all that is drawn by `seed`. Each number of a state is divided by its standard
    deviation over these.

    Raises:
        ConfigError: there is no k-th neighbor among so many states.
    """

    def __init__(self, k: int = 5, states: int = 10_000, seed: int = 0) -> None:
        if not 1 <= k < states:
            raise ConfigError(f"StateEntropy: k is {k} and states is {states}; take k of 1 or more, and more states than that")
        self.k, self.states, self.seed = k, states, seed
        self.visited, self.count = np.zeros((0, 0), np.float32), 0
        self.spread = Normalizer(1)
        self.rewarded, self.total = 0, 0.0

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T); the states count as visited from now on."""
        rows, t = batch.mask.bool().nonzero(as_tuple=True)
        states = batch.observations[rows, t + 1].float()
        self._visit(states.numpy())
        found = torch.zeros(batch.mask.shape)
        found[rows, t] = self.among(states, torch.from_numpy(self.visited))
        return found

    def among(self, states: Tensor, visited: Tensor) -> Tensor:
        """Rewards (N,) of states (N, I) among others (M, I), which are thinned out evenly where they are too many."""
        visited = visited[:: -(-len(visited) // self.states)]
        std = visited.std(0, correction=0).clamp(min=1e-4)
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
        return {"visited": torch.from_numpy(self.visited), "count": self.count, "spread": dict(self.spread.state_dict())}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take `memory` back."""
        self.visited, self.count = memory["visited"].numpy().copy(), memory["count"]
        self.spread.load_state_dict(memory["spread"])

    def _visit(self, states: np.ndarray) -> None:
        """Keep a uniform sample of all states (Vitter 1985, algorithm R)."""
        room = self.states - len(self.visited)
        self.visited = np.concatenate([self.visited.reshape(-1, states.shape[1]), states[:room]])
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
