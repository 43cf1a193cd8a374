import math
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import rather.control
from rather.control.car import HALF_WIDTH, LINES, REARM, CheckpointCar, direction, radius, wrapped

assert rather.control  # registers the environments


def drive(car: CheckpointCar) -> int:
    """A careful driver: heads down the track and back to its middle."""
    wanted = direction(car.angle + 0.2) - 1.5 * (radius(car.angle) - car.distance)
    error = wrapped(wanted - car.heading)
    return 6 + (1 if abs(error) < 0.05 else 2 if error > 0 else 0)


def rock(car: CheckpointCar) -> int:
    """Back and forth over the nearest line, far enough for it to pay again."""
    spacing = 2 * math.pi / LINES
    beyond = wrapped(car.angle - spacing * round(car.angle / spacing))
    ahead = car.speed > 0 if car.asleep is not None else beyond < 0
    return 7 if ahead else 1


def play(driver, seed: int) -> tuple[float, float]:
    car = CheckpointCar()
    car.reset(seed=seed)
    total, cut, laps = 0.0, False, 0.0
    while not cut:
        _, reward, terminated, cut, info = car.step(driver(car))
        assert not terminated
        total, laps = total + reward, info["laps"]
    return total, laps


def test_gymnasium_accepts_it() -> None:
    env = gymnasium.make("rather/CheckpointCar-v0", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends bounds for observations
        check_env(env.unwrapped)
    assert env.reset(seed=1)[0] in env.observation_space


@pytest.mark.parametrize("seed", range(5))
def test_the_written_reward_likes_rocking_better_than_driving(seed: int) -> None:
    paid_for_driving, laps = play(drive, seed)
    paid_for_rocking, none = play(rock, seed)
    assert laps > 2
    assert paid_for_driving == pytest.approx(laps * LINES, abs=1)
    assert abs(none) < 0.1
    assert paid_for_rocking > 2 * paid_for_driving


def test_a_line_pays_in_both_directions_but_only_once_the_car_has_been_away() -> None:
    car = CheckpointCar()
    car.reset(seed=0)
    car.angle, paid = 0.9, []
    # over line 1 at pi / 3, back at once, back again, away from it, and over it
    for angle in (1.0, 1.06, 1.04, 1.06, 1.12, 1.03):
        before, car.angle = car.angle, angle
        paid.append(car._reward(before))
    assert abs(1.06 - math.pi / 3) < REARM < 1.12 - math.pi / 3
    assert paid == [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def test_lines_at_the_seam_of_the_angle_pay_too() -> None:
    car = CheckpointCar()
    car.reset(seed=0)
    car.asleep, car.angle = None, -math.pi + 0.05
    assert car._reward(math.pi - 0.05) == 1.0, "line 3 lies at pi"
    car.asleep, car.angle = None, 0.05
    assert car._reward(-0.05) == 1.0, "line 0 lies at 0"


def test_the_wall_stops_the_car() -> None:
    car = CheckpointCar()
    car.reset(seed=0)
    car.heading, car.speed = car.angle, 1.0  # straight outwards
    speeds = []
    for _ in range(8):
        observation, *_ = car.step(7)
        speeds.append(car.speed)
    assert 0.0 in speeds
    assert car.distance <= radius(car.angle) + HALF_WIDTH + 1e-9
    assert observation[0] <= 1 + 1e-6


def test_the_same_seed_and_actions_give_the_same_drive_and_pictures() -> None:
    pictures = []
    for _ in range(2):
        env = gymnasium.make("rather/CheckpointCar-v0", render_mode="rgb_array")
        env.reset(seed=3)
        for action in np.random.default_rng(0).integers(9, size=30):
            env.step(int(action))
        pictures.append(env.render())
    assert pictures[0].shape == (256, 256, 3)
    np.testing.assert_array_equal(*pictures)
    env.step(7)
    assert (env.render() != pictures[0]).any()
