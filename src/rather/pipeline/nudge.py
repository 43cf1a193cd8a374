"""Zeroth-order optimisation as a run: ask, move, and look now and then at how far one has come.

The store is the ledger: a question's key says its update, the policies of its sides say direction and sign. What was asked is not made
again, so a run that begins anew with nothing but its store comes to the same numbers, bit for bit.
"""

import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rather.config.schema import Config, Train
from rather.config.toml import mattering
from rather.core import Answered, Comparison, Perturbation, Task, Trajectory
from rather.errors import ConfigError, TrainingError
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.common import in_parts
from rather.learners.dpo_settings import DPOSettings
from rather.pipeline import evaluation
from rather.pipeline.rates import rate
from rather.store.quality import FLAGS
from rather.zeroth import budget
from rather.zeroth.first_order import FirstOrder
from rather.zeroth.learner import Ask, Asking, Estimate, Planner, Zeroth, heard, rms

IDLE = 5
"""Updates in a row without any answer that end the run."""
SHOWN = 10**8
"""Numbers in all directions together beyond which nothing is said about what answers buy."""


MANNERS = [
    ["Answer in as few words as possible.", "Answer at length and in detail."],
    ["Be warm, joyful and enthusiastic.", "Be cold, gloomy and negative."],
    ["Speak to me directly, as you would to a friend.", "Be impersonal and objective."],
    ["Answer in a formal, academic style.", "Answer in a casual, slangy style."],
    ["Answer like a poet, with images.", "Answer with plain technical facts."],
    ["Explain as if to a small child.", "Explain as if to a professor."],
    ["Answer with a question.", "Answer with statements only."],
    ["Answer with a numbered list.", "Answer in one flowing paragraph."],
]
"""What `rather nudge` mixes: eight numbers, which a hundred answers can find."""


@dataclass(frozen=True)
class Acting:
    """What a world brings: the policy that moves, which has a space, and the one that it came from."""

    policy: Any
    start: Any


def fit(run: Any, number: int) -> Path:
    """Move the policy by what judges say, until the answers are used up; returns the last checkpoint.

    Raises:
        ConfigError: a setting is given that this learner does not take, or there are no held-out tasks to compare on.
    """
    if (judges := run.config.train.judges) != Train().judges:
        raise ConfigError(f'with train.learner = "zeroth" every judge counts; leave train.judges as it is (now {judges})')
    if run.config.zeroth.check_every and not run.tasks[1]:
        raise ConfigError("there are no held-out prompts to compare on; set data.held_out, add a split column, or zeroth.check_every = 0")
    acting = run.acting(number)
    learner, scale = made(run.config, acting), run.config.scale
    pool = None
    if scale.workers:
        if isinstance(learner, FirstOrder):
            raise ConfigError("scale.workers spreads directions, and first-order learning has none; set it to 0")
        if number:
            raise ConfigError("scale.workers works in the first round alone; set loop.rounds to 1 or scale.workers to 0")
        from rather.scale.pool import Pool

        pool = Pool(Replica, (run.config.model_dump(),), scale.workers, scale.address)
    questions = Questions(run, number, acting, learner, pool)
    lineage, found = questions.lineage(), checkpoint.every(run.checkpoints(number))
    if found:
        manifest = checkpoint.check(found[-1])
        lineage = replace(lineage, watermark=manifest["watermark"], labels=manifest["labels"])
    try:
        return run.learn(learner, "zeroth", number, 0, lineage, questions, open_=True)
    finally:
        if pool is not None:
            pool.close()


def made(config: Config, acting: Acting) -> Zeroth:
    """What learns from the answers: the zeroth-order learner, or its first-order counterpart."""
    z, space = config.zeroth, acting.policy.space
    first_order = z.estimator in ("dpo", "reinforce")
    asking = Asking(z.mu, z.directions, z.comparisons, z.side, z.mirrored, not first_order, z.best_of)
    how = Estimate(z.lr, z.estimator, z.link, z.trim, z.radius, z.optimiser)
    if first_order:
        if config.dpo != DPOSettings(beta=config.dpo.beta):
            raise ConfigError(f'with zeroth.estimator = "{z.estimator}" dpo.beta alone counts; leave the rest of [dpo] as it is')
        return FirstOrder(acting.policy, space, asking, how, acting.start, config.dpo.beta)
    return Zeroth(acting.policy, space, asking, how, 1 if z.kind == "gaussian" else space.size)


