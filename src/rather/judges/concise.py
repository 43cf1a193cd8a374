"""A simulated reader who likes an answer to what was asked, complete, in few words, in the base model's own English."""

import copy
import math
import re
from collections.abc import Sequence
from typing import Protocol

from rather.core import Policy, Trajectory
from rather.judges.wording import asked, content_words, repetition, words
from rather.learners.common import in_parts

ROWS = 16
"""Answers that the base model reads at a time."""
TEMPERATURE = 0.8
"""The temperature at which the base model's probabilities are taken, whatever answers are sampled with."""
USUAL = -5.0, 1.0
"""Surprises outside this range, in nats per square root of a token, count as strange. Answers of some 50 tokens at most are within it, most
of them, if the base model draws them at temperatures of 0.3 to 0.8."""
END = re.compile(r"[.!?\u2026][\"'\u2019\u201d)\]*_]*$")


class Reader(Policy, Protocol):
    """A language model that says how likely words are, at a temperature."""

    temperature: float


class Surprise:
    """How surprised a language model is by an answer, beyond what it expected: sum_t (-log p_t - H_t) / sqrt(T), in nats.

    H_t is the entropy of its next token. Probabilities and entropies are those at `TEMPERATURE`: answers sampled at it have mean 0,
    whatever their length; answers that the model would never give lie far above, those that are likelier than its own usually are far
    below (compare typical sampling, Meister et al. 2023, eq. 5).
    """

    def __init__(self, policy: Reader, micro_batch_tokens: int = 1536) -> None:
        self.policy, self.micro_batch_tokens = copy.copy(policy), micro_batch_tokens
        self.policy.temperature = TEMPERATURE
        self.known: dict[tuple[str, str, bool], float] = {}

    def read(self, answers: Sequence[Trajectory]) -> None:
        """Look at many answers at once; each is then known."""
        new = list({_name(t): t for t in answers if _name(t) not in self.known}.values())
        self.known |= {_name(t): 0.0 for t in new if not (t.text or t.terminated)}  # truncated before it had a word
        new = [t for t in new if t.text or t.terminated]  # in their order: answers to one prompt are forwarded together
        for start in range(0, len(new), ROWS):
            rows = new[start : start + ROWS]
            batch = self.policy.collate(rows)
            logprobs, entropies = in_parts(batch, self.micro_batch_tokens, self.policy.evaluate)
            values = (-(logprobs + entropies) * batch.mask).sum(-1) / batch.mask.sum(-1).sqrt()
            self.known |= zip(map(_name, rows), values.tolist(), strict=True)

    def __call__(self, answer: Trajectory) -> float:
        """The surprise at one answer."""
        self.read([answer])
        return self.known[_name(answer)]


def _name(t: Trajectory) -> tuple[str, str, bool]:
    return repr(t.task.prompt), t.text or "", t.terminated


class Concise:
    """Utility of an answer: topic * (1 + complete) - echo - excess length - repetition - strangeness.

    topic: the share of the prompt's content words that stand in the answer, two of them being enough. complete: 1 where the answer came to
    its end with the end of a sentence. echo: 1 where it adds no content word to those of the prompt, a third less for each that it adds;
    its topic is multiplied by 1 - echo. Excess length: 1 for each doubling beyond 20 words, or halving below 5. Repetition: 6 times the
    share of pairs of words that were there before, beyond a fifth. Strangeness: half of what the base model's surprise lies outside of
    `USUAL`, so an answer in other words than the base model's loses, and so does one that is likelier than its own usually are.
    """

    def __init__(self, surprise: Surprise) -> None:
        self.surprise = surprise

    def read(self, answers: Sequence[Trajectory]) -> None:
        """Have many answers read by the base model at once."""
        self.surprise.read(answers)

    def __call__(self, answer: Trajectory) -> float:
        """The utility of the answer to the reader."""
        text = (answer.text or "").strip()
        complete = answer.terminated and END.search(text) is not None
        wanted, said = content_words(asked(answer.task.prompt or "")), content_words(text)
        echo = max(0.0, 1 - len(said - wanted) / 3)
        topic = (1 - echo) * (min(1.0, len(wanted & said) / min(2, len(wanted))) if wanted else 1.0)
        count = max(len(text.split()), 1)
        excess = max(0.0, math.log2(count / 20), math.log2(5 / count))
        repeated = 6 * max(0.0, repetition(words(text)) - 0.2)
        surprise, (least, most) = self.surprise(answer), USUAL
        strange = max(0.0, least - surprise, surprise - most) / 2
        return topic * (1 + complete) - echo - excess - repeated - strange
