"""`rather.control.PPO`: an agent for a Gymnasium environment, trained on the environment's reward, a learned one, or a function of yours.

Shape letters: B trajectories or rows, T actions (padded), N environments or trajectories, I numbers of an observation, A of an action.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, Tuple
from rich.console import Console
from torch import nn

from rather.control import build
from rather.control.collect import RolloutSegments
from rather.control.environments import Eye, Maker, allowed, check_env, environment, misfit, title
from rather.control.export import export
from rather.control.rewards import Reward, reward_of
from rather.control.rollout import ControlSampler
from rather.control.saved import read_about, restore_module, save_about, save_module
from rather.control.settings import PPOOptions, PPOSettings
from rather.control.wrappers import CombinedActions
from rather.core import Task, Trajectory
from rather.errors import ConfigError, DataError
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.learner import reporter
from rather.learners.metrics import Metrics
from rather.learners.progress import progress, shows
from rather.learners.train import Callback, check_callbacks, training
from rather.settings import given

EVALUATION = 1_000_000
"""Reset seeds of evaluations and rollouts begin here."""


class MeanReturn(NamedTuple):
    """Mean of the undiscounted returns of some episodes, and its standard error."""

    mean: float
    stderr: float


class PPO:
    """PPO-Clip (Schulman et al. 2017) for a Gymnasium environment.

    `env` is the environment's id or a function that makes one. `reward` is what the policy is trained on in place of the environment's
    own reward: a `RewardModel`, a function (observation, action, next_observation) -> float that is called for one step at a time, or an
    `nn.Module` that maps observations (B, I) and actions (B, A) to rewards (B,). With `StateEntropy()` it explores without a task.

    `policy` and `critic` are networks of your own: from observations (B, I) to logits (B, number of actions) or, where actions are a Box,
    means (B, A), and to values (B, 1). Observations are flat float32 vectors, scaled if `normalize` is set; A is the number of actions
    where they are Discrete, as one-hot. Networks are kept in eval mode.

    `callbacks` get (environment steps taken, metrics) after each update; where one returns True, training stops. With `folder`
    there are checkpoints in it, from the newest of which the agent goes on, bit for bit as if it had not been interrupted; without it
    nothing is written. Other keywords are the settings in `PPOSettings`.

    Raises:
        ConfigError: an argument cannot be used; the message names it.
        CheckpointError: the newest checkpoint in `folder` is damaged, or was made with other settings.
    """

    def __init__(
        self,
        env: str | Maker,
        *,
        reward: Reward | None = None,
        policy: nn.Module | None = None,
        critic: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
        folder: str | Path | None = None,
        seed: int = 0,
        **settings: Unpack[PPOOptions],
    ) -> None:
        (self.settings,) = given("control.PPO", settings, PPOSettings)
        self.env, self.seed, self.callbacks = env, seed, check_callbacks(callbacks)
        self.folder = None if folder is None else Path(folder)
        check_env(env, seed)
        one, other = self.make(), self.make()
        if one.unwrapped is other.unwrapped:
            raise ConfigError(f"env is a function that returns the same environment again; {title(env)} must make a new one at each call")
        build.Networks(policy, critic).check(one)
        self.networks = policy, critic
        self.policy = build.policy(one, self.settings, seed, policy)
        self.policy.name = f"{title(env)}@0"
        self.critic = build.critic(one, self.policy, self.settings, seed, critic)
        self._combined: CombinedActions | None = one.get_wrapper_attr("combined")
        self.reward = reward_of(reward, one, None if self._combined is None else self._combined.choices)
        source = RolloutSegments(self.policy, self.make, self.settings.envs, self.settings.rollout_segment, seed)
        self.learner = build.ppo(self.policy, self.critic, source, self.settings, seed, self.reward)
        self.target = 0
        self._space, self._eye = one.action_space, Eye(one.observation_space)
        self._chance = np.random.default_rng([seed, 1])
        if self.folder is not None and (found := checkpoint.every(self.folder)):
            checkpoint.check_same(found[-1], self._lineage())
            checkpoint.load(found[-1], self.learner)
            self._named()

    def make(self) -> gymnasium.Env:
        """A new environment as the agent sees it: checked at every step, of a fixed horizon where one is set."""
        return environment(self.env, self.settings.horizon or None, pixels=self.settings.takes_pictures)

    @property
    def steps(self) -> int:
        """Environment steps that the agent has learned from."""
        return self.learner.number * self.settings.envs * self.settings.rollout_segment

    def train(self, steps: int, bar: bool = True) -> "PPO":
        """Learn from `steps` more environment steps, rounded up to whole updates of `envs` times `rollout_segment` steps.

        An agent that has gone on from a checkpoint counts those of its steps that earlier calls in the program would have taken. With
        `bar` a terminal shows a bar, and so does a notebook where ipywidgets is installed. A learning rate that falls does so from
        the first step of all to the last of this call.

        Raises:
            ConfigError: `steps` is no whole number above 0.
            DataError: an observation or a reward is not a finite number.
            TrainingError: the loss is not finite.
        """
        if not isinstance(steps, int) or steps < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"steps is {steps!r}; train on 1 environment step at least")
        s, each = self.settings, self.settings.envs * self.settings.rollout_segment
        self.target += math.ceil(steps / each)
        self.learner.stepper.last = build.optimizer_steps(self.target, s)
        metrics = None if self.folder is None else Metrics(self.folder / "metrics.jsonl")
        console = Console(stderr=True)
        with progress(console, "training ppo", self.target * each) if bar and shows(console) else nullcontext(lambda *_: None) as advance:
            report = reporter("ppo", advance)
            for _ in training(
                self.learner, self.target, self.folder, self._lineage(), metrics, "ppo", s.checkpoint_every, s.keep,
                lambda step, values: report(step * each, values),
                callbacks=[lambda step, values, f=f: f(step * each, values) for f in self.callbacks], taken=self.learner.number,
            ):  # fmt: skip
                pass
        self.target = min(self.target, self.learner.number)  # it may have been stopped
        self._named()
        return self

    def predict(self, observation: Any, deterministic: bool = True) -> Any:
        """The action for an observation of the environment, as the environment takes it; for several in a row, (N, ...), as many actions.

        With `deterministic` it is the likeliest action, else one that is drawn.

        Raises:
            DataError: the observation has another shape than the environment's.
        """
        rows, several = self._rows(observation)
        act = self.policy.numpy_policy()
        if deterministic:
            actions = act.greedy(rows)
        else:
            actions, _ = act(rows, self.policy.noise(self._chance, len(rows)))
        actions = [allowed(self._space, action) for action in actions]
        if self._combined is not None:
            actions = [self._combined.action(action) for action in actions]
        return np.stack(actions) if several else actions[0]

    def evaluate(self, episodes: int = 20, deterministic: bool = True, seed: int = 0) -> MeanReturn:
        """Mean return of so many episodes by the environment's own reward, whatever the agent is trained on, and its standard error."""
        returns = [float(np.sum(t.rewards)) for t in self.rollouts(episodes, deterministic, seed)]  # type: ignore[arg-type]
        stderr = float(np.std(returns, ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else math.nan
        return MeanReturn(float(np.mean(returns)), stderr)

    def rollouts(self, episodes: int, deterministic: bool = False, seed: int = 0) -> list[Trajectory]:
        """So many episodes of the policy as it is now, with the environment's own rewards; see `rather.control.rollouts`."""
        if episodes < 1:
            raise ConfigError(f"episodes is {episodes}; let the policy act in 1 episode at least")
        sampler = ControlSampler(self.policy, self.make, min(episodes, 16), deterministic=deterministic)
        tasks = [Task(title(self.env), str(EVALUATION * (seed + 1) + i)) for i in range(episodes)]
        return sampler.sample(tasks, self.seed)

    def save(self, folder: str | Path) -> None:
        """Write policy, critic and settings, as safetensors and JSON; `load` reads them. The optimizer's state is left out."""
        folder = Path(folder)
        self.policy.save(folder)
        save_module(self.critic, folder / "critic.safetensors")
        save_about(folder / "agent.json", self.env, seed=self.seed, settings=self.settings.model_dump())

    def export(self, file: str | Path) -> None:
        """Write the deterministic policy for other programs: `.onnx`, or `.npz` for NumPy; see `rather.control.export`.

        Raises:
            ConfigError: the file's name ends otherwise, a package is missing, or a network of your own is to be written for NumPy.
        """
        export(self.policy, self.make(), Path(file))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        env: str | Maker | None = None,
        *,
        reward: Reward | None = None,
        policy: nn.Module | None = None,
        critic: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> "PPO":
        """The agent that `save` wrote. Give `env` if it was made by a function, and networks of your own as they were given then.

        Raises:
            CheckpointError: there is no agent in the folder, or it has other networks.
            ConfigError: `env` is needed.
        """
        about = read_about(Path(folder) / "agent.json", "agent", env, "seed", "settings")
        agent = cls(about["env"], reward=reward, policy=policy, critic=critic, callbacks=callbacks, seed=about["seed"], **about["settings"])
        agent.policy.restore(Path(folder))
        restore_module(agent.critic, Path(folder) / "critic.safetensors")
        return agent

    def _rows(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Observations (N, I), and whether there were several."""
        if (
            type(observation) is tuple
            and len(observation) == 2
            and isinstance(observation[1], dict)
            and not isinstance(self._eye.space, Tuple)
        ):
            raise DataError("predict was given observation and info, as from the environment's reset; give the observation alone")
        space, given = self._eye.space, np.shape(observation) if self._eye.space.shape is not None else None
        shape = () if isinstance(space, Discrete) else space.shape
        several = given is not None and given != shape and given[1:] == shape and len(given) > 0 and given[0] > 0
        rows = observation if several else [observation]
        if given is not None and given != shape and not several:
            raise DataError(f"the observation has shape {given}, but {title(self.env)} shows {space}; give one, or several in a row")
        for row in rows:
            if said := misfit(space, row):
                raise DataError(f"predict was given {said}")
        flat = np.stack([self._eye(row) for row in rows])
        if not np.isfinite(flat).all():
            raise DataError(f"predict was given {observation!r:.80}; observations must be finite")
        return flat, several

    def _named(self) -> None:
        self.policy.name = f"{title(self.env)}@{self.learner.number}"

    def _lineage(self) -> Lineage:
        kept = self.settings.model_dump(mode="json", exclude={"checkpoint_every", "keep"})
        reward = "environment" if self.reward is None else type(self.reward).__name__
        about = {"agent": {"env": title(self.env), "seed": self.seed, "reward": reward}, "ppo": kept}
        defaults = {"ppo": PPOSettings().model_dump(mode="json"), "agent": {"reward": reward}}  # which older checkpoints do not say
        return Lineage(about, 0, [], defaults=defaults, remedy="set it back, or train into another folder")


def rollouts(source: PPO | str | Maker, episodes: int, deterministic: bool = False, seed: int = 0) -> list[Trajectory]:
    """Episodes of an agent, or of an untrained policy in an environment, with the environment's own rewards.

    Each has `observations` (T + 1, I), flat float32 vectors, `actions` (T,) or (T, A), `logprobs` (T,) and `rewards` (T,). Equal `seed`:
    equal reset seeds, whoever acts.
    """
    agent = source if isinstance(source, PPO) else PPO(source, envs=1, seed=seed)
    return agent.rollouts(episodes, deterministic, seed)
