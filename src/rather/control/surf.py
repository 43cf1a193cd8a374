"""SURF (Park et al. 2022): fragments are cut at random, and pairs that nobody compared get the labels that the ensemble is sure of.

Shape letters: N pairs, K members.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Unpack

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rather.control.clips import lead
from rather.control.rollout import piece, rewards
from rather.core import Comparison, RewardModel, Trajectory
from rather.errors import ConfigError, DataError
from rather.learners.common import Means, Pairs, drawn, names
from rather.learners.reward import Reward
from rather.learners.reward_settings import RewardOptions, SURFSettings
from rather.learners.train import Callback
from rather.losses import bradley_terry_loss

Unlabeled = Callable[[Sequence[Comparison]], Sequence[Trajectory]]
"""What unlabeled fragments are cut from, where these comparisons are learned from."""


class SURF(Reward):
    """Fits reward nets of control to comparisons whose sides are cut at random in each step, and to pseudo-labels of other pairs.

    Fragments of the other pairs, `settings.pseudo_labels` of them a comparison, are cut from what `unlabeled` says, as long as those of
    the comparison. What is drawn in a step depends on the seed, the step and the comparison alone. Departures from the paper: a cut may
    be as long as the fragment; and a pair counts where the members' mean is sure, for all members.

    Raises:
        ConfigError: there are to be pseudo-labels, and nothing is unlabeled.
        DataError: nothing unlabeled is as long as the fragments.
    """

    def __init__(
        self,
        model: RewardModel,
        comparisons: Sequence[Comparison],
        parameters: Sequence[nn.Parameter],
        settings: SURFSettings,
        unlabeled: Unlabeled | None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        **options: Unpack[RewardOptions],
    ) -> None:
        super().__init__(model, comparisons, parameters, seed=seed, callbacks=callbacks, **options)
        self.surf, self.unlabeled = settings, unlabeled
        if settings.pseudo_labels and unlabeled is None:
            raise ConfigError(f"pseudo_labels is {settings.pseudo_labels}, and nothing is unlabeled; give trajectories as unlabeled")
        self._know()

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from these from now on; those that were there before keep their place."""
        super().follow(comparisons)
        self._know()

    def batch(self, chosen: Sequence[int]) -> list[Comparison]:
        """The comparisons of a step, cut."""
        return [cropped(self.comparisons[i], self.surf.crop, self.seed, f"{self.taken}/{self.names[i]}") for i in chosen]

    def further(self, chosen: Sequence[int], means: Means) -> Tensor | float:
        """The loss of the pseudo-labels, whose gradient is left in the parameters."""
        pairs = [self.pair(i, f"{self.taken}/{self.names[i]}/{n}") for i in chosen for n in range(self.surf.pseudo_labels)]
        if not pairs:
            return 0.0
        labeled = pseudo_labeled(self.model, pairs, self.surf.confidence, self.how.micro_batch_tokens)
        means.add(pseudo_labels=torch.tensor([float(c.preference is not None) for c in labeled]))
        sure = [cropped(c, self.surf.crop, self.seed, c.key) for c in labeled if c.preference is not None]
        loss = 0.0
        for part, *_ in Pairs.of(self.model, sure).split(self.how.micro_batch_tokens) if sure else ():
            a, b = part.scores(self.model.scores(part.batch))
            part_loss = bradley_terry_loss(a, b, part.preference) * (self.surf.pseudo_weight * len(part) / len(pairs))
            part_loss.backward()
            loss = loss + part_loss.detach()
        return loss

    def _know(self) -> None:
        self.names = names(self.comparisons)
        self.pool = list(self.unlabeled(self.comparisons)) if self.unlabeled else []
        self.ends = dict[int, list[int]]()
        """How many fragments of a length begin in each trajectory of the pool and those before it."""
        for length in {shortest(c) for c in self.comparisons} if self.pool else ():
            self.ends[length] = list(accumulate(max(0, len(rewards(t)) - length + 1) for t in self.pool))
            if not self.ends[length][-1]:
                longest = max(len(rewards(t)) for t in self.pool)
                raise DataError(f"unlabeled trajectories have at most {longest} steps, and sides of comparisons {length}; give longer ones")

    def pair(self, i: int, name: str) -> Comparison:
        """Two unlabeled fragments, each equally likely, as long as those of comparison `i`."""
        length = shortest(self.comparisons[i])
        ends, sides = self.ends[length], list[Trajectory]()
        for side in "ab":
            place = int(drawn(self.seed, f"unlabeled/{name}/{side}") * ends[-1])
            number = bisect.bisect_right(ends, place)
            t = self.pool[number]
            begins = ends[number - 1] if number else 0
            sides.append(piece(t, place - begins, length))
        a, b = sides
        return Comparison((a,), (b,), key=f"unlabeled/{name}")


