import math

import pytest
from statsmodels.stats.proportion import proportion_confint

from rather.core import Comparison, Task, Trajectory
from rather.evaluate import calibration, rate, win_rate


@pytest.mark.parametrize("values", [[1.0] * 7 + [0.0] * 3, [1.0] * 20, [0.0, 1.0]])
def test_the_interval_is_wilsons(values: list[float]) -> None:
    found = rate(values)
    low, high = proportion_confint(sum(values), len(values), method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    import numpy as np

    chance = np.random.default_rng(0)
    covered = [(r := rate(list(chance.binomial(3, 0.6, size=60) / 3))).low <= 0.6 <= r.high for _ in range(1000)]
    assert sum(covered) >= 950


def test_no_values() -> None:
    assert math.isnan(rate([]).mean)


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
