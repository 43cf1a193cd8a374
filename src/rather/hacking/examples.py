"""Answers that were exploited: how much they gained by the proxy reward and by the gold reward, kept beside a training's checkpoints."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rather.errors import CheckpointError

NOTE = "exploited.json"


@dataclass(frozen=True)
class Example:
    """Answers of the base policy and of a hacked one to a prompt, with proxy and gold reward of the two.

    `gold` is None where it is unknown.
    """

    prompt: str
    before: str
    after: str
    proxy: tuple[float, float]
    gold: tuple[float, float] | None


def most_exploited(found: list[Example]) -> list[Example]:
    """Examples whose proxy has risen more than their gold, in standard deviations of all answers, those first where it has most.

    Where gold is unknown it counts as unchanged.
    """
    if not found:
        return []
    proxy, gold = np.array([x.proxy for x in found]), np.array([x.gold or (0.0, 0.0) for x in found])
    risen = [np.diff(values)[:, 0] / (values.std() or 1.0) for values in (proxy, gold)]
    apart = risen[0] - risen[1]
    return [found[i] for i in np.argsort(-apart, kind="stable") if risen[0][i] > 0 and apart[i] > 0]


def note(folder: Path, step: int, examples: list[Example]) -> None:
    """Keep the examples of the alarm of step `step` beside the training's checkpoints."""
    temporary = folder / f".{NOTE}"
    temporary.write_text(json.dumps({"step": step, "examples": [asdict(x) for x in examples]}, indent=1))
    temporary.replace(folder / NOTE)


def noted(folder: Path, step: int | None = None) -> list[Example] | None:
    """The examples that are kept in `folder`; None where there are none, or with a `step` none of its alarm.

    Raises:
        CheckpointError: the note is damaged.
    """
    path = folder / NOTE
    try:
        found = json.loads(path.read_text())
        if step is not None and found["step"] != step:
            return None
        return [_example(**row) for row in found["examples"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as e:
        raise CheckpointError(
            f"{path} cannot be read ({e}); delete it; `rather train` or `rather hack` of that round makes it again"
        ) from None


def newest(folders: Iterable[Path]) -> list[Example]:
    """The examples of the last of several rounds' folders in which an alarm has left some, or none.

    Raises:
        CheckpointError: a note is damaged.
    """
    return next((found for folder in reversed([*folders]) if (found := noted(folder)) is not None), [])


def _example(prompt: str, before: str, after: str, proxy: list[float], gold: list[float] | None) -> Example:
    """An example from its row, whose numbers are checked."""

    def two(values: list[float]) -> tuple[float, float]:
        a, b = map(float, values)
        if not (math.isfinite(a) and math.isfinite(b)):
            raise ValueError(f"{values} are not finite")
        return a, b

    for text in (prompt, before, after):
        text.encode()  # half of a character cannot be shown
    return Example(prompt, before, after, two(proxy), None if gold is None else two(gold))
