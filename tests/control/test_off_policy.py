"""SAC and TD3 of the real Stable-Baselines3 as learners of a run."""

import inspect
import threading
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
from rather.control.state_entropy import StateEntropy
from rather.errors import CheckpointError, ConfigError, DataError, TrainingError
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


def made(
    algorithm: str = "SAC", reward: ControlReward | StateEntropy | None = None, rows: int = 2, seed: int = 0, **options: Any
) -> OffPolicy:
    policy = squashed_policy(environment(Line), (8, 6), 3)
    how = OffPolicySettings(**{"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "gradient_steps": 1} | options)
    return OffPolicy(algorithm, policy, lambda: environment(Line), reward, rows, 20, seed, "way", how)


def rewarding(seed: int) -> ControlReward:
    """A reward net that is no constant."""
    model = ControlReward(2, Line().action_space, 2, (4,), seed)
    with torch.no_grad():
        model.layers[-2].normal_(generator=torch.Generator().manual_seed(seed))
    return model


def rewards(learner: OffPolicy) -> np.ndarray:
    buffer = learner.sb3.replay_buffer
    return buffer.rewards[: buffer.size()]


@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_the_policy_acts_as_the_learner_does(algorithm: str) -> None:
    """Before and after learning, in the environment's own unsymmetric range; and it has moved."""
    learner, seen = made(algorithm), np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32) * 3
    found = []
    for _ in range(2):
        theirs, _ = learner.sb3.predict(seen, deterministic=True)
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
    seen = sac.sb3.replay_buffer.observations[:20, 0]
    drawn = np.concatenate([sac.sb3.predict(seen)[0] - sac.sb3.predict(seen, deterministic=True)[0] for _ in range(200)])
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
    assert wanted[:2] != first
    same(whole, again)
    assert 0 < len(whole.envs[0].actions) < 9


def same(a: OffPolicy, b: OffPolicy) -> None:
    for name, x in a.model.state_dict().items():
        assert bool((x == b.model.state_dict()[name]).all()), name
    same_learner(a, b)


def same_learner(a: OffPolicy, b: OffPolicy) -> None:
    for x, y in zip(a.sb3.policy.parameters(), b.sb3.policy.parameters(), strict=True):
        assert bool((x == y).all())
    for name in off_policy.BUFFERED:
        assert np.array_equal(getattr(a.sb3.replay_buffer, name), getattr(b.sb3.replay_buffer, name)), name


def test_a_checkpoint_of_before_the_first_step_is_resumed(tmp_path: Path) -> None:
    """Such a one is written where a training may go back to where it began."""
    whole = made()
    checkpoint.save(tmp_path, 0, whole, Lineage({"_steps": 4}, 0, []))
    again = made()
    checkpoint.load(tmp_path / "step-000000", again)
    same(whole, again)
    assert again.step() == whole.step()
    same(whole, again)


def test_the_policy_in_a_checkpoint_is_the_one_that_is_resumed(tmp_path: Path) -> None:
    whole = made()
    whole.step()
    checkpoint.save(tmp_path, 1, whole, Lineage({"_steps": 4}, 0, []))
    again = made()
    checkpoint.load(tmp_path / "step-000001", again)
    same(whole, again)


def test_actions_of_double_precision_are_done_again_as_they_were(tmp_path: Path) -> None:
    def fine() -> OffPolicy:
        space = Box(np.array([LOW]), np.array([HIGH]), dtype=np.float64)
        how = OffPolicySettings(learning_starts=30, gradient_steps=1)
        policy = squashed_policy(environment(lambda: Line(space)), (8,), 0)
        return OffPolicy("SAC", policy, lambda: environment(lambda: Line(space)), None, 1, 20, 0, "", how)

    whole = fine()
    whole.step()
    assert whole.envs[0].actions[-1].dtype == np.float64
    checkpoint.save(tmp_path, 1, whole, Lineage({"_steps": 4}, 0, []))
    again = fine()
    checkpoint.load(tmp_path / "step-000001", again)
    assert again.step() == whole.step()


def test_more_labels_reward_all_steps_again_and_equal_ones_none(tmp_path: Path) -> None:
    """A round goes on with a reward model that has learned from more: what is in the buffer gets its rewards."""
    first = made(reward=rewarding(1))
    first.step()
    checkpoint.save(tmp_path, 1, first, Lineage({"_steps": 4}, 0, []))
    same_reward, other = made(reward=rewarding(1)), made(reward=rewarding(2))
    for learner in (same_reward, other):
        checkpoint.load(tmp_path / "step-000001", learner)
    assert np.array_equal(rewards(same_reward), rewards(first)), "to the last bit"
    wanted = made(reward=rewarding(2))
    wanted.go_on_from(first.state_dict())
    assert np.array_equal(rewards(other), rewards(wanted))


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"rows": 3}, "it has 2 copies of the environment, and now there are 3"), ({"buffer_size": 60}, "it has 100 steps of each copy")],
)
def test_a_buffer_of_another_shape_is_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    learner = made()
    learner.step()
    checkpoint.save(tmp_path, 1, learner, Lineage({"_steps": 4}, 0, []))
    with pytest.raises(CheckpointError, match=said):
        checkpoint.put_state(tmp_path / "step-000001", made(**changed).go_on_from)


