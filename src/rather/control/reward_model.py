"""`rather.control.RewardModel`: a reward learned from comparisons of trajectories; and how a judge function makes these.

Shape letters: B trajectories, T actions (padded), I numbers of an observation, A of an action, K members.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from gymnasium.spaces import Discrete, Space
from torch import Tensor, nn

from rather.control import build
from rather.control.environments import Maker, check_env, environment, inputs
from rather.control.saved import read_about, save_about
from rather.control.settings import RewardOptions, RewardSettings
from rather.core import Batch, Comparison, Trajectory
from rather.errors import ConfigError, DataError, JudgeError, TrainingError
from rather.learners.train import Callback, check_callbacks
from rather.settings import given
from rather.verify.functions import ANSWERS, as_number

Judge = Callable[[Trajectory, Trajectory], Any]
"""Which of two trajectories is better: "a", "b", "tie", P(a better) in [0, 1], or None where it cannot be said."""


class RewardModel:
    """A reward r(s, a), fitted to comparisons of trajectories (Christiano et al. 2017): an ensemble of nets, or with `kind="head"` a head.

    `env` says what observations and actions are: the id of an environment or a function that makes one. `networks` are members of your
    own in place of `members` nets with `hidden` layers: each an `nn.Module` from observations (B, I), scaled, and actions (B, A), as
    one-hot where they are Discrete, to rewards (B,). `callbacks` get (step, metrics) after each step of a fit; where one returns True, the
    fit ends. Other keywords are the settings in `RewardSettings`.

    Raises:
        ConfigError: an argument cannot be used; the message names it.
    """

    def __init__(
        self,
        env: str | Maker,
        *,
        networks: Sequence[nn.Module] = (),
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
        **settings: Unpack[RewardOptions],
    ) -> None:
        (self.settings,) = given("control.RewardModel", settings, RewardSettings)
        self.env, self.seed, self.callbacks = env, seed, check_callbacks(callbacks)
        check_env(env, seed)
        self._env = environment(env, self.settings.horizon or None, pixels=self.settings.takes_pictures)
        self.inputs, self.actions = inputs(self._env), self._env.action_space
        for network in networks:
            build.check_network("networks", network, [(self.inputs,), (build.width(self.actions),)], [(), (1,)], "a reward")
        self._networks = deepcopy(list(networks))
        """As they were given: every fit begins there."""
        self.model, self.fitted = self._new(), False

    def fit(
        self,
        comparisons: Sequence[Comparison],
        eval: Sequence[Comparison] | None = None,
        patience: int | None = None,
        unlabeled: Sequence[Trajectory] | None = None,
    ) -> "RewardModel":
        """Learn from comparisons, from the beginning: what an earlier fit has learned is forgotten.

        With `eval`, others that are held out, the model is evaluated on them each epoch. With `patience` the fit ends after so many epochs
        in a row that do not lower the loss on them, and the weights of the best epoch are kept. The settings `pseudo_labels` and `dynamics`
        learn from fragments of `unlabeled`, such as what `rather.control.rollouts` returns; `dynamics` without it from what was compared.
        After an error the reward model is as it was before.

        Raises:
            ConfigError: there is a `patience` but no `eval`, or a head, which has no epochs; there are `pseudo_labels` but nothing
                `unlabeled`, or neither `pseudo_labels` nor `dynamics` learns from what is `unlabeled`.
            DataError: there is none that has a preference, `unlabeled` is empty, nothing in it is as long as their sides, or a trajectory
                is none of the environment.
            TrainingError: the loss is not finite.
        """
        answered, held_out = _answered(comparisons), None if eval is None else _answered(eval)
        if patience is not None and self.settings.kind == "head":
            raise ConfigError('patience is for kind = "nets", and a head is fitted in one step; leave it out')
        if unlabeled is not None and not (self.settings.pseudo_labels or self.settings.dynamics):
            raise ConfigError("unlabeled trajectories are learned from by pseudo_labels and dynamics; set one, or leave them out")
        if unlabeled is not None and not len(unlabeled):
            raise DataError("unlabeled is empty; give trajectories, as from rather.control.rollouts, or leave it out")
        seen = _trajectories(answered)
        for name, trajectories in (("comparisons", seen), ("eval", _trajectories(held_out or ())), ("unlabeled", unlabeled or ())):
            self._check(name, trajectories)
        pool = None if unlabeled is None else lambda _: unlabeled
        model = self._new()
        model.see(seen)
        learner = build.reward_learner(model, answered, self.settings, self.seed, self.callbacks, pool)
        learner.train(held_out, patience)
        self.model, self.fitted = model, True
        return self

    def score(self, trajectories: Sequence[Trajectory]) -> list[float]:
        """The sum of each trajectory's rewards; see `rewards`.

        Raises:
            DataError: a trajectory is none of the environment.
            TrainingError: it has not been fitted.
        """
        if not len(trajectories):
            return []
        self._check("what is scored", trajectories)
        batch = self.model.collate(trajectories)
        return self.rewards(batch).sum(-1).tolist()

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T): the members' mean, less `pessimism` standard deviations of the members, or of a head's posterior.

        Raises:
            TrainingError: it has not been fitted.
        """
        if not self.fitted:
            raise TrainingError("the reward model has not been fitted, and would reward everything by 0; call fit(comparisons) first")
        return self.model.rewards(batch)

    def save(self, folder: str | Path) -> None:
        """Write nets and settings, as safetensors and JSON; `load` reads them."""
        self.model.save(Path(folder))
        settings = self.settings.model_dump()
        save_about(Path(folder) / "reward.json", self.env, seed=self.seed, fitted=self.fitted, settings=settings)

    @classmethod
    def load(cls, folder: str | Path, env: str | Maker | None = None, *, networks: Sequence[nn.Module] = ()) -> "RewardModel":
        """The reward model that `save` wrote. Give `env` if it was made by a function, and networks of your own as they were given then.

        Raises:
            CheckpointError: there is none in the folder, or it has other networks.
            ConfigError: `env` is needed.
        """
        about = read_about(Path(folder) / "reward.json", "reward model", env, "seed", "fitted", "settings")
        found = cls(about["env"], networks=networks, seed=about["seed"], **about["settings"])
        found.model.restore(Path(folder))
        found.fitted = about["fitted"]
        return found

    def _new(self) -> Any:
        return build.reward_model(self._env, self.settings, self.seed, deepcopy(self._networks))

    def _check(self, name: str, trajectories: Sequence[Trajectory]) -> None:
        for t in trajectories:
            if said := _misfit(t, self.inputs, self.actions):
                raise DataError(f"a trajectory in {name} has {said}; give trajectories of the environment, as from rather.control.rollouts")


