"""REED: the loss by hand, where its gradient goes, what it is measured on, and that all of it is the same when a fit goes on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from test_surf import shown, trajectory
from torch import nn

from rather import control
from rather.config import toml
from rather.config.schema import Config
from rather.control.models import ControlReward, collate
from rather.control.reed import REED, Dynamics, dynamics_loss
from rather.control.rollout import piece
from rather.core import Comparison, Trajectory
from rather.errors import ConfigError, DataError
from rather.learners.common import put
from rather.learners.reward_settings import REEDSettings
from test_control_run import RUN
from test_going_on import go, last, rows, stop

BOX = Box(-10.0, 10.0, (1,))


def test_the_loss_by_hand() -> None:
    """(3, 4) and (4, 3): 24 / (5 * 5) = 0.96; (1, 0) and (0, 2): 0; (1, 1) and (-2, -2): -1."""
    predicted, encoded = (torch.tensor(x) for x in ([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]], [[4.0, 3.0], [0.0, 2.0], [-2.0, -2.0]]))
    torch.testing.assert_close(dynamics_loss(predicted, encoded), torch.tensor([-0.96, 0.0, 1.0]))


def reward(members: int = 1, hidden: tuple[int, ...] = (5, 4), seed: int = 0) -> ControlReward:
    return ControlReward(1, BOX, members, hidden, seed, normalize=False)


def test_a_state_and_the_next_by_hand() -> None:
    """One hidden unit, tanh(0.5 s + 0.25 a + 0.1). At s = 2 and a = 0 it is tanh(1.1) = 0.80050, and at s' = -1 the state is tanh(-0.4).

    p doubles and adds 1, g is (x, 1 - x) and zeros, h takes (x, y) to 3 x = relu(3 x) and then to (3 x, 0): p: 2.60100, h: (7.80299, 0).
    The encoding is -0.37995 and g makes (-0.37995, 1.37995) of it, whose cosine with (1, 0) is -0.37995 / 1.43130 = -0.26546.
    """
    model = reward(hidden=(1,))
    put([torch.tensor([[[0.5], [0.25]]]), torch.tensor([[[0.1]]])], [*model.layers][:2])
    dynamics = Dynamics(model, 0)
    for p in dynamics.layers:
        nn.init.zeros_(p)
    with torch.no_grad():
        dynamics.layers[0][0, 0, 0], dynamics.layers[1][0, 0, 0] = 2.0, 1.0
        dynamics.layers[2][0, 0, :2], dynamics.layers[3][0, 0, 1] = torch.tensor([1.0, -1.0]), 1.0
        dynamics.layers[4][0, 0, 0], dynamics.layers[6][0, 0, 0] = 3.0, 1.0
    assert dynamics(collate([trajectory([2.0, -1.0])])).item() == pytest.approx(0.26546, abs=1e-5)


def test_no_gradient_reaches_the_next_state() -> None:
    """What is seen is 0 before the action: by the weights of observations a gradient would come through the next state alone.

    Where the encoding is a number, g learns through the prediction alone, and by as much.
    """
    model = reward()
    dynamics, frozen = Dynamics(model, 0), Dynamics(model, 0)
    for p in [*model.layers]:
        nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    batch = collate([trajectory([0.0, 3.0])])
    dynamics(batch).sum().backward()
    assert not model.layers[0].grad.any(), "the first action is 0, too"  # type: ignore[union-attr]
    assert model.layers[1].grad.abs().min() > 0  # type: ignore[union-attr]
    assert all(p.grad is None for p in [*model.layers][-2:]), "the reward itself predicts nothing"
    project = dynamics.layers[2], dynamics.layers[3]
    target = ((3 * model.layers[0][:, :1] + model.layers[1]).tanh() @ project[0] + project[1]).detach()
    out = model.outputs(batch, [*frozen.layers][:2]).flatten(1, 2)
    for weight, bias in ([*frozen.layers][2:4], [*frozen.layers][4:6]):
        out = out @ weight + bias
    out = out.relu() @ frozen.layers[6] + frozen.layers[7]
    (-nn.functional.cosine_similarity(out, target, dim=-1)).sum().backward()
    for own, expected in zip(dynamics.layers, frozen.layers, strict=True):
        torch.testing.assert_close(own.grad, expected.grad)


def test_padding_says_nothing() -> None:
    model = reward(2)
    dynamics = Dynamics(model, 0)
    short, long = trajectory([1.0, 2.0, -1.0]), trajectory([0.5, 0.1, 0.2, 3.0, -2.0])
    both = dynamics(collate([short, long]))
    torch.testing.assert_close(both[:, :1, :2], dynamics(collate([short])))
    torch.testing.assert_close(both[:, 1:], dynamics(collate([long])))


def test_members_are_independent() -> None:
    model = reward(3)
    dynamics = Dynamics(model, 0)
    losses = dynamics(collate([trajectory([1.0, 2.0, -1.0])]))
    assert len({round(x, 4) for x in losses[:, 0, 0].tolist()}) == 3
    losses[1].sum().backward()
    for p in (*[*model.layers][:-2], *dynamics.layers):
        assert p.grad is not None
        assert [bool(g.any()) for g in p.grad] == [False, True, False]


def test_choices_are_seen_as_one_hot_and_observations_scaled() -> None:
    model, plain = ControlReward(1, Discrete(3), 2, (5,), 0), ControlReward(1, Discrete(3), 2, (5,), 0, normalize=False)
    chosen = np.array([2, 0])
    t = replace(trajectory([1.0, 2.0, 5.0]), actions=chosen)
    model.see([t])
    scaled = ((np.array([1.0, 2.0, 5.0]) - 8 / 3) / np.std([1.0, 2.0, 5.0])).tolist()
    expected = Dynamics(plain, 0)(collate([replace(trajectory(scaled), actions=chosen)]))
    torch.testing.assert_close(Dynamics(model, 0)(collate([t])), expected)


def learner(model: ControlReward, asked: list[Comparison], pool: list[Trajectory] | None, steps: int = 6, **settings: Any) -> REED:
    how = {"batch_size": 2, "lr": 0.01, "schedule": "constant", "center": 0.0, "steps": steps, "max_grad_norm": 1e9}
    unlabeled = None if pool is None else lambda _: pool
    return REED(model, asked, [*model.parameters()], REEDSettings(**settings), unlabeled, **how)  # type: ignore[arg-type]


def random_pairs(count: int, lengths: tuple[int, int] = (9, 9)) -> list[Comparison]:
    chance = np.random.default_rng(0)
    sides = [[trajectory(chance.normal(size=n).tolist()) for n in lengths] for _ in range(count)]
    return [Comparison((a,), (b,), float(i % 2), str(i)) for i, (a, b) in enumerate(sides)]


@pytest.mark.parametrize("tokens", [1, 2**16])
def test_the_loss_of_a_step(tokens: int) -> None:
    """Rewards are 0 at first: log 2 for the preferences, and the weight times the mean over the 5 + 8 + 5 + 8 steps of both members."""
    model, asked = reward(2), random_pairs(2, (6, 9))
    of = learner(model, asked, None, dynamics=0.5)
    of.how = of.how.model_copy(update={"micro_batch_tokens": tokens})
    losses = [of.dynamics(collate([t]))[k] for c in asked for side in c.sides for t in side for k in range(2)]
    mean = torch.cat([x.flatten() for x in losses])
    assert len(mean) == 2 * (5 + 8 + 5 + 8)
    found = of.step()
    assert found["dynamics_loss"] == pytest.approx(mean.mean().item(), abs=1e-6)
    assert found["loss"] == pytest.approx(np.log(2) + 0.5 * mean.mean().item(), abs=1e-6)


def test_transitions_are_cut_from_what_is_unlabeled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fragments for each comparison, as long as its shorter side, other ones in each step."""
    pool = [trajectory([*range(100, 103)]), trajectory([*range(200, 206)])]
    of, asked = learner(reward(), random_pairs(2, (3, 4)), pool, dynamics=1.0), list[list[Trajectory]]()
    monkeypatch.setattr(of.model, "collate", lambda trajectories: asked.append(trajectories) or collate(trajectories))
    for _ in range(6):
        of.step()
    steps = [tuple(tuple(shown(t)) for t in trajectories) for trajectories in asked[1::2]]
    assert [len(step) for step in steps] == [4] * 6
    assert len(set(steps)) > 3
    seen = [fragment for step in steps for fragment in step]
    assert all(x == (*range(int(x[0]), int(x[0]) + 3),) and (x[0] == 100 or 200 <= x[0] <= 203) for x in seen)
    with pytest.raises(DataError, match="unlabeled trajectories have at most 1 steps, and sides of comparisons 2; give longer ones"):
        learner(reward(), random_pairs(2, (3, 4)), [trajectory([1.0, 2.0])], dynamics=1.0)


