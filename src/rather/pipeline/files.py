"""Whole files of prompts answered, and of answers scored."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rather.core import Rate, Task, Trajectory
from rather.data import continued, rows
from rather.data.messages import read_answer
from rather.data.readers import Row, read_rows
from rather.errors import DataError, TrainingError
from rather.judges.best_of import BestOf
from rather.learners.rates import rate
from rather.learners.settings import Sampling
from rather.text.head.model import RewardHead
from rather.text.language_model import Generative
from rather.text.reward_model import RewardModel

AT_ONCE, SCORED = 256, 8
"""Prompts that are answered, and rows that are scored, before what is done is kept."""


def generate(
    policy: Generative, name: str, source: str, target: Path, sampling: Sampling, count: int, seed: int, advance: Callable[[int], None]
) -> int:
    """Answer each row's `prompt`, `count` times; a row becomes so many rows with a `completion`, and whether that came to its end.

    The best of several has a `score`, its reward. `name` and the policy's own, which changes as a run is trained, say which policy it is,
    so that two do not write one file.

    Raises:
        DataError: see `data.continued.write`; a row has no prompt or has one of the new columns already, or its prompt is too long.
    """
    read = [row for _, row in read_rows(source)]
    new = {"completion", "terminated"} | ({"score"} if isinstance(policy, BestOf) else set[str]())
    if there := new & {column for row in read for column in row}:
        raise DataError(f"{source} has a column {min(there)!r} already; rename it")
    asked = rows.tasks(read)
    sampler = policy.sampler(sampling)
    for task in asked:  # all of them first: a file that is mended is another one, and what was answered of it would be lost
        sampler.prompt(task)

    def answer(some: Sequence[tuple[int, Row]]) -> list[list[Row]]:
        # Rows are tasks of their own, so that an answer does not depend on what is drawn with it.
        found = iter(sampler.sample([asked[i] for i, _ in some for _ in range(count)], seed))
        made = [[next(found) for _ in range(count)] for _ in some]
        return [[row | _said(t) for t in each] for (_, row), each in zip(some, made, strict=True)]

    return continued.write(target, [name, policy.name, sampling.model_dump(), count, seed], read, answer, AT_ONCE, advance)


def _said(answer: Trajectory) -> Row:
    """The columns of an answer; an answer that was chosen among others has its reward, None where nothing could be said."""
    own: Row = {"completion": answer.text, "terminated": answer.terminated}
    if answer.rewards is None:
        return own
    score = float(answer.rewards[-1])
    return own | {"score": None if math.isnan(score) else score}


@dataclass(frozen=True)
class Scored:
    """How many answers or pairs were scored; how often the preferred side has the higher score, and by how much on average."""

    count: int
    accuracy: Rate
    margin: float


def score(model: RewardModel | RewardHead, name: str, source: str, target: Path | None, advance: Callable[[int], None]) -> Scored:
    """Score both sides of each comparison in a file, or the answer in each row.

    They are written to `target`, if there is one: with a `score`, or with `score_a`, `score_b`, and where there is a preference with the
    `margin` of the preferred side over the other one. Ties do not count for the accuracy. `name` says which model it is, so that two do not
    write one file.

    Raises:
        DataError: see `data.continued.write`; a row is of no form that is known, or an answer is too long for the model.
        TrainingError: a score is not finite.
    """
    asked, found = list(_answers(source)), list[Row]()
    for row, answers, _ in asked if target else ():  # all of them first: what was scored of a file is lost when it is mended
        model.collate([Trajectory(Task("score", "0", row["prompt"]), "score", text) for text in answers])

    def scored(some: Sequence[tuple[int, Row]]) -> list[list[Row]]:
        made = list[list[Row]]()
        for i, row in some:
            _, answers, preference = asked[i]
            scores = model.score(row["prompt"], answers)
            if not all(map(math.isfinite, scores)):
                raise TrainingError(f"the scores of row {i + 1} of {source} are {scores}; the reward model is broken, train it again")
            made.append([row | _columns(scores, preference)])
            advance(1 if target is None else 0)
        return made

    known = [row for row, _, _ in asked]
    if target is None:
        found = [row for made in scored([*enumerate(known)]) for row in made]
    else:
        continued.write(target, ["score", name], known, scored, SCORED, advance, found.append)
    margins = [row["margin"] for row in found if "margin" in row]
    return Scored(len(found), rate([float(m > 0) for m in margins]), sum(margins) / max(len(margins), 1))


def _columns(scores: Sequence[float], preference: float | None) -> Row:
    """What is said of the one or two answers of a row."""
    if len(scores) == 1:
        return {"score": scores[0]}
    sign = 0.0 if preference is None else math.copysign(preference != 0.5, preference - 0.5)
    return {"score_a": scores[0], "score_b": scores[1]} | ({"margin": sign * (scores[0] - scores[1])} if sign else {})


def _answers(source: str) -> Iterator[tuple[Row, list[str], float | None]]:
    """Rows of a file as they are written again, with the answers in them and what is known of these."""
    read = [row for _, row in read_rows(source)]
    first = set(read[0]) if read else set[str]()
    if {"prompt", "a", "b"} <= first and "preference" not in first:
        for row in read:
            yield row, [read_answer(row["a"], source), read_answer(row["b"], source)], None
    elif first & {"completion", "response", "messages"} and not first & {"label", "score", "rating", "rank"}:
        for t in rows.answers(read):
            yield {"prompt": t.task.prompt, "completion": t.text}, [t.text or ""], None
    else:
        for c in rows.comparisons(source):
            if not c.b:
                yield {"prompt": c.a[0].task.prompt, "completion": c.a[0].text, "label": c.preference == 1}, [c.a[0].text or ""], None
                continue
            a, b = c.a[0].text or "", c.b[0].text or ""
            yield {"prompt": c.a[0].task.prompt, "a": a, "b": b, "preference": c.preference}, [a, b], c.preference
