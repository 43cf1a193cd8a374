"""What `rather doctor` finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: good, worth a note, or bad."""

    grade: Literal["good", "note", "bad"]
    text: str
