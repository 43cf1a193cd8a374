"""A training that is watched for reward hacking, and ends where the alarm goes off."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rather.errors import CheckpointError
from rather.hacking import examples
from rather.hacking.alarm import Alarm, Lookout, Point, lookouts, points
from rather.hacking.spot_check import SpotCheck

NOTE = "alarm.json"


class Watch:
    """A callback of a training, which ends at the first alarm: `raised`.

    `rounds` are the metrics of the rounds before, and those of this one's steps until the checkpoint that it goes on from; `proxy` is the
    key of its reward. `dismissed` are each round's steps whose alarm was dismissed.

        watch = Watch()
        rather.GRPO(model, prompts, reward, gold=gold, callbacks=[watch]).train()
        print(watch.raised)
    """

    def __init__(
        self,
        rounds: Sequence[Sequence[dict[str, Any]]] = ((),),
        proxy: str = "score",
        dismissed: Sequence[Collection[int]] = (),
    ) -> None:
        self.proxy, self.lookout = proxy, lookouts([points(rows, proxy) for rows in rounds], dismissed)[-1]

    @property
    def raised(self) -> Alarm | None:
        """The alarm, if it has gone off."""
        return self.lookout.raised

    def __call__(self, step: int, values: dict[str, float]) -> bool:
        """Whether the alarm has gone off, now or before."""
        for point in points([{"step": step, **values}], self.proxy):
            self.lookout.see(point)
        return self.raised is not None


def watched(rows: Sequence[dict[str, Any]], learner: str, proxy: str) -> tuple[list[list[Point]], list[set[int]]]:
    """The points of a run's rounds, from all `rows` of its metrics, and each round's steps whose alarm was dismissed.

    `learner` is that of the run, `proxy` the key of its reward. A round that was not trained has none, nor have those after it.
    """
    rounds = list[list[Point]]()
    while own := [row for row in rows if row["phase"] == f"train-{learner}-{len(rounds)}"]:
        rounds.append(points(own, proxy))
    return rounds, dismissals(rows, len(rounds))


def dismissals(rows: Sequence[dict[str, Any]], rounds: int) -> list[set[int]]:
    """The steps, in each of `rounds` rounds, whose alarm spot checks have dismissed or were unsure about, from a run's metrics."""
    steps = [set[int]() for _ in range(rounds)]
    for check in filter(None, map(SpotCheck.of_row, rows)):
        if check.round < rounds and not check.confirmed:
            steps[check.round].add(check.alarm)
    return steps


def alarms(watching: Sequence[Lookout]) -> list[str]:
    """The alarm of every round that has one, in words."""
    raised = [(number, lookout.raised) for number, lookout in enumerate(watching) if lookout.raised is not None]
    return [(f"round {number}: " if len(watching) > 1 else "") + str(alarm) for number, alarm in raised]


def silent(watching: Sequence[Lookout]) -> list[str]:
    """Why no alarm can go off, in words: each reason once, with the rounds that it is about, where it is not about all of them."""
    reasons = dict[str, list[int]]()
    for number, lookout in enumerate(watching):
        if lookout.silent:
            reasons.setdefault(lookout.silent, []).append(number)
    return [f"no alarm can go off{_rounds(numbers, len(watching))}: {reason}" for reason, numbers in reasons.items()]


def _rounds(numbers: Sequence[int], count: int) -> str:
    """Which of `count` rounds, in words; nothing where it is all of them."""
    if len(numbers) == count:
        return ""
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and last - first == len(numbers) - 1:
        return f" in rounds {first} to {last}"
    return f" in round{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def note(folder: Path, alarm: Alarm, kept: int) -> None:
    """Keep beside a training's checkpoints that an alarm has ended it, and of which step the last one is that it `kept`."""
    temporary = folder / f".{NOTE}"
    temporary.write_text(json.dumps({"kept": kept, "alarm": asdict(alarm)}, indent=1))
    temporary.replace(folder / NOTE)


def noted(folder: Path, newest: int) -> Alarm | None:
    """The alarm that has ended a training whose last checkpoint is that of step `newest`; None where it has gone on since.

    Raises:
        CheckpointError: the note is damaged.
    """
    path = folder / NOTE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return Alarm(**found["alarm"]) if found["kept"] == newest else None
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}); delete it, and the training goes on") from None


def forget(folder: Path) -> None:
    """A training goes on, or has come to its end without an alarm."""
    for name in (NOTE, examples.NOTE):
        (folder / name).unlink(missing_ok=True)
