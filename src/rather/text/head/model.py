"""The reward head: scores of answers by Bayesian logistic regression on what a frozen language model has in mind after them.

Shape letters: B trajectories of a batch, N trajectories, n comparisons, T answer tokens (padded), K members, S samples, G groups of C
features, F features that count.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from rather.core import Batch, Comparison, Prompt, Task, Trajectory
from rather.errors import ConfigError, ModelError, TrainingError
from rather.learners import saved_head
from rather.learners.common import check_members, check_pessimism, in_parts
from rather.learners.head import Array, Learned, Raw, learn, moderated
from rather.learners.head_learner import HeadLearner
from rather.learners.inputs import Reference, no_model
from rather.learners.train import Callback
from rather.scale import ranks
from rather.text.head import states
from rather.text.head.cache import Cache
from rather.text.language_model import LanguageModel
from rather.text.open import load
from rather.text.policy import TextPolicy

TOKENS, AT_ONCE = 1536, 64
"""Tokens that are read at a time, times `WITHOUT_GRADIENT`, and trajectories that are laid out at a time."""

Said = tuple[object, ...]
"""All that a comparison says: its sides, who answered, and what."""


class RewardHead:
    """A linear score of hidden states of `model`, which stays as it is: fitted in a moment, and it knows how sure it is.

    `layers` are the numbers of blocks after which states are read (None: after half, three quarters and all of them). What has been read
    of labeled answers is kept in the SQLite file `cache`, if one is named. Each of several `members` is a draw from the posterior; their
    mean is its maximum. As a reward, a score is lower by `pessimism` standard deviations of the posterior: least where labels are near.

    Raises:
        ModelError: the model has no such layer.
        ConfigError: there are no members.
    """

    def __init__(
        self,
        model: LanguageModel,
        members: int = 1,
        seed: int = 0,
        *,
        layers: Sequence[int] | None = None,
        cache: Path | str | None = None,
        pessimism: float = 0.0,
    ) -> None:
        if not isinstance(model, LanguageModel):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise no_model("the model", model)
        self.body, self.members, self.seed = model, check_members("RewardHead", members), seed
        self.pessimism = check_pessimism(pessimism, 2)
        self.layers = states.check_layers(model, layers)
        self.groups = tuple(range(len(self.layers) * len(states.POOLINGS)))
        self.known: Learned | None = None
        self.said: list[Said] = []
        self.met: dict[str, bytes] = {}
        self.cache = Cache(None if cache is None else Path(cache), "" if cache is None else states.digest(model, self.layers))

    @property
    def learned(self) -> Learned:
        """What has been learned.

        Raises:
            TrainingError: nothing has.
        """
        if self.known is None:
            raise TrainingError("the reward head has learned nothing yet; give `fit` some comparisons")
        return self.known

    # What every reward model does

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """Trajectories as a batch; see `collate`."""
        return self.body.collate(trajectories)

    def scores(self, batch: Batch) -> Tensor:
        """Scores (K, B) of each member, float32.

        Raises:
            TrainingError: nothing has been learned yet.
        """
        return self._scores(batch, states.states(self.body, batch, self.layers))

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T): `values` on the last token, 0 on the others."""
        return self._rewards(batch, states.states(self.body, batch, self.layers))

    def beside(self, reference: Reference, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """`rewards`, and what `reference.look` gives: from one pass, if the reference is the model whose states are read."""
        body = self.body
        if isinstance(body, TextPolicy) and isinstance(reference, TextPolicy) and body.is_as(reference):
            read, begun = states.passed(body, batch, self.layers)
            return self._rewards(batch, read), *reference.look(batch, begun)
        return self.rewards(batch), *reference.look(batch)

    def _scores(self, batch: Batch, read: Tensor) -> Tensor:
        """Scores (K, B) of each member, from the states (B, G, C) after the answers of a batch."""
        x = self.learned.choice.of(read.numpy(force=True))
        return torch.from_numpy(self.learned.members(self.members, self.seed) @ x.T).float().to(batch.mask.device)

    def _rewards(self, batch: Batch, read: Tensor) -> Tensor:
        """Rewards (B, T), from the states (B, G, C) after the answers of a batch."""
        last, values = batch.mask.sum(-1).long() - 1, torch.from_numpy(self.values(read.numpy(force=True))).to(batch.mask)
        return torch.zeros_like(batch.mask).scatter(1, last[:, None], values[:, None])

    def values(self, features: Raw) -> Array:
        """What answers are rewarded with (N,), from raw features (N, G, C): mean scores, less `pessimism` standard deviations."""
        x, known = self.learned.choice.of(features), self.learned.posterior
        return known.mean(x) - self.pessimism * np.sqrt(known.variance(x)) if self.pessimism else known.mean(x)

    def score(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """The mean score of the members for each of several answers to a prompt."""
        if isinstance(answers, str):
            raise ConfigError("answers is one text; give a list, such as [text]")
        if not answers:
            return []
        batch = self.collate([Trajectory(Task("score", "0", prompt), "score", text) for text in answers])
        (scores,) = in_parts(batch, TOKENS, lambda part: (self.scores(part).mean(0),))
        return scores.tolist()

    def fit(
        self,
        comparisons: Sequence[Comparison],
        eval: Sequence[Comparison] | None = None,
        *,
        temperatures: bool = True,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
    ) -> Self:
        """Learn from all of these comparisons; what `eval` measures goes to the callbacks and into `folder`, as in `Learner.train`.

        Raises:
            TrainingError: there are no comparisons, or states that are not finite.
        """
        HeadLearner(self, comparisons, temperatures=temperatures, seed=self.seed, callbacks=callbacks, folder=folder).train(eval)
        return self

    # What is known of scores

    def features(self, trajectories: Sequence[Trajectory]) -> Raw:
        """Raw features (N, G, C) of trajectories, a group for each layer and pooling; those that are in the cache are not computed again.

        Raises:
            TrainingError: one of them is not finite.
        """
        shape = len(self.layers) * len(states.POOLINGS), self.body.width
        found = list[Raw]()
        for start in range(0, len(trajectories), AT_ONCE):
            some = trajectories[start : start + AT_ONCE]
            keys = self._keys(some)
            have = ranks.everyones(self.cache.get(keys, shape))[0]
            rows = {key: i for i, key in enumerate(keys) if key not in have}
            if rows:
                missing = [some[i] for i in rows.values()]
                new = dict(zip(rows, self._states(self.collate(missing), missing), strict=True))
                self.cache.put(new)
                have |= new
            found += [have[key] for key in keys]
        return np.stack(found) if found else np.empty((0, *shape), np.float32)

    def read(self, trajectories: Sequence[Trajectory]) -> Raw:
        """`features` that are read from the model, and not kept."""
        some = [trajectories[start : start + AT_ONCE] for start in range(0, len(trajectories), AT_ONCE)]
        return np.concatenate([self._states(self.collate(each), each) for each in some])

    def _states(self, batch: Batch, trajectories: Sequence[Trajectory]) -> Raw:
        """Raw features (N, G, C) of the trajectories in a batch."""
        (found,) = in_parts(batch, TOKENS, lambda part: (states.states(self.body, part, self.layers),))
        values = found.numpy(force=True)
        for t, own in zip(trajectories, values, strict=True):
            if not np.isfinite(own).all():
                raise TrainingError(f"states of an answer to prompt {t.task.key!r} are not finite; leave it out, or use float32")
        return values

    def _keys(self, trajectories: Sequence[Trajectory]) -> list[bytes]:
        """What stands for trajectories in the cache. Those that are words alone are remembered: to make tokens of them takes longer."""
        words = [json.dumps([t.task.prompt, t.text, t.terminated]) if t.actions is t.observations is None else "" for t in trajectories]
        new = [i for i, said in enumerate(words) if said not in self.met]
        found = dict(zip(new, states.keys(self.collate([trajectories[i] for i in new])), strict=True)) if new else {}
        self.met |= {words[i]: key for i, key in found.items() if words[i]}
        return [found[i] if i in found else self.met[said] for i, said in enumerate(words)]

    def sides(self, comparisons: Sequence[Comparison]) -> Raw:
        """Raw features (n, 2, G, C) of the sides of comparisons, the mean of the trajectories of each side."""
        each = [side for c in comparisons for side in (c.a, c.b)]
        rows = self.features([t for side in each for t in side])
        if all(len(side) == 1 for side in each):
            return rows.reshape(len(comparisons), 2, *rows.shape[1:])
        ends = np.cumsum([len(side) for side in each])
        return np.stack([part.mean(0) for part in np.split(rows, ends[:-1])]).reshape(len(comparisons), 2, *rows.shape[1:])

    def learn(self, comparisons: Sequence[Comparison], temperatures: bool = True) -> Learned:
        """Learn from all of these comparisons, which have a preference; from where the last time ended, if the first ones are the same."""
        judges = [c.judge if temperatures else "" for c in comparisons]
        said = [_said(c, judge) for c, judge in zip(comparisons, judges, strict=True)]
        same = next((i for i, (now, then) in enumerate(zip(said, self.said, strict=False)) if now != then), min(len(said), len(self.said)))
        preference = np.array([c.preference for c in comparisons], np.float64)
        self.known = learn(_Sides(self, comparisons), preference, judges, [self.groups], self.known, same)
        self.said = said
        return self.known

    def believed(self, trajectories: Sequence[Trajectory]) -> tuple[Array, Array]:
        """Means (N,) and the joint covariance (N, N) of the scores of trajectories, such as several answers to one prompt."""
        x = self.learned.choice.of(self.features(trajectories))
        return self.learned.posterior.mean(x), self.learned.posterior.covariance(x)

    def differences(self, comparisons: Sequence[Comparison]) -> tuple[Array, Array]:
        """Means (n,) and variances (n,) of the differences of the scores of sides a and b; `moderated` makes probabilities of them."""
        return self.learned.differences(self.sides(comparisons))

    def probabilities(self, comparisons: Sequence[Comparison]) -> Array:
        """P(a better) (n,) by a judge of temperature 1."""
        return moderated(*self.differences(comparisons))

    def log_odds(self, comparisons: Sequence[Comparison]) -> Array:
        """Log-odds (n,) that a is better in the eyes of whoever judged; 0 while nothing has been learned."""
        if self.known is None:
            return np.zeros(len(comparisons))
        return self.known.log_odds(self.sides(comparisons), [c.judge for c in comparisons])

    def sampled(self, trajectories: Sequence[Trajectory], seed: int, count: int) -> Array:
        """Scores (S, N) of trajectories by weights that are drawn from the posterior."""
        x = self.learned.choice.of(self.features(trajectories))
        return self.learned.posterior.sample(np.random.default_rng(seed), count) @ x.T

    # To disk and back

    def save(self, folder: Path | str) -> None:
        """Write what has been learned as reward_head.safetensors, and what it is of as reward_head.json."""
        known, digest = self.learned, states.digest(self.body, self.layers)
        if ranks.rank():
            return
        base = {"base": states.name(self.body), "digest": digest, "dtype": states.dtype(self.body), "layers": self.layers}
        saved_head.save(Path(folder), known, **base, members=self.members, seed=self.seed)

    def restore(self, folder: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            ModelError: `folder` holds no reward head, or one on another base model.
        """
        facts, known = _about(folder), saved_head.restored(folder)
        if facts["layers"] != self.layers:
            raise ModelError(f"the reward head in {folder} reads layers {facts['layers']}, not {self.layers}; set reward.layers to them")
        if facts["dtype"] == states.dtype(self.body) and facts["digest"] != states.digest(self.body, facts["layers"]):
            raise ModelError(f"the reward head in {folder} is of another model than this one; give {facts['base']!r} as it was then")
        self.said, self.known = [], known
        self.members, self.seed = facts["members"], facts["seed"]

    @classmethod
    def load(
        cls, folder: Path | str, model: LanguageModel | None = None, *, dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> Self:
        """The reward head that `save` wrote, on `model`, or on the base model that it names, read in `dtype` ("auto": as it was then).

        Raises:
            ModelError: there is no reward head in `folder`, or its base model cannot be had or is another one now.
        """
        facts = _about(Path(folder))
        body = load(facts["base"], dtype=facts["dtype"] if dtype == "auto" else dtype) if model is None else model
        found = cls(body, facts["members"], facts["seed"], layers=facts["layers"])
        found.restore(Path(folder))
        return found


def _about(folder: Path) -> dict[str, Any]:
    facts = saved_head.about(folder)
    if "base" not in facts:
        raise ModelError(f"the reward head in {folder} is about control, and this is about text; give one that was fitted to answers")
    return facts


class _Sides:
    """Raw features of the sides of comparisons, read when they are asked for."""

    def __init__(self, head: RewardHead, comparisons: Sequence[Comparison]) -> None:
        self.head, self.comparisons = head, comparisons

    def __len__(self) -> int:
        return len(self.comparisons)

    def __getitem__(self, rows: slice, /) -> Raw:
        return self.head.sides(self.comparisons[rows])


def _said(c: Comparison, judge: str) -> Said:
    def words(t: Trajectory) -> Said:
        tokens = [None if x is None else x.tobytes() for x in (t.observations, t.actions)]
        return t.task.prompt if isinstance(t.task.prompt, str) else repr(t.task.prompt), t.text, t.terminated, *tokens

    return tuple(map(words, c.a)), tuple(map(words, c.b)), c.preference, judge
