"""The first-order counterpart, on the grid of the zeroth-order learner."""

import numpy as np
import pytest
import torch
from test_zeroth import TASKS, Grid

from rather.control.environments import inputs
from rather.control.models import ControlPolicy
from rather.core import Comparison
from rather.losses import preference_reinforce_loss
from rather.zeroth.first_order import FirstOrder
from rather.zeroth.learner import Asking, Estimate


class Ascent(Grid):
    """The same table and judge, moved by the gradient."""

    def __init__(self, seed: int, how: Estimate) -> None:
        asking = Asking(mu=0.0, side=1, perturbed=False)
        super().__init__(seed, asking, how)
        start = ControlPolicy(inputs(self.make()), self.make().action_space, [], normalize=False, seed=seed)
        self.learner = FirstOrder(self.policy, self.space, asking, how, start, beta=0.5)


def test_preference_reinforce_by_hand() -> None:
    # -(1 - 0.5) * (-1 - -3) = -1; a tie adds 0: mean -0.5
    assert preference_reinforce_loss(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -9.0]), torch.tensor([1.0, 0.5])).item() == -0.5


@pytest.mark.parametrize(("estimator", "lr", "answers"), [("reinforce", 0.2, 400), ("dpo", 0.4, 800)])
def test_it_learns_the_grid(estimator: str, lr: float, answers: int) -> None:
    reached = 0
    for seed in range(5):
        grid = Ascent(seed, Estimate(lr=lr, estimator=estimator, optimizer="Adam"))
        given = number = 0
        while given < answers and (grid.value() - grid.low) < 0.5 * (grid.high - grid.low):
            given, number = given + grid.update(number), number + 1
        reached += (grid.value() - grid.low) >= 0.5 * (grid.high - grid.low)
    assert reached >= 4


def test_the_step_is_the_gradient_of_the_log_probabilities() -> None:
    grid = Ascent(0, Estimate(lr=1.0, estimator="reinforce"))
    ask = grid.planner.plan(0)[0]
    assert ask.sides == [None, None]
    a, b = grid.sampler.sample([ask.tasks[0]] * 2, 1, ask.sides)
    assert not np.array_equal(a.actions, b.actions), "two trajectories of the same policy"
    grid.learner.take({ask.key: [Comparison((a,), (b,), 1.0, ask.key)]})
    before = grid.policy.net.layers[0].detach().clone()
    with torch.no_grad():
        p = (grid.policy.net(torch.eye(9))).softmax(-1)
    expected = torch.zeros(9, 4)
    for t, sign in ((a, 0.5), (b, -0.5)):  # d log pi(a | s) / d table = onehot - p
        for cell, action in zip(t.observations[:-1].argmax(-1), t.actions, strict=True):
            expected[cell] -= sign * p[cell]
            expected[cell, action] += sign
    grid.learner.step()
    torch.testing.assert_close(grid.space.numbers.detach().view(9, 4), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(grid.policy.net.layers[0].detach(), before + expected, atol=1e-5, rtol=1e-4)


def test_ties_and_silence_move_nothing() -> None:
    grid = Ascent(0, Estimate(lr=1.0, estimator="reinforce"))
    ask = grid.planner.plan(0)[0]
    a, b = grid.sampler.sample([TASKS[0]] * 2, 1)
    for told in ([Comparison((a,), (b,), 0.5, ask.key)], []):
        grid.learner.take({ask.key: told})
        assert grid.learner.step()["update_norm"] == 0


def test_what_was_logged_makes_the_numbers_again_elsewhere() -> None:
    asking, how = Asking(mu=1.0), Estimate(lr=1.0, radius=0.6, optimizer="Adam")
    here, there = Grid(0, asking, how), Grid(0, asking, how)
    here.update(0)
    here.learner.checked(0.8, 0.05)
    here.update(1)
    there.learner.replay(here.learner.log)
    assert here.learner.checked(0.6, 0.05)
    here.learner.shrink(0.9)
    here.update(2)
    there.learner.replay(here.learner.log[len(there.learner.log) :])
    assert torch.equal(here.space.numbers, there.space.numbers)
    assert torch.equal(here.policy.net.layers[0], there.policy.net.layers[0])
