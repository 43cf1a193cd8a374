"""What a run's learner measures, as curves; its metrics.jsonl is read as it grows, and never twice."""

import json
import math
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rather import renamed
from rather.errors import CheckpointError
from rather.hacking import alarm, examples
from rather.hacking.spot_check import SpotCheck
from rather.learners import prequential

POINTS = 200
"""The most points of a curve."""
SHOWN = 8
"""The most curves of one plot: those of the latest rounds."""
TAIL = 200


@dataclass(frozen=True)
class Plot:
    """Curves of one key of metrics.jsonl, over another one or over rounds, a curve for each phase that matches."""

    title: str
    key: str
    phase: str = r"train-(\w+-\d+)"
    over: str = "step"
    percent: bool = False


PLOTS = (
    Plot("Answers predicted right before they were learned from", "prequential_accuracy", r"train-reward-(\d+)", "answers", percent=True),
    Plot("Comparisons that the learner orders as people did", "accuracy", percent=True),
    Plot("Win rate against the base policy", "win_rate", r"check-(\d+)", "answers", percent=True),
    Plot("Win rate against the base policy, each round", "win_rate", r"(eval)-\d+", "round", percent=True),
    Plot("KL from the reference, nats", "kl"),
    Plot("KL from the base policy, nats", "kl", r"check-(\d+)", "answers"),
    Plot("Log-ratio of the given answers to the reference, nats", "log_ratio"),
    Plot("Mean reward of the policy", "score", r"train-((?:ppo|grpo)-\d+)"),
    Plot("Mean return of an episode by the environment's reward", "return", r"train-((?:ppo|grpo)-\d+)"),
    Plot("Mean gold reward of the policy", "gold"),
    Plot("Correlation of reward with gold reward; below 0, gold will fall", "gold_correlation"),
    Plot("Chance that two words of the answers are the same", "same_word"),
    Plot("What answers to different prompts share", "alike"),
    Plot("Share of the reward that one feature explains", "one_feature"),
)


class Curve:
    """Points (x, y, and where they are known the ends of y's interval). Past `POINTS` two neighbors become one, their mean."""

    def __init__(self) -> None:
        self.each = 1
        self.kept: list[list[float | None]] = []
        self.rest: list[list[float | None]] = []

    def add(self, point: list[float | None]) -> None:
        """A point behind the others."""
        self.rest.append(point)
        if len(self.rest) == self.each:
            self.kept.append(_mean(self.rest))
            self.rest = []
        if len(self.kept) == POINTS:
            self.kept = [_mean(self.kept[i : i + 2]) for i in range(0, POINTS, 2)]
            self.each *= 2

    def points(self) -> list[list[float | None]]:
        """At most `POINTS`; what is not finite is None."""
        return self.kept + [_mean(self.rest)] * bool(self.rest)


