"""`rather.control.RewardModel`, and comparisons by a judge function."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from rather import control
from rather.core import Comparison, Task, Trajectory
from rather.errors import CheckpointError, ConfigError, DataError, JudgeError, TrainingError

SMALL = {"members": 2, "hidden": (8,), "epochs": 2, "batch_size": 10, "lr": 1e-2}


class Slope(gymnasium.Env):
    """Shows where it is, and moves by -0.3, 0 or 0.3, up to 6 steps; pays 0."""

    observation_space = Box(-3, 3, (1,), np.float32)
    action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.uniform(-1, 1)), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place, self.time = self.place + 0.3 * (action - 1), self.time + 1
        return np.array([self.place], np.float32), 0.0, False, self.time == 6, {}


def higher(a: Trajectory, b: Trajectory) -> str:
    return "a" if a.observations[:-1].sum() > b.observations[:-1].sum() else "b"


def pairs(count: int, seed: int = 0) -> list[Comparison]:
    return control.compare(control.rollouts(Slope, 2 * count, seed=seed), higher)


def trajectory(observations: list[float], actions: list[int]) -> Trajectory:
    arrays = {"observations": np.array(observations, np.float32)[:, None], "actions": np.array(actions)}
    zeros = np.zeros(len(actions), np.float32)
    return Trajectory(Task("Slope", "0"), "me", logprobs=zeros, rewards=zeros, **arrays)


def right(model: control.RewardModel, comparisons: list[Comparison]) -> float:
    return float(np.mean([np.subtract(*model.score([*c.a, *c.b])) > 0 if c.preference else np.subtract(*model.score([*c.a, *c.b])) < 0
                          for c in comparisons]))  # fmt: skip


def test_a_judge_compares_neighbors() -> None:
    said = iter(["a", "b", "tie", 0.75, None, np.float32(0.25), True])
    episodes = [trajectory([i, i], [1]) for i in range(15)]
    found = control.compare(episodes, lambda a, b: next(said), "ann")
    assert [c.preference for c in found] == [1.0, 0.0, 0.5, 0.75, 0.25, 1.0]
    assert [c.a[0].observations[0, 0] for c in found] == [0, 2, 4, 6, 10, 12]
    assert [c.b[0].observations[0, 0] for c in found] == [1, 3, 5, 7, 11, 13]
    assert {c.judge for c in found} == {"ann"}
    assert len({c.key for c in found}) == 6


@pytest.mark.parametrize("said", ["c", "1", 1.5, -0.1, float("nan"), [1, 2], object()])
def test_what_a_judge_may_not_say(said: Any) -> None:
    with pytest.raises(JudgeError, match="ann said .* of pair 0; it must say 'a', 'b', 'tie'"):
        control.compare([trajectory([0, 0], [1])] * 2, lambda a, b: said, "ann")


def test_a_judge_that_fails_is_named() -> None:
    with pytest.raises(JudgeError, match="ann raised ZeroDivisionError at pair 0"):
        control.compare([trajectory([0, 0], [1])] * 2, lambda a, b: 1 / 0, "ann")


def test_a_reward_is_learned_and_followed() -> None:
    heard = []
    model = control.RewardModel(Slope, callbacks=[lambda step, metrics: heard.append(step)], **SMALL | {"epochs": 20}).fit(pairs(60))
    assert heard == list(range(1, 121))  # 20 epochs of 60 comparisons, 10 a step
    assert right(model, pairs(40, seed=1)) > 0.85
    agent = control.PPO(Slope, reward=model, envs=4, rollout_segment=24, batch_size=32, lr=1e-2, hidden=(8,))
    before = np.mean([t.observations[-1] for t in agent.rollouts(20)])
    agent.train(2_000)
    assert np.mean([t.observations[-1] for t in agent.rollouts(20)]) > before + 1


def test_a_score_is_the_sum_of_rewards_by_hand() -> None:
    class Told(nn.Module):
        def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return 2 * observations[:, 0] + actions @ torch.tensor([0.0, 10.0, 100.0])

    model = control.RewardModel(Slope, networks=[Told()])
    model.fitted = True  # its inputs are not scaled, since it has seen none
    assert model.score([trajectory([1, 2, 9], [0, 2]), trajectory([5, 9], [1])]) == [2 + 4 + 100, 10 + 10]


def test_every_fit_begins_anew() -> None:
    some, others = pairs(10), pairs(10, seed=1)
    episodes = [t for c in some for side in c.sides for t in side]
    model = control.RewardModel(Slope, **SMALL)
    first = model.fit(some).score(episodes)
    assert model.fit(others).score(episodes) != first
    assert model.fit(some).score(episodes) == first


def test_networks_of_ones_own_are_copied_and_trained() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 1)

        def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return self.net(torch.cat([observations, actions], -1))

    given = [Pair(), Pair()]
    before = [net.net.weight.tolist() for net in given]
    model = control.RewardModel(Slope, networks=given, **SMALL | {"epochs": 20}).fit(pairs(60))
    assert right(model, pairs(40, seed=1)) > 0.85
    assert [net.net.weight.tolist() for net in given] == before
    with pytest.raises(ConfigError, match=r"networks made shape \(2, 3\) of \(2, 1\) and \(2, 3\); it must map .* to \(2,\), a reward"):
        control.RewardModel(Slope, networks=[nn.Bilinear(1, 3, 3)])


def test_a_reward_model_is_what_it_was_when_it_is_loaded(tmp_path: Path) -> None:
    model = control.RewardModel("CartPole-v1", horizon=20, **SMALL)
    episodes = [t for c in pairs(10) for side in c.sides for t in side]
    episodes = [replace(t, observations=t.observations.repeat(5, 1), actions=t.actions % 2) for t in episodes]
    model.fit(control.compare(episodes, higher)).save(tmp_path)
    again = control.RewardModel.load(tmp_path)
    assert again.settings == model.settings
    assert again.score(episodes) == model.score(episodes)
    assert {path.name for path in tmp_path.iterdir()} == {"reward.safetensors", "reward.json"}
    with pytest.raises(CheckpointError, match="holds no reward model"):
        control.RewardModel.load(tmp_path / "elsewhere")


def test_one_that_was_not_fitted_rewards_nobody() -> None:
    model = control.RewardModel(Slope, **SMALL)
    with pytest.raises(TrainingError, match=r"has not been fitted, and would reward everything by 0; call fit"):
        control.PPO(Slope, reward=model).train(1)
    with pytest.raises(DataError, match="none of 1 comparisons has a preference"):
        model.fit([replace(pairs(1)[0], preference=None)])
    with pytest.raises(ConfigError, match="control.RewardModel has no argument 'member'; did you mean members"):
        control.RewardModel(Slope, member=2)


def test_members_that_differ_take_something_off_each_reward() -> None:
    fitted = control.RewardModel(Slope, **{**SMALL, "members": 3}, pessimism=1.0).fit(pairs(10))  # type: ignore[arg-type]
    batch = fitted.model.collate(control.rollouts(Slope, 2, seed=3))
    each = fitted.model.each(batch).detach()
    assert each.std(0, correction=0).max() > 1e-4
    assert fitted.rewards(batch).numpy() == pytest.approx((each.mean(0) - each.std(0, correction=0)).numpy(), abs=1e-6)
    with pytest.raises(ConfigError, match="set members to 3 or more"):
        control.RewardModel(Slope, members=1, pessimism=1.0)


def test_a_fit_ends_early_on_comparisons_that_say_the_opposite() -> None:
    some = pairs(20)
    opposite = [replace(c, preference=1 - c.preference) for c in some if c.preference is not None]
    heard = []
    model = control.RewardModel(Slope, callbacks=[lambda step, metrics: heard.append(metrics.get("eval_loss"))], **SMALL | {"epochs": 50})
    model.fit(some, opposite, patience=2)
    losses = [loss for loss in heard if loss is not None]
    assert (len(heard), len(losses)) == (6, 3), "an epoch is two steps; the first one is the best"
    assert losses == sorted(losses)
    episodes = [t for c in some for t in (*c.a, *c.b)]
    assert model.score(episodes) == control.RewardModel(Slope, **SMALL | {"epochs": 1}).fit(some).score(episodes)
    with pytest.raises(ConfigError, match="patience is 2, but there is no eval to measure by"):
        model.fit(some, patience=2)


def test_a_fit_that_is_refused_leaves_the_reward_model_as_it_was() -> None:
    some, model = pairs(10), control.RewardModel(Slope, pseudo_labels=1, **SMALL)
    episodes = control.rollouts(Slope, 3, seed=5)
    short = [replace(t, observations=t.observations[:2], actions=t.actions[:1], rewards=t.rewards[:1], logprobs=t.logprobs[:1])
             for t in episodes]  # type: ignore[index]  # fmt: skip
    refused = [{}, {"unlabeled": episodes, "patience": 1}, {"unlabeled": short}, {"unlabeled": []}]
    for wrong in refused:
        with pytest.raises((ConfigError, DataError)):
            model.fit(some, **wrong)  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match="has not been fitted"):
            model.score(episodes)
    before = model.fit(some, unlabeled=episodes).score(episodes)
    assert any(before)
    for wrong in refused:
        with pytest.raises((ConfigError, DataError)):
            model.fit(some, **wrong)  # type: ignore[arg-type]
        assert model.score(episodes) == before


def test_what_a_fit_cannot_learn_from_is_refused_in_one_sentence() -> None:
    """The slope shows one number, and the pendulum three."""
    some, model = pairs(4), control.RewardModel(Slope, pseudo_labels=2, **SMALL)
    episodes = control.rollouts(Slope, 2)
    others = control.rollouts("Pendulum-v1", 2)
    swings = control.compare(others, lambda a, b: "a")
    with pytest.raises(DataError, match="^unlabeled is empty; give trajectories, as from rather.control.rollouts, or leave it out$"):
        model.fit(some, unlabeled=[])
    for name, given in (
        ("comparisons", {"comparisons": swings, "unlabeled": episodes}),
        ("eval", {"comparisons": some, "eval": swings, "unlabeled": episodes}),
        ("unlabeled", {"comparisons": some, "unlabeled": [*episodes, *others]}),
    ):
        said = f"^a trajectory in {name} has observations of 3 numbers, and those of the environment are of 1; give trajectories"
        with pytest.raises(DataError, match=said):
            model.fit(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": "Yes.", "observations": None, "actions": None, "logprobs": None, "rewards": None}, "no observations"),
        ({"rewards": None}, "no rewards"),
        ({"observations": np.zeros((2, 1), np.float32)}, "2 observations, and of actions, logprobs and rewards [2, 2, 2], where each"),
        ({"observations": np.array([[0], [np.nan], [0]], np.float32)}, "an observation that is not finite"),
        ({"actions": np.array([0, 3])}, "the action 3, and those of the environment are Discrete(3)"),
        ({"actions": np.array([0, 0.5])}, "the action 0.5, and those of the environment are Discrete(3)"),
        ({"actions": np.zeros((2, 1))}, "actions of shape (1,), and those of the environment are Discrete(3)"),
    ],
)
def test_a_trajectory_that_is_none_of_the_environment_is_refused_in_one_sentence(given: dict[str, Any], said: str) -> None:
    model, other = control.RewardModel(Slope, **SMALL).fit(pairs(4)), replace(trajectory([0, 0, 0], [0, 2]), **given)
    remedy = "; give trajectories of the environment, as from rather.control.rollouts"
    with pytest.raises(DataError, match=f"^a trajectory in comparisons has {re.escape(said)}.*{remedy}$"):
        model.fit([*pairs(2), Comparison((other,), (other,), 1.0)])
    with pytest.raises(DataError, match=f"^a trajectory in what is scored has {re.escape(said)}.*{remedy}$"):
        model.score([trajectory([0, 0, 0], [0, 2]), other])
    assert model.score([]) == []
