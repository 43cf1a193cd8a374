"""Answers that are predicted before they are learned from: by hand, and whenever steps are taken."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from rather.core import Comparison, Task, Trajectory
from rather.learners import checkpoint, head_learner, prequential
from rather.learners.checkpoint import Lineage
from rather.learners.head_learner import HeadLearner
from rather.text.head.model import RewardHead
from rather.text.language_model import LanguageModel
from rather.text.open import load


@pytest.fixture(scope="module")
def body(tiny: Path) -> LanguageModel:
    return load(tiny, dtype="float32")


def comparison(i: int, preference: float = 1.0) -> Comparison:
    """Number i by key and opposite by label: the last question was answered first."""
    task = Task("t", str(i), f"say {i}")
    a, b = (Trajectory(task, "p", text) for text in (f"a{'b' * (i % 5)}", f"{i % 3}ba"))
    return Comparison((a,), (b,), preference, f"q{i}", f"judge {i % 2}", label=100 - i)


ANSWERS = [comparison(i, (1.0, 0.0, 1.0, 0.5)[i % 4]) for i in range(10)]
GIVEN = ANSWERS[::-1]
"""In the order in which they were given."""


def learner(body: LanguageModel, known: list[Comparison], live: bool = True) -> HeadLearner:
    return HeadLearner(RewardHead(body, layers=[1, 2]), known, prequential=live, steps=10**9)


def test_accuracy_and_log_loss_by_hand() -> None:
    """P(a better) = 3/4, 1/4, 1/2, 3/4 of a, a, b and a tie: right, wrong, half right and left out."""
    three = math.log(3)
    found = prequential.figures([three, -three, 0.0, three], [1.0, 1.0, 0.0, 0.5])
    assert found["answers"] == 3
    assert found["prequential_accuracy"] == pytest.approx(0.5)
    half = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert found["prequential_loss"] == pytest.approx((-math.log(3 / 4) - math.log(1 / 4) + math.log(2) + half) / 4)
    assert 0 < found["prequential_accuracy_low"] < 0.5 < found["prequential_accuracy_high"] < 1
    assert prequential.sentence(found).startswith("50 % of 3 answers were predicted right before they were learned from (95 % interval ")
    only_ties = prequential.figures([0.0], [0.5])
    assert only_ties == {"prequential_loss": pytest.approx(math.log(2)), "answers": 0}
    assert prequential.sentence(only_ties) == prequential.sentence({}) == ""


def test_each_answer_is_predicted_by_the_head_of_those_before_it(body: LanguageModel) -> None:
    live = learner(body, ANSWERS)
    values = live.step()
    expected = [0.0]
    for i in range(1, 10):
        cold = RewardHead(body, layers=[1, 2])
        cold.learn(GIVEN[:i])
        expected += cold.log_odds(GIVEN[i : i + 1]).tolist()
    assert [*live.predicted.values()] == pytest.approx(expected, abs=1e-6)
    assert values["prequential_loss"] == pytest.approx(
        prequential.figures(expected, [c.preference or 0 for c in GIVEN])["prequential_loss"]
    )
    assert values["comparisons"] == 10
    assert "prequential_loss" not in learner(body, ANSWERS, live=False).step()


def test_it_does_not_matter_when_steps_are_taken_and_where_it_was_stopped(body: LanguageModel, tmp_path: Path) -> None:
    at_once = learner(body, ANSWERS)
    expected = at_once.step()
    one_by_one = learner(body, GIVEN[:1])
    for i in range(1, 11):
        one_by_one.follow(sorted(GIVEN[:i], key=lambda c: c.key))
        last = one_by_one.step()
        if i == 4:
            checkpoint.save(tmp_path, i, one_by_one, Lineage({}, 0, []))
    gone_on = learner(body, GIVEN[:1])
    checkpoint.load(tmp_path / "step-000004", gone_on)
    gone_on.follow(ANSWERS)
    for values, other in ((last, one_by_one), (gone_on.step(), gone_on)):
        assert {k: v for k, v in values.items() if "prequential" in k or k == "answers"} == pytest.approx(
            {k: v for k, v in expected.items() if "prequential" in k or k == "answers"}, abs=1e-6
        )
        assert other.predicted == pytest.approx(at_once.predicted, abs=1e-6)
        assert [*other.predicted] == [*at_once.predicted]


def test_a_changed_answer_is_not_predicted_again_and_one_that_was_withdrawn_does_not_count(body: LanguageModel) -> None:
    live = learner(body, GIVEN[:6])
    live.step()
    before = dict(live.predicted)
    changed = replace(GIVEN[5], preference=0.0, label=200)
    assert GIVEN[5].preference == 1.0
    live.follow([*GIVEN[1:5], changed])
    values = live.step()
    assert live.predicted == before
    assert values["answers"] == sum(c.preference != 0.5 for c in GIVEN[1:6])
    kept = [*before.values()][1:]
    expected = prequential.figures(kept, [*(c.preference or 0 for c in GIVEN[1:5]), 0.0])
    assert values["prequential_loss"] == expected["prequential_loss"]
    live.follow([*GIVEN[:5], changed])
    live.step()
    assert live.predicted == before, "given again, it was learned from before"


def test_very_many_are_predicted_in_growing_parts(body: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_learner, "MANY", 2)
    monkeypatch.setattr(head_learner, "SHARE", 2)
    live = learner(body, ANSWERS)
    live.step()
    cold = RewardHead(body, layers=[1, 2])
    cold.learn(GIVEN[:4])
    assert [*live.predicted.values()][4:6] == pytest.approx(cold.log_odds(GIVEN[4:6]).tolist(), abs=1e-6)


def test_what_was_learned_without_a_prediction_begins_anew(body: LanguageModel, tmp_path: Path) -> None:
    """As with a checkpoint of a simulated panel's answers, which people's come after."""
    panel = learner(body, ANSWERS[:5], live=False)
    panel.step()
    checkpoint.save(tmp_path, 1, panel, Lineage({}, 0, []))
    people, never_stopped = learner(body, ANSWERS), learner(body, ANSWERS)
    checkpoint.load(tmp_path / "step-000001", people)
    people.step()
    never_stopped.step()
    assert people.predicted == pytest.approx(never_stopped.predicted, abs=1e-6)
    assert next(iter(people.predicted.values())) == 0.0
    people.prequential = False
    people.step()
    assert people.state_dict()["predicted"] == {}
