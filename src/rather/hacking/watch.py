"""A training that is watched for reward hacking, and ends where the alarm goes off."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rather.hacking.alarm import Alarm, lookouts, points

NOTE = "alarm.json"


class Watch:
    """A callback of a training, which ends at the first alarm: `raised`.

    `rounds` are the metrics of the rounds before, and those of this one's steps until the checkpoint that it goes on from; `proxy` is the
    key of its reward.

        watch = Watch()
        rather.GRPO(model, prompts, reward, gold=gold, callbacks=[watch]).train()
        print(watch.raised)
    """

    def __init__(self, rounds: Sequence[Sequence[dict[str, Any]]] = ((),), proxy: str = "score") -> None:
        self.proxy, self.lookout = proxy, lookouts([points(rows, proxy) for rows in rounds])[-1]

    @property
    def raised(self) -> Alarm | None:
        """The alarm, if it has gone off."""
        return self.lookout.raised

    def __call__(self, step: int, values: dict[str, float]) -> bool:
        """Whether the alarm has gone off, now or before."""
        for point in points([{"step": step, **values}], self.proxy):
            self.lookout.see(point)
        return self.raised is not None


def note(folder: Path, alarm: Alarm) -> None:
    """Keep beside a training's checkpoints that an alarm has ended it."""
    temporary = folder / f".{NOTE}"
    temporary.write_text(json.dumps(asdict(alarm), indent=1))
    temporary.replace(folder / NOTE)


def noted(folder: Path) -> Alarm | None:
    """The alarm that has ended a training, if one has."""
    path = folder / NOTE
    return Alarm(**json.loads(path.read_text())) if path.exists() else None
