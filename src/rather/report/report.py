"""One self-contained HTML page for a run: no script, nothing fetched, whatever models or people wrote escaped."""

import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import Any, Protocol

import jinja2
import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from rather.config.schema import Config
from rather.core import Comparison, Label
from rather.errors import CheckpointError
from rather.hacking import examples
from rather.hacking.alarm import Z, lookouts
from rather.hacking.spot_check import SpotCheck
from rather.hacking.watch import alarms, silent, watched
from rather.judges.language import words
from rather.learners.metrics import Metrics
from rather.report.cost import Cost
from rather.report.rates import win_rate
from rather.settings import REWARDED, matching
from rather.store import Store, tally
from rather.store.rows import LEARNED

BLUE, ORANGE, GREY = "#3b6ea8", "#d9822b", "#8a8f98"
STYLE: dict[RcKeyType, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.titlesize": 10,
    "axes.titlelocation": "left", "svg.fonttype": "path", "figure.facecolor": "none", "axes.facecolor": "none",
    "svg.hashsalt": "rather", "text.color": "#3c414a", "axes.labelcolor": "#3c414a", "xtick.color": GREY, "ytick.color": GREY,
}  # fmt: skip


def render(page: str, **values: object) -> str:
    """A page with `values` filled in, escaped unless they are Markup."""
    loader = jinja2.PackageLoader("rather.report")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(page).render(**values)


class Reported(Protocol):
    """What a report needs of a run."""

    config: Config
    folder: Path
    metrics: Metrics

    @cached_property
    def store(self) -> Store:
        """The preference store."""
        ...

    @property
    def proxy(self) -> str:
        """The key of the reward that the policy is trained on, among the metrics."""
        ...

    def checkpoints(self, number: int, name: str = "") -> Path:
        """Where the checkpoints of a round are."""
        ...


@dataclass(frozen=True)
class Report:
    """A run's report, one self-contained HTML page; in a notebook it is shown in a frame of its own.

    `path` is where `save` writes it by default: report.html in the run's folder, or NAME-report.html here where that cannot be written to.
    """

    html: str
    path: Path

    @classmethod
    def of(cls, run: Reported, examples: int = 20) -> "Report":
        """The report of a run as it is now, with so many examples."""
        name, path = run.config.run.name, run.folder / "report.html"
        if run.folder.exists() and not os.access(run.folder, os.W_OK):
            path = Path(f"{name}-report.html")
        return cls(_page(run, name, examples), path)

    def save(self, path: str | Path = "") -> Path:
        """Write the page to `path`, whole or not at all; returns the path."""
        path = Path(path or self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(self.html, encoding="utf-8")
        temporary.replace(path)
        return path

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html)}" sandbox style="width: 100%; height: 40em; border: 0"></iframe>'


def _page(run: Reported, name: str, count: int) -> str:
    labels = run.store.labels(name, LEARNED)
    kinds = run.store.judges()
    evals = [row for row in run.metrics.read() if row["phase"].startswith("eval-")]
    held_out = _evaluated(run, evals[-1]) if evals else []
    policy = _evaluated_policy(name, evals[-1]) if evals else ""
    agreement = tally.count(run.store, name, LEARNED).agreement if labels else None
    return render(
        "report.html",
        name=name,
        model=run.config.control.env or run.config.model.path,
        learner=run.config.train.learner,
        agreement=agreement,
        kappas={pair: kappa for pair, kappa in agreement.pairs.items() if not math.isnan(kappa)} if agreement else {},
        bias=tally.position(run.store, name, "train"),
        judges=[_judge_row(j, kinds[j], labels) for j in sorted({x.judge for x in labels})],
        taught=", ".join(matching(sorted({x.judge for x in labels}), run.config.train.judges)),
        simulated=any(kinds[x.judge] == "simulated" for x in labels),
        win=win_rate(held_out, policy) if held_out else None,
        means=_means(evals[-1]) if evals else [],
        against=evals[-1].get("against", "the base model") if evals else "",
        cost=Cost.read(evals[-1]) if evals else None,
        advice=next((row["advice"] for row in reversed(run.metrics.read()) if "advice" in row), ""),
        hacking=_hacking(run) if run.config.train.learner in REWARDED else None,
        plots=[Markup(plot) for plot in _plots(run, evals, held_out, policy)],
        examples=[_example(c, policy) for c in _spread(held_out, count)],
        nan=math.isnan,
    )


def _hacking(run: Reported) -> dict[str, list[Any]] | None:
    """Alarms of reward hacking, spot checks, why no alarm can go off, and examples; None where nothing has been trained."""
    rows = run.metrics.read()
    rounds, dismissed = watched(rows, run.config.train.learner, run.proxy)
    watching = lookouts(rounds, dismissed)
    checks = [str(check) for check in map(SpotCheck.of_row, rows) if check is not None]
    exploited, problem = list[examples.Example](), list[str]()
    try:
        exploited = examples.newest([run.checkpoints(number) for number in range(len(rounds))])
    except CheckpointError as e:
        problem.append(str(e))
    found = {"alarms": alarms(watching), "silent": silent(watching), "checks": checks, "problems": problem, "examples": exploited}
    return found if rounds else None


