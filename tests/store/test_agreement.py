import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from reference import measure, position_bias
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import fleiss_kappa as reference_fleiss

from rather.core import Comparison, Label, Task, Trajectory
from rather.store import Store, tally
from rather.store.agreement import Agreement, agreement, bias, cohen_kappa, fleiss_kappa

nan = math.nan


def of(ratings: np.ndarray, resamples: int = 1000) -> Agreement:
    return agreement([str(i) for i in range(len(ratings))], ratings, resamples=resamples)


def test_krippendorff_on_the_published_example() -> None:
    # Krippendorff (2011), "Computing Krippendorff's alpha-reliability", example C: 4 observers, 12 units, nominal alpha 0.743
    ratings = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    )
    found = of(ratings)
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert found.low < 0.743 < found.high


def test_fleiss_on_the_published_example() -> None:
    # Fleiss (1971) as worked out on Wikipedia: 10 subjects, 14 raters, kappa 0.210
    counts = np.array(
        [
            [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
        ]
    )  # fmt: skip
    ratings = np.array([np.repeat(np.arange(5), row) for row in counts], float).T
    assert fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)


def test_cohen_on_the_published_example() -> None:
    # Cohen's kappa as worked out on Wikipedia: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no; kappa 0.4
    a = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    b = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 5, 10, 15])
    assert cohen_kappa(a, b) == pytest.approx(0.4, abs=5e-3)
    assert of(np.stack([a, b])).raw == pytest.approx(0.7)


def test_kappas_equal_those_of_other_libraries() -> None:
    chance = np.random.default_rng(0)
    ratings = chance.integers(-1, 2, size=(4, 60)).astype(float)
    assert cohen_kappa(ratings[0], ratings[1]) == pytest.approx(cohen_kappa_score(ratings[0], ratings[1]))
    assert fleiss_kappa(ratings) == pytest.approx(reference_fleiss(aggregate_raters(ratings.T)[0]))


def test_measure_leaves_out_abstentions_and_lone_answers() -> None:
    labels = [Label(1, "ann", 1.0), Label(1, "ben", 0.9), Label(2, "ann", 0.0), Label(2, "ben", 1.0), Label(3, "ann", 1.0)]
    labels += [Label(4, "ann", None), Label(4, "ben", 1.0)]
    found = measure(labels)
    assert (found.judges, found.questions, found.raw) == (["ann", "ben"], 2, 0.5)


def test_measure_without_anything_to_compare() -> None:
    assert measure([]).questions == 0
    assert math.isnan(measure([Label(1, "ann", 1.0)]).alpha)


def test_position_bias_counts_the_left_side() -> None:
    left = [Label(i, "ann", 1.0, shown="ab") for i in range(15)] + [Label(i, "ann", 0.0, shown="ba") for i in range(15, 20)]
    found = position_bias([*left, Label(21, "ann", 0.5), Label(22, "ann", None), Label(23, "ann", 0.0, shown="ab")])
    assert found is not None
    assert (found.left, found.total) == (20, 21)
    assert found.p_value == pytest.approx(2 * (1 + 21) / 2**21)  # binomial tails: 20 or 21 of 21, twice
    assert position_bias([Label(1, "ann", 0.5)]) is None


def test_the_interval_is_that_of_questions_drawn_again_one_by_one() -> None:
    chance = np.random.default_rng(1)
    ratings = chance.integers(-1, 2, size=(3, 80)).astype(float)
    ratings[1] = np.where(chance.random(80) < 0.7, ratings[0], ratings[1])
    ratings[2, chance.random(80) < 0.3] = nan
    slowly = [of(ratings[:, chance.integers(80, size=80)], resamples=1).alpha for _ in range(1000)]
    found = of(ratings)
    assert (found.low, found.high) == pytest.approx((np.quantile(slowly, 0.025), np.quantile(slowly, 0.975)), abs=0.025)


def test_raw_agreement_counts_pairs_of_answers() -> None:
    chance = np.random.default_rng(2)
    ratings = chance.integers(-1, 2, size=(5, 40)).astype(float)
    ratings[chance.random((5, 40)) < 0.4] = nan
    pairs = [(x, y) for column in ratings.T for x, y in combinations(column[~np.isnan(column)], 2)]
    assert of(ratings).raw == pytest.approx(np.mean([x == y for x, y in pairs]))


@pytest.mark.parametrize(("left", "total"), [(0, 1), (5, 10), (20, 21), (480, 1000)])
def test_the_bias_is_the_binomial_test_of_scipy(left: int, total: int) -> None:
    found, reference = bias(left, total), binomtest(left, total)
    interval = reference.proportion_ci(method="wilson")
    assert (found.p_value, found.low, found.high) == pytest.approx((reference.pvalue, interval.low, interval.high))


def test_what_is_counted_in_the_store_is_what_the_labels_say(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, chance = Store(where), np.random.default_rng(3)
    for name, kind in (("zoe", "person"), ("ann", "person"), ("ben", "file"), ("idle", "file")):
        store.add_judge(name, kind)
    sides = [(Trajectory(Task("f", "k", "prompt"), "p", word),) for word in ("one", "two", "three")]
    asked = [Comparison(sides[0], sides[1], key=str(i), others=tuple(sides[2:]) if i > 20 else ()) for i in range(25)]
    for purpose in ("train", "eval"):
        numbers = store.ask("run", [replace(c, key=f"{purpose}/{c.key}") for c in asked], purpose)
        for number, c in zip(numbers, asked, strict=True):
            for judge in ("zoe", "ann", "ben", "ann"):  # ann changes her mind
                p = [None, 0.0, 0.5, 1.0, 0.8][chance.integers(5)]
                best = int(chance.integers(3)) if c.others and p not in (None, 0.5) else None
                store.answer(Label(number, judge, p, best=best, shown=("ab", "ba")[chance.integers(2)]))
    store.undo("run", "ben")
    labels = store.labels("run", "train")
    assert tally.questions(store, "run", "train") == 25
    monkeypatch.setattr(tally, "CHUNK", 7)
    chunks: list[int] = []
    counted = tally.count(store, "run", "train", chunks.append)
    assert counted.agreement == measure(labels)
    assert chunks == [7, 7, 7, 4]
    assert tally.position(store, "run", "train") == position_bias([x for x in labels if x.judge != "ben"])
    given = [(x.judge, x.preference is None) for x in labels]
    assert [(x.judge, x.kind) for x in counted.tallies[-4:]] == [("zoe", "person"), ("ann", "person"), ("ben", "file"), ("idle", "file")]
    for name, _, answers, abstentions in counted.tallies:
        assert (answers, abstentions) == (given.count((name, False)), given.count((name, True)))
    assert tally.count(store, "nothing", "train").agreement.questions == 0
    store.close()
