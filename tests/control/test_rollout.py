import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Text

from rather.control import rollout
from rather.control.environments import environment, inputs
from rather.control.models import ControlPolicy
from rather.control.rollout import ControlSampler
from rather.core import Task, Trajectory
from rather.errors import ConfigError, DataError


def policy_for(env: gymnasium.Env) -> ControlPolicy:
    policy = ControlPolicy(inputs(env), env.action_space)
    with torch.no_grad():
        policy.net.layers[-2].mul_(100)
    return policy


def sampler(name: str, rows: int = 4, **settings: object) -> ControlSampler:
    return ControlSampler(policy_for(environment(name, **settings)), lambda: environment(name, **settings), rows)


TASKS = [Task("e", str(seed)) for seed in (3, 4, 3, 5, 6)]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "rather/CheckpointCar-v0", "rather/GridWorld-v0", "FrozenLake-v1"])
def test_an_attempt_does_not_depend_on_those_beside_it(name: str) -> None:
    together = sampler(name, 4).sample(TASKS, seed=0)
    for expected, found in zip(sampler(name, 1).sample(TASKS, seed=0), together, strict=True):
        for part in ("actions", "observations", "logprobs", "rewards"):
            np.testing.assert_allclose(getattr(found, part), getattr(expected, part), atol=1e-3, rtol=1e-3)
    assert together[0].actions.shape != together[2].actions.shape or (together[0].actions != together[2].actions).any()
    assert len(together[0].observations) == len(together[0].actions) + 1
    other = sampler(name).sample(TASKS, seed=1)
    assert other[0].actions.shape != together[0].actions.shape or (other[0].actions != together[0].actions).any()


def test_an_attempt_can_be_played_again_from_its_seed_and_actions() -> None:
    (found,) = sampler("Pendulum-v1").sample(TASKS[:1], seed=0)
    env = gymnasium.make("Pendulum-v1")
    observation, _ = env.reset(seed=3)
    for step, action in enumerate(found.actions):
        np.testing.assert_array_equal(observation, found.observations[step])
        observation, reward, *_ = env.step(action.clip(-2, 2))
        assert np.float32(reward) == found.rewards[step]
    assert (np.abs(found.actions) > 2).any(), "actions are kept as they were drawn"
    assert len(found.actions) == 200
    assert not found.terminated, "cut by its limit"


def test_an_end_is_not_a_limit() -> None:
    short = sampler("CartPole-v1").sample(TASKS, seed=0)
    assert all(t.terminated and len(t.rewards) < 200 for t in short)
    with pytest.raises(DataError, match=r"attempts last \d+ to \d+ steps.*fixed horizon"):
        rollout.check_lengths(short)
    long = sampler("CartPole-v1", horizon=50).sample(TASKS, seed=0)
    assert not any(t.terminated for t in long)
    assert [len(t.rewards) for t in long] == [50] * 5
    rollout.check_lengths(long)


def test_fragments_are_pieces_of_attempts() -> None:
    episodes = sampler("CartPole-v1").sample(TASKS, seed=0)
    length = min(len(t.rewards) for t in episodes)
    pieces = rollout.fragments(episodes, length, 300, seed=0)
    assert {len(p.observations) - len(p.actions) for p in pieces} == {1}
    ends = {t.observations[-1].tobytes() for t in episodes}
    for piece in pieces:
        assert piece.terminated == (piece.observations[-1].tobytes() in ends)
    assert {p.terminated for p in pieces} == {True, False}
    with pytest.raises(DataError, match="no episode has 1000 steps"):
        rollout.fragments(episodes, 1000, 1, seed=0)


class Odd(gymnasium.Env):
    """Two numbers and a choice as observation; pays or shows something that is no number at step 3 if told to."""

    observation_space = Dict({"where": Box(-1, 1, (2,)), "mode": Discrete(3)})
    action_space = Discrete(2)

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.look(), {}

    def look(self):
        bad = np.nan if self.wrong == "observation" and self.time == 3 else 0.5
        return {"where": np.array([bad, -0.5], np.float32), "mode": 2}

    def step(self, action):
        self.time += 1
        return self.look(), np.inf if self.wrong == "reward" and self.time == 3 else 1.0, False, self.time == 5, {}


def test_observations_of_several_parts_are_laid_flat() -> None:
    policy = policy_for(Odd())
    (found,) = ControlSampler(policy, Odd).sample(TASKS[:1], seed=0)
    assert found.observations[0].tolist() == [0, 0, 1, 0.5, -0.5]


@pytest.mark.parametrize(
    ("wrong", "sentence"), [("reward", "returned the reward inf at step 3 of seed 3"), ("observation", "at step 3 of seed 3")]
)
def test_what_is_no_number_is_refused(wrong: str, sentence: str) -> None:
    policy = policy_for(Odd())
    with pytest.raises(DataError, match=sentence):
        ControlSampler(policy, lambda: Odd(wrong)).sample(TASKS[:1], seed=0)


def test_environments_that_cannot_be_learnt_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'CartPoll-v1' cannot be made.*did you mean CartPole-v1\?"):
        environment("CartPoll-v1")
    gymnasium.register("test/Words-v0", Odd)
    Odd.observation_space, kept = Text(5), Odd.observation_space
    with pytest.raises(ConfigError, match="observations of test/Words-v0 are Text"):
        environment("test/Words-v0")
    Odd.observation_space = kept


def test_the_sampler_says_what_trajectories_say() -> None:
    (found,) = sampler("rather/GridWorld-v0").sample(TASKS[:1], seed=0)
    assert isinstance(found, Trajectory)
    assert found.task == TASKS[0]
    assert found.policy == "policy@0"
    assert found.observations.shape == (13, 25), "one-hot cells"
