"""What a win rate costs: how far answers are from the base model's, in likelihood, length, completeness, variety and subject.

A policy may win against its judges by answers that no reader would want. These numbers stand beside every win rate, so that it shows.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rather.core import Trajectory
from rather.judges.concise import Reader
from rather.judges.wording import asked, content_words, repetition, words
from rather.learners.common import in_parts

NATS = 0.5
"""Nats a token under the base model that answers may lose before a warning."""
SHARE = 0.5
"""Share of the base model's distinct words, and of its answers that keep to the subject, below which there is a warning."""
ROWS = 16
"""Answers scored at a time."""


@dataclass(frozen=True)
class Traits:
    """What some answers are like.

    `logprob` is their mean log-probability a token under the base model, in nats; `length` their mean number of words; `ended` the share
    that came to their end; `repetition` the mean share of pairs of neighboring words that an answer had already said; `distinct_words`
    the number of different words in all of them; `on_topic` the share that has a content word in common with its prompt.
    """

    logprob: float
    length: float
    ended: float
    repetition: float
    distinct_words: float
    on_topic: float


def traits(answers: Sequence[Trajectory], logprobs: Sequence[tuple[float, int]]) -> Traits:
    """What these answers are like, given the log-probability and the number of tokens of each under the base model."""
    said = [words(t.text or "") for t in answers]
    shared = [bool(content_words(asked(t.task.prompt or "")) & content_words(t.text or "")) for t in answers]
    n = len(answers)
    return Traits(
        logprob=sum(total for total, _ in logprobs) / max(1, sum(tokens for _, tokens in logprobs)),
        length=sum(len((t.text or "").split()) for t in answers) / n,
        ended=sum(t.terminated for t in answers) / n,
        repetition=sum(map(repetition, said)) / n,
        distinct_words=float(len({word for one in said for word in one})),
        on_topic=sum(shared) / n,
    )


def base_logprobs(
    base: Reader,
    answers: Sequence[Trajectory],
    micro_batch_tokens: int = 1536,
    progress: Callable[[int], None] = lambda n: None,
) -> list[tuple[float, int]]:
    """Log-probability of each answer under the base model at temperature 1, in nats, and its number of tokens.

    What was truncated before it had a word has no tokens, and log-probability 0.
    """
    plain = copy.copy(base)
    plain.temperature = 1.0
    scored = [(0.0, 0)] * len(answers)
    known = [i for i, t in enumerate(answers) if t.text or t.terminated]
    known.sort(key=lambda i: repr(answers[i].task.prompt))  # answers to one prompt are forwarded together
    for start in range(0, len(known), ROWS):
        rows = known[start : start + ROWS]
        batch = plain.collate([answers[i] for i in rows])
        (logprobs,) = in_parts(batch, micro_batch_tokens, lambda part: plain.evaluate(part)[:1])
        totals, tokens = (logprobs * batch.mask).sum(-1), batch.mask.sum(-1)
        for i, total, n in zip(rows, totals, tokens, strict=True):
            scored[i] = (float(total), int(n))
        progress(len(rows))
    return scored


@dataclass(frozen=True)
class Cost:
    """What the policy's answers are like, and what the base model's to the same prompts are like."""

    policy: Traits
    base: Traits

    @property
    def nats_lost(self) -> float:
        """Nats a token by which the policy's answers are less likely under the base model than its own."""
        return self.base.logprob - self.policy.logprob

    def metrics(self) -> dict[str, float]:
        """Every trait of both, by name, and `nats_lost`."""
        both = {"policy": asdict(self.policy), "base": asdict(self.base)}
        return {f"{name}_{who}": value for who, of in both.items() for name, value in of.items()} | {"nats_lost": self.nats_lost}

    @classmethod
    def read(cls, row: dict[str, float]) -> "Cost | None":
        """The cost that `metrics` has written to a row; None where the row has none."""
        if "nats_lost" not in row:
            return None
        policy, base = (Traits(**{name: row[f"{name}_{who}"] for name in Traits.__dataclass_fields__}) for who in ("policy", "base"))
        return cls(policy, base)

    def __str__(self) -> str:
        return "; ".join(f"{label}: {after}, before {before}" for label, after, before in self.rows())

    def rows(self) -> list[tuple[str, str, str]]:
        """What is shown, as (what, after, before)."""
        p, b = self.policy, self.base
        return [
            ("nats a token under the base model", f"{p.logprob:.2f}", f"{b.logprob:.2f}"),
            ("words an answer", f"{p.length:.1f}", f"{b.length:.1f}"),
            ("answers that end", f"{100 * p.ended:.0f} %", f"{100 * b.ended:.0f} %"),
            ("repeated pairs of words", f"{100 * p.repetition:.1f} %", f"{100 * b.repetition:.1f} %"),
            ("distinct words", f"{p.distinct_words:.0f}", f"{b.distinct_words:.0f}"),
            ("answers that share a content word with their prompt", f"{100 * p.on_topic:.0f} %", f"{100 * b.on_topic:.0f} %"),
        ]

    def warnings(self) -> list[str]:
        """What a reader should look at before the win rate is believed, a sentence each."""
        p, b, found = self.policy, self.base, list[str]()
        if self.nats_lost > NATS:
            found.append(
                f"the answers are {self.nats_lost:.2f} nats a token less likely under the base model than its own (limit {NATS:g})"
            )
        if p.distinct_words < SHARE * b.distinct_words:
            found.append(
                f"the answers hold {p.distinct_words:.0f} distinct words, fewer than half of the base model's {b.distinct_words:.0f}"
            )
        if p.on_topic < SHARE * b.on_topic:
            found.append(
                f"{100 * p.on_topic:.0f} % of the answers share a content word with their prompt, fewer than half of the base model's"
                f" {100 * b.on_topic:.0f} %"
            )
        return found


def cost(
    base: Reader,
    after: Sequence[Trajectory],
    before: Sequence[Trajectory],
    micro_batch_tokens: int = 1536,
    progress: Callable[[int], None] = lambda n: None,
) -> Cost:
    """What the policy's answers `after` training are like beside the base model's `before` it."""
    scored = base_logprobs(base, [*after, *before], micro_batch_tokens, progress)
    return Cost(traits(after, scored[: len(after)]), traits(before, scored[len(after) :]))
