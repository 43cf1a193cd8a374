"""Of an answer to three sides learners see two comparisons, which are two also when others come in beside them."""

from pathlib import Path

import pytest
import torch
from test_learners import comparisons, policies

from fixed import fixed
from rather.core import Comparison, Task, Trajectory
from rather.learners.common import names
from rather.learners.dpo import DPO
from rather.learners.reward import Reward
from rather.learners.sft import SFT, examples
from rather.text.reward_model import RewardModel

TASK = Task("f", "x", "prompt x")
OWN, A, B = ((Trajectory(TASK, "p", words),) for words in ("aaaaaaaa", "bb", "bbbbbb"))
ANSWERED = Comparison(OWN, A, 1.0, "written/1/2/0", "ann", (B,), 0)


def test_pairs_of_one_answer_have_names_of_their_own() -> None:
    assert names([*ANSWERED.pairs(), *comparisons(1)]) == ["written/1/2/0/ann", "written/1/2/0/ann#2", "0"]


@pytest.mark.parametrize("when", ["once", "each"])
def test_dpo_keeps_the_reference_of_each_pair(tiny: Path, when: str) -> None:
    start, policy, parameters = policies(tiny)
    with torch.no_grad():
        for p in parameters:
            p.add_(0.01)
    first = DPO(policy, [*comparisons(3), *ANSWERED.pairs()], start, parameters, **fixed(1, batch_size=5), reference_logprobs=when)  # type: ignore[arg-type]
    followed = DPO(policy, comparisons(3), start, parameters, **fixed(1, batch_size=5), reference_logprobs=when)  # type: ignore[arg-type]
    followed.follow([*comparisons(3), *ANSWERED.pairs()])
    state = [p.detach().clone() for p in parameters]
    expected = first.step()
    with torch.no_grad():
        for p, before in zip(parameters, state, strict=True):
            p.copy_(before)
    found = followed.step()
    assert {k: found[k] for k in ("loss", "accuracy")} == pytest.approx({k: expected[k] for k in ("loss", "accuracy")}, abs=1e-6)


def test_both_pairs_have_their_turn(tiny: Path) -> None:
    _, policy, parameters = policies(tiny)
    learner = Reward(RewardModel(policy, 1, 0, parameters=[]), comparisons(1), parameters, **fixed(4, batch_size=1))
    learner.follow(ANSWERED.pairs())
    learner.step()
    learner.step()
    assert learner.state_dict()["place"] == {"written/1/2/0/ann": 1, "written/1/2/0/ann#2": 1}


def test_sft_learns_an_answer_once_a_question(tiny: Path) -> None:
    others = comparisons(3)
    liked = [c for c in others if c.preference != 0.5]
    data = [*others, *ANSWERED.pairs(), Comparison(OWN, A, 1.0, "written/1/2/0", "ben", (B,), 0).pairs()[0]]
    found = examples(data)
    assert [t.text for t in found].count("aaaaaaaa") == 1
    assert len(found) == len(liked) + 1
    again = Comparison(OWN, A, 1.0, "another question")
    assert [t.text for t in examples([*data, again])].count("aaaaaaaa") == 2
    _, policy, parameters = policies(tiny)
    learner = SFT(policy, examples(others), parameters, **fixed(1))
    learner.follow(data)
    assert [t.text for t in learner.trajectories].count("aaaaaaaa") == 1