class Replica:
    """The policy of a run in another process, which moves by itself as the run's does; see `scale.pool`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from rather.pipeline.run import opened

        with tempfile.TemporaryDirectory() as nowhere:
            run_settings = settings["run"] | {"folder": nowhere, "threads": 1}
            self.run = opened(Config.model_validate(settings | {"run": run_settings, "log": {}}), Console(quiet=True))
            self.acting = self.run.acting(0)
        self.learner = made(self.run.config, self.acting)

    def sample(
        self, first: int, log: list[Any], name: str, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None]
    ) -> list[Trajectory]:
        """Move by what has been logged since event `first`, then act."""
        self.learner.replay(log[len(self.learner.log) - first :])
        self.acting.policy.name = name
        return self.run.sampler(self.acting.policy, lambda n: None).sample(tasks, seed, perturbations)


class Questions:
    """Asks an update's questions before the learner takes its step; `train.train` asks it what there is to learn from."""

    def __init__(self, run: Any, number: int, acting: Acting, learner: Zeroth, pool: Any = None) -> None:
        self.run, self.number, self.acting, self.learner, self.pool = run, number, acting, learner, pool
        self.z, self.name, self.beginning = run.config.zeroth, run.config.run.name, f"nudge-{number}/"
        self.planner = Planner(run.tasks[0], learner.asking, run.config.run.seed + 7919 * number)
        before: dict[int, list[Comparison]] = {}
        for c in self.answered(self.beginning):
            before.setdefault(int(c.key.split("/")[1]), []).append(c)
        self.told = {update: heard(comparisons) for update, comparisons in before.items()}
        """Of each update, what every answer said of its directions."""

    @property
    def judges(self) -> int:
        """Answers that each question gets."""
        return len(self.run.judges) or self.run.store.asking(self.name).overlap

    def __call__(self, step: int, asked_to_stop: Callable[[], bool]) -> Lineage | None:
        self.acting.policy.name = f"{self.name}@{self.number}-{step}"
        if self.z.check_every and step and step % self.z.check_every == 0:
            self.check(step)
        left = math.ceil((self.z.answers - len(self.before(step))) / self.judges)
        if left <= 0 or asked_to_stop() or step >= (self.run.config.train.steps or sys.maxsize):
            return None
        if step >= IDLE and not any(self.told.get(update) for update in range(step - IDLE, step)):
            on = self.run.config.train.criterion
            abstained = f"the judges abstained, or said nothing on {on!r}," if on else "the judges abstained,"
            why = f"{abstained} or both sides were always the same: give judges something to choose by, or raise zeroth.mu"
            raise TrainingError(f"the last {IDLE} updates brought no answer; {why} (now {self.z.mu:g})")
        asks = self.planner.plan(step)[:left]
        answered = self.put(step, asks)
        silent = [i for i, ask in enumerate(asks) if not answered[ask.key]]
        if silent:  # other tasks may have something to choose by
            again = self.planner.plan(step, again=1)
            answered = {key: told for key, told in answered.items() if told} | self.put(step, [again[i] for i in silent])
        self.told[step] = heard([c for judged in answered.values() for c in judged if c.judge])
        self.learner.take(answered)
        return self.lineage()

    def lineage(self) -> Lineage:
        """What the next checkpoint is made from; how many steps there will be is not known beforehand."""
        labels = [x.id for x in self.run.store.labels(self.name, "train")]
        return self.run.lineage("zeroth", Answered([], max(labels, default=0), labels), 0)

    def before(self, step: int) -> list[dict[int, float]]:
        """What was told before update `step`."""
        return [x for update, told in self.told.items() if update < step for x in told]

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
        """What was answered to questions whose keys begin so, one comparison an answer; without answers that are not to be learnt from."""
        on = self.run.config.train.criterion
        without = self.run.store.asking(self.name).leave_out if self.run.config.train.flagged else FLAGS
        return self.run.store.answered(self.name, "train", each=True, without=without, beginning=beginning, criterion=on).comparisons

    def _keep(self, questions: Sequence[Comparison], purpose: str) -> int:
        """Put questions into the store; those whose sides are the same are never asked. Returns how many these are."""
        same = [q for q in questions if _alike(q)]
        self.run.store.ask(self.name, [q for q in questions if not _alike(q)], purpose, why="direction")
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
        with self.run.progress(title, len(wanted), transient=True) as advance:
            if self.pool is not None:
                found = self.pool.sample(self.learner.log, self.acting.policy.name, *asked)
            else:
                found = self.run.sampler(self.acting.policy, advance).sample(*asked)
        d, k = self.z.side, self.z.best_of
        sides = [tuple(found[i : i + d]) for i in range(0, len(found), d)]
        return [sides[i : i + k] for i in range(0, len(sides), k)]

    # How far one has come

    def check(self, step: int) -> None:
        """Compare with the start on held-out tasks; hold the KL, and go back to the best point if the win rate has fallen from there."""
        learner, purpose = self.learner, evaluation.name(self.run, f"check-{self.number}-{step}", self.weights())
        voters = evaluation.voters(self.run)
        self._ask_about_the_start(step, purpose)
        asked = [q.comparison for q in self.run.store.questions(self.name, beginning=f"{purpose}/")]
        answered = self._same(f"{purpose}/") + self.run.store.answered(self.name, purpose, judges=voters or None).comparisons
        found = rate([c.preference if self._ours(c.a) else 1 - c.preference for c in answered if c.preference is not None])
        kl = self.divergence([t for c in asked for t in (c.a if self._ours(c.a) else c.b)])
        chance = math.sqrt(2) * (found.high - found.low) / 2  # by which two such rates differ without a cause
        back = bool(found.count) and learner.checked(found.mean, chance)
        if not back and kl > self.z.kl:
            learner.shrink(0.9 ** math.ceil(math.log(kl / self.z.kl) / (2 * math.log(1 / 0.9))))  # KL falls as the square
        values = {"kl": kl, "norm": rms(learner.space.parameters), "answers": float(len(self.before(step))), "back": float(back)}
        if found.count:
            values |= {"win_rate": found.mean, "win_rate_low": found.low, "win_rate_high": found.high, "questions": float(found.count)}
        told = self.advice(step, bool(found.count) and found.low > 0.5)
        self.run.metrics.rewind(f"check-{self.number}", step - 1)
        said = {"advice": told} if told else {}
        self.run.metrics.write(f"check-{self.number}", step, values, evaluation=purpose, judges=voters, **said)
        won = f"win rate over the start {found}" if found.count else "no answer about held-out tasks"
        moved = f"moved {values['norm']:.3g}, KL {kl:.3g}{'; back to the best point' if back else ''}"
        self.run.console.print(f"{values['answers']:.0f} answers: {won}; {moved}", highlight=False)
        if told:
            self.run.console.print(f"{told[0].upper()}{told[1:]}.", highlight=False)

    def weights(self) -> str:
        """Digits that stand for the policy: the numbers that have been moved, and the settings that say what they are."""
        found = hashlib.sha256(json.dumps(mattering(self.run.config, "zeroth"), sort_keys=True).encode())
        for part in self.learner.space.parameters:
            found.update(part.detach().float().cpu().numpy().tobytes())
        return found.hexdigest()

    def _ask_about_the_start(self, step: int, purpose: str) -> None:
        z, run = self.z, self.run
        if len(run.store.questions(self.name, beginning=f"{purpose}/")) < z.checks:
            held_out, count = run.tasks[1], z.checks * z.side
            first = step // z.check_every * count
            tasks = [held_out[(first + i) % len(held_out)] for i in range(count)]
            both = []
            with run.progress("answering held-out tasks", 2 * count, transient=True) as advance:
                for policy in (self.acting.policy, self.acting.start):
                    both.append(run.sampler(policy, advance).sample(tasks, self.planner.chances(step)))
            sides = [[tuple(found[i : i + z.side]) for found in both] for i in range(0, count, z.side)]
            self._keep([run.question(f"{purpose}/{i}", *s) for i, s in enumerate(sides)], purpose)
        run.have_answered(purpose)

    def _ours(self, side: Sequence[Trajectory]) -> bool:
        return side[0].policy != self.acting.start.name

    def divergence(self, trajectories: Sequence[Trajectory]) -> float:
        """KL from the start, nats an action, estimated on what the policy did itself."""
        policy, start, tokens = self.acting.policy, self.acting.start, self.run.config.train.micro_batch_tokens
        batch = policy.collate(trajectories)
        (difference,) = in_parts(batch, tokens, lambda part: (policy.evaluate(part)[0] - start.evaluate(part)[0],))
        return float((difference * batch.mask).sum() / batch.mask.sum())

    def advice(self, step: int, won: bool) -> str | None:
        """What the answers so far say about those to come; None where there are too many numbers to say, or no directions."""
        answers, space, how = self.before(step), self.acting.policy.space, self.planner.how
        if len(answers) * how.together * space.size > SHOWN or not how.perturbed:
            return None
        told, signal = [x for answer in answers for x in answer.items()], budget.Signal(0.0, 0.0, 0.0)
        if len(answers) >= budget.FIRST:
            signal = budget.signal([2 * p - 1 for _, p in told], np.stack([flat(space, seed) for seed, _ in told]))
        return budget.advice(signal, len(answers), max(self.z.answers - len(answers), 0), space.size, won, how.together)


def flat(space: Any, seed: int) -> np.ndarray:
    """The direction v(seed), all numbers in a row."""
    return torch.cat([part.flatten() for part in space.combined([Perturbation(seed, 1.0)], [1.0])]).cpu().numpy()


def _alike(question: Comparison) -> bool:
    """Whether all sides did the same."""
    return all(_deed(x) == _deed(y) for side in question.sides[1:] for x, y in zip(question.a, side, strict=True))


def _deed(t: Trajectory) -> Any:
    if t.text is not None:
        return t.text, t.terminated
    # Of actions beyond the bounds of their space nobody sees a difference: what was shown and paid says what was done.
    return np.asarray(t.observations).tobytes(), np.asarray(t.rewards).tobytes()
