"""A reward head that learns while it rewards, on a tiny random model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rather
from rather.core import Comparison, Task, Trajectory
from rather.errors import CheckpointError, ConfigError, TrainingError
from rather.learners import checkpoint
from rather.learners.head import learn
from rather.text.language_model import LanguageModel

PROMPTS = [f"say {c}" for c in "abcdef"]
SHORT: dict[str, Any] = {"max_tokens": 6, "lr": 1e-2, "adapter": rather.LoRA(rank=4)}
GROUPS: dict[str, Any] = {"batch_size": 2, "group_size": 4, **SHORT}


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return rather.load(tiny, dtype="float32", device="cpu")


class Likes:
    """Prefers the answer with more letters; abstains, or says something else, where `instead` has an entry for the question's number."""

    name, kind = "likes", "simulated"

    def __init__(self, instead: Callable[[int], float | str | None] = lambda n: "") -> None:
        self.instead, self.asked = instead, list[Comparison]()

    def judge(self, comparisons: Any) -> list[Any]:
        said = []
        for c in comparisons:
            a, b = (sum(x.isalpha() for x in side[0].text) for side in (c.a, c.b))
            other = self.instead(len(self.asked))
            said.append((1.0 if a > b else 0.0 if b > a else 0.5) if other == "" else other)
            self.asked.append(c)
        return said


def online(model: LanguageModel, judge: Any = None, labels: int = 6, **more: Any) -> rather.OnlineReward:
    return rather.OnlineReward(rather.RewardHead(model, layers=[1, 2]), judge or Likes(), labels, **more)


def answers(*texts: str, key: str = "0") -> list[Trajectory]:
    return [Trajectory(Task("f", key, "say"), "p", text) for text in texts]


def test_it_asks_about_two_of_each_group_until_its_labels_are_used_up(model: LanguageModel) -> None:
    judge = Likes()
    reward = online(model, judge, labels=3)
    grpo = rather.GRPO(model, PROMPTS, reward, steps=4, **GROUPS)
    values = [grpo.step() for _ in range(4)]
    assert [v["answers"] for v in values] == [2, 1, 0, 0]
    assert [v["comparisons"] for v in values] == [2, 3, 3, 3]
    assert all(v["unjudged"] == 0 and v["score_std"] > 0 for v in values), "it goes on rewarding"
    for c in judge.asked:
        (a,), (b,) = c.a, c.b
        assert a.task == b.task
        assert a.text != b.text
    assert len({c.key for c in judge.asked}) == 3
    assert grpo.evaluate(PROMPTS)["score"]
    assert len(judge.asked) == 3, "an evaluation asks nobody"


def test_the_reward_is_the_mean_of_the_posterior_on_all_comparisons(model: LanguageModel) -> None:
    judge = Likes()
    reward = online(model, judge, labels=8)
    given = [answers("aa", "b1", "c22", "11"), answers("x", "y1", "zz1", "2", key="1")]
    reward.score([*given[0], *given[1]])
    scores = reward.score(given[1])
    head, said = rather.RewardHead(model, layers=[1, 2]), [c.preference for c in reward.comparisons]
    learned = learn(head.sides(judge.asked), np.array(said), ["likes"] * 3, [head.groups])
    np.testing.assert_allclose(scores, learned.posterior.mean(learned.choice.of(head.features(given[1]))), atol=1e-6)
    np.testing.assert_allclose(reward.head.score("say", ["x", "y1"]), scores[:2], atol=1e-5)


def test_ties_are_labels_and_abstentions_are_none(model: LanguageModel) -> None:
    reward = online(model, Likes(lambda n: [None, 0.5, "", None][n % 4]), labels=2)
    said = []
    for i in range(3):
        reward.score([*answers("a", "bb1", key=f"{i}a"), *answers("c", "dd1", key=f"{i}b")])
        said.append({k: reward.metrics()[k] for k in ("answers", "ties", "unanswered")})
    assert said == [
        {"answers": 1, "ties": 1, "unanswered": 1},
        {"answers": 1, "ties": 0, "unanswered": 0},
        {"answers": 0, "ties": 0, "unanswered": 0},
    ], "one label is left for the second step, and none for the third"
    assert [c.preference == 0.5 for c in reward.comparisons] == [True, False]
    assert reward.questions.asked == 3


