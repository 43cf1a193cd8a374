"""Who answers a run's questions: judges, a person at the terminal, or people on the page, for whom it waits."""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from rich.console import Console

from rather.config import guidelines
from rather.config.schema import Config
from rather.core import Comparison, Judge, Label
from rather.judges import people
from rather.judges.best import answers
from rather.judges.concise import Reader
from rather.learners.progress import progress
from rather.learners.train import Stopped
from rather.pipeline import build
from rather.pipeline.lock import exclusive
from rather.store import Store
from rather.store.clips import undrawable
from rather.store.decisions import decided
from rather.store.written import WHY
from rather.verify.checker import Checker, nothing_judged

CHUNK = 64
"""Questions that are judged between two commits to the store."""
POLL_S = 0.5


class Answering:
    """Has the questions in `store` answered; `reader` gives the base model to judges who ask how likely words are.

    Where the reward is that of verifiers it is they who answer, or without `verifiers` whoever judge.kind says.
    """

    def __init__(self, config: Config, store: Store, console: Console, reader: Callable[[], Reader], verifiers: bool = True) -> None:
        self.config, self.store, self.console, self.reader, self.verifiers = config, store, console, reader, verifiers
        self.run = config.run.name

    @property
    def folder(self) -> Path:
        """The run's folder, which one command at a time works in."""
        return self.config.folder

    @property
    def kind(self) -> str:
        """Who answers: verifiers, or as judge.kind says."""
        return "verifier" if self.verifiers and build.verified(self.config) else self.config.judge.kind

    @cached_property
    def judges(self) -> list[Judge]:
        """Who answers, unless it is people."""
        found = build.judges(self.config, self.reader, self.verifiers)
        known = self.store.judges()
        for judge in [x for x in found if known.get(x.name) != x.kind]:
            self.store.add_judge(judge.name, judge.kind)
        return found

    @property
    def voters(self) -> list[str]:
        """The judges whose answers count in an evaluation: those of the settings; none is named where it is whoever the page lets in."""
        if self.judges:
            return [judge.name for judge in self.judges]
        return [self.config.judge.name] if self.kind == "terminal" else []

    def label(self, purpose: str) -> int:
        """Have every open question of a purpose answered; returns how many answers are new.

        Raises:
            TrainingError: verifiers answer, and judged nothing.
        """
        j = self.config.judge
        if self.kind == "terminal":
            rules = guidelines.read(j.guidelines)
            return people.ask(self.store, self.run, j.name, purpose, build.instruction(self.config), self.console, rules, j.criteria)
        return self._judge(purpose)

    @exclusive  # or the same judges would be asked the same questions twice
    def _judge(self, purpose: str) -> int:
        count = 0
        for judge in self.judges:
            questions = self.store.questions(self.run, purpose, unanswered_by=judge.name)
            with progress(self.console, f"{judge.name} compares", len(questions), not build.asks_first(self.config)) as advance:
                for start in range(0, len(questions), CHUNK):
                    chunk = questions[start : start + CHUNK]
                    found = answers(judge, [q.comparison for q in chunk])
                    labels = [Label(q.id, judge.name, p, best=best) for q, (p, best) in zip(chunk, found, strict=True)]
                    if isinstance(judge, Checker):  # what it could not judge is asked again, once it is mended
                        labels = [x for x in labels if x.preference is not None]
                    if labels:
                        self.store.answer_all(labels)
                    count += len(labels)
                    advance(len(chunk))
            if questions and not count and isinstance(judge, Checker):
                self._check_judged(judge, questions[-1].comparison.key, purpose)
        return count

    def _check_judged(self, checker: Checker, key: str, purpose: str) -> None:
        """Make sure that verifiers which judged none of the open questions have judged others of the same round.

        `key` is that of the newest open question, which says its round. A few questions that verifiers cannot judge stay open for good.

        Raises:
            TrainingError: they have judged none.
        """
        if not self.store.answered(self.run, purpose, beginning=f"{key.partition('/')[0]}/", judges=[checker.name]).comparisons:
            raise nothing_judged("the open questions" if purpose == "train" else "the evaluation", checker.problems)

    def close(self) -> None:
        """End the verifiers' processes, until they are asked again."""
        for judge in self.__dict__.get("judges", ()):
            if isinstance(judge, Checker):
                judge.close()

    def have_answered(self, purpose: str) -> None:
        """Have the open questions of a purpose answered, by whoever answers.

        Raises:
            Stopped: the person at the terminal has had enough for now.
        """
        if self.kind == "people":
            self.wait(purpose)
        else:
            self.label(purpose)
            self.check_none_left(purpose)

    def check_none_left(self, purpose: str) -> None:
        """Stop while the person at the terminal has questions to answer: what is learned next should know all their answers.

        Raises:
            Stopped: some are open.
        """
        j = self.config.judge
        if self.kind == "terminal" and (left := people.left(self.store, self.run, purpose, j.name)):
            raise Stopped(f"{left} questions are open; the answers so far are kept, and the same command goes on from there")

    def wanted(self, purpose: str, number: int = sys.maxsize) -> int:
        """How many answers are still wanted to the questions of a purpose, up to round `number`; who skips has answered.

        Questions with a clip that could not be drawn, or that an owner has decided, are not given out, so that no answer to them can come.
        For those about an answer that somebody wrote nobody waits: whoever did has answered them, and others may write on.
        """
        store, name = self.store, self.run
        given = Counter(x.comparison for x in store.labels(name, purpose))
        hidden, overlap = undrawable(store, name) | decided(store, name).keys(), store.asking(name).overlap
        questions = [q for q in store.questions(name, purpose) if q.id not in hidden and q.why != WHY]
        return sum(max(0, overlap - given[q.id]) for q in questions if not later_than(number, q.comparison))

    def wait(self, purpose: str) -> None:
        """Wait until people have answered all questions of a purpose, or none for judge.wait_s seconds."""
        left, since = self.wanted(purpose), time.monotonic()
        with progress(self.console, "waiting for people's answers", left) as advance:
            while left and time.monotonic() - since <= self.config.judge.wait_s:
                time.sleep(POLL_S)
                now = self.wanted(purpose)
                if now != left:
                    advance(max(left - now, 0))
                    left, since = now, time.monotonic()


def later_than(number: int, comparison: Comparison) -> bool:
    """Whether a question belongs to a later round than `number`."""
    found = re.match(r"(?:written/)?round-(\d+)/", comparison.key)
    return found is not None and int(found[1]) > number