def _misfit(t: Trajectory, inputs: int, actions: Space) -> str:
    """What a trajectory has that none of an environment has; "" if there is nothing."""
    if t.observations is None or t.actions is None or t.logprobs is None or t.rewards is None:
        return f"no {next(x for x in ('observations', 'actions', 'logprobs', 'rewards') if getattr(t, x) is None)}"
    seen, *others = (len(x) for x in (t.observations, t.actions, t.logprobs, t.rewards))
    if seen < 2 or set(others) != {seen - 1}:
        return f"{seen} observations, and of actions, logprobs and rewards {others}, where each belongs between two observations"
    if (width := math.prod(t.observations.shape[1:])) != inputs:
        return f"observations of {width} numbers, and those of the environment are of {inputs}"
    if not np.isfinite(t.observations).all():
        return "an observation that is not finite"
    if t.actions.shape[1:] != (actions.shape or ()):
        return f"actions of shape {t.actions.shape[1:]}, and those of the environment are {actions}"
    if isinstance(actions, Discrete):
        fit = (t.actions >= actions.start) & (t.actions < actions.start + actions.n) & (t.actions == np.rint(t.actions))
    else:
        fit = np.isfinite(t.actions)
    return "" if fit.all() else f"the action {t.actions[~fit][0]}, and those of the environment are {actions}"


def _trajectories(comparisons: Sequence[Comparison]) -> list[Trajectory]:
    return [t for c in comparisons for side in c.sides for t in side]


def _answered(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those that have a preference, as comparisons of two sides."""
    found = [pair for c in comparisons if c.preference is not None or c.best is not None for pair in c.pairs()]
    if not found:
        raise DataError(f"none of {len(comparisons)} comparisons has a preference; have them answered, as by rather.control.compare")
    return found


def compare(trajectories: Sequence[Trajectory], judge: Judge, name: str = "judge") -> list[Comparison]:
    """Have `judge` compare the first trajectory with the second, the third with the fourth, and so on; an odd one is left out.

    `judge(a, b)` says "a", "b", "tie", P(a better) in [0, 1], or None, which leaves the pair out. `name` is kept with the answers: give
    each judge one of its own.

    Raises:
        JudgeError: the judge raised an error, or said something else.
    """
    found = list[Comparison]()
    for i, (a, b) in enumerate(zip(trajectories[0::2], trajectories[1::2], strict=False)):
        try:
            said = judge(a, b)
        except Exception as e:
            raise JudgeError(f"{name} raised {type(e).__name__} at pair {i}: {e}") from e
        if said is not None:
            found.append(Comparison((a,), (b,), _preference(said, name, i), f"{name}-{i}", name))
    return found


def _preference(said: Any, name: str, pair: int) -> float:
    preference = ANSWERS.get(said, math.nan) if isinstance(said, str) else as_number(said)
    if not 0 <= preference <= 1:
        raise JudgeError(f"{name} said {said!r} of pair {pair}; it must say 'a', 'b', 'tie', P(a better) from 0 to 1, or None")
    return preference
