"""Policies, critics, reward models and their learners for an environment, with networks of ours or a user's own.

Shape letters: B rows, I inputs, A action dimensions or choices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from torch import Tensor, nn

from rather.control.collect import Stretches
from rather.control.environments import inputs
from rather.control.gradients import ByHand
from rather.control.models import ControlCritic, ControlPolicy, ControlReward, Perceptron
from rather.control.settings import PPOSettings, RewardSettings
from rather.core import Comparison, RewardModel
from rather.errors import ConfigError
from rather.learners.common import Optimisation
from rather.learners.ppo import PPO, Clip
from rather.learners.reward import Reward


def width(actions: Space) -> int:
    """How many numbers an action is, a choice as one-hot."""
    return int(actions.n) if isinstance(actions, Discrete) else int(np.prod(actions.shape or ()))


@dataclass(frozen=True)
class Networks:
    """A user's own networks, checked against an environment: the policy's and the critic's; None: ours."""

    policy: nn.Module | None = None
    critic: nn.Module | None = None

    def check(self, env: gymnasium.Env) -> None:
        """See whether they map what they must.

        Raises:
            ConfigError: one is no module, or maps observations to something else.
        """
        size, a = inputs(env), width(env.action_space)
        kind = "a logit for each action" if isinstance(env.action_space, Discrete) else "a mean for each action dimension"
        if self.policy is not None:
            check_network("policy", self.policy, [(size,)], [(a,)], kind)
        if self.critic is not None:
            check_network("critic", self.critic, [(size,)], [(1,), ()], "a value")


def check_network(
    argument: str, network: object, given: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, ...]], kind: str, rows: int = 2
) -> None:
    """See whether a network maps `rows` rows of each shape in `given` to rows of one of the shapes that are `wanted`.

    It is left in eval mode, so that dropout does not make the policy that acts another one than the policy that learns.

    Raises:
        ConfigError: it is no module, or it does not.
    """
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{argument} is {network!r}; it must be a torch.nn.Module")
    shapes = [(rows, *shape) for shape in given]
    need = f"it must map observations {shapes[0]}{''.join(f' and actions {s}' for s in shapes[1:])} to {(rows, *wanted[0])}, {kind}"
    try:
        with torch.no_grad():
            out = network.eval()(*(torch.zeros(shape) for shape in shapes))
    except Exception as e:
        raise ConfigError(f"{argument} cannot take {' and '.join(map(str, shapes))} ({' '.join(str(e).split())[:200]}); {need}") from e
    if not isinstance(out, Tensor) or tuple(out.shape) not in [(rows, *shape) for shape in wanted]:
        made = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(f"{argument} made {made} of {' and '.join(map(str, shapes))}; {need}")


def policy(env: gymnasium.Env, s: PPOSettings, seed: int, network: nn.Module | None = None) -> ControlPolicy:
    """A policy for an environment, at random."""
    return ControlPolicy(inputs(env), env.action_space, s.hidden, s.normalize, seed, network)


def critic(env: gymnasium.Env, of: ControlPolicy, s: PPOSettings, seed: int, network: nn.Module | None = None) -> ControlCritic:
    """A critic at random, which sees observations as the policy does."""
    return ControlCritic(inputs(env), s.hidden, of.normaliser, seed, network)


def reward_model(env: gymnasium.Env, s: RewardSettings, seed: int, networks: Sequence[nn.Module] = ()) -> ControlReward:
    """A reward model that has not learned yet."""
    return ControlReward(inputs(env), env.action_space, s.members, s.hidden, seed, networks)


def ppo(
    policy: ControlPolicy, critic: ControlCritic, source: Stretches, s: PPOSettings, seed: int, reward_model: RewardModel | None
) -> PPO:
    """PPO that learns from the rollout segments of `source`; gradients are by hand where both networks are ours."""
    clip = Clip(
        epochs=s.update_epochs, gamma=s.gamma, lam=s.lam, clip=s.clip, clip_high=s.clip_high, dual_clip=s.dual_clip,
        value_clip=s.value_clip, value_weight=s.value_weight, entropy_weight=s.entropy_weight, kl=0.0, reward_clip=s.reward_clip,
        whiten=s.whiten,
    )  # fmt: skip
    how = optimization(s, seed, 0)
    if isinstance(policy.net, Perceptron) and isinstance(critic.net, Perceptron):
        by_hand = ByHand(policy, critic)
        return PPO(policy, critic, source, [by_hand.parameter], how, clip, reward_model, by_hand=by_hand)
    parameters = dict.fromkeys(p for net in (policy, critic) for p in net.parameters() if p.requires_grad)  # they may share layers
    return PPO(policy, critic, source, [*parameters], how, clip, reward_model)


def optimization(s: PPOSettings, seed: int, updates: int) -> Optimisation:
    """How `updates` updates of PPO optimize.

    With AdamW's usual eps of 1e-8, steps along directions that have hardly been seen ruin some seeds (Huang et al. 2022, detail 3).
    """
    rows = s.envs * s.rollout_segment
    steps = updates * s.update_epochs * math.ceil(rows / s.batch_size)
    return Optimisation(
        steps, s.batch_size, s.lr, s.warmup, s.schedule, s.weight_decay, s.max_grad_norm, eps=1e-5, micro_batch_tokens=rows, seed=seed
    )


def reward_learner(model: ControlReward, comparisons: Sequence[Comparison], s: RewardSettings, seed: int) -> tuple[Reward, int]:
    """What fits a reward model to comparisons, and in how many steps."""
    steps = max(1, math.ceil(s.epochs * len(comparisons) / s.batch_size))
    how = Optimisation(
        steps, s.batch_size, s.lr, weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm, micro_batch_tokens=2**16, seed=seed
    )
    judges = sorted({c.judge for c in comparisons}) if s.temperatures else []
    return Reward(model, comparisons, [*model.parameters()], how, s.center, judges), steps
