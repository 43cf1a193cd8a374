from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixed import fixed
from rather.control import environments
from rather.control.grid import GridWorld
from rather.control.models import ControlCritic, ControlPolicy
from rather.control.rollout import ControlSampler
from rather.core import Batch, Task
from rather.errors import TrainingError
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.common import Means
from rather.learners.ppo import PPO
from rather.learners.reward_scale import RewardScale
from rather.learners.rollouts import Rollouts


def grid() -> GridWorld:
    return GridWorld(size=3, horizon=6, slip=0.1, timed=True)


def tasks(step: int) -> Sequence[Task]:
    return [Task("grid", str(32 * step + i)) for i in range(32)]


def learner(settings: dict[str, Any], seed: int = 0, batch_size: int = 64, normalize: bool = True, **more: Any) -> PPO:
    env = grid()
    policy = ControlPolicy(environments.inputs(env), env.action_space, (), normalize, seed)
    critic = ControlCritic(environments.inputs(env), hidden=(), normalizer=policy.normalizer, seed=seed)
    how = fixed(1000, batch_size, lr=5e-2, max_grad_norm=0.5, seed=seed)
    sampler = ControlSampler(policy, grid, rows=32)
    source = Rollouts(policy, sampler, tasks, seed)
    settings = {"update_epochs": 4, "critic_lr": None} | settings
    together = [] if settings["critic_lr"] else critic.parameters()
    return PPO(policy, parameters=[*policy.parameters(), *together], critic=critic, source=source, **how, **settings, **more)


def value(policy: ControlPolicy) -> float:
    """The exact value of a policy: every state is put to it."""
    env = grid()
    states = torch.eye(env.observation_space.n)
    with torch.no_grad():
        chances = policy._outputs(states).softmax(-1).view(env.horizon, env.size**2, 4)
    return float(env.values(chances.double().numpy())[0, 0])


@pytest.mark.parametrize("seed", range(3))
def test_it_comes_near_the_best_policy(seed: int) -> None:
    ppo = learner({"gamma": 1.0, "value_clip": 0}, seed, normalize=False)
    best, start = float(grid().values()[0, 0]), value(ppo.model)
    assert start < 0.2 * best
    for _ in range(60):
        ppo.step()
    assert value(ppo.model) > 0.8 * best


def test_before_the_first_update_the_policy_is_the_one_that_acted() -> None:
    ppo = learner({"update_epochs": 1}, batch_size=10_000)
    for _ in range(3):  # also once the normalizer has learned
        found = ppo.step()
        assert found["ratio"] == pytest.approx(1, abs=1e-6)
        assert found["clipped"] == 0
        assert ppo.model.normalizer is not None
        ppo.model.normalizer.update(torch.rand(20, environments.inputs(grid())))