def test_answers_that_are_all_alike_are_no_question(model: LanguageModel) -> None:
    judge = Likes()
    reward = online(model, judge)
    assert reward.score(answers("a", "a", "a")) == [None] * 3
    scores = reward.score([*answers("a", "a"), *answers("a", "b1", "a", key="1")])
    assert [c.a[0].task.key for c in judge.asked] == ["1"]
    assert scores[0] == scores[1]
    assert {judge.asked[0].a[0].text, judge.asked[0].b[0].text} == {"a", "b1"}


@pytest.mark.parametrize("learner", ["grpo", "ppo"])
def test_without_a_label_there_is_no_reward_and_nothing_is_learned(model: LanguageModel, learner: str) -> None:
    def made(judge: Likes) -> Any:
        if learner == "grpo":
            return rather.GRPO(model, PROMPTS, online(model, judge), steps=5, **GROUPS)
        return rather.PPO(model, PROMPTS, online(model, judge), steps=5, rollout_batch_size=4, **SHORT)

    late = made(Likes(lambda n: None if n < 4 else ""))
    before = [p.clone() for p in late.parameters]
    for _ in range(2):
        values = late.step()
        assert values["unjudged"] == 1
        assert "loss" not in values
    assert all(torch.equal(a, b) for a, b in zip(before, late.parameters, strict=True))
    assert late.step()["unjudged"] == 0
    assert not all(torch.equal(a, b) for a, b in zip(before, late.parameters, strict=True))
    never = made(Likes(lambda n: None))
    with pytest.raises(TrainingError, match="nothing was judged in 3 steps in a row: the judge has answered no question yet"):
        never.train()


def test_ppo_gets_two_answers_to_each_prompt(model: LanguageModel) -> None:
    judge = Likes()
    ppo = rather.PPO(model, PROMPTS, online(model, judge), rollout_batch_size=4, epochs=1, **SHORT)
    assert ppo.steps == 3, "six prompts, two a step"
    assert ppo.step()["answers"] == 2
    with pytest.raises(ConfigError, match="rollout_batch_size is 5, but the reward compares two answers"):
        rather.PPO(model, PROMPTS, online(model), rollout_batch_size=5)


def test_with_fewer_questions_than_prompts_the_strategy_chooses_the_prompts(model: LanguageModel) -> None:
    reward = online(model, strategy="d_optimal", a_step=1, labels=9)
    both = [*answers("aa", "ab", "b1"), *answers("abcdefgh", "12345678", key="1")]
    reward.score(both)
    assert len(reward.comparisons) == 1
    known = reward.head.learned
    features = known.choice.of(reward.head.read(both))
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    variances = [float(known.posterior.variance(features[[i]] - features[[j]])[0]) for i, j in pairs]
    reward.score(both)
    (a,), (b,) = reward.comparisons[1].a, reward.comparisons[1].b
    i, j = pairs[int(np.argmax(variances))]
    assert {a.text, b.text} == {both[i].text, both[j].text}


