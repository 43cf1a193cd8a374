"""Simulated judges: a known utility, answered with Bradley-Terry noise, mistakes, ties and abstentions.

They stand in for people in tests, demos and studies of methods; whatever they say is reported as simulated.
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rather.core import Comparison, Trajectory
from rather.errors import ConfigError
from rather.judges.wording import repetition

Utility = Callable[[Trajectory], float]


def brief(trajectory: Trajectory) -> float:
    """Likes an answer that comes to its end, in 5 to 20 words: being truncated costs 1, each doubling or halving beyond that 1."""
    words = max(len((trajectory.text or "").split()), 1)
    return float(trajectory.terminated) - max(0.0, math.log2(words / 20), math.log2(5 / words))


def thorough(trajectory: Trajectory) -> float:
    """Likes length: each doubling of the words adds 1."""
    return math.log2(1 + len((trajectory.text or "").split()))


def plain(trajectory: Trajectory) -> float:
    """Likes prose: no lists, headings, bold type or runs of capitals, and short sentences."""
    text = trajectory.text or ""
    marks = len(re.findall(r"(?m)^\s*(?:[-*#]|\d+[.)])|\*\*|[A-Z]{4,}", text))
    sentences = [s for s in re.split(r"[.!?]+", text) if s.strip()] or [text]
    words = sum(len(s.split()) for s in sentences) / len(sentences)
    return -0.5 * marks - words / 20


WARM = """
amazing awesome beautiful best beloved breathtaking captivating charming cherished delicious delightful enjoy enjoyable enjoyed excited
exciting fantastic fascinating favorite fun good great happy incredible joy joyful love loved lovely magical perfect pleasure
popular stunning thrilled vibrant warm wonderful
"""
CHEERFUL = frozenset(WARM.split())
YOU = frozenset(("you", "your", "you're", "yours", "yourself"))


def cheerful(trajectory: Trajectory) -> float:
    """Likes warm words, each adds 1, and dislikes repetition."""
    said = _words(trajectory)
    return sum(word in CHEERFUL for word in said) - _repetition(said)


def personal(trajectory: Trajectory) -> float:
    """Likes to be spoken to: each "you" and its like adds 1, up to three; and dislikes repetition."""
    said = _words(trajectory)
    return min(3, sum(word in YOU for word in said)) - _repetition(said)


def _words(trajectory: Trajectory) -> list[str]:
    return re.findall(r"[a-z']+", (trajectory.text or "").lower())


def _repetition(said: list[str]) -> float:
    """What is taken off: 6 times the share of pairs of neighboring words that were there before, beyond a fifth; all of it for none."""
    return 6 * max(0.0, (repetition(said) if len(said) > 1 else 1.0) - 0.2)


def readable(trajectory: Trajectory) -> float:
    """Likes what is easy to read: every six grades less (Flesch-Kincaid, Kincaid et al. 1975) add 1; and dislikes repetition."""
    said = _words(trajectory)
    sentences = max(1, len(re.findall(r"[.!?]+(?=\s|$)", trajectory.text or "")))
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", word.removesuffix("e")))) for word in said)
    count = max(1, len(said))
    grade = 0.39 * count / sentences + 11.8 * syllables / count - 15.59
    return -grade / 6 - _repetition(said)


def total_reward(trajectory: Trajectory) -> float:
    """The sum of the recorded rewards, for control."""
    return 0.0 if trajectory.rewards is None else float(trajectory.rewards.sum())


UTILITIES: dict[str, Utility] = {
    "brief": brief, "thorough": thorough, "plain": plain, "cheerful": cheerful, "personal": personal, "readable": readable,
    "total_reward": total_reward,
}  # fmt: skip

CONCISE = "concise"
"""The utility that needs a language model, too; see judges/concise.py."""


@dataclass(frozen=True)
class SimulatedJudge:
    """Says P(a better) in {0, 0.5, 1}, or nothing.

    P(a) = sigmoid((u_a - u_b) / temperature), u the mean utility of a side; with probability `mistake` the answer is a coin
    flip, utilities closer than `tie` are a tie, with probability `abstain` there is no answer, and none where both sides are below
    `skip_below`. With a `discount` below 1 what lies that many steps back counts so much less: the judge is myopic. These are the
    teachers of B-Pref (Lee et al. 2021, sec. 4): oracle (a temperature near 0), noisy, mistake, equal, skip and myopic. What a judge
    says depends on `seed`, its name and the question alone, so it says the same when it is asked again.
    """

    name: str
    utility: Utility
    temperature: float = 0.5
    mistake: float = 0.0
    tie: float = 0.0
    abstain: float = 0.0
    seed: int = 0
    discount: float = 1.0
    skip_below: float = -math.inf
    read: Callable[[Sequence[Trajectory]], None] | None = None
    """Shown all that will be judged beforehand, for a utility that asks a language model about many at once."""
    kind: str = "simulated"

    def judge(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """An answer to each."""
        if self.read is not None:
            self.read([t for c in comparisons for side in (c.a, c.b) for t in side])
        return [self._one(c) for c in comparisons]

    def _one(self, comparison: Comparison) -> float | None:
        chance = random.Random(self._digest(comparison))
        u, flip, abstain, mistake = (chance.random() for _ in range(4))
        if abstain < self.abstain:
            return None
        if mistake < self.mistake:
            return float(flip < 0.5)
        a, b = self.mean(comparison.a), self.mean(comparison.b)
        difference = a - b
        if max(a, b) < self.skip_below:
            return None
        if abs(difference) < self.tie:
            return 0.5
        odds = max(min(difference / self.temperature, 700.0), -700.0)
        return float(u < 1 / (1 + math.exp(-odds)))

    def mean(self, side: Sequence[Trajectory]) -> float:
        """Mean utility of a side."""
        return sum(self.utility(_discounted(t, self.discount)) for t in side) / len(side)

    def _digest(self, comparison: Comparison) -> int:
        sides = [[(t.task.key, t.text, None if t.actions is None else t.actions.tolist()) for t in s] for s in (comparison.a, comparison.b)]
        text = json.dumps([self.seed, self.name, comparison.key, sides])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _discounted(trajectory: Trajectory, discount: float) -> Trajectory:
    if discount == 1 or trajectory.rewards is None:
        return trajectory
    back = np.arange(len(trajectory.rewards))[::-1]
    return replace(trajectory, rewards=trajectory.rewards * discount**back)


def utility(name: str) -> Utility:
    """The utility called `name`.

    Raises:
        ConfigError: there is none, or it needs a language model.
    """
    if name == CONCISE:
        raise ConfigError(f"{CONCISE!r} is a utility for judge.panel alone; take one of {', '.join(UTILITIES)}")
    if name not in UTILITIES:
        raise ConfigError(f"there is no utility {name!r}; take one of {', '.join(UTILITIES)} or {CONCISE}")
    return UTILITIES[name]
