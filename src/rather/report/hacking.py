"""The page of `rather hack`: drives as animations, proxy and gold reward over the steps and over the KL, and the alarm."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from rather.hacking.alarm import Lookout, Point, lookouts
from rather.hacking.examples import Example
from rather.hacking.watch import alarms, silent
from rather.report.report import BLUE, GREY, ORANGE, figure, render


@dataclass(frozen=True)
class Side:
    """One run on the page: its points, round after round, numbers that say how it ended, and an episode as WebP or why it is not drawn.

    `dismissed` are each round's steps whose alarm was dismissed, `examples` answers that were exploited.
    """

    title: str
    rounds: list[list[Point]]
    proxy: str
    gold: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    clip: bytes = b""
    problem: str = ""
    examples: list[Example] = field(default_factory=list[Example])
    dismissed: list[set[int]] = field(default_factory=list[set[int]])

    @cached_property
    def watching(self) -> list[Lookout]:
        """The rounds' lookouts."""
        return lookouts(self.rounds, self.dismissed)


def write(path: Path, name: str, sides: Sequence[Side]) -> Path:
    """Write the page and return its path."""
    gold = [m for s in sides for points in s.rounds for p in points if p.gold is not None for m in (p.gold.low, p.gold.high)]
    span = (min(gold, default=0.0), max(gold, default=1.0))  # the same for all sides, so that little is seen to be little
    shown = [
        {
            "title": s.title, "facts": s.facts, "clip": base64.b64encode(s.clip).decode(), "problem": s.problem,
            "alarms": alarms(s.watching), "silent": silent(s.watching), "examples": s.examples,
            "plots": [Markup(p) for p in _plots(s, span)],
        }
        for s in sides
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("hacking.html", name=name, sides=shown))
    return path


def _plots(side: Side, span: tuple[float, float]) -> list[str]:
    drawn = [figure(f"{side.proxy} and {side.gold}, step by step", lambda ax: _over_steps(ax, side, span))]
    if any(not math.isnan(p.kl) for p in side.rounds[-1]):
        drawn.append(figure("In the last round, by distance from the base policy", lambda ax: _over_kl(ax, side, span)))
    if any(p.gold_correlation is not None for p in side.rounds[-1]):
        drawn.append(figure("Correlation of reward with gold reward, in the last round", lambda ax: _gold_correlation(ax, side)))
    return drawn


def _over_steps(axes: Axes, side: Side, span: tuple[float, float]) -> None:
    """Proxy on the left, gold on the right; rounds one after the other, since each has a reward of its own."""
    other, start = _other(axes, span), 0
    for points, lookout in zip(side.rounds, side.watching, strict=True):
        steps = [start + p.step for p in points]
        for ax, color, what in ((axes, ORANGE, "proxy"), (other, BLUE, "gold")):
            measures = [(step, m) for step, p in zip(steps, points, strict=True) if (m := getattr(p, what)) is not None]
            at = [step for step, _ in measures]
            ax.plot(at, [m.mean for _, m in measures], color=color, linewidth=1.6)
            ax.fill_between(at, [m.low for _, m in measures], [m.high for _, m in measures], color=color, alpha=0.18, linewidth=0)
        if (found := lookout.raised) is not None:
            axes.axvline(start + found.step, color="#b0261b", linewidth=1, linestyle="--")
        start += points[-1].step if points else 0
        axes.axvline(start, color=GREY, linewidth=0.5, alpha=0.4)
    axes.set_xlabel("step")
    axes.set_ylabel(side.proxy, color=ORANGE)
    other.set_ylabel(side.gold, color=BLUE)


def _over_kl(axes: Axes, side: Side, span: tuple[float, float]) -> None:
    points = [(max(p.kl, 0.0) ** 0.5, p) for p in side.rounds[-1] if not math.isnan(p.kl)]
    other, gold = _other(axes, span), [(root, p.gold.mean) for root, p in points if p.gold is not None]
    axes.scatter([root for root, _ in points], [p.proxy.mean for _, p in points], s=8, color=ORANGE)
    other.scatter([root for root, _ in gold], [mean for _, mean in gold], s=8, color=BLUE)
    axes.set_xlabel("square root of the KL from the base policy, in nats")
    axes.set_ylabel(side.proxy, color=ORANGE)
    other.set_ylabel(side.gold, color=BLUE)


def _gold_correlation(axes: Axes, side: Side) -> None:
    known = [(p.step, p.gold_correlation) for p in side.rounds[-1] if p.gold_correlation is not None]
    steps = [step for step, _ in known]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(steps, [m.mean for _, m in known], color=BLUE, linewidth=1.6)
    axes.fill_between(steps, [m.low for _, m in known], [m.high for _, m in known], color=BLUE, alpha=0.18, linewidth=0)
    if (found := side.watching[-1].raised) is not None:
        axes.axvline(found.step, color="#b0261b", linewidth=1, linestyle="--")
    axes.set_ylim(-1, 1)
    axes.set_xlabel("step")


def _other(axes: Axes, span: tuple[float, float]) -> Axes:
    """An axis for the gold reward on the right."""
    other, margin = axes.twinx(), 0.05 * max(span[1] - span[0], 1e-9)
    other.spines["right"].set_visible(True)
    other.set_ylim(span[0] - margin, span[1] + margin)
    return other
