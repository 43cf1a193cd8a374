"""One vector learns in C as it does in PyTorch."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from rather.errors import TrainingError
from rather.kernels import perceptrons
from rather.learners.common import Stepper
from rather.learners.settings import Optimization

HOW = Optimization(lr=3e-2, weight_decay=0.1, max_grad_norm=0.8, warmup=3, schedule="cosine")
NUMBERS = 1003  # not whole vectors


def gradients(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [10 ** (i % 3 - 2) * torch.randn(NUMBERS, generator=generator) for i in range(count)]


def stepper(eps: float = 1e-5) -> Stepper:
    return Stepper([nn.Parameter(torch.linspace(-1, 1, NUMBERS))], HOW, 20, eps=eps)


def steps(of: Stepper, some: list[torch.Tensor]) -> list[dict[str, float]]:
    said = []
    for gradient in some:
        of.parameters[0].grad = gradient.clone()
        said.append(of.step(1.5))
    return said


@pytest.mark.parametrize("eps", [1e-8, 1e-5])
def test_a_vector_moves_as_pytorch_moves_it(eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = stepper(eps)
    assert ours.vector is not None
    said = steps(ours, gradients(20))
    monkeypatch.setattr(perceptrons, "supports", lambda parameter: False)
    theirs = stepper(eps)
    assert theirs.vector is None
    expected = steps(theirs, gradients(20))
    torch.testing.assert_close(ours.parameters[0], theirs.parameters[0], atol=1e-5, rtol=1e-5)
    assert said == [pytest.approx(row, rel=1e-5) for row in expected]
    assert {row["grad_norm"] > HOW.max_grad_norm for row in said} == {True, False}, "some are scaled down"


def test_each_goes_on_from_the_others_state(monkeypatch: pytest.MonkeyPatch) -> None:
    some, whole = gradients(20), stepper()
    steps(whole, some)
    for first in ("c", "torch"):
        with monkeypatch.context() as patch:
            patch.setattr(perceptrons, "supports", lambda parameter, first=first: first == "c")
            begun = stepper()
            steps(begun, some[:9])
            state: dict[str, Any] = begun.state_dict()
            patch.setattr(perceptrons, "supports", lambda parameter, first=first: first != "c")
            other = stepper()
            other.load_state_dict(state)
            with torch.no_grad():
                other.parameters[0].copy_(begun.parameters[0])
            steps(other, some[9:])
            torch.testing.assert_close(other.parameters[0], whole.parameters[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_moves_nothing(loss: float, gradient: float) -> None:
    learner = stepper()
    steps(learner, gradients(3))
    before = learner.parameters[0].detach().clone()
    learner.parameters[0].grad = torch.full((NUMBERS,), gradient)
    with pytest.raises(TrainingError, match="step 4 is not finite .* lower train.lr"):
        learner.step(loss)
    assert torch.equal(learner.parameters[0], before)


def test_what_lies_otherwise_is_left_to_pytorch() -> None:
    vector = torch.zeros(8)
    assert perceptrons.supports(vector)
    assert not perceptrons.supports(torch.zeros(8, 1))
    assert not perceptrons.supports(torch.zeros(16)[::2])
    assert not perceptrons.supports(vector.double())
    assert not perceptrons.supports(vector.bfloat16())
