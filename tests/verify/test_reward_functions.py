"""Reward functions: what they are given, what they may return, and that they stand where verifiers do."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from rather.core import Comparison, Task, Trajectory
from rather.data.forms import read_tasks
from rather.errors import ConfigError, DataError, RatherWarning
from rather.verify.checker import Checker, Verified
from rather.verify.functions import Answer, RewardFunctions, batched, load_function, reward
from rather.verify.verifiers import Check


def answer(text: str, prompt: str = "2 + 2?", key: str = "1", **row: object) -> Trajectory:
    return Trajectory(Task("t", key, prompt, "4", row), "p", text, actions=np.zeros(2, np.int64))


ANSWERS = [Answer("2 + 2?", "4", {"answer": "4", "level": 1}), Answer("3 + 3?", "7", {"answer": "6", "level": 2})]


def test_a_function_gets_what_its_parameters_name() -> None:
    assert reward(lambda completion: len(completion), ANSWERS) == [1, 1]
    assert reward(lambda prompt, completion, **row: row["level"] * (completion == row["answer"]), ANSWERS) == [1, 0]
    assert reward(lambda completion, level, missing=3: level + missing, ANSWERS) == [4, 5]
    assert reward(lambda text, truth: float(text == truth), ANSWERS) == [1, 0], "an answer and the right one"
    with pytest.raises(ConfigError, match="takes 'color', which the prompts do not have; there are 'answer', 'level'"):
        reward(lambda completion, color: 1.0, ANSWERS)


def test_batched_and_async_functions_come_to_the_same() -> None:
    @batched
    def together(completion: list[str], answer: list[str]) -> list[float]:
        return [float(c == a) for c, a in zip(completion, answer, strict=True)]

    async def waits(completion: str, answer: str) -> float:
        await asyncio.sleep(0.01)
        return float(completion == answer)

    @batched
    async def both(completion: list[str], **row: list[str]) -> np.ndarray:
        return np.array([float(c == a) for c, a in zip(completion, row["answer"], strict=True)])

    for function in (together, waits, both):
        assert reward(function, ANSWERS) == [1, 0]
        assert reward(function, []) == []

    async def in_a_notebook() -> list[float | None]:
        return reward(waits, ANSWERS)

    assert asyncio.run(in_a_notebook()) == [1, 0], "where a loop is running already"
    with pytest.raises(DataError, match=r"returned \[1\] for 2 rows; return a list as long"):
        reward(batched(lambda completion: [1]), ANSWERS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", [1], object])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="return a finite number, or None if it cannot judge"):
        reward(lambda completion: value, ANSWERS)


def test_several_are_summed_by_weight_and_none_is_unjudged() -> None:
    functions = RewardFunctions([lambda completion: len(completion), lambda completion: None if completion == "?" else 1], [0.5, 2])
    assert functions.score([answer("abcd"), answer("?")]) == [4.0, None]
    assert functions.judge([Comparison((answer("abcd"),), (answer("ab"),)), Comparison((answer("?"),), (answer("ab"),))]) == [1, None]
    with pytest.raises(ConfigError, match="1 reward functions and 2 weights"):
        RewardFunctions([len], [1, 2])

    def broken(completion: str) -> float:
        return 1 / 0

    with pytest.raises(DataError, match="broken raised ZeroDivisionError: division by zero"):
        RewardFunctions([broken]).score([answer("x")])


def test_what_a_function_says_is_the_reward_of_the_last_token() -> None:
    class Known:
        def sample(self, tasks, seed, perturbations=None):
            return [answer("ab", level=3), answer("?")]

    functions = RewardFunctions([lambda completion, **row: None if completion == "?" else row["level"]])
    known, unknown = Verified(Known(), functions).sample([], 0)
    assert known.rewards.tolist() == [0, 3]
    assert np.isnan(unknown.rewards[-1])


def test_a_name_is_looked_up_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_rewards_of_mine.py").write_text("def short(completion): return -len(completion)\nwords = 3\n")
    assert load_function("own_rewards_of_mine:short", "x")("abc") == -3
    for name, sentence in (
        ("own_rewards_of_mine", "x is 'own_rewards_of_mine'; write \"module:name\""),
        ("nowhere_at_all:f", "the module 'nowhere_at_all' cannot be imported: ModuleNotFoundError"),
        ("own_rewards_of_mine:shorter", "has no 'shorter'; did you mean 'short'"),
        ("own_rewards_of_mine:words", "is int, not a function"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load_function(name, "x")


def test_the_other_columns_reach_a_function_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rewards_by_level.py").write_text("def f(prompt, completion, level, **row): return level if prompt[0] in completion else 0.0\n")
    rows = [{"prompt": f"{i} + {i}?", "answer": str(2 * i), "level": 0.1 * i} for i in range(3)]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks, _ = read_tasks("p.jsonl", held_out=0.0, others=True)
    assert [t.row for t in tasks] == [{"level": 0.1 * i} for i in range(3)]
    checker = Checker([Check("python", function="rewards_by_level:f")], 1)
    try:
        found = checker.score([Trajectory(t, "p", f"{i}", actions=np.zeros(1, np.int64)) for i, t in enumerate(tasks)])
    finally:
        checker.close()
    assert found == pytest.approx([0, 0.1, 0.2])
    with pytest.warns(RatherWarning, match="'level'"):  # nobody reads it
        read_tasks("p.jsonl", held_out=0.0)
    Path("p.jsonl").write_text("".join(json.dumps({"prompt": "x", "level": i}) + "\n" for i in range(2)))
    with pytest.raises(DataError, match="another column"):
        read_tasks("p.jsonl", held_out=0.0, others=True)
