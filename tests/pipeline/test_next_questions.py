"""Which question comes next while a reward head learns from people's answers."""

import numpy as np
import pytest
from runs import go

from rather.core import Label
from rather.pipeline import priorities
from rather.pipeline.priorities import Priorities
from rather.pipeline.run import Run
from rather.pipeline.strategies import alone
from rather.store import Question, asking
from rather.store.quality import Asking
from rather.text.head.model import RewardHead


@pytest.fixture
def settings(text_run: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(priorities, "AHEAD_S", 60.0)  # on a busy machine, too
    people = ["judge.kind=people", "judge.wait_s=0", "train.learner=reward", "reward.kind=head", "reward.held_out=0"]
    return [*text_run, *people, "query.random_share=0"]


def asked(run: Run, answered: int = 4) -> list[Question]:
    """The questions of a new run, of which ann has answered the first ones, and has the next before her."""
    run.sample()
    run.store.add_judge("ann", "person")
    numbers = [q.id for q in run.store.questions("run", "train")]
    run.store.answer_all([Label(n, "ann", float(n % 2)) for n in numbers[:answered]])
    assert asking.next_question(run.store, "run", "ann", 0)
    return run.store.questions("run", "train")


def fitted(run: Run) -> RewardHead:
    head = RewardHead(run.domain.base_policy, layers=[1, 2])  # type: ignore[arg-type]
    head.learn(run.labels(0, "reward").comparisons)
    return head


@pytest.mark.parametrize("strategy", ["d_optimal", "bald", "information_directed"])
def test_open_questions_are_put_in_order_once_the_head_has_learned(settings: list[str], strategy: str) -> None:
    more = ["query.answers=3"] if strategy == "information_directed" else []
    run = go([*settings, *more], f"query.strategy={strategy}")
    before = asked(run)
    assert {q.score for q in before} == {None}
    run.train()
    after, head = run.store.questions("run", "train"), fitted(run)
    assert [q.score for q in after[:5]] == [None] * 5, "answered, or in front of somebody"
    waiting = [q for q in after[5:] if run.domain.learnable(q.comparison)]
    wanted = alone(strategy, *head.differences([q.comparison for q in waiting]), 0)
    assert [q.score for q in waiting] == pytest.approx(wanted, rel=0.1 if more else 1e-4)
    assert {q.why for q in waiting} == {strategy}
    run.store.add_judge("ben", "person")
    run.store.set_asking("run", Asking(random=0, repeats=0))
    found = asking.next_question(run.store, "run", "ben", 0)
    assert found is not None
    assert found.score == max(q.score or 0.0 for q in waiting)


def test_a_share_stays_random_and_so_does_what_is_held_back(settings: list[str]) -> None:
    run = go(settings, "query.random_share=0.4", "query.strategy=d_optimal", "reward.held_out=0.4")
    asked(run)
    run.train()
    after, head = [q for q in run.store.questions("run", "train")[5:] if q.score is not None], fitted(run)
    _, variance = head.differences([q.comparison for q in after])
    by_chance = [run.stays_random(q.comparison.key) or run.held_back(q.comparison) for q in after]
    assert 0 < sum(by_chance) < len(after)
    assert any(run.held_back(q.comparison) and not run.stays_random(q.comparison.key) for q in after)
    others = [v for v, chance in zip(variance, by_chance, strict=True) if not chance]
    for q, v, chance in zip(after, variance, by_chance, strict=True):
        assert q.why == ("random" if chance else "d_optimal")
        nearest = min(abs((q.score or 0.0) - other) for other in others)
        assert nearest < 1e-8 if chance else q.score == pytest.approx(v, rel=1e-4)


def test_with_random_questions_nothing_is_put_in_order(settings: list[str]) -> None:
    run = go(settings, "query.strategy=random")
    asked(run)
    run.train()
    assert {q.score for q in run.store.questions("run", "train")} == {None}


def test_answers_that_nobody_was_asked_about_are_read_some_at_a_time(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priorities, "AHEAD_S", 0.0)
    run = go(settings, "query.strategy=d_optimal")
    waiting = [q for q in asked(run)[5:] if run.domain.learnable(q.comparison)]
    head = RewardHead(run.domain.base_policy, layers=[1, 2])  # type: ignore[arg-type]
    order = Priorities(run, 0, head)
    assert not order.renew(), "nothing has been learned"
    head.learn(run.labels(0, "reward").comparisons)
    for count in range(1, len(waiting) + 1):
        assert order.renew() == (count < len(waiting))
        found = {q.id: q.score for q in run.store.questions("run", "train")}
        assert sum(score is not None for score in found.values()) == count
        assert {n for n in found if found[n] is not None} == {q.id for q in waiting[:count]}, "those first that come next"
    _, variance = head.differences([q.comparison for q in waiting])
    assert [found[q.id] for q in waiting] == pytest.approx(np.asarray(variance))
