import math
from dataclasses import replace

import pytest

from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError
from rather.judges.best import answers
from rather.judges.known import SimulatedJudge, brief, plain, thorough, utility


def trajectory(text: str, terminated: bool = True) -> Trajectory:
    return Trajectory(Task("f", "1", "?"), "p", text, terminated)


def questions(n: int, a: str = "a " * 20, b: str = "b " * 40) -> list[Comparison]:
    return [Comparison((trajectory(a),), (trajectory(b),), key=str(i)) for i in range(n)]


def share(judge: SimulatedJudge, asked: list[Comparison]) -> float:
    said = [x for x in judge.judge(asked) if x is not None]
    return sum(said) / len(said)


def test_utilities_by_hand() -> None:
    assert brief(trajectory("w " * 20)) == 1.0
    assert brief(trajectory("w " * 40)) == 0.0
    assert brief(trajectory("w " * 10, terminated=False)) == 0.0
    assert brief(trajectory("w " * 2 + "w w w")) == 1.0
    assert brief(trajectory("")) == brief(trajectory("w")) == 1 - math.log2(5)
    assert thorough(trajectory("w " * 7)) == 3.0
    assert plain(trajectory("one two. three four.")) > plain(trajectory("- one\n- two")) > plain(trajectory("# ONE\n- two\n* **x**"))


def test_answers_follow_bradley_terry() -> None:
    # the difference in utility is 1: sigmoid(1 / 0.5) = 0.881, sigmoid(1 / 2) = 0.622; 4000 answers have a standard error of 0.008
    assert share(SimulatedJudge("j", brief, temperature=0.5), questions(4000)) == pytest.approx(0.881, abs=0.025)
    assert share(SimulatedJudge("j", brief, temperature=2.0), questions(4000)) == pytest.approx(0.622, abs=0.025)


def test_mistakes_ties_and_abstentions() -> None:
    careless = SimulatedJudge("j", brief, temperature=0.01, mistake=0.4)
    assert share(careless, questions(4000)) == pytest.approx(0.8, abs=0.025)
    silent = SimulatedJudge("j", brief, abstain=0.25)
    assert silent.judge(questions(4000)).count(None) == pytest.approx(1000, abs=100)
    assert set(SimulatedJudge("j", brief, tie=0.1).judge(questions(50, b="b " * 20))) == {0.5}


def test_the_same_question_gets_the_same_answer_in_any_order() -> None:
    judge, asked = SimulatedJudge("j", brief, seed=3), questions(50)
    assert judge.judge(asked[::-1])[::-1] == judge.judge(asked)
    assert SimulatedJudge("other", brief, seed=3).judge(asked) != judge.judge(asked)
    assert SimulatedJudge("j", brief, seed=4).judge(asked) != judge.judge(asked)


def test_an_unknown_utility() -> None:
    with pytest.raises(ConfigError, match="'nice'; take one of brief"):
        utility("nice")


def test_cheerful_and_personal_count_their_words_and_dislike_repetition() -> None:
    def worth(taste: str, text: str) -> float:
        return utility(taste)(Trajectory(Task("t", "1"), "p", text))

    assert worth("cheerful", "What a lovely, wonderful day it is.") == 2
    assert worth("cheerful", "Tea is a drink.") == 0
    # "a good a good a good": 5 pairs, 2 different: 1 - 2 / 5 = 0.6 repeated; 3 - 6 * 0.4 = 0.6
    assert abs(worth("cheerful", "a good a good a good") - 0.6) < 1e-9
    assert worth("cheerful", "") < 0
    assert worth("personal", "Tea is yours, and you know it.") == 2
    assert worth("personal", "You, your dog, your cat, yourself and you.") == 3
    assert worth("personal", "Tea is a drink.") == 0


def test_the_best_of_several_is_who_remains() -> None:
    def side(words: int) -> tuple[Trajectory, ...]:
        return (Trajectory(Task("f", "x"), "p", "word " * words),)

    a, b, *others = (side(n) for n in (3, 9, 30, 5))
    longest = SimulatedJudge("longest", thorough, temperature=1e-6)
    questions = [Comparison(a, b, key="1", others=tuple(others)), Comparison(a, b, key="2"), Comparison(a, a, key="3", others=(a, a))]
    assert answers(longest, questions[:2]) == [(0.0, 2), (0.0, None)]
    assert answers(longest, [Comparison(others[0], b, key="4", others=(a,))]) == [(1.0, 0)]
    ties = replace(longest, tie=10.0)
    assert answers(ties, questions) == [(0.5, None)] * 3
    assert answers(replace(longest, abstain=1.0), questions) == [(None, None)] * 3
    assert answers(longest, []) == []


def test_readable_likes_short_words_and_sentences_and_dislikes_repetition() -> None:
    def worth(text: str) -> float:
        return utility("readable")(trajectory(text))

    easy = "The cat sat on the mat. The dog ran to it."
    assert worth(easy) > worth("The cat sat on the mat and the dog ran to it.")
    assert worth(easy) > worth("The animal relaxed on its carpeting. Another animal approached.")
    assert worth("tea " * 30) < worth(easy) - 2
    grade = 0.39 * 11 / 2 + 11.8 * 11 / 11 - 15.59
    assert worth(easy) == pytest.approx(-grade / 6, abs=0.01)
