import math

import pytest
import torch

from rather.pipeline.query import Pick, choose, disagreement, entropy, near_tie, priorities, shares

# two members, three pairs: agree that a is better; disagree; agree that there is no difference
DIFFERENCES = torch.tensor([[3.0, 3.0, 0.0], [3.0, -3.0, 0.0]])


def test_strategies_by_hand() -> None:
    p = 1 / (1 + math.exp(-3))
    assert disagreement(DIFFERENCES).tolist() == pytest.approx([0, p - 0.5, 0])
    assert near_tie(DIFFERENCES).tolist() == [-3, 0, 0]
    assert entropy(DIFFERENCES).tolist() == pytest.approx([-p * math.log(p) - (1 - p) * math.log(1 - p), math.log(2), math.log(2)])


def test_strategies_by_moments_of_an_ensemble_by_hand() -> None:
    # means 3, 0, 0; variances of 3 and 3, 3 and -3, 0 and 0: 0, 9, 0
    assert priorities("large_gap", DIFFERENCES, 3) == [3, 0, 0]
    assert priorities("d_optimal", DIFFERENCES, 3) == [0, 9, 0]
    agreed, disputed, tied = priorities("bald", DIFFERENCES, 3)
    assert disputed > 0.1
    assert [agreed, tied] == pytest.approx([0, 0], abs=1e-12)
    assert priorities("d_optimal", DIFFERENCES[:1], 3) == [0, 0, 0], "one member is sure"


def sides(picks: list[Pick]) -> list[int]:
    return [i for p in picks for i in (p.a, p.b)]


def test_the_best_are_asked_and_a_share_at_random() -> None:
    scores = torch.zeros(2, 2000)
    scores[0, 80:100] = torch.tensor([5.0, -5.0]).repeat(10)  # the members disagree about pairs with one of these
    chosen = choose("disagreement", scores, 2000, 10, 100, 0.2, seed=1)
    assert len(chosen) == 10
    assert len(set(sides(chosen))) == 20, "no fragment is asked about twice"
    assert [p.why for p in chosen].count("random") == 2
    assert all(any(80 <= i < 100 for i in (p.a, p.b)) and p.score > 0.2 for p in chosen if p.why == "disagreement")
    assert chosen == choose("disagreement", scores, 2000, 10, 100, 0.2, seed=1)
    assert chosen != choose("disagreement", scores, 2000, 10, 100, 0.2, seed=2)


@pytest.mark.parametrize("scores", [None, torch.randn(2, 40, generator=torch.Generator().manual_seed(0))])
@pytest.mark.parametrize("strategy", ["random", "disagreement", "near_tie", "entropy", "large_gap", "bald", "d_optimal"])
@pytest.mark.parametrize(("count", "wanted", "found"), [(40, 20, 20), (40, 19, 19), (39, 20, 19), (2, 5, 1), (1, 1, 0)])
def test_all_fragments_may_be_needed(scores, strategy: str, count: int, wanted: int, found: int) -> None:
    for seed in range(20):
        chosen = choose(strategy, None if scores is None else scores[:, :count], count, wanted, 10, 0.2, seed)
        assert len(chosen) == found
        assert len(set(sides(chosen))) == 2 * found


@pytest.mark.parametrize("scores", [None, torch.zeros(2, 100)])
def test_at_random_every_fragment_is_as_likely(scores) -> None:
    counts = torch.zeros(100)
    for seed in range(300):
        for pick in choose("random", scores, 100, 10, 10, 0.0, seed):
            counts[[pick.a, pick.b]] += 1
            assert pick.why == "random"
    assert counts.min() > 30
    assert counts.max() < 90


def test_shares_sum_to_the_whole() -> None:
    assert shares(100, 4, "constant") == [25, 25, 25, 25]
    assert shares(100, 4, "hyperbolic") == [48, 24, 16, 12]  # 1, 1/2, 1/3, 1/4 of 100 / (25/12)
    for total in (1, 7, 99):
        for rounds in (1, 3, 8):
            for schedule in ("constant", "hyperbolic"):
                assert sum(shares(total, rounds, schedule)) == total
