"""What a run is composed of, and what it knows at any point: settings, domain, store, judges, labels, policies, checkpoints.

What a phase has done is in the store or in a checkpoint, so there is no other state to lose.
"""

import random
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rather.config.schema import Config
from rather.config.toml import mattering
from rather.core import Answered, Comparison, Judge, LabelLearner, Learner, Policy, Trajectory
from rather.errors import ConfigError, TrainingError
from rather.hacking.alarm import Alarm
from rather.hacking.watch import Watch, dismissals, forget, note, noted
from rather.judges.model import ModelJudge
from rather.learners import checkpoint, prequential
from rather.learners.checkpoint import Lineage
from rather.learners.common import drawn
from rather.learners.learner import reporter
from rather.learners.metrics import Metrics, mirrors
from rather.learners.progress import progress
from rather.learners.train import Callback, Feed, train
from rather.pipeline import build, evaluation, spot_checks
from rather.pipeline.answering import Answering, later_than
from rather.pipeline.domain import Domain
from rather.scale import ranks
from rather.settings import REWARDED, UNSUPERVISED, matching
from rather.store import Store
from rather.store.quality import FLAGS

ASIDE = "hacked-"
"""Begins the names of checkpoints that are put aside at an alarm."""


LATER = {
    "train": ("reward", "pessimism", "flagged", "judges", "criterion", "steps"),
    "control": ("keep_critic", "restart", "gold"),
}
"""Settings of the rounds, which say nothing about the exploration before them."""


