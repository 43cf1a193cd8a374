"""What people say a preference on beside the whole, and which of these is learned from."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rather.config.schema import Config
from rather.core import Comparison
from rather.errors import ConfigError, TrainingError
from rather.settings import REWARDED

if TYPE_CHECKING:
    from rather.store import Store

OVERALL = "overall"
"""What the whole is called, which is asked about last."""
MOST, LONGEST = 6, 40


def check(config: Config) -> None:
    """Make sure that people can be asked for `judge.criteria`, and that a learner takes notice of `train.criterion`.

    Raises:
        ConfigError: a name cannot be seen, is too long or like another one; there are too many; or nobody would be asked.
    """
    names, kind, sides, t = config.judge.criteria, config.judge.kind, config.zeroth.best_of, config.train
    if t.criterion and not _learns_from_labels(config):
        raise ConfigError(f'{t.learner} has no reward from labels: leave train.criterion empty, or set train.reward to "labels"')
    if not names:
        return
    if len(names) > MOST:
        raise ConfigError(f"judge.criteria has {len(names)} names; a question is asked on at most {MOST}")
    for i, name in enumerate(names):
        if not (1 <= len(name) <= LONGEST and _visible(name)):
            raise ConfigError(
                f"judge.criteria has the name {name!r}; give 1 to {LONGEST} characters that can be seen, without spaces around"
            )
        if alike := [other for other in (OVERALL, *names[:i]) if _folded(other) == _folded(name)]:
            why = "what is asked last" if alike == [OVERALL] else f"hard to tell from {alike[0]!r}"
            raise ConfigError(f"judge.criteria has the name {name!r}, which is {why}; take another one")
    if kind not in ("people", "terminal"):
        raise ConfigError(
            f'only people answer on judge.criteria, and judge.kind is "{kind}"; set it to "people" or "terminal", or give no criteria'
        )
    if sides > 2:
        raise ConfigError(f"judge.criteria compares two sides, and zeroth.best_of is {sides}; set that to 2, or give no criteria")


def check_learned(config: Config, store: "Store") -> None:
    """Make sure that there are or will be answers on `train.criterion`.

    Raises:
        ConfigError: it is not asked for, and no label in the store says anything on it.
    """
    name, asked = config.train.criterion, config.judge.criteria
    if not name or name in asked or not _learns_from_labels(config):
        return
    answers = [] if config.train.learner == "zeroth" else store.criteria(config.run.name)  # it learns from what it asks itself
    if name not in answers:
        known = ", ".join(dict.fromkeys([*asked, *answers])) or "none"
        raise ConfigError(
            f"train.criterion is {name!r}, but the criteria are {known}; name one of them, add it to judge.criteria, or leave it empty"
        )


def check_said(config: Config, comparisons: Sequence[Comparison]) -> None:
    """Make sure that some answer says a preference on `train.criterion`.

    Raises:
        TrainingError: none does.
    """
    if (name := config.train.criterion) and not comparisons:
        raise TrainingError(f"there is nothing to learn from: no answer that counts says anything on {name!r}, which train.criterion names")


def _learns_from_labels(config: Config) -> bool:
    return config.train.learner not in REWARDED or config.train.reward == "labels"


def _visible(name: str) -> bool:
    return name == name.strip() and all(c.isprintable() for c in name) and any(c.isalnum() for c in name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
