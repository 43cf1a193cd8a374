import numpy as np
import pytest

import rather
from rather.learners.signs import signs

NAMES = "abcdefgh"


def test_a_word_that_comes_again_and_again() -> None:
    spread = signs(NAMES, [f"w{i} v{i}" for i in range(8)], [0.0] * 8)
    assert spread["same_word"] == 0
    same = signs(NAMES, ["so so"] * 8, [0.0] * 8)
    assert same["same_word"] == 1
    half = signs(NAMES, [f"so w{i}" for i in range(8)], [0.0] * 8)
    assert half["same_word"] == pytest.approx(8 * 7 / (16 * 15)), "8 of 16 words"


def test_answers_to_other_prompts_that_are_alike() -> None:
    assert signs(NAMES, ["one two three"] * 8, [0.0] * 8)["alike"] == 1
    assert signs(NAMES, [f"one w{i}" for i in range(8)], [0.0] * 8)["alike"] == pytest.approx(1 / 3)
    own = signs([i // 4 for i in range(8)], ["x"] * 4 + ["y"] * 4, [0.0] * 8)
    assert own["alike"] == 0, "what is said to one prompt does not count"
    assert "alike" not in signs(["p"] * 8, ["x"] * 8, [0.0] * 8)


def test_one_feature_that_decides() -> None:
    chance = np.random.default_rng(0)
    texts = [" ".join(f"w{chance.integers(1000)}" for _ in range(int(n))) for n in chance.integers(1, 20, 40)]
    prompts = list(range(40))
    assert signs(prompts, texts, [3.0 * len(t.split()) for t in texts])["one_feature"] == pytest.approx(1)
    assert signs(prompts, texts, chance.standard_normal(40).tolist())["one_feature"] < 0.3
    magic = [f"{t} xyzzy" if i % 2 else t for i, t in enumerate(texts)]
    assert signs(prompts, magic, [float(i % 2) for i in range(40)])["one_feature"] == pytest.approx(1)
    assert signs(prompts, texts, [1.0] * 40)["one_feature"] == 0


def test_what_is_unjudged_does_not_count() -> None:
    texts, scores = ["so so"] * 8 + ["other words"], [0.0] * 8 + [np.nan]
    assert signs(range(9), texts, scores)["same_word"] == 1  # type: ignore[arg-type]
    assert signs(NAMES[:7], ["x"] * 7, [0.0] * 7) == {}, "too few to say"
    assert signs(NAMES, [""] * 8, [0.0] * 8)["same_word"] == 1, "they say nothing, all of them"


@pytest.mark.parametrize("learner", ["GRPO", "PPO"])
def test_learners_measure_them(tiny, learner: str) -> None:
    model = rather.load(tiny, dtype="float32", device="cpu")
    own = {"group_size": 4, "batch_size": 2} if learner == "GRPO" else {"rollout_batch_size": 8}
    (found,) = getattr(rather, learner)(model, ["a", "b"], lambda prompt, completion: len(completion) % 5, steps=1, max_tokens=8, **own)
    assert {"same_word", "alike", "one_feature"} <= {*found}
    assert 0 < found["one_feature"] <= 1