def test_the_environment_gets_actions_of_its_space_and_nothing_of_its_info_is_copied() -> None:
    """Stable-Baselines3 rounds beyond bounds, and copies infos deeply, which not all can bear."""
    space = Box(np.array([-0.7383879], np.float16), np.array([0.29849115], np.float16), dtype=np.float16)

    class Strict(Line):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            assert self.action_space.contains(action), action
            return *super().step(action)[:4], {"way": 0.0, "lock": threading.Lock()}

    policy = squashed_policy(environment(lambda: Strict(space)), (8,), 0)
    with torch.no_grad():
        policy.net.layers[-1].bias.fill_(50.0)  # type: ignore[union-attr, index]
    how = OffPolicySettings(learning_starts=0, batch_size=8, buffer_size=100)
    learner = OffPolicy("TD3", policy, lambda: environment(lambda: Strict(space)), None, 1, 20, 0, "way", how)
    assert learner.step()["gold"] == 0


def test_a_full_buffer_is_resumed_too(tmp_path: Path) -> None:
    whole = made(buffer_size=60)
    for _ in range(3):
        whole.step()
    assert whole.sb3.replay_buffer.full
    checkpoint.save(tmp_path, 3, whole, Lineage({"_steps": 4}, 0, []))
    again = made(buffer_size=60)
    checkpoint.load(tmp_path / "step-000003", again)
    assert again.step() == whole.step()
    same(whole, again)


def test_a_round_goes_on_from_the_one_before_with_steps_that_are_rewarded_again() -> None:
    """What was seen stays, its rewards are those of the new reward model, and the environments begin new episodes."""
    before, new = made(reward=rewarding(1)), rewarding(2)
    before.step()
    after = made(reward=new, seed=7919)
    after.go_on_from(before.state_dict())
    buffer = after.sb3.replay_buffer
    assert np.array_equal(buffer.observations, before.sb3.replay_buffer.observations)
    assert not np.allclose(rewards(after), rewards(before))
    plain = made(reward=rewarding(1))
    plain.go_on_from(before.state_dict())
    np.testing.assert_allclose(rewards(plain), rewards(before), rtol=1e-5, atol=1e-6)
    assert after.number == 0
    found = after.step()
    assert found["replay_buffer_size"] == 80, "20 steps of each round, in two environments"
    assert after.sb3.num_timesteps == 80


def test_metrics_are_of_the_episodes_that_ended() -> None:
    reward = rewarding(1)
    learner = made(reward=reward)
    found = learner.step()
    assert {"score", "return", "gold", "trajectory_length", "critic_loss", "policy_loss", "ent_coef", "tokens"} <= found.keys()
    assert found["trajectory_length"] == 9
    assert found["tokens"] == 40
    ended = [row for env in learner.envs for row in env.ended]
    assert len(ended) == 4
    assert found["score"] == pytest.approx(np.mean([row.score for row in ended]))
    assert sum(row.score for row in ended) == pytest.approx(float(rewards(learner)[:18].sum()), rel=1e-4)
    assert found["return"] < 0


def test_optimizers_and_the_weight_of_the_entropy_go_on_in_the_next_round() -> None:
    before, after = made(), made(seed=7919)
    before.step()
    after.go_on_from(before.state_dict())
    assert after.sb3.log_ent_coef.item() == before.sb3.log_ent_coef.item() != 0.0
    states = [learner.sb3.policy.actor.optimizer.state_dict()["state"] for learner in (before, after)]
    assert bool((states[0][0]["exp_avg"] == states[1][0]["exp_avg"]).all())
    assert float(states[1][0]["step"]) == before.sb3._n_updates > 0
    same_learner(before, after)


def test_what_follows_counts_at_a_limit_and_not_at_an_end() -> None:
    """Truncated is not terminated: the buffer says which of the two it was."""
    limited, ends = made(), made()
    for env in ends.envs:
        env.env = Ending(env.env)
    limited.step()
    ends.step()
    for learner, at_the_limit in ((limited, True), (ends, False)):
        buffer = learner.sb3.replay_buffer
        over = buffer.dones[:20].astype(bool)
        assert over.sum() == 4
        assert bool((buffer.timeouts[:20][over] == at_the_limit).all())


