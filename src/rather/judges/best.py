"""How judges who compare two sides pick the best of several."""

from collections.abc import Sequence
from dataclasses import replace

from rather.core import Comparison, Judge


def answers(judge: Judge, questions: Sequence[Comparison]) -> list[tuple[float | None, int | None]]:
    """Preference and number of the best side of each, as labels keep them; the number is None for a question of two sides.

    The best of several is who remains when each side meets the best so far, in their order, in which chance has put them; a duel that is
    a tie or has no answer changes nothing. Without a clear duel it is a tie, without any answer an abstention.
    """
    leaders = [0] * len(questions)
    said: list[list[float | None]] = [[] for _ in questions]
    for n in range(1, max((len(q.sides) for q in questions), default=0)):
        open_ = [i for i, q in enumerate(questions) if n < len(q.sides)]
        duels = [replace(questions[i], a=questions[i].sides[leaders[i]], b=questions[i].sides[n], others=()) for i in open_]
        for i, preference in zip(open_, judge.judge(duels), strict=True):
            said[i].append(preference)
            if preference is not None and preference < 0.5:
                leaders[i] = n
    found: list[tuple[float | None, int | None]] = []
    for question, leader, answered in zip(questions, leaders, said, strict=True):
        clear = [p for p in answered if p is not None]
        if not question.others or not clear:
            found.append((answered[0] if not question.others else None, None))
        elif all(p == 0.5 for p in clear):
            found.append((0.5, None))
        else:
            found.append((float(leader == 0), leader))
    return found