class Curves:
    """The curves of a file that is appended to, or replaced; None where a run measures nothing.

    `proxy` is the key of the reward that its policy is trained on; `folders` are those of each round's checkpoints.
    """

    def __init__(self, path: Path | None, proxy: str = "score", folders: Sequence[Path] = ()) -> None:
        self.path, self.proxy, self.folders, self.lock = path, proxy, folders, threading.Lock()
        self._begin(None)

    def read(self) -> dict[str, Any]:
        """The curves as far as they have come, alarms of reward hacking, answers that were exploited, how well answers were predicted.

        `problem` says what is wrong with a file.
        """
        with self.lock:
            if self.path is not None:
                self._follow(self.path)
            plots = [
                {"title": plot.title, "over": plot.over, "percent": plot.percent, "series": series}
                for i, plot in enumerate(PLOTS)
                if (series := [{"name": n, "points": c.points()} for (j, n), c in self.curves.items() if i == j][-SHOWN:])
            ]
            alarms = [f"{phase}: {a}" for phase, a in self.alarms.items()]
            exploited, problem = list[dict[str, Any]](), self.problem
            try:
                exploited = [asdict(x) for x in examples.newest(self.folders)]
            except CheckpointError as e:
                problem = problem or str(e)
            return {"plots": plots, "alarms": alarms, "exploited": exploited, "predicted": self.predicted, "problem": problem}

    def _begin(self, inode: int | None) -> None:
        self.inode, self.at, self.tail, self.problem, self.predicted = inode, 0, b"", "", ""
        self.curves: dict[tuple[int, str], Curve] = {}
        self.lookouts: dict[str, alarm.Lookout] = {}
        self.alarms: dict[str, alarm.Alarm] = {}
        self.dismissed = set[tuple[int, int]]()

    def _follow(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                file.seek(self.at - len(self.tail))
                # A run that resumes from a checkpoint writes a new file.
                if status.st_ino != self.inode or file.read(len(self.tail)) != self.tail:
                    self._begin(status.st_ino)
                    file.seek(0)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    self.at += len(line)
                    self.tail = line[-TAIL:]
                    self._take(line)
        except FileNotFoundError:
            self._begin(None)
        except OSError as e:
            self.problem = f"{path} cannot be read: {e.strerror}"

    def _before(self, phase: str) -> alarm.Lookout | None:
        """The lookout of the round before a phase."""
        name, _, number = phase.rpartition("-")
        return self.lookouts.get(f"{name}-{int(number) - 1}") if number.isdecimal() else None

    def _take(self, line: bytes) -> None:
        try:
            row = renamed.metrics(json.loads(line))
            phase = str(row["phase"])
            numbers, check = {k: _number(v) for k, v in row.items()}, SpotCheck.of_row(row)
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            self.problem = f"a line of {self.path} is no measurement, and is left out: {line[:60].decode(errors='replace').strip()}"
            return
        self.predicted = prequential.sentence({k: v for k, v in numbers.items() if v is not None}) or self.predicted
        for i, plot in enumerate(PLOTS):
            match = re.fullmatch(plot.phase, phase)
            if match is None or plot.key not in numbers:
                continue
            x = float(phase.rpartition("-")[2]) if plot.over == "round" else numbers.get(plot.over)
            if x is not None:
                interval = [numbers[k] for end in ("low", "high") if (k := f"{plot.key}_{end}") in numbers]
                name = match[1].replace("-", ", round ") if plot.over == "step" else "" if plot.over == "round" else f"round {match[1]}"
                self.curves.setdefault((i, name), Curve()).add([x, numbers[plot.key], *interval])
        self._watch(phase, {k: v for k, v in numbers.items() if v is not None})
        if check is not None and not check.confirmed:
            self.dismissed.add((check.round, check.alarm))
            for phase in [*self.alarms]:
                self._dismiss(phase)

    def _watch(self, phase: str, numbers: dict[str, float]) -> None:
        """Look out for an alarm in a row of a training on rewards."""
        if phase in self.alarms or not re.fullmatch(r"train-(?:ppo|grpo)-\d+", phase):
            return
        for point in alarm.points([numbers], self.proxy):
            lookout = self.lookouts.get(phase) or self.lookouts.setdefault(phase, alarm.Lookout(before=self._before(phase)))
            if (raised := lookout.see(point)) is not None:
                self.alarms[phase] = raised
                self._dismiss(phase)

    def _dismiss(self, phase: str) -> None:
        """Take an alarm back if spot checks have dismissed it."""
        if (int(phase.rpartition("-")[2]), self.alarms[phase].step) in self.dismissed:
            self.lookouts[phase].dismiss()
            del self.alarms[phase]


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _mean(points: list[list[float | None]]) -> list[float | None]:
    """The mean of each column, of the numbers that are known."""
    columns = [[v for v in column if v is not None] for column in zip(*points, strict=False)]
    return [_number(sum(column) / len(column)) if column else None for column in columns]
