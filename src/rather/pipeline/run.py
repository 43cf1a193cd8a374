"""A run, phase by phase: sample answers, have them compared, learn, evaluate; each goes on where it was stopped.

What a phase has done is in the store or in a checkpoint, so there is no other state to lose.
"""

import hashlib
import random
import sys
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rather.config import guidelines
from rather.config.schema import Config
from rather.config.toml import mattering
from rather.core import Answered, Comparison, Label, Task, Trajectory
from rather.errors import ConfigError, TrainingError
from rather.judges import people
from rather.judges.best import answers
from rather.judges.model import ModelJudge
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.metrics import Metrics, mirrors
from rather.learners.progress import progress
from rather.learners.train import Feed, Stopped, train
from rather.pipeline import build, held_out, live, nudge, resume
from rather.pipeline.lock import exclusive
from rather.pipeline.query import priorities
from rather.scale import ranks
from rather.store import Store
from rather.store.quality import FLAGS
from rather.verify.checker import Checker

CHUNK = 64
"""Answers that are drawn, or questions that are judged, between two commits to the store."""


def opened(config: Config, console: Console) -> "Run":
    """The run that these settings describe: about text, or about control.

    Raises:
        ConfigError: torchrun has started several ranks, and this is not something that they can share.
    """
    if ranks.wanted() > 1 and (config.control.env or config.train.learner == "zeroth" or config.judge.kind == "people"):
        what = "on text, with a learner other than zeroth, and not while people answer"
        raise ConfigError(f"several ranks can train {what}; start this in one process")
    if ranks.wanted() > ranks.count():
        raise ConfigError("torchrun has started several ranks, which `rather train` alone can use; start this in one process")
    if config.control.env:
        from rather.pipeline.control_run import ControlRun

        return ControlRun(config, console)
    return Run(config, console)


