"""`query.strategy` and `query.answers` in runs: a reward head or an ensemble chooses two of several answers."""

import itertools
from pathlib import Path

import pytest
from runs import go

from rather import renamed
from rather.config import toml
from rather.core import Comparison, Label, Task, Trajectory
from rather.errors import ConfigError
from rather.judges.model import ModelJudge
from rather.pipeline import build
from rather.pipeline.run import Run
from rather.pipeline.text_domain import two_of_each
from rather.store.rows import Question
from rather.text.head.model import RewardHead


@pytest.fixture
def settings(text_run: list[str]) -> list[str]:
    return [*text_run, "train.batch_size=2", "train.steps=1", "query.random_share=0"]


def asked(run: Run, number: int = 0) -> list[Question]:
    return [q for q in run.store.questions("run", "train") if q.comparison.key.startswith(f"round-{number}/")]


def answer(run: Run) -> None:
    """What a person would say whom every other answer pleases."""
    run.store.add_judge("ann", "person")
    run.store.answer_all([Label(q.id, "ann", float(i % 2)) for i, q in enumerate(asked(run))])


def texts(comparison: Comparison) -> set[str | None]:
    return {side[0].text for side in comparison.sides}


def sampled(run: Run, number: int, count: int) -> dict[str, list[Trajectory]]:
    """So many answers to each prompt, as the run samples them, by the key of their question."""
    sampler = run.domain.sampler(run.policy(number), lambda n: None)
    found = build.answers(run.config, sampler, run.domain.tasks[0], build.seed(run.config, "sample", number), count)  # type: ignore[arg-type]
    return {f"round-{number}/{group[0].task.key}": group for group in found}


def test_a_head_of_the_labels_that_are_there_chooses_two_of_four(settings: list[str]) -> None:
    head_run = [*settings, "reward.kind=head", "query.answers=4", "query.strategy=d_optimal"]
    first = go(head_run, "data.limit=6")
    assert first.sample() == 6
    assert {q.why for q in asked(first)} == {"random"}, "nothing is known yet"
    answer(first)
    run = go(head_run)
    head = RewardHead(run.domain.base_policy, layers=[1, 2])  # type: ignore[arg-type]
    head.learn(run.labels(0, "reward").comparisons)
    assert run.sample() == 4
    new, groups = asked(run)[6:], sampled(run, 0, 4)
    assert {q.why for q in new} == {"d_optimal"}
    for question in new:
        pairs = [Comparison((a,), (b,)) for a, b in itertools.combinations(groups[question.comparison.key], 2)]
        _, variance = head.differences(pairs)
        assert texts(question.comparison) == texts(pairs[variance.argmax()])
        assert question.score == pytest.approx(variance.max(), rel=1e-3)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_is_drawn_at_random_whatever_the_strategy(settings: list[str], share: float) -> None:
    """They are the same whenever they are sampled, and have the first two answers that differ."""
    head_run = [*settings, "reward.kind=head", "query.answers=4", "query.strategy=d_optimal", f"query.random_share={share}"]
    first = go(head_run, "data.limit=4")
    first.sample()
    answer(first)
    run = go(head_run)
    run.sample()
    new, groups = asked(run)[4:], sampled(run, 0, 4)
    by_chance = {q.comparison.key for q in new if q.why == "random"}
    assert by_chance == {q.comparison.key for q in new if run.stays_random(q.comparison.key)}
    assert len(by_chance) == 6 if share == 1 else 0 < len(by_chance) < 6
    for question in new:
        if question.comparison.key in by_chance:
            distinct = list(dict.fromkeys(t.text for t in groups[question.comparison.key]))
            assert texts(question.comparison) == {*distinct[:2]}
        else:
            assert question.why == "d_optimal"


def test_of_many_questions_the_share_is_what_was_set(settings: list[str]) -> None:
    for share in (0.0, 0.2, 0.7, 1.0):
        run = go(settings, f"query.random_share={share}")
        found = sum(run.stays_random(f"round-0/{i}") for i in range(4000)) / 4000
        assert found == pytest.approx(share, abs=0.03 if 0 < share < 1 else 0)


def test_an_ensemble_chooses_two_of_three_from_the_second_round_on(settings: list[str]) -> None:
    learner = ["train.learner=ppo", "train.reward=labels", "ppo.rollout_batch_size=2", "reward.members=3"]
    run = go([*settings, *learner], "query.answers=3", "query.strategy=near_tie", "loop.rounds=2")
    run.sample()
    answer(run)
    run.train()
    assert run.sample(1) == 10
    before, groups = run.reward_before(1), sampled(run, 1, 3)
    assert before is not None
    for question in asked(run, 1):
        group = groups[question.comparison.key]
        scores = dict(zip((t.text for t in group), before.each(group).mean(0).tolist(), strict=True))
        gaps = {abs(scores[a] - scores[b]): {a, b} for a, b in itertools.combinations(scores, 2)}
        assert texts(question.comparison) == gaps[min(gaps)]
        assert question.why == "near_tie"
        assert question.score == pytest.approx(-min(gaps), abs=1e-5)


def test_equal_answers_are_no_pair(tiny: Path) -> None:
    task = Task("t", "0", "question?")

    def said(text: str) -> Trajectory:
        return Trajectory(task, "p", text)

    body = build.base_policy(toml.load(None, [f"model.path={tiny}", "model.dtype=float32"]))
    head = RewardHead(body, layers=[1])
    head.learn([Comparison((said("yes"),), (said("no"),), 1.0), Comparison((said("up"),), (said("down"),), 0.0)])
    groups = [[said("a"), said("b"), said("a")], [said("c"), said("c"), said("c")]]
    pairs, scores = two_of_each("near_tie", ModelJudge("reward", head), groups, 0, [False, False])
    assert [{a.text, b.text} for a, b in pairs] == [{"a", "b"}, {"c"}], "and there is a question where all are equal"
    assert scores[0] < scores[1] == pytest.approx(0, abs=1e-6)


def test_with_random_questions_no_answer_is_sampled_in_vain(settings: list[str]) -> None:
    random = [*settings, "reward.kind=head", "query.answers=4", "query.strategy=random"]
    first = go(random, "data.limit=2")
    first.sample()
    answer(first)
    run = go(random, "data.limit=4")
    assert run.sample() == 2
    assert [texts(q.comparison) for q in asked(run)] == [{t.text for t in group} for group in sampled(run, 0, 2).values()]
    assert {q.score for q in asked(run)} == {None}


@pytest.mark.parametrize("strategy", ["double_thompson", "information_directed"])
def test_strategies_that_look_for_the_best_need_several_answers(strategy: str, settings: list[str]) -> None:
    with pytest.raises(ConfigError, match=f'^query.strategy = "{strategy}" looks for the best answer to one prompt, and the run is about'):
        go(["control.env=Pendulum-v1", f"query.strategy={strategy}"])
    with pytest.raises(ConfigError, match=f'^query.strategy = "{strategy}" chooses two of several answers; set query.answers to 3 or more'):
        go(settings, f"query.strategy={strategy}")
    go(settings, f"query.strategy={strategy}", "query.answers=3")


def test_sampling_goes_on_with_as_many_answers() -> None:
    assert toml.mattering(toml.load(None, ["query.answers=3"]), "sample")["query"] == {"answers": 3}
    assert "query" not in toml.mattering(toml.load(None, []), "dpo")
    assert renamed.earlier({"query": {"answers": 2, "episodes": 16}}) == {"query": {"attempts": 16}}
