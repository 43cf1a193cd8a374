"""Verifiers at work: in processes of their own, so that one that hangs or dies costs an answer its score and nothing more.

`python -m rather.verify.checker` is such a process: it reads a line of JSON for each answer and writes one with its score.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rather.errors import ConfigError, RatherError, TrainingError, installing
from rather.verify.verifiers import VERIFIERS, Check

if TYPE_CHECKING:
    from rather.core import Comparison, Perturbation, Sampler, Task, Trajectory

PATIENCE_S = 60.0
"""How long a process may take to import what its verifiers need."""


class Checker:
    """Scores answers by several verifiers: the mean of their scores by weight.

    An answer that one of them cannot judge (it returned None, raised, hung or died) has no score at all; `problems` counts why.
    """

    kind = "verifier"

    def __init__(self, checks: Sequence[Check], workers: int = 0, name: str = "verifier") -> None:
        for check in checks:
            if check.kind not in VERIFIERS:
                raise ConfigError(f"there is no verifier {check.kind!r}; take one of {', '.join(VERIFIERS)}")
        if not checks or sum(c.weight for c in checks) <= 0:
            raise ConfigError("verify.checks needs at least one verifier with a weight above 0")
        self.checks, self.name = list(checks), name
        self.problems = Counter[str]()
        self.count = workers or os.cpu_count() or 1
        self.idle: queue.Queue[_Process] | None = None

    def score(self, trajectories: Sequence["Trajectory"]) -> list[float | None]:
        """A score in [0, 1] for each (if its verifiers keep to that), or None.

        Raises:
            RatherError: a verifier is set up wrongly, or a task lacks what it needs.
        """
        if self.idle is None:
            self.idle = queue.Queue()
            for _ in range(self.count):
                self.idle.put(_Process(self.checks))
        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(self._one, trajectories))

    def judge(self, comparisons: Sequence["Comparison"]) -> list[float | None]:
        """The side with the higher mean score, 0.5 where they are equal; None where an answer has no score."""
        sides = [side for c in comparisons for side in (c.a, c.b)]
        scores = iter(self.score([t for side in sides for t in side]))
        means = []
        for side in sides:
            found = [next(scores) for _ in side]
            means.append(None if None in found else sum(found) / len(found))  # type: ignore[arg-type]
        pairs = zip(means[0::2], means[1::2], strict=True)
        return [None if a is None or b is None else 0.5 * ((a > b) - (a < b) + 1) for a, b in pairs]

    def close(self) -> None:
        """End the processes."""
        while self.idle is not None and not self.idle.empty():
            self.idle.get().close()
        self.idle = None

    def _one(self, trajectory: "Trajectory") -> float | None:
        assert self.idle is not None
        process = self.idle.get()
        try:
            total = 0.0
            for number, check in enumerate(self.checks):
                score = process.ask(number, trajectory.text or "", trajectory.task.answer or "", check.timeout_s)
                if isinstance(score, str):
                    self.problems[f"{check.kind}: {score}"] += 1
                    return None
                total += check.weight * score
            return total / sum(c.weight for c in self.checks)
        finally:
            self.idle.put(process)


class Verified:
    """A sampler whose answers come with their score as the reward of the last token; NaN for one without a score."""

    def __init__(self, sampler: "Sampler", checker: Checker, patience: int = 3) -> None:
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
    return TrainingError(f"nothing was judged in {where}: {next(iter(problems), 'no reason is known')}; mend the verifier")


def _rewarded(trajectory: "Trajectory", score: float | None) -> "Trajectory":
    import numpy as np

    assert trajectory.actions is not None
    rewards = np.zeros(len(trajectory.actions), np.float32)
    rewards[-1] = np.nan if score is None else score
    return replace(trajectory, rewards=rewards)


class _Process:
    """One process with all verifiers; started when it is first needed, and again after it died."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self.checks, self.process = checks, None

    def ask(self, number: int, text: str, answer: str, timeout_s: float) -> float | str:
        """The score of one answer, or why there is none."""
        if self.process is None:
            self._start()
        reply = self._exchange({"check": number, "text": text, "answer": answer}, timeout_s + 1)
        if reply is None:
            ended = self.process is not None and self.process.poll() is not None
            self.close()
            return "its process died" if ended else f"no answer within {timeout_s:g} s"
        if "wrong" in reply:
            raise ConfigError(reply["wrong"])
        return reply["why"] if reply["score"] is None else float(reply["score"])

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

    def _exchange(self, row: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        until, reply = time.monotonic() + timeout_s, bytearray()
        try:
            self.process.stdin.write((json.dumps(row) + "\n").encode())
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
    except ModuleNotFoundError as e:
        tell(wrong=f"the package {e.name} is missing; {installing('verify')}")
        return
    tell(ready=True)
    for line in sys.stdin:
        row = json.loads(line)
        check = checks[row["check"]]
        if hasattr(signal, "setitimer"):  # whoever hangs while nobody waits any more, since the run was killed, ends by itself
            signal.setitimer(signal.ITIMER_REAL, 2 * check.timeout_s + 5)
        try:
            score = VERIFIERS[check.kind](row["text"], row["answer"], check)
        except RatherError as e:
            tell(wrong=str(e))
        except Exception as e:  # noqa: BLE001, whatever a verifier raises, the answer is unjudged
            tell(score=None, why=f"raised {type(e).__name__}: {e}"[:200])
        else:
            tell(score=score, why="it cannot judge")
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
