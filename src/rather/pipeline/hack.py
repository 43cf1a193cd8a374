"""`rather hack`: a run, and for control its twin that is trained on the hand-written reward, watched for reward hacking."""

from dataclasses import replace
from pathlib import Path

from rather.errors import ConfigError
from rather.hacking import alarm
from rather.hacking.watch import alarms, silent, watched
from rather.pipeline import exploits
from rather.pipeline.run import Run
from rather.report.hacking import Side, write
from rather.settings import REWARDED


def compare(run: Run) -> Path:
    """Take the run through its loop, and its twin if it has one; write the page and return its path.

    Raises:
        ConfigError: there is no gold reward.
    """
    c = run.config
    if c.train.learner not in REWARDED:
        raise ConfigError(f'train.learner is "{c.train.learner}"; only {", ".join(REWARDED)} have a proxy reward that can be hacked')
    if not (c.control.gold or c.hack.gold):
        raise ConfigError("there is no gold reward; set control.gold to a name in the environment's info, or hack.gold to a utility")
    sides = list[Side]()
    if (twin := run.domain.twin()) is not None:
        sides.append(_watched(Run(twin, run.console), "trained on the hand-written reward"))
    title = {"labels": "trained on what was learned from comparisons", "environment": "trained on the hand-written reward"}
    sides.append(_watched(run, title.get(c.train.reward, f"trained on {c.train.reward}")))
    return write(run.folder / "hacking.html", c.run.name, sides)


def _watched(run: Run, title: str) -> Side:
    """The run's side of the page; says how it did on the way."""
    c, console = run.config, run.console
    console.rule(title)
    result = run.loop()
    name, last = c.train.learner, c.loop.rounds - 1
    rounds, dismissed = watched(run.metrics.read(), name, run.proxy)
    gold = c.control.gold or c.hack.gold
    side = Side(title, rounds, "proxy reward", gold, dismissed=dismissed)
    found = alarms(side.watching)
    console.print(result or "", highlight=False)
    for sentence in found:
        console.print(f"[bold red]{sentence}[/bold red]", highlight=False)
    for sentence in (mute := silent(side.watching)):
        console.print(f"[yellow]{sentence}[/yellow]", highlight=False)
    if not (found or mute):
        console.print("[green]no alarm[/green]: the gold reward has kept up with the proxy reward")
    if (shown := run.domain.episode(run.policy(last + 1))) is None:
        raised = [(number, raised_alarm) for number, lookout in enumerate(side.watching) if (raised_alarm := lookout.raised) is not None]
        return replace(side, examples=exploits.remember(run, *raised[-1])) if raised else side
    episode, clip, problem = shown
    if problem:
        console.print(f"The page shows no drive: {problem}.", highlight=False, markup=False)
    assert episode.rewards is not None
    evaluated = run.metrics.read(f"eval-{last}")[-1]
    facts = [
        (f"{evaluated['gold_policy']:.2f}", f"{gold} a trajectory"),
        (f"{evaluated['return_policy']:.0f}", "a trajectory, by the hand-written reward"),
        (f"{100 * alarm.one_event(episode.rewards.tolist()):.0f} %", "of steps with the same reward"),
    ]  # fmt: skip
    return replace(side, facts=facts, clip=clip, problem=problem)
