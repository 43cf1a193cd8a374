"""Which pairs to ask about: strategies score candidates, schedules share questions out over rounds.

Shape letters: K ensemble members, N candidate pairs.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def disagreement(differences: Tensor) -> Tensor:
    """Standard deviation of the members' opinions (Christiano et al. 2017, sec. 2.2.4), of P(a better): (K, N) to (N,)."""
    return torch.sigmoid(differences).std(0, correction=0)


def near_tie(differences: Tensor) -> Tensor:
    """The nearer the mean score difference is to nothing, the higher."""
    return -differences.mean(0).abs()


def entropy(differences: Tensor) -> Tensor:
    """Entropy of the mean P(a better), in nats: what an answer could tell at most."""
    p = torch.sigmoid(differences).mean(0)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


STRATEGIES: dict[str, Callable[[Tensor], Tensor]] = {"disagreement": disagreement, "near_tie": near_tie, "entropy": entropy}


def priorities(strategy: str, differences: Tensor | None, count: int) -> list[float]:
    """How much each of `count` candidates is wanted by `strategy`, the most wanted first in line; all the same where nothing says so."""
    if strategy == "random" or differences is None:
        return [0.0] * count
    return STRATEGIES[strategy](differences).tolist()


def choose(strategy: str, differences: Tensor | None, count: int, wanted: int, random_share: float, seed: int) -> list[tuple[int, str]]:
    """Which `wanted` of `count` candidates to ask, each with why: the best by `strategy`, and a share at random.

    `differences` (K, N) are the score differences of an ensemble; without one all are random. The random share keeps the answers
    fit to measure a reward model by.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    if strategy == "random" or differences is None:
        return [(i, "random") for i in order[:wanted]]
    at_random = order[: round(random_share * wanted)]
    ranked = torch.tensor(priorities(strategy, differences, count)).argsort(descending=True, stable=True).tolist()
    best = [i for i in ranked if i not in set(at_random)][: wanted - len(at_random)]
    return [(i, strategy) for i in best] + [(i, "random") for i in at_random]


def shares(total: int, rounds: int, schedule: str) -> list[int]:
    """Questions of each round: equal shares, or falling as 1 / (1 + round) (Christiano et al. 2017); they sum to `total`."""
    weights = [1.0 if schedule == "constant" else 1 / (1 + i) for i in range(rounds)]
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(rounds)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
