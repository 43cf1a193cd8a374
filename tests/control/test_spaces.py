"""Environments of all kinds of spaces that people have."""

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text, Tuple

from rather import control
from rather.control.environments import environment
from rather.control.wrappers import CombinedActions, FixedHorizon, nothing
from rather.errors import ConfigError, DataError, TrainingError

SEEN: dict[str, Space] = {
    "multi-discrete": MultiDiscrete([3, 2], start=[1, 0]),
    "table": MultiDiscrete([[2, 3], [4, 2]]),
    "bits": MultiBinary(4),
    "tuple": Tuple((Box(-1, 1, (2,)), Discrete(3, start=-1), MultiBinary(2))),
    "nested": Dict({"a": Dict({"where": Box(0, 9, (2, 2)), "bits": MultiBinary(3)}), "b": Tuple((Discrete(2), MultiDiscrete([2, 2])))}),
}
DONE: dict[str, tuple[Space, list[int]]] = {
    "choices": (MultiDiscrete([3, 2], start=[5, -1]), [6, 0]),
    "table": (MultiDiscrete([[2, 2], [3, 1]]), [0, 1, 2, 0]),
    "bits": (MultiBinary(3), [1, 0, 1]),
}  # fmt: skip


class Of(gymnasium.Env):
    """Shows what it draws from its space, and rewards one action."""

    def __init__(self, seen: Space, done: Space | None = None, best: Any = None) -> None:
        self.observation_space, self.best = seen, 1 if best is None else best
        self.action_space = Discrete(2) if done is None else done
        self.taken: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is none of {self.action_space}"
        self.time += 1
        hit = np.mean(np.asarray(action).flatten() == np.asarray(self.best).flatten())
        return self.observation_space.sample(), float(hit), False, self.time >= 16, {}


@pytest.mark.parametrize("seen", SEEN)
def test_observations_of_all_kinds_are_seen_flat(seen: str) -> None:
    space = SEEN[seen]
    agent = control.PPO(lambda: Of(space), envs=2, rollout_segment=64, hidden=(8,), lr=1e-2)
    agent.train(128, bar=False)
    (t,) = agent.rollouts(1)
    assert t.observations is not None
    space.seed(0)
    assert t.observations.shape == (17, len(gymnasium.spaces.flatten(space, space.sample())))
    observation = space.sample()
    assert agent.predict(observation) in (0, 1)
    assert space.contains(nothing(space))


@pytest.mark.parametrize("done", DONE)
def test_several_choices_are_learned_as_one(done: str, tmp_path: Path) -> None:
    space, best = DONE[done]

    def made() -> gymnasium.Env:
        return Of(Box(-1, 1, (1,)), space, best)

    agent = control.PPO(made, envs=4, rollout_segment=64, hidden=(8,), lr=1e-2, seed=1)
    agent.train(6_000, bar=False)
    action = agent.predict(np.zeros(1, np.float32))
    assert space.contains(action)
    assert action.flatten().tolist() == best
    assert agent.evaluate(3).mean == 16
    several = agent.predict(np.zeros((4, 1), np.float32))
    assert several.shape == (4, *(space.shape or ()))
    agent.save(tmp_path)
    assert control.PPO.load(tmp_path, made).evaluate(3).mean == 16


@pytest.mark.parametrize("done", DONE)
def test_each_combination_is_a_choice(done: str) -> None:
    space, _ = DONE[done]
    env = CombinedActions(Of(Discrete(2), space))
    every = [env.action(i) for i in range(int(env.action_space.n))]  # type: ignore[attr-defined]
    assert all(space.contains(action) for action in every)
    assert len({action.tobytes() for action in every}) == len(every)
    assert (every[1] != every[0]).sum() == 1
    flat = [int(x) for x in np.flatnonzero(every[1].flatten() != every[0].flatten())]
    sizes = [2] * 3 if isinstance(space, MultiBinary) else space.nvec.flatten().tolist()  # type: ignore[attr-defined]
    assert flat == [max(i for i, n in enumerate(sizes) if n > 1)], "the last part counts fastest"


def test_other_actions_are_not_combined() -> None:
    with pytest.raises(ConfigError, match=r"actions are Discrete\(2\); CombinedActions takes MultiDiscrete and MultiBinary ones"):
        control.CombinedActions(Of(Discrete(2), Discrete(2)))


def test_too_many_combinations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"have 2,048 combinations, and a policy chooses among 1,024 at most"):
        environment(lambda: Of(Discrete(2), MultiBinary(11)))


def test_others_train_on_a_reward_for_combined_actions() -> None:
    def made() -> gymnasium.Env:
        return Of(Box(-1, 1, (2,)), MultiBinary(2), [1, 0])

    trajectories = control.rollouts(made, 40)
    comparisons = control.compare(trajectories, lambda a, b: float(a.rewards.sum() > b.rewards.sum()))  # type: ignore[union-attr]
    reward = control.RewardModel(made, hidden=(16,), epochs=200, lr=1e-2).fit(comparisons)
    env = control.RewardWrapper(control.CombinedActions(made()), reward)
    env.reset(seed=0)
    paid = [env.step(i)[1] for i in range(4)]
    assert int(np.argmax(paid)) == 2, "1 and 0"
    with pytest.raises(ConfigError, match="reward is a model of 2 numbers and actions Discrete"):
        control.RewardWrapper(made(), reward)


