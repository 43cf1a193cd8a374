"""What a round of a run about control asks: pairs of fragments of episodes, chosen by query.strategy."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from torch import Tensor

from rather.config.schema import Config
from rather.control.reward_head import RewardHead
from rather.control.rollout import check_lengths, fragments, identity, rewards
from rather.core import Policy, Task, Trajectory
from rather.judges.model import ModelJudge
from rather.pipeline import build, query
from rather.pipeline.query import Chosen, Pick, Rounds

WAVES = 4
"""How often a policy acts for the fragments of a round, where those that there are do not suffice."""

DRAWS = 100
"""Draws from the posterior of a reward head, which stand for it where questions are chosen."""


@dataclass(frozen=True)
class Fragments:
    """Cuts fragments from episodes of the run's policies, and pairs them.

    The episodes are the newest policy's and, as many, those of the policies before it: a reward that was learned on good episodes alone
    does not know that bad ones are bad. `act` gives an episode of each task, `task` that of a number.
    """

    config: Config
    console: Console
    act: Callable[[Policy, list[Task]], list[Trajectory]]
    task: Callable[[int], Task]

    def chosen(self, run: Rounds, number: int, asked: int, wanted: int) -> Chosen:
        """So many questions of round `number`, of which `asked` are there already."""
        c, q = self.config, self.config.query
        newest, first, what = number, 0, "query"
        if asked:  # the round goes on: its newest policy acts, at seeds of its own
            newest, first, what = number + run.trained(number), 100_000 + asked * c.loop.rounds * q.episodes, f"query-{asked}"
        seed = build.seed(c, what, number) % 2**32
        before, found = run.reward_before(newest), self._episodes(run, newest, first)
        picks, sides = list[Pick](), list[tuple[Trajectory, Trajectory]]()
        lengths = q.fragment if isinstance(q.fragment, list) else [q.fragment or min(len(rewards(t)) for t in found)]
        for length, share in zip(lengths, query.shares(wanted, len(lengths), "constant"), strict=True):
            pieces = self._cut(run, newest, found, length, share, seed)
            scores = None if before is None else _believed(before, pieces)
            chosen = query.choose(q.strategy, scores, len(pieces), share, q.candidates, q.random_share, seed)
            picks, sides = picks + chosen, sides + [(pieces[p.a], pieces[p.b]) for p in chosen]
        if len(picks) < wanted:
            remedy = "shorten query.fragment or ask fewer questions; an environment that always begins alike brings little to compare"
            self.console.print(f"Only {len(picks)} of {wanted} questions are asked, since no more fragments differ; {remedy}.")
        questions = [run.question(f"round-{number}/{asked + i}", (a,), (b,)) for i, (a, b) in enumerate(sides)]
        return Chosen(questions, [p.why for p in picks], [p.score for p in picks])

    def _episodes(self, run: Rounds, newest: int, first: int) -> list[Trajectory]:
        """Episodes of the policies up to the `newest`, at seeds from the `first` on."""
        q, found = self.config.query, list[Trajectory]()
        with self.console.status("letting the policy act"):
            for before in range(newest + 1):
                tasks = [self.task(first + (newest * (newest + 1) // 2 + before) * q.episodes + j) for j in range(q.episodes)]
                share = q.episodes if before == newest else -(-q.episodes // newest)
                found += self.act(run.policy(before), tasks[:share])
        return found

    def _cut(self, run: Rounds, newest: int, found: list[Trajectory], length: int, questions: int, seed: int) -> list[Trajectory]:
        """Distinct fragments of `length`, none of which was asked about before, for so many questions: two each, and more to choose from.

        They are of the episodes that were `found`; where these hold fewer, the newest policy acts in more, which come to them.
        """
        q, name = self.config.query, self.config.run.name
        old = [t for question in run.store.questions(name, "train") for side in question.comparison.sides for t in side]
        known, used = {identity(t) for t in old}, {t.task.key for t in (*old, *found)}
        fresh = (t for i in itertools.count() if (t := self.task(2_000_000 + 50_000 * newest + i)).key not in used)
        pieces = list[Trajectory]()
        for wave in range(WAVES + 1):
            if not self.config.control.allow_uneven:
                check_lengths(found)
            before, pieces = len(pieces), fragments(found, length, 2 * questions * q.candidates, seed, known)
            lacking = 2 * questions - len(pieces)
            if lacking <= 0 or wave == WAVES or (wave and len(pieces) == before):
                break
            each = len(pieces) / len(found) or 1.0
            more = max(min(math.ceil(lacking / each), 2 * lacking), q.episodes)
            said = f"{len(found)} episodes hold {len(pieces)} new distinct fragments of {length} steps, and {questions} questions need"
            self.console.print(f"{said} {2 * questions}: the policy acts in {more} episodes more.", highlight=False)
            with self.console.status("letting the policy act"):
                found += self.act(run.policy(newest), list(itertools.islice(fresh, more)))
        return pieces


def _believed(before: ModelJudge, pieces: list[Trajectory]) -> Tensor:
    """Scores (K, N) of fragments by the members of an ensemble, or by draws from a reward head's posterior."""
    model = before.model
    return model.sampled(pieces, DRAWS) if isinstance(model, RewardHead) else before.each(pieces)
