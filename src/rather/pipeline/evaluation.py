"""What an evaluation is: its settings. What was asked, of which prompts, with which sampling, against which base, and who judges."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rather import renamed
from rather.config.schema import Config
from rather.config.toml import mattering
from rather.core import Task
from rather.judges import concise
from rather.judges.known import CONCISE
from rather.text import load

CHUNK = 1 << 16
PLACES = 64
"""A file stands for itself by its name, its size and chunks at so many places: whoever trains a model changes all of it."""


def identity(config: Config, policy: str, base: tuple[Path | None, Path | None], tasks: Sequence[Task]) -> str:
    """Eight digits that stand for an evaluation of the weights `policy` on `tasks` against `base`, a model and the adapter on it; equal
    settings, equal digits.
    """
    against = "/".join(fingerprint(path) for path in base if path)
    asked = {"settings": renamed.earlier(mattering(config, "eval")), "policy": policy, "base": against, "tasks": [asdict(t) for t in tasks]}
    if any(member.utility == CONCISE for member in config.judge.panel):  # another reader, another evaluation
        asked["concise"] = concise.TEMPERATURE, concise.USUAL
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def name(run: Any, of: str, policy: str) -> str:
    """The purpose, `of` and eight digits, of what is asked in a run's evaluation of the weights `policy` on its held-out tasks."""
    c = run.config
    base = (None, None) if c.control.env else load.located(c.model.path, c.model.adapter)
    return f"{of}-{identity(c, policy, base, run.tasks[1])}"


def fingerprint(model: Path) -> str:
    """Digits that stand for the contents of a model's file or folder, wherever it lies."""
    found = hashlib.sha256()
    for path in sorted(x for x in model.iterdir() if x.is_file()) if model.is_dir() else [model]:
        size = path.stat().st_size
        found.update(f"{path.name if model.is_dir() else ''}\0{size}\0".encode())
        with path.open("rb") as file:
            for place in range(PLACES):
                file.seek(place * max(size - CHUNK, 0) // (PLACES - 1))
                found.update(file.read(CHUNK))
                if size <= CHUNK:
                    break
    return found.hexdigest()


def voters(run: Any) -> list[str]:
    """The judges whose answers count in an evaluation: those of the settings; none is named where it is whoever the page lets in."""
    if run.judges:
        return [judge.name for judge in run.judges]
    return [run.config.judge.name] if run.config.judge.kind == "terminal" else []
