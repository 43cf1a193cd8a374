"""Verifiers at work: in processes of their own, so that one that hangs or dies costs an answer its score and nothing more.

`python -m rather.verify.checker` is such a process: it reads lines of JSON, of one answer or of many for a batched function, and
answers each with their scores.
"""

import importlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rather.errors import ConfigError, RatherError, TrainingError, installing
from rather.verify.functions import compared
from rather.verify.verifiers import VERIFIERS, Check, is_batched, together

if TYPE_CHECKING:
    from rather.core import Comparison, Perturbation, Sampler, Task, Trajectory

Columns = Mapping[tuple[str, str], Mapping[str, Any]]
"""Columns of tasks, by their source and key."""
PATIENCE_S = 60.0
"""How long a process may take to import what its verifiers need."""


class Checker:
    """Scores answers by several verifiers: the mean of their scores by weight.

    An answer that one of them cannot judge (it returned None, raised, hung or died) has no score at all; `problems` counts why.
    `columns` finds the columns of a task by its source and key, for answers that were read back from the store, which keeps none.
    """

    kind = "verifier"

    def __init__(self, checks: Sequence[Check], workers: int = 0, name: str = "verifier", columns: Callable[[], Columns] = dict) -> None:
        for check in checks:
            if check.kind not in VERIFIERS:
                raise ConfigError(f"there is no verifier {check.kind!r}; take one of {', '.join(VERIFIERS)}")
        if not checks or sum(c.weight for c in checks) <= 0:
            raise ConfigError("verify.checks needs at least one verifier with a weight above 0")
        self.checks, self.name = list(checks), name
        self.problems = Counter[str]()
        self.count = workers or os.cpu_count() or 1
        self.columns = cache(columns)
        self.idle: queue.LifoQueue[_Process] | None = None

    def score(self, trajectories: Sequence["Trajectory"]) -> list[float | None]:
        """A score in [0, 1] for each (if its verifiers keep to that), or None.

        Raises:
            RatherError: a verifier is set up wrongly, or a task lacks what it needs.
        """
        if self.idle is None:
            self.idle = queue.LifoQueue()  # a batched function is asked in the process that has it already
            for _ in range(self.count):
                self.idle.put(_Process(self.checks))
        totals = dict.fromkeys(range(len(trajectories)), 0.0)
        for number, check in enumerate(self.checks):
            asked = {i: self._row(check, trajectories[i]) for i in totals}
            for i, score in zip(asked, self._scores(number, check, list(asked.values())), strict=True):
                if isinstance(score, str):
                    self.problems[f"{check.kind}: {score}"] += 1
                    del totals[i]
                else:
                    totals[i] += check.weight * score
        weight = sum(c.weight for c in self.checks)
        return [totals[i] / weight if i in totals else None for i in range(len(trajectories))]

    def judge(self, comparisons: Sequence["Comparison"]) -> list[float | None]:
        """The side with the higher mean score, 0.5 where they are equal; None where an answer has no score."""
        return compared(self.score, comparisons)

    def close(self) -> None:
        """End the processes."""
        while self.idle is not None and not self.idle.empty():
            self.idle.get().close()
        self.idle = None

    def _row(self, check: Check, trajectory: "Trajectory") -> dict[str, Any]:
        """What a verifier is given; a function of the user's may want all that is known."""
        task = trajectory.task
        row: dict[str, Any] = {"text": trajectory.text or "", "answer": task.answer or ""}
        if check.kind == "python":
            columns = task.row or self.columns().get((task.source, task.key), {})
            row |= {"prompt": task.prompt or "", "columns": dict(columns)}
        return row

    def _scores(self, number: int, check: Check, rows: list[dict[str, Any]]) -> list[float | str]:
        """The scores by one verifier, or why there is none: of all rows at once where it is batched, else of some at a time."""
        if not rows:
            return []
        with self._process() as process:
            if process.batched(number):
                return process.ask(number, rows, check.timeout_s * len(rows))

        def one(row: dict[str, Any]) -> float | str:
            with self._process() as process:
                return process.ask(number, [row], check.timeout_s)[0]

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, rows))

    @contextmanager
    def _process(self) -> "Iterator[_Process]":
        assert self.idle is not None
        process = self.idle.get()
        try:
            yield process
        finally:
            self.idle.put(process)


@runtime_checkable
class Scorer(Protocol):
    """Scores answers, and counts why some have no score: verifiers, reward functions, or a reward that learns."""

    problems: Counter[str]

    def score(self, trajectories: Sequence["Trajectory"]) -> list[float | None]:
        """A score for each, or None."""
        ...


