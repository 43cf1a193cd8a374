"""Off-policy learners of Stable-Baselines3 in a run: a `ControlPolicy` follows their policy, their replay buffer goes from round to round.

Shape letters: N environments, T steps in the replay buffer, I numbers of an observation, A of an action.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import nn

from rather.control.models import ControlPolicy, ControlReward
from rather.control.replay import relabel
from rather.control.resumable import ResumableEnv
from rather.control.squashed import SquashedMLP, log_std_of
from rather.control.state_entropy import StateEntropy
from rather.errors import ConfigError, TrainingError, installing
from rather.learners.off_policy_settings import OffPolicySettings
from rather.learners.spread import spread

LOSSES = {"train/actor_loss": "policy_loss", "train/critic_loss": "critic_loss", "train/ent_coef": "ent_coef"}
"""What Stable-Baselines3 logs, and what a run calls it."""
BUFFERED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""The arrays of a replay buffer, (T, N, ...) each."""
NEWEST = 1000
"""The noise of SAC's actions is measured on so many of the newest steps in the buffer."""
RATE = "sb3.learning_rate"
INITIALIZE, STEP, NOISE = range(3)
"""What chance is drawn for."""


class OffPolicy:
    """Trains SAC or TD3 of Stable-Baselines3: one `step` acts for `steps` steps in each of `rows` environments, and learns meanwhile.

    Their policy begins with the weights of `policy`, a `squashed_policy`, and after each step its weights are copied back. `reward` stands
    for the environment's own; a `StateEntropy` rewards steps when they are drawn from the replay buffer, by all states in there, as PEBBLE
    does. What a step does depends on the state, `seed` and the step's number alone. Everything is on the CPU.

    Raises:
        ConfigError: Stable-Baselines3 is not there.
    """

    def __init__(
        self,
        algorithm: str,
        policy: ControlPolicy,
        make: Callable[[], gymnasium.Env],
        reward: ControlReward | StateEntropy | None,
        rows: int,
        steps: int,
        seed: int,
        gold: str,
        settings: OffPolicySettings,
    ) -> None:
        self.model, self.seed, self.steps, self.settings, self.number = policy, seed, rows * steps, settings, 0
        self.reward, self.entropy = (None, reward) if isinstance(reward, StateEntropy) else (reward, None)
        self.envs = [ResumableEnv(make(), self.reward, (seed, i), gold) for i in range(rows)]
        with _chance(seed, INITIALIZE):
            self.sb3 = _made(algorithm, self.envs, policy, settings, self.entropy)
        assert isinstance(policy.net, SquashedMLP)
        with torch.no_grad():
            for theirs, ours in zip(self._layers(), policy.net.layers, strict=True):
                theirs.weight.copy_(ours.weight)
                theirs.bias.copy_(ours.bias)

    def step(self) -> dict[str, float]:
        """Act and learn; returns the metrics of the step.

        Raises:
            TrainingError: a loss is not finite.
            DataError: an observation or a reward is no finite number.
        """
        sb3, before = self.sb3, self.sb3.num_timesteps
        for env in self.envs:
            env.ended.clear()
        try:
            with _chance(self.seed, STEP, self.number, actions=sb3.action_space):
                sb3.learn(self.steps, log_interval=None, reset_num_timesteps=False)
        except ValueError as e:
            if "invalid values" not in str(e):  # so PyTorch says that a mean is not a number
                raise
            raise TrainingError(f"training broke down in step {self.number + 1} ({' '.join(str(e).split())[:100]}); lower {RATE}") from e
        logged = {name: float(sb3.logger.name_to_value[key]) for key, name in LOSSES.items() if key in sb3.logger.name_to_value}
        sb3.logger.name_to_value.clear()
        self.number += 1
        if not all(np.isfinite(value) for value in logged.values()):
            raise TrainingError(f"a loss of step {self.number} is not finite: {logged}; lower {RATE}")
        self._copy_back()
        kept = {"replay_buffer_size": float(sb3.replay_buffer.size() * len(self.envs)), "tokens": float(sb3.num_timesteps - before)}
        return logged | self._returns() | kept | ({} if self.entropy is None else self.entropy.metrics())

    def go_on_from(self, state: dict[str, Any], critics: bool = True) -> None:
        """Take over networks, optimizers and replay buffer of the round before, whose steps are rewarded again by the reward of now.

        `model` is that round's policy already. Without `critics` these begin untrained: what they learned is of no use for this reward. The
        environments begin new episodes.

        Raises:
            DataError: the reward of a step is no finite number.
        """
        self._load(state, critics)
        if self.reward is not None:
            relabel(self.sb3, self.reward)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers, the steps in the replay buffer, and where each environment is."""
        parameters, buffer = self.sb3.get_parameters(), self.sb3.replay_buffer
        state: dict[str, Any] = {"number": self.number, "policy": dict(parameters.pop("policy"))}
        state["optimizers"] = {name: [dict(x) for _, x in sorted(of["state"].items())] for name, of in parameters.items()}
        state["buffer"] = {name: torch.from_numpy(getattr(buffer, name)[: buffer.size()]) for name in BUFFERED} | {"next": buffer.pos}
        state["buffer"] |= {"rows": buffer.buffer_size}
        state |= {"reward": "" if self.reward is None else _digest(self.reward)}
        state |= {"num_timesteps": self.sb3.num_timesteps, "updates": self.sb3._n_updates}
        if (coefficient := getattr(self.sb3, "log_ent_coef", None)) is not None:
            state["log_ent_coef"] = coefficient.detach()
        if self.entropy is not None:
            state["entropy"] = self.entropy.memory()
        return state | {"envs": [env.state_dict() for env in self.envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back, and bring every environment back to where it was; where the reward is another now, steps are rewarded again.

        Raises:
            DataError: an environment is not decided by its seed and actions.
        """
        self._load(state)
        if self.reward is not None and state["reward"] != _digest(self.reward):  # more labels have come since
            relabel(self.sb3, self.reward)
        if self.entropy is not None:
            self.entropy.recall(state["entropy"])
        self.number = state["number"]
        for env, saved in zip(self.envs, state["envs"], strict=True):
            env.load_state_dict(saved)
        if self.number:
            self.sb3._last_obs = np.stack([env.observation for env in self.envs])
            self.sb3._last_episode_starts = np.array([not env.actions for env in self.envs])

    def _load(self, state: dict[str, Any], critics: bool = True) -> None:
        sb3, buffer, saved = self.sb3, self.sb3.replay_buffer, state["buffer"]
        for what, was, now in (
            ("copies of the environment", saved["rewards"].shape[1], len(self.envs)),
            ("steps of each copy in the replay buffer at most", saved["rows"], buffer.buffer_size),
        ):
            if was != now:
                raise ValueError(f"it has {was} {what}, and now there are {now}")
        parameters = sb3.get_parameters()
        taken = {name for name in (*state["policy"], *state["optimizers"]) if critics or not name.startswith("critic")}
        parameters["policy"] = parameters["policy"] | {name: x for name, x in state["policy"].items() if name in taken}
        for name in taken & state["optimizers"].keys():
            parameters[name] = parameters[name] | {"state": dict(enumerate(state["optimizers"][name]))}
        sb3.set_parameters(parameters, exact_match=True, device="cpu")
        count = len(saved["rewards"])
        for name in BUFFERED:
            getattr(buffer, name)[:count] = saved[name].numpy()
        buffer.pos, buffer.full = saved["next"], count == buffer.buffer_size
        sb3.num_timesteps, sb3._n_updates = state["num_timesteps"], state["updates"]
        if "log_ent_coef" in state:
            with torch.no_grad():
                sb3.log_ent_coef.copy_(state["log_ent_coef"])

    def _layers(self) -> list[nn.Linear]:
        """The layers of their deterministic action."""
        every = self.sb3.policy.actor.named_modules()
        return [layer for name, layer in every if isinstance(layer, nn.Linear) and not name.startswith("log_std")]

    @torch.no_grad()
    def _copy_back(self) -> None:
        """Let our policy act as theirs does now, with normal noise whose standard deviation is that of their draws."""
        policy, buffer, theirs = self.model, self.sb3.replay_buffer, self.sb3.policy.actor
        assert isinstance(policy.net, SquashedMLP)
        assert policy.log_std is not None
        for layer, ours in zip(self._layers(), policy.net.layers, strict=True):
            ours.weight.copy_(layer.weight)
            ours.bias.copy_(layer.bias)
        noise = torch.full((policy.outputs,), self.settings.action_noise)
        if hasattr(theirs, "log_std") and buffer.size():
            newest = (buffer.pos - 1 - np.arange(min(buffer.size(), NEWEST))) % buffer.size()
            observations = torch.from_numpy(buffer.observations[newest, 0])
            with _chance(self.seed, NOISE, self.number):
                noise = (theirs(observations) - theirs(observations, deterministic=True)).square().mean(0).sqrt()
        policy.log_std.copy_(log_std_of(noise, policy.net))

    def _returns(self) -> dict[str, float]:
        """What the episodes came to that ended in the step."""
        ended = [episode for env in self.envs for episode in env.ended]
        if not ended:
            return {}
        each = range(len(ended))
        found = {} if self.entropy is not None else spread("score", [e.score for e in ended], each)
        found |= spread("return", [e.environment_return for e in ended], each)
        found |= {"trajectory_length": float(np.mean([e.length for e in ended]))}
        return found | (spread("gold", [e.gold for e in ended], each) if self.envs[0].gold else {})


