"""A run, phase by phase: sample answers, have them compared, learn, evaluate; each goes on where it was stopped.

What a phase has done is in the store or in a checkpoint, so there is no other state to lose.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rather import build, checkpoint, exchange
from rather.checkpoint import Lineage
from rather.config import Config
from rather.core import Answered, Comparison, Label, Task, Trajectory
from rather.errors import ConfigError, TrainingError
from rather.evaluate import Rate, calibration, win_rate
from rather.judges import people
from rather.judges.model import ModelJudge
from rather.metrics import Metrics, mirrors
from rather.store import Store
from rather.train import Stopped, train

CHUNK = 64
"""Answers that are drawn, or questions that are judged, between two commits to the store."""


class Run:
    """One run: its settings, its folder and its store."""

    def __init__(self, config: Config, console: Console) -> None:
        self.config, self.console = config, console
        self.folder = config.folder
        self.metrics = Metrics(self.folder / "metrics.jsonl", mirrors(config.log.tensorboard, config.log.wandb, self.folder))
        if config.run.threads:
            torch.set_num_threads(config.run.threads)

    @cached_property
    def store(self) -> Store:
        """The preference store."""
        return Store(self.config.store)

    @cached_property
    def tasks(self) -> tuple[list[Task], list[Task]]:
        """Training and held-out tasks."""
        d = self.config.data
        train_tasks, held_out = exchange.read_tasks(d.prompts, d.column, d.held_out)
        return train_tasks[: d.limit or None], held_out[: self.config.eval.prompts or None]

    @cached_property
    def start(self) -> Any:
        """The model that starts the run."""
        with self.console.status(f"loading {self.config.model.path}"):
            return build.start_policy(self.config)

    @cached_property
    def judges(self) -> list[Any]:
        """Who answers, unless it is people."""
        found = build.judges(self.config)
        for judge in found:
            self.store.add_judge(judge.name, judge.kind)
        return found

    # Phases

    def sample(self, number: int = 0) -> int:
        """Two answers of the newest policy to each training prompt become a question; returns how many questions are new."""
        tasks = self.tasks[0]
        have = self.store.keys(self.config.run.name, "train")
        missing = [t for t in tasks if f"round-{number}/{t.key}" not in have]
        if not missing:
            return 0
        policy = self.policy(number)
        with self._progress("sampling answers", 2 * len(missing)) as advance:
            sampler = build.sampler(self.config, policy, advance)
            for start in range(0, len(missing), CHUNK // 2):
                chunk = missing[start : start + CHUNK // 2]
                answers = sampler.sample([t for t in chunk for _ in range(2)], self._seed("sample", number))
                pairs = zip(answers[0::2], answers[1::2], strict=True)
                self.store.ask(self.config.run.name, [self._pair(f"round-{number}/{a.task.key}", a, b) for a, b in pairs])
        return len(missing)

    def label(self, purpose: str = "train") -> int:
        """Have every open question answered; returns how many answers are new."""
        if self.config.judge.kind == "people":
            j = self.config.judge
            return people.ask(self.store, self.config.run.name, j.name, purpose, j.instruction, self.console)
        count = 0
        for judge in self.judges:
            questions = self.store.questions(self.config.run.name, purpose, unanswered_by=judge.name)
            with self._progress(f"{judge.name} compares", len(questions)) as advance:
                for start in range(0, len(questions), CHUNK):
                    chunk = questions[start : start + CHUNK]
                    answers = judge.judge([q.comparison for q in chunk])
                    labels = [Label(q.id, judge.name, p) for q, p in zip(chunk, answers, strict=True)]
                    self.store.answer_all(labels)
                    advance(len(chunk))
            count += len(questions)
        return count

    def train(self, number: int = 0) -> Path:
        """Learn from the labels there are; returns the last checkpoint."""
        c = self.config
        folder = self.checkpoints(number)
        found = checkpoint.every(folder)
        upto = None
        if found and (manifest := checkpoint.check(found[-1]))["step"] < manifest["settings"]["_steps"]:
            upto = manifest["watermark"]  # go on with the labels that the run began with
        data = self._labels(number, upto)
        steps = build.steps(c, len(data.comparisons))
        lineage = Lineage(self._trained_with() | {"_steps": steps}, data.watermark, data.labels)
        if found and checkpoint.check(found[-1])["step"] >= steps:
            checkpoint.check_same(found[-1], lineage)
            return found[-1]
        trained, parameters = self._trainee(number)
        with self._progress("scoring with the reference", len(data.comparisons)) as advance:
            learner = build.learner(c, self.start, trained, parameters, data, advance)
        with self._progress(f"training {c.train.learner}", steps) as advance:
            at = 0

            def report(step: int, values: dict[str, float]) -> None:
                nonlocal at
                shown = "  ".join(f"{k} {values[k]:.3f}" for k in ("loss", "accuracy") if k in values)
                advance(step - at, f"training {c.train.learner}  {shown}")
                at = step

            phase = f"train-{c.train.learner}-{number}"
            every, keep = c.train.checkpoint_every, c.train.keep
            last = train(learner, steps, folder, lineage, self.metrics, phase, every, keep, report)
        if c.train.learner == "reward":
            self._evaluate_reward(learner.model, steps)
        else:
            self.__dict__.pop("_newest", None)
        return last

    def evaluate(self, number: int = 0) -> Rate | None:
        """Compare the policy with the model that started the run on held-out prompts; returns its win rate.

        None while people have not answered yet.
        """
        c, tasks = self.config, self.tasks[1]
        if not tasks:
            raise ConfigError("there are no held-out prompts; set data.held_out or add a split column to the prompt file")
        last = checkpoint.every(self.checkpoints(number))
        if not last:
            raise TrainingError(f"there is no trained policy in {self.checkpoints(number)} yet; run `rather train` first")
        step, digest = checkpoint.check(last[-1])["step"], checkpoint.digest(last[-1])
        purpose = f"eval-{number}-{step}-{digest}"
        have = self.store.keys(c.run.name, purpose)
        asked = [(t, i) for t in tasks for i in range(c.eval.answers)]
        missing = [(t, i) for t, i in asked if f"{purpose}/{t.key}/{i}" not in have]
        name = f"{c.run.name}@{number}-{step}-{digest}"
        if missing:
            drawn = []
            with self._progress("answering held-out prompts", 2 * len(missing)) as advance:
                for policy, seed in ((self.policy(number + 1), "eval"), (self.start, "eval-start")):
                    sampler = build.sampler(c, policy, advance)
                    drawn.append(sampler.sample([t for t, _ in missing], self._seed(seed, number)))
            named = [_renamed(t, name) for t in drawn[0]]
            starts = [_renamed(t, f"{c.run.name}@start") for t in drawn[1]]
            both = zip(missing, named, starts, strict=True)
            self.store.ask(c.run.name, [self._pair(f"{purpose}/{t.key}/{i}", a, b) for (t, i), a, b in both], purpose)
        self.label(purpose)
        answered = self.store.answered(c.run.name, purpose).comparisons
        if not answered:
            return None
        result = win_rate(answered, name)
        self.metrics.rewind(f"eval-{number}", -1)
        lengths = {f"length_{who}": _words(answered, who == "policy", name) for who in ("policy", "start")}
        values = {"win_rate": result.mean, "win_rate_low": result.low, "win_rate_high": result.high, "prompts": result.count}
        self.metrics.write(f"eval-{number}", step, values | lengths, checkpoint=digest)
        return result

    def loop(self) -> Rate | None:
        """Sample, label, train and evaluate, round after round; returns the last win rate."""
        result = None
        for number in range(self.config.loop.rounds):
            self.sample(number)
            self.label()
            self._wait_for_people("train")
            self.train(number)
            if self.config.train.learner != "reward":
                result = self.evaluate(number)
        return result

    def _wait_for_people(self, purpose: str) -> None:
        """Stop while a person still has questions to answer: what is learnt next should know all their answers."""
        j = self.config.judge
        if j.kind == "people" and (left := self.store.questions(self.config.run.name, purpose, unanswered_by=j.name)):
            raise Stopped(f"{len(left)} questions are open; the answers so far are kept, and the same command goes on from there")

    # What the phases share

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

    def checkpoints(self, number: int) -> Path:
        """Where the checkpoints of a round are."""
        return self.folder / "checkpoints" / f"{self.config.train.learner}-{number}"

    @cached_property
    def _adapted(self) -> tuple[Any, Any]:
        if self.config.model.train == "full":  # the start must stay what it is
            return build.trained_policy(self.config, build.start_policy(self.config))
        return build.trained_policy(self.config, self.start)

    def _trainee(self, number: int) -> tuple[Any, Any]:
        if self.config.train.learner == "reward":
            start = self.start if self.config.model.train == "lora" else build.start_policy(self.config)
            return build.trained_policy(self.config, start, "reward")
        if number:
            self.policy(number)
        return self._adapted

    def _labels(self, number: int, upto: int | None) -> Answered:
        """What round `number` learns from: its own questions, those of the rounds before it, and imported ones."""
        reward = self.config.train.learner == "reward"
        later = re.compile(r"round-(\d+)/")

        def wanted(comparison: Comparison) -> bool:
            found = later.match(comparison.key)
            return not (found and int(found[1]) > number) and not (reward and self._held_back(comparison))

        return self.store.answered(self.config.run.name, "train", reward, upto, self.config.train.flagged, wanted)

    def _held_back(self, comparison: Comparison) -> bool:
        digest = hashlib.sha256(f"{self.config.run.seed}/{comparison.key}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48 < self.config.reward.held_out

    def _evaluate_reward(self, model: Any, step: int) -> None:
        """Accuracy and calibration on the questions that were held back, and how far the score follows length."""
        held = self.store.answered(self.config.run.name, "train", only=self._held_back).comparisons
        if not held:
            return
        judge = ModelJudge("reward", model)
        scored = judge.scores(held)
        a, b = (torch.cat([pair[i].mean(0) for pair in scored]) for i in (0, 1))
        preferences = [c.preference for c in held if c.preference is not None]
        result = calibration(torch.sigmoid(a - b).tolist(), preferences)
        words = torch.tensor([float(len((t.text or "").split())) for side in "ab" for c in held for t in getattr(c, side)[:1]])
        correlation = torch.corrcoef(torch.stack([torch.cat([a, b]).cpu(), words]))[0, 1].item()
        self.metrics.rewind("reward-eval", -1)
        values = {
            "accuracy": result.accuracy.mean, "accuracy_low": result.accuracy.low, "accuracy_high": result.accuracy.high,
            "questions": result.accuracy.count, "calibration_error": result.error, "length_correlation": correlation,
        }  # fmt: skip
        self.metrics.write("reward-eval", step, values)
        for mean, share, count in result.bins:
            self.metrics.write("calibration", step, {"predicted": mean, "observed": share, "count": count})
        self.console.print(f"The reward model orders held-out questions right in {result.accuracy}.")

    def _trained_with(self) -> dict[str, Any]:
        """The settings that a resumed training must share."""
        dump = self.config.model_dump()
        t = {k: v for k, v in dump["train"].items() if k not in ("checkpoint_every", "keep")}
        kept = {k: dump[k] for k in ("model", "dpo", "reward", "sample")}
        return kept | {"train": t, "run": {"seed": dump["run"]["seed"]}}

    def _pair(self, key: str, a: Trajectory, b: Trajectory) -> Comparison:
        """A question whose side a is drawn at random, from the key and the run's seed."""
        if random.Random(f"{self.config.run.seed}/{key}").random() < 0.5:
            a, b = b, a
        return Comparison((a,), (b,), key=key)

    def _seed(self, what: str, number: int) -> int:
        return random.Random(f"{self.config.run.seed}/{what}/{number}").getrandbits(40)

    @contextmanager
    def _progress(self, title: str, total: int) -> Iterator[Any]:
        if not total:
            yield lambda *_: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(title, total=total)

            def advance(count: int, description: str | None = None) -> None:
                bar.update(task, advance=count, description=description)

            yield advance


def _renamed(trajectory: Trajectory, policy: str) -> Trajectory:
    return replace(trajectory, policy=policy)


def _words(comparisons: Sequence[Comparison], of_policy: bool, name: str) -> float:
    """Mean words of the answers of the policy, or of the start."""
    sides = [c.a[0] if (c.a[0].policy == name) == of_policy else c.b[0] for c in comparisons]
    return sum(len((t.text or "").split()) for t in sides) / len(sides)