def shortest(comparison: Comparison) -> int:
    """Steps of the shortest trajectory of a comparison."""
    return min(len(rewards(t)) for side in (comparison.a, comparison.b) for t in side)


def cropped(comparison: Comparison, least: float, seed: int, name: str) -> Comparison:
    """A comparison whose trajectories are cut to one length, `least` to all of the shortest one's steps, each from a step of its own.

    Length and beginnings are drawn by `seed` and `name`. With `least` 1 it is left as it is, whatever its lengths.
    """
    if least == 1:
        return comparison
    longest = shortest(comparison)
    fewest = max(1, int(np.ceil(least * longest)))
    length = fewest + int(drawn(seed, f"crop/{name}") * (longest - fewest + 1))

    def cut(side: tuple[Trajectory, ...], which: str) -> tuple[Trajectory, ...]:
        places = [int(drawn(seed, f"crop/{name}/{which}{j}") * (len(rewards(t)) - length + 1)) for j, t in enumerate(side)]
        return tuple(piece(t, place, length) for t, place in zip(side, places, strict=True))

    return replace(comparison, a=cut(comparison.a, "a"), b=cut(comparison.b, "b"))


@torch.no_grad()
def pseudo_labeled(model: RewardModel, pairs: Sequence[Comparison], confidence: float, tokens: int) -> list[Comparison]:
    """Pairs with the preference, 0 or 1, that the members' mean probability says where it is above `confidence`; the others have none."""
    found = list[Comparison]()
    for part, which, *_ in Pairs.of(model, [replace(c, preference=0.5) for c in pairs]).split(tokens):
        a, b = part.scores(model.scores(part.batch))
        for pair, p in zip(pairs[which], torch.sigmoid(a - b).mean(0).tolist(), strict=True):
            found.append(replace(pair, preference=float(p > 0.5) if max(p, 1 - p) > confidence else None))
    return found


class Lead:
    """What was done up to the end of each fragment that is learned from, since the reset: played again, once."""

    def __init__(self, make: Callable[[], gymnasium.Env]) -> None:
        self.make = make
        self.played = dict[tuple[str, str, int], Trajectory]()

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Trajectory]:
        """One trajectory for each episode that fragments are from: to the end of the last one.

        Raises:
            DataError: the environment shows something else than the record says.
        """
        ends = dict[tuple[str, str], Trajectory]()
        for t in (t for c in comparisons for side in (c.a, c.b) for t in side):
            name = (t.policy, t.task.key)
            if name not in ends or _steps(t) > _steps(ends[name]):
                ends[name] = t
        new = {(*name, _steps(t)): t for name, t in ends.items()}
        env = self.make()
        try:
            self.played |= {name: _whole(t, env) for name, t in new.items() if name not in self.played}
        finally:
            env.close()
        return [self.played[name] for name in new]


def _steps(fragment: Trajectory) -> int:
    return len(rewards(fragment)) + (0 if fragment.before is None else len(fragment.before))


def _whole(fragment: Trajectory, env: gymnasium.Env) -> Trajectory:
    """What was done from the reset to the end of a fragment; what nobody looks at, rewards and log-probabilities, is 0 before it."""
    if fragment.before is None or not len(fragment.before):
        return fragment
    assert fragment.observations is not None
    assert fragment.actions is not None
    seen = np.stack(lead(fragment, env)[:-1]).astype(fragment.observations.dtype)
    zeros = np.zeros(len(fragment.before), np.float32)
    return replace(
        fragment, observations=np.concatenate([seen, fragment.observations]), actions=np.concatenate([fragment.before, fragment.actions]),
        logprobs=np.concatenate([zeros, np.zeros_like(rewards(fragment))]), rewards=np.concatenate([zeros, rewards(fragment)]), before=None,
    )  # fmt: skip
