"""Policies as files for other programs do, step by step, what they do here."""

import inspect
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

import rather.control
from rather.errors import ConfigError


class Walk(gymnasium.Env):
    """Moves by its actions; `whole`: by whole ones, within bounds that differ."""

    def __init__(self, whole: bool = False) -> None:
        self.observation_space = Box(-100, 100, (3,), np.float32)
        self.action_space = Box(np.array([-1, -3]), np.array([2, 1]), dtype=np.int64) if whole else Box(-0.5, 0.25, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(size=3) * 5, 0
        return self.place.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place[:2] += action
        self.place[2], self.time = -self.place[2], self.time + 1
        return self.place.astype(np.float32), -float(np.abs(self.place).sum()), False, self.time >= 30, {}


class Room(Walk):
    """Is in one of five places, and choices begin at 3."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = Discrete(5), Discrete(3, start=3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        gymnasium.Env.reset(self, seed=seed)
        self.where, self.time = int(self.np_random.integers(5)), 0
        return self.where, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.where, self.time = (self.where + int(action) - 3) % 5, self.time + 1
        return self.where, float(self.where == 2), False, self.time >= 20, {}


def whole() -> gymnasium.Env:
    return Walk(whole=True)


def trained(env: Any, **settings: Any) -> rather.control.PPO:
    agent = rather.control.PPO(env, envs=2, rollout_segment=60, hidden=(16, 8), lr=1e-2, **settings)
    return agent.train(480, bar=False)


def act(file: Path, observation: np.ndarray) -> Any:
    policy = np.load(file)
    x = ((observation - policy["mean"]) / policy["std"]).clip(-policy["limit"], policy["limit"])
    layers = sum(name.startswith("weight") for name in policy)
    for i in range(layers):
        x = x @ policy[f"weight_{i}"] + policy[f"bias_{i}"]
        x = np.tanh(x) if i < layers - 1 else x
    if "choices" in policy:
        return policy["choices"][x.argmax()]
    low, high = policy["low"], policy["high"]
    return (np.rint(x) if low.dtype.kind in "iu" else x).clip(low, high).astype(low.dtype)


class Levers(Walk):
    """Two levers of three and two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = MultiDiscrete([3, 2], start=[-1, 0])


CASES = {
    "levers": (Levers, {}),
    "box": (Walk, {}),
    "unscaled": (Walk, {"normalize": False}),
    "whole": (whole, {}),
    "room": (Room, {}),
    "horizon": (Walk, {"horizon": 40}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_policy_elsewhere_acts_step_by_step_as_here(case: str, tmp_path: Path) -> None:
    env, settings = CASES[case]
    made = env()
    agent = trained(env, **settings)
    agent.export(tmp_path / "policy.onnx")
    agent.export(tmp_path / "policy.npz")
    session, seen = onnxruntime.InferenceSession(tmp_path / "policy.onnx"), set[bytes]()
    for t in agent.rollouts(4, deterministic=True):
        assert t.observations is not None
        assert t.actions is not None
        (batch,) = session.run(None, {"observation": t.observations[:-1]})
        for step, flat in enumerate(t.observations[:-1]):
            observation = int(flat.argmax()) if case == "room" else flat
            wanted = np.asarray(agent.predict(observation))
            seen.add(wanted.tobytes())
            found = np.asarray(act(tmp_path / "policy.npz", flat))
            assert made.action_space.contains(found if found.ndim else int(found))
            np.testing.assert_allclose(batch[step], wanted, atol=1e-5)
            np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(seen) > 1, "it does not always do the same"


def test_the_loader_is_the_one_in_the_guide() -> None:
    assert f"```python\n{inspect.getsource(act)}```" in Path("docs/guides/environment.md").read_text()


def test_a_network_of_ones_own_is_written_as_a_graph_alone(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    agent = trained(Walk, policy=network)
    agent.export(tmp_path / "policy.onnx")
    (t,) = agent.rollouts(1, deterministic=True)
    assert t.observations is not None
    (found,) = onnxruntime.InferenceSession(tmp_path / "policy.onnx").run(None, {"observation": t.observations[:-1]})
    np.testing.assert_allclose(found, agent.predict(t.observations[:-1]), atol=1e-5)
    with pytest.raises(ConfigError, match=r"policy.npz holds tanh layers alone, .* write it as .onnx"):
        agent.export(tmp_path / "policy.npz")


def test_the_name_says_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy.pt must end in .onnx or .npz"):
        trained(Walk).export(tmp_path / "policy.pt")
    assert not list(tmp_path.iterdir())


class RowByRow(torch.nn.Module):
    """Goes through its rows, so that a graph of it is for as many rows as it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(row) for row in x])


class Undecided(RowByRow):
    """Decides by what it sees, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if float(x.sum()) >= 0 else -self.layer(x)


@pytest.mark.parametrize("network", [RowByRow, Undecided])
def test_a_network_that_no_graph_can_hold_is_refused(network: type[torch.nn.Module], tmp_path: Path) -> None:
    agent = rather.control.PPO(Walk, envs=2, rollout_segment=8, policy=network())
    with pytest.raises(ConfigError, match=r"the policy's network cannot become a graph, for any number of rows: \w+"):
        agent.export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
