import math

import pytest
import torch

from rather.query import choose, disagreement, entropy, near_tie, shares

# two members, three pairs: agree that a is better; disagree; agree that there is no difference
DIFFERENCES = torch.tensor([[3.0, 3.0, 0.0], [3.0, -3.0, 0.0]])


def test_strategies_by_hand() -> None:
    p = 1 / (1 + math.exp(-3))
    assert disagreement(DIFFERENCES).tolist() == pytest.approx([0, p - 0.5, 0])
    assert near_tie(DIFFERENCES).tolist() == [-3, 0, 0]
    assert entropy(DIFFERENCES).tolist() == pytest.approx([-p * math.log(p) - (1 - p) * math.log(1 - p), math.log(2), math.log(2)])


def test_the_best_are_asked_and_a_share_at_random() -> None:
    differences = torch.zeros(2, 100)
    differences[0, 40:50] = 5.0
    chosen = choose("disagreement", differences, 100, 10, 0.2, seed=1)
    assert len({i for i, _ in chosen}) == 10
    assert [why for _, why in chosen].count("random") == 2
    assert all(40 <= i < 50 for i, why in chosen if why == "disagreement")
    assert chosen == choose("disagreement", differences, 100, 10, 0.2, seed=1)
    assert chosen != choose("disagreement", differences, 100, 10, 0.2, seed=2)


@pytest.mark.parametrize("differences", [None, torch.zeros(2, 100)])
def test_at_random_every_pair_is_as_likely(differences) -> None:
    counts = torch.zeros(100)
    for seed in range(300):
        for i, why in choose("random", differences, 100, 10, 0.0, seed):
            counts[i] += 1
            assert why == "random"
    assert counts.min() > 10
    assert counts.max() < 60


def test_shares_sum_to_the_whole() -> None:
    assert shares(100, 4, "constant") == [25, 25, 25, 25]
    assert shares(100, 4, "hyperbolic") == [48, 24, 16, 12]  # 1, 1/2, 1/3, 1/4 of 100 / (25/12)
    for total in (1, 7, 99):
        for rounds in (1, 3, 8):
            for schedule in ("constant", "hyperbolic"):
                assert sum(shares(total, rounds, schedule)) == total
