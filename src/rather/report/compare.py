"""Two policies compared from a program."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from rather.core import Comparison, Judge, Rate, Sampler, Task
from rather.data.rows import Prompts, tasks
from rather.errors import ConfigError, JudgeError
from rather.judges.given import JudgeLike, judge_of
from rather.learners import common
from rather.learners.settings import Sampling, SamplingOptions
from rather.report import rates
from rather.settings import given
from rather.text.language_model import Generative


def win_rate(
    policy: Generative,
    base: Generative,
    prompts: Prompts,
    judge: JudgeLike,
    *,
    answers: int = 1,
    seed: int = 0,
    **options: Unpack[SamplingOptions],
) -> Rate:
    """How often `judge` prefers the answers of `policy` to those of `base`, with a 95 % interval over the prompts.

    A policy is a language model or a `BestOf`. `answers` pairs of answers are compared for each prompt; which of a pair comes first is
    drawn. `judge` is a function of (prompt, a, b), a reward model or any judge; pairs on which it abstains are left out. Equal answers
    are a tie, and nobody is asked.

    Raises:
        ConfigError: an argument is not known, its value is wrong, or there are no prompts.
        DataError: a prompt cannot be read.
        JudgeError: the function returned something else than an answer, or None for all pairs.
    """
    (sampling,) = given("win_rate", options, Sampling)
    for name, each in (("policy", policy), ("base", base)):
        if not isinstance(each, Generative):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"win_rate: {name} is a {type(each).__name__}; give a model or a BestOf, such as the policy of a learner")
    asked = [task for task in tasks(prompts) for _ in range(answers)]
    if not asked:
        raise ConfigError("prompts is empty or answers is 0; give prompts to compare on")
    return compared(policy.sampler(sampling), base.sampler(sampling), asked, judge_of(judge), seed)


def compared(policy: Sampler, base: Sampler, asked: Sequence[Task], judge: Judge, seed: int) -> Rate:
    """How often `judge` prefers what `policy` draws to what `base` does, one trajectory a task each; see `win_rate`.

    Raises:
        JudgeError: it abstains from all pairs.
    """
    ours, theirs = (who.sample(asked, seed + i) for i, who in enumerate((policy, base)))
    questions = list[Comparison]()
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        pair = Comparison((replace(a, policy="policy"),), (replace(b, policy="base"),), key=f"{a.task.key}/{i}")
        questions.append(pair if common.drawn(seed, pair.key) < 0.5 else pair.swapped())
    same = [replace(q, preference=0.5) for q in questions if q.a[0].text == q.b[0].text]
    differ = [q for q in questions if q.a[0].text != q.b[0].text]
    said = same + [replace(q, preference=p) for q, p in zip(differ, judge.judge(differ), strict=True) if p is not None]
    if not said:
        raise JudgeError(f"the judge abstains from all {len(questions)} pairs, so that there is no win rate; give other prompts")
    return rates.win_rate(said, "policy")