def _digest(reward: ControlReward) -> str:
    """Digits that stand for a reward model."""
    numbers = b"".join(x.numpy(force=True).tobytes() for x in reward.state_dict().values())
    return hashlib.sha256(numbers + str(reward.pessimism).encode()).hexdigest()[:16]


def check_installed() -> None:
    """Make sure that Stable-Baselines3 is there.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("stable_baselines3") is None:
        raise ConfigError(f"train.learner names a learner of the package stable-baselines3: {installing('sb3')}")


def _made(algorithm: str, envs: Sequence[ResumableEnv], policy: ControlPolicy, s: OffPolicySettings, entropy: StateEntropy | None) -> Any:
    """The learner, whose networks are at random."""
    check_installed()
    from stable_baselines3 import SAC, TD3
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv

    assert isinstance(policy.net, SquashedMLP)
    vector = DummyVecEnv([lambda env=env: env for env in envs])
    shared: dict[str, Any] = {
        "learning_rate": s.learning_rate, "buffer_size": s.buffer_size, "learning_starts": s.learning_starts, "batch_size": s.batch_size,
        "tau": s.tau, "gamma": s.gamma, "train_freq": s.train_freq, "gradient_steps": s.gradient_steps, "device": "cpu",
        "policy_kwargs": {"net_arch": [layer.out_features for layer in policy.net.layers][:-1]},
    }  # fmt: skip
    if entropy is not None:
        from rather.control.exploring_buffer import ExploringBuffer

        shared |= {"replay_buffer_class": ExploringBuffer, "replay_buffer_kwargs": {"entropy": entropy}}
    try:
        if algorithm == "SAC":
            learner = SAC("MlpPolicy", vector, ent_coef=s.ent_coef, **shared)
        else:
            learner = TD3(
                "MlpPolicy", vector, policy_delay=s.policy_delay, target_policy_noise=s.target_policy_noise,
                target_noise_clip=s.target_noise_clip,
                action_noise=NormalActionNoise(np.zeros(policy.outputs), np.full(policy.outputs, s.action_noise)), **shared,
            )  # fmt: skip
    except MemoryError as e:
        what = f"a replay buffer of {s.buffer_size:,} steps of {policy.inputs:,} numbers does not fit into memory ({e})"
        raise ConfigError(f"{what}; lower sb3.buffer_size") from None
    learner.set_logger(Logger(None, []))
    return learner


@contextmanager
def _chance(*seeds: int, actions: Box | None = None) -> Generator[None]:
    """Let NumPy's and PyTorch's global chance, by which Stable-Baselines3 draws, depend on `seeds`, and afterwards be as it was before.

    A space of `actions` draws by them, too.
    """
    number = int(np.random.SeedSequence([*seeds]).generate_state(1)[0])
    before = np.random.get_state()  # noqa: NPY002, which is what it draws by
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        if actions is not None:
            actions.seed(number)
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