@pytest.mark.parametrize("strategy", ["random", "information_directed"])
def test_a_stopped_training_goes_on_exactly_and_asks_nothing_again(model: LanguageModel, tmp_path: Path, strategy: str) -> None:
    earlier = rather.comparisons([{"prompt": "say a", "chosen": "aa", "rejected": "1"}])

    def made(folder: Path | None, judge: Likes, stop: int = 0) -> rather.GRPO[Any]:
        more: dict[str, Any] = {"folder": folder, "callbacks": [lambda step, metrics: step == stop]}
        reward = online(model, judge, labels=5, strategy=strategy, comparisons=earlier)
        return rather.GRPO(model, PROMPTS, reward, steps=4, **more, **GROUPS)

    once, first, second = Likes(), Likes(), Likes()
    whole = made(None, once).train()
    made(tmp_path, first, stop=2).train()
    rest = made(tmp_path, second)
    assert [step["comparisons"] for step in rest] == [6, 6]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, rest.parameters, strict=True))
    assert [(c.key, c.a[0].text, c.b[0].text) for c in once.asked] == [
        (c.key, c.a[0].text, c.b[0].text) for c in (*first.asked, *second.asked)
    ]
    assert len(once.asked) == 5
    for other in ("bald", strategy):
        changed = "strategy" if other != strategy else "seed"
        fresh = rather.GRPO(model, PROMPTS, online(model, strategy=other, seed=1), steps=4, **GROUPS)
        with pytest.raises(CheckpointError, match=f"was trained with {changed} = "):
            checkpoint.load(checkpoint.every(tmp_path)[-1], fresh)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_policy_learns_what_the_judge_likes(model: LanguageModel, seed: int) -> None:
    def letters(policy: LanguageModel) -> float:
        return float(np.mean([sum(c.isalpha() for c in text) for text in policy.generate(PROMPTS * 8, max_tokens=6, seed=5)]))

    reward = online(model, labels=80, seed=seed)
    shape: dict[str, Any] = {"batch_size": 4, "group_size": 8, "max_tokens": 6, "lr": 1e-2, "adapter": "full", "schedule": "constant"}
    policy = rather.GRPO(model, PROMPTS, reward, steps=24, seed=seed, **shape).train().policy
    assert letters(policy) > letters(model) + 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"strategy": "best"}, "OnlineReward: strategy is 'best'; take one of random, "),
        ({"labels": 0}, "OnlineReward: labels is 0"),
        ({"a_step": 0}, "a_step 0; give at least 1"),
        ({"judge": 3}, "judge is 3; give a function"),
    ],
)
def test_wrong_arguments(model: LanguageModel, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        online(model, **wrong)


def test_a_head_that_knows_something_is_refused(model: LanguageModel) -> None:
    pairs = rather.comparisons([{"prompt": "say a", "chosen": "aa", "rejected": "1"}])
    head = rather.RewardHead(model).fit(pairs)
    with pytest.raises(ConfigError, match="the head has learned already"):
        rather.OnlineReward(head, Likes())
    with pytest.raises(ConfigError, match=r"head is .*; give a rather.RewardHead"):
        rather.OnlineReward(rather.RewardModel(model), Likes())  # type: ignore[arg-type]
    reward = online(model, comparisons=pairs)
    assert None not in reward.score(answers("a"))


def test_a_doubtful_answer_gets_less(model: LanguageModel) -> None:
    """Two standard deviations less, as the posterior has them; how sure the head is of comparisons stays as it was."""
    head = rather.RewardHead(model, layers=[1, 2], pessimism=2.0)
    some = [Comparison((a,), (b,), 1.0) for a, b in zip(answers("aaa", "bb!"), answers("c.", "!!"), strict=True)]
    head.fit(some)
    asked = answers("zz", "aaa")
    mean, covariance = head.believed(asked)
    batch = head.collate(asked)
    assert (head.rewards(batch) * batch.mask).sum(-1).numpy() == pytest.approx(mean - 2 * np.sqrt(np.diag(covariance)), abs=1e-5)
    sure = rather.RewardHead(model, layers=[1, 2]).fit(some)
    assert (sure.rewards(batch) * batch.mask).sum(-1).numpy() == pytest.approx(mean, abs=1e-5)
    assert head.probabilities(some) == pytest.approx(sure.probabilities(some))
    reward = rather.OnlineReward(rather.RewardHead(model, layers=[1, 2], pessimism=2.0), Likes(), 1, comparisons=some)
    scored = reward.score(asked)
    assert scored == pytest.approx(reward.head.values(reward.head.read(asked)).tolist())
    mean, covariance = reward.head.believed(asked)
    assert np.subtract(mean, scored) == pytest.approx(2 * np.sqrt(np.diag(covariance)), abs=1e-5)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_pessimism_is_a_number_of_standard_deviations(model: LanguageModel, wrong: float) -> None:
    with pytest.raises(ConfigError, match="give a number of standard deviations, 0 or above"):
        rather.RewardHead(model, pessimism=wrong)


def test_members_that_differ_take_something_off(model: LanguageModel) -> None:
    reward = rather.RewardModel(model, 3, pessimism=1.5, adapter=rather.LoRA(rank=4))
    batch = reward.collate(answers("zz", "aaa"))
    with torch.no_grad():
        scores = reward.scores(batch).numpy()
        found = (reward.rewards(batch) * batch.mask).sum(-1).numpy()
    assert scores.std(0).min() > 1e-4
    assert found == pytest.approx(scores.mean(0) - 1.5 * scores.std(0), abs=1e-6)
    with pytest.raises(ConfigError, match="pessimism goes by how much the members of a reward model differ, and there is one"):
        rather.RewardModel(model, pessimism=1.0)
