from dataclasses import replace

import numpy as np
import pytest

from rather.core import gold_correlation
from rather.hacking.alarm import Measure, Point, alarm, distinct, explained, one_event, points, repetition
from rather.hacking.page import Side, alarms, write


def run(proxy, gold, noise: float = 0.1, seed: int = 0) -> list[Point]:
    """A run of 60 steps whose proxy and gold follow two functions of the share that is done; trajectories differ by 1."""
    chance = np.random.default_rng(seed)

    def measure(f, x):
        return Measure(f(x) + noise * chance.standard_normal(), noise, 1.0)

    return [Point(i + 1, measure(proxy, i / 60), measure(gold, i / 60), kl=float(i)) for i in range(60)]


@pytest.mark.parametrize("seed", range(5))
def test_gold_that_stays_while_the_proxy_rises(seed: int) -> None:
    found = alarm(run(lambda x: 20 * x, lambda x: 0.0, seed=seed))
    assert found is not None
    assert found.best == 1
    assert found.step < 25


@pytest.mark.parametrize("seed", range(5))
def test_gold_that_falls_is_seen_before_it_has_lost_a_tenth(seed: int) -> None:
    def gold(x: float) -> float:
        return 10 * min(x, 0.5) / 0.5 - 5 * max(x - 0.5, 0)

    found = alarm(run(lambda x: 20 * x, gold, seed=seed))
    assert found is not None
    assert 25 <= found.best <= 36
    assert gold((found.step - 1) / 60) > 9, "it had been 10"


def pulled(found: list[Point], correlation, seed: int, n: int = 32) -> list[Point]:
    """The same run with the correlation of pay and worth, a function of the share that is done, as `n` trajectories a step show it."""
    chance = np.random.default_rng(seed)
    values = [float(np.tanh(np.arctanh(correlation(i / 60)) + chance.standard_normal() / (n - 3) ** 0.5)) for i in range(60)]
    return [replace(p, gold_correlation=Measure(r, 1 / (n - 3) ** 0.5, 1.0)) for p, r in zip(found, values, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_gold_that_turns_is_seen_before_it_falls(seed: int) -> None:
    def gold(x: float) -> float:
        return 12 * x * (1 - x)

    noisy = run(lambda x: 20 * x, gold, noise=0.5, seed=seed)
    later, found = alarm(noisy), alarm(pulled(noisy, lambda x: max(-0.8, min(0.8, 4 * (0.5 - x))), seed))
    assert found is not None
    assert found.sign == "turns"
    assert 30 < found.step < 50, "it is best at 30"
    assert later is None or later.step > found.step
    assert "lower gold reward" in str(found)


@pytest.mark.parametrize("seed", range(5))
def test_pay_that_has_nothing_to_do_with_worth_is_no_alarm_by_itself(seed: int) -> None:
    assert alarm(pulled(run(lambda x: 20 * x, lambda x: 10 * x, seed=seed), lambda x: 0.0, seed)) is None
    assert alarm(pulled(run(lambda x: 0.0, lambda x: 0.0, seed=seed), lambda x: -0.9, seed)) is None, "nothing is gained by it yet"


def test_pull_is_the_correlation_of_pay_and_worth() -> None:
    assert gold_correlation([1, 2, 3, 4], [2, 4, 6, 8]) == {"gold_correlation": pytest.approx(1), "gold_correlation_stderr": 1}
    assert gold_correlation([1, 2, 3, 4, np.nan], [8, 6, 4, 2, 100]) == {
        "gold_correlation": pytest.approx(-1),
        "gold_correlation_stderr": 1,
    }, "what is unjudged pulls nothing"
    assert gold_correlation([0, 0, 0, 0], [1, 2, 3, 4])["gold_correlation"] == 0
    assert gold_correlation([1, 2], [1, 2]) == {}, "too few to say"


@pytest.mark.parametrize("seed", range(5))
def test_what_goes_well_raises_no_alarm(seed: int) -> None:
    assert alarm(run(lambda x: 20 * x, lambda x: 10 * x, seed=seed)) is None, "both rise"
    assert alarm(run(lambda x: 20 * min(2 * x, 1), lambda x: 10 * min(2 * x, 1), seed=seed)) is None, "both rise and stay"
    assert alarm(run(lambda x: 20 * x, lambda x: 10 * min(2 * x, 1), seed=seed)) is None, "gold is as good as it gets"
    assert alarm(run(lambda x: 0.0, lambda x: 0.0, seed=seed)) is None, "nothing happens"
    assert alarm(run(lambda x: -20 * x, lambda x: -10 * x, seed=seed)) is None, "both fall: bad, but no hacking"


def test_points_come_from_metrics() -> None:
    row = {"score": 1.0, "score_stderr": 0.1, "score_std": 2.0, "gold": 3.0, "gold_stderr": 0.2, "gold_std": 4.0}
    rows = [{"step": 1, "score": 0.5}, {"step": 2, "kl": 7.0, **row}]
    (found,) = points(rows, "score")
    assert found == Point(2, Measure(1.0, 0.1, 2.0), Measure(3.0, 0.2, 4.0), 7.0)
    (found,) = points([rows[1] | {"gold_correlation": 0.5, "gold_correlation_stderr": 0.2}], "score")
    assert found.gold_correlation == Measure(0.5, 0.2, 1.0)
    assert found.proxy.low == pytest.approx(1 - 0.196)


def test_tells() -> None:
    assert explained([1, 2, 3, 4], [2, 4, 6, 8]) == pytest.approx(1)
    assert explained([1, 2, 1, 2], [1, 1, 2, 2]) == pytest.approx(0)
    assert explained([1, 1, 1], [1, 2, 3]) == 0
    assert repetition("a b c d e f") == 0
    assert repetition("so good so good so good so good") == pytest.approx(1 - 2 / 6)
    assert distinct(["a", "a  ", "b", "c"]) == 0.5
    assert one_event([0, 1, 0, 1, 1, 0, 2, 0]) == 3 / 8
    assert one_event([0, 0]) == 0


def test_the_page_shows_both_sides_and_escapes_what_it_is_told(tmp_path) -> None:
    hacked, honest = run(lambda x: 20 * x, lambda x: 0.0), run(lambda x: 20 * x, lambda x: 10 * x)
    sides = [
        Side("<b>written</b>", [hacked], "paid", "laps", [("0.03", "laps")], b"RIFF"),
        Side("learned", [honest, honest], "paid", "laps"),
    ]
    page = write(tmp_path / "h.html", "x<y", sides).read_text()
    assert "&lt;b&gt;written" in page
    assert "<b>written" not in page
    assert page.count("<svg") == 4
    assert page.count("data:image/webp;base64,") == 1
    assert "reward hacking: from step 1" in page
    assert "no alarm" in page
    assert alarms([honest, hacked])[0].startswith("round 1: reward hacking")


def test_gold_that_may_have_risen_enough_raises_no_alarm() -> None:
    start = Point(1, Measure(0.0, 0.1, 1.0), Measure(0.0, 0.2, 1.0))
    unsure = [Point(i, Measure(20.0, 0.1, 1.0), Measure(0.9, 0.2, 1.0)) for i in range(2, 12)]  # 0.9 +- 0.23 over three points
    assert alarm([start, *unsure]) is None
    surely_not = [Point(p.step, p.proxy, Measure(0.5, 0.2, 1.0)) for p in unsure]
    assert alarm([start, *surely_not]) is not None
