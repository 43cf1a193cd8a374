"""How tokens are drawn from logits.

Shape letters: R rows at work, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rather import kernels


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; `top_p` 1, `top_k` 0 and `min_p` 0 cut nothing off."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


def uniforms(seed: int, count: int) -> Tensor:
    """The numbers (count,) in [0, 1) that an answer's tokens are drawn with."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def doubles(device: torch.device) -> torch.device:
    """Where numbers of 64 bits are: on the device, but for GPUs by Apple, which have none."""
    return torch.device("cpu") if device.type == "mps" else device


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniforms` (R,), and where those are; `logits` is (R, V).

    Returns tokens (R,) and their log-probabilities (R,) under the uncut distribution at the sampling temperature: what a
    learner computes too. At temperature 0 the log-probabilities are those of temperature 1.
    """
    logits = logits.to(uniforms.device)
    uncut = sampling.top_p >= 1 and not sampling.top_k and not sampling.min_p
    if uncut and sampling.temperature and (found := kernels.draw(logits, uniforms, sampling.temperature)):
        return found
    logits = logits.float()
    weights = logits - logits.amax(dim=-1, keepdim=True)  # one new array and few passes: the vocabulary is large
    if sampling.temperature not in (0, 1):
        weights /= sampling.temperature
    weights.exp_()
    total = weights.sum(dim=-1, keepdim=True)
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1, keepdim=True)
    elif uncut:
        tokens = _invert(weights, uniforms)
    else:
        p, order = (weights / total).sort(dim=-1, descending=True)
        kept = p.cumsum(dim=-1) - p < sampling.top_p
        kept &= p >= sampling.min_p * p[:, :1]
        if sampling.top_k:
            kept[:, sampling.top_k :] = False
        kept[:, 0] = True
        tokens = order.gather(1, _invert(p * kept, uniforms))
    return tokens[:, 0], (weights.gather(1, tokens).log() - total.log())[:, 0]


def draw_each(logits: Tensor, uniforms: Tensor, samplings: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """As `draw`, where each row has a sampling of its own."""
    if all(s is samplings[0] for s in samplings):
        return draw(logits, uniforms, samplings[0])
    tokens, logprobs = torch.zeros_like(uniforms, dtype=torch.int64), torch.zeros_like(uniforms, dtype=torch.float32)
    for sampling in set(samplings):
        rows = [i for i, s in enumerate(samplings) if s == sampling]
        tokens[rows], found = draw(logits[rows], uniforms[rows], sampling)
        logprobs[rows] = found.to(logprobs)
    return tokens, logprobs


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Where the cumulative sum of `weights` (R, V) passes its total times `uniforms` (R,), which are below 1; (R, 1)."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniforms[:, None].double() * cumulative[:, -1:], right=True)
