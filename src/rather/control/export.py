"""A trained policy as a file that other programs run: an ONNX graph, or the numbers of its layers for NumPy.

Shape letters: B observations, I numbers of an observation, A of an action.
"""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn

from rather.control.models import ControlPolicy, Perceptron
from rather.errors import ConfigError, installing

SUFFIXES = (".onnx", ".npz")


def export(policy: ControlPolicy, actions: Space, file: Path) -> None:
    """Write the deterministic policy: flat observations in, actions as the environment takes them out.

    As `.onnx` a graph from `observation` (B, I) to `action`, (B,) or (B, A), int64 for choices and whole numbers. As `.npz` arrays: `mean`
    and `std` that observations are scaled by, and the `limit` that they are cut at; `weight_0`, `bias_0`, `weight_1` and so on of tanh
    layers, the last of them linear; and of the actions `low` and `high`, or `first`, the number of the first choice.

    Raises:
        ConfigError: the file's name ends otherwise, a package is missing, or NumPy cannot have a network of a user's own.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"{file} must end in {' or '.join(SUFFIXES)}, which says how the policy is written")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npz":
        _numpy(policy, actions, file)
    else:
        _onnx(policy, actions, file)


class Deterministic(nn.Module):
    """The likeliest actions of a policy, as the environment takes them, for flat observations (B, I)."""

    mean: Tensor
    std: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(self, policy: ControlPolicy, actions: Space) -> None:
        super().__init__()
        mean, std = _scaling(policy)
        self.register_buffer("mean", torch.from_numpy(mean).float())
        self.register_buffer("std", torch.from_numpy(std).float())
        self.limit = 10.0 if _scaled(policy) else float("inf")
        self.net, self.first, self.whole = policy.net, policy.first, isinstance(actions, Box) and np.issubdtype(actions.dtype, np.integer)
        self.choice = isinstance(actions, Discrete)
        for name in ("low", "high"):
            bound = torch.tensor(getattr(actions, name), dtype=torch.float32) if isinstance(actions, Box) else None
            self.register_buffer(name, bound)

    def forward(self, observation: Tensor) -> Tensor:
        x = (observation - self.mean) / self.std
        if self.limit != float("inf"):
            x = x.clamp(-self.limit, self.limit)
        out = _plain(self.net, x) if isinstance(self.net, Perceptron) else self.net(x)
        if self.choice:
            return out.argmax(-1) + self.first
        return out.round().clamp(self.low, self.high).to(torch.int64) if self.whole else out.clamp(self.low, self.high)


def _plain(net: Perceptron, x: Tensor) -> Tensor:
    """What the net makes of (B, I), in operations that a graph can hold."""
    layers = list(net.layers)
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        x = torch.tanh(x @ weight + bias)
    return x @ layers[-2] + layers[-1]


def _scaled(policy: ControlPolicy) -> bool:
    return policy.normalizer is not None and bool(policy.normalizer.count)


def _scaling(policy: ControlPolicy) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (I,) of observations, float64; 0 and 1 where they are not scaled."""
    if policy.normalizer is None:
        return np.zeros(policy.inputs), np.ones(policy.inputs)
    mean, std = policy.normalizer.scale()
    return mean.numpy().copy(), std.numpy().copy()


def _onnx(policy: ControlPolicy, actions: Space, file: Path) -> None:
    if find_spec("onnxscript") is None:
        raise ConfigError(f"{file} needs the packages onnx and onnxscript: {installing('onnx')}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        graph = torch.onnx.export(
            Deterministic(policy, actions).eval(), (torch.zeros(2, policy.inputs),), dynamo=True, verbose=False,
            input_names=["observation"], output_names=["action"], dynamic_shapes=({0: torch.export.Dim("rows")},),
        )  # fmt: skip
    assert graph is not None
    graph.save(str(file), external_data=False)


def _numpy(policy: ControlPolicy, actions: Space, file: Path) -> None:
    if not isinstance(policy.net, Perceptron):
        raise ConfigError(f"{file} holds tanh layers alone, and this policy is a network of your own; write it as .onnx")
    mean, std = _scaling(policy)
    arrays = {"mean": mean, "std": std, "limit": np.array(10.0 if _scaled(policy) else np.inf)}
    for i, (weight, bias) in enumerate(policy.net.arrays()):
        arrays |= {f"weight_{i}": weight, f"bias_{i}": bias}
    if isinstance(actions, Box):
        arrays |= {"low": actions.low, "high": actions.high}
    else:
        arrays["first"] = np.array(policy.first)
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType], which takes the names for the argument allow_pickle