class Run:
    """One run: its settings, its folder and its store."""

    def __init__(self, config: Config, console: Console) -> None:
        self.config, self.console = build.dated(config), console
        self.folder = self.config.folder
        elsewhere = [] if ranks.rank() else mirrors(config.log.tensorboard, config.log.wandb, self.folder)
        self.metrics = Metrics(self.folder / "metrics.jsonl", elsewhere)
        if config.run.threads:
            torch.set_num_threads(config.run.threads)

    @cached_property
    def store(self) -> Store:
        """The preference store."""
        return Store(self.config.store)

    @cached_property
    def tasks(self) -> tuple[list[Task], list[Task]]:
        """Training and held-out tasks, which fit the model."""
        return self.fit.tasks(*build.tasks(self.config))

    @cached_property
    def fit(self) -> Any:
        """What measures prompts and answers before anything is done with them; None where there is nothing to measure."""
        return build.fit(self.config, self.start.tokens, self.start.context, partial(self.console.print, markup=False, highlight=False))

    @cached_property
    def tokenizer(self) -> str:
        """Digits that stand for the tokenizer and the chat template, as their files were when this was first asked."""
        return resume.tokenizer(self.config.model)

    @cached_property
    def start(self) -> Any:
        """The model that starts the run."""
        with self.console.status(f"loading {self.config.model.path}"):
            return build.start_policy(self.config)

    @cached_property
    def judges(self) -> list[Any]:
        """Who answers, unless it is people."""
        found = build.judges(self.config, lambda: self.start)
        known = self.store.judges()
        for judge in [x for x in found if known.get(x.name) != x.kind]:
            self.store.add_judge(judge.name, judge.kind)
        return found

    # Phases

    @exclusive
    def sample(self, number: int = 0) -> int:
        """Two answers of the newest policy to each training prompt become a question; returns how many questions are new."""
        self.ready(number)
        tasks = self.tasks[0]
        have = {k for k in self.store.keys(self.config.run.name, "train") if k.startswith(f"round-{number}/")}
        missing = [t for t in tasks if f"round-{number}/{t.key}" not in have]
        resume.note_sampling(self, number, len(have))
        if not missing:
            return 0
        self.labels(number, self.config.train.learner)  # what has been imported should fit, too, before anybody is asked more
        policy, before = self.policy(number), self._reward_before(number)
        with self.progress("sampling answers", 2 * len(missing)) as advance:
            sampler = build.sampler(self.config, policy, advance)
            for start in range(0, len(missing), CHUNK // 2):
                found = build.two_answers(self.config, sampler, missing[start : start + CHUNK // 2], self.seed("sample", number))
                pairs = [self.question(f"round-{number}/{a.task.key}", (a,), (b,)) for a, b in found]
                wanted = None if before is None else priorities(self.config.query.strategy, before.differences(pairs), len(pairs))
                self.store.ask(self.config.run.name, pairs, scores=wanted)
                resume.keep_sampling(self, number, len(pairs), len(tasks))
        return len(missing)

    def draw(self) -> None:
        """Have the clips that people need drawn; words need none."""

    def label(self, purpose: str = "train") -> int:
        """Have every open question answered; returns how many answers are new.

        Raises:
            TrainingError: verifiers answer, and judged nothing.
        """
        if purpose == "train":
            self.ready(self.begun)
        if (j := self.config.judge).kind == "terminal":
            rules = guidelines.read(j.guidelines)
            return people.ask(self.store, self.config.run.name, j.name, purpose, j.instruction, self.console, rules, j.criteria)
        return self._judge(purpose)

    @exclusive  # or the same judges would be asked the same questions twice
    def _judge(self, purpose: str) -> int:
        count = 0
        for judge in self.judges:
            questions = self.store.questions(self.config.run.name, purpose, unanswered_by=judge.name)
            with self.progress(f"{judge.name} compares", len(questions), transient=not self._asks) as advance:
                for start in range(0, len(questions), CHUNK):
                    chunk = questions[start : start + CHUNK]
                    found = answers(judge, [q.comparison for q in chunk])
                    labels = [Label(q.id, judge.name, p, best=best) for q, (p, best) in zip(chunk, found, strict=True)]
                    if isinstance(judge, Checker):  # what it could not judge is asked again, once it is mended
                        labels = [x for x in labels if x.preference is not None]
                    if labels:
                        self.store.answer_all(labels)
                    count += len(labels)
                    advance(len(chunk))
            if questions and not count and isinstance(judge, Checker):
                resume.check_judged(self, judge, questions[-1].comparison.key, purpose)
        return count

    @exclusive
    def train(self, number: int = 0) -> Path:
        """Learn from the labels there are, or from what the policy does and is paid for; returns the last checkpoint."""
        resume.ready_to_learn(self)
        match self.config.train.learner:
            case "ppo" | "grpo":
                return self._improve(number)
            case "zeroth":
                return nudge.fit(self, number)
            case name:
                return self._fit(number, name)

    def _fit(self, number: int, name: str) -> Path:
        """Train the learner called `name` on the labels there are, or while people answer."""
        return (live if self.config.judge.kind == "people" else resume).fit(self, number, name)

    def _improve(self, number: int) -> Path:
        """Let the policy act and learn from what it is paid: by verifiers, or by a reward model, which is trained first if need be."""
        name, labels = self.config.train.learner, self.config.train.reward == "labels"
        stage = resume.last(self.checkpoints(number))
        self.ready(number)
        paid_by, data = Path(self.config.judge.checkpoint), Answered([])
        if labels:
            # A policy in the middle goes on with the reward model that it began with.
            reward = checkpoint.every(self.checkpoints(number, "reward")) if stage and not checkpoint.finished(stage) else []
            paid_by = reward[-1] if reward else self._fit(number, "reward")
            manifest = checkpoint.check(paid_by)
            data = Answered([], manifest["watermark"], manifest["labels"])
        steps = resume.steps_of_policy(stage, build.steps(self.config, name, len(self.tasks[0])), data.labels)
        if stage and stage["step"] >= steps:
            return checkpoint.every(self.checkpoints(number))[-1]
        payer = self._payer(paid_by)
        learner = self._improver(number, payer, steps)
        try:
            last = self.learn(learner, name, number, steps, self.lineage(name, data, steps))
        finally:
            if isinstance(payer, Checker):
                payer.close()
                for problem, count in payer.problems.most_common(3):
                    self.console.print(f"{count} answers could not be verified: {problem}", markup=False)
        return self._improve(number) if stage and not checkpoint.finished(stage) else last  # more may have been asked for since

    def learner(self, number: int, name: str, data: Answered, steps: int) -> Any:
        """What learns from labels, for so many steps."""
        trained, parameters = self._trainee(number, name)
        if name != "dpo":
            return build.learner(self.config, name, self.start, trained, parameters, data, steps, lambda n: None)
        with self.progress("scoring with the reference", len(data.comparisons)) as advance:
            return build.learner(self.config, name, self.start, trained, parameters, data, steps, advance)

    def _payer(self, saved: Path) -> Any:
        """What pays the policy: the verifiers, or the reward model in the checkpoint `saved`."""
        return build.checker(self.config) if build.verified(self.config) else self._saved_reward(saved)

    def _reward_before(self, number: int) -> ModelJudge | None:
        """The reward model of the round before, which knows what it would like to be told; None if there was none."""
        saved = checkpoint.every(self.checkpoints(number - 1, "reward")) if number else []
        return ModelJudge("reward", self._saved_reward(saved[-1]), self.config.train.micro_batch_tokens) if saved else None

    def _saved_reward(self, saved: Path) -> Any:
        return build.saved_reward(self.config, saved, self.start)

    def _improver(self, number: int, payer: Any, steps: int) -> Any:
        """What learns from what `payer` pays, for so many steps."""
        trained, parameters = self._trainee(number, self.config.train.learner)
        return build.improver(self.config, self.start, trained, parameters, self.tasks[0], payer, steps)

    def learn(
        self, learner: Any, name: str, number: int, steps: int, lineage: Lineage, feed: Feed | None = None, open_: bool = False
    ) -> Path:
        """Take `learner` to `steps` steps, which a bar shows if they are known; `open_`: or as far as `feed` goes."""
        t = self.config.train
        with self.progress(f"training {name}", steps) as advance:
            at = 0

            def report(step: int, values: dict[str, float]) -> None:
                nonlocal at
                shown = "  ".join(
                    f"{k} {values[k]:.3f}" for k in ("loss", "accuracy", "score", "return", "gold", "kl", "log_ratio") if k in values
                )
                advance(step - at, f"training {name}  {shown}")
                at = step

            phase, upto, folder = f"train-{name}-{number}", sys.maxsize if open_ else steps, self.checkpoints(number, name)
            return train(learner, upto, folder, lineage, self.metrics, phase, t.checkpoint_every, t.keep, report, feed)

    @exclusive
    def evaluate(self, number: int = 0) -> str | None:
        """Compare the policy with the model that started the run on held-out prompts; returns how it did, in words."""
        return held_out.compare(self, number)

    def evaluate_reward(self, model: Any, step: int) -> None:
        """How well a reward model orders the questions that were kept from it."""
        held_out.check_reward(self, model, step)

    @exclusive
    def loop(self) -> str | None:
        """Sample, label, train and evaluate, round after round; returns how the last policy did, in words."""
        result, rounds = None, self.config.loop.rounds
        first = self.begun  # a round that a later one has come from stays as it is
        self.ready(first)
        for number in range(first, rounds):
            if self._asks:
                self.sample(number)
                self.label()
                self._wait_for_terminal("train")
            self.train(number)
            last = number == rounds - 1
            if self.config.train.learner != "reward" and (last or self.config.judge.kind != "people"):
                result = self.evaluate(number)
        return result

    @property
    def _asks(self) -> bool:
        """Whether each round begins with questions that need labels; zeroth-order optimisation asks as it goes."""
        t = self.config.train
        return t.learner != "zeroth" and not (t.learner in ("ppo", "grpo") and t.reward != "labels")

    def _wait_for_terminal(self, purpose: str) -> None:
        """Stop while the person still has questions to answer: what is learnt next should know all their answers."""
        j = self.config.judge
        if j.kind == "terminal" and (left := people.left(self.store, self.config.run.name, purpose, j.name)):
            raise Stopped(f"{left} questions are open; the answers so far are kept, and the same command goes on from there")

    def have_answered(self, purpose: str) -> None:
        """Have the open questions of a purpose answered, by whoever answers.

        Raises:
            Stopped: the person at the terminal has had enough for now.
        """
        if self.config.judge.kind == "people":
            live.wait(self, purpose)
        else:
            self.label(purpose)
            self._wait_for_terminal(purpose)

    def acting(self, number: int) -> nudge.Acting:
        """Who acts in zeroth-order optimisation."""
        policy = self.policy(number) if number else self._adapted[0]
        return nudge.Acting(policy, self.start)

    def sampler(self, policy: Any, advance: Any) -> Any:
        """Lets `policy` act."""
        return build.sampler(self.config, policy, advance)

    def policy(self, number: int) -> Any:
        """The policy at the beginning of round `number`: the start, or what the round before ended with."""
        if number == 0:
            return self.start
        last = checkpoint.every(self.checkpoints(number - 1))
        if not last:
            raise TrainingError(f"round {number - 1} has no checkpoint in {self.checkpoints(number - 1)}; run `rather train` first")
        policy, _ = self._adapted
        policy.restore(last[-1] / "model")
        policy.name = f"{self.config.run.name}@{number - 1}-{checkpoint.check(last[-1])['step']}"
        return policy

    def checkpoints(self, number: int, name: str = "") -> Path:
        """Where the checkpoints of a round are: those of `train.learner`, or of the learner called `name`."""
        return self.folder / "checkpoints" / f"{name or self.config.train.learner}-{number}"

    @cached_property
    def _adapted(self) -> tuple[Any, Any]:
        if self.config.train.learner == "zeroth":
            with self.console.status("finding the numbers that are moved"):
                return build.movable(self.config, self.start, self.tasks[0]), []
        if self.config.model.train == "full":  # the start must stay what it is
            return build.trained_policy(self.config, build.start_policy(self.config))
        return build.trained_policy(self.config, self.start)

    def _trainee(self, number: int, name: str) -> tuple[Any, Any]:
        if name == "reward":
            start = self.start if self.config.model.train == "lora" else build.start_policy(self.config)
            return build.trained_policy(self.config, start, "reward")
        if number:
            self.policy(number)
        return self._adapted

    def labels(self, number: int, name: str, among: Collection[int] | None = None) -> Answered:
        """What round `number` learns from: its own questions, those of the rounds before it, and imported ones; or labels `among` these."""
        reward, run, t = name == "reward", self.config.run.name, self.config.train

        def wanted(c: Comparison) -> bool:
            return not live.later_than(number, c) and not (reward and self.held_back(c)) and self.learnable(c)

        out = () if among is not None else self.store.asking(run).leave_out if t.flagged else FLAGS
        found = self.store.answered(run, "train", reward, among, out, wanted, judges=resume.teachers(self), criterion=t.criterion)
        return found if self.fit is None else replace(found, comparisons=self.fit.ready(found.comparisons))

    def learnable(self, comparison: Comparison) -> bool:
        """Whether the sides of a question differ and fit the model."""
        return self.fit is None or self.fit.wanted(comparison)

    def held_back(self, comparison: Comparison) -> bool:
        """Whether a question is kept from the reward model, to measure it by."""
        digest = hashlib.sha256(f"{self.config.run.seed}/{comparison.key}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48 < self.config.reward.held_out

    def lineage(self, name: str, data: Answered, steps: int) -> Lineage:
        """What the learner called `name` makes its checkpoints from, which have `steps` steps in the end; 0: as many as will come."""
        kept, defaults = mattering(self.config, name), mattering(type(self.config)(), name)
        own = {"_steps": steps, "_contents": resume.contents(self, kept)}
        return Lineage(kept | own, data.watermark, data.labels, defaults=defaults)

    def trained(self, number: int) -> bool:
        """Whether the policy of round `number` has begun to learn."""
        return bool(checkpoint.every(self.checkpoints(number)))

    @property
    def begun(self) -> int:
        """The last round whose policy has begun to learn, or the first one."""
        return max((number for number in range(self.config.loop.rounds) if self.trained(number)), default=0)

    def ready(self, number: int) -> None:
        """Make sure that training can go on in round `number`, before anything is sampled or asked."""
        resume.ready(self, number)

    def question(self, key: str, *sides: tuple[Trajectory, ...]) -> Comparison:
        """A question whose sides stand in an order that is drawn at random, from the key and the run's seed."""
        chance = random.Random(f"{self.config.run.seed}/{key}")
        order = list(sides)
        if len(sides) > 2:
            chance.shuffle(order)
        elif chance.random() < 0.5:
            order.reverse()
        a, b, *others = order
        return Comparison(a, b, key=key, others=tuple(others))

    def seed(self, what: str, number: int) -> int:
        """The seed of what is drawn in a phase of a round."""
        return random.Random(f"{self.config.run.seed}/{what}/{number}").getrandbits(40)

    def progress(self, title: str, total: int, transient: bool = False) -> AbstractContextManager[Any]:
        return progress(self.console, title, total, transient) if total else nullcontext(lambda *_: None)
