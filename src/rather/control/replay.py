"""What an off-policy learner of Stable-Baselines3 has in its replay buffer, rewarded again by what a reward model has learned since.

Shape letters: N steps, I numbers of an observation, A of an action.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from rather.control.reward_wrappers import StepReward
from rather.control.rewards import Reward
from rather.errors import ConfigError

CHUNK = 4096
"""Steps that are rewarded at a time."""


def relabel(learner: Any, reward: Reward) -> int:
    """Reward all steps in the replay buffer of SAC, TD3, DDPG or DQN again, as PEBBLE does after each fit (Lee et al. 2021).

    `learner` is Stable-Baselines3's, in an environment of any kind, and `reward` what `RewardWrapper` takes. Returns how many steps there
    were.

        reward.fit(comparisons)
        rather.control.relabel(sac, reward)
        sac.learn(20_000, reset_num_timesteps=False)

    Raises:
        ConfigError: the learner has no such buffer, or the reward does not fit its environment.
        DataError: a reward is not a finite number.
    """
    buffer = getattr(learner, "replay_buffer", None)
    if buffer is None or not hasattr(buffer, "next_observations"):
        named = f"{type(learner).__name__} has no replay buffer of steps and what was seen after them"
        named += ", having optimize_memory_usage" * getattr(buffer, "optimize_memory_usage", False)
        raise ConfigError(f"{named}; give SAC, TD3, DDPG or DQN with its usual buffer")
    if hasattr(buffer, "her_ratio"):
        raise ConfigError("HerReplayBuffer has its rewards computed by the environment whenever it is sampled; there is nothing to relabel")
    step_reward = StepReward(reward, learner)
    count = buffer.buffer_size if buffer.full else buffer.pos
    places = [(i, j) for i in range(count) for j in range(buffer.n_envs)]
    for first in range(0, len(places), CHUNK):
        rows, envs = np.array(places[first : first + CHUNK]).T
        actions = buffer.actions[rows, envs]
        if isinstance(learner.action_space, Box):
            actions = learner.policy.unscale_action(actions)
        before, after = (_flat(step_reward, learner, x, rows, envs) for x in (buffer.observations, buffer.next_observations))
        buffer.rewards[rows, envs] = step_reward(before, step_reward.allowed(actions), after)
    return len(places)


def _flat(reward: StepReward, learner: Any, kept: Any, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
    """Observations (N, I) of the steps at those places."""
    space = learner.observation_space
    if isinstance(space, Dict):
        parts = {key: _shaped(part, kept[key][rows, envs]) for key, part in space.spaces.items()}
        return np.stack([reward.eye({key: part[i] for key, part in parts.items()}) for i in range(len(rows))])
    return np.stack([reward.eye(x) for x in _shaped(space, kept[rows, envs])])


def _shaped(space: Any, values: np.ndarray) -> np.ndarray:
    """Values (N, ...) as the space has them: a buffer keeps a single choice as (N, 1)."""
    return values.reshape(len(values), *(space.shape or ()))
