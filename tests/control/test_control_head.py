"""The reward head for control: by hand, what it learns from few comparisons, and that it comes back from disk as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from test_reward_model import Slope, right

from rather import control
from rather.control.models import collate
from rather.control.reward_head import PRODUCTS, ROUNDED, LinearReward, RewardHead
from rather.core import Comparison, Trajectory
from rather.errors import CheckpointError, ConfigError, ModelError
from rather.learners.head import log_odds
from rather.text.head.model import RewardHead as TextHead


def nearer(a: Trajectory, b: Trajectory) -> str:
    """The side that is nearer to 0, by squares."""
    return "a" if np.square(a.observations[:-1]).sum() < np.square(b.observations[:-1]).sum() else "b"


def higher(a: Trajectory, b: Trajectory) -> str:
    """The side that is higher."""
    return "a" if a.observations[:-1].sum() > b.observations[:-1].sum() else "b"


def pairs(count: int, judge=nearer, seed: int = 0, name: str = "judge") -> list[Comparison]:
    return control.compare(control.rollouts(Slope, 2 * count, seed=seed), judge, name)


def head(comparisons: list[Comparison], members: int = 1, **settings) -> control.RewardModel:
    return control.RewardModel(Slope, kind="head", members=members, **settings).fit(comparisons)


def test_features_and_rewards_by_hand() -> None:
    """x = (2, -1): itself, its size, and the products (4, -2) and (-2, 1)."""
    member, (observations, actions) = LinearReward(2), (torch.tensor([[2.0]]), torch.tensor([[-1.0]]))
    size = [[(4 + ROUNDED**2) ** 0.5, (1 + ROUNDED**2) ** 0.5]]
    assert member.features(observations, actions).tolist() == [pytest.approx(np.array([[2.0, -1.0], *size, [4.0, -2.0], [-2.0, 1.0]]))]
    assert member(observations, actions).tolist() == [0]
    member.weight = torch.tensor([[1.0, 10.0], [0.0, 0.0], [100.0, 0.0], [1000.0, 0.0]])
    assert member(observations, actions).tolist() == [2 - 10 + 400 - 2000]


@pytest.mark.parametrize("width", [5, PRODUCTS, PRODUCTS + 1])
def test_rewards_are_weights_times_features(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    member, rows = LinearReward(width), torch.randn(7, width, generator=generator)
    member.weight = torch.randn(member.weight.shape, generator=generator)
    seen = rows[:, :-2], rows[:, -2:]
    assert len(member.weight) == (3 if width > PRODUCTS else 2 + width)
    assert member(*seen) == pytest.approx((member.features(*seen) * member.weight).sum((1, 2)), rel=1e-4, abs=1e-4)


def test_what_is_near_is_learned_from_few_comparisons() -> None:
    assert right(head(pairs(30)), pairs(200, seed=1)) > 0.9


def test_the_evidence_says_what_counts() -> None:
    """Where more is better x alone counts; where less of either sign is better it does not suffice."""
    assert head(pairs(60, higher)).model.learned.choice.groups == (0,)
    assert len(head(pairs(60)).model.learned.choice.groups) > 1


@pytest.mark.parametrize("members", [1, 5])
def test_scores_are_those_of_the_posterior(members: int) -> None:
    some, new = pairs(40), pairs(20, seed=1)
    model = head(some, members)
    a, b = (np.array(model.score([side[0] for side in sides])) for sides in zip(*((c.a, c.b) for c in new), strict=True))
    mean, variance = model.model.differences(new)
    assert a - b == pytest.approx(mean, abs=1e-4)
    assert model.model.log_odds(new) == pytest.approx(log_odds(mean, variance))
    every = [c.a[0] for c in new] + [c.b[0] for c in new]
    drawn = model.model.sampled(every, 4000)
    own = (drawn[:, :20] - drawn[:, 20:]).numpy()
    assert own.mean(0) == pytest.approx(mean, abs=4 * (variance.max() / 4000) ** 0.5)
    assert own.var(0) == pytest.approx(variance, rel=0.15)


def test_a_reward_is_lower_where_little_is_known() -> None:
    some, (episode,) = pairs(40), control.rollouts(Slope, 1, seed=3)
    plain, wary, batch = head(some), head(some, pessimism=2.0), collate([episode])
    features = plain.model._features(batch)[0]
    choice, posterior = plain.model.learned.choice, plain.model.learned.posterior
    z = features[:, list(choice.groups)].reshape(len(features), -1) * choice.scale
    assert wary.rewards(batch)[0].numpy() == pytest.approx(plain.rewards(batch)[0].numpy() - 2 * np.sqrt(posterior.variance(z)), abs=1e-4)


def test_padding_is_rewarded_by_nothing() -> None:
    model, (long,) = head(pairs(40), pessimism=1.0), control.rollouts(Slope, 1, seed=3)
    parts = {name: getattr(long, name)[:2] for name in ("actions", "logprobs", "rewards")}
    short = Trajectory(long.task, "me", observations=long.observations[:3], **parts)
    rewards = model.rewards(collate([long, short]))
    assert rewards[1, 2:].tolist() == [0] * 4
    assert rewards[1, :2] == pytest.approx(rewards[0, :2])


def test_a_judge_who_guesses_weighs_less() -> None:
    chance = np.random.default_rng(0)
    guessed = pairs(60, lambda a, b: "ab"[chance.integers(2)], seed=2, name="bob")
    found = head([*pairs(60, name="ann"), *guessed]).model.learned.temperatures()
    assert found["bob"] > 2 * found["ann"]


def test_it_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    model = head(pairs(40), members=3, pessimism=1.0)
    model.save(tmp_path)
    found = control.RewardModel.load(tmp_path, Slope)
    batch = collate(control.rollouts(Slope, 3, seed=3))
    assert torch.equal(found.rewards(batch), model.rewards(batch))
    assert torch.equal(found.model.scores(batch), model.model.scores(batch))
    new = pairs(5, seed=1)
    assert found.model.differences(new)[1] == pytest.approx(model.model.differences(new)[1], rel=1e-5)
    with pytest.raises(ModelError, match=r"is about control, and this is about text"):
        TextHead.load(tmp_path)
    nets = control.RewardModel(Slope, hidden=(8,), epochs=1).fit(pairs(5))
    nets.save(tmp_path / "nets")
    with pytest.raises(CheckpointError, match="of another network"):
        model.model.restore(tmp_path / "nets")


def test_a_policy_follows_it() -> None:
    agent = control.PPO(Slope, reward=head(pairs(40, higher)), envs=4, rollout_segment=24, batch_size=32, lr=1e-2, hidden=(8,))
    before = np.mean([t.observations[-1] for t in agent.rollouts(20)])
    agent.train(2_000)
    assert np.mean([t.observations[-1] for t in agent.rollouts(20)]) > before + 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hidden": (8,)}, r'hidden: of kind = "nets"; kind = "head" has no layers'),
        ({"crop": 0.5, "pseudo_labels": 2}, r"crop, pseudo_labels: of kind"),
        ({"network": "cnn"}, r"network: of kind"),
        ({"epochs": 10, "lr": 1e-2}, r"lr, epochs: of kind"),
        ({"networks": [LinearReward(4)]}, r'kind is "head", and LinearReward is given beside it'),
        ({"pessimism": -1.0}, r"pessimism"),
        ({"members": 0}, r"members"),
    ],
)
def test_what_a_head_does_not_take(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        control.RewardModel(Slope, kind="head", **settings)


def test_a_head_has_no_epochs() -> None:
    with pytest.raises(ConfigError, match="patience is for kind"):
        control.RewardModel(Slope, kind="head").fit(pairs(5), pairs(5), patience=2)


def test_an_observation_that_never_changes_says_nothing() -> None:
    model = RewardHead(2, Box(-1, 1, (1,)), 1)
    chance = np.random.default_rng(0)

    def episode() -> Trajectory:
        seen = np.stack([np.full(4, 3.0), chance.standard_normal(4)], 1).astype(np.float32)
        zeros = np.zeros(3, np.float32)
        return Trajectory(pairs(1)[0].a[0].task, "me", observations=seen, actions=zeros[:, None], logprobs=zeros, rewards=zeros)

    def later(a: Trajectory, b: Trajectory) -> str:
        return "a" if a.observations[:-1, 1].sum() > b.observations[:-1, 1].sum() else "b"

    asked = control.compare([episode() for _ in range(60)], later)
    model.see([t for c in asked for side in c.sides for t in side])
    model.learn(asked)
    assert model.networks[0].weight[0, 0] == 0
    assert model.networks[0].weight[0, 1] > 0
