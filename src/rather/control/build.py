"""Policies, critics, reward models and their learners for an environment, with networks of ours or a user's own.

Shape letters: B rows, I inputs, A action dimensions or choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from torch import Tensor, nn

from rather.control.cnn import NatureCNN, PictureReward
from rather.control.collect import RolloutSegments
from rather.control.environments import inputs
from rather.control.gradients import ByHand
from rather.control.models import ControlCritic, ControlPolicy, ControlReward, Perceptron
from rather.control.reed import REED
from rather.control.reward_head import RewardHead
from rather.control.settings import EnvironmentSettings, PPOSettings, RewardSettings
from rather.control.surf import SURF, Unlabeled
from rather.core import Comparison, RewardSource
from rather.errors import ConfigError
from rather.learners.common import check_pessimism
from rather.learners.head_learner import HeadLearner
from rather.learners.ppo import PPO
from rather.learners.ppo_settings import ClipSettings
from rather.learners.reward import Reward
from rather.learners.reward_settings import REEDSettings
from rather.learners.settings import Descent, OptimizationOptions, Schedule
from rather.learners.train import Callback
from rather.verify.functions import load_function


def width(actions: Space) -> int:
    """How many numbers an action is, a choice as one-hot."""
    return int(actions.n) if isinstance(actions, Discrete) else int(np.prod(actions.shape or ()))


@dataclass(frozen=True)
class Networks:
    """A user's own networks, checked against an environment: the policy's and the critic's; None: ours."""

    policy: nn.Module | None = None
    critic: nn.Module | None = None

    def check(self, env: gymnasium.Env, policy: str = "policy", critic: str = "critic") -> None:
        """See whether they map what they must; `policy` and `critic` are what messages call them.

        Raises:
            ConfigError: one is no module, or maps observations to something else.
        """
        size, a = inputs(env), width(env.action_space)
        kind = "a logit for each action" if isinstance(env.action_space, Discrete) else "a mean for each action dimension"
        if self.policy is not None:
            check_network(policy, self.policy, [(size,)], [(a,)], kind)
        if self.critic is not None:
            check_network(critic, self.critic, [(size,)], [(1,), ()], "a value")


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


def own_network(env: gymnasium.Env, of: Literal["policy", "critic"], name: str, seed: int) -> nn.Module | None:
    """The network that the function "module:name" makes for an environment, its weights drawn by `seed`; None without a name.

    Raises:
        ConfigError: there is no such function, it raised an error, or what it made is no such network.
    """
    if not name:
        return None
    setting, sizes = f"control.{of}_network", (inputs(env), width(env.action_space) if of == "policy" else 1)
    function = load_function(name, setting)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: Any = function(*sizes)
        except Exception as e:
            said = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            raise ConfigError(f"{setting}: {name}{sizes} raised {said}; it is called with how many numbers go in and come out") from e
    said = f'the network of {setting} = "{name}"'
    Networks(**{of: network}).check(env, said, said)
    return network


def policy(env: gymnasium.Env, s: PPOSettings, seed: int, network: nn.Module | None = None) -> ControlPolicy:
    """A policy for an environment, at random."""
    network, normalize = _network(env, s, width(env.action_space), 0.01, seed, network), s.normalize and s.network != "cnn"
    return ControlPolicy(inputs(env), env.action_space, s.hidden, normalize, seed, network, s.log_std_init)


def critic(env: gymnasium.Env, of: ControlPolicy, s: PPOSettings, seed: int, network: nn.Module | None = None) -> ControlCritic:
    """A critic at random, which sees observations as the policy does."""
    return ControlCritic(inputs(env), s.hidden, of.normalizer, seed, _network(env, s, 1, 1.0, seed + 1, network))


def reward_model(env: gymnasium.Env, s: RewardSettings, seed: int, networks: Sequence[nn.Module] = ()) -> ControlReward:
    """A reward model that has not learned yet.

    Raises:
        ConfigError: networks are given beside the CNN, which cannot see the environment's observations, or beside `dynamics` or a head, or
            pessimism has one member.
    """
    if s.kind == "head":
        if networks:
            raise ConfigError(f'kind is "head", and {type(networks[0]).__name__} is given beside it; leave one of them out')
        head = RewardHead(inputs(env), env.action_space, width(env.action_space), s.members, seed)
        head.pessimism = check_pessimism(s.pessimism, 2)
        return head
    if s.dynamics and networks:
        other = type(networks[0]).__name__
        raise ConfigError(f"dynamics = {s.dynamics} trains hidden tanh layers, and {other} brings its own layers; set it to 0")
    if s.network == "cnn":
        _check_one(networks)
        generator = torch.Generator().manual_seed(seed)
        networks = [PictureReward(env.observation_space, width(env.action_space), generator) for _ in range(s.members)]
    model = ControlReward(inputs(env), env.action_space, s.members, s.hidden, seed, networks, normalize=s.network != "cnn")
    model.pessimism = check_pessimism(s.pessimism, model.members)
    return model


