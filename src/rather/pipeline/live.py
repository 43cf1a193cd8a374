"""Learning while people answer: labels are taken up as they come in, step by step, and a step is taken when there is something new.

The store is all that learner and page share, so each may be stopped, killed and started again by itself, and on a machine of its own.
"""

import time
from collections.abc import Callable
from pathlib import Path

from rather.config import criteria
from rather.core import Answered, LabelLearner
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.head_learner import HeadLearner
from rather.pipeline import build, held_out, resume
from rather.pipeline.answering import POLL_S
from rather.pipeline.priorities import Priorities
from rather.pipeline.state import State
from rather.store.clips import undrawable


class Feed:
    """The labels of a round, read again before each step; `train.train` asks it what there is to learn from.

    With n items there are epochs x n / batch size steps to take; half of them are kept back while answers are still coming in, or the
    last ones would hardly be used. That is over when all questions have the answers that are wanted, or none has come for `wait_s` seconds.
    """

    def __init__(self, run: State, number: int, name: str) -> None:
        self.run, self.number, self.name = run, number, name
        self.learner: LabelLearner | None = None
        self.answered = Answered([])
        self.open, self.state, self.since = 0, None, time.monotonic()
        self.priorities: Priorities | None = None
        self.fitted: list[int] = []
        """The labels that a reward head has been fitted to, which is done again whenever there are others."""

    def refresh(self) -> bool:
        """Read the store if anything has changed since."""
        store, run = self.run.store, self.run.config.run.name
        purposes = build.purposes(self.name)
        asked = sum(len(store.keys(run, purpose)) for purpose in purposes)
        state = (store.latest(), store.asking(run), asked, undrawable(store, run))
        if state == self.state:
            return False
        self.state = state
        self.answered = self.run.labels(self.number, self.name)
        self.open = sum(self.run.answering.wanted(purpose, self.number) for purpose in purposes)
        if self.learner is not None and self.answered.comparisons:
            self.learner.follow(self.answered.comparisons)
        return True

    def steps(self, items: int) -> int:
        """Steps to take on so many items."""
        return build.steps(self.run.config, self.name, items) if items else 0

    def lineage(self) -> Lineage:
        """What the next checkpoint is made from; the number of steps is not known beforehand."""
        return self.run.lineage(self.name, self.answered, 0)

    def __call__(self, step: int, asked_to_stop: Callable[[], bool]) -> Lineage | None:
        more = self._renew()
        while True:
            if self.refresh():
                self.since, more = time.monotonic(), True
            items, over = len(self.answered.comparisons), not self.open or time.monotonic() - self.since > self.run.config.judge.wait_s
            together = build.optimization(self.run.config, self.name, 0)["batch_size"]
            new = step < self.steps(items) // (1 if over else 2) and (over or items >= together)
            if build.is_head(self.run.config, self.name):
                new = bool(items) and self.answered.labels != self.fitted
            if new:
                self.fitted = self.answered.labels
                return self.lineage()
            if over or asked_to_stop():
                return None
            if not more:
                time.sleep(POLL_S)
            more = more and self._renew()

    def _renew(self) -> bool:
        """Put the open questions in order, where a reward head learns; returns whether it would do better at once."""
        return self.priorities is not None and self.priorities.renew()


def fit(run: State, number: int, name: str) -> Path:
    """Train the learner called `name` while people answer; returns the last checkpoint."""
    feed = Feed(run, number, name)
    with run.console.status("waiting for people's answers; `rather serve` puts the questions before them"):
        while not build.enough(name, feed.answered.comparisons):
            if feed.refresh():
                feed.since = time.monotonic()
            if not feed.open or time.monotonic() - feed.since > run.config.judge.wait_s:
                break
            time.sleep(POLL_S)
    left_out = feed.answered.left_out
    resume.say_left_out(run, feed.answered)
    criteria.check_said(run.config, feed.answered.comparisons)
    expected = feed.steps(len(feed.answered.comparisons) + feed.open)
    learner = run.learner(number, name, feed.answered, expected)
    learner.follow(feed.answered.comparisons)
    feed.learner = learner
    if isinstance(learner, HeadLearner):
        feed.priorities = Priorities(run, number, learner.model)
    feed.fitted = (resume.last(run.checkpoints(number, name)) or {"labels": []})["labels"]
    lineage = resume.with_last_labels(feed.lineage(), run.checkpoints(number, name))
    last = run.learn(learner, name, number, expected, lineage, feed, open_=True)
    if feed.answered.left_out != left_out:  # more have come since
        resume.say_left_out(run, feed.answered)
    if name == "reward":
        held_out.check_reward(run, learner.model, checkpoint.check(last)["step"])
    return last
