import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from rather.core import Comparison, Task, Trajectory
from rather.learners.rates import Z, of_any_size, rate
from rather.report.rates import calibration, win_rate


@pytest.mark.parametrize("values", [[1.0] * 7 + [0.0] * 3, [1.0] * 20, [0.0, 1.0]])
def test_the_interval_is_wilsons(values: list[float]) -> None:
    found = rate(values)
    low, high = proportion_confint(sum(values), len(values), method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("count", [5, 20, 60])
@pytest.mark.parametrize("kind", ["coin", "votes", "ties", "rarely", "between", "skewed", "high", "near one"])
def test_the_interval_covers_the_truth_as_often_as_it_says_and_is_no_wider_than_it_need_be(kind: str, count: int) -> None:
    chance = np.random.default_rng(0)
    shape = 1000, count
    drawn, truth = {
        "coin": (chance.binomial(1, 0.6, shape) * 1.0, 0.6),
        "votes": (chance.binomial(3, chance.beta(1.2, 0.8, shape)) / 3, 0.6),
        "ties": (np.where(chance.random(shape) < 0.7, 0.5, chance.binomial(1, 0.8, shape)), 0.59),
        "rarely": (np.where(chance.random(shape) < 0.95, 0.5, 1.0), 0.525),
        "between": (chance.beta(4, 1, shape), 0.8),
        "skewed": (np.where(chance.random(shape) < 0.1, 0.0, 0.9), 0.81),
        "high": (1 - (chance.random(shape) < 0.05) / 3, 1 - 0.05 / 3),
        "near one": (chance.beta(9.5, 0.5, shape), 0.95),
    }[kind]
    found = [rate(list(values)) for values in drawn]
    covered = np.mean([r.low <= truth <= r.high for r in found])
    assert covered >= 0.93  # 1,000 draws of 95 %, and as few as 5 values
    if count == 60 and kind in ("coin", "votes", "ties"):  # by the normal distribution, knowing the deviation
        needed = 2 * Z * drawn.std() / np.sqrt(count)
        assert np.mean([r.high - r.low for r in found]) <= 1.15 * needed


def test_values_that_agree_by_chance_are_not_taken_for_certain() -> None:
    found = rate([0.5, 0.5])
    assert found.high - found.low > 0.5


def test_one_more_vote_lost_does_not_raise_the_lower_end() -> None:
    assert rate([1.0] * 59 + [2 / 3]).low < rate([1.0] * 60).low


def test_no_values() -> None:
    assert math.isnan(rate([]).mean)
    assert math.isnan(of_any_size([]).mean)


def test_scores_of_any_size_have_a_plain_interval() -> None:
    found = of_any_size([120.0, 80.0, -20.0, 60.0])
    half = Z * np.std([120, 80, -20, 60], ddof=1) / 2
    assert (found.mean, found.low, found.high) == pytest.approx((60, 60 - half, 60 + half))
    assert str(found) == "60 (95 % interval 2.3 to 117.7, n = 4)"
    assert str(rate([1.0, 0.0])).startswith("50.0 % (95 % interval")


def test_win_rate_counts_each_task_once_and_either_side() -> None:
    def pair(key: str, first: str, second: str, preference: float) -> Comparison:
        task = Task("f", key, "?")
        return Comparison((Trajectory(task, first, ""),), (Trajectory(task, second, ""),), preference)

    found = win_rate([pair("1", "new", "old", 1.0), pair("2", "old", "new", 1.0), pair("2", "old", "new", 0.0)], "new")
    assert (found.mean, found.count) == (0.75, 2)  # task 1: 1; task 2: 0 and 1


def test_calibration_by_hand() -> None:
    # predicted 0.9 (right, right, wrong), 0.4 against b (right): accuracy 3/4
    found = calibration([0.9, 0.9, 0.9, 0.4, 0.7], [1.0, 1.0, 0.0, 0.0, 0.5])
    assert found.accuracy.mean == 0.75
    # bins: 0.6 came true 1 of 1, 0.9 came true 2 of 3: (0.4 * 1 + 0.2333 * 3) / 4 = 0.275
    assert found.error == pytest.approx(0.275)
    assert [count for *_, count in found.bins] == [1, 3]
