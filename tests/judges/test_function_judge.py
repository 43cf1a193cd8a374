"""Functions as judges."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from rather.core import Comparison, Task, Trajectory
from rather.errors import JudgeError
from rather.judges.best import answers
from rather.judges.functions import FunctionJudge
from rather.verify.functions import batched
from test_cli import run  # noqa: F401


def side(*texts: str) -> tuple[Trajectory, ...]:
    return tuple(Trajectory(Task("t", "1", "Which?"), "p", text) for text in texts)


PAIRS = [Comparison(side("long answer"), side("short")), Comparison(side("x"), side("y"))]


def test_what_a_function_may_say() -> None:
    for value, preference in (("a", 1.0), ("B", 0.0), ("tie", 0.5), (0.25, 0.25), (1, 1.0), (None, None)):
        assert FunctionJudge(lambda prompt, a, b, value=value: value).judge(PAIRS) == [preference] * 2
    for wrong in ("left", 1.5, float("nan"), True, []):
        with pytest.raises(JudgeError, match='return "a", "b", "tie", a probability from 0 to 1, or None'):
            FunctionJudge(lambda prompt, a, b, wrong=wrong: wrong, "mine").judge(PAIRS)

    def broken(prompt: str, a: str, b: str) -> str:
        raise KeyError("x")

    async def broken_later(prompt: str, a: str, b: str) -> str:
        return broken(prompt, a, b)

    for function in (broken, broken_later):
        with pytest.raises(JudgeError, match=r"broken(_later)? raised KeyError for the prompt 'Which\?': 'x'"):
            FunctionJudge(function).judge(PAIRS)


def test_one_by_one_batched_and_async_are_asked_the_same() -> None:
    def shorter(prompt: str, a: str, b: str) -> str:
        return "a" if len(a) < len(b) else "b" if len(b) < len(a) else "tie"

    async def later(prompt: str, a: str, b: str) -> str:
        return shorter(prompt, a, b)

    @batched
    def together(prompts: list[str], a: list[str], b: list[str]) -> list[str]:
        assert prompts == ["Which?"] * len(a)
        return [shorter("", *pair) for pair in zip(a, b, strict=True)]

    for function in (shorter, later, together):
        assert FunctionJudge(function).judge(PAIRS) == [0.0, 0.5]
        three = Comparison(side("four"), side("xxxxx"), others=(side("no"),))
        assert answers(FunctionJudge(function), [three]) == [(0.0, 2)], "the best of three"


def to(prompts: str, *texts: str) -> tuple[Trajectory, ...]:
    """An answer to each of some prompts of one letter."""
    return tuple(Trajectory(Task("t", p, p), "p", text) for p, text in zip(prompts, texts, strict=True))


def test_sides_of_several_answers_are_compared_answer_by_answer() -> None:
    seen = list[tuple[str, str, str]]()

    def shorter(prompt: str, a: str, b: str) -> str | None:
        seen.append((prompt, a, b))
        return None if prompt == "r" else "a" if len(a) < len(b) else "b" if len(b) < len(a) else "tie"

    sides = to("pqr", "1", "22", "3"), to("pqr", "11", "33", "4")
    one = Comparison(to("p", "long"), to("p", "no"))
    # a wins the first pair, the second is a tie, on the third the function abstains: (1 + 0.5) / 2
    assert FunctionJudge(shorter).judge([Comparison(*sides), one]) == [0.75, 0.0]
    assert seen == [("p", "1", "11"), ("q", "22", "33"), ("r", "3", "4"), ("p", "long", "no")]
    assert FunctionJudge(lambda prompt, a, b: None).judge([Comparison(*sides)]) == [None]
    for other in (to("pq", "1", "2"), to("pqx", "1", "2", "3"), ()):
        with pytest.raises(JudgeError, match=f"has sides of 3 and {len(other)} answers, which are not to the same prompts"):
            FunctionJudge(shorter).judge([Comparison(sides[0], other)])


def test_in_control_it_sees_trajectories() -> None:
    def driven(*rewards: float) -> tuple[Trajectory, ...]:
        return (Trajectory(Task("car", "1"), "p", actions=np.zeros(len(rewards)), rewards=np.array(rewards)),)

    judge = FunctionJudge(lambda prompt, a, b: float(a.rewards.sum() > b.rewards.sum()))
    assert judge.judge([Comparison(driven(1, 2), driven(4)), Comparison(driven(1, 2), driven(0, 0, 0))]) == [0, 1]


def test_a_run_is_judged_by_a_function_in_its_folder(rather, run: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "taste_of_mine.py").write_text("def shorter(prompt, a, b):\n    return 'a' if len(a) < len(b) else 'b'\n")
    how = ("judge.kind=function", "judge.name=taste")
    assert "needs judge.function" in rather("sample", run).stdout + rather("label", run, *how, code=2).stderr
    rather("label", run, *how, "judge.function=taste_of_mine:shorter")
    (store,) = tmp_path.glob("runs/*/store.db")
    with sqlite3.connect(store) as connection:
        assert connection.execute("select kind from judge where name = 'taste'").fetchall() == [("function",)]
        assert connection.execute("select count(*) from label").fetchone()[0] == 12
