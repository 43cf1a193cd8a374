"""What every learner is to whoever uses it: steps one by one, an iterator over their metrics, or a training with held-out data."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn

from rather.core import Comparison, Model
from rather.errors import ConfigError
from rather.learners import checkpoint, prequential
from rather.learners.checkpoint import Lineage
from rather.learners.common import Stepper, put
from rather.learners.metrics import Metrics
from rather.learners.progress import progress, shows
from rather.learners.settings import Optimization
from rather.learners.train import Callback, check_callbacks, training
from rather.scale import ranks
from rather.settings import Section, mattering

SHOWN = ("loss", "accuracy", "eval_accuracy", "score", "return", "gold", "kl", "log_ratio")
"""The metrics that stand beside a progress bar."""


M = TypeVar("M", bound=Model)
D = TypeVar("D")
"""The held-out data that a learner can be evaluated on."""


class Learner(ABC, Generic[M, D]):
    """Improves a policy or a reward model, `step` by `step`, `steps` of them in all.

    With a `folder` it writes checkpoints and metrics.jsonl there, and `train` goes on from the newest checkpoint, exactly. Callbacks get
    (step, metrics) after each step of `train` or of an iteration, and end it by returning True. `settings` are the sections that a
    checkpoint must have been trained with, beside the learner itself, its seed and what is `about` it.
    """

    name: ClassVar[str]
    """What the learner is called in a run's settings."""
    best: ClassVar[tuple[str, float]] = ("accuracy", 1.0)
    """What `evaluate` measures that early stopping goes by, and whether more of it is better (1) or worse (-1)."""
    model: M
    stepper: Stepper

    def __init__(
        self,
        model: M,
        steps: int,
        optimization: Optimization,
        seed: int,
        settings: Mapping[str, Section | dict[str, Any]],
        callbacks: Sequence[Callback],
        folder: Path | str | None,
        **about: str | None,
    ) -> None:
        self.model, self.steps, self.how, self.seed = model, steps, optimization, seed
        self.callbacks, self.folder = check_callbacks(callbacks), None if folder is None else Path(folder)
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"folder is {str(folder)!r}, which is a file; name a folder for checkpoints and metrics")
        self.settings: dict[str, Section | dict[str, Any]] = {
            "learner": {"name": self.name, "seed": seed, **about}, **settings, "train": optimization,
        }  # fmt: skip

    @property
    def policy(self) -> M:
        """The policy that is trained."""
        return self.model

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that learns."""
        return self.stepper.parameters

    @property
    def taken(self) -> int:
        """Steps that have been taken."""
        return self.stepper.steps

    @property
    def epoch(self) -> int:
        """Steps in which everything that is learned from is used once."""
        return self.steps

    @abstractmethod
    def step(self) -> dict[str, float]:
        """Take one step and return its metrics."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs beside the weights: tensors, numbers and strings, nested."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""

    @abstractmethod
    def evaluate(self, data: D) -> dict[str, float]:
        """How well the model does on held-out data."""

    def put_back(self, values: Sequence[Tensor]) -> None:
        """Give the parameters other values, such as those that they had before."""
        put(values, self.parameters)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Train, and yield the metrics of each step."""
        return self._training(None, lambda step, values: None)

    def train(self, eval: D | None = None, patience: int | None = None, eval_every: int = 0) -> Self:
        """Take all steps that are left.

        With `eval` the model is evaluated every `eval_every` steps (0: each epoch). With `patience` training ends after so many
        evaluations in a row that are no better than the best one, whose weights the model then has.

        Raises:
            ConfigError: there is a `patience` but nothing to evaluate on.
            TrainingError: a loss is not finite.
            CheckpointError: the checkpoint in `folder` is damaged, or was trained with other settings or other data.
        """
        if patience is not None and eval is None:
            raise ConfigError(f"patience is {patience}, but there is no eval to measure by; give train held-out data as eval")
        if patience is not None and patience < 1:
            raise ConfigError(f"patience is {patience}; set it to at least 1 evaluation")
        if eval_every < 0:
            raise ConfigError(f"eval_every is {eval_every}; give a number of steps, or 0 for each epoch")
        if isinstance(eval, Sized) and not len(eval):
            raise ConfigError("eval is empty; give held-out data, or leave it out")
        held_out = None if eval is None else HeldOut(self, eval, eval_every, patience)
        console = Console(stderr=True)
        with progress(console, f"training {self.name}", self.steps) if shows(console) else nullcontext(_nothing) as advance:
            for _ in self._training(held_out, reporter(self.name, advance)):
                pass
        if held_out is not None:
            held_out.restore()
        return self

    def _training(self, held_out: "HeldOut[M, D] | None", report: Callback) -> Iterator[dict[str, float]]:
        metrics = None if self.folder is None else Metrics(self.folder / "metrics.jsonl")
        lineage = self._lineage()
        yield from training(
            self if held_out is None else held_out, self.steps, self.folder, lineage, metrics, self.name, self.how.checkpoint_every,
            self.how.keep, report, lambda step, stopping: None if held_out is not None and held_out.over else lineage,
            [*([] if held_out is None else [held_out]), *self.callbacks], self.taken,
        )  # fmt: skip

    def _lineage(self) -> Lineage:
        sections = {name: mattering(s, self.name) if isinstance(s, Section) else s for name, s in self.settings.items()}
        found = [] if self.folder is None else checkpoint.every(self.folder)
        was: dict[str, Any] = checkpoint.read(found[-1])["settings"] if found else {}
        later = {name: mattering(type(s)(), self.name) for name, s in self.settings.items() if name in was and isinstance(s, Section)}
        defaults = {"learner": sections["learner"]} | later  # older checkpoints do not say the learner, nor settings that came later
        return Lineage(sections | {"_steps": self.steps}, 0, [], defaults=defaults, remedy="set it back, or train into another folder")


class HeldOut(Generic[M, D]):
    """A learner that is evaluated on held-out data every so many steps (0: each epoch), as a callback, and what early stopping remembers.

    Where its training ends the model has the best weights.
    """

    def __init__(self, learner: Learner[M, D], data: D, every: int, patience: int | None) -> None:
        self.learner, self.data, self.every, self.patience = learner, data, every, patience
        self.best, self.since, self.weights = -math.inf, 0, list[Tensor]()

    @property
    def model(self) -> M:
        """The learner's model."""
        return self.learner.model

    @property
    def over(self) -> bool:
        """Whether it has been no better than the best one for too long."""
        return self.patience is not None and self.since >= self.patience

    def step(self) -> dict[str, float]:
        """One step of the learner."""
        return self.learner.step()

    @torch.no_grad()
    def __call__(self, step: int, values: dict[str, float]) -> bool:
        if step % (self.every or self.learner.epoch) and step != self.learner.steps:
            return False
        found = self.learner.evaluate(self.data)
        values |= {f"eval_{name}": value for name, value in found.items()}
        if self.patience is None:
            return False
        name, sign = self.learner.best
        if sign * found[name] > self.best:
            self.best, self.since = sign * found[name], 0
            self.weights = [p.detach().clone() for p in self.learner.parameters]
        else:
            self.since += 1
        if self.over or step == self.learner.steps:  # before the last checkpoint is written
            self.restore()
        return self.over

    def restore(self) -> None:
        """Put the best weights back, if any were kept."""
        if self.weights:
            self.learner.put_back(self.weights)

    def forget(self) -> None:
        """Measure from the beginning: what is learned from, and what it is measured on, have changed."""
        self.best, self.since, self.weights = -math.inf, 0, []

    def state_dict(self) -> dict[str, Any]:
        """The learner's, and the best weights so far."""
        own = {"best": str(self.best), "since": self.since, "weights": list(self.weights)}
        return self.learner.state_dict() | {"held_out": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back; it may be of a training that was not evaluated."""
        self.learner.load_state_dict(state)
        if "held_out" in state:
            own = state["held_out"]
            self.best, self.since = float(own["best"]), own["since"]
            pairs = zip(own["weights"], self.learner.parameters, strict=False)
            self.weights = [ranks.like(was.to(p.device, p.dtype), p) for was, p in pairs]


def _nothing(*_: object) -> None:
    """No bar is shown."""


def reporter(name: str, advance: Callable[..., None]) -> Callback:
    """A callback that moves a progress bar on, with the metrics that matter beside it."""
    at = 0

    def report(step: int, values: dict[str, float]) -> None:
        nonlocal at
        foreseen, known = prequential.sentence(values), [f"{k} {values[k]:.3f}" for k in SHOWN if k in values]
        advance(step - at, "  ".join([f"training {name}", *([foreseen] if foreseen else known)]))
        at = step

    return report


def digest(items: Sequence[object]) -> str:
    """Digits that stand for what is learned from."""
    return hashlib.sha256(json.dumps(items, default=str).encode()).hexdigest()[:16]


def digest_of_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Digits that stand for comparisons and how they were judged."""
    return digest([[c.key, c.judge, c.preference, [t.text for t in (*c.a, *c.b)]] for c in comparisons])
