"""The frequencies of rotary positions and how they are scaled; and from factors back to the settings that they were made of."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rather.errors import ModelError


def frequencies(width: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    """How far each pair of numbers of a head, (width / 2,), turns from one token to the next."""
    found = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "none":
        return torch.zeros_like(found)
    if kind == "linear":
        return found / scaling["factor"]
    if kind == "longrope":
        return found / torch.tensor(scaling["short_factor"])
    if kind == "yarn":
        return yarn_scaled(found, theta, scaling)
    return llama3_scaled(found, scaling) if kind == "llama3" else found


def tables(width: int, ropes: Sequence[tuple[float, dict[str, Any]]], factors: Sequence[float]) -> dict[str, Tensor]:
    """The `frequencies` (tables, width / 2) of each rope, and the `factors` (tables, 1, 1, 1) of its cosines and sines.

    In a model of shapes alone they are shapes, too, which nothing is computed for: that would load PyTorch's compiler, a second and 100 MB.
    """
    if torch.get_default_device().type == "meta":
        return {"frequencies": torch.empty(len(ropes), -(-width // 2)), "factors": torch.empty(len(ropes), 1, 1, 1)}
    each = torch.stack([frequencies(width, theta, scaling) for theta, scaling in ropes])
    return {"frequencies": each, "factors": torch.tensor(factors)[:, None, None, None]}


def llama3_scaled(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1's scaling: long waves slowed by `factor`, short ones kept, a ramp in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves_in_context = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((waves_in_context - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def yarn_scaled(frequencies: Tensor, theta: float, scaling: dict[str, Any]) -> Tensor:
    """YaRN's scaling (Peng et al. 2023): what turns less than `beta_slow` times in the original context is slowed by `factor`, what turns
    more than `beta_fast` times is kept, a ramp in between.
    """
    width, context = 2 * len(frequencies), scaling["original_max_position_embeddings"]
    turns = scaling["beta_fast"], scaling["beta_slow"]
    low, high = (width * math.log(context / (2 * math.pi * n)) / (2 * math.log(theta)) for n in turns)
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (torch.arange(len(frequencies)).float() - low) / (high - low or 0.001)
    return frequencies + (frequencies / scaling["factor"] - frequencies) * ramp.clamp(0, 1)


def llama3(factors: Tensor, theta: float, head_width: int, place: str) -> dict[str, Any] | None:
    """Llama 3.1's settings for which frequencies are divided by `factors` (D / 2), as in a config.json; None where they are all 1,
    a linear scaling where they are all the same.

    Of a frequency whose wave fits w times into the original context the share s = (w - low) / (high - low) is kept, between 0 and 1, and
    its factor is 1 / (s + (1 - s) / factor). The factors alone do not tell low: it is taken to be 1, and other settings are equal to these.

    Raises:
        ModelError: there are no such settings.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    given = factors.double().flatten()
    if given.shape == frequencies.shape and bool(torch.isfinite(given).all()) and bool((given > 0).all()):
        if bool((given == given[0]).all()):
            return None if given[0] == 1 else {"rope_type": "linear", "factor": float(given[0])}
        for low, high, context in _candidates(frequencies, given):
            settings = {"rope_type": "llama3", "factor": float(given.max()), "low_freq_factor": low, "high_freq_factor": high}
            settings["original_max_position_embeddings"] = context
            if torch.allclose(frequencies / llama3_scaled(frequencies, settings), given, rtol=1e-4, atol=0):
                return settings
    raise ModelError(f"{place} scales rotary positions otherwise than Llama 3.1 does; rather reads that scaling and linear ones only")


def _candidates(frequencies: Tensor, given: Tensor) -> list[tuple[float, float, int]]:
    """The low and high factor and the original context by the factors that are neither the smallest nor the largest."""
    factor = given.max()
    kept = (1 / given - 1 / factor) / (1 - 1 / factor)
    ramp = (kept > 1e-4) & (kept < 1 - 1e-4)
    turns = frequencies / (2 * math.pi)  # waves in a context of one token
    if ramp.sum() >= 2:  # s = context / (high - low) * turns - low / (high - low), a line
        lines = torch.stack([turns[ramp], -torch.ones_like(turns[ramp])], dim=1)
        slope, offset = torch.linalg.lstsq(lines, kept[ramp, None]).solution[:, 0].tolist()
        if slope > 0 and offset > 1e-3:
            high = round(1 + 1 / offset, 3)
            return [(1.0, high, round(slope * (high - 1)))]
        return []
    high = 4.0  # as in all of Meta's models; one factor on the ramp tells the context, none leaves a range
    if ramp.any():
        return [(1.0, high, round(float((kept[ramp] * (high - 1) + 1) / turns[ramp])))]
    least = high / float(turns[kept > 1e-4].min())  # the context in which the slowest wave that is kept fits `high` times
    return [(1.0, high, math.ceil(least))]
