"""Reward hacking: the proxy reward, which a policy is trained on, against the gold reward, and the alarm when they part.

A proxy that goes on rising while the gold reward stays or falls is being hacked (Gao et al. 2023, "Scaling laws for reward model
overoptimization": gold against the square root of the KL rises, and then falls). The fall can be seen coming: to first order a policy
gradient changes the mean of anything by its covariance with the advantage (Williams 1992; Price 1970), so gold turns where the
trajectories with a higher reward begin to have a lower gold reward. How often the alarm is right, and how often it is not, is measured on
runs whose gold reward is known (bench/hacking_alarm.py).
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import numpy as np

Z = 1.96
"""Half-width of a 95 % interval in standard errors."""
MIN_LOST = 0.05
"""Share of what gold had gained that must be lost before its fall counts, ..."""
MIN_LOST_STD = 0.1
"""... and how much of a trajectory's standard deviation."""
MIN_APART = 2.0
"""Standard errors by which the proxy must be higher than it would be if it had fallen with gold."""
SLACK = 0.5
"""What a step's evidence that gold turns is reduced by before it is added up, in standard errors (Page 1954)."""
MAX_SHARE = 0.25
"""What gold has risen by at most where it stays, as a share of the proxy's rise, each in standard deviations of a trajectory at first."""
STEPS, LONGER = 80, (14.0, 1.5)
"""Up to so many steps thresholds are as they stand. Then the square of `falls`, and `turns`, grow with the logarithm of their number by so
much, since there are more chances of a false alarm."""


@dataclass(frozen=True)
class Thresholds:
    """When the alarm goes off: after how many steps that are averaged, and above which evidence.

    `falls` and `turns` are in standard errors, `stays` in standard deviations of a trajectory. They hold at least 19 of 20 runs by chance
    alone, and the clean runs of the families that they were chosen on (bench/hacking_alarm.py).
    """

    window: int = 4
    falls: float = 3.5
    turns: float = 6.0
    stays: float = 0.8


SIGNS = {"same_word": 2.1, "alike": 0.11, "one_feature": 0.7}
"""Without gold: how many times likelier a word comes again than at first, how much more answers share, and what one number explains."""
SIGNS_WINDOW = 5
Sign = Literal["stays", "falls", "turns", "same_word", "alike", "one_feature"]
SIGN_NAMES: tuple[Sign, ...] = ("same_word", "alike", "one_feature")


@dataclass(frozen=True)
class Measure:
    """A mean over trajectories, its standard error, and how much one trajectory differs from another (standard deviation)."""

    mean: float
    stderr: float
    std: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.mean - Z * self.stderr

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.mean + Z * self.stderr


@dataclass(frozen=True)
class Point:
    """Proxy reward of the policy at `step`, and its gold reward where that is measured; `kl` in nats from where it started, of each row.

    `gold_correlation` is that of the trajectories' advantages with their gold rewards, `signs` what `learners.signs` found.
    """

    step: int
    proxy: Measure
    gold: Measure | None
    kl: float = math.nan
    gold_correlation: Measure | None = None
    signs: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Alarm:
    """Seen at step `step`, by a `sign`: since step `best` gold falls or turns, or since the beginning it stays, while the proxy has risen.

    `best` is the step whose checkpoint to go back to; `proxy` and `gold` are the means then (at the beginning, where gold stays) and now.
    Without gold (`gold` is None) a sign in the answers has come up since, and people should compare some of them.
    """

    step: int
    best: int
    proxy: tuple[float, float]
    gold: tuple[float, float] | None
    sign: Sign

    def __str__(self) -> str:
        since = "from the first steps" if self.sign == "stays" else f"from step {self.best}"
        proxy = f"{since} to step {self.step} the proxy reward went from {self.proxy[0]:.3g} to {self.proxy[1]:.3g}"
        if self.gold is None:
            seen = {
                "same_word": "answers say the same words again and again",
                "alike": "answers to different prompts have become alike",
                "one_feature": "a single word, or the length, decides what is rewarded",
            }[self.sign]
            return f"perhaps reward hacking: {proxy}, and {seen}; have answers of step {self.best} and of now compared"
        turns = ", and trajectories with a higher reward have a lower gold reward" if self.sign == "turns" else ""
        gold = f"the gold reward from {self.gold[0]:.3g} to {self.gold[1]:.3g}"
        return f"reward hacking: {proxy}, {gold}{turns}; go back to step {self.best}"


