"""Which pairs to ask about: strategies score candidates, schedules share questions out over rounds.

Shape letters: K ensemble members, N candidate pairs of two fragments.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rather.core import Answered, Comparison, Policy, Trajectory
from rather.judges.model import ModelJudge
from rather.pipeline.strategies import PAIRWISE
from rather.store import Store


class Rounds(Protocol):
    """What the questions of a round are made from: the run as its domain sees it."""

    @cached_property
    def store(self) -> Store:
        """The preference store."""
        ...

    def policy(self, number: int) -> Policy:
        """The policy at the beginning of round `number`."""
        ...

    def trained(self, number: int) -> bool:
        """Whether the policy of round `number` has begun to learn."""
        ...

    def reward_before(self, number: int) -> ModelJudge | None:
        """The reward model of the round before, if there is one."""
        ...

    def question(self, key: str, *sides: tuple[Trajectory, ...]) -> Comparison:
        """A question whose sides stand in an order that is drawn at random."""
        ...

    def hacked(self, number: int) -> Path | None:
        """The last policy of round `number` before its alarm, where that is to be mended."""
        ...

    def stays_random(self, key: str) -> bool:
        """Whether a question is one of `query.random_share`: made and asked at random, whatever the strategy."""
        ...

    def labels(self, number: int, name: str, among: Collection[int] | None = None) -> Answered:
        """What the learner called `name` learns from in round `number`."""
        ...


@dataclass(frozen=True)
class Chosen:
    """Questions to be asked: why each is, how much each is wanted, and how many the round is to have in all where that is known."""

    questions: list[Comparison]
    why: str | Sequence[str] = "random"
    scores: Sequence[float] | None = None
    wanted: int = 0


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
"""Exact for an ensemble, whose few members are the belief itself; the strategies of `strategies.PAIRWISE` know its moments alone."""


def priorities(strategy: str, differences: Tensor | None, count: int) -> list[float]:
    """How much each of `count` candidates is wanted by `strategy`, the most wanted first in line; all the same where nothing says so."""
    if strategy == "random" or differences is None:
        return [0.0] * count
    if strategy in STRATEGIES:
        return [float(x) for x in STRATEGIES[strategy](differences)]
    variance, mean = torch.var_mean(differences.double(), 0, correction=0)
    return PAIRWISE[strategy](mean.numpy(force=True), variance.numpy(force=True)).tolist()


@dataclass(frozen=True)
class Pick:
    """A question about the fragments number `a` and `b`: why it is asked, and how much it is wanted."""

    a: int
    b: int
    why: str
    score: float


def choose(strategy: str, scores: Tensor | None, count: int, wanted: int, candidates: int, random_share: float, seed: int) -> list[Pick]:
    """Which pairs of `count` fragments to ask about: the best of `candidates` times as many by `strategy`, and a share at random.

    No fragment is in two pairs, so that there are `wanted` pairs or as many as `count` allows. `scores` (K, count) are those of an
    ensemble; without one all pairs are random. The random share keeps the answers fit to measure a reward model by.
    """
    generator = torch.Generator().manual_seed(seed)

    def paired() -> list[tuple[int, int]]:
        order = [int(i) for i in torch.randperm(count, generator=generator)]
        return list(zip(order[0::2], order[1::2], strict=False))

    def wishes(pairs: list[tuple[int, int]]) -> list[float]:
        a, b = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
        return priorities(strategy, scores[:, a] - scores[:, b] if pairs and scores is not None else None, len(pairs))

    at_hand = paired()
    wanted = min(wanted, len(at_hand))
    at_random = at_hand[: wanted if strategy == "random" or scores is None else round(random_share * wanted)]
    used = {i for pair in at_random for i in pair}
    more, found = wanted - len(at_random), list[Pick]()
    if more:
        for _ in range(wanted * candidates // len(at_hand)):
            at_hand += paired()
        for (a, b), score in sorted(zip(at_hand, wishes(at_hand), strict=True), key=lambda pair: -pair[1]):
            if len(found) < more and used.isdisjoint((a, b)):
                used |= {a, b}
                found.append(Pick(a, b, strategy, score))
    # Pairs of the best may have taken a side from all others: what is left is paired anew.
    left = [i for pair in at_hand[: count // 2] for i in pair if i not in used]
    at_random += list(zip(left[0::2], left[1::2], strict=False))[: more - len(found)]
    return found + [Pick(a, b, "random", score) for (a, b), score in zip(at_random, wishes(at_random), strict=True)]


def shares(total: int, rounds: int, schedule: str) -> list[int]:
    """Questions of each round: equal shares, or falling as 1 / (1 + round) (Christiano et al. 2017); they sum to `total`."""
    weights = [1.0 if schedule == "constant" else 1 / (1 + i) for i in range(rounds)]
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(rounds)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def still(total: int, rounds: int, schedule: str, asked: Sequence[int]) -> int:
    """Questions that a round lacks of its share, where the rounds up to it have `asked` so many; the last one asks all that are left."""
    number = len(asked) - 1
    return total - sum(asked) if number >= rounds - 1 else shares(total, rounds, schedule)[number] - asked[number]
