"""What an evaluation is: its settings. What was asked, of which prompts, with which sampling, against which base, and who judges."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rather import renamed
from rather.config.schema import Config
from rather.config.toml import mattering
from rather.core import Task, task_facts
from rather.judges import concise
from rather.judges.known import CONCISE

CHUNK = 1 << 16
PLACES = 64
"""A file stands for itself by its name, its size and chunks at so many places: whoever trains a model changes all of it."""


def identity(
    config: Config, policy: str, base: tuple[Path | None, Path | None], tasks: Sequence[Task], reward_fingerprint: str = ""
) -> str:
    """Eight digits that stand for an evaluation of the weights `policy` on `tasks` against `base`, a model and the adapter on it, among
    whose answers a reward of that fingerprint chooses, if one does; equal settings, equal digits.
    """
    against = "/".join(fingerprint(path) for path in base if path)
    asked: dict[str, Any] = {
        "settings": renamed.earlier(mattering(config, "eval")),
        "policy": policy,
        "base": against,
        "tasks": [task_facts(t) for t in tasks],
    }
    if reward_fingerprint:
        asked["reward"] = reward_fingerprint
    if config.judge.kind == "function":
        asked["function"] = config.judge.function
    if any(member.utility == CONCISE for member in config.judge.panel):  # another reader, another evaluation
        asked["concise"] = concise.TEMPERATURE, concise.USUAL
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:8]


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
