"""Variants of a policy: other noise, pushed one way, and as exact as the policy itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rather.control.environments import environment
from rather.control.exploration import STD_FACTORS, variant
from rather.control.models import ControlPolicy, collate
from rather.control.rollout import ControlSampler
from rather.core import Task
from rather.pipeline.run import Run

RANGE = Box(np.array([-2, -1], np.float32), np.array([2, 5], np.float32))


def test_a_variant_is_pushed_one_way_within_half_the_range_and_has_other_noise() -> None:
    policy = ControlPolicy(3, RANGE, (8,))
    before = {name: x.clone() for name, x in policy.state_dict().items()}
    seen = torch.randn(50, 3).numpy()
    plain = policy.numpy_policy().greedy(seen)
    offsets, noises = [], []
    for seed in range(200):
        found = variant(policy, RANGE, seed)
        moved = found.numpy_policy().greedy(seen) - plain
        np.testing.assert_allclose(moved, moved[:1].repeat(50, 0), atol=1e-5)
        offsets.append(moved[0])
        noises.append(found.log_std.exp().detach().numpy())  # type: ignore[union-attr]
    low, high = np.min(offsets, 0), np.max(offsets, 0)
    np.testing.assert_allclose(low, [-2, -3], atol=0.2)
    np.testing.assert_allclose(high, [2, 3], atol=0.2)
    np.testing.assert_allclose([np.min(noises), np.max(noises)], STD_FACTORS, rtol=0.1)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items()), "the policy itself is as it was"
    again, same = variant(policy, RANGE, 7), variant(policy, RANGE, 7)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), same.parameters(), strict=True))


def test_an_action_without_bounds_is_pushed_by_a_standard_deviation_at_most() -> None:
    largest = np.finfo(np.float32).max
    endless = Box(np.array([-np.inf, -largest], np.float32), np.array([np.inf, largest], np.float32))
    policy = ControlPolicy(1, endless, (), normalize=False)
    with torch.no_grad():
        policy.log_std.fill_(np.log(0.25))  # type: ignore[union-attr]
    seen = np.zeros((1, 1))
    pushed = np.abs([variant(policy, endless, seed).numpy_policy().greedy(seen) for seed in range(100)])
    assert 0.2 < pushed.max() <= 0.25


def test_choices_are_preferred_to_others_whatever_is_seen() -> None:
    choices = Discrete(3, start=1)
    policy, seen = ControlPolicy(4, choices, (8,)), np.random.default_rng(0).normal(size=(400, 4))
    noise = np.random.default_rng(1).random((400, 1))
    shares = np.array(
        [[(variant(policy, choices, seed).numpy_policy()(seen, noise)[0] == c).mean() for c in (1, 2, 3)] for seed in range(30)]
    )
    assert (shares.argmax(1) == [[0], [1], [2]]).sum(1).min() >= 5, "each choice is some variant's favorite"
    assert shares.max() > 0.9
    assert np.ptp(shares.max(1)) > 0.3


def test_what_a_variant_did_is_recorded_with_its_own_probabilities() -> None:
    env = environment("Pendulum-v1")
    found = variant(ControlPolicy(3, env.action_space, (8,)), env.action_space, 3)
    (t,) = ControlSampler(found, lambda: environment("Pendulum-v1"), 1).sample([Task("Pendulum-v1", "5")], 0)
    expected, _ = found.evaluate(collate([t]))
    np.testing.assert_allclose(t.logprobs, expected[0].detach().numpy(), atol=1e-4)
    assert t.policy == "policy@0~3"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_episodes_that_are_asked_about_is_explored(tmp_path: Path, share: float) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'[run]\nname = "r"\nfolder = "{tmp_path}"\n[control]\nenv = "Pendulum-v1"\n'
        f"[query]\ncomparisons = 150\nepisodes = 8\nfragment = 5\nexploration = {share}\n"
        '[judge]\nkind = "panel"\npanel = [{ name = "o", utility = "total_reward", temperature = 0.001 }]\n'
        '[train]\nlearner = "ppo"\nreward = "labels"\nsteps = 1\n'
    )
    run = Run(str(file))
    run.sample()
    sides = [t for q in run.store.questions("r", "train") for side in q.comparison.sides for t in side]
    explored = {t.task.key for t in sides if "~" in t.policy}
    assert len(explored) == 8 * share
    assert len({t.task.key for t in sides}) == 8
    assert len({t.policy for t in sides}) == len(explored) + (share < 1), "each of a behavior of its own"
    run.close()
