"""Policies at work in environments: whole episodes with exact seeds, and fragments of them.

Shape letters: N episodes at work, T actions of an episode, I inputs.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np

from rather.control.environments import Eye, allowed
from rather.control.models import ControlPolicy
from rather.core import Perturbation, Task, Trajectory, perturbed, row_seed
from rather.errors import DataError


@dataclass
class _Episode:
    """An episode on its way."""

    number: int
    env: gymnasium.Env
    chance: np.random.Generator
    observations: list[np.ndarray]
    actions: list[Any] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


class ControlSampler:
    """Lets a policy act in copies of one environment, `rows` of them side by side.

    With `deterministic` it acts deterministically. The policy's normalizer does not learn from what is seen (see `RolloutSegments`).
    """

    def __init__(self, policy: ControlPolicy, make: Callable[[], gymnasium.Env], rows: int = 16, deterministic: bool = False) -> None:
        self.policy, self.make, self.rows, self.deterministic = policy, make, rows, deterministic
        self.idle: list[gymnasium.Env] = []

    def sync(self) -> None:
        """Nothing: sampler and learner share their weights."""

    def sample(self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None) -> list[Trajectory]:
        """One episode a task, whose `key` is the reset seed; the i-th depends on its task, `seed` and how often that came before.

        Policies with different perturbations meet the same chances, draw by draw. What else is at work changes one by rounding alone.

        Raises:
            DataError: an observation or a reward is not a finite number, or the policy cannot be perturbed.
        """
        wanted = [None] * len(tasks) if perturbations is None else list(perturbations)
        kinds = list(dict.fromkeys(wanted))
        space, several = self.policy.space, kinds != [None]
        if several and space is None:
            raise DataError("this policy has no space to perturb; give it a ControlSpace")
        act = self.policy.numpy_policy([space.layers(p) for p in kinds] if several and space is not None else None)
        done: list[Trajectory | None] = [None] * len(tasks)
        seen = dict[tuple[str, str, Perturbation | None], int]()
        waiting, working = list(enumerate(zip(tasks, wanted, strict=True)))[::-1], list[_Episode]()
        while waiting or working:
            while waiting and len(working) < self.rows:
                number, (task, p) = waiting.pop()
                index = seen[task.source, task.key, p] = seen.get((task.source, task.key, p), -1) + 1
                working.append(self._start(number, task, row_seed(seed, task, index)))
            observations = np.stack([w.observations[-1] for w in working])
            noise = np.stack([self.policy.noise(w.chance) for w in working])
            which = np.array([kinds.index(wanted[w.number]) for w in working]) if several else None
            actions, logprobs = (
                (act.greedy(observations, which), np.zeros(len(working))) if self.deterministic else act(observations, noise, which)
            )
            going = []
            for w, action, logprob in zip(working, actions, logprobs, strict=True):
                terminated, truncated = self._step(w, action, float(logprob), tasks[w.number])
                if terminated or truncated:
                    done[w.number] = self._finish(w, tasks[w.number], wanted[w.number], terminated)
                else:
                    going.append(w)
            working = going
        return [t for t in done if t is not None]

    def _start(self, number: int, task: Task, seed: int) -> _Episode:
        env = self.idle.pop() if self.idle else self.make()
        observation, _ = env.reset(seed=int(task.key))
        episode = _Episode(number, env, np.random.default_rng(seed), [])
        self._see(episode, observation, task)
        return episode

    def _step(self, w: _Episode, action: Any, logprob: float, task: Task) -> tuple[bool, bool]:
        observation, reward, terminated, truncated, _ = w.env.step(allowed(w.env.action_space, action))
        if not np.isfinite(float(reward)):
            raise DataError(
                f"{task.source} returned the reward {reward} at step {len(w.rewards) + 1} of seed {task.key}; rewards must be finite"
            )
        w.actions.append(action)
        w.logprobs.append(logprob)
        w.rewards.append(float(reward))
        self._see(w, observation, task)
        return terminated, truncated

    def _see(self, w: _Episode, observation: Any, task: Task) -> None:
        flat = Eye(w.env.observation_space)(observation)
        if not np.isfinite(flat).all():
            raise DataError(f"{task.source} showed {observation} at step {len(w.rewards)} of seed {task.key}; observations must be finite")
        w.observations.append(flat)

    def _finish(self, w: _Episode, task: Task, perturbation: Perturbation | None, terminated: bool) -> Trajectory:
        self.idle.append(w.env)
        return Trajectory(
            task=task,
            policy=perturbed(self.policy.name, perturbation),
            terminated=bool(terminated),
            observations=np.stack(w.observations),
            actions=np.stack(w.actions),
            logprobs=np.array(w.logprobs, np.float32),
            rewards=np.array(w.rewards, np.float32),
        )


def rewards(trajectory: Trajectory) -> np.ndarray:
    """The rewards of an episode, (T,), which every one has."""
    assert trajectory.rewards is not None
    return trajectory.rewards


def identity(trajectory: Trajectory) -> bytes:
    """Stands for what a judge sees of an episode or fragment, observations and rewards: equal for two that nobody can tell apart."""
    found = hashlib.blake2b(digest_size=16)
    for values in (trajectory.observations, trajectory.rewards):
        found.update(np.ascontiguousarray(values).tobytes())
    return found.digest()


def fragments(
    trajectories: Sequence[Trajectory], length: int, count: int, seed: int, known: Collection[bytes] = frozenset()
) -> list[Trajectory]:
    """Up to `count` pieces of `length` steps, each equally likely; one that does not reach the end of its episode is not terminated.

    All are distinct, and none has its `identity` among the `known` ones; there are fewer than `count` where episodes hold no more.

    Raises:
        DataError: no episode is that long.
    """
    starts = [(t, s) for t in trajectories for s in range(len(t.rewards) - length + 1)]  # type: ignore[arg-type]
    if not starts:
        raise DataError(f"no episode has {length} steps; shorten query.fragment or let episodes last longer")
    found, seen = list[Trajectory](), set(known)
    for i in np.random.default_rng(seed).permutation(len(starts)):
        cut = piece(starts[i][0], starts[i][1], length)
        if (name := identity(cut)) not in seen:
            seen.add(name)
            found.append(cut)
            if len(found) == count:
                break
    return found


def piece(t: Trajectory, start: int, length: int) -> Trajectory:
    """`length` steps of an episode or fragment; terminated if that was and they reach its end."""
    assert t.observations is not None
    assert t.actions is not None
    assert t.logprobs is not None
    assert t.rewards is not None
    steps = slice(start, start + length)
    before = t.actions[:start] if t.before is None else np.concatenate([t.before, t.actions[:start]])
    whole = start + length == len(t.rewards)
    return replace(
        t, observations=t.observations[start : start + length + 1], actions=t.actions[steps], logprobs=t.logprobs[steps],
        rewards=t.rewards[steps], terminated=t.terminated and whole, before=before,
    )  # fmt: skip


def check_lengths(trajectories: Sequence[Trajectory]) -> None:
    """Refuse episodes of different lengths: a judge of whole episodes would only have to count their steps.

    Raises:
        DataError: they differ.
    """
    lengths = [len(rewards(t)) for t in trajectories]
    if min(lengths) < max(lengths):
        raise DataError(f"attempts last {min(lengths)} to {max(lengths)} steps, which gives their returns away; give them a fixed horizon")
