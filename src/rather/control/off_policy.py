"""Off-policy learners of Stable-Baselines3 in a run: a `ControlPolicy` follows their policy, their replay buffer goes from round to round.

Shape letter: N steps.
"""

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
from rather.control.recorded import Recorded
from rather.control.replay import relabel
from rather.control.squashed import Squashed, log_std
from rather.errors import ConfigError, TrainingError, installing
from rather.learners.off_policy_settings import OffPolicySettings
from rather.learners.spread import spread

OWN = {"SAC": {"ent_coef"}, "TD3": {"policy_delay", "target_policy_noise", "target_noise_clip"}}
COMMON = OffPolicySettings.model_fields.keys() - {"action_noise", *OWN["SAC"], *OWN["TD3"]}
"""Settings that one of them has, and that both have, as arguments of their constructors."""
LOSSES = {"train/actor_loss": "policy_loss", "train/critic_loss": "value_loss", "train/ent_coef": "entropy_weight"}
"""What Stable-Baselines3 logs, and what a run calls it."""


class OffPolicy:
    """SAC or TD3 of Stable-Baselines3: a step is `steps` steps in each of `rows` environments, learned from as `settings` say.

    `policy` is a `squashed_policy`: the learner's own begins as it is, and it follows that after each step. `reward` stands for the
    environment's own. What `step` does depends on the state, `seed` and its number alone: all chance is drawn by these.

    Raises:
        ConfigError: Stable-Baselines3 is not there.
    """

    def __init__(
        self,
        algorithm: str,
        policy: ControlPolicy,
        make: Callable[[], gymnasium.Env],
        reward: ControlReward | None,
        rows: int,
        steps: int,
        seed: int,
        gold: str = "",
        settings: OffPolicySettings | None = None,
    ) -> None:
        self.model, self.reward, self.seed, self.steps, self.number = policy, reward, seed, rows * steps, 0
        self.own = settings or OffPolicySettings()
        self.envs = [Recorded(make(), reward, (seed, i), gold) for i in range(rows)]
        with _chance(seed):
            self.learner = _made(algorithm, self.envs, policy, self.own)
        assert isinstance(policy.net, Squashed)
        with torch.no_grad():
            for theirs, ours in zip(self._layers(), policy.net.linears, strict=True):
                theirs.weight.copy_(ours.weight)
                theirs.bias.copy_(ours.bias)

    def step(self) -> dict[str, float]:
        """Act, learn, and let the policy follow.

        Raises:
            TrainingError: a loss is not finite.
            DataError: an observation or a reward is no finite number.
        """
        learner, before = self.learner, self.learner.num_timesteps
        for env in self.envs:
            env.ended.clear()
        with _chance(self.seed, self.number, learner.action_space):
            learner.learn(self.steps, log_interval=None, reset_num_timesteps=False)
        logged = {name: float(learner.logger.name_to_value[key]) for key, name in LOSSES.items() if key in learner.logger.name_to_value}
        learner.logger.name_to_value.clear()
        self.number += 1
        self._follow()
        if not all(np.isfinite(value) for value in logged.values()):
            raise TrainingError(f"a loss of step {self.number} is not finite: {logged}; lower sb3.learning_rate")
        return logged | self._ended() | {"replayed": float(learner.replay_buffer.size()), "tokens": float(learner.num_timesteps - before)}

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Take over what another training of the same kind has come to, its steps being rewarded again by what rewards now."""
        self._load(state)
        self.learner._last_obs = None
        for env in self.envs:
            env.episode = -1
        self.number = 0
        if self.reward is not None:
            relabel(self.learner, self.reward)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers, the steps in the replay buffer, and where each environment is."""
        parameters, buffer = self.learner.get_parameters(), self.learner.replay_buffer
        found: dict[str, Any] = {"number": self.number, "policy": dict(parameters.pop("policy"))}
        found["optimizers"] = {name: [dict(x) for _, x in sorted(of["state"].items())] for name, of in parameters.items()}
        count = buffer.size()
        found["buffer"] = {name: torch.from_numpy(getattr(buffer, name)[:count]) for name in BUFFERED} | {"next": buffer.pos}
        found |= {"taken": self.learner.num_timesteps, "updates": self.learner._n_updates}
        if (coefficient := getattr(self.learner, "log_ent_coef", None)) is not None:
            found["log_ent_coef"] = coefficient.detach()
        return found | {"envs": [env.state_dict() for env in self.envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self._load(state)
        self.number = state["number"]
        for env, saved in zip(self.envs, state["envs"], strict=True):
            env.load_state_dict(saved)
        self.learner._last_obs = np.stack([env.now for env in self.envs])
        self.learner._last_episode_starts = np.array([not env.taken for env in self.envs])

    def _load(self, state: dict[str, Any]) -> None:
        learner, buffer = self.learner, self.learner.replay_buffer
        parameters = learner.get_parameters() | {"policy": state["policy"]}
        for name, saved in state["optimizers"].items():
            parameters[name] = parameters[name] | {"state": dict(enumerate(saved))}
        learner.set_parameters(parameters, exact_match=True, device="cpu")
        count = len(state["buffer"]["rewards"])
        for name in BUFFERED:
            getattr(buffer, name)[:count] = state["buffer"][name].numpy()
        buffer.pos, buffer.full = state["buffer"]["next"], count == buffer.buffer_size
        learner.num_timesteps, learner._n_updates = state["taken"], state["updates"]
        if "log_ent_coef" in state:
            with torch.no_grad():
                learner.log_ent_coef.copy_(state["log_ent_coef"])
        self._follow()

    def _layers(self) -> list[nn.Linear]:
        """The layers of the learner's deterministic action."""
        of = self.learner.policy.actor.named_modules()
        return [layer for name, layer in of if isinstance(layer, nn.Linear) and not name.startswith("log_std")]

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the policy act as the learner's does now, with noise about as large."""
        policy, buffer = self.model, self.learner.replay_buffer
        assert isinstance(policy.net, Squashed)
        assert policy.log_std is not None
        for theirs, ours in zip(self._layers(), policy.net.linears, strict=True):
            ours.weight.copy_(theirs.weight)
            ours.bias.copy_(theirs.bias)
        noise = torch.full((policy.outputs,), self.own.action_noise)
        if hasattr(self.learner.policy.actor, "log_std") and buffer.size():
            seen = torch.from_numpy(buffer.observations[max(0, buffer.size() - SEEN) : buffer.size(), 0])
            with _chance(self.seed, self.number):
                drawn = self.learner.policy.actor(seen) - self.learner.policy.actor(seen, deterministic=True)
            noise = drawn.square().mean(0).sqrt()
        policy.log_std.copy_(log_std(noise, policy))

    def _ended(self) -> dict[str, float]:
        """What the episodes came to that ended in the step."""
        ended = [row for env in self.envs for row in env.ended]
        if not ended:
            return {}
        scores, returns, gold, lengths = zip(*ended, strict=True)
        each = range(len(ended))
        found = spread("score", scores, each) | spread("return", returns, each) | {"trajectory_length": float(np.mean(lengths))}
        return found | (spread("gold", gold, each) if self.envs[0].gold else {})


BUFFERED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""The arrays of a replay buffer."""
SEEN = 1000
"""The newest steps in the buffer by which the noise of SAC's actions is measured."""


def check_installed() -> None:
    """Make sure that Stable-Baselines3 is there.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("stable_baselines3") is None:
        raise ConfigError(f"train.learner names a learner of the package stable-baselines3: {installing('sb3')}")


def _made(algorithm: str, envs: Sequence[Recorded], policy: ControlPolicy, s: OffPolicySettings) -> Any:
    """The learner, whose networks are at random."""
    check_installed()
    import stable_baselines3
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv

    assert isinstance(policy.net, Squashed)
    given = s.model_dump(include={*COMMON, *OWN[algorithm]}) | {"device": "cpu"}
    given["policy_kwargs"] = {"net_arch": [layer.out_features for layer in policy.net.linears[:-1]]}
    if algorithm == "TD3":
        given["action_noise"] = NormalActionNoise(np.zeros(policy.outputs), np.full(policy.outputs, s.action_noise))
    learner = getattr(stable_baselines3, algorithm)("MlpPolicy", DummyVecEnv([lambda env=env: env for env in envs]), **given)
    learner.set_logger(Logger(None, []))
    return learner


@contextmanager
def _chance(*seeds: Any) -> Generator[None]:
    """Let NumPy's and PyTorch's global chance, by which Stable-Baselines3 draws, depend on `seeds`; afterwards they are as before.

    The last of `seeds` may be a space, which then draws by them, too.
    """
    *numbers, last = seeds
    space, numbers = (last, numbers) if isinstance(last, Box) else (None, [*numbers, last])
    number = int(np.random.SeedSequence([17, *numbers]).generate_state(1)[0])
    before = np.random.get_state()  # noqa: NPY002, which is what it draws by
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        if space is not None:
            space.seed(number)
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