class State:
    """A run's settings, domain, folder and store, and what can be asked of them."""

    def __init__(self, domain: Domain, console: Console) -> None:
        self.config, self.domain, self.console = domain.config, domain, console
        config, self.folder = self.config, self.config.folder
        elsewhere = [] if ranks.rank() else mirrors(config.log.tensorboard, config.log.wandb, self.folder)
        self.metrics, self.noted = Metrics(self.folder / "metrics.jsonl", elsewhere), set[str]()
        if config.run.threads:
            torch.set_num_threads(config.run.threads)

    @cached_property
    def store(self) -> Store:
        """The preference store."""
        return Store(self.config.store)

    @cached_property
    def answering(self) -> Answering:
        """Who answers the questions."""
        return Answering(self.config, self.store, self.console, self.domain.reader)

    @cached_property
    def answering_training(self) -> Answering:
        """Who answers the questions that are learned from: those whom judge.kind names also where they are to correct verifiers."""
        if build.corrected(self.config):
            return Answering(self.config, self.store, self.console, self.domain.reader, verifiers=False)
        return self.answering

    def note(self, sentence: str) -> None:
        """Print a note, unless it has been printed."""
        if sentence not in self.noted:
            self.noted.add(sentence)
            self.console.print(f"note: {sentence}", markup=False, highlight=False)

    # Questions and answers

    @property
    def judges(self) -> list[Judge]:
        """Who answers, unless it is people."""
        return self.answering.judges

    @property
    def voters(self) -> list[str]:
        """See `Answering.voters`."""
        return self.answering.voters

    def question(self, key: str, *sides: tuple[Trajectory, ...]) -> Comparison:
        """A question whose sides stand in an order that is drawn at random, from the key and the run's seed; one side stands alone."""
        if len(sides) == 1:
            return Comparison(sides[0], (), key=key)
        chance = random.Random(f"{self.config.run.seed}/{key}")
        order = list(sides)
        if len(sides) > 2:
            chance.shuffle(order)
        elif chance.random() < 0.5:
            order.reverse()
        a, b, *others = order
        return Comparison(a, b, key=key, others=tuple(others))

    def have_answered(self, purpose: str) -> None:
        """See `Answering.have_answered`."""
        self.domain.check_shown()
        self.answering.have_answered(purpose)

    def labels(self, number: int, name: str, among: Collection[int] | None = None, kept: bool = False) -> Answered:
        """What round `number` learns from: its own questions, those of the rounds before it, and imported ones; or labels `among` these.

        `name` is that of a learner, or "verify" for what corrects verifiers. `kept`: what is held back from a reward model instead.
        """
        reward, run, t = name == "reward", self.config.run.name, self.config.train

        def wanted(c: Comparison) -> bool:
            return not later_than(number, c) and not (reward and self.held_back(c) != kept) and self.domain.learnable(c)

        out = () if among is not None else self.store.asking(run).leave_out if t.flagged else FLAGS
        each = name in ("reward", "verify")
        found = self.store.answered(run, build.purposes(name), each, among, out, wanted, judges=self.teachers(), criterion=t.criterion)
        return replace(found, comparisons=self.domain.prepared(found.comparisons))

    def teachers(self, coming: Sequence[str] = ()) -> list[str]:
        """The judges of the store, and of those who are `coming`, whose labels are learned from.

        Raises:
            ConfigError: none of them is among train.judges.
        """
        corrected, patterns = build.corrected(self.config), self.config.train.judges
        known = [name for name, kind in self.store.judges().items() if not (corrected and kind == "verifier")]  # not by themselves
        known += [name for name in coming if name not in known]
        found = matching(known, patterns)
        if known and not found:
            raise ConfigError(f"train.judges is {patterns}, but the judges are {', '.join(known)}; name one of them")
        return found

    def held_back(self, comparison: Comparison) -> bool:
        """Whether a question is kept from the reward model, to measure it by."""
        return drawn(self.config.run.seed, comparison.key) < self.config.reward.held_out

    def stays_random(self, key: str) -> bool:
        """Whether a question is one of `query.random_share`: made and asked at random, whatever the strategy."""
        return drawn(self.config.run.seed, f"random/{key}") < self.config.query.random_share

    def evaluation(self, of: str, weights: str, reward_fingerprint: str = "") -> str:
        """The purpose, `of` and eight digits, of what is asked in an evaluation of the policy with these `weights` on held-out tasks.

        `reward_fingerprint` stands for what chooses the answers that it is compared with, if something does.
        """
        return f"{of}-{evaluation.identity(self.config, weights, self.domain.base_files(), self.domain.tasks[1], reward_fingerprint)}"

    # Policies and what trains them

    def checkpoints(self, number: int, name: str = "") -> Path:
        """Where the checkpoints of a round are: those of `train.learner`, or of the learner called `name`."""
        return self.folder / "checkpoints" / f"{(name or self.config.train.learner).replace(':', '-')}-{number}"

    def last(self, number: int) -> Path:
        """The last checkpoint of a round's policy.

        Raises:
            TrainingError: there is none yet.
        """
        found = checkpoint.every(self.checkpoints(number))
        if not found:
            raise TrainingError(f"there is no trained policy in {self.checkpoints(number)} yet; run `rather train` first")
        return found[-1]

    def trained(self, number: int) -> bool:
        """Whether the policy of round `number` has begun to learn."""
        return bool(checkpoint.every(self.checkpoints(number)))

    @property
    def begun(self) -> int:
        """The last round whose policy has begun to learn, or the first one."""
        return max((number for number in range(self.config.loop.rounds) if self.trained(number)), default=0)

    def policy(self, number: int) -> Policy:
        """The policy at the beginning of round `number`: what the round before ended with, or the base policy.

        That it is in the first round, unless it has explored before, and in all of them where a reward model alone is trained.

        Raises:
            TrainingError: the round before, or exploration, has no checkpoint.
        """
        folder = self.before(number)
        if folder is None or self.config.train.learner == "reward":
            return self.domain.base_policy
        last, ended = checkpoint.every(folder), f"{number - 1}" if number else UNSUPERVISED
        if not last:
            what, command = (f"round {ended}", "train") if number else ("unsupervised exploration", "sample")
            raise TrainingError(f"{what} has no checkpoint in {folder}; run `rather {command}` first")
        return self.domain.restored(last[-1] / "model", f"{self.config.run.name}@{ended}-{checkpoint.check(last[-1])['step']}")

    def before(self, number: int) -> Path | None:
        """Where the checkpoints are that round `number` goes on from: those of the round before, or of unsupervised exploration.

        None where it begins with the base policy.
        """
        if number:
            return self.checkpoints(number - 1)
        return self.checkpoints(0, UNSUPERVISED) if self.config.control.unsupervised_steps else None

    def reward_before(self, number: int) -> ModelJudge | None:
        """The reward model of the round before, which knows what it would like to be told; None if there was none."""
        saved = checkpoint.every(self.checkpoints(number - 1, "reward")) if number else []
        return ModelJudge("reward", self.domain.reward_model(saved[-1]), self.config.train.micro_batch_tokens) if saved else None

    def learner(self, number: int, name: str, data: Answered, steps: int) -> LabelLearner:
        """What learns from labels, for so many steps.

        Raises:
            TrainingError: there are no labels.
        """
        if not data.comparisons:
            remedy = "run `rather label`, `rather serve` or `rather import` first (labels of single answers are learned from by kto alone)"
            raise TrainingError(f"the run has no labels to learn from; {remedy}")
        if number and name != "reward":
            self.policy(number)
        return self.domain.learner(name, data, steps, self.store)

    def lineage(self, name: str, data: Answered, steps: int, config: Config | None = None, number: int = 0) -> Lineage:
        """What the learner called `name` makes its checkpoints from, which have `steps` steps in the end; 0: as many as will come.

        `config` are the settings of round `number`, if they are not those of the run.
        """
        use = self.config.train.learner if name == UNSUPERVISED else name
        kept, defaults = mattering(config or self.config, use), mattering(type(self.config)(), use)
        if name == self.config.train.learner and self.corrects_verifiers(number):  # by states that are read, too
            kept["reward"] = defaults["reward"] = {"layers": self.config.reward.layers}
        if name == UNSUPERVISED:
            for sections in (kept, defaults):
                sections |= {section: {k: v for k, v in sections[section].items() if k not in LATER[section]} for section in LATER}
        own = {"_steps": steps, "_contents": self.contents(kept)}
        return Lineage(kept | own, data.watermark, data.labels, defaults=defaults)

    def contents(self, sections: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Digests of what some of the settings that matter to a training name, by setting: what the domain reads, and the reward model."""
        found, saved = self.domain.contents(sections), self.config.judge.checkpoint
        if saved and "checkpoint" in sections.get("judge", {}) and Path(saved).is_dir():
            there = Path(saved, "manifest.json").exists()
            found["judge.checkpoint"] = checkpoint.digest(Path(saved)) if there else evaluation.fingerprint(Path(saved))
        return found

    def learn(
        self,
        learner: Learner,
        name: str,
        number: int,
        steps: int,
        lineage: Lineage,
        feed: Feed | None = None,
        open_: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> Path:
        """Take `learner` to `steps` steps, which a bar shows if they are known; `open_`: or as far as `feed` goes."""
        t, folder, phase = self.config.train, self.checkpoints(number, name), f"train-{name}-{number}"
        then = self.config.hack.then if name in REWARDED else "nothing"
        watch, again = None, (learner, name, number, steps, lineage, feed, open_, callbacks)
        begun = checkpoint.every(folder)
        if name in REWARDED:
            forget(folder)  # it goes on
            if not begun:
                for checked in {row["phase"] for row in self.metrics.read() if row["phase"].startswith(f"spot-{number}-")}:
                    self.metrics.rewind(checked, -1)  # of a training that was put aside
        if then != "nothing":
            at = checkpoint.read(begun[-1])["step"] if begun else 0
            before = [self.metrics.read(f"train-{name}-{earlier}") for earlier in range(number)]
            dismissed = dismissals(self.metrics.read(), number + 1)
            watch = Watch([*before, [row for row in self.metrics.read(phase) if row["step"] <= at]], self.proxy, dismissed)
            if watch.raised is not None:  # it was killed before that was noted
                return self._end(folder, watch.raised) if self._confirmed(number, folder, watch.raised) else self.learn(*again)
            callbacks = [*callbacks, watch]
            if self.config.hack.compares and not begun:  # gold may be best where it was
                checkpoint.save(folder, 0, learner, lineage, 0)
        with progress(self.console, f"training {name}", steps) as advance:
            upto, say = sys.maxsize if open_ else steps, reporter(name, advance)
            keep = 0 if watch is not None and self.config.hack.compares else t.keep
            last = train(learner, upto, folder, lineage, self.metrics, phase, t.checkpoint_every, keep, say, feed, callbacks)
        if watch is not None and watch.raised is not None:
            return self._end(folder, watch.raised) if self._confirmed(number, folder, watch.raised) else self.learn(*again)
        if ranks.rank() == 0:
            forget(folder)
            for old in checkpoint.every(folder)[: -t.keep]:
                shutil.rmtree(old)
        if foreseen := prequential.last_sentence(self.metrics.read(phase)):
            self.console.print(f"{foreseen}.", markup=False, highlight=False)
        return last

    def _confirmed(self, number: int, folder: Path, alarm: Alarm) -> bool:
        """Whether an alarm stands: where it has no gold reward to go by and hack.checks are asked for, they decide."""
        if alarm.gold is not None or not self.config.hack.checks:
            return True
        check = spot_checks.check(self, number, folder, alarm)
        return check is None or check.confirmed

    @property
    def proxy(self) -> str:
        """The key of the reward that the policy is trained on, among the metrics."""
        return "return" if self.config.train.reward == "environment" else "score"

    def ended(self, number: int) -> Path | None:
        """The last checkpoint of a round whose training an alarm has ended, if one has and `hack.then` says so."""
        if (alarm := self.alarm(number)) is None:
            return None
        self._say_ended(alarm, self.last(number))
        return self.last(number)

    def alarm(self, number: int) -> Alarm | None:
        """The alarm that has ended a round's training, if `hack.then` says so."""
        folder, newest = self.checkpoints(number), checkpoint.every(self.checkpoints(number))[-1:]
        return noted(folder, checkpoint.read(newest[0])["step"]) if newest and self.config.hack.then != "nothing" else None

    def mends(self, number: int) -> bool:
        """Whether round `number` mends the reward, since an alarm has ended the one before."""
        return number > 0 and self.config.hack.then == "mend" and self.alarm(number - 1) is not None

    def corrects_verifiers(self, number: int) -> bool:
        """Whether comparisons correct the verifiers of round `number`: in the round after the first alarm, and from then on."""
        return build.corrected(self.config) and any(self.mends(earlier) for earlier in range(1, number + 1))

    def check_mends(self, number: int) -> None:
        """Make sure that round `number` can mend.

        Raises:
            ConfigError: the round before has stopped at its alarm, and not gone back.
        """
        alarm = self.alarm(number - 1) if self.mends(number) else None
        if alarm is not None and (step := checkpoint.read(self.last(number - 1))["step"]) > alarm.best:
            what = f"round {number - 1} has ended at its alarm, with the policy of step {step}, and has not gone back"
            raise ConfigError(f'hack.then is "mend", but {what}; take that as it is with hack.then = "stop", or train with --fresh')

    def hacked(self, number: int) -> Path | None:
        """The last policy of round `number` before its alarm, where that is to be mended and the training has gone back."""
        return max(self.checkpoints(number).glob(f"{ASIDE}*"), default=None) if self.mends(number + 1) else None

    def settings(self, number: int) -> Config:
        """The settings of round `number`: after an alarm that is to be mended the reward is trusted less, and the base policy more."""
        c, h = self.config, self.config.hack
        if not (self.mends(number) or self.corrects_verifiers(number)):
            return c
        train = c.train.model_copy(update={"pessimism": max(c.train.pessimism, h.pessimism)})
        ppo, grpo = (section.model_copy(update={"kl": max(section.kl, h.kl)}) for section in (c.ppo, c.grpo))
        return c.model_copy(update={"train": train, "ppo": ppo, "grpo": grpo})

    def _end(self, folder: Path, alarm: Alarm) -> Path:
        """Let a training have ended at an alarm, or at the last checkpoint before gold was best; returns the checkpoint.

        Those after it are put aside, as hacked-step-*.
        """
        found = checkpoint.every(folder)
        kept = found
        if self.config.hack.goes_back:
            kept = [path for path in found if checkpoint.read(path)["step"] <= alarm.best]
            if not kept:
                self.console.print(f"No checkpoint of step {alarm.best} or before it is left, so that it does not go back.", markup=False)
                kept = found
        if ranks.rank() == 0:
            for path in found:
                if path not in kept:
                    shutil.rmtree(folder / f"{ASIDE}{path.name}", ignore_errors=True)  # of a training that was killed before it was noted
                    path.rename(folder / f"{ASIDE}{path.name}")
                elif path not in kept[-self.config.train.keep :]:
                    shutil.rmtree(path)
            note(folder, alarm, checkpoint.read(kept[-1])["step"])
        ranks.wait()
        self._say_ended(alarm, kept[-1])
        return kept[-1]

    def _say_ended(self, alarm: Alarm, last: Path) -> None:
        step = checkpoint.read(last)["step"]
        self.console.print(f"{alarm}. The training has ended, with the policy of step {step}.", markup=False, highlight=False)

    def close(self) -> None:
        """Let go of the store, and of verifiers' processes; what is asked of the run later takes them up again."""
        for name in {"answering", "answering_training"} & self.__dict__.keys():
            getattr(self, name).close()
        if "store" in self.__dict__:
            self.store.close()