class Known:
    """A critic that expects nothing, or a reference or reward model that says what it is told."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def values(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.zeros(seen.shape[:2])

    def look(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.answer(batch), batch.observations

    def rewards(self, batch: Batch) -> torch.Tensor:
        return self.answer(batch)

    def parameters(self) -> list[Any]:
        return []


def test_credit_is_reward_less_the_penalty_for_drift() -> None:
    # every action is half a nat likelier than under the reference and earns 3, of which 1 counts; kl 0.2: 1 - 0.1 a step
    settings = {"gamma": 1.0, "lam": 1.0, "kl": 0.2, "whiten": False, "reward_clip": 1.0}
    drifted, paid = Known(lambda b: b.logprobs - 0.5), Known(lambda b: 3 * b.mask)
    ppo = learner(settings, reference=drifted, reward=paid)
    ppo.critic = Known(None)
    batch = ppo.model.collate(ppo.source.sampler.sample(tasks(0)[:2], 0))
    means = Means()
    known = ppo._credit(batch, means)
    torch.testing.assert_close(known.advantages[0], 0.9 * torch.tensor([6.0, 5, 4, 3, 2, 1]))
    assert means.result()["kl"] == pytest.approx(3)
    assert ppo.rollout_metrics["score"] == pytest.approx(6)


def test_a_reward_model_may_share_the_pass_of_the_reference() -> None:
    class Sharing(Known):
        def beside(self, reference: Known, batch: Batch) -> tuple[torch.Tensor, ...]:
            return 2 * self.rewards(batch), *Known.look(reference, batch)

    class Seen(Known):
        def look(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            raise AssertionError("the reward model has looked for it")

    found = []
    for kind, reference, pays in ((Known, Known, 2.0), (Sharing, Seen, 1.0)):
        paid = kind(lambda b, pays=pays: pays * b.mask)
        ppo = learner({"kl": 0.2}, reference=reference(lambda b: b.logprobs - 0.5), reward=paid)
        found.append(ppo.step())
    assert found[0] == found[1]


def test_the_penalty_follows_its_target() -> None:
    for target, grows in ((0.5, True), (50.0, False)):
        ppo = learner({"kl": 0.2, "kl_target": target}, reference=Known(lambda b: b.logprobs - 0.5))
        assert (ppo.step()["kl_weight"] > 0.2) == grows  # a drift of 3 nats a trajectory


def test_a_reward_model_takes_the_place_of_what_the_environment_pays() -> None:
    env = grid()
    ppo = learner({"gamma": 1.0, "value_clip": 0}, normalize=False, reward=Known(lambda b: (b.actions == 2).float() * b.mask))
    for _ in range(30):
        found = ppo.step()
    assert found["score"] > 0.8 * env.horizon, "it always goes down"


def test_single_steps_are_those_of_the_trajectories() -> None:
    ppo = learner({})
    batch = ppo.model.collate(ppo.source.sampler.sample(tasks(0)[:3], 0))
    from rather.learners.common import Means

    known = ppo._credit(batch, Means())
    alone = known.single()
    assert alone.batch.actions.shape == (18, 1)
    together, _ = ppo.model.evaluate(batch)
    torch.testing.assert_close(ppo.model.evaluate(alone.batch)[0][:, 0], together.flatten())
    torch.testing.assert_close(alone.advantages[:, 0], known.advantages.flatten())
    torch.testing.assert_close(ppo.critic.values(alone.seen)[:, 0], ppo.critic.values(known.seen)[:, :-1].flatten())


def test_resumed_it_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    settings, lineage = {"kl_target": 1.0, "normalize_reward": True, "clip_schedule": "linear"}, Lineage({}, 0, [])
    whole, first, second = (learner(settings, reference=Known(lambda b: b.logprobs - 0.1)) for _ in range(3))
    for _ in range(4):
        expected = whole.step()
    for _ in range(2):
        first.step()
    checkpoint.load(checkpoint.save(tmp_path, 2, first, lineage, 1), second)
    for _ in range(2):
        found = second.step()
    assert found == expected
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_rewards_are_divided_by_the_deviation_of_their_sums() -> None:
    """By hand, gamma 0.5: the rewards to come of (2, 2) are 3 and 2, of (4,) 4; their mean is 3, their variance 2 / 3."""
    scale = RewardScale()
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert scale.see(torch.tensor([[2.0, 2.0], [4.0, 9.0]]), mask, 0.5) == pytest.approx((2 / 3) ** 0.5)
    more = np.random.default_rng(0).normal(5, 3, 50)
    both = scale.see(torch.tensor(more)[:, None], torch.ones(50, 1), 0.5)
    assert both == pytest.approx(np.std([3, 2, 4, *more]), rel=1e-6)
    for same in (torch.zeros(4, 1), torch.ones(4, 1), torch.full((4, 1), 0.1), torch.full((4, 1), 1e6)):
        assert RewardScale().see(same, torch.ones(4, 1), 0.5) == 1, "nothing differs"

    paid = Known(lambda b: 100 * torch.arange(len(b))[:, None] * b.mask)
    plain, scaled = (learner({"whiten": False, "normalize_reward": on}, reward=paid) for on in (False, True))
    batch = plain.model.collate(plain.source.sampler.sample(tasks(0), 0))
    found = []
    for ppo in (plain, scaled):
        ppo.critic = Known(None)
        found.append(ppo._credit(batch, means := Means()))
    by = means.result()["reward_scale"]
    assert by > 100
    torch.testing.assert_close(found[0].advantages, by * found[1].advantages)
    assert plain.rollout_metrics["score"] == scaled.rollout_metrics["score"], "what is measured is the reward"


@pytest.mark.parametrize("steps", [1, 4])
def test_the_clip_falls_with_the_steps(steps: int) -> None:
    ppo = learner({"clip": 0.2, "clip_high": 0.4, "clip_schedule": "linear"})
    ppo.steps = steps
    found = []
    for ppo.number in range(steps + 1):
        found.append((ppo._limits().clip, ppo._limits().clip_high))
    expected = [(0.2, 0.4), (0.15, 0.3), (0.1, 0.2), (0.05, 0.1), (0.05, 0.1)] if steps == 4 else [(0.2, 0.4)] * 2
    assert found == [pytest.approx(x) for x in expected]
    assert learner({"clip_schedule": "linear"})._limits().clip_high is None
    constant = learner({})
    constant.number = 900
    assert constant._limits() is constant.own


def test_what_is_clipped_goes_by_the_falling_clip() -> None:
    found = []
    for schedule in ("constant", "linear"):
        ppo = learner({"clip_schedule": schedule, "value_clip": 0}, batch_size=10_000)
        ppo.steps, ppo.number = 1000, 995
        found.append(ppo.step()["clipped"])
    assert found[0] < 0.5 < 0.9 < found[1], "0.2, and 0.001"


def test_a_critic_with_a_rate_of_its_own_learns_at_it() -> None:
    found = []
    for rate in (1e-3, 1e-2):
        ppo = learner({"update_epochs": 1, "critic_lr": rate}, batch_size=10_000)
        before = [p.detach().clone() for p in ppo.critic.parameters()]
        ppo.step()
        found.append(max(float((p.detach() - old).abs().max()) for p, old in zip(ppo.critic.parameters(), before, strict=True)))
    assert found == pytest.approx([1e-3, 1e-2], rel=1e-2)


def test_where_nothing_was_judged_nothing_is_learned_and_the_next_step_goes_on() -> None:
    ppo = learner({"kl": 0.2, "kl_target": 0.5}, reference=Known(lambda b: b.logprobs - 0.5))
    judged, collect = [False, True], ppo.source.collect

    def collected(number: int) -> Batch:
        batch = collect(number)
        batch.rewards.copy_(batch.mask if judged.pop(0) else torch.nan * batch.mask)
        return batch

    ppo.source.collect = collected
    before = ppo.stepper.state_dict()
    assert ppo.step() == {"unjudged": 1.0, "kl_weight": 0.2, "tokens": 0.0}
    assert ppo.stepper.state_dict() == before
    found = ppo.step()
    assert (found["unjudged"], found["tokens"]) == (0, 32 * 6)


def test_a_reward_model_without_a_number_for_any_answer_ends_the_training() -> None:
    ppo = learner({}, reward=Known(lambda b: torch.nan * b.mask))
    with pytest.raises(TrainingError, match="score of every answer is not a number"):
        ppo.step()
