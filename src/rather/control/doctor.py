"""What is wrong with a run about control: its environment, the lengths of its episodes, their replay, its clips and its questions."""

import itertools
from typing import Any

import numpy as np

from rather.control.clips import again
from rather.control.environments import inputs
from rather.control.models import ControlPolicy
from rather.control.rollout import ControlSampler, identity
from rather.core import Task, Trajectory
from rather.errors import DataError, Finding, RatherError
from rather.store.clips import progress

TRIED = 3
"""Episodes of an untrained policy that are looked at."""


def check(run: Any) -> list[Finding]:
    """Try the environment, and look at the clips and questions of the run."""
    found: list[Finding] = []
    try:
        found += environment(run)
    except RatherError as e:
        found.append(Finding("bad", str(e)))
    return [*found, *clips(run), *questions(run)]


def environment(run: Any) -> list[Finding]:
    """Whether the environment can be used, how long its episodes are, and whether they can be played again."""
    env, c = run.domain.make(gold=True), run.config.control
    found = [Finding("good", f"{c.env}: {inputs(env)} numbers are observed, actions are {env.action_space}")]
    policy = ControlPolicy(inputs(env), env.action_space, (), False)
    tasks = [Task(c.env, str(seed)) for seed in range(TRIED)]
    episodes = ControlSampler(policy, lambda: run.domain.make(gold=True), TRIED).sample(tasks, 0)
    return [*found, *_lengths(run, episodes), _replay(run, episodes), *_pictures(run)]


def _lengths(run: Any, episodes: list[Trajectory]) -> list[Finding]:
    c, fragment = run.config.control, run.config.query.fragment
    lengths = [len(t.rewards) for t in episodes if t.rewards is not None]
    least, most = min(lengths), max(lengths)
    if least < most and not c.allow_uneven:
        remedy = "set control.horizon, or allow it with control.allow_uneven = true"
        return [Finding("bad", f"episodes last {least} to {most} steps, which gives their returns away to judges; {remedy}")]
    found = []
    if c.horizon and most < c.horizon:
        found.append(Finding("note", f"control.horizon is {c.horizon}, but the environment itself ends episodes after {most} steps"))
    if fragment > most:
        found.append(
            Finding("bad", f"query.fragment is {fragment}, but episodes last {most} steps; shorten it, or lengthen control.horizon")
        )
    lasting = f"{most}" if least == most else f"{least} to {most}"
    return found or [Finding("good", f"episodes last {lasting} steps; fragments of {fragment or 'all'} steps are compared")]


def _replay(run: Any, episodes: list[Trajectory]) -> Finding:
    env = run.domain.make(gold=True)
    try:
        for _ in itertools.chain.from_iterable(again(t, env) for t in episodes):
            pass
    except DataError as e:
        return Finding("bad", f"{e}; clips cannot be drawn, and training that was stopped cannot go on")
    return Finding("good", f"{len(episodes)} episodes that were played again from seed and actions were the same")


def _pictures(run: Any) -> list[Finding]:
    try:
        run.domain.make(pictures=True).close()
    except RatherError as e:
        return [Finding("bad" if run.config.judge.kind == "people" else "note", str(e))]
    return []


def clips(run: Any) -> list[Finding]:
    """How many clips are drawn, and why others are not."""
    now = progress(run.store, run.config.run.name)
    if not now.drawn and not now.failed:
        return []
    return [Finding("bad" if now.failed else "good", str(now))]


def questions(run: Any) -> list[Finding]:
    """Whether questions repeat themselves."""
    train = run.config.train
    if train.learner == "zeroth" or (train.learner == "ppo" and train.reward != "labels"):
        return []  # it asks as it goes, or not at all
    asked = [q.comparison for q in run.store.questions(run.config.run.name, "train", beginning="round-")]
    if not asked:
        return [Finding("note", "no questions yet; run `rather sample`")]
    pairs = [frozenset(identity(t) for side in c.sides for t in side) for c in asked]
    different = len({pair for pair in pairs if len(pair) > 1})
    if different < len(asked):
        remedy = "raise query.episodes, shorten query.fragment, or begin anew under another run.name"
        return [Finding("bad", f"{len(asked)} questions are about {different} distinct pairs of fragments; {remedy}")]
    steps = [len(np.asarray(t.actions)) for c in asked for t in (*c.a, *c.b)]
    return [Finding("good", f"{len(asked)} questions, all distinct, about fragments of {min(steps)} to {max(steps)} steps")]
