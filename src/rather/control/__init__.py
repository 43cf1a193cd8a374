"""Gymnasium's world: agents, environments, rollouts and reward models.

Importing it registers rather/CheckpointCar-v0 and rather/GridWorld-v0; the names in `__all__` are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from rather.control.agent import PPO, MeanReturn, rollouts
    from rather.control.replay import relabel
    from rather.control.reward_model import RewardModel, compare
    from rather.control.reward_wrappers import RewardWrapper, VectorRewardWrapper
    from rather.control.rollout import fragments
    from rather.control.state_entropy import StateEntropy
    from rather.control.wrappers import CombinedActions, FixedHorizon

__all__ = [
    "PPO",
    "CombinedActions",
    "FixedHorizon",
    "MeanReturn",
    "RewardModel",
    "RewardWrapper",
    "StateEntropy",
    "VectorRewardWrapper",
    "compare",
    "fragments",
    "relabel",
    "rollouts",
]

HOMES = {
    "PPO": "agent", "MeanReturn": "agent", "rollouts": "agent", "RewardModel": "reward_model", "compare": "reward_model",
    "RewardWrapper": "reward_wrappers", "VectorRewardWrapper": "reward_wrappers", "CombinedActions": "wrappers", "FixedHorizon": "wrappers",
    "fragments": "rollout", "relabel": "replay", "StateEntropy": "state_entropy",
}  # fmt: skip

gymnasium.register("rather/CheckpointCar-v0", "rather.control.car:CheckpointCar")
gymnasium.register("rather/GridWorld-v0", "rather.control.grid:GridWorld")


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'rather.control' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"rather.control.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