def _network(
    env: gymnasium.Env, s: EnvironmentSettings, outputs: int, gain: float, seed: int, network: nn.Module | None
) -> nn.Module | None:
    """The CNN if that is set, else the user's own network; None: tanh layers."""
    if s.network != "cnn":
        return network
    _check_one([] if network is None else [network])
    return NatureCNN(env.observation_space, outputs, gain, torch.Generator().manual_seed(seed))


def _check_one(networks: Sequence[nn.Module]) -> None:
    if networks:
        raise ConfigError(f'network is "cnn", and {type(networks[0]).__name__} is given beside it; leave one of them out')


def ppo(
    policy: ControlPolicy,
    critic: ControlCritic,
    source: RolloutSegments,
    s: PPOSettings,
    seed: int,
    reward: RewardSource | None,
    reference: ControlPolicy | None = None,
    steps: int = 0,
    kl: float = 0.0,
    kl_target: float | None = None,
) -> PPO[ControlPolicy]:
    """PPO that learns from the rollout segments of `source`; gradients are by hand where both networks are ours.

    Its KL from `reference` is measured, and weighs `kl`; see `learners.ppo`.
    With AdamW's usual eps of 1e-8, steps along directions that have hardly been seen ruin some seeds (Huang et al. 2022, detail 3).
    """
    by_hand = None
    if isinstance(policy.net, Perceptron) and isinstance(critic.net, Perceptron):
        by_hand = ByHand(policy, critic)
        parameters = [by_hand.parameter]
    else:  # they may share layers
        parameters = list(dict.fromkeys(p for net in (policy, critic) for p in net.parameters() if p.requires_grad))
    rows = s.envs * s.rollout_segment
    options = s.model_dump(include={*ClipSettings.model_fields, *Schedule.model_fields, *Descent.model_fields})
    return PPO(
        policy, (), reward, reference, parameters, critic=critic, source=source, by_hand=by_hand, eps=1e-5, seed=seed, steps=steps,
        rollout_batch_size=rows, micro_batch_tokens=rows, kl=kl, kl_target=kl_target, critic_lr=None, **options,
    )  # fmt: skip


def optimizer_steps(updates: int, s: PPOSettings) -> int:
    """Optimizer steps of so many updates."""
    return updates * s.update_epochs * -(-s.envs * s.rollout_segment // s.batch_size)


def reward_learner(
    model: ControlReward,
    comparisons: Sequence[Comparison],
    s: RewardSettings,
    seed: int,
    callbacks: Sequence[Callback] = (),
    unlabeled: Unlabeled | None = None,
    **how: Unpack[OptimizationOptions],
) -> Reward | HeadLearner:
    """What fits a reward model to comparisons, by `s`, unless `how` says otherwise, at a constant learning rate; a head in one step.

    `unlabeled` says what fragments that nobody compared are cut from; see `SURF` and `REED`.
    """
    if isinstance(model, RewardHead):
        return HeadLearner(model, comparisons, temperatures=s.temperatures, seed=seed, callbacks=callbacks)
    own = s.model_dump(exclude={"kind", "members", "pessimism", *EnvironmentSettings.model_fields, *REEDSettings.model_fields})
    options: dict[str, Any] = {**own, "schedule": "constant", "micro_batch_tokens": 2**16 if s.network != "cnn" else 2**10, **how}
    parameters = [*model.parameters()]
    if s.crop == 1 and not s.pseudo_labels and not s.dynamics:
        return Reward(model, comparisons, parameters, seed=seed, callbacks=callbacks, **options)
    reed = REEDSettings(**{name: getattr(s, name) for name in REEDSettings.model_fields})
    learner, pool = REED if s.dynamics else SURF, unlabeled if s.pseudo_labels or s.dynamics else None
    return learner(model, comparisons, parameters, reed, pool, seed=seed, callbacks=callbacks, **options)
