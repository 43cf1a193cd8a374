import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import rather.control
from rather.control.grid import GridWorld

assert rather.control  # registers the environments


def returns(env: GridWorld, policy: np.ndarray, count: int) -> np.ndarray:
    """Returns of `count` episodes of `policy` (H, S, A)."""
    chance, found = np.random.default_rng(0), []
    for seed in range(count):
        env.reset(seed=seed)
        total, cut = 0.0, False
        while not cut:
            action = chance.choice(4, p=policy[env.time, env.cell])
            _, reward, _, cut, _ = env.step(action)
            total += reward
        found.append(total)
    return np.array(found)


def test_gymnasium_accepts_it() -> None:
    env = gymnasium.make("rather/GridWorld-v0", render_mode="rgb_array").unwrapped
    check_env(env)
    assert env.reset(seed=1)[0] in env.observation_space


def test_the_best_value_by_hand() -> None:
    # two cells a side, the last one pays 1: right and down takes two moves, and each later move may stay on it
    env = GridWorld(size=2, horizon=4, slip=0.0, rewards=[[0, 0], [0, 1]])
    assert env.values()[0].tolist() == [3.0, 4.0, 4.0, 4.0]
    # with a slip of 0.2 a single move right from the third cell arrives unless it slips up (0.1); slipping down it stays
    env = GridWorld(size=2, horizon=1, slip=0.2, rewards=[[0, 0], [0, 1]])
    assert env.values()[0] == pytest.approx([0.0, 0.8, 0.8, 0.9])


def test_chances_sum_to_one() -> None:
    np.testing.assert_allclose(GridWorld(slip=0.3).transitions.sum(-1), 1)


@pytest.mark.parametrize("best", [True, False])
def test_values_are_the_mean_of_what_is_played(best: bool) -> None:
    env = GridWorld(size=4, horizon=8, slip=0.2)
    policy = env.best() if best else np.full((8, 16, 4), 0.25)
    played = returns(env, policy, 2000)
    error = played.std() / np.sqrt(len(played))
    assert abs(played.mean() - env.values(policy)[0, 0]) < 4 * error
    if best:
        assert env.values(policy)[0, 0] == pytest.approx(env.values()[0, 0])


def test_time_can_be_seen() -> None:
    env = GridWorld(size=3, horizon=2, slip=0.0, timed=True)
    assert env.reset(seed=0)[0] == 0
    assert env.step(1)[0] == 9 + 1
    assert env.step(2)[0] == 9 + 4, "after the last move it is still the last step"
    assert env.observation_space.n == 18


def test_rewards_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\); give one number a cell, \(5, 5\)"):
        GridWorld(rewards=[1, 2])


def test_a_move_slips_to_its_sides_by_hand() -> None:
    # from the middle of 3 x 3 (cell 4), up: 0.8 to cell 1, 0.1 each to its sides, cells 3 and 5, never back to 7
    chances = GridWorld(size=3, slip=0.2).transitions
    expected = np.zeros(9)
    expected[[1, 3, 5]] = 0.8, 0.1, 0.1
    np.testing.assert_allclose(chances[4, 0], expected)
    # from the corner (cell 0), right: 0.8 to cell 1, 0.1 down to cell 3, 0.1 up against the wall
    expected = np.zeros(9)
    expected[[1, 3, 0]] = 0.8, 0.1, 0.1
    np.testing.assert_allclose(chances[0, 1], expected)
