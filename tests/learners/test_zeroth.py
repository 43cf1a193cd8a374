"""The zeroth-order learner on a grid whose best policy is known."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from rather.control.environments import inputs
from rather.control.grid import GridWorld
from rather.control.models import ControlPolicy
from rather.control.rollout import ControlSampler
from rather.core import Comparison, Perturbation, Task, direction, perturbation_of, perturbed
from rather.errors import ConfigError
from rather.judges.best import answers
from rather.judges.known import SimulatedJudge, total_reward
from rather.losses import Link, sign_weights
from rather.zeroth.learner import Asking, Estimate, Planner, Zeroth, answer_preferences, direction_preferences, preference_tensor, rms
from rather.zeroth.spaces.control import ControlSpace

TASKS = [Task("grid", str(i)) for i in range(1000)]


class Grid:
    """A table on a 3 x 3 grid, and a loop that asks a simulated judge."""

    def __init__(self, seed: int, asking: Asking, how: Estimate, temperature: float = 0.5) -> None:
        env = self.make()
        self.policy = ControlPolicy(inputs(env), env.action_space, [], normalize=False, seed=seed)
        self.policy.space = self.space = ControlSpace(self.policy, ("net.layers.0",))
        self.sampler = ControlSampler(self.policy, self.make, rows=64)
        self.planner = Planner(TASKS, asking, seed)
        self.learner = Zeroth(self.policy, self.space, asking, how)
        self.judge = SimulatedJudge("judge", total_reward, temperature, seed=seed)
        self.low, self.high = self.value(), float(env.values()[0, 0])

    @staticmethod
    def make() -> GridWorld:
        return GridWorld(3)

    def value(self) -> float:
        """Exact value of the policy."""
        env = self.make()
        with torch.no_grad():
            table = self.policy.net(torch.eye(9)).softmax(-1).numpy()
        return float(env.values(np.repeat(table[None], env.horizon, 0))[0, 0])

    def update(self, number: int) -> int:
        """One update; returns how many answers it took."""
        asks, given = self.planner.plan(number), 0
        wanted = [(t, p) for a in asks for p in a.sides for t in a.tasks]
        found = self.sampler.sample([t for t, _ in wanted], self.planner.chances(number), [p for _, p in wanted])
        answered, d = {}, self.planner.how.side
        sides = iter([tuple(found[i : i + d]) for i in range(0, len(found), d)])
        for ask in asks:
            a, b, *others = (next(sides) for _ in ask.sides)
            question = Comparison(a, b, key=ask.key, others=tuple(others))
            same = all(np.array_equal(x.actions, y.actions) for side in question.sides for x, y in zip(a, side, strict=True))
            given += not same
            ((preference, best),) = [(0.5, None)] if same else answers(self.judge, [question])
            answered[ask.key] = replace(question, preference=preference, best=best).pairs()
        self.learner.take(answered)
        self.learner.step()
        return given


def test_it_reaches_nine_tenths_of_the_best_within_400_answers() -> None:
    reached = 0
    for seed in range(10):
        grid = Grid(seed, Asking(mu=2.0), Estimate(lr=1.5))
        answers = number = 0
        while answers <= 392 and (grid.value() - grid.low) < 0.9 * (grid.high - grid.low):
            answers, number = answers + grid.update(number), number + 1
        reached += (grid.value() - grid.low) >= 0.9 * (grid.high - grid.low)
    assert reached >= 8


def test_perturbed_policies_meet_the_same_chances_and_leave_the_weights_alone() -> None:
    grid = Grid(0, Asking(mu=0.5), Estimate(lr=1.0))
    before = {n: p.clone() for n, p in grid.policy.state_dict().items()}
    nothing, far = Perturbation(3, 0.0), Perturbation(3, 5.0)
    plain, zero, other, again = grid.sampler.sample([TASKS[0]] * 4, 7, [None, nothing, far, None])
    assert np.array_equal(plain.actions, zero.actions), "a perturbation of nothing is no perturbation"
    assert np.array_equal(plain.logprobs, zero.logprobs)
    assert not np.array_equal(plain.actions, other.actions)
    assert not np.array_equal(plain.actions, again.actions), "the second trajectory of one policy has other chances"
    assert all(torch.equal(p, before[n]) for n, p in grid.policy.state_dict().items())
    # What was perturbed is what the numbers would be after that move
    (alone,) = grid.sampler.sample([TASKS[0]], 7, [far])
    with torch.no_grad():
        grid.space.numbers.add_(grid.space.combined([far], [1.0])[0])
    grid.space.sync()
    (moved,) = grid.sampler.sample([TASKS[0]], 7)
    assert np.array_equal(alone.actions, moved.actions)
    np.testing.assert_allclose(alone.logprobs, moved.logprobs, atol=1e-6)


def asked(grid: Grid, preference: float | None) -> dict[str, list[Comparison]]:
    found = {}
    for ask in grid.planner.plan(0):
        a, b = grid.sampler.sample([ask.tasks[0]] * 2, 1, ask.sides)
        found[ask.key] = [Comparison((a,), (b,), preference, ask.key)]
    return found


def test_a_step_is_the_mean_of_the_directions_by_their_answers() -> None:
    grid = Grid(0, Asking(mu=0.5, directions=3), Estimate(lr=0.2))
    answered = asked(grid, 1.0)
    _, second, third = answered
    answered[second] = [replace(answered[second][0], preference=0.0)]
    answered[third] = [answered[third][0].swapped()]  # b is theta + mu v now, and b was preferred
    grid.learner.take(answered)
    grid.learner.step()
    v = [direction(ask.sides[0].seed, grid.space.size) for ask in grid.planner.plan(0)]
    np.testing.assert_allclose(grid.space.numbers.detach(), 0.2 * (v[0] - v[1] + v[2]) / 3, atol=1e-6)
    assert torch.equal(grid.policy.net.layers[0].detach(), grid.space.initial["net.layers.0"] + grid.space.numbers.view(9, 4))


def test_a_link_may_be_a_function_with_its_inverse() -> None:
    # P = 1/2 + x / 8, so an answer of 0.75 (a share of judges) says 2, and twins that are 2 mu = 1 apart move by 2 v
    link = Link(lambda x: 0.5 + x / 8, lambda p: 8 * (p - 0.5))
    grid = Grid(0, Asking(mu=0.5, directions=1), Estimate(lr=1.0, estimator="zpg", link=link))
    grid.learner.take(asked(grid, 0.75))
    grid.learner.step()
    v = direction(grid.planner.plan(0)[0].sides[0].seed, grid.space.size)
    np.testing.assert_allclose(grid.space.numbers.detach(), 2 * v, rtol=1e-5)
    never = Link(link.probability, lambda p: p / 0)
    with pytest.raises(ConfigError, match="the given link has no finite inverse"):
        Grid(0, Asking(mu=0.5), Estimate(lr=1.0, estimator="zpg", link=never))


def test_ties_and_silence_move_nothing() -> None:
    grid = Grid(0, Asking(mu=0.5, directions=3), Estimate(lr=0.2))
    for preference in (0.5, None):
        grid.learner.take(asked(grid, preference))
        values = grid.learner.step()
        assert values["update_norm"] == 0
    grid.learner.take({key: [] for key in asked(grid, None)})
    values = grid.learner.step()
    assert (values["update_norm"], values["answers"], values["unanswered"]) == (0, 0, 3)


def test_under_a_judge_who_flips_coins_it_stays_in_the_trust_region() -> None:
    grid = Grid(0, Asking(mu=0.5, side=1), Estimate(lr=1.0, radius=0.4))
    grid.judge = replace(grid.judge, mistake=1.0)
    norms = []
    for number in range(12):
        grid.update(number)
        norms.append(rms(grid.space.parameters))
    assert max(norms) <= 0.4 + 1e-6
    assert max(norms) > 0.39, "it would have left"


def test_steps_add_up_beyond_the_trust_region() -> None:
    one, two = (Grid(0, Asking(mu=0.5), Estimate(lr=1.0, radius=0.1)) for _ in range(2))
    events = [["along", [seed], [0.5 + seed]] for seed in range(6)]
    one.learner.replay(events[:4])
    two.learner.load_state_dict(one.learner.state_dict())
    for grid in (one, two):
        grid.learner.replay(events[4:])
        whole = grid.space.combined([Perturbation(seed, 1.0) for seed in range(6)], [0.5 + seed for seed in range(6)])
        torch.testing.assert_close(grid.space.numbers.detach(), whole[0] * (0.1 / rms(whole)))
    one.learner.shrink(0.5)
    assert rms(one.space.parameters) == pytest.approx(0.05)
    one.learner.replay([["along", [9], [0.01]]])
    assert rms(one.space.parameters) < 0.06, "what was beyond is forgotten"


def test_it_goes_back_to_the_best_point_when_the_win_rate_falls() -> None:
    grid = Grid(0, Asking(mu=0.5), Estimate(lr=1.0))
    grid.update(0)
    best = grid.space.numbers.detach().clone()
    assert not grid.learner.checked(0.7, 0.1)
    grid.update(1)
    assert not grid.learner.checked(0.65, 0.1), "within the error"
    assert not torch.equal(grid.space.numbers, best)
    assert grid.learner.checked(0.55, 0.1)
    assert torch.equal(grid.space.numbers, best)
    weights = grid.policy.net.layers[0].detach()
    assert torch.equal(weights, grid.space.initial["net.layers.0"] + best.view(9, 4))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_its_state_goes_on_where_it_was(optimizer: str) -> None:
    one, two = (Grid(0, Asking(mu=0.5), Estimate(lr=0.1, optimizer=optimizer)) for _ in range(2))
    one.update(0)
    one.learner.checked(0.6, 0.1)
    two.learner.load_state_dict(copy.deepcopy(one.learner.state_dict()))
    for grid in (one, two):
        grid.update(1)
    assert torch.equal(one.space.numbers, two.space.numbers)
    assert two.learner.best_rate == 0.6
    assert torch.equal(one.learner.best[0], two.learner.best[0])


def test_several_judges_and_comparisons_of_a_direction_find_their_place() -> None:
    grid = Grid(0, Asking(mu=0.5, directions=2, comparisons=2, side=1), Estimate(lr=0.2))
    answered = asked(grid, 1.0)
    first, *_, last = answered
    answered[first] = [replace(answered[first][0], preference=p, judge=j) for p, j in ((1.0, "x"), (0.0, "y"))]
    answered[last] = []
    seeds, preferences = preference_tensor(answered)
    assert seeds == [a.sides[0].seed for a in grid.planner.plan(0)[::2]]
    torch.testing.assert_close(
        preferences, torch.tensor([[[1, 0], [1, torch.nan]], [[1, torch.nan], [torch.nan, torch.nan]]]), equal_nan=True
    )


def test_names_keep_a_perturbation() -> None:
    for p in (Perturbation(12, 0.3), Perturbation(2**55, -1e-07), Perturbation(1, 2.0)):
        assert perturbation_of(perturbed("run-1@0-3", p)) == p
    assert perturbation_of(perturbed("run-1@0-3", None)) is None
    here = Comparison((_of("r@0-1+0.5*v(3)"),), (_of("r@0-1-0.5*v(3)"),), 1.0)
    for said, expected in ((here, 1.0), (here.swapped(), 1.0), (replace(here, preference=0.0), 0.0)):
        assert direction_preferences(said) == [(3, expected)]
    one_sided = Comparison((_of("r@0-1"),), (_of("r@0-1+0.5*v(3)"),), 0.25)
    assert direction_preferences(one_sided) == [(3, 0.75)]
    two_directions = Comparison((_of("r@0-1+0.5*v(3)"),), (_of("r@0-1-0.5*v(4)"),), 1.0)
    assert dict(direction_preferences(two_directions)) == {3: 1.0, 4: 1.0}
    assert direction_preferences(Comparison((_of("r@0-1"),), (_of("r@0-1"),), 1.0)) == []


def _of(policy: str):
    from rather.core import Trajectory

    return Trajectory(TASKS[0], policy)


@pytest.mark.parametrize(
    ("asking", "how", "said"),
    [
        ({"mu": 0.0}, {}, "zeroth.mu is 0"),
        ({"side": 0}, {}, "zeroth.side is 0"),
        ({}, {"radius": 0.0}, "zeroth.radius is 0"),
        ({}, {"estimator": "zpg", "trim": 0.0}, "no finite inverse at zeroth.trim = 0"),
        ({}, {"link": "guess"}, "no link 'guess'; take one of logistic"),
        ({}, {"optimizer": "Magic"}, "no optimizer 'Magic'"),
    ],
)
def test_settings_that_cannot_work(asking: dict, how: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Grid(0, Asking(**{"mu": 0.5, **asking}), Estimate(**{"lr": 1.0, **how}))


def test_a_space_without_parameters() -> None:
    env = Grid.make()
    with pytest.raises(ConfigError, match="matches none of net.layers.0, net.layers.1"):
        ControlSpace(ControlPolicy(inputs(env), env.action_space, [], False), ("nothing.*",))


def best_of_four(picked: int | None) -> Comparison:
    """Twins of directions 3 and 4 on four sides, of which one was picked."""
    a, b, *others = ((_of(f"r@0-1{scale}*v({seed})"),) for seed in (3, 4) for scale in ("+0.5", "-0.5"))
    return Comparison(a, b, 0.5 if picked is None else float(picked == 0), "q", "judge", tuple(others), picked)


@pytest.mark.parametrize(("picked", "weights"), [(0, [1, 0]), (1, [-1, 0]), (2, [0, 1]), (3, [0, -1]), (None, [0, 0])])
def test_the_best_of_four_twins_speaks_for_its_direction_alone(picked: int | None, weights: list[float]) -> None:
    pairs = best_of_four(picked).pairs()
    seeds, preferences = preference_tensor({"q": pairs})
    assert dict(zip(seeds, sign_weights(preferences).tolist(), strict=True)) == dict(zip((3, 4), weights, strict=True))
    assert answer_preferences(pairs) == [{seed: 0.5 + w / 2 for seed, w in zip((3, 4), weights, strict=True)}], "it is one answer"


def test_a_question_of_several_sides_shares_out_the_directions() -> None:
    asking = Asking(mu=0.5, directions=6, side=2)
    pairs, fours = Planner(TASKS, asking, 1).plan(3), Planner(TASKS, replace(asking, best_of=4), 1).plan(3)
    assert [len(a.sides) for a in fours] == [4, 4, 4]
    assert [p for a in fours for p in a.sides] == [p for a in pairs for p in a.sides]
    one_sided = Planner(TASKS, replace(asking, best_of=4, mirrored=False), 1).plan(3)
    assert [[p and p.scale for p in a.sides] for a in one_sided] == [[0.5, 0.5, 0.5, None]] * 2
    for wrong in (replace(asking, best_of=3), replace(asking, best_of=8), replace(asking, best_of=1)):
        with pytest.raises(ConfigError, match=f"zeroth.best_of = {wrong.best_of} does not go with zeroth.directions = 6"):
            Planner(TASKS, wrong, 1)
    with pytest.raises(ConfigError, match="the link of zpg is about two sides, but zeroth.best_of is 4"):
        Grid(0, replace(asking, best_of=4), Estimate(lr=1.0, estimator="zpg"))


def test_picking_the_best_of_four_goes_uphill_faster_than_pairs() -> None:
    def gained(best_of: int, seed: int) -> float:
        grid = Grid(seed, Asking(mu=2.0, directions=8, side=2, best_of=best_of), Estimate(lr=1.5))
        answers = number = 0
        while answers < 64:
            answers, number = answers + grid.update(number), number + 1
        return (grid.value() - grid.low) / (grid.high - grid.low)

    two, four = (np.mean([gained(best_of, seed) for seed in range(6)]) for best_of in (2, 4))
    assert four > two + 0.05, (two, four)


def test_a_step_of_the_best_of_four_is_averaged_over_the_questions() -> None:
    grid = Grid(0, Asking(mu=0.5, directions=4, best_of=4), Estimate(lr=0.2))
    first, second = grid.planner.plan(0)
    answered = {}
    for ask, best in ((first, 3), (second, 0)):  # - of the first question's second direction, + of the second's first
        a, b, *others = ((t,) for t in grid.sampler.sample([ask.tasks[0]] * 4, 1, ask.sides))
        answered[ask.key] = Comparison(a, b, float(best == 0), ask.key, "judge", tuple(others), best).pairs()
    grid.learner.take(answered)
    assert grid.learner.step()["answers"] == 2
    lost, won = (direction(p.seed, grid.space.size) for p in (first.sides[3], second.sides[0]))
    np.testing.assert_allclose(grid.space.numbers.detach(), 0.2 * (won - lost) / 2, atol=1e-6)
