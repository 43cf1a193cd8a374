"""The errors that `rather` raises on purpose: one root, one kind for each place where a user can mend something.

A message is one sentence: what was wrong, the value, and what would do. The command line prints it and exits with 2.
`Finding` is what `rather doctor` says of one thing that it has looked at.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal


class RatherError(Exception):
    """Root of every error that is meant for the user."""


class ConfigError(RatherError):
    """A key, a value or a combination of settings that cannot be used."""


class DataError(RatherError):
    """A file, a prompt or a label that cannot be read or does not mean anything."""


class ModelError(RatherError):
    """A model folder, an architecture or a device that cannot be used."""


class StoreError(RatherError):
    """The preference store cannot be opened, read or written."""


class InvitationError(StoreError):
    """An invitation has expired, or was taken back."""


class CheckpointError(RatherError):
    """A checkpoint is incomplete, damaged or of another run."""


class JudgeError(RatherError):
    """A judge cannot be reached or cannot be asked."""


class TrainingError(RatherError):
    """Training cannot go on: no data, or a loss that is not finite."""


class BusyError(RatherError):
    """Another command is at work in the run's folder."""


class RatherWarning(UserWarning):
    """Something goes on that the user should know of."""


def installing(extra: str) -> str:
    """How to install what an extra of this project needs; the name `rather` on the package index is not this project."""
    return f"pip install -e '.[{extra}]' in a clone of rather's repository"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: good, notable, or bad."""

    grade: Literal["good", "note", "bad"]
    text: str


Check = Callable[[], list[Finding]]


def findings(checks: Iterable[Check]) -> list[Finding]:
    """What the checks find; an error that stops one is bad, and stands there once if it stops several."""
    found = list[Finding]()
    for check in checks:
        try:
            found += check()
        except RatherError as e:
            found.append(Finding("bad", str(e)))
    return list(dict.fromkeys(found))
