"""Spot checks: where an alarm has no gold reward to go by, whoever judges compares answers of now with those of the best checkpoint."""

from functools import cached_property
from pathlib import Path
from typing import Protocol

from rich.console import Console

from rather.config.schema import Config
from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError
from rather.hacking.alarm import Alarm
from rather.hacking.sequential import verdict
from rather.hacking.spot_check import SpotCheck
from rather.learners import checkpoint
from rather.learners.metrics import Metrics
from rather.learners.train import Stopped
from rather.pipeline import build
from rather.pipeline.answering import Answering
from rather.pipeline.domain import Domain
from rather.scale import ranks
from rather.store import Store

TOGETHER = 8
"""Questions that are put before the judges at a time."""


class Checked(Protocol):
    """The run that is checked."""

    config: Config
    console: Console
    domain: Domain
    metrics: Metrics

    @cached_property
    def store(self) -> Store:
        """The preference store."""
        ...

    def question(self, key: str, *sides: tuple[Trajectory, ...]) -> Comparison:
        """A question whose sides stand in an order that is drawn at random."""
        ...

    def evaluation(self, of: str, weights: str) -> str:
        """The purpose of what is asked about a policy with these weights."""
        ...


def check(run: Checked, number: int, folder: Path, alarm: Alarm) -> SpotCheck | None:
    """Have answers of the last checkpoint in `folder` compared with those of the one that the alarm names, until it is sure who is better.

    At most hack.checks comparisons, some at a time. What was answered before the run was stopped is not asked again. The run's metrics keep
    the result (see `hacking.watch.dismissals`). None where no earlier checkpoint is left.

    Raises:
        Stopped: people have not answered all questions yet.
        CheckpointError: a checkpoint is damaged.
    """
    c, found = run.config, checkpoint.every(folder)
    earlier = [path for path in found[:-1] if checkpoint.read(path)["step"] <= alarm.best][-1:] or found[:-1][:1]
    if not earlier:
        run.console.print("No earlier checkpoint is left to compare with.", markup=False)
        return None
    policies = [found[-1], *earlier]
    step, of = (checkpoint.read(path)["step"] for path in policies)
    purpose = run.evaluation(f"spot-{number}-{step}", checkpoint.digest(found[-1]))
    names = [f"{c.run.name}@{number}-{n}" for n in (step, of)]
    answering = Answering(c, run.store, run.console, run.domain.reader, verifiers=False)
    tasks = run.domain.tasks[0][: c.hack.checks]
    run.console.print(f"{alarm}. Up to {len(tasks)} spot checks follow.", markup=False, highlight=False)
    result, asked = verdict([]), 0
    for start in range(0, len(tasks), TOGETHER):
        some = tasks[start : start + TOGETHER]
        asked += len(some)
        _ask(run, purpose, some, policies, names)
        answering.have_answered(purpose)
        result = verdict(_preferences(run, purpose, names[0], answering.voters))
        if result.result != "unsure":
            break
        if c.judge.kind == "people" and (left := answering.wanted(purpose)):
            raise Stopped(f"{left} spot checks are open; the answers so far are kept, and the same command goes on from there")
    answering.close()
    run.domain.restored(found[-1] / "model", names[0])  # of the trained policy there is one
    checked = SpotCheck(number, alarm.step, step, of, result)
    run.metrics.replace(checked.phase, step, checked.values, of=of, result=result.result)
    silent = asked - result.comparisons
    unanswered = f"; {silent} questions had no answer" if silent > 0 and result.result == "unsure" else ""
    run.console.print(f"{checked}, {len(tasks) - asked} not needed{unanswered}.", markup=False, highlight=False)
    return checked


def _ask(run: Checked, purpose: str, tasks: list[Task], policies: list[Path], names: list[str]) -> None:
    """Put questions about an answer of each policy to some prompts into the store, unless they are there."""
    have = run.store.keys(run.config.run.name, purpose)
    missing = [t for t in tasks if f"{purpose}/{t.key}" not in have]
    if not missing:
        return
    sides = list[list[tuple[Trajectory, ...]]]()
    for path, name, seed in zip(policies, names, ("spot", "spot-then"), strict=True):
        sampler = run.domain.sampler(run.domain.restored(path / "model", name), lambda n: None)
        sides.append([(t,) for t in sampler.sample(missing, build.seed(run.config, seed, 0))])
    questions = [run.question(f"{purpose}/{t.key}", a, b) for t, a, b in zip(missing, *sides, strict=True)]
    run.store.ask(run.config.run.name, questions, purpose)


def _preferences(run: Checked, purpose: str, now: str, voters: list[str]) -> list[float]:
    """P(the policy called `now` is better) (n,), in the order of the questions."""
    answered = run.store.answered(run.config.run.name, purpose, judges=voters or None).comparisons
    return [c.preference if c.a[0].policy == now else 1 - c.preference for c in answered if c.preference is not None]


def check_settings(run: Checked) -> None:
    """Make sure that spot checks can be asked for.

    Raises:
        ConfigError: nothing calls for them, nobody can be asked, or there are fewer prompts than comparisons.
    """
    c = run.config
    if not c.hack.checks:
        return
    if c.hack.then == "nothing" or c.hack.gold or c.control.env:
        why = "on text, at an alarm without a gold reward"
        raise ConfigError(
            f"hack.checks = {c.hack.checks} are asked for {why}; set hack.then, leave hack.gold empty, or set hack.checks to 0"
        )
    if (have := len(run.domain.tasks[0])) < c.hack.checks:
        raise ConfigError(f"hack.checks is {c.hack.checks}, each about another training prompt, and there are {have}; ask fewer")
    if ranks.wanted() > 1:
        raise ConfigError("hack.checks are asked for in one process; start it without torchrun, or set hack.checks to 0")
