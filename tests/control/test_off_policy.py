"""SAC and TD3 of the real Stable-Baselines3 as learners of a run."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium.spaces import Box, Discrete

from rather.control import off_policy
from rather.control.environments import environment
from rather.control.exploration import variant
from rather.control.export import export
from rather.control.models import ControlPolicy, ControlReward
from rather.control.off_policy import OffPolicy
from rather.control.squashed import squashed_policy
from rather.errors import ConfigError, DataError
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.off_policy_settings import OffPolicySettings

LOW, HIGH = -3.0, 1.0


class Line(gymnasium.Env):
    """A place on a line that an action between -3 and 1 moves; 9 steps."""

    def __init__(self, actions: Any = None, forgets: bool = False) -> None:
        self.observation_space, self.forgets = Box(-50, 50, (2,), np.float32), forgets
        self.action_space = Box(np.array([LOW], np.float32), np.array([HIGH], np.float32)) if actions is None else actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        chance = np.random.default_rng() if self.forgets else self.np_random
        self.place, self.time = float(chance.normal()), 0
        return np.array([self.place, 0], np.float32), {"way": 0.0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place, self.time = self.place + float(np.asarray(action).flatten()[0]) + 1, self.time + 1
        return np.array([self.place, self.time], np.float32), -abs(self.place), False, self.time >= 9, {"way": self.place}


def made(algorithm: str = "SAC", reward: ControlReward | None = None, rows: int = 2, seed: int = 0, **options: Any) -> OffPolicy:
    policy = squashed_policy(environment(Line), (8, 6), 3)
    how = OffPolicySettings(**{"learning_starts": 10, "batch_size": 8, "buffer_size": 200} | options)
    return OffPolicy(algorithm, policy, lambda: environment(Line), reward, rows, 20, seed, "way", how)


def rewarding(seed: int) -> ControlReward:
    """A reward net that is no constant."""
    model = ControlReward(2, Line().action_space, 2, (4,), seed)
    with torch.no_grad():
        model.layers[-2].normal_(generator=torch.Generator().manual_seed(seed))
    return model


def rewards(learner: OffPolicy) -> np.ndarray:
    buffer = learner.learner.replay_buffer
    return buffer.rewards[: buffer.size()]


@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_the_policy_acts_as_the_learner_does(algorithm: str) -> None:
    """Before and after learning, in the environment's own unsymmetric range; and it has moved."""
    learner, seen = made(algorithm), np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32) * 3
    found = []
    for _ in range(2):
        theirs, _ = learner.learner.predict(seen, deterministic=True)
        found.append(learner.model.numpy_policy().greedy(seen))
        np.testing.assert_allclose(found[-1], theirs, rtol=1e-5, atol=1e-5)
        learner.step()
    assert np.abs(found[1] - found[0]).max() > 1e-3
    assert (found[1] >= LOW).all()
    assert (found[1] <= HIGH).all()


def test_noise_is_as_large_as_that_of_the_learner() -> None:
    """TD3's is a tenth of half of the range; SAC's is what its own draws differ by."""
    td3, sac = made("TD3"), made("SAC")
    for learner in (td3, sac):
        learner.step()
    assert td3.model.log_std is not None
    assert sac.model.log_std is not None
    assert float(td3.model.log_std.detach().exp()) == pytest.approx(0.1 * (HIGH - LOW) / 2)
    seen = sac.learner.replay_buffer.observations[:20, 0]
    drawn = np.concatenate([sac.learner.predict(seen)[0] - sac.learner.predict(seen, deterministic=True)[0] for _ in range(200)])
    assert float(sac.model.log_std.detach().exp()) == pytest.approx(float(np.sqrt((drawn**2).mean())), rel=0.3)


@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_what_is_resumed_goes_on_as_if_it_had_not_been_interrupted(algorithm: str, tmp_path: Path) -> None:
    """Weights, optimizers, buffer and metrics, in the middle of an episode."""
    whole = made(algorithm, rewarding(1))
    first = [whole.step() for _ in range(2)]
    checkpoint.save(tmp_path, 2, whole, Lineage({"_steps": 4}, 0, []))
    wanted = [whole.step() for _ in range(3)]
    again = made(algorithm, rewarding(1))
    checkpoint.load(tmp_path / "step-000002", again)
    assert [again.step() for _ in range(3)] == wanted
    assert wanted != first
    same(whole, again)
    assert 0 < len(whole.envs[0].taken) < 9


def same(a: OffPolicy, b: OffPolicy) -> None:
    for x, y in zip(a.learner.policy.parameters(), b.learner.policy.parameters(), strict=True):
        assert bool((x == y).all())
    for name in off_policy.BUFFERED:
        assert np.array_equal(getattr(a.learner.replay_buffer, name), getattr(b.learner.replay_buffer, name)), name


def test_a_full_buffer_is_resumed_too(tmp_path: Path) -> None:
    whole = made(buffer_size=60)
    for _ in range(3):
        whole.step()
    assert whole.learner.replay_buffer.full
    checkpoint.save(tmp_path, 3, whole, Lineage({"_steps": 4}, 0, []))
    again = made(buffer_size=60)
    checkpoint.load(tmp_path / "step-000003", again)
    assert again.step() == whole.step()
    same(whole, again)


