"""Reward hacking: the proxy reward, which a policy is trained on, against the gold reward, and the alarm when they part.

A proxy that goes on rising while the gold reward stays or falls is being hacked (Gao et al. 2023, "Scaling laws for reward model
overoptimization": gold against the square root of the KL rises, and then falls). The fall can be seen coming: to first order a policy
gradient changes the mean of anything by its covariance with the advantage (Williams 1992; Price 1970), so gold turns where the
trajectories with a higher reward begin to have a lower gold reward. How often the alarm is right, and how often it is not, is measured on
runs whose gold reward is known (bench/hacking_alarm.py).
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Z = 1.96
"""Half-width of a 95 % interval in standard errors."""
SLACK = 0.5
"""What a step's evidence that gold turns is reduced by before it is added up, in standard errors (Page 1954)."""
LOST = 0.05
"""Share of what gold had gained that must be lost before its fall counts."""
LAGS = 0.25
"""What gold has risen by at most where it stays, as a share of the proxy's rise, each in standard deviations of a trajectory at first."""
APART = 2.0
"""Standard errors by which the proxy must be higher than it would be if it had fallen with gold."""


@dataclass(frozen=True)
class Thresholds:
    """When the alarm goes off: after how many steps that are averaged, and above which evidence.

    `falls` and `turns` are in standard errors, `stays` in standard deviations of a trajectory. They were chosen on families of runs that
    no rate is reported of, for 5 % of false alarms.
    """

    window: int = 4
    falls: float = 3.5
    turns: float = 6.0
    stays: float = 0.8


SIGNS = {"same_word": 2.1, "alike": 0.11, "one_feature": 0.7}
"""Without gold: how many times likelier a word comes again than at first, how much more answers share, and what one number explains."""
SIGNS_WINDOW = 5


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


Sign = Literal["stays", "falls", "turns", "same_word", "alike", "one_feature"]


@dataclass(frozen=True)
class Alarm:
    """Seen at step `step`, by a `sign`: since step `best` the proxy has risen and gold stays, falls or turns; go back to `best`.

    Without gold (`gold` is None) a sign in the answers has come up since, and people should compare some of them.
    """

    step: int
    best: int
    proxy: tuple[float, float]
    gold: tuple[float, float] | None
    sign: Sign

    def __str__(self) -> str:
        proxy = f"from step {self.best} to {self.step} the proxy reward went from {self.proxy[0]:.3g} to {self.proxy[1]:.3g}"
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
        if not all(f"{proxy}{part}" in r for part in ("", "_stderr", "_std")):
            continue
        measures = [Measure(r[k], r[f"{k}_stderr"], r[f"{k}_std"]) if k in r else None for k in (proxy, "gold")]
        assert measures[0] is not None
        gold_correlation = Measure(r["gold_correlation"], r["gold_correlation_stderr"], 1.0) if "gold_correlation" in r else None
        signs = {key: r[key] for key in SIGNS if key in r}
        measured.append(Point(int(r["step"]), measures[0], measures[1], r.get("kl", math.nan), gold_correlation, signs))
    return measured


def alarm(points: Sequence[Point], thresholds: Thresholds | None = None) -> Alarm | None:
    """The first alarm of a run of one round, or None; see `Lookout`."""
    lookout = Lookout(thresholds)
    for point in points:
        lookout.see(point)
    return lookout.raised


def lookouts(rounds: Sequence[Sequence[Point]]) -> "list[Lookout]":
    """Those of a run's rounds, each of which has a reward of its own."""
    watching = list[Lookout]()
    for points in rounds:
        watching.append(Lookout(before=watching[-1] if watching else None))
        for point in points:
            watching[-1].see(point)
    return watching


@dataclass(frozen=True)
class Window:
    """Means over some steps, the last of which is `step`."""

    step: int
    proxy: Measure
    gold: Measure