class Ending(gymnasium.Wrapper):
    """Ends where the environment was cut."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, _, cut, info = self.env.step(action)
        return observation, reward, cut, False, info


NUMBER = "no finite number"


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("reward", DataError, NUMBER),
        ("observation", DataError, NUMBER),
        ("start", DataError, NUMBER),
        ("gold", ConfigError, "control.gold is 'way'"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(what: str, error: type[Exception], said: str) -> None:
    class Wrong(gymnasium.Wrapper):
        def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
            observation, info = self.env.reset(**given)
            return observation * (np.nan if what == "start" else 1), info

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            observation, reward, ended, cut, info = self.env.step(action)
            reward = float("nan") if what == "reward" else reward
            return observation * (np.nan if what == "observation" else 1), reward, ended, cut, {} if what == "gold" else info

    learner = made()
    for env in learner.envs:
        env.env = Wrong(env.env)
    with pytest.raises(error, match=said):
        learner.step()


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    learner = made(learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"lower sb3.learning_rate"):
        [learner.step() for _ in range(20)]


def test_global_chance_stays_as_it_is() -> None:
    """Stable-Baselines3 draws by NumPy's and PyTorch's global generators; a program that uses them sees nothing of it."""
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    wanted = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    made().step()
    assert (torch.rand(1), np.random.rand()) == wanted  # noqa: NPY002


def test_every_step_has_chances_of_its_own() -> None:
    """Actions at random of one step are not those of the next, nor of another seed; equal seeds, equal actions."""
    first, again, other = (made(learning_starts=1000, seed=seed) for seed in (0, 0, 1))
    for learner in (first, again, other):
        learner.step()
        learner.step()
    drawn, same_seed, other_seed = (learner.sb3.replay_buffer.actions[:40, 0] for learner in (first, again, other))
    assert np.array_equal(drawn, same_seed)
    assert not np.array_equal(drawn[:20], drawn[20:])
    assert not np.array_equal(drawn, other_seed)


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
    np.testing.assert_allclose(np.asarray(found), learner.sb3.predict(seen, deterministic=True)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="write it as .onnx"):
        export(learner.model, environment(Line), tmp_path / "policy.npz")


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (Discrete(3), "SAC and TD3 choose numbers between bounds"),
        (Box(-np.inf, np.inf, (2,), np.float32), "SAC and TD3 choose numbers between bounds"),
        (Box(np.array([0.0, 1.0], np.float32), np.array([1.0, 1.0], np.float32)), "SAC and TD3 choose numbers between bounds"),
        (Box(-3e38, 3e38, (2,), np.float32), "SAC and TD3 choose numbers between bounds"),
        (Box(0, 5, (2,), np.int64), "SAC and TD3 choose numbers between bounds"),
    ],
)
def test_actions_that_they_cannot_choose_are_refused(actions: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        squashed_policy(environment(lambda: Line(actions)), (8,), 0)


@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_settings_have_the_names_and_mostly_the_defaults_that_they_have_there(algorithm: str) -> None:
    theirs = inspect.signature(getattr(stable_baselines3, algorithm)).parameters
    ours = OffPolicySettings().model_dump(exclude={"action_noise"})
    shared = ours.keys() & theirs.keys()
    assert len(shared) == {"SAC": 9, "TD3": 11}[algorithm]
    other = {"gradient_steps", *({"learning_rate"} if algorithm == "TD3" else {})}
    assert {name for name in shared if theirs[name].default != ours[name]} == other


def test_settings_reach_the_learner() -> None:
    sac = made(gamma=0.5, ent_coef=0.25, tau=0.5, learning_rate=0.1, gradient_steps=3, train_freq=2, batch_size=5).sb3
    assert (sac.gamma, sac.ent_coef, sac.tau, sac.learning_rate, sac.gradient_steps, sac.batch_size) == (0.5, 0.25, 0.5, 0.1, 3, 5)
    assert sac.train_freq.frequency == 2
    td3 = made("TD3", policy_delay=5, target_policy_noise=0.7, target_noise_clip=0.9, action_noise=0.3).sb3
    assert (td3.policy_delay, td3.target_policy_noise, td3.target_noise_clip) == (5, 0.7, 0.9)
    assert td3.action_noise._sigma == pytest.approx([0.3])


def test_without_stable_baselines3_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], object] = off_policy.find_spec
    monkeypatch.setattr(off_policy, "find_spec", lambda name: None if name == "stable_baselines3" else find(name))
    with pytest.raises(ConfigError, match=r"of the package stable-baselines3: .*sb3"):
        made()


def test_an_environment_that_does_not_follow_its_seed_cannot_be_resumed(tmp_path: Path) -> None:
    def loose() -> OffPolicy:
        policy: ControlPolicy = squashed_policy(environment(Line), (8,), 0)
        return OffPolicy("SAC", policy, lambda: environment(lambda: Line(forgets=True)), None, 1, 20, 0, "", OffPolicySettings())

    learner = loose()
    learner.step()
    checkpoint.save(tmp_path, 1, learner, Lineage({"_steps": 4}, 0, []))
    with pytest.raises(DataError, match="the same seed and actions lead elsewhere"):
        checkpoint.load(tmp_path / "step-000001", loose())
