"""PPO's gradient for two small perceptrons, and a step of AdamW on one vector, each one call of C (perceptrons.c) on a processor.

At such sizes what PyTorch does between its products costs several times the products. Without a C compiler PyTorch and NumPy do the same
(`control.gradients`, `learners.common.Stepper`), equal up to the order of sums. Shape letters: N steps, A action dimensions or choices.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from rather.kernels import compiled

MAX_LAYERS, MAX_OUTPUTS = 16, 4096
"""Of a net; perceptrons.c says the same of layers, and has outputs on the stack."""


class _Known(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("old", "advantages", "returns", "values")]


class _Objective(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("clip", "high", "dual", "value_clip", "value_weight", "entropy_weight")]


class _Step(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("most", "lr", "beta1", "beta2", "eps", "decay", "bias1", "bias2")]


@dataclass(frozen=True)
class Objective:
    """How PPO weighs and clips; infinite: without a limit."""

    clip: float
    high: float
    dual: float
    value_clip: float
    value_weight: float
    entropy_weight: float


@functools.cache
def library() -> ctypes.CDLL | None:
    """perceptrons.c, or None without a compiler."""
    found = compiled.library("perceptrons.c")
    if found is not None:
        n, p = ctypes.c_int64, ctypes.c_void_p
        found.ppo_gradient.argtypes = [n, p, p, p, ctypes.POINTER(_Known), n, n, p, n, p, ctypes.POINTER(_Objective), p, p, p]
        found.ppo_gradient.restype = ctypes.c_int
        found.adamw.argtypes, found.adamw.restype = [n, ctypes.POINTER(_Step), p, p, p, p], ctypes.c_double
    return found


class Gradient:
    """PPO's gradient at `parameter`: the numbers of a policy, of a critic, and `log_std` where the policy is Gaussian.

    Of each net `sizes` are the numbers that go in and come out of its layers.
    """

    def __init__(self, parameter: Tensor, policy: Sequence[int], critic: Sequence[int], gaussian: bool) -> None:
        self.parameter, self.gaussian = parameter, gaussian
        self.sizes = [np.array(sizes, np.int64) for sizes in (policy, critic)]

    def take(
        self, seen: Tensor, actions: np.ndarray, old: np.ndarray, advantages: np.ndarray, returns: np.ndarray, values: np.ndarray
    ) -> None:
        """Learn from these steps from now on: observations (N, I), choices (N,) or actions (N, A), and what they are credited with."""
        known = [np.ascontiguousarray(x, np.float32) for x in (old, advantages, returns, values)]
        self.taken = seen.contiguous(), np.ascontiguousarray(actions, np.float32 if self.gaussian else np.int64), known

    def __call__(self, chosen: Tensor, objective: Objective) -> tuple[Tensor, np.ndarray]:
        """The gradient on the `chosen` steps, and means over them: losses of policy and value, entropy, ratio, share that is clipped."""
        function = library()
        assert function is not None
        seen, actions, known = self.taken
        gradient, parts, (policy, critic) = torch.empty_like(self.parameter), np.empty(5), self.sizes
        credited = _Known(*(x.ctypes.data for x in known))
        done = function.ppo_gradient(
            len(chosen), chosen.data_ptr(), seen.data_ptr(), actions.ctypes.data, credited, self.gaussian, len(policy) - 1,
            policy.ctypes.data, len(critic) - 1, critic.ctypes.data, _Objective(*astuple(objective)), self.parameter.data_ptr(),
            gradient.data_ptr(), parts.ctypes.data,
        )  # fmt: skip
        if not done:
            raise MemoryError("there is no memory for the gradient of a minibatch")
        return gradient, parts


def supports(parameter: Tensor) -> bool:
    """Whether `adamw` is compiled, and is for such a parameter: one vector of floats on a processor."""
    plain = parameter.dim() == 1 and parameter.is_contiguous() and parameter.dtype == torch.float32 and parameter.device.type == "cpu"
    return plain and library() is not None


def adamw(
    parameter: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    step: int,
    max_grad_norm: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> float:
    """Take step number `step`, from 1, of AdamW (Loshchilov and Hutter 2019), the gradient scaled down to a norm of `max_grad_norm`.

    Returns:
        The norm before; where it is not finite nothing has moved.
    """
    function = library()
    assert function is not None
    how = _Step(max_grad_norm, lr, *betas, eps, weight_decay, 1 - betas[0] ** step, 1 - betas[1] ** step)
    gradient = gradient.contiguous()
    first, second = moments
    return function.adamw(parameter.numel(), how, parameter.data_ptr(), gradient.data_ptr(), first.data_ptr(), second.data_ptr())