def test_a_round_goes_on_from_the_one_before_with_steps_that_are_rewarded_again() -> None:
    """What was seen stays, its rewards are those of the new reward model, and the environments begin anew."""
    before, new = made(reward=rewarding(1)), rewarding(2)
    before.step()
    after = made(reward=new, seed=7919)
    after.go_on_from(before.state_dict())
    buffer = after.learner.replay_buffer
    assert np.array_equal(buffer.observations, before.learner.replay_buffer.observations)
    assert not np.allclose(rewards(after), rewards(before))
    plain = made(reward=rewarding(1))
    plain.go_on_from(before.state_dict())
    np.testing.assert_allclose(rewards(plain), rewards(before), rtol=1e-5, atol=1e-6)
    assert after.number == 0
    found = after.step()
    assert found["replayed"] == 40, "20 steps of each round, of two environments"
    assert after.learner.num_timesteps == 80


def test_metrics_are_of_the_episodes_that_ended() -> None:
    reward = rewarding(1)
    learner = made(reward=reward)
    found = learner.step()
    assert {"score", "return", "gold", "trajectory_length", "value_loss", "policy_loss", "entropy_weight", "tokens"} <= found.keys()
    assert found["trajectory_length"] == 9
    assert found["tokens"] == 40
    ended = [row for env in learner.envs for row in env.ended]
    assert len(ended) == 4
    assert found["score"] == pytest.approx(np.mean([row[0] for row in ended]))
    assert sum(row[0] for row in ended) == pytest.approx(float(rewards(learner)[:18].sum()), rel=1e-4)
    assert found["return"] < 0


def test_global_chance_stays_as_it_is() -> None:
    """Stable-Baselines3 draws by NumPy's and PyTorch's global generators; a program that uses them sees nothing of it."""
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    wanted = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    made().step()
    assert (torch.rand(1), np.random.rand()) == wanted  # noqa: NPY002


def test_variants_are_moved_within_the_range() -> None:
    policy = squashed_policy(environment(Line), (8,), 0)
    seen = np.zeros((1, 2), np.float32)
    found = np.array([variant(policy, Line().action_space, seed).numpy_policy().greedy(seen)[0, 0] for seed in range(40)])
    assert found.std() > 0.5
    assert (found > LOW).all()
    assert (found < HIGH).all()
    assert np.abs(policy.numpy_policy().greedy(seen) - found.mean()) < 0.5, "they lie around it"


def test_it_is_exported_as_a_graph_and_not_for_numpy(tmp_path: Path) -> None:
    from onnxruntime import InferenceSession

    learner = made()
    learner.step()
    export(learner.model, environment(Line), tmp_path / "policy.onnx")
    seen = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    (found,) = InferenceSession(str(tmp_path / "policy.onnx")).run(None, {"observation": seen})
    np.testing.assert_allclose(np.asarray(found), learner.learner.predict(seen, deterministic=True)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="write it as .onnx"):
        export(learner.model, environment(Line), tmp_path / "policy.npz")


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (Discrete(3), "SAC and TD3 choose numbers between bounds"),
        (Box(-np.inf, np.inf, (2,), np.float32), "SAC and TD3 choose numbers between bounds"),
        (Box(0, 5, (2,), np.int64), "SAC and TD3 choose numbers between bounds"),
    ],
)
def test_actions_that_they_cannot_choose_are_refused(actions: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        squashed_policy(environment(lambda: Line(actions)), (8,), 0)


@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_settings_have_the_names_that_they_have_there(algorithm: str) -> None:
    """And their defaults, but for TD3's learning rate."""
    theirs = inspect.signature(getattr(stable_baselines3, algorithm)).parameters
    settings = OffPolicySettings().model_dump(include=off_policy.COMMON | off_policy.OWN[algorithm])
    same = {name: value for name, value in settings.items() if (algorithm, name) != ("TD3", "learning_rate")}
    assert {name: theirs[name].default for name in same} == same
    learner = made(algorithm, n_steps=3, gamma=0.5, ent_coef=0.25, policy_delay=5).learner
    assert (learner.n_steps, learner.gamma) == (3, 0.5)
    assert (learner.ent_coef == 0.25) if algorithm == "SAC" else (learner.policy_delay == 5)


def test_without_stable_baselines3_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], object] = off_policy.find_spec
    monkeypatch.setattr(off_policy, "find_spec", lambda name: None if name == "stable_baselines3" else find(name))
    with pytest.raises(ConfigError, match=r"of the package stable-baselines3: .*sb3"):
        made()


def test_an_environment_that_does_not_follow_its_seed_cannot_be_resumed(tmp_path: Path) -> None:
    def loose() -> OffPolicy:
        policy: ControlPolicy = squashed_policy(environment(Line), (8,), 0)
        return OffPolicy("SAC", policy, lambda: environment(lambda: Line(forgets=True)), None, 1, 20, 0)

    learner = loose()
    learner.step()
    checkpoint.save(tmp_path, 1, learner, Lineage({"_steps": 4}, 0, []))
    with pytest.raises(DataError, match="the same seed and actions lead elsewhere"):
        checkpoint.load(tmp_path / "step-000001", loose())