def test_a_dict_has_a_part_for_the_absorbing_state() -> None:
    space = Dict({"where": Box(2, 3, (2,)), "mode": Discrete(3, start=1), "bits": MultiBinary(2)})

    class Ends(Of):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, reward, *_ = super().step(action)
            return observation, reward, self.time >= 5, False, {}

    env = environment(lambda: Ends(space), horizon=9)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["absorbing"] == 0
    for step in range(1, 10):
        observation, reward, terminated, truncated, _ = env.step(1)
        assert env.observation_space.contains(observation)
        assert (observation["absorbing"] == 1) == (step >= 5)
        assert not terminated
        assert truncated == (step == 9)
    assert reward == 0
    assert observation["where"].tolist() == [2, 2]
    assert observation["mode"] == 1
    agent = control.PPO(lambda: Ends(space), envs=2, rollout_segment=20, hidden=(8,), horizon=9).train(40, bar=False)
    assert len(agent.rollouts(1)[0].rewards) == 9  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="observations have a part 'absorbing' already"):
        FixedHorizon(env, 9)


@pytest.mark.parametrize(
    ("space", "shown", "said"),
    [
        (MultiDiscrete([2, 2]), np.array([0, 2]), r"showed \[0, 2\], which its observation space MultiDiscrete\(\[2 2\]\) does not hold"),
        (MultiDiscrete([2, 2]), np.array([0.5, 1]), "which is no observation of"),
        (MultiBinary(2), np.array([0, -1]), "does not hold"),
        (MultiBinary(2), np.array([0, 1, 1]), r"shape \(3,\), but its observation space is MultiBinary\(2\)"),
        (Tuple((Discrete(2), Discrete(2))), (1,), "but its observation space has 2 parts"),
        (Tuple((Discrete(2), Discrete(2))), [1, 1], "but its observation space has 2 parts"),
        (Tuple((Discrete(2), Discrete(2))), (1, 2), "showed 2, which its observation space Discrete"),
    ],
)  # fmt: skip
def test_what_a_space_does_not_hold_is_refused(space: Space, shown: Any, said: str) -> None:
    class Shows(Of):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            return shown, {}

    with pytest.raises(DataError, match=said):
        environment(lambda: Shows(space)).reset(seed=0)


@pytest.mark.parametrize("space", [Text(3), Dict({"a": Text(3)}), Tuple((Discrete(2), gymnasium.spaces.Sequence(Discrete(2))))])
def test_words_and_sequences_cannot_be_seen(space: Space) -> None:
    with pytest.raises(
        ConfigError, match="a Box, a Discrete, MultiDiscrete or MultiBinary space, and a Dict or Tuple of them can be learned"
    ):
        environment(lambda: Of(space))


@pytest.mark.parametrize(
    ("space", "given", "said"),
    [
        (Discrete(3, start=1), 0, "predict was given 0, which its observation space"),
        (MultiDiscrete([3, 4]), [3, 0], r"predict was given \[3, 0\], which its observation space"),
        (Box(-1, 1, (2,)), [np.nan, 0.0], "observations must be finite"),
        (Box(-1, 1, (2,)), np.zeros((0, 2)), r"the observation has shape \(0, 2\)"),
        (Box(-1, 1, (2,)), (np.zeros(2), {}), "predict was given observation and info, .*; give the observation alone"),
        (SEEN["tuple"], (np.zeros(2), 0), "but its observation space has 3 parts"),
        (Dict({"a": Discrete(2), "b": Discrete(2)}), {"a": 1}, "but its observation space has the parts a, b"),
    ],
)
def test_predict_takes_what_the_space_holds(space: Space, given: Any, said: str) -> None:
    agent = control.PPO(lambda: Of(space), envs=1, rollout_segment=8, hidden=())
    with pytest.raises(DataError, match=said):
        agent.predict(given)


@pytest.mark.parametrize("space", [Dict({}), Tuple(()), Box(-1, 1, (0,))])
def test_what_holds_no_number_is_refused(space: Space) -> None:
    with pytest.raises(ConfigError, match="which holds no number; there is nothing to learn from"):
        environment(lambda: Of(space))


def test_a_reward_function_gets_actions_as_the_environment_takes_them() -> None:
    seen = list[Any]()

    def reward(observation: Any, action: Any, after: Any) -> float:
        seen.append(action)
        return 0.0

    space = MultiDiscrete([3, 4])
    control.PPO(lambda: Of(Discrete(2), space), reward=reward, envs=1, rollout_segment=40).train(40, bar=False)
    assert len(seen) == 40
    assert all(space.contains(action) for action in seen)


def test_choices_beyond_what_c_takes_are_learned_by_pytorch() -> None:
    agent = control.PPO(lambda: Of(Discrete(2), Discrete(5000)), envs=1, rollout_segment=8, batch_size=8, hidden=())
    assert agent.learner.by_hand.compiled is None  # type: ignore[union-attr]
    agent.train(8, bar=False)


def test_a_policy_whose_parameters_were_replaced_is_not_trained_in_vain() -> None:
    agent = copy.deepcopy(control.PPO(lambda: Of(Discrete(2)), envs=1, rollout_segment=8, hidden=()))
    with pytest.raises(TrainingError, match="as after a deepcopy or .double"):
        agent.train(8, bar=False)
