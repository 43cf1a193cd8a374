"""What may be wrong with a run about control: its environment, the lengths of its episodes, their replay, its clips and its questions."""

import itertools
from collections.abc import Callable

import numpy as np

from rather.config.schema import Config
from rather.control import build as control
from rather.control.clips import again
from rather.control.environments import Env, inputs
from rather.control.rollout import ControlSampler, identity, rewards
from rather.control.settings import PPOSettings
from rather.control.squashed import squashed_policy
from rather.core import Task, Trajectory
from rather.errors import Check, DataError, Finding, RatherError
from rather.settings import OFF_POLICY, REWARDED
from rather.store import Store
from rather.store.clips import progress

TRIED = 3
"""Episodes of an untrained policy that are looked at."""


class Looks:
    """Looks at a run about control; `make` makes its environment, paying the gold reward, or `draw` shows whether it can be drawn."""

    def __init__(self, config: Config, make: Callable[[], Env], draw: Callable[[], Env], store: Store) -> None:
        self.config, self.make, self.draw, self.store = config, make, draw, store

    @property
    def checks(self) -> list[Check]:
        """Everything that is looked at."""
        return [self.environment, self.clips, self.questions]

    def environment(self) -> list[Finding]:
        """Whether the environment can be used, how long its episodes are, and whether they can be played again."""
        env, c = self.make(), self.config.control
        found = [Finding("good", f"{c.env}: {inputs(env)} numbers are observed, actions are {env.action_space}")]
        if self.config.train.learner in OFF_POLICY:
            policy = squashed_policy(env, (), 0)
        else:
            policy = control.policy(env, PPOSettings(network=c.network), 0)
        tasks = [Task(c.env, str(seed)) for seed in range(TRIED)]
        episodes = ControlSampler(policy, self.make, TRIED).sample(tasks, 0)
        return [*found, *self._lengths(episodes), self._replay(episodes), *self._pictures()]

    def _lengths(self, episodes: list[Trajectory]) -> list[Finding]:
        c, of = self.config.control, self.config.query.fragment
        fragments = of if isinstance(of, list) else [of]
        lengths = [len(rewards(t)) for t in episodes]
        least, most = min(lengths), max(lengths)
        if least < most and not c.allow_uneven:
            remedy = "set control.horizon, or allow it with control.allow_uneven = true"
            return [Finding("bad", f"episodes last {least} to {most} steps, which gives their returns away to judges; {remedy}")]
        found = list[Finding]()
        if c.horizon and most < c.horizon:
            found.append(Finding("note", f"control.horizon is {c.horizon}, but the environment itself ends episodes after {most} steps"))
        if max(fragments) > most:
            remedy = "shorten it, or lengthen control.horizon"
            found.append(Finding("bad", f"query.fragment is {max(fragments)}, but episodes last {most} steps; {remedy}"))
        said = " and ".join(str(n or "all") for n in fragments)
        lasting = f"{most}" if least == most else f"{least} to {most}"
        return found or [Finding("good", f"episodes last {lasting} steps; fragments of {said} steps are compared")]

    def _replay(self, episodes: list[Trajectory]) -> Finding:
        env = self.make()
        try:
            for _ in itertools.chain.from_iterable(again(t, env) for t in episodes):
                pass
        except DataError as e:
            return Finding("bad", f"{e}; clips cannot be drawn, and training that was stopped cannot go on")
        return Finding("good", f"{len(episodes)} episodes that were played again from seed and actions were the same")

    def _pictures(self) -> list[Finding]:
        try:
            self.draw().close()
        except RatherError as e:
            return [Finding("bad" if self.config.judge.kind == "people" else "note", str(e))]
        return []

    def clips(self) -> list[Finding]:
        """How many clips are drawn, and why others are not."""
        now = progress(self.store, self.config.run.name)
        if not now.drawn and not now.failed:
            return []
        return [Finding("bad" if now.failed else "good", str(now))]

    def questions(self) -> list[Finding]:
        """Whether questions repeat themselves."""
        train = self.config.train
        if train.learner == "zeroth" or (train.learner in REWARDED and train.reward != "labels"):
            return []  # it asks as it goes, or not at all
        asked = [q.comparison for q in self.store.questions(self.config.run.name, "train", beginning="round-")]
        if not asked:
            return [Finding("note", "no questions yet; run `rather sample`")]
        pairs = [frozenset(identity(t) for side in c.sides for t in side) for c in asked]
        different = len({pair for pair in pairs if len(pair) > 1})
        if different < len(asked):
            remedy = "raise query.episodes, shorten query.fragment, or begin anew under another run.name"
            return [Finding("bad", f"{len(asked)} questions are about {different} distinct pairs of fragments; {remedy}")]
        steps = [len(np.asarray(t.actions)) for c in asked for t in (*c.a, *c.b)]
        return [Finding("good", f"{len(asked)} questions, all distinct, about fragments of {min(steps)} to {max(steps)} steps")]
