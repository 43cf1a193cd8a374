"""How questions are given out, and which answers are suspicious."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asking:
    """How a run's questions are given out, and what is made of the answers; the owner may change it at any time.

    Each question is answered by `overlap` people. Of what a person is asked, a share `gold` are gold questions (if there are any), a
    share `repeats` are their own earlier questions with the sides exchanged, and a share `random` is drawn at random instead of by
    priority. An answer within `fastest_s` seconds is suspicious; with `flagged` False, suspicious answers are not learnt from.
    """

    overlap: int = 1
    gold: float = 0.1
    repeats: float = 0.05
    random: float = 0.2
    fastest_s: float = 0.5
    flagged: bool = True


def contradicts(given: float | None, known: float) -> bool:
    """Whether one clear answer prefers the other side than another."""
    return given is not None and (given - 0.5) * (known - 0.5) < 0


def flags(labels: Sequence[Any], probes: Mapping[int, tuple[float, int | None]], fastest_s: float) -> dict[int, tuple[str, ...]]:
    """Why answers are suspicious, by the label's number; `labels`, or their rows, are all of a run, oldest first.

    - "fast": it took less than `fastest_s` seconds;
    - "gold": it contradicts a gold question's answer, or was given by the same judge between that one and the gold question before;
    - "inconsistent": asked again, the judge said the opposite; both answers are.
    """
    found: dict[int, list[str]] = {}
    since_gold: dict[Any, list[int]] = {}
    repeated = {original for _, original in probes.values()}
    latest = {(x.judge, x.comparison): x.id for x in labels if x.comparison in repeated}
    for x in labels:
        assert x.id is not None
        stretch = since_gold.setdefault(x.judge, [])
        stretch.append(x.id)
        if x.seconds is not None and x.preference is not None and x.seconds < fastest_s:
            found.setdefault(x.id, []).append("fast")
        if x.comparison not in probes:
            continue
        known, original = probes[x.comparison]
        if original is not None:
            if contradicts(x.preference, known):
                for number in (x.id, latest.get((x.judge, original))):
                    if number is not None:
                        found.setdefault(number, []).append("inconsistent")
            continue
        if contradicts(x.preference, known):
            for number in stretch:
                found.setdefault(number, []).append("gold")
        stretch.clear()
    return {number: tuple(reasons) for number, reasons in found.items()}
