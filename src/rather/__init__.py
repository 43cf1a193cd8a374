"""From "I'd rather have this one" to better policies: preference learning for language models and control.

Names are loaded when they are first used, so that `import rather` is quick and needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rather import control as control
    from rather.data.rows import comparisons as comparisons
    from rather.judges.best_of import BestOf as BestOf
    from rather.learners.dpo import DPO as DPO
    from rather.learners.grpo import GRPO as GRPO
    from rather.learners.kto import KTO as KTO
    from rather.learners.ppo import PPO as PPO
    from rather.learners.settings import LoRA as LoRA
    from rather.learners.sft import SFT as SFT
    from rather.pipeline.mended import MendedReward as MendedReward
    from rather.pipeline.online_dpo import OnlineDPO as OnlineDPO
    from rather.pipeline.online_reward import OnlineReward as OnlineReward
    from rather.pipeline.run import Run as Run
    from rather.report.compare import win_rate as win_rate
    from rather.store.store import Store as Store
    from rather.text.head.model import RewardHead as RewardHead
    from rather.text.open import load as load
    from rather.text.reward_model import RewardModel as RewardModel
    from rather.verify.functions import batched as batched
    from rather.zeroth.order import ZerothOrder as ZerothOrder

PLACES = {
    "BestOf": "judges.best_of", "DPO": "learners.dpo", "GRPO": "learners.grpo", "KTO": "learners.kto", "LoRA": "learners.settings",
    "MendedReward": "pipeline.mended", "OnlineDPO": "pipeline.online_dpo", "OnlineReward": "pipeline.online_reward",
    "PPO": "learners.ppo", "RewardHead": "text.head.model", "RewardModel": "text.reward_model", "Run": "pipeline.run",
    "SFT": "learners.sft", "Store": "store.store", "ZerothOrder": "zeroth.order", "batched": "verify.functions",
    "comparisons": "data.rows", "load": "text.open", "win_rate": "report.compare",
}  # fmt: skip
"""Where each public name is."""
__all__ = [
    "DPO", "GRPO", "KTO", "PPO", "SFT", "BestOf", "LoRA", "MendedReward", "OnlineDPO", "OnlineReward", "RewardHead", "RewardModel",
    "Run", "Store", "ZerothOrder", "batched", "comparisons", "control", "load", "win_rate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rather")
    if name == "control":
        return import_module("rather.control")
    if name not in PLACES:
        raise AttributeError(f"module 'rather' has no attribute {name!r}")
    found = getattr(import_module(f"rather.{PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
