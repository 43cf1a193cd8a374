"""Settings of learners in tests."""

from typing import Any


def fixed(steps: int, batch_size: int = 8, lr: float = 1e-4, warmup: int = 0, **more: Any) -> dict[str, Any]:
    """So many steps, with a constant learning rate unless `more` says otherwise, as keyword arguments of a learner."""
    return {"steps": steps, "batch_size": batch_size, "lr": lr, "warmup": warmup, "schedule": "constant", **more}
