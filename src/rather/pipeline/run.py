"""A run, phase by phase: sample answers, have them compared, learn, evaluate; each goes on where it was stopped."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rather.config import toml as toml
from rather.config.schema import Config
from rather.core import Answered
from rather.errors import ConfigError, RatherError
from rather.learners import checkpoint
from rather.pipeline import build, exploits, exploring, held_out, live, nudge, resume, rewards
from rather.pipeline.domain import domain_of
from rather.pipeline.lock import exclusive
from rather.pipeline.state import State
from rather.pipeline.terminal import Terminal
from rather.scale import ranks
from rather.settings import REWARDED
from rather.store.rows import LEARNED

if TYPE_CHECKING:
    from rather.report.report import Report


class Run(State):
    """A run and its phases, as the command line has them.

    `settings` is the run's TOML file, or settings that are loaded already; `changes` are settings to change, by `section.key`, so that
    `Run("run.toml", **{"train.lr": 1e-4}).loop()` does what `rather loop run.toml train.lr=1e-4` does. What a phase has done is in the
    run's folder: another Run of the same name goes on from there.

    Raises:
        ConfigError: the file is missing, a setting is not known or its value is wrong; or torchrun has started several ranks, and this is
            not something that they can share.
    """

    def __init__(self, settings: str | Path | Config, console: Console | None = None, **changes: object) -> None:
        config = toml.load(settings, changes)
        console = Terminal(force_jupyter=None if find_spec("ipywidgets") else False) if console is None else console
        domain = domain_of(config, console)
        if ranks.wanted() > 1 and not (domain.parallel and config.train.learner != "zeroth" and config.judge.kind != "people"):
            what = "on text, with a learner other than zeroth, and not while people answer"
            raise ConfigError(f"several ranks can train {what}; start this in one process")
        if ranks.wanted() > ranks.count():
            raise ConfigError("torchrun has started several ranks, which `rather train` alone can use; start this in one process")
        super().__init__(domain, console)

    def ready(self, number: int) -> None:
        """Make sure that training can go on in round `number`, before anything is sampled or asked."""
        resume.ready(self, number)

    @exclusive
    def sample(self, number: int = 0) -> int:
        """What the newest policy does becomes the round's questions; returns how many are new."""
        self.ready(number)
        exploring.explore(self)
        name, count = self.config.run.name, 0
        resume.note_sampling(self, number, sum(key.startswith(f"round-{number}/") for key in self.store.keys(name, LEARNED)))
        for chosen in self.domain.questions(self, number):
            self.store.ask(name, chosen.questions, build.purpose(self.config), why=chosen.why, scores=chosen.scores)
            resume.keep_sampling(self, number, len(chosen.questions), chosen.wanted)
            count += len(chosen.questions)
        self.domain.show(self.store)
        return count

    def label(self, purpose: str = "") -> int:
        """Have every open question of a purpose answered, or of the run's own; returns how many answers are new.

        Raises:
            TrainingError: verifiers answer, and judged nothing.
            ConfigError: nobody who answers is among train.judges.
        """
        self.domain.check_shown()
        if purpose in ("", "train"):
            self.ready(self.begun)
        answering = self.answering_training if purpose in ("", "train") else self.answering
        if purpose in ("", "train"):
            self.teachers(answering.voters)
        return answering.label(purpose or build.purpose(self.config))

    @exclusive
    def train(self, number: int = 0) -> Path:
        """Learn from the labels there are, or from the policy's rollouts and their rewards; returns the last checkpoint."""
        resume.ready_to_learn(self)
        match self.config.train.learner:
            case name if name in REWARDED:
                return self._improve(number)
            case "zeroth":
                return nudge.fit(self, number)
            case name:
                return self._fit(number, name)

    def _fit(self, number: int, name: str) -> Path:
        """Train the learner called `name` on the labels there are, or while people answer."""
        return (live if self.config.judge.kind == "people" else resume).fit(self, number, name)

    def _improve(self, number: int) -> Path:
        """Train the policy on rewards of its rollouts: of verifiers, or of a reward model, which is trained first if need be."""
        if (ended := self.ended(number)) is not None:
            self._exploited(number)
            return ended
        name, labels = self.config.train.learner, self.config.train.reward == "labels"
        stage = resume.last(self.checkpoints(number))
        self.ready(number)
        reward_folder, data = Path(self.config.judge.checkpoint), Answered([])
        began_before = stage is not None and not checkpoint.finished(stage)  # more may have been asked for since
        if labels:
            # A policy in the middle goes on with the reward model that it began with.
            reward = checkpoint.every(self.checkpoints(number, "reward")) if began_before else []
            reward_folder = reward[-1] if reward else self._fit(number, "reward")
            manifest = checkpoint.check(reward_folder)
            data = Answered([], manifest["watermark"], manifest["labels"])
        elif self.corrects_verifiers(number):
            data = rewards.corrections(self, number, {*stage["labels"]} if stage and began_before else None)
        steps = resume.steps_of_policy(stage, build.steps(self.config, name, len(self.domain.tasks[0])), data.labels)
        if stage and stage["step"] >= steps:
            return checkpoint.every(self.checkpoints(number))[-1]
        exploring.explore(self)
        config = self.settings(number)
        reward_fn = rewards.reward_fn(self, number, reward_folder, data)
        try:
            policy, folder = self.policy(number), self.before(number)
            before = None if folder is None else checkpoint.every(folder)[-1]
            learner = self.domain.improver(number, policy, reward_fn, steps, config, before)
            last = self.learn(learner, name, number, steps, self.lineage(name, data, steps, config, number))
        finally:
            rewards.close(self, reward_fn)
        self._exploited(number)
        return self._improve(number) if began_before and checkpoint.finished(checkpoint.read(last)) else last

    def _exploited(self, number: int) -> None:
        """Keep examples of what was exploited, if an alarm has ended the training; where they cannot be had it goes on without."""
        if (alarm := self.alarm(number)) is None:
            return
        try:
            exploits.remember(self, number, alarm)
        except (RatherError, OSError) as e:
            self.console.print(f"There are no examples of what was exploited: {e}", markup=False, highlight=False)

    @exclusive
    def evaluate(self, number: int = 0) -> str | None:
        """Compare the policy with the one that started the run on held-out tasks; returns how it did, in words."""
        return held_out.compare(self, number)

    @exclusive
    def loop(self) -> str | None:
        """Sample, label, train and evaluate, round after round; returns how the last policy did, in words."""
        result, rounds, first = None, self.config.loop.rounds, self.begun  # a round that a later one has come from stays as it is
        self.ready(first)
        if self.config.train.learner != "reward":
            held_out.check_tasks(self)
        if build.asks_first(self.config):
            _ = self.answering_training.judges  # one that cannot be made is noticed now
        for number in range(first, rounds):
            if build.asks_first(self.config) or self.mends(number):
                self.sample(number)
                self.label()
                self.answering_training.check_none_left(build.purpose(self.config))
            self.train(number)
            last = number == rounds - 1
            if self.config.train.learner != "reward" and (last or self.answering.kind != "people"):
                result = self.evaluate(number)
        return result

    def report(self) -> "Report":
        """The run's report: win rate, learning curves, agreement and example answers on one page, which a notebook shows."""
        from rather.report.report import Report  # here, since plotting takes long to import

        return Report.of(self)
