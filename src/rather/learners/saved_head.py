"""What a reward head has learned, to disk and back: safetensors and JSON."""

# safetensors does not say all that its functions take and give.
# pyright: reportUnknownVariableType=false

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rather.errors import ModelError
from rather.learners.head import Answers, Choice, Learned, Posterior

NUMBERS, FACTS = "reward_head.safetensors", "reward_head.json"


def save(folder: Path, known: Learned, **about: object) -> None:
    """Write what has been learned as reward_head.safetensors, and what there is to say `about` it as reward_head.json."""
    p, c = known.posterior, known.choice
    numbers = {
        "w": p.w, "log_temperatures": p.log_temperatures, "center": c.center, "scale": c.scale,
        "z": p.answers.z.astype(np.float32), "preference": p.answers.preference, "judge": p.answers.judge,
    }  # fmt: skip
    numbers |= {} if c.basis is None else {"basis": c.basis}
    evidence = None if np.isnan(c.evidence) else c.evidence
    facts = {"groups": c.groups, "ridge": c.ridge, "first": c.first, "evidence": evidence, "judges": known.judges}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(x) for name, x in numbers.items()}, folder / NUMBERS)
    (folder / FACTS).write_text(json.dumps(about | facts, indent=1) + "\n")


def about(folder: Path) -> dict[str, Any]:
    """What there is to say about a saved reward head.

    Raises:
        ModelError: `folder` holds none.
    """
    return _read(folder)[0]


def restored(folder: Path) -> Learned:
    """What `save` wrote.

    Raises:
        ModelError: `folder` holds no reward head.
    """
    facts, numbers = _read(folder)
    answers = Answers(numbers["z"].astype(np.float64), numbers["preference"], numbers["judge"], len(facts["judges"]))
    evidence = float("nan") if facts["evidence"] is None else facts["evidence"]
    scaled = numbers["center"], numbers["scale"], facts["ridge"], facts["first"]
    choice = Choice(tuple(facts["groups"]), *scaled, evidence, numbers.get("basis"))
    return Learned(choice, Posterior(answers, choice.ridge, numbers["w"], numbers["log_temperatures"]), tuple(facts["judges"]))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        return json.loads((folder / FACTS).read_text()), load_file(folder / NUMBERS)
    except (OSError, ValueError, SafetensorError) as e:
        raise ModelError(f"{folder} holds no reward head: {e}") from None