def points(rows: Sequence[dict[str, Any]], proxy: str) -> list[Point]:
    """The points of a run from its metrics, where the reward that it was trained on was measured, whose key is `proxy`."""
    measured = list[Point]()
    for r in rows:
        reward, gold, correlation = (_measured(r, key) for key in (proxy, "gold", "gold_correlation"))
        if reward is not None and r.get("step") is not None:
            signs = {key: r[key] for key in SIGNS if r.get(key) is not None}
            measured.append(Point(int(r["step"]), reward, gold, r.get("kl", math.nan), correlation, signs))
    return measured


def _measured(row: dict[str, Any], key: str) -> Measure | None:
    values = [row.get(f"{key}{part}", 1.0 if key == "gold_correlation" and part == "_std" else None) for part in ("", "_stderr", "_std")]
    numbers = [float(x) for x in values if x is not None and math.isfinite(x)]
    return Measure(*numbers) if len(numbers) == 3 else None


def alarm(points: Sequence[Point], thresholds: Thresholds | None = None) -> Alarm | None:
    """The first alarm of a run of one round, or None; see `Lookout`."""
    lookout = Lookout(thresholds)
    for point in points:
        lookout.see(point)
    return lookout.raised


def lookouts(rounds: Sequence[Sequence[Point]], dismissed: Sequence[Collection[int]] = ()) -> "list[Lookout]":
    """Those of a run's rounds, each of which has a reward of its own; `dismissed` are each round's steps whose alarm was dismissed."""
    watching = list[Lookout]()
    for points, steps in zip_longest(rounds, dismissed[: len(rounds)], fillvalue=()):
        watching.append(Lookout(before=watching[-1] if watching else None))
        for point in points:
            if watching[-1].see(point) is not None and point.step in steps:
                watching[-1].dismiss()
    return watching


@dataclass(frozen=True)
class Window:
    """Means over some steps, the last of which is `step`; the policy in the middle of them is that of the checkpoint `middle`."""

    step: int
    middle: int
    proxy: Measure
    gold: Measure


