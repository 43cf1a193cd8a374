"""`rather hack`: a run, and for control its twin that is trained on the hand-written reward, watched for reward hacking."""

from pathlib import Path
from typing import Any

from rather.core import Trajectory
from rather.errors import ConfigError, DataError
from rather.hacking import alarm, page
from rather.hacking.page import Side


def compare(run: Any) -> Path:
    """Take the run through its loop, and its twin if it has one; write the page and return its path.

    Raises:
        ConfigError: there is no gold reward.
    """
    c = run.config
    if c.train.learner not in ("ppo", "grpo"):
        raise ConfigError(f'train.learner is "{c.train.learner}"; only ppo and grpo have a proxy reward that can be hacked')
    if not (c.control.gold or c.hack.gold):
        raise ConfigError("there is no gold reward; set control.gold to a name in the environment's info, or hack.gold to a utility")
    sides = []
    if c.control.env and c.train.reward == "labels":
        written = c.model_copy(
            update={
                "run": c.run.model_copy(update={"name": f"{c.run.name}-written"}), "loop": c.loop.model_copy(update={"rounds": 1}),
                "train": c.train.model_copy(update={"reward": "environment", "steps": c.train.steps * c.loop.rounds}),
            }
        )  # fmt: skip
        sides.append(_watched(type(run)(written, run.console), "trained on the hand-written reward"))
    title = {"labels": "trained on a reward learned from comparisons", "environment": "trained on the hand-written reward"}
    sides.append(_watched(run, title.get(c.train.reward, f"trained on the reward of {c.train.reward}")))
    return page.write(run.folder / "hacking.html", c.run.name, sides)


def _watched(run: Any, title: str) -> Side:
    """The run's side of the page; says how it did on the way."""
    c, console = run.config, run.console
    console.rule(title)
    result = run.loop()
    name, last = c.train.learner, c.loop.rounds - 1
    proxy = "return" if c.train.reward == "environment" else "score"
    rounds = [alarm.points(run.metrics.read(f"train-{name}-{number}"), proxy) for number in range(last + 1)]
    found = page.alarms(rounds)
    console.print(result or "", highlight=False)
    for sentence in found:
        console.print(f"[bold red]{sentence}[/bold red]", highlight=False)
    if not found:
        console.print("[green]no alarm[/green]: the gold reward has kept up with the proxy reward")
    gold = c.control.gold or c.hack.gold
    side = Side(title, rounds, "proxy reward", gold)
    if not c.control.env:
        return side
    episode = run.episode(last)
    clip, problem = _animation(run, episode)
    if problem:
        console.print(f"The page shows no drive: {problem}.", highlight=False, markup=False)
    evaluated = run.metrics.read(f"eval-{last}")[-1]
    facts = [
        (f"{evaluated['gold_policy']:.2f}", f"{gold} a trajectory"), (f"{evaluated['return_policy']:.0f}", "hand-written reward"),
        (f"{100 * alarm.one_event(episode.rewards):.0f} %", "of steps had the same reward"),
    ]  # fmt: skip
    return Side(title, rounds, side.proxy, gold, facts, clip, problem)


def _animation(run: Any, episode: Trajectory) -> tuple[bytes, str]:
    """The episode as WebP, drawn in a process that may die, or why there is none."""
    from rather.control.studio import Painter

    painter = Painter(run.studio)
    try:
        return painter.animate(episode), ""
    except DataError as e:
        return b"", str(e)
    finally:
        painter.close()
