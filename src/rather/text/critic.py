"""The critic of a language model.

Shape letters: B trajectories, T answer tokens (padded), C width.
"""

import torch
from torch import Tensor, nn


class TextCritic(nn.Module):
    """V(s) of every state of an answer: a net of one layer (no bias) on the hidden states that the reference has of it anyway.

    So it costs no pass through a language model, and its learning rate has nothing to do with the policy's.
    """

    def __init__(self, width: int, device: torch.device, seed: int, hidden: int = 256) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter((torch.randn(width, hidden, generator=generator) / width**0.5).to(device))
        self.head = nn.Parameter(torch.zeros(hidden, device=device))

    def values(self, seen: Tensor) -> Tensor:
        """Values (B, T + 1) of hidden states (B, T + 1, C); 0 where these are, after the end."""
        return nn.functional.silu(seen.float() @ self.first) @ self.head
