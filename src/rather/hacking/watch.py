"""A training that is watched for reward hacking, and ends where the alarm goes off."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rather.hacking.alarm import Alarm, Lookout, points

NOTE = "alarm.json"


class Watch:
    """A callback of a training, which ends at the first alarm: `raised`.

    A training that goes on from a checkpoint gives the metrics of its steps until then as `rows`; `proxy` is the key of its reward.

        watch = Watch()
        rather.GRPO(model, prompts, reward, gold=gold, callbacks=[watch]).train()
        print(watch.raised)
    """

    def __init__(self, rows: Sequence[dict[str, Any]] = (), proxy: str = "score") -> None:
        self.proxy, self.lookout = proxy, Lookout()
        self.raised: Alarm | None = None
        self._see(rows)

    def __call__(self, step: int, values: dict[str, float]) -> bool:
        """Whether the alarm has gone off, now or before."""
        self._see([{"step": step, **values}])
        return self.raised is not None

    def _see(self, rows: Sequence[dict[str, Any]]) -> None:
        for point in points(rows, self.proxy):
            self.raised = self.raised or self.lookout.see(point)


def note(folder: Path, alarm: Alarm) -> None:
    """Keep beside a training's checkpoints that an alarm has ended it."""
    temporary = folder / f".{NOTE}"
    temporary.write_text(json.dumps(asdict(alarm), indent=1))
    temporary.replace(folder / NOTE)


def noted(folder: Path) -> Alarm | None:
    """The alarm that has ended a training, if one has."""
    path = folder / NOTE
    return Alarm(**json.loads(path.read_text())) if path.exists() else None
