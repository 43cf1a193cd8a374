"""What a run measures, one JSON object a line in metrics.jsonl; docs/reference/metrics.md explains every key."""

# PyTorch says in part alone what `backward`, `step` and `tolist` take and give.
# pyright: reportUnknownMemberType=false

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rather import renamed
from rather.errors import ConfigError

Mirror = Callable[[str, int, dict[str, float]], None]

CLOCK = ("seconds", "tokens_per_s", "peak_gib")
"""Keys that differ between two runs that are otherwise the same."""


class Metrics:
    """A metrics.jsonl that is appended to, line by line, and flushed after each; `mirrors` get the same."""

    def __init__(self, path: Path, mirrors: Sequence[Mirror] = ()) -> None:
        self.path, self.mirrors = path, mirrors
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, phase: str, step: int, values: dict[str, float], **words: object) -> None:
        """Append one line for `step` of `phase` ("train", "eval", ...); `words` go to the file alone. Only the first rank writes."""
        from rather.scale import ranks  # with torch, which reading does without

        if ranks.rank():
            return
        with self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) + 1 and file.read() != b"\n":  # unfinished, as by a full disk
                file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            file.write(json.dumps({"phase": phase, "step": step, **words, **values}).encode() + b"\n")
        for mirror in self.mirrors:
            mirror(phase, step, values)

    def replace(self, phase: str, step: int, values: dict[str, float], **words: object) -> None:
        """One line in place of all lines of `phase`; in a folder that cannot be written to they stay as they are."""
        if os.access(self.path.parent, os.W_OK):
            self.rewind(phase, -1)
            self.write(phase, step, values, **words)

    def read(self, phase: str | None = None) -> list[dict[str, Any]]:
        """All lines, or those of one phase, under the names of today; an unfinished last line is left out."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        rows = [renamed.metrics(json.loads(line)) for line in lines if line.endswith("\n")]
        return [row for row in rows if phase is None or row["phase"] == phase]

    def rewind(self, phase: str, step: int) -> None:
        """Forget the lines of `phase` after `step`: they will be made again."""
        from rather.scale import ranks

        if ranks.rank():
            return
        rows = [row for row in self.read() if row["phase"] != phase or row["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        temporary.replace(self.path)


def mirrors(tensorboard: bool, wandb_project: str, folder: Path) -> list[Mirror]:
    """TensorBoard and Weights & Biases, where they are wanted.

    Raises:
        ConfigError: the package is not installed.
    """
    found: list[Mirror] = []
    try:
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"))

            def add(phase: str, step: int, values: dict[str, float]) -> None:
                for key, value in values.items():
                    writer.add_scalar(f"{phase}/{key}", value, step)
                writer.flush()

            found.append(add)
        if wandb_project:
            import wandb

            same = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a run that goes on is the same run there
            run = wandb.init(project=wandb_project, name=folder.name, id=same, dir=str(folder), resume="allow")
            found.append(lambda phase, step, values: run.log({f"{phase}/{k}": v for k, v in {**values, "step": step}.items()}))
    except ImportError as e:
        raise ConfigError(f"[log] needs the package {e.name}; install it or switch it off") from None
    return found
