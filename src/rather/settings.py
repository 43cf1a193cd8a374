"""What a section of settings is, how a setting says what it matters to, and settings that are given as keyword arguments."""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rather import renamed
from rather.errors import ConfigError


class Section(BaseModel):
    """A TOML section; a key that is not listed is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MattersTo:
    """Declares that a setting or a section matters to some uses alone: to learners by name, to "sample" and to "eval".

    What is not declared matters to all of them: neither training nor sampling goes on from what was made with another value, and an
    evaluation with another value is another evaluation. `config.toml.mattering` reads it.
    """

    def __init__(self, *uses: str) -> None:
        self.uses = frozenset(uses)


LOWEST_TEMPERATURE = 1e-6


def _can_divide(temperature: float) -> float:
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise ValueError(f"a temperature below {LOWEST_TEMPERATURE:g} is too low to divide by; 0 takes the likeliest token")
    return temperature


Temperature = Annotated[float, Field(ge=0), AfterValidator(_can_divide)]
T = TypeVar("T")
OFF_POLICY = ("sb3:SAC", "sb3:TD3")
"""Learners of Stable-Baselines3."""
REWARDED = ("ppo", "grpo", *OFF_POLICY)
"""Learners whose policy acts, and is rewarded for it."""
UNSUPERVISED = "unsupervised"
"""The training before the first questions, of train.learner on the entropy of states."""
LEARNERS = ("sft", "reward", "dpo", "kto", *REWARDED, "zeroth")
ForLearners = Annotated[T, MattersTo(*LEARNERS)]
ForLearnersAndSampling = Annotated[T, MattersTo(*LEARNERS, "sample")]
ForActing = Annotated[T, MattersTo(*REWARDED, "zeroth")]
"""Learners whose policy meets the prompts itself; the others learn from labels, wherever these come from."""
ForEval = Annotated[T, MattersTo("eval")]
Free = Annotated[T, MattersTo()]
"""Changes neither what is learned nor what is evaluated, or may grow when a run goes on."""


def check_seed(seed: object) -> None:
    """Make sure that random numbers can be drawn by this seed.

    Raises:
        ConfigError: it is no whole number of 0 or more.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; give a whole number of 0 or more")


def given(caller: str, options: Mapping[str, Any], *sections: type[Section]) -> list[Any]:
    """Keyword arguments as settings: one object for each of `sections`, with the settings that it knows.

    Raises:
        ConfigError: an argument is in none of the sections, or its value is wrong; the message names `caller` and the argument.
    """
    known = {name for section in sections for name in section.model_fields}
    pairs = [(old.rpartition(".")[2], new.rpartition(".")[2]) for old, new in renamed.SETTINGS.items()]
    now = {old: new for old, new in pairs if new in known and old not in known}
    for name in options:
        if name in now:
            raise ConfigError(f"{caller}: the argument {name} is called {now[name]} now")
        if name not in known:
            raise ConfigError(f"{caller} has no argument {name!r}; {nearest(name, known)}")
    try:
        return [section(**{name: value for name, value in options.items() if name in section.model_fields}) for section in sections]
    except ValidationError as e:
        raise ConfigError(f"{caller}: {wrong(e)}") from None


def wrong(error: ValidationError) -> str:
    """The first setting in an error whose value is wrong, and why; of several settings together no value is repeated."""
    first = error.errors()[0]
    got = "" if first["type"] == "missing" or isinstance(first["input"], Mapping) else f" (got {first['input']!r})"
    message, where = first["msg"].removeprefix("Value error, "), ".".join(map(str, first["loc"]))
    return f"{where}: {message[0].lower()}{message[1:]}{got}" if where else f"{message}{got}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint in an error about a name that is not known."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that are among `patterns`, in which * stands for any letters."""
    patterns = list(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def mattering(section: Section, use: str) -> dict[str, Any]:
    """The settings of a section that matter to a use, see `MattersTo`."""
    fields = type(section).model_fields
    return section.model_dump(include={name for name, field in fields.items() if matters(field.metadata, use)})


def matters(marks: Iterable[Any], use: str) -> bool:
    """Whether what has these marks matters to a use."""
    return all(use in mark.uses for mark in marks if isinstance(mark, MattersTo))
