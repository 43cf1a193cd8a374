"""The questions of zeroth-order optimization: ask, move, and look now and then at how far one has come.

The store is the ledger: a question's key says its update, the policies of its sides say direction and sign. What was asked is not made
again, so a run that begins anew with nothing but its store comes to the same numbers, bit for bit.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from rich.console import Console

from rather import renamed
from rather.config.schema import Config
from rather.config.toml import mattering
from rather.core import Answered, Comparison, Judge, Perturbation, Policy, Sampler, Space, Task, Trajectory
from rather.errors import TrainingError
from rather.learners.common import in_parts
from rather.learners.metrics import Metrics
from rather.learners.progress import progress
from rather.learners.rates import rate
from rather.store import Store
from rather.store.quality import FLAGS
from rather.zeroth import budget
from rather.zeroth.learner import Ask, Planner, Zeroth, alike, answer_preferences, rms

if TYPE_CHECKING:
    from rather.scale.pool import Pool

IDLE = 5
"""Updates in a row without any answer that end the run."""
SHOWN = 10**8
"""Numbers in all directions together beyond which nothing is said about what answers buy."""


class Asks(Protocol):
    """What a learner that asks as it goes needs of the run that it is in."""

    config: Config
    console: Console
    metrics: Metrics

    @cached_property
    def store(self) -> Store:
        """Where questions and answers are."""
        ...

    @property
    def judges(self) -> Sequence[Judge]:
        """Who answers, unless it is people."""
        ...

    @property
    def voters(self) -> list[str]:
        """The judges whose answers count in an evaluation; none is named where all do."""
        ...

    def question(self, key: str, *sides: tuple[Trajectory, ...]) -> Comparison:
        """A question whose sides stand in an order that is drawn at random."""
        ...

    def have_answered(self, purpose: str) -> None:
        """Have the open questions of a purpose answered."""
        ...

    def evaluation(self, of: str, weights: str) -> str:
        """The purpose of what is asked in an evaluation of the policy with these weights."""
        ...


@dataclass(frozen=True)
class Acting:
    """Who acts: the policy that moves, the space that it moves in, the policy that it came from, and what lets them act."""

    policy: Policy
    space: Space
    base: Policy
    sampler: Callable[[Policy, Callable[[int], None]], Sampler]


class Questions:
    """Asks an update's questions before the learner takes its step, in round `number`; `tasks` are for training, and held out."""

    def __init__(
        self,
        run: Asks,
        tasks: tuple[Sequence[Task], Sequence[Task]],
        number: int,
        acting: Acting,
        learner: Zeroth,
        pool: "Pool | None" = None,
    ) -> None:
        self.run, self.number, self.acting, self.learner, self.pool = run, number, acting, learner, pool
        self.z, self.name, self.beginning = run.config.zeroth, run.config.run.name, f"nudge-{number}/"
        self.planner, self.held_out = Planner(tasks[0], learner.asking, run.config.run.seed + 7919 * number), tasks[1]
        before: dict[int, list[Comparison]] = {}
        for c in self.answered(self.beginning):
            before.setdefault(int(c.key.split("/")[1]), []).append(c)
        self.preferences = {update: answer_preferences(comparisons) for update, comparisons in before.items()}
        """Of each update, what every answer said of its directions."""

    @property
    def judges(self) -> int:
        """Answers that each question gets."""
        return len(self.run.judges) or self.run.store.asking(self.name).overlap

    def ask(self, step: int, asked_to_stop: Callable[[], bool]) -> bool:
        """Have the questions of the update after `step` answered and give the learner the answers; False where there is nothing to ask.

        Raises:
            TrainingError: nothing was answered for `IDLE` updates.
        """
        self.acting.policy.name = f"{self.name}@{self.number}-{step}"
        if self.z.check_every and step and step % self.z.check_every == 0:
            self.check(step)
        left = math.ceil((self.z.answers - len(self.before(step))) / self.judges)
        if left <= 0 or asked_to_stop() or step >= (self.run.config.train.steps or sys.maxsize):
            return False
        if step >= IDLE and not any(self.preferences.get(update) for update in range(step - IDLE, step)):
            on = self.run.config.train.criterion
            abstained = f"the judges abstained, or said nothing on {on!r}," if on else "the judges abstained,"
            why = f"{abstained} or both sides were always the same: give judges something to choose by, or raise zeroth.mu"
            raise TrainingError(f"the last {IDLE} updates brought no answer; {why} (now {self.z.mu:g})")
        asks = self.planner.plan(step)[:left]
        answered = self.put(step, asks)
        silent = [i for i, ask in enumerate(asks) if not answered[ask.key]]
        if silent:  # other tasks may have something to choose by
            again = self.planner.plan(step, again=1)
            answered = {key: judged for key, judged in answered.items() if judged} | self.put(step, [again[i] for i in silent])
        self.preferences[step] = answer_preferences([c for judged in answered.values() for c in judged if c.judge])
        self.learner.take(answered)
        return True

    def learned(self) -> Answered:
        """The labels that the next checkpoint is made from, by number alone."""
        labels = [x.id for x in self.run.store.labels(self.name, "train") if x.id is not None]
        return Answered([], max(labels, default=0), labels)

    def before(self, step: int) -> list[dict[int, float]]:
        """The preferences before update `step`."""
        return [x for update, preferences in self.preferences.items() if update < step for x in preferences]

    def put(self, step: int, asks: Sequence[Ask]) -> dict[str, list[Comparison]]:
        """Have questions answered, those that the store lacks being made first; by key one comparison a judge.

        Where all sides are the same nobody is asked: it counts as a tie.
        """
        store, beginning = self.run.store, f"{self.beginning}{step}/"
        have = {q.comparison.key for q in store.questions(self.name, beginning=beginning)}
        missing = [a for a in asks if self.beginning + a.key not in have]
        if missing:
            sides = self.sides(step, missing)
            made = [self.run.question(self.beginning + a.key, *found) for a, found in zip(missing, sides, strict=True)]
            same = self._keep(made, "train")
            if same > len(made) / 2:
                self.run.console.print(f"{same} of {len(made)} questions are the same on all sides; raise zeroth.mu (now {self.z.mu:g})")
        self.run.have_answered("train")
        found: dict[str, list[Comparison]] = {a.key: [] for a in asks}
        for c in self._same(beginning) + self.answered(beginning):
            found.get(c.key.removeprefix(self.beginning), []).append(c)
        return found

    def answered(self, beginning: str) -> list[Comparison]:
        """What was answered to questions whose keys begin so, one comparison an answer; without answers that are not to be learned from."""
        on = self.run.config.train.criterion
        without = self.run.store.asking(self.name).leave_out if self.run.config.train.flagged else FLAGS
        return self.run.store.answered(self.name, "train", each=True, without=without, beginning=beginning, criterion=on).comparisons

    def _keep(self, questions: Sequence[Comparison], purpose: str) -> int:
        """Put questions into the store; those whose sides are the same are never asked. Returns how many these are."""
        same = [q for q in questions if alike(q)]
        self.run.store.ask(self.name, [q for q in questions if not alike(q)], purpose, why="direction")
        self.run.store.ask(self.name, same, "same", why="direction")
        return len(same)

    def _same(self, beginning: str) -> list[Comparison]:
        """The questions that nobody is asked, as ties."""
        return [replace(q.comparison, preference=0.5) for q in self.run.store.questions(self.name, "same", beginning=beginning)]

    def sides(self, step: int, asks: Sequence[Ask]) -> list[list[tuple[Trajectory, ...]]]:
        """The sides of each question, which meet the same tasks and the same chances."""
        wanted = [(task, p) for ask in asks for p in ask.sides for task in ask.tasks]
        title = f"update {step + 1}, {len(self.before(step))} of {self.z.answers} answers: all sides act"
        asked = [t for t, _ in wanted], self.planner.chances(step), [p for _, p in wanted]
        with progress(self.run.console, title, len(wanted), transient=True) as advance:
            if self.pool is not None:
                found = self.pool.sample(self.learner.log, self.acting.policy.name, *asked)
            else:
                found = self.acting.sampler(self.acting.policy, advance).sample(*asked)
        d, k = self.z.side, self.z.best_of
        sides = [tuple(found[i : i + d]) for i in range(0, len(found), d)]
        return [sides[i : i + k] for i in range(0, len(sides), k)]

    # How far one has come

    def check(self, step: int) -> None:
        """Compare with the base policy on held-out tasks; hold the KL, and go back to the best point if the win rate has fallen from
        there.
        """
        learner, purpose = self.learner, self.run.evaluation(f"check-{self.number}-{step}", self.weights())
        voters = self.run.voters
        self._ask_on_held_out_tasks(step, purpose)
        asked = [q.comparison for q in self.run.store.questions(self.name, beginning=f"{purpose}/")]
        answered = self._same(f"{purpose}/") + self.run.store.answered(self.name, purpose, judges=voters or None).comparisons
        found = rate([c.preference if self._ours(c.a) else 1 - c.preference for c in answered if c.preference is not None])
        kl = self.divergence([t for c in asked for t in (c.a if self._ours(c.a) else c.b)])
        chance = math.sqrt(2) * (found.high - found.low) / 2  # by which two such rates differ without a cause
        back = bool(found.count) and learner.checked(found.mean, chance)
        if not back and kl > self.z.kl:
            learner.shrink(0.9 ** math.ceil(math.log(kl / self.z.kl) / (2 * math.log(1 / 0.9))))  # KL falls as the square
        values = {"kl": kl, "parameter_norm": rms(learner.space.parameters), "answers": float(len(self.before(step))), "back": float(back)}
        if found.count:
            values |= {"win_rate": found.mean, "win_rate_low": found.low, "win_rate_high": found.high, "questions": float(found.count)}
        advice = self.advice(step, bool(found.count) and found.low > 0.5)
        said = {"advice": advice} if advice else {}
        phase, metrics = f"check-{self.number}", self.run.metrics
        metrics.rewind(phase, step - 1)
        metrics.write(phase, step, values, evaluation=purpose, judges=voters, **said)
        won = f"win rate against the base policy {found}" if found.count else "no answer about held-out tasks"
        distance = f"parameter norm {values['parameter_norm']:.3g}, KL {kl:.3g}{'; back to the best point' if back else ''}"
        self.run.console.print(f"{values['answers']:.0f} answers: {won}; {distance}", highlight=False)
        if advice:
            self.run.console.print(f"{advice[0].upper()}{advice[1:]}.", highlight=False)

    def weights(self) -> str:
        """Digits that stand for the policy: the numbers that have been moved, and the settings that say what they are."""
        found = hashlib.sha256(json.dumps(renamed.earlier(mattering(self.run.config, "zeroth")), sort_keys=True).encode())
        for part in self.learner.space.parameters:
            found.update(part.detach().float().cpu().numpy().tobytes())
        return found.hexdigest()

    def _ask_on_held_out_tasks(self, step: int, purpose: str) -> None:
        z, run = self.z, self.run
        if len(run.store.questions(self.name, beginning=f"{purpose}/")) < z.checks:
            held_out, count = self.held_out, z.checks * z.side
            first = step // z.check_every * count
            tasks = [held_out[(first + i) % len(held_out)] for i in range(count)]
            both = list[list[Trajectory]]()
            with progress(run.console, "answering held-out tasks", 2 * count, transient=True) as advance:
                for policy in (self.acting.policy, self.acting.base):
                    both.append(self.acting.sampler(policy, advance).sample(tasks, self.planner.chances(step)))
            sides = [[tuple(found[i : i + z.side]) for found in both] for i in range(0, count, z.side)]
            self._keep([run.question(f"{purpose}/{i}", *s) for i, s in enumerate(sides)], purpose)
        run.have_answered(purpose)

    def _ours(self, side: Sequence[Trajectory]) -> bool:
        return side[0].policy != self.acting.base.name

    def divergence(self, trajectories: Sequence[Trajectory]) -> float:
        """KL from the base policy, nats an action, estimated on what the policy did itself."""
        policy, base, tokens = self.acting.policy, self.acting.base, self.run.config.train.micro_batch_tokens
        batch = policy.collate(trajectories)
        (difference,) = in_parts(batch, tokens, lambda part: (policy.evaluate(part)[0] - base.evaluate(part)[0],))
        return float((difference * batch.mask).sum() / batch.mask.sum())

    def advice(self, step: int, won: bool) -> str | None:
        """What the answers so far say about those to come; None where there are too many numbers to say, or no directions."""
        answers, space, how = self.before(step), self.acting.space, self.planner.how
        if len(answers) * how.together * space.size > SHOWN or not how.perturbed:
            return None
        preferences, signal = [x for answer in answers for x in answer.items()], budget.Signal(0.0, 0.0, 0.0)
        if len(answers) >= budget.FIRST:
            signal = budget.signal([2 * p - 1 for _, p in preferences], np.stack([flat(space, seed) for seed, _ in preferences]))
        return budget.advice(signal, len(answers), max(self.z.answers - len(answers), 0), space.size, won, how.together)


def flat(space: Space, seed: int) -> np.ndarray:
    """The direction v(seed), all numbers in a row."""
    return torch.cat([part.flatten() for part in space.combined([Perturbation(seed, 1.0)], [1.0])]).cpu().numpy()