class Verified:
    """A sampler whose answers come with their score as the reward of the last token; NaN for one without a score."""

    def __init__(self, sampler: "Sampler", checker: Scorer, patience: int = 3) -> None:
        self.sampler, self.checker, self.patience, self.silent = sampler, checker, patience, 0

    def sync(self) -> None:
        """Let the sampler know that the policy has changed."""
        self.sampler.sync()

    def sample(
        self, tasks: Sequence["Task"], seed: int, perturbations: "Sequence[Perturbation | None] | None" = None
    ) -> list["Trajectory"]:
        """One answer a task.

        Raises:
            TrainingError: not one answer has been judged `patience` times in a row.
        """
        from rather.scale import ranks  # here, since a process that verifies starts faster without PyTorch

        found, before = self.sampler.sample(tasks, seed, perturbations), self.checker.problems.copy()
        own = self.checker.score(found[ranks.share(found)])
        reply = ranks.everyones((own, self.checker.problems - before))
        scores = [score for theirs, _ in reply for score in theirs]
        problems = sum((new for _, new in reply), Counter[str]())
        self.checker.problems = before + problems
        self.silent = 0 if any(score is not None for score in scores) else self.silent + 1
        if self.silent >= self.patience:
            raise nothing_judged(f"{self.silent} steps in a row" if self.silent > 1 else "a step", problems)
        return [_rewarded(t, score) for t, score in zip(found, scores, strict=True)]


def nothing_judged(where: str, problems: Counter[str]) -> TrainingError:
    """The error of verifiers that had no score for any answer, with the first of their problems."""
    return TrainingError(f"nothing was judged in {where}: {next(iter(problems), 'no reason is known')}; mend the verifier or the judge")


def _rewarded(trajectory: "Trajectory", score: float | None) -> "Trajectory":
    import numpy as np

    assert trajectory.actions is not None
    rewards = np.zeros(len(trajectory.actions), np.float32)
    rewards[-1] = np.nan if score is None else score
    return replace(trajectory, rewards=rewards)


class _Process:
    """One process with all verifiers; started when it is first needed, and again after it died."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self.checks, self.process, self.together = checks, None, [False] * len(checks)

    def batched(self, number: int) -> bool:
        """Whether a verifier is a function that takes many answers at once."""
        if self.process is None and self.checks[number].kind == "python":
            self._start()
        return self.together[number]

    def ask(self, number: int, rows: Sequence[dict[str, Any]], timeout_s: float) -> list[float | str]:
        """The score of each answer, or why there is none."""
        if self.process is None:
            self._start()
        reply = self._exchange({"check": number, "rows": rows}, timeout_s + 1)
        if reply is None:
            ended = self.process is not None and self.process.poll() is not None
            self.close()
            return ["its process died" if ended else f"no answer within {timeout_s:g} s"] * len(rows)
        if "wrong" in reply:
            raise ConfigError(reply["wrong"])
        return [reply["why"] if score is None else float(score) for score in reply["scores"]]

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None

    def _start(self) -> None:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # In a session of its own, so that a Ctrl-C lets it finish what the step at hand still needs.
        self.process = subprocess.Popen([sys.executable, "-m", "rather.verify.checker"], start_new_session=True, **pipes)
        reply = self._exchange({"checks": [asdict(c) for c in self.checks], "path": sys.path}, PATIENCE_S)
        if reply is None or "wrong" in reply:
            self.close()
            raise ConfigError("the process that verifies answers did not start" if reply is None else reply["wrong"])
        self.together = reply["batched"]

    def _exchange(self, row: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        until, reply = time.monotonic() + timeout_s, bytearray()
        try:
            line = json.dumps(row)
        except TypeError as e:
            raise ConfigError(f"a column of the prompts cannot be given to a verifier in a process of its own: {e}") from None
        try:
            self.process.stdin.write((line + "\n").encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not selector.select(max(until - time.monotonic(), 0)):
                    return None
                part = os.read(self.process.stdout.fileno(), 1 << 16)
                if not part:
                    self.process.wait()
                    return None
                reply += part
        return json.loads(reply)


NEEDS = {"boxed": "math_verify", "schema": "jsonschema", "reasoning_gym": "reasoning_gym"}
"""The packages that kinds of verifiers import."""


def main() -> None:
    """Serve until the input ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a verifier prints must not be taken for a score

    def tell(**row: Any) -> None:
        out.write(json.dumps(row) + "\n")

    setup = json.loads(sys.stdin.readline())
    sys.path[:] = [*setup["path"], str(Path.cwd())]
    checks = [Check(**c) for c in setup["checks"]]
    try:
        for check in checks:
            if check.kind in NEEDS:
                importlib.import_module(NEEDS[check.kind])
        batched = [is_batched(check) for check in checks]
    except ModuleNotFoundError as e:
        tell(wrong=f"the package {e.name} is missing; {installing('verify')}")
        return
    except RatherError as e:
        tell(wrong=str(e))
        return
    tell(batched=batched)
    for line in sys.stdin:
        asked = json.loads(line)
        check, rows = checks[asked["check"]], asked["rows"]
        if hasattr(signal, "setitimer"):  # whoever hangs while nobody waits any more, since the run was killed, ends by itself
            signal.setitimer(signal.ITIMER_REAL, 2 * check.timeout_s * len(rows) + 5)
        try:
            scores = together(check, rows) if check.kind == "python" else [VERIFIERS[check.kind](**row, check=check) for row in rows]
        except RatherError as e:
            tell(wrong=str(e))
        except Exception as e:  # noqa: BLE001, whatever a verifier raises, the answer is unjudged
            tell(scores=[None] * len(rows), why=f"raised {type(e).__name__}: {e}"[:200])
        else:
            tell(scores=scores, why="it cannot judge")
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
