"""What spot checks after an alarm without a gold reward came to, as a run's metrics keep it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rather.hacking.sequential import Verdict


@dataclass(frozen=True)
class SpotCheck:
    """Comparisons of the policy of step `step` with that of step `of`, after the alarm of step `alarm` in round `round`."""

    round: int
    alarm: int
    step: int
    of: int
    verdict: Verdict

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self | None:
        """The spot check that a row of metrics is about; None where it is about something else."""
        match = re.fullmatch(r"spot-(\d+)-(\d+)", str(row.get("phase")))
        if match is None or "result" not in row:
            return None
        count = int(row["comparisons"])
        verdict = Verdict(row["result"], row.get("win_rate", 0.0) * count, count)
        return cls(int(match[1]), int(match[2]), int(row["step"]), int(row["of"]), verdict)

    @property
    def phase(self) -> str:
        """The phase of its row of metrics."""
        return f"spot-{self.round}-{self.alarm}"

    @property
    def values(self) -> dict[str, float]:
        """The numbers of its row of metrics."""
        v = self.verdict
        return ({"win_rate": v.wins / v.comparisons} if v.comparisons else {}) | {"comparisons": float(v.comparisons)}

    @property
    def confirmed(self) -> bool:
        """Whether the policy has become worse."""
        return self.verdict.result == "worse"

    def __str__(self) -> str:
        v = self.verdict
        found = {"worse": "worse than", "no worse": "no worse than", "unsure": "not clearly better or worse than"}[v.result]
        return (
            f"spot check: the policy of step {self.step} is {found} that of step {self.of} ({v.wins:g} of {v.comparisons} comparisons won)"
        )
