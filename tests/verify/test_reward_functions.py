"""Reward functions: what they are given, what they may return, and that they stand where verifiers do."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rather.core import Comparison, Task, Trajectory
from rather.data.forms import read_tasks
from rather.errors import ConfigError, DataError, RatherWarning
from rather.verify.checker import Checker, Verified
from rather.verify.functions import CONCURRENT, Answer, RewardFunctions, batched, load_function, reward
from rather.verify.verifiers import Check


def answer(text: str, prompt: str = "2 + 2?", key: str = "1", **row: object) -> Trajectory:
    return Trajectory(Task("t", key, prompt, "4", row), "p", text, actions=np.zeros(2, np.int64))


ANSWERS = [Answer("2 + 2?", "4", {"answer": "4", "level": 1}), Answer("3 + 3?", "7", {"answer": "6", "level": 2})]


def test_a_function_gets_what_its_parameters_name() -> None:
    assert reward(lambda completion: len(completion), ANSWERS) == [1, 1]
    assert reward(lambda prompt, completion, **row: row["level"] * (completion == row["answer"]), ANSWERS) == [1, 0]
    assert reward(lambda completion, level, missing=3: level + missing, ANSWERS) == [4, 5]
    assert reward(lambda text, truth: float(text == truth), ANSWERS) == [1, 0], "an answer and the right one"
    assert reward(lambda level, answer: level + int(answer), ANSWERS) == [5, 8], "two columns are two columns"
    assert reward(lambda prompt, completion, /, level: float(prompt < completion) + level, ANSWERS) == [2, 3]


def test_text_and_answer_are_those_even_where_a_column_is_called_text() -> None:
    assert reward(lambda text, answer: float(text == answer), [Answer("2 + 2?", "4", {"answer": "4", "text": "x"})]) == [1]


@pytest.mark.parametrize(
    ("function", "lacking"),
    [
        (lambda completion, color: 1.0, "color"),
        (lambda color, **row: 1.0, "color"),
        (lambda p, c, **row: 1.0, "p"),  # not the two of (text, answer)
        (lambda c, careful=False: 1.0, "c"),
        (lambda text, level: 1.0, "text"),
        (lambda c: 1.0, "c"),
    ],
)
def test_what_it_takes_and_the_prompts_lack_is_an_error(function: Callable[..., float], lacking: str) -> None:
    sentence = rf"takes '{lacking}', which the prompt '2 \+ 2\?' does not have; there are 'answer', 'level', 'prompt', 'completion'"
    with pytest.raises(ConfigError, match=sentence):
        reward(function, ANSWERS)


def test_two_parameters_are_no_text_and_answer_where_the_prompts_have_no_answer() -> None:
    with pytest.raises(ConfigError, match="takes 'p', which the prompt '1' does not have"):
        reward(lambda p, c: 1.0, [Answer("1", "2", {})])
    with pytest.raises(ConfigError, match="the parameters of max are not known"):
        reward(max, ANSWERS)


def test_what_an_async_function_keeps_it_can_use_again() -> None:
    loops = set[asyncio.AbstractEventLoop]()

    async def waits(completion: str) -> float:
        loops.add(asyncio.get_running_loop())
        return 1.0

    async def in_a_notebook() -> None:
        reward(waits, ANSWERS)

    reward(waits, ANSWERS)
    reward(waits, ANSWERS)
    asyncio.run(in_a_notebook())
    assert len(loops) == 1, "a client's connections belong to a loop"


def test_so_many_calls_wait_at_a_time_and_the_first_that_fails_ends_the_others() -> None:
    at_once, most, ended = 0, 0, 0

    async def waits(completion: str) -> float:
        nonlocal at_once, most, ended
        at_once += 1
        most = max(most, at_once)
        try:
            await asyncio.sleep(60 if completion == "slow" else 0.01)
        finally:
            at_once -= 1
            ended += completion == "slow"
        return 1 / int(completion != "bad")

    assert reward(waits, [Answer("", str(i), {}) for i in range(3 * CONCURRENT)]) == [1] * 3 * CONCURRENT
    assert most == CONCURRENT
    answers = [Answer("why?", text, {}) for text in ("slow", "bad", *["slow"] * 2 * CONCURRENT)]
    with pytest.raises(DataError, match=r"waits raised ZeroDivisionError for the prompt 'why\?': division by zero"):
        RewardFunctions([waits]).score([answer(a.completion, a.prompt) for a in answers])
    assert at_once == 0, "those that had begun are ended"
    assert ended <= CONCURRENT, "the others never begin"


def test_a_function_that_is_async_now_and_then(recwarn: pytest.WarningsRecorder) -> None:
    async def later() -> float:
        return 2.0

    assert reward(lambda completion: later() if completion == "7" else 1, ANSWERS) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        reward(lambda completion: later() if completion == "4" else 1 / 0, ANSWERS)
    assert not recwarn, "no coroutine is left that nobody awaited"


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", b"1", [1], object, torch.ones(2), 10**400])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"for the prompt '2 \+ 2\?'; return a finite number, or None if it cannot judge"):
        reward(lambda completion: value, ANSWERS)


def test_several_are_summed_by_weight_and_none_is_unjudged() -> None:
    functions = RewardFunctions([lambda completion: len(completion), lambda completion: None if completion == "?" else 1], [0.5, 2])
    assert functions.score([answer("abcd"), answer("?")]) == [4.0, None]
    assert functions.judge([Comparison((answer("abcd"),), (answer("ab"),)), Comparison((answer("?"),), (answer("ab"),))]) == [1, None]
    with pytest.raises(ConfigError, match="1 reward functions and 2 weights"):
        RewardFunctions([len], [1, 2])

    def broken(completion: str) -> float:
        return 1 / 0

    with pytest.raises(DataError, match=r"broken raised ZeroDivisionError for the prompt '2 \+ 2\?': division by zero"):
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_batched_function_in_a_process_gets_all_answers_at_once(folder: Path) -> None:
    source = """
import os, rather
@rather.batched
def f(completion, level):
    if "die" in completion:
        os._exit(1)
    return [None if c == "?" else len(completion) + n for c, n in zip(completion, level)]
"""
    (folder / "batched_rewards.py").write_text(source)
    checker = Checker([Check("python", function="batched_rewards:f"), Check("pattern", pattern=r"^\D*$")], 2)
    rows = [answer("a", level=1), answer("?", level=1), answer("7", level=2)]
    try:
        assert checker.score(rows) == [(3 + 1 + 1) / 2, None, (3 + 2 + 0) / 2]
        assert checker.problems == {"python: it cannot judge": 1}
        assert checker.score([answer("die", level=1), *rows]) == [None] * 4, "they share one fate"
        assert checker.problems["python: its process died"] == 4
        assert checker.score(rows)[0] == 2.5, "it is started again"
        assert checker.score([]) == []
    finally:
        checker.close()


def test_answers_from_the_store_get_their_columns_back(folder: Path) -> None:
    (folder / "stored_rewards.py").write_text("def f(completion, level): return level\n")
    read_back = Trajectory(Task("p.jsonl", "k1", "Hi?"), "p", "x")
    checker = Checker([Check("python", function="stored_rewards:f")], 1, columns=lambda: {("p.jsonl", "k1"): {"level": 3}})
    try:
        assert checker.score([read_back]) == [3]
        with pytest.raises(ConfigError, match="takes 'level', which the prompt 'Hi?"):
            checker.score([Trajectory(Task("p.jsonl", "k2", "Hi?"), "p", "x")])
    finally:
        checker.close()
