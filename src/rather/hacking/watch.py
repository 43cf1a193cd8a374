"""A training that is watched for reward hacking, and ends where the alarm goes off."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rather.errors import CheckpointError
from rather.hacking.alarm import Alarm, lookouts, points

NOTE = "alarm.json"


class Watch:
    """A callback of a training, which ends at the first alarm: `raised`.

    `rounds` are the metrics of the rounds before, and those of this one's steps until the checkpoint that it goes on from; `proxy` is the
    key of its reward. `dismissed` are each round's steps whose alarm was dismissed.

        watch = Watch()
        rather.GRPO(model, prompts, reward, gold=gold, callbacks=[watch]).train()
        print(watch.raised)
    """

    def __init__(
        self,
        rounds: Sequence[Sequence[dict[str, Any]]] = ((),),
        proxy: str = "score",
        dismissed: Sequence[Collection[int]] = (),
    ) -> None:
        self.proxy, self.lookout = proxy, lookouts([points(rows, proxy) for rows in rounds], dismissed)[-1]

    @property
    def raised(self) -> Alarm | None:
        """The alarm, if it has gone off."""
        return self.lookout.raised

    def __call__(self, step: int, values: dict[str, float]) -> bool:
        """Whether the alarm has gone off, now or before."""
        for point in points([{"step": step, **values}], self.proxy):
            self.lookout.see(point)
        return self.raised is not None


def note(folder: Path, alarm: Alarm, kept: int) -> None:
    """Keep beside a training's checkpoints that an alarm has ended it, and of which step the last one is that it `kept`."""
    temporary = folder / f".{NOTE}"
    temporary.write_text(json.dumps({"kept": kept, "alarm": asdict(alarm)}, indent=1))
    temporary.replace(folder / NOTE)


def noted(folder: Path, newest: int) -> Alarm | None:
    """The alarm that has ended a training whose last checkpoint is that of step `newest`; None where it has gone on since.

    Raises:
        CheckpointError: the note is damaged.
    """
    path = folder / NOTE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return Alarm(**found["alarm"]) if found["kept"] == newest else None
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}); delete it, and the training goes on") from None


def forget(folder: Path) -> None:
    """A training goes on, or has come to its end without an alarm."""
    (folder / NOTE).unlink(missing_ok=True)
