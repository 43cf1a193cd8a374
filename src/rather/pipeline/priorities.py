"""The order in which people get the open questions, by what a reward head believes of them now."""

import time
from itertools import combinations

import numpy as np

from rather.core import Comparison
from rather.learners.head import Array
from rather.learners.head_learner import Head
from rather.pipeline import build
from rather.pipeline.state import State
from rather.pipeline.strategies import JOINT, PAIRWISE, alone, shuffled_in
from rather.store import Question, asking

AHEAD_S = 1.0
"""For so long answers are read that nobody has been asked about yet, before the questions are put in order with those that were."""


class Priorities:
    """Puts a run's open questions in order by `query.strategy` and a reward head, as often as it has learned.

    Held-back questions, from which nothing is learned, and those that stay random stand at places drawn among the others.
    """

    def __init__(self, run: State, number: int, head: Head) -> None:
        self.run, self.number, self.head = run, number, head
        self.met: set[int] = set()
        """The questions whose answers have been read."""

    def renew(self) -> bool:
        """Give the questions that are waiting another priority; returns whether there are more whose answers have not been read yet."""
        run, strategy = self.run, self.run.config.query.strategy
        if strategy == "random" or self.head.known is None:
            return False
        name = run.config.run.name
        pairs = {q: found for q in asking.waiting(run.store, name) if (found := self._pairs(q))}
        self._read(pairs)
        met = [q for q in pairs if q.id in self.met]
        by_chance = np.array([run.held_back(q.comparison) or run.stays_random(q.comparison.key) for q in met], bool)
        seed = build.seed(run.config, f"next-{run.store.latest()}", self.number)
        wished = shuffled_in(self._wishes([pairs[q] for q in met], seed), by_chance, np.random.default_rng(seed))
        whys = [strategy if q.why in (*PAIRWISE, *JOINT) and not x else q.why for q, x in zip(met, by_chance, strict=True)]
        found = zip(met, wished.tolist(), whys, strict=True)
        asking.prioritize(run.store, name, {q.id: (score, why) for q, score, why in sorted(found, key=lambda each: -each[1])})
        return len(met) < len(pairs)

    def _pairs(self, question: Question) -> list[Comparison]:
        """The comparisons of two sides that an answer to the question would say something about, as they would be learned from."""
        c, domain = question.comparison, self.run.domain
        pairs = [Comparison(*two, key=c.key) for two in combinations(c.sides, 2)]
        return domain.prepared(pairs) if domain.learnable(c) else []

    def _read(self, pairs: dict[Question, list[Comparison]]) -> None:
        """Read answers to some questions that have not been met, those first that come next."""
        end = time.monotonic() + AHEAD_S
        for question in [q for q in pairs if q.id not in self.met]:
            self.head.differences(pairs[question])
            self.met.add(question.id)
            if time.monotonic() > end:
                break

    def _wishes(self, pairs: list[list[Comparison]], seed: int) -> Array:
        """How much questions are wanted (N,): as much as the most wanted of their pairs."""
        if not pairs:
            return np.empty(0)
        each = alone(self.run.config.query.strategy, *self.head.differences([c for some in pairs for c in some]), seed)
        return np.maximum.reduceat(each, np.cumsum([0, *map(len, pairs[:-1])]))
