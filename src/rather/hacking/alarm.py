"""Reward hacking: what a policy is paid by (the proxy) against what is meant (the gold measure), and the alarm when they part.

A proxy that goes on rising while the gold measure stays or falls is being hacked (Gao et al. 2023, "Scaling laws for reward model
overoptimization": gold against the square root of the KL rises, and then falls). The fall can be seen coming: to first order a policy
gradient changes the mean of anything by its covariance with the advantage (Williams 1992; Price 1970), so gold turns where the
attempts that are paid more begin to be worth less.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Z = 1.96
"""Half-width of a 95 % interval in standard errors."""
SURE = 3.0
"""The same of a 99.7 % interval, for what is looked at anew at every step."""


@dataclass(frozen=True)
class Measure:
    """A mean over attempts, its standard error, and how much one attempt differs from another (standard deviation)."""

    mean: float
    error: float
    deviation: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.mean - Z * self.error

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.mean + Z * self.error


@dataclass(frozen=True)
class Point:
    """Proxy and gold measure of the policy at `step`; `kl` in nats from where it started, of each row that was learnt from.

    `pull` is the correlation of what attempts are paid with what they are worth, if it was measured.
    """

    step: int
    proxy: Measure
    gold: Measure
    kl: float = math.nan
    pull: Measure | None = None


@dataclass(frozen=True)
class Alarm:
    """Seen at step `step`: since step `best` the proxy has risen and the gold measure "stays", "falls", or "turns"; go back to `best`."""

    step: int
    best: int
    proxy: tuple[float, float]
    gold: tuple[float, float]
    sign: Literal["stays", "falls", "turns"]

    def __str__(self) -> str:
        proxy, gold = (f"{a:.3g} to {b:.3g}" for a, b in (self.proxy, self.gold))
        since = f"from step {self.best} to {self.step} what is paid went from {proxy}, what is meant from {gold}"
        turns = ", and attempts that are paid more are worth less" if self.sign == "turns" else ""
        return f"reward hacking: {since}{turns}; go back to step {self.best}"


def points(rows: Sequence[dict[str, Any]], proxy: str) -> list[Point]:
    """The points of a run from its metrics, where both were measured; `proxy` is the key of what it was paid by."""
    found = []
    for r in rows:
        if proxy in r and "gold" in r:
            measures = [Measure(r[k], r[f"{k}_error"], r[f"{k}_deviation"]) for k in (proxy, "gold")]
            pull = Measure(r["pull"], r["pull_error"], 1.0) if "pull" in r else None
            found.append(Point(r["step"], *measures, kl=r.get("kl", math.nan), pull=pull))
    return found


def alarm(found: Sequence[Point], window: int = 3, patience: int = 2) -> Alarm | None:
    """The first alarm of a run, or None.

    Every point is the mean of a moving window; the alarm goes off after `patience` points in a row in which

    - gold stays: since the beginning the proxy's interval has risen by 2 deviations of an attempt, and gold's not by 1;
    - gold falls: since gold was best the proxy's interval has risen clear of where it was, and gold's fallen clear, by at least
      3 % of all that gold had gained; or
    - gold turns: since the beginning the proxy's interval has risen clear of where it was, and attempts that are paid more are worth
      less, with 99.7 % confidence.
    """
    lookout = Lookout(window, patience)
    return next((seen for point in found if (seen := lookout.see(point)) is not None), None)


class Lookout:
    """Sees the points of a run one after another; see `alarm`."""

    def __init__(self, window: int = 3, patience: int = 2) -> None:
        self.patience, self.last = patience, deque[Point](maxlen=window)
        self.first: Point | None = None
        self.best: Point | None = None
        self.in_a_row = 0

    def see(self, point: Point) -> Alarm | None:
        """The alarm, if it goes off at this point."""
        self.first = first = self.first or point
        self.last.append(point)
        if len(self.last) < (self.last.maxlen or 0):
            return None
        now = _mean(list(self.last))
        self.best = best = now if self.best is None or now.gold.mean > self.best.gold.mean else self.best
        rise = now.proxy.low - first.proxy.high
        stays = rise > max(0.0, 2 * first.proxy.deviation) and now.gold.high - first.gold.mean < first.gold.deviation
        lost = best.gold.mean - now.gold.mean
        gained = abs(best.gold.mean - first.gold.mean)
        falls = now.proxy.low > best.proxy.high and now.gold.high < best.gold.low and lost > 0.03 * gained
        turns = rise > 0 and now.pull is not None and now.pull.mean + SURE * now.pull.error < 0
        self.in_a_row = self.in_a_row + 1 if stays or falls or turns else 0
        if self.in_a_row != self.patience:
            return None
        since, sign = (best, "falls") if falls else (best, "turns") if turns else (first, "stays")
        return Alarm(now.step, since.step, (since.proxy.mean, now.proxy.mean), (since.gold.mean, now.gold.mean), sign)


def _mean(found: Sequence[Point]) -> Point:
    n = len(found)

    def middle(measures: Sequence[Measure]) -> Measure:
        error = math.sqrt(sum(m.error**2 for m in measures)) / n
        return Measure(sum(m.mean for m in measures) / n, error, sum(m.deviation for m in measures) / n)

    pulls = [p.pull for p in found if p.pull is not None]
    pull = middle(pulls) if len(pulls) == n else None
    return Point(found[-1].step, middle([p.proxy for p in found]), middle([p.gold for p in found]), sum(p.kl for p in found) / n, pull)


# Tells: what a hacked reward often looks like in the attempts themselves


def explained(scores: Sequence[float], by: Sequence[float]) -> float:
    """Share of the scores' variance that another number, such as the length, explains: R^2."""
    if len(scores) < 3 or np.std(scores) == 0 or np.std(by) == 0:
        return 0.0
    return float(np.corrcoef(scores, by)[0, 1] ** 2)


def repetition(text: str, size: int = 3) -> float:
    """Share of the runs of `size` words that stood there before; 0 in a text that never repeats itself."""
    words = text.lower().split()
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct(texts: Sequence[str]) -> float:
    """Share of answers that differ from all others; low, the policy has collapsed onto a few."""
    counts = Counter(" ".join(t.split()) for t in texts)
    return sum(1 for c in counts.values() if c == 1) / max(len(texts), 1)


def one_event(rewards: Sequence[float]) -> float:
    """How often the same payment came, as a share of all steps: in a task of rare events a high share is one event paid over and over."""
    paid = [round(float(r), 6) for r in rewards if r]
    return max(Counter(paid).values()) / len(rewards) if paid else 0.0