def test_the_next_state_is_learned() -> None:
    """The next state is what was seen, negated: on other trajectories, too, its encoding is foreseen far better than before."""
    chance = np.random.default_rng(1)

    def flips(count: int) -> list[Trajectory]:
        return [trajectory([x * (-1) ** i for i in range(6)]) for x in chance.uniform(0.2, 2.0, count)]

    a, b, other = flips(20), flips(20), flips(20)
    model, asked = reward(2), [Comparison((x,), (y,), 0.5, str(i)) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    of = learner(model, asked, None, 200, dynamics=1.0)
    before = of.dynamics(collate(other)).mean()
    for _ in range(200):
        of.step()
    assert before > -0.5
    assert of.dynamics(collate(other)).mean() < -0.8


def test_a_fit_that_goes_on_is_the_one_that_was_not_stopped() -> None:
    asked, pool = random_pairs(5), [c.a[0] for c in random_pairs(4, (30, 30))]
    settings = {"crop": 0.5, "pseudo_labels": 1, "confidence": 0.5, "dynamics": 0.7}
    whole = learner(reward(2), asked, pool, **settings)
    before = [whole.step() for _ in range(3)]
    assert all("pseudo_labels" in values and "dynamics_loss" in values for values in before)
    state = whole.state_dict()
    moments = [{name: x.clone() for name, x in kept.items()} for kept in state["stepper"]["moments"]]
    state |= {"stepper": {"steps": 3, "moments": moments}, "dynamics": [p.clone() for p in state["dynamics"]]}
    state["log_temperatures"] = state["log_temperatures"].clone()
    weights = [p.detach().clone() for p in whole.model.parameters()]  # type: ignore[attr-defined]
    rest = [whole.step() for _ in range(3)]
    again = learner(reward(2, seed=5), asked, pool, **settings)
    put(weights, [*again.model.parameters()])  # type: ignore[attr-defined]
    again.load_state_dict(state)
    assert [again.step() for _ in range(3)] == rest
    assert all(torch.equal(a, b) for a, b in zip(again.parameters, whole.parameters, strict=True))


def test_what_predicts_is_not_saved_with_the_reward_model() -> None:
    of = learner(reward(2), random_pairs(3), None, dynamics=1.0)
    assert {*of.model.state_dict()} == {*reward(2).state_dict()}  # type: ignore[attr-defined]
    assert len(of.parameters) == 6 + 8 + 1, "three layers, four layers and the temperature of the judge"


def test_dynamics_from_python() -> None:
    episodes = control.rollouts("Pendulum-v1", 6)
    asked = control.compare([piece(t, 0, 20) for t in episodes], lambda a, b: "a")
    small = {"members": 2, "hidden": (8,), "epochs": 4, "batch_size": 3}
    found = list[list[float]]()
    for unlabeled in (episodes, None):
        seen = list[float]()
        callbacks = [lambda s, m, seen=seen: seen.append(m["dynamics_loss"])]
        control.RewardModel("Pendulum-v1", dynamics=1.0, callbacks=callbacks, **small).fit(asked, unlabeled=unlabeled)
        found.append(seen)
    assert [len(x) for x in found] == [4, 4]
    assert found[0] != found[1]


def test_nets_without_hidden_tanh_layers_are_refused() -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return x.sum(-1) + actions.sum(-1)

    with pytest.raises(ConfigError, match=r"dynamics = 0\.5 trains hidden tanh layers, and Own brings its own layers; set it to 0"):
        control.RewardModel("Pendulum-v1", networks=[Own()], dynamics=0.5)
    with pytest.raises(ConfigError, match=r"dynamics = 0\.5 trains hidden tanh layers, and hidden is empty; set it to 0"):
        control.RewardModel("Pendulum-v1", hidden=(), dynamics=0.5)
    with pytest.raises(ConfigError, match=r'dynamics = 0\.5 trains hidden tanh layers, and network = "cnn" has others; set it to 0'):
        control.RewardModel("Pendulum-v1", network="cnn", dynamics=0.5)
    for values, reason in (({"network": "cnn"}, 'control.network = "cnn" has others'), ({"hidden": []}, "control.hidden is empty")):
        with pytest.raises(ValueError, match=f"reward.dynamics = 0.5 trains hidden tanh layers, and {reason}; set it to 0"):
            Config.model_validate({"train": {"learner": "ppo"}, "control": {"env": "CartPole-v1"} | values, "reward": {"dynamics": 0.5}})


def test_a_run_about_text_has_no_next_state() -> None:
    with pytest.raises(ConfigError, match=r"reward.dynamics = 0\.5 is of fragments of episodes, and the run is about text; leave it at 0"):
        go(["reward.dynamics=0.5"])


def test_a_run_with_dynamics_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    loaded = toml.load(tmp_path / "run.toml", [])
    sections = [(name, getattr(loaded, name).model_dump(exclude_defaults=True)) for name in ("query", "control", "train")]
    settings = [f"{name}.{key}={json.dumps(value)}" for name, values in sections for key, value in values.items()]
    settings += ['judge.panel=[{ name = "expert", utility = "total_reward", temperature = 0.01 }]', f"run.folder={tmp_path}"]
    settings += ["reward.members=2", "reward.epochs=4", "reward.batch_size=4", "reward.dynamics=0.5", "reward.lr=0.1"]
    settings += ["train.learner=reward", "train.steps=0"]
    for name in ("whole", "stopped"):
        go(settings, f"run.name={name}").sample()
        go(settings, f"run.name={name}").label()
    go(settings, "run.name=whole").train()
    stop(go(settings, "run.name=stopped"), 3, monkeypatch)
    go(settings, "run.name=stopped").train()
    assert rows(go(settings, "run.name=stopped")) == rows(go(settings, "run.name=whole"))
    assert all("dynamics_loss" in row for row in rows(go(settings, "run.name=whole")) if "loss" in row)
    assert last(go(settings, "run.name=stopped"))["files"] == last(go(settings, "run.name=whole"))["files"]