def _evaluated(run: Reported, row: dict[str, Any]) -> list[Comparison]:
    if "evaluation" not in row:
        return []
    return run.store.answered(run.config.run.name, row["evaluation"], judges=row["judges"] or None).comparisons


def _evaluated_policy(run: str, row: dict[str, Any]) -> str:
    return f"{run}@{row['phase'].removeprefix('eval-')}-{row['step']}-{row['checkpoint']}"


def _means(row: dict[str, Any]) -> list[tuple[str, float, float, float | None]]:
    """What control measures at held-out seeds: what it is, its mean after and before, and half of the interval after if there is one."""
    named = (("return", "mean return of an episode"), ("gold", "mean gold reward of an episode"))
    known = [(key, name, row.get(f"{key}_policy_stderr")) for key, name in named if f"{key}_policy" in row]
    return [(name, row[f"{key}_policy"], row[f"{key}_base"], None if e is None else Z * e) for key, name, e in known]


def _judge_row(judge: str, kind: str, labels: list[Label]) -> dict[str, Any]:
    mine = [x for x in labels if x.judge == judge]
    seconds = sorted(x.seconds for x in mine if x.seconds is not None)
    return {
        "name": judge, "kind": kind, "answers": sum(x.preference is not None for x in mine),
        "ties": sum(x.preference == 0.5 for x in mine), "abstentions": sum(x.preference is None for x in mine),
        "seconds": seconds[len(seconds) // 2] if seconds else None,
    }  # fmt: skip


def _example(comparison: Comparison, policy: str) -> dict[str, Any]:
    after, before = comparison.a[0], comparison.b[0]
    assert comparison.preference is not None
    liked = comparison.preference
    if after.policy != policy:
        after, before, liked = before, after, 1 - liked
    return {"prompt": words(after.task.prompt or ""), "before": before, "after": after, "liked": liked}


def _spread(comparisons: list[Comparison], count: int) -> list[Comparison]:
    """Some of them, evenly taken, so that wins and losses show as they fall."""
    step = max(1, len(comparisons) // count)
    return comparisons[::step][:count]


def _plots(run: Reported, evals: list[dict[str, Any]], held_out: list[Comparison], policy: str) -> list[str]:
    drawn = []
    control = bool(run.config.control.env)
    each, one = ("a trajectory", "an action") if control else ("an answer", "a token")
    trained = by_round(run.metrics.read())
    for learner, rounds in sorted(trained.items(), key=lambda item: item[0] != run.config.train.learner):  # the policy's come first
        for key, title in (
            ("score", "Mean score"),
            ("return", "Mean return of an episode"),
            ("gold", "Mean gold reward"),
            ("loss", "Loss"),
            ("accuracy", "Training comparisons ordered as by the judges"),
            ("margin", "Score of the preferred side above the other"),
            ("kl", f"KL from the reference, nats {each}"),
            ("log_ratio", "Log-ratio of the given answers to the reference, nats an answer"),
            ("entropy", f"Entropy, nats {one}"),
            ("length", f"{'Steps' if control else 'Tokens'} {each}"),
            ("groups_without_variance", "Share of groups that teach nothing"),
        ):
            points = [_points(rows, key) for rows in rounds]
            if max(map(len, points)) > 1:
                drawn.append(figure(f"{title} ({learner})", lambda ax, p=points: _curve(ax, p)))
        if len(rounds[-1]) > 1 and any(key.startswith("temperature/") for key in rounds[-1][-1]):
            title = f"Temperature of each judge: the higher, the less they tell ({learner})"
            drawn.append(figure(title, lambda ax, r=rounds: _temperatures(ax, r)))
    checks = [row for row in run.metrics.read() if row["phase"].startswith("check-")]
    if checks:
        drawn.append(figure("Win rate against the base policy on held-out tasks, 95 % interval", lambda ax: _checks(ax, checks)))
        drawn.append(figure("KL from the base policy, nats an action", lambda ax: _by_answers(ax, checks, "kl")))
        drawn.append(figure("Parameter norm, root mean square", lambda ax: _by_answers(ax, checks, "parameter_norm")))
    if evals and "win_rate" in evals[-1]:
        drawn.append(figure("Win rate against the base policy, 95 % interval", lambda ax: _rates(ax, evals, "win_rate", BLUE)))
    if evals and "score_policy" in evals[-1]:
        drawn.append(figure("Mean score on held-out prompts, before and after, 95 % interval", lambda ax: _scores(ax, evals)))
    if held_out:
        drawn.append(figure("Words of held-out answers", lambda ax: _lengths(ax, held_out, policy)))
    bins = run.metrics.read("calibration")
    if bins:
        drawn.append(figure("Calibration of the reward model", lambda ax: _calibration(ax, bins)))
    return drawn


def by_round(rows: list[dict[str, Any]]) -> dict[str, list[list[dict[str, Any]]]]:
    """What each learner has measured, round by round; the steps of a round follow those of the one before."""
    found = dict[str, dict[int, list[dict[str, Any]]]]()
    for row in rows:
        if match := re.fullmatch(r"train-(.+)-(\d+)", row["phase"]):
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(row)
    learners = dict[str, list[list[dict[str, Any]]]]()
    for learner, rounds in found.items():
        start, learners[learner] = 0, []
        for _, own in sorted(rounds.items()):
            learners[learner].append([row | {"step": start + row["step"]} for row in own])
            start = learners[learner][-1][-1]["step"]
    return learners


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if key in row]


def figure(title: str, draw: Callable[[Axes], None]) -> str:
    """A plot as SVG, drawn by `draw`."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.subplots()
        axes.set_title(fill(title, 48))  # a longer line would be cut off
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _curve(axes: Axes, rounds: list[list[tuple[int, float]]]) -> None:
    for points in filter(None, rounds):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=GREY, alpha=0.5, linewidth=0.8)
        width = max(1, len(values) // 10)
        smooth = [sum(values[max(0, i - width) : i + 1]) / len(values[max(0, i - width) : i + 1]) for i in range(len(values))]
        axes.plot(steps, smooth, color=BLUE, linewidth=1.8)
    _step_axis(axes, [points[-1][0] for points in rounds if points])


def _temperatures(axes: Axes, rounds: list[list[dict[str, Any]]]) -> None:
    for i, key in enumerate(sorted(key for key in rounds[-1][-1] if key.startswith("temperature/"))):
        name = key.removeprefix("temperature/").replace("$", r"\$")
        for points in filter(None, (_points(rows, key) for rows in rounds)):
            axes.plot(*zip(*points, strict=True), linewidth=1.6, color=f"C{i % 10}", label=name)
            name = None  # once in the legend
    axes.set_yscale("log")
    _step_axis(axes, [rows[-1]["step"] for rows in rounds])
    axes.legend(fontsize="small")


def _step_axis(axes: Axes, ends: list[int]) -> None:
    """Steps, with a line where a round ends and another one follows."""
    for end in ends[:-1]:
        axes.axvline(end, color=GREY, linewidth=0.5, alpha=0.4)
    axes.set_xlabel("step" if len(ends) == 1 else f"step, {len(ends)} rounds one after the other")


def _rates(axes: Axes, evals: list[dict[str, Any]], key: str, color: str, label: str | None = None) -> None:
    mean = [row[key] for row in evals]
    bars = [[row[key] - row[f"{key}_low"] for row in evals], [row[f"{key}_high"] - row[key] for row in evals]]
    axes.errorbar(range(len(evals)), mean, yerr=bars, fmt="o", color=color, capsize=4, label=label)
    if key == "win_rate":
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(evals)), [f"round {row['phase'].removeprefix('eval-')}" for row in evals])
    axes.set_xlim(-0.7, len(evals) - 0.3)
    axes.set_ylim(0, 1)


def _checks(axes: Axes, checks: list[dict[str, Any]]) -> None:
    known = [row for row in checks if "win_rate" in row]
    answers, mean = [row["answers"] for row in known], [row["win_rate"] for row in known]
    axes.fill_between(answers, [row["win_rate_low"] for row in known], [row["win_rate_high"] for row in known], color=BLUE, alpha=0.2)
    axes.plot(answers, mean, "o-", color=BLUE, clip_on=False)
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_ylim(0, 1)
    axes.set_xlabel("answers")


def _by_answers(axes: Axes, checks: list[dict[str, Any]], key: str) -> None:
    axes.plot([row["answers"] for row in checks], [row[key] for row in checks], "o-", color=BLUE, clip_on=False)
    axes.set_ylim(0, None)
    axes.set_xlabel("answers")


def _scores(axes: Axes, evals: list[dict[str, Any]]) -> None:
    """Scores of verifiers, which need not be shares."""
    _rates(axes, evals, "score_base", ORANGE, "before")
    _rates(axes, evals, "score_policy", BLUE, "after")
    ends = [row[f"score_{who}{end}"] for row in evals for who in ("base", "policy") for end in ("_low", "_high")]
    if min(ends) < 0 or max(ends) > 1:
        axes.autoscale(axis="y")
    axes.legend(frameon=False, ncols=2)


def _lengths(axes: Axes, held_out: list[Comparison], policy: str) -> None:
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for c in held_out:
        for t in (c.a[0], c.b[0]):
            lengths[t.policy == policy].append(len((t.text or "").split()))
    bins = range(0, max(map(max, lengths.values())) + 5, 4)
    axes.hist([lengths[False], lengths[True]], bins=list(bins), color=[ORANGE, BLUE], label=["before", "after"])
    axes.set_xlabel("words")
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))


def _calibration(axes: Axes, bins: list[dict[str, Any]]) -> None:
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=0.8, linestyle="--")
    sizes = [12 + 4 * row["count"] for row in bins]
    axes.scatter([row["predicted"] for row in bins], [row["observed"] for row in bins], s=sizes, color=BLUE)
    axes.set_xlabel("predicted P(preferred)")
    axes.set_ylabel("came true")
    axes.set_ylim(0, 1.05)
