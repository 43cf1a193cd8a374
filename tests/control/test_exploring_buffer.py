"""SAC and TD3 that explore: rewarded for new states, and then by what was learned from comparisons."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from test_off_policy import made, rewarding, rewards, same

from rather.control.off_policy import BUFFERED, OffPolicy
from rather.control.state_entropy import StateEntropy
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage


def networks(learner: OffPolicy, prefix: str) -> torch.Tensor:
    state = learner.sb3.policy.state_dict()
    return torch.cat([x.flatten() for name, x in state.items() if name.startswith(prefix)])


def test_steps_are_rewarded_when_they_are_drawn_by_all_states_in_the_buffer() -> None:
    """The environment's own rewards stay in the buffer for a run that goes on to learn by them."""
    explorer = made(reward=StateEntropy(k=2))
    found = explorer.step()
    buffer = explorer.sb3.replay_buffer
    reached = torch.from_numpy(buffer.next_observations[:20].reshape(-1, 2))
    np.random.seed(0)  # noqa: NPY002
    drawn = buffer.sample(8)
    wanted = StateEntropy(k=2).among(drawn.next_observations, reached)
    apart = drawn.rewards[:, 0] / wanted
    torch.testing.assert_close(apart, apart[:1].expand(8))  # but for the running standard deviation
    assert "score" not in found, "nothing that episodes sum up to is learned from"
    assert 0 < found["state_entropy"] < 2
    assert found["return"] == pytest.approx(float(buffer.rewards[:18].sum()) / 4, rel=1e-4)


def test_the_environments_own_reward_is_not_learned_from() -> None:
    plain, other = (made(reward=StateEntropy(), gradient_steps=2) for _ in range(2))
    for env in other.envs:
        env.env = Paying(env.env)
    plain.step()
    other.step()
    assert not np.array_equal(rewards(plain), rewards(other))
    assert torch.equal(networks(plain, "actor"), networks(other, "actor"))
    assert torch.equal(networks(plain, "critic"), networks(other, "critic"))


class Paying(gymnasium.RewardWrapper):
    """Pays otherwise."""

    def reward(self, reward: float) -> float:
        return 7 - 3 * reward


@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_what_is_resumed_goes_on_as_if_it_had_not_been_interrupted(algorithm: str, tmp_path: Path) -> None:
    """The running standard deviation goes on, too."""
    whole = made(algorithm, StateEntropy())
    whole.step()
    checkpoint.save(tmp_path, 1, whole, Lineage({"_steps": 3}, 0, []))
    wanted = [whole.step() for _ in range(2)]
    again = made(algorithm, StateEntropy())
    checkpoint.load(tmp_path / "step-000001", again)
    assert [again.step() for _ in range(2)] == wanted
    same(whole, again)


@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_the_first_round_keeps_policy_and_steps_and_begins_with_new_critics(algorithm: str) -> None:
    """Those of exploration say how new states are."""
    explorer, plain = made(algorithm, StateEntropy()), made(algorithm, rewarding(2), seed=7919)
    fresh = networks(plain, "critic").clone()
    explorer.step()
    assert not torch.equal(networks(explorer, "critic"), fresh)
    plain.go_on_from(explorer.state_dict(), critics=False)
    assert torch.equal(networks(plain, "actor"), networks(explorer, "actor"))
    assert torch.equal(networks(plain, "critic"), fresh)
    optimizers = [network.optimizer.state_dict()["state"] for network in (plain.sb3.actor, plain.sb3.critic)]
    assert [bool(state) for state in optimizers] == [True, False]
    ours, theirs = plain.sb3.replay_buffer, explorer.sb3.replay_buffer
    for name in set(BUFFERED) - {"rewards"}:
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    wanted = made(algorithm, rewarding(2), seed=7919)
    wanted.go_on_from(explorer.state_dict())
    assert np.array_equal(rewards(plain), rewards(wanted)), "of the reward model"
    assert plain.step()["replay_buffer_size"] == 80
