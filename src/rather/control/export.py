"""A trained policy as a file that other programs run: an ONNX graph, or the numbers of its layers for NumPy.

Shape letters: B observations, I numbers of an observation, A of an action, K choices.
"""

import logging
import math
import warnings
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from rather.control.models import ControlPolicy, Perceptron
from rather.control.normalizer import Normalizer
from rather.control.wrappers import CombinedActions
from rather.errors import ConfigError, installing

SUFFIXES = (".onnx", ".npz")


def export(policy: ControlPolicy, env: gymnasium.Env, file: Path) -> None:
    """Write the deterministic policy for `env`, as `environment` makes it: flat observations in, actions as its maker's take them out.

    As `.onnx` a graph from `observation` (B, I) to `action` (B,) or (B, A). As `.npz` arrays: `mean` and `std` that observations are scaled
    by, and the `limit` that they are cut at; `weight_0`, `bias_0`, `weight_1` and so on of tanh layers, the last of them linear; and of the
    actions the `choices` (K,) or (K, A), or `low` and `high`. `env` is closed.

    Raises:
        ConfigError: the file's name ends otherwise, a package is missing, NumPy cannot have a network of a user's own, or it cannot
            become a graph.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"{file} must end in {' or '.join(SUFFIXES)}, which says how the policy is written")
    if file.suffix == ".npz" and not isinstance(policy.net, Perceptron):
        raise ConfigError(f"{file} holds tanh layers alone, and this policy is another network; write it as .onnx")
    if file.suffix == ".onnx" and find_spec("onnxscript") is None:
        raise ConfigError(f"{file} needs the packages onnx and onnxscript: {installing('onnx')}")
    bounds = _bounds(policy, env)
    env.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npz":
        _numpy(policy, bounds, file)
    else:
        _onnx(policy, bounds, file)


class Deterministic(nn.Module):
    """Deterministic actions of a policy, as the environment takes them, for flat observations (B, I).

    `bounds` are the `choices` (K,) or (K, A), or `low` and `high` (A,).
    """

    def __init__(self, policy: ControlPolicy, bounds: dict[str, np.ndarray]) -> None:
        super().__init__()
        mean, std, self.limit = _scaling(policy)
        self.net, self.mean, self.std = policy.net, torch.from_numpy(mean).float(), torch.from_numpy(std).float()
        self.choices = torch.from_numpy(bounds["choices"]) if "choices" in bounds else None
        if self.choices is None:
            self.whole = bounds["low"].dtype.kind in "iu"
            self.low, self.high = (torch.from_numpy(bounds[name]).float() for name in ("low", "high"))

    def forward(self, observation: Tensor) -> Tensor:
        x = (observation - self.mean) / self.std
        if math.isfinite(self.limit):
            x = x.clamp(-self.limit, self.limit)
        out = _plain(self.net, x) if isinstance(self.net, Perceptron) else self.net(x)
        if self.choices is not None:
            return self.choices[out.argmax(-1)]
        return out.round().clamp(self.low, self.high).to(torch.int64) if self.whole else out.clamp(self.low, self.high)


def _plain(net: Perceptron, x: Tensor) -> Tensor:
    """What the net makes of (B, I), in operations that a graph can hold."""
    layers = list(net.layers)
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        x = torch.tanh(x @ weight + bias)
    return x @ layers[-2] + layers[-1]


def _scaling(policy: ControlPolicy) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and standard deviation (I,) of observations, float64, and where they are cut; 0, 1 and nowhere if they are not scaled."""
    if policy.normalizer is None or not policy.normalizer.count:
        return np.zeros(policy.inputs), np.ones(policy.inputs), math.inf
    mean, std = policy.normalizer.scale()
    return mean.numpy().copy(), std.numpy().copy(), Normalizer.LIMIT


def _bounds(policy: ControlPolicy, env: gymnasium.Env) -> dict[str, np.ndarray]:
    combined: CombinedActions | None = env.get_wrapper_attr("combined")
    if isinstance(env.action_space, Box):
        return {"low": env.action_space.low, "high": env.action_space.high}
    return {"choices": np.arange(policy.outputs) + policy.first if combined is None else combined.choices}


def _onnx(policy: ControlPolicy, bounds: dict[str, np.ndarray], file: Path) -> None:
    what = f"{file} is not written, since the policy's network cannot become a graph"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            graph = torch.onnx.export(
                Deterministic(policy, bounds).eval(), (torch.zeros(2, policy.inputs),), dynamo=True, verbose=False,
                input_names=["observation"], output_names=["action"], dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )  # fmt: skip
        except Exception as e:
            cause = e.__cause__ or e
            raise ConfigError(f"{what}, for any number of rows: {type(cause).__name__}: {' '.join(str(cause).split())[:200]}") from e
    assert graph is not None
    graph.save(str(file), external_data=False)


def _numpy(policy: ControlPolicy, bounds: dict[str, np.ndarray], file: Path) -> None:
    assert isinstance(policy.net, Perceptron)
    mean, std, limit = _scaling(policy)
    arrays = {"mean": mean, "std": std, "limit": np.array(limit), **bounds}
    for i, (weight, bias) in enumerate(policy.net.arrays()):
        arrays |= {f"weight_{i}": weight, f"bias_{i}": bias}
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType], which takes the names for the argument allow_pickle
