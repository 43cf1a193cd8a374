"""PPO on answers that a limit cuts: what they were rewarded with is all there is, whatever the critic expects of going on."""

from pathlib import Path

import pytest
import torch

import rather
from rather.learners.common import Means


class Optimist(torch.nn.Module):
    """A critic that expects 7 of every state."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = torch.nn.Parameter(torch.tensor(7.0))

    def values(self, seen: torch.Tensor) -> torch.Tensor:
        return self.expected * torch.ones(seen.shape[:2])


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_nothing_follows_a_cut_answer(tiny: Path, lam: float) -> None:
    model = rather.load(tiny, dtype="float32", device="cpu")
    settings = {"rollout_batch_size": 4, "max_tokens": 3, "kl": 0.0, "lam": lam, "whiten": False}
    ppo = rather.PPO(model, ["a", "b", "c", "d"], lambda prompt, completion: 2.0, critic=Optimist(), **settings)
    batch = ppo.source.collect(0)
    assert not batch.terminated.any(), "a random model hardly ever ends"
    known = ppo._credit(batch, Means())
    assert known is not None
    # the last action's error is 2 - 7, all others have none
    expected = torch.tensor([-5 * lam**2, -5 * lam, -5.0]).expand(4, 3)
    torch.testing.assert_close(known.advantages, expected)
    torch.testing.assert_close(known.returns, expected + 7)
