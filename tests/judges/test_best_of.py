"""The best of several answers: chosen by heads, reward models and functions; the baseline that `win_rate` compares with."""

import math
from pathlib import Path

import numpy as np
import pytest

import rather as library
from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError, DataError, TrainingError
from rather.judges.best_of import ranked
from rather.learners.settings import Sampling
from rather.text.language_model import LanguageModel

PROMPTS = ["say", "tell me", "say"]


@pytest.fixture(scope="module")
def base(tiny: Path) -> LanguageModel:
    return library.load(tiny, dtype="float32")


@pytest.fixture(scope="module")
def head(base: LanguageModel) -> library.RewardHead:
    return library.RewardHead(base).fit(likes_a(20))


def likes_a(n: int) -> list[Comparison]:
    """Answers of a's and b's; the one with more a's is preferred."""
    rows = [["a" * (i % 5 + 1), "b" * (i % 3 + 1)] for i in range(n)]
    return library.comparisons([{"prompt": f"prompt {i}", "chosen": a, "rejected": b} for i, (a, b) in enumerate(rows)])


def length(prompt: str, completion: str, **columns: object) -> float:
    return len(completion)


def test_ranks_by_hand() -> None:
    assert ranked([1.0, 3.0, 3.0, None, 2.0]) == [1, 2, 4, 0, 3], "of equal ones the first; None is last"
    assert ranked([None, None]) == [0, 1]


def test_the_longest_of_several_is_taken_and_the_first_is_what_the_model_says(base: LanguageModel) -> None:
    sampling, seed = {"max_tokens": 12, "temperature": 1.0, "top_k": 20}, 3
    one = base.generate(PROMPTS, seed=seed, **sampling)
    assert library.BestOf(base, length, 1).generate(PROMPTS, seed=seed, **sampling) == one
    tasks = [Task("rows", str(i), p) for i, p in enumerate(PROMPTS)]
    each = [base.sampler(Sampling(**sampling)).sample([t] * 6, seed) for t in tasks]
    assert [some[0].text for some in each] == one
    best = library.BestOf(base, length, 6).sampler(Sampling(**sampling)).sample(tasks, seed)
    longest = [max(some, key=lambda t: len(t.text or "")) for some in each]
    assert [t.text for t in best] == [t.text for t in longest]
    assert [t.text for t in best] != one
    for found, own in zip(best, longest, strict=True):
        assert found.rewards is not None
        assert found.rewards.sum() == found.rewards[-1] == len(own.text or "")
        np.testing.assert_array_equal(found.actions, own.actions)


@pytest.mark.parametrize("kind", ["head", "model"])
@pytest.mark.parametrize("own", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_rewards_are_those_of_the_words_whichever_model_said_them(
    base: LanguageModel, head: library.RewardHead, kind: str, own: bool, request: pytest.FixtureRequest
) -> None:
    """So the reward may be on another base model, with another tokenizer."""
    reward = head if kind == "head" else library.RewardModel(base, seed=1)
    policy = base if own else library.load(request.getfixturevalue("smollm2"))
    task, sampling = Task("rows", "0", "say"), Sampling(max_tokens=8)
    drawn = policy.sampler(sampling).sample([task] * 5, 0)
    read = [Trajectory(task, "", t.text, t.terminated) for t in drawn]
    scores = reward.rewards(reward.collate(read)).sum(-1).tolist()
    (best,) = library.BestOf(policy, reward, 5).sampler(sampling).sample([task], 0)
    assert best.rewards is not None
    assert best.rewards.sum() == pytest.approx(max(scores), abs=1e-4)
    assert best.text == drawn[int(np.argmax(scores))].text


def test_an_answer_without_a_word_has_no_reward(base: LanguageModel, head: library.RewardHead) -> None:
    task = Task("rows", "0", "say")
    answers = [Trajectory(task, "", text, terminated) for text, terminated in (("", False), ("a", False), ("", True), ("b", True))]
    for reward in (head, library.RewardModel(base)):
        scores = library.BestOf(base, reward).score(answers)
        assert [s is None for s in scores] == [True, False, False, False]


def test_what_a_function_does_not_judge_comes_last(base: LanguageModel) -> None:
    def odd(prompt: str, completion: str) -> float | None:
        return None if len(completion) % 2 else -len(completion)

    task = Task("rows", "0", "say")
    sampling = Sampling(max_tokens=6, top_k=30)
    drawn = base.sampler(sampling).sample([task] * 8, 0)
    (best,) = library.BestOf(base, odd, 8).sampler(sampling).sample([task], 0)
    even = [t for t in drawn if len(t.text or "") % 2 == 0]
    assert 0 < len(even) < 8
    assert best.text == min(even, key=lambda t: len(t.text or "")).text
    (none,) = library.BestOf(base, lambda prompt, completion: None, 8).sampler(sampling).sample([task], 0)
    assert none.text == drawn[0].text
    assert none.rewards is not None
    assert math.isnan(none.rewards[-1])


def test_it_is_the_baseline_of_a_win_rate(base: LanguageModel) -> None:
    def longer(prompt: str, a: str, b: str) -> str:
        return "tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b"

    rate = library.win_rate(library.BestOf(base, length), base, [f"say {i}" for i in range(12)], longer, max_tokens=12)
    assert rate.low > 0.5


def test_what_cannot_be_the_best_is_refused(base: LanguageModel, head: library.RewardHead) -> None:
    with pytest.raises(ConfigError, match="n is 0"):
        library.BestOf(base, length, 0)
    with pytest.raises(ConfigError, match="the policy is a RewardHead"):
        library.BestOf(head, length)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reward is or holds"):
        library.BestOf(base, base)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="has learned nothing yet"):
        library.BestOf(base, library.RewardHead(base))
    with pytest.raises(ConfigError, match="draws the same answer 8 times"):
        library.BestOf(base, head).generate(["say"], temperature=0)
    assert library.BestOf(base, head, 1).generate(["say"], temperature=0, max_tokens=4) == base.generate(
        ["say"], temperature=0, max_tokens=4
    )
    with pytest.raises(DataError, match="prompts is one text"):
        library.BestOf(base, head).generate("say")
    broken = library.RewardModel(base)
    broken.heads.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="not finite"):
        library.BestOf(base, broken).generate(["say"], max_tokens=4)