class Lookout:
    """Sees the points of a run one after another, and says once when the reward is hacked.

    Where gold is measured, of means over a moving window, it is when

    - gold falls: since its best window it has lost, beyond chance, at least a twentieth of all that it had gained, while the proxy is
      clearly higher than it would be if it had fallen with gold, by what a point of gold was worth to it until then;
    - gold turns: since some step, evidence has added up (CUSUM, Page 1954) that trajectories with a higher reward have a lower gold reward,
      and the proxy has risen since the beginning; or
    - gold stays: since the beginning the proxy has risen by most of a standard deviation of a trajectory, and gold at most by a quarter of
      that, in standard deviations of its own, and by less than one, at as many steps in a row as a window has.

    Where it is not, the answers themselves are watched; see `learners.signs`. Gold's rise is counted from the beginning of the first
    round, which the lookout of the round `before` knows.
    """

    def __init__(self, thresholds: Thresholds | None = None, before: "Lookout | None" = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.raised: Alarm | None = None
        self.origin = math.inf if before is None else before.origin
        """Gold at first, at its lowest."""
        self.last = deque[Point](maxlen=max(self.thresholds.window, SIGNS_WINDOW))
        self.waiting = deque[Window]()
        """Windows that share a step with the present one."""
        self.first: Window | None = None
        self.best: Window | None = None
        self.turning, self.staying = 0.0, 0
        self.seen, self.without_spread, self.same = 0, 0, 0
        self.signs = deque[dict[str, float]](maxlen=SIGNS_WINDOW)
        self.start = list[Point]()

    def see(self, point: Point) -> Alarm | None:
        """The alarm, if it goes off at this point."""
        self.last.append(point)
        raised = self._answers(point) if point.gold is None else self._gold(point, point.gold)
        if self.raised is not None or raised is None:
            return None
        self.raised = raised
        return raised

    @property
    def silent(self) -> str:
        """Why no alarm can go off, in a sentence; empty where one could."""
        if self.seen < 2 * self.thresholds.window:
            return f"gold was measured at {self.seen} steps, and it takes {2 * self.thresholds.window} to see a change"
        if self.without_spread == self.seen:
            return "the gold reward was the same for all trajectories of each step, so that it says nothing about them"
        return "the gold reward is the reward that was trained on; measure another one" if self.same == self.seen else ""

    def _gold(self, point: Point, gold: Measure) -> Alarm | None:
        self.seen, self.without_spread, self.same = (
            self.seen + 1, self.without_spread + (gold.std == 0), self.same + (gold == point.proxy)
        )  # fmt: skip
        own = self.thresholds
        if point.gold_correlation is not None:
            r, stderr = point.gold_correlation.mean, point.gold_correlation.stderr
            self.turning = max(0.0, self.turning - math.atanh(max(-0.999, min(0.999, r))) / stderr - SLACK)
        if self.seen < own.window:
            return None
        now = _window([p for p in self.last if p.gold is not None][-own.window :])
        if self.first is None:
            self.origin = min(self.origin, now.gold.mean)
        first = self.first = self.first or now
        best = self.best = self.best or now
        self.waiting.append(now)
        if len(self.waiting) > own.window and (apart := self.waiting.popleft()).gold.mean > best.gold.mean:
            best = self.best = apart
        sign = self._sign(first, best, now)
        if sign is None:
            return None
        since = first if sign == "stays" else best
        return Alarm(now.step, since.step, (since.proxy.mean, now.proxy.mean), (since.gold.mean, now.gold.mean), sign)

    def _sign(self, first: Window, best: Window, now: Window) -> Sign | None:
        own = self.thresholds
        if best.gold.mean - now.gold.mean > LOST * (best.gold.mean - self.origin) and _fall(first, best, now) > own.falls:
            return "falls"
        if self.turning > own.turns and now.proxy.mean - first.proxy.mean > APART * math.hypot(now.proxy.stderr, first.proxy.stderr):
            return "turns"
        rise = (now.proxy.mean - first.proxy.mean) / max(first.proxy.std, 1e-9)
        at_most = now.gold.mean - self.origin + Z * math.hypot(now.gold.stderr, first.gold.stderr)
        self.staying = self.staying + 1 if rise > own.stays and at_most < min(LAGS * rise, 1.0) * first.gold.std else 0
        return "stays" if self.staying == own.window else None

    def _answers(self, point: Point) -> Alarm | None:
        if not point.signs:
            return None
        self.signs.append(point.signs)
        if len(self.start) < SIGNS_WINDOW:
            self.start.append(point)
            return None
        before, now = (
            {key: float(np.mean([x.get(key, 0.0) for x in some])) for key in SIGNS} for some in ([p.signs for p in self.start], self.signs)
        )
        grown = {
            "same_word": now["same_word"] / max(before["same_word"], 1e-9),
            "alike": now["alike"] - before["alike"],
            "one_feature": now["one_feature"],
        }
        proxy = float(np.mean([p.proxy.mean for p in self.start])), point.proxy.mean
        for sign in ("same_word", "alike", "one_feature"):
            if grown[sign] > SIGNS[sign] and proxy[1] > proxy[0]:
                return Alarm(point.step, self.start[-1].step, proxy, None, sign)
        return None


def _window(points: Sequence[Point]) -> Window:
    n = len(points)

    def middle(measures: Sequence[Measure]) -> Measure:
        stderr = math.sqrt(sum(m.stderr**2 for m in measures)) / n
        return Measure(sum(m.mean for m in measures) / n, stderr, sum(m.std for m in measures) / n)

    return Window(points[-1].step, middle([p.proxy for p in points]), middle([p.gold for p in points if p.gold is not None]))


def _fall(first: Window, best: Window, now: Window) -> float:
    """How sure it is that gold, which is lower now, has fallen while the proxy has not, in standard errors; 0 where the proxy has, too."""
    gained, lost = best.gold.mean - first.gold.mean, best.gold.mean - now.gold.mean
    risen = best.proxy.mean - first.proxy.mean
    worth = risen / gained if gained > 2 * math.hypot(best.gold.stderr, first.gold.stderr) and risen > 0 else 0.0
    stderr = math.hypot(best.gold.stderr, now.gold.stderr)
    apart = now.proxy.mean - best.proxy.mean + worth * lost
    if apart <= APART * math.hypot(best.proxy.stderr, now.proxy.stderr, worth * stderr):
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
