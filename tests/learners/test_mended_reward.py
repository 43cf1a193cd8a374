"""A reward that comparisons have mended, on a tiny random model."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize

import rather
from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError, DataError, TrainingError
from rather.text.language_model import LanguageModel


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return rather.load(tiny, dtype="float32", device="cpu")


@pytest.fixture
def head(model: LanguageModel) -> rather.RewardHead:
    return rather.RewardHead(model, layers=[1, 2])


def answer(text: str, key: str = "0") -> Trajectory:
    return Trajectory(Task("f", key, "say"), "p", text)


def pair(a: str, b: str, preference: float = 1.0, judge: str = "ann") -> Comparison:
    return Comparison((answer(a),), (answer(b),), preference, judge=judge)


def words(count: int, word: str = "oak") -> str:
    return " ".join(f"{word}{i}" for i in range(count))


def length(prompt: str, completion: str) -> float:
    """The reward that is hacked: longer is better."""
    return len(completion.split()) / 10


SHORTER = [pair(words(n, w), words(n + 4, w)) for n in range(1, 5) for w in ("oak", "elm", "fir")]


def test_what_people_say_is_wrong_counts_no_more(head: rather.RewardHead) -> None:
    asked = [answer(words(2, "yew")), answer(words(9, "yew"))]
    before = [length("", t.text or "") for t in asked]
    assert before[1] > before[0]
    mended = rather.MendedReward(length, head, SHORTER)
    short, long = mended.score(asked)
    assert short is not None
    assert long is not None
    assert short > long
    agreed = rather.MendedReward(length, head, [pair(words(n + 4, w), words(n, w)) for n in range(1, 5) for w in ("oak", "elm", "fir")])
    short, long = agreed.score(asked)
    assert short < long  # type: ignore[operator]


@pytest.mark.parametrize("pessimism", [0.0, 0.5])
def test_the_score_is_that_of_the_equation(head: rather.RewardHead, pessimism: float) -> None:
    """The weights are found again by another method, from the loss as it stands in the docstring; two judges have a temperature each."""
    some = [*SHORTER[:8], pair("a b", "a a a", 0.5), pair("c", "d d", 0.0), pair("e f g", "h", 1.0, "bob"), pair("i", "j k", 0.25, "bob")]
    mended = rather.MendedReward(length, head, some, pessimism=pessimism)
    sides = [t for c in some for t in (c.a[0], c.b[0])]
    texts = [(t.text or "").split() for t in sides]
    extra = np.array([[len(w) / 10, len(w), len(w) - len(set(w)), *(w.count(word) for word in mended.words)] for w in texts])
    raw = head.features(sides).reshape(len(sides), -1).astype(float)
    std = raw.std(0)
    scaled = np.where(std > 1e-6 * np.abs(raw).max(0), (raw - raw.mean(0)) / np.maximum(std, 1e-12) / len(std) ** 0.5, 0)
    x = np.concatenate([(extra - extra.mean(0)) / extra.std(0), scaled], 1)
    z, offset = x[0::2] - x[1::2], (extra[0::2, 0] - extra[1::2, 0]) / extra[:, 0].std()
    preference, bob = np.array([c.preference for c in some]), np.array([c.judge == "bob" for c in some], int)
    ridge = mended.posterior.ridge

    def loss(v: np.ndarray) -> float:
        w, log_t = v[:-2], v[-2:]
        trust = 2 * np.exp(-log_t) / np.exp(-log_t).sum()
        logits = trust[bob] * (z @ w + offset)
        return float((np.logaddexp(0, logits) - preference * logits).sum() + ridge / 2 * w @ w + log_t @ log_t / 2)

    found = scipy.optimize.minimize(
        loss, np.zeros(z.shape[1] + 2), method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 10**6, "ftol": 1e-15}
    )
    scores = mended.score(sides)
    expected = x @ found.x[:-2] + extra[:, 0] / extra[:, 0].std()
    doubt = np.sqrt(mended.posterior.variance(x))
    assert scores == pytest.approx((expected - pessimism * doubt).tolist(), abs=2e-3)
    evidence = [rather.MendedReward(length, head, some).posterior.evidence]
    assert evidence[0] >= max(_evidence(mended, other) for other in (0.1, 0.3, 1.0, 3.0, 10.0)) - 1e-9


def test_the_words_that_the_reward_goes_by_are_features(head: rather.RewardHead) -> None:
    chance, some = np.random.default_rng(0), list[Comparison]()
    for _ in range(40):
        sides = [" ".join(["please"] * int(chance.integers(3)) + [f"w{chance.integers(30)}" for _ in range(4)]) for _ in range(2)]
        some.append(pair(sides[0], sides[1], float(sides[0].count("please") < sides[1].count("please"))))

    def polite(prompt: str, completion: str) -> float:
        return float(completion.count("please")) - float("w3" in completion.split())

    mended = rather.MendedReward(polite, head, some)
    texts = [(t.text or "").split() for c in some for t in (c.a[0], c.b[0])]
    rewards = [polite("", " ".join(said)) for said in texts]
    every = sorted({word for said in texts for word in said})
    going = {word: abs(np.corrcoef([said.count(word) for said in texts], rewards)[0, 1]) for word in every}
    assert mended.words == sorted(every, key=lambda word: -going[word])[:8]
    assert {"please", "w3"} <= {*mended.words}
    rude, polite_ = mended.score([answer("w1 w2"), answer("please please w1 w2")])
    assert rude > polite_  # type: ignore[operator]


def _evidence(mended: Any, ridge: float) -> float:
    from rather.learners.head import fit

    return fit(mended.posterior.answers, ridge).evidence


def test_a_scorer_keeps_its_problems_and_answers_without_a_reward_have_no_score(head: rather.RewardHead) -> None:
    class Scorer:
        def __init__(self) -> None:
            self.problems = Counter[str]()

        def score(self, trajectories: Any) -> list[float | None]:
            self.problems += Counter({"no oak": sum("oak" not in t.text for t in trajectories)})
            return [float(len(t.text)) if "oak" in t.text else None for t in trajectories]

    mended = rather.MendedReward(Scorer(), head, [pair("oak", "oak oak"), pair("elm", "oak")])
    assert len(mended.posterior.answers.preference) == 1
    first, second = mended.score([answer("elm"), answer("oak")])
    assert first is None
    assert second is not None
    assert mended.problems["no oak"] == 2
    assert mended.score([]) == []
    with pytest.raises(TrainingError, match="of no comparison have both answers a reward"):
        rather.MendedReward(Scorer(), head, [pair("elm", "oak")])


def test_grpo_and_ppo_learn_from_it_and_go_on_exactly(model: LanguageModel, head: rather.RewardHead, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"max_tokens": 6, "adapter": rather.LoRA(rank=4), "lr": 1e-2}
    mended = rather.MendedReward(length, head, SHORTER)
    ppo = rather.PPO(model, ["say a"], mended, rollout_batch_size=2, batch_size=2, steps=1, **shape)
    assert np.isfinite(ppo.train().step()["score"])
    whole = rather.GRPO(model, ["say a", "say b"], mended, group_size=2, batch_size=2, steps=3, folder=tmp_path / "whole", **shape).train()
    some: dict[str, Any] = {"group_size": 2, "batch_size": 2, "folder": tmp_path / "parts", "checkpoint_every": 1, **shape}
    rather.GRPO(model, ["say a", "say b"], mended, steps=3, callbacks=[lambda step, values: step == 2], **some).train()
    parts = rather.GRPO(model, ["say a", "say b"], rather.MendedReward(length, head, SHORTER), steps=3, **some).train()
    assert all((a == b).all() for a, b in zip(whole.parameters, parts.parameters, strict=True))


def test_what_it_cannot_learn_from_is_refused(head: rather.RewardHead) -> None:
    with pytest.raises(ConfigError, match="head is None; give a rather.RewardHead"):
        rather.MendedReward(length, None, SHORTER)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="comparisons of two answers; leave out those of sets"):
        rather.MendedReward(length, head, [Comparison((answer("a"), answer("b")), (answer("c"), answer("d")), 1.0)])
    with pytest.raises(DataError, match="has no preference"):
        rather.MendedReward(length, head, [Comparison((answer("a"),), (answer("c"),))])
    for wrong in (2.0, float("nan")):
        with pytest.raises(DataError, match="item 0 of comparisons has the preference"):
            rather.MendedReward(length, head, [pair("a", "b c", wrong)])
    with pytest.raises(DataError, match="too large"):
        rather.MendedReward(lambda prompt, completion: 1e200 * len(completion), head, SHORTER)
    with pytest.raises(TrainingError, match="nothing to learn from"):
        rather.MendedReward(length, head, [])
    with pytest.raises(ConfigError, match="give a reward model, a function"):
        rather.MendedReward(3, head, SHORTER)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [1.0, 0.1, 0.7])
def test_a_reward_that_is_always_the_same_says_nothing(head: rather.RewardHead, level: float) -> None:
    """Its standard deviation is 0 but for rounding."""
    mended = rather.MendedReward(lambda prompt, completion: level, head, SHORTER, pessimism=0)
    short, long = mended.score([answer(words(2, "yew")), answer(words(9, "yew"))])
    assert short is not None
    assert long is not None
    assert long < short < 100


def test_what_a_function_could_not_judge_is_counted_and_what_is_not_finite_refused(head: rather.RewardHead) -> None:
    mended = rather.MendedReward(lambda prompt, completion: None if "elm" in completion else 1.0, head, SHORTER)
    assert mended.score([answer("elm0")]) == [None]
    assert sum(mended.problems.values()) > 0
    with pytest.raises(DataError, match="return a finite number"):
        rather.MendedReward(lambda prompt, completion: float("inf"), head, SHORTER)
