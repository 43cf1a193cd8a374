"""Spot checks: where an alarm has no gold reward to go by, whoever judges compares answers of now with those of the best checkpoint."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from rich.console import Console

from rather.config.schema import Config
from rather.core import Comparison, Task, Trajectory
from rather.errors import CheckpointError, ConfigError
from rather.hacking.alarm import Alarm
from rather.hacking.sequential import Verdict, verdict
from rather.learners import checkpoint
from rather.learners.metrics import Metrics
from rather.pipeline import build
from rather.pipeline.answering import Answering
from rather.pipeline.domain import Domain
from rather.store import Store

NOTE = "spot-checks.json"
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


@dataclass(frozen=True)
class SpotCheck:
    """Comparisons at step `step` with the policy of step `of`, and what they came to; an `alarm` that they confirm ends the training."""

    step: int
    of: int
    verdict: Verdict

    @property
    def confirmed(self) -> bool:
        """Whether the policy has become worse."""
        return self.verdict.says == "worse"

    def __str__(self) -> str:
        found = {"worse": "worse than", "no worse": "no worse than", "unsure": "not clearly better or worse than"}[self.verdict.says]
        v = self.verdict
        return (
            f"spot check: the policy of step {self.step} is {found} that of step {self.of} ({v.wins:g} of {v.comparisons} comparisons won)"
        )


def noted(folder: Path) -> list[SpotCheck]:
    """The spot checks of a training, whose checkpoints are in `folder`.

    Raises:
        CheckpointError: the note of them is damaged.
    """
    path = folder / NOTE
    if not path.exists():
        return []
    try:
        return [SpotCheck(row["step"], row["of"], Verdict(**row["verdict"])) for row in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}); delete it, and what was compared is looked at again") from None


def note(folder: Path, checks: list[SpotCheck]) -> None:
    """Keep the spot checks of a training beside its checkpoints."""
    temporary = folder / f".{NOTE}"
    temporary.write_text(json.dumps([asdict(check) for check in checks], indent=1))
    temporary.replace(folder / NOTE)


def check(run: Checked, number: int, folder: Path, alarm: Alarm) -> SpotCheck:
    """Have answers of the last checkpoint in `folder` compared with those of the one that the alarm names, until it is sure who is better.

    At most hack.checks comparisons, some at a time. What was answered before the run was stopped is not asked again.

    Raises:
        Stopped: the person at the terminal has had enough for now.
        ConfigError: there are fewer training prompts than comparisons.
    """
    c, found = run.config, checkpoint.every(folder)
    then = [path for path in found if checkpoint.read(path)["step"] <= alarm.best][-1:] or found[:1]
    steps = [checkpoint.read(path)["step"] for path in (found[-1], then[0])]
    purpose = run.evaluation(f"spot-{number}-{steps[0]}", checkpoint.digest(found[-1]))
    names = [f"{c.run.name}@{number}-{step}" for step in steps]
    answering = Answering(c, run.store, run.console, run.domain.reader, verifiers=False)
    tasks = run.domain.tasks[0][: c.hack.checks]
    run.console.print(f"{alarm}. Up to {len(tasks)} spot checks follow.", markup=False, highlight=False)
    result = verdict([])
    for start in range(0, len(tasks), TOGETHER):
        some = tasks[start : start + TOGETHER]
        _ask(run, purpose, some, [found[-1], then[0]], names)
        answering.have_answered(purpose)
        result = verdict(_preferences(run, purpose, names[0], answering.voters))
        if result.says != "unsure":
            break
    answering.close()
    run.domain.restored(found[-1] / "model", names[0])  # of the trained policy there is one
    checked = SpotCheck(steps[0], steps[1], result)
    run.metrics.replace(f"spot-{number}", steps[0], {"wins": result.wins, "comparisons": result.comparisons}, of=steps[1], says=result.says)
    run.console.print(f"{checked}, {len(tasks) - result.comparisons} not needed.", markup=False, highlight=False)
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
    """P(the policy called `now` is better), answer by answer."""
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
