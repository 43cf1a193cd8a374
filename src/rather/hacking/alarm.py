"""Reward hacking: the proxy reward, which a policy is trained on, against the gold reward, and the alarm when they part.

A proxy that goes on rising while the gold reward stays or falls is being hacked (Gao et al. 2023, "Scaling laws for reward model
overoptimization": gold against the square root of the KL rises, and then falls). The fall can be seen coming: to first order a policy
gradient changes the mean of anything by its covariance with the advantage (Williams 1992; Price 1970), so gold turns where the
trajectories with a higher reward begin to have a lower gold reward.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rather.judges import wording

Z = 1.96
"""Half-width of a 95 % interval in standard errors."""
SURE = 3.0
"""The same of a 99.7 % interval, for what is looked at anew at every step."""


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
    """Proxy and gold reward of the policy at `step`; `kl` in nats from where it started, of each row that was learned from.

    `gold_correlation` is that of the trajectories' advantages with their gold rewards, if it was measured.
    """

    step: int
    proxy: Measure
    gold: Measure
    kl: float = math.nan
    gold_correlation: Measure | None = None


@dataclass(frozen=True)
class Alarm:
    """Seen at step `step`: since step `best` the proxy has risen and the gold reward "stays", "falls", or "turns"; go back to `best`."""

    step: int
    best: int
    proxy: tuple[float, float]
    gold: tuple[float, float]
    sign: Literal["stays", "falls", "turns"]

    def __str__(self) -> str:
        proxy, gold = (f"{a:.3g} to {b:.3g}" for a, b in (self.proxy, self.gold))
        since = f"from step {self.best} to {self.step} the proxy reward went from {proxy}, the gold reward from {gold}"
        turns = ", and trajectories with a higher reward have a lower gold reward" if self.sign == "turns" else ""
        return f"reward hacking: {since}{turns}; go back to step {self.best}"


def points(rows: Sequence[dict[str, Any]], proxy: str) -> list[Point]:
    """The points of a run from its metrics, where both were measured; `proxy` is the key of the reward that it was trained on."""
    found = []
    for r in rows:
        if proxy in r and "gold" in r:
            measures = [Measure(r[k], r[f"{k}_stderr"], r[f"{k}_std"]) for k in (proxy, "gold")]
            gold_correlation = Measure(r["gold_correlation"], r["gold_correlation_stderr"], 1.0) if "gold_correlation" in r else None
            found.append(Point(r["step"], *measures, kl=r.get("kl", math.nan), gold_correlation=gold_correlation))
    return found


def alarm(found: Sequence[Point], window: int = 3, patience: int = 2) -> Alarm | None:
    """The first alarm of a run, or None.

    Every point is the mean of a moving window; the alarm goes off after `patience` points in a row in which

    - gold stays: since the beginning the proxy's interval has risen by 2 standard deviations of a trajectory, and gold's not by 1;
    - gold falls: since gold was best the proxy's interval has risen clear of where it was, and gold's fallen clear, by at least
      3 % of all that gold had gained; or
    - gold turns: since the beginning the proxy's interval has risen clear of where it was, and gold rewards fall with the
      reward within a step, with 99.7 % confidence.
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
        stays = rise > max(0.0, 2 * first.proxy.std) and now.gold.high - first.gold.mean < first.gold.std
        lost = best.gold.mean - now.gold.mean
        gained = abs(best.gold.mean - first.gold.mean)
        falls = now.proxy.low > best.proxy.high and now.gold.high < best.gold.low and lost > 0.03 * gained
        turns = rise > 0 and now.gold_correlation is not None and now.gold_correlation.mean + SURE * now.gold_correlation.stderr < 0
        self.in_a_row = self.in_a_row + 1 if stays or falls or turns else 0
        if self.in_a_row != self.patience:
            return None
        since, sign = (best, "falls") if falls else (best, "turns") if turns else (first, "stays")
        return Alarm(now.step, since.step, (since.proxy.mean, now.proxy.mean), (since.gold.mean, now.gold.mean), sign)


def _mean(found: Sequence[Point]) -> Point:
    n = len(found)

    def middle(measures: Sequence[Measure]) -> Measure:
        stderr = math.sqrt(sum(m.stderr**2 for m in measures)) / n
        return Measure(sum(m.mean for m in measures) / n, stderr, sum(m.std for m in measures) / n)

    correlations = [p.gold_correlation for p in found if p.gold_correlation is not None]
    gold_correlation = middle(correlations) if len(correlations) == n else None
    return Point(
        found[-1].step, middle([p.proxy for p in found]), middle([p.gold for p in found]), sum(p.kl for p in found) / n, gold_correlation
    )


# Tells: what a hacked reward often looks like in the trajectories themselves


def explained(scores: Sequence[float], by: Sequence[float]) -> float:
    """Share of the scores' variance that another number, such as the length, explains: R^2."""
    if len(scores) < 3 or np.std(scores) == 0 or np.std(by) == 0:
        return 0.0
    return float(np.corrcoef(scores, by)[0, 1] ** 2)


def repetition(text: str, size: int = 3) -> float:
    """Share of the runs of `size` words that stood there before; 0 in a text that never repeats itself."""
    return wording.repetition(text.lower().split(), size)


def distinct(texts: Sequence[str]) -> float:
    """Share of answers that differ from all others; low, the policy has collapsed onto a few."""
    counts = Counter(" ".join(t.split()) for t in texts)
    return sum(1 for c in counts.values() if c == 1) / max(len(texts), 1)


def one_event(rewards: Sequence[float]) -> float:
    """How often the same reward came, as a share of all steps: in a task of rare events a high share is one event again and again."""
    given = [round(float(r), 6) for r in rewards if r]
    return max(Counter(given).values()) / len(rewards) if given else 0.0
