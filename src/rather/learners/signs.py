"""What a hacked reward often looks like in the answers of a step: they become alike, words come again, one feature decides.

No gold reward is needed for it. `hacking.alarm` compares with how it was when the training began.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

FEWEST = 8
"""Answers below which nothing is said."""
COMPARED = 64
"""Answers of a step that are compared with each other."""
COMMON = 8
"""Words, those that most answers have, that the score may depend on."""


def signs(prompts: Sequence[object], texts: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """The signs of some answers to prompts, as metrics; none of fewer than 8. Answers whose score is NaN are left out.

    `same_word` is the chance that two words drawn from all answers are the same (Simpson 1949), `alike` how much two answers to different
    prompts have in common (the shared part of their distinct words, mean), and `one_feature` the largest share of the scores' variance that
    a single number explains: of words, of words that stood there before, or of one of the 8 words that most answers have.
    """
    judged = [(str(p), text.lower().split(), s) for p, text, s in zip(prompts, texts, scores, strict=True) if not np.isnan(s)]
    if len(judged) < FEWEST:
        return {}
    answers = [words for _, words, _ in judged]
    compared = [(prompt, set(words)) for prompt, words, _ in judged[:: -(-len(judged) // COMPARED)]]
    overlaps = [len(a & b) / max(len(a | b), 1) for (p, a), (q, b) in combinations(compared, 2) if p != q]
    alike = {"alike": float(np.mean(overlaps))} if overlaps else {}
    return {"same_word": _same(answers), **alike, "one_feature": _one_feature(answers, np.array([s for *_, s in judged]))}


def _same(answers: Sequence[Sequence[str]]) -> float:
    counts = np.array(list(Counter(word for words in answers for word in words).values()), float)
    total = counts.sum()
    return float((counts * (counts - 1)).sum() / (total * (total - 1))) if total > 1 else 1.0


def _one_feature(answers: Sequence[Sequence[str]], scores: np.ndarray) -> float:
    common = Counter(word for words in answers for word in sorted(set(words))).most_common(COMMON)
    columns = [[len(words) for words in answers], [len(words) - len(set(words)) for words in answers]]
    columns += [[words.count(word) for words in answers] for word, _ in common]
    features = np.array(columns, float)
    features -= features.mean(1, keepdims=True)
    centered = scores - scores.mean()
    scale = (features**2).sum(1) * (centered @ centered)
    explained = np.divide((features @ centered) ** 2, scale, out=np.zeros(len(features)), where=scale > 0)
    return float(explained.max())