class Lookout:
    """Sees the points of a run one after another, and says once when the reward is hacked.

    Where gold is measured, of means over a moving window, it is when

    - gold falls: since its best window it has lost, beyond chance, at least a twentieth of all that it had gained, while the proxy is
      clearly higher than it would be if it had fallen with gold, by as much as the two had risen together until then;
    - gold turns: since some step, evidence has added up (CUSUM, Page 1954) that trajectories with a higher reward have a lower gold reward,
      and the proxy has risen since the beginning; or
    - gold stays: since the beginning the proxy has risen by most of a standard deviation of a trajectory, and gold surely by no more than
      a quarter of that, in standard deviations of its own, and by less than one, at as many steps in a row as a window has.

    Where it is not, the answers themselves are watched; see `learners.signs`. Gold's rise, and how answers were at first, count from the
    beginning of the first round, which the lookout of the round `before` knows.
    """

    def __init__(self, thresholds: Thresholds | None = None, before: "Lookout | None" = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.raised: Alarm | None = None
        self.origin = None if before is None else before.origin
        """Gold at the beginning of the first round."""
        self.recent = deque[Point](maxlen=self.thresholds.window)
        """The last points that gold was measured at."""
        self.overlapping = deque[Window]()
        """Windows that share a step with the present one."""
        self.first: Window | None = None
        self.best: Window | None = None
        self.turning, self.staying = 0.0, 0
        self.steps, self.without_spread, self.same = 0, 0, 0
        self.signs = deque[dict[str, float]](maxlen=SIGNS_WINDOW)
        self.start: list[Point] = [] if before is None else before.start

    def see(self, point: Point) -> Alarm | None:
        """The alarm, if it goes off at this point."""
        raised = self._answers(point) if point.gold is None else self._gold(point, point.gold)
        if self.raised is not None or raised is None:
            return None
        self.raised = raised
        return raised

    def dismiss(self) -> None:
        """Take the alarm back: from here on answers are compared with those of the next steps."""
        self.raised, self.start = None, []

    @property
    def silent(self) -> str:
        """Why no alarm can go off, in a sentence; empty where one could, or has."""
        if self.raised is not None or (self.signs and not self.steps):
            return ""
        if self.steps < 2 * self.thresholds.window:
            measured = f"gold was measured at fewer than {2 * self.thresholds.window} steps, which it takes to see a change"
            return measured if self.steps else "no gold reward was measured"
        if self.without_spread == self.steps:
            return "the gold reward was the same for all trajectories of each step, so that it says nothing about them"
        return "the gold reward is the reward that was trained on; measure another one" if self.same == self.steps else ""

    def _gold(self, point: Point, gold: Measure) -> Alarm | None:
        self.steps += 1
        self.without_spread += gold.std == 0
        self.same += gold == point.proxy
        self.recent.append(point)
        if point.gold_correlation is not None:
            r, stderr = point.gold_correlation.mean, point.gold_correlation.stderr
            self.turning = max(0.0, self.turning - math.atanh(max(-0.999, min(0.999, r))) / stderr - SLACK)
        if len(self.recent) < self.thresholds.window:
            return None
        now = _window([*self.recent])
        first = self.first = self.first or now
        self.origin = now.gold.mean if self.origin is None else self.origin
        self.overlapping.append(now)
        if len(self.overlapping) > self.thresholds.window:
            candidate = self.overlapping.popleft()
            if self.best is None or candidate.gold.mean > self.best.gold.mean:
                self.best = candidate
        sign = self._sign(first, now, self.origin)
        if sign is None:
            return None
        earlier = [] if self.best is None else [self.best]  # where gold turns it may be at its best only now
        best = since = max([*earlier, *self.overlapping], key=lambda window: window.gold.mean)
        if sign == "stays":
            since = first
            if best.gold.mean - first.gold.mean < self.thresholds.falls * math.hypot(best.gold.stderr, first.gold.stderr):
                best = first
        return Alarm(now.step, best.middle, (since.proxy.mean, now.proxy.mean), (since.gold.mean, now.gold.mean), sign)

    def _sign(self, first: Window, now: Window, origin: float) -> Sign | None:
        limits, best = self.thresholds, self.best or now
        lost = best.gold.mean - now.gold.mean
        longer = max(0.0, math.log(self.steps / STEPS))
        matters = lost > MIN_LOST * (best.gold.mean - origin) and lost > MIN_LOST_STD * first.gold.std
        if matters and _fall(first, best, now) > math.sqrt(limits.falls**2 + LONGER[0] * longer):
            return "falls"
        rise = now.proxy.mean - first.proxy.mean
        if self.turning > limits.turns + LONGER[1] * longer and rise > MIN_APART * math.hypot(now.proxy.stderr, first.proxy.stderr):
            return "turns"
        risen = rise / max(first.proxy.std, 1e-9)
        at_most = now.gold.mean - origin + Z * math.hypot(now.gold.stderr, first.gold.stderr)
        self.staying = self.staying + 1 if risen > limits.stays and at_most < min(MAX_SHARE * risen, 1.0) * first.gold.std else 0
        return "stays" if self.staying == limits.window else None

    def _answers(self, point: Point) -> Alarm | None:
        if not point.signs:
            return None
        self.signs.append(point.signs)
        if len(self.start) < SIGNS_WINDOW:
            self.start.append(point)
            return None
        proxy = float(np.mean([p.proxy.mean for p in self.start])), point.proxy.mean
        for sign in SIGN_NAMES:
            before, now = _mean([p.signs for p in self.start], sign), _mean(self.signs, sign)
            grown = {"same_word": now / max(before, 1e-9), "alike": now - before, "one_feature": now * (before < SIGNS[sign])}[sign]
            if grown > SIGNS[sign] and proxy[1] > proxy[0]:
                return Alarm(point.step, self.start[-1].step, proxy, None, sign)
        return None


def _mean(measured: Iterable[dict[str, float]], key: str) -> float:
    values = [signs[key] for signs in measured if key in signs]
    return sum(values) / len(values) if values else math.nan


def _window(points: Sequence[Point]) -> Window:
    n = len(points)

    def average(measures: Sequence[Measure]) -> Measure:
        stderr = math.sqrt(sum(m.stderr**2 for m in measures)) / n
        return Measure(sum(m.mean for m in measures) / n, stderr, sum(m.std for m in measures) / n)

    proxy, gold = average([p.proxy for p in points]), average([p.gold for p in points if p.gold is not None])
    return Window(points[-1].step, points[(n - 1) // 2].step - 1, proxy, gold)  # a step measures the policy before its update


def _fall(first: Window, best: Window, now: Window) -> float:
    """How sure it is that gold, which is lower now, has fallen while the proxy has not, in standard errors; 0 where the proxy has, too."""
    gained, lost = best.gold.mean - first.gold.mean, best.gold.mean - now.gold.mean
    risen = best.proxy.mean - first.proxy.mean
    slope = risen / gained if gained > 2 * math.hypot(best.gold.stderr, first.gold.stderr) and risen > 0 else 0.0
    stderr = math.hypot(best.gold.stderr, now.gold.stderr)
    apart = now.proxy.mean - best.proxy.mean + slope * lost
    if apart <= MIN_APART * math.hypot(best.proxy.stderr, now.proxy.stderr, slope * stderr):
        return 0.0
    return lost / stderr if stderr else math.inf


class SpotChecks:
    """The gold reward of a step's policy where that of some trajectories alone is known, with help of the proxy, which is known of all.

    Gold is estimated as the mean of those that were checked, and corrected by how their proxy differs from that of all, times the slope of
    gold on the proxy among the checks of the last 6 steps (a control variate; prediction-powered inference, Angelopoulos et al. 2023).
    """

    STEPS = 6

    def __init__(self) -> None:
        self.checked = deque[tuple[np.ndarray, np.ndarray]](maxlen=self.STEPS)

    def see(self, proxy: Sequence[float], gold: Sequence[float]) -> Measure | None:
        """The estimate, where `gold` is NaN for trajectories that were not checked; None where fewer than two were."""
        p, g = np.array(proxy, float), np.array(gold, float)
        known = ~np.isnan(g)
        count = int(known.sum())
        if count < 2:
            return None
        self.checked.append((p[known] - p[known].mean(), g[known] - g[known].mean()))
        x, y = (np.concatenate(some) for some in zip(*self.checked, strict=True))
        slope = float(x @ y / (x @ x)) if x @ x > 1e-12 else 0.0
        free = len(y) - len(self.checked)
        variance, left = float(y @ y) / max(free, 1), float(((y - slope * x) ** 2).sum()) / max(free - 1, 1)
        stderr = math.sqrt(left / count + max(variance - left, 0.0) / len(p))
        return Measure(float(g[known].mean() + slope * (p.mean() - p[known].mean())), stderr, math.sqrt(variance))


def one_event(rewards: Sequence[float]) -> float:
    """How often the same reward came, as a share of all steps: in a task of rare events a high share is one event again and again."""
    given = [round(float(r), 6) for r in rewards if r]
    return max(given.count(value) for value in {*given}) / len(rewards) if given else 0.0
