"""The loop over a learner's steps: resume, step, measure, save; Ctrl-C stops after the step at hand, with a checkpoint."""

import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from rather.core import Learner
from rather.errors import ConfigError
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.metrics import Metrics
from rather.scale import ranks

Feed = Callable[[int, Callable[[], bool]], Lineage | None]
Callback = Callable[[int, dict[str, float]], object]
"""Gets the number of steps taken and the metrics of the last one; the training ends where it returns True."""


def check_callbacks(callbacks: Sequence[Callback]) -> list[Callback]:
    """Callbacks as a list.

    Raises:
        ConfigError: they are none.
    """
    if not (isinstance(callbacks, Sequence) and all(map(callable, callbacks))):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"callbacks is {callbacks!r:.80}; give a list of functions of (step, metrics)")
    return list(callbacks)


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and did, with everything on disk."""


def train(
    learner: Learner,
    steps: int,
    folder: Path,
    lineage: Lineage,
    metrics: Metrics,
    phase: str = "train",
    every: int = 20,
    keep: int = 2,
    progress: Callback = lambda step, values: None,
    feed: Feed | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Take the learner to `steps` steps, from the newest checkpoint in `folder` on; returns the last checkpoint. See `training`."""
    for _ in training(learner, steps, folder, lineage, metrics, phase, every, keep, progress, feed, callbacks):
        pass
    return checkpoint.every(folder)[-1]


def training(
    learner: Learner,
    steps: int,
    folder: Path | None,
    lineage: Lineage,
    metrics: Metrics | None = None,
    phase: str = "train",
    every: int = 20,
    keep: int = 2,
    progress: Callback = lambda step, values: None,
    feed: Feed | None = None,
    callbacks: Sequence[Callback] = (),
    taken: int = 0,
) -> Iterator[dict[str, float]]:
    """Take the learner to `steps` steps, from the newest checkpoint in `folder` on, and yield the metrics of each step.

    Without a folder nothing is written, and the learner goes on from the `taken` steps that it has taken.

    A `feed` is asked before every step, with the number of steps taken and whether the run was asked to stop: it brings what has come in
    since and says what the next checkpoint is made from, or None when there is nothing more to learn from.

    A run that was stopped or killed at any point and started again gives the same weights and metrics, bit for bit on one
    machine, as one that was not.

    Raises:
        CheckpointError: the newest checkpoint is damaged, or was made with other settings.
        Stopped: Ctrl-C.
    """
    found = [] if folder is None else checkpoint.every(folder)
    step = taken
    if found:
        lineage = checkpoint.gone_on(found[-1], lineage)
        step = checkpoint.load(found[-1], learner)["step"]
    saved = step if found else None

    def save() -> None:
        nonlocal saved
        if folder is not None and step != saved:
            checkpoint.save(folder, step, learner, lineage, keep)
            saved = step

    if metrics is not None:
        metrics.rewind(phase, step)
    progress(step, {})
    with _graceful() if folder is not None else nullcontext(lambda: False) as asked_to_stop:
        while step < steps:
            if feed is not None:
                known = feed(step, asked_to_stop)
                if known is None:
                    save()
                    if asked_to_stop():
                        raise Stopped(f"after step {step}; the same command goes on from there")
                    break
                lineage = replace(known, before=lineage.before)
            start = time.perf_counter()
            values = learner.step()
            step += 1
            seconds = time.perf_counter() - start
            if "tokens" in values:
                values["tokens_per_s"] = values["tokens"] / seconds
            values |= {"seconds": seconds, "peak_gib": peak_gib()}
            ended = ranks.anyone(sum(callback(step, values) is True for callback in callbacks) > 0)  # each of them is called
            if metrics is not None:
                metrics.write(phase, step, values)
            progress(step, values)
            stopping = ranks.anyone(asked_to_stop())
            if step % every == 0 or step == steps or stopping or ended:
                save()
            try:
                yield values
            except GeneratorExit:  # whoever iterates has had enough
                save()
                raise
            if ended and not stopping:
                return
            if stopping and (step < steps or ended):
                of = f" of {steps}" if steps < sys.maxsize else ""
                raise Stopped(f"after step {step}{of}; the same command goes on from there")


def peak_gib() -> float:
    """The most memory that this process has held so far, in GiB: the GPU's where one is used, else resident."""
    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return used / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins at that of the process which started this one
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


@contextmanager
def _graceful() -> Generator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish that can be asked for; the second one interrupts at once."""
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
