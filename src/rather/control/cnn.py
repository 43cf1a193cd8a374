"""The Nature CNN (Mnih et al. 2015), for policies, critics and reward nets that see pictures.

Shape letters: N observations, I inputs (a picture laid flat), C channels, H and W pixels, A action dimensions or choices.
"""

from typing import TypeGuard

import numpy as np
import torch
from gymnasium.spaces import Box, Space
from torch import Tensor, nn

from rather.control.environments import is_picture
from rather.errors import ConfigError

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of each layer."""
LEAST = 36
"""Pixels of a side below which a kernel does not fit."""
FEATURES = 512
JOINT = 64
"""Width of the layer in which a reward net sees features and action together."""
HIDDEN_GAIN = 2**0.5


class Features(nn.Module):
    """Features (N, 512) of pictures (N, I), pixels from 0 to 255: three convolutions and a linear layer, with ReLU after each.

    A picture is H x W, or has channels first or last: first where no other dimension is smaller, which is Stable-Baselines3's rule.
    A dimension more in front is a stack of pictures, whose channels lie one after the other.

    Raises:
        ConfigError: observations are no pictures, or too small ones.
    """

    def __init__(self, pictures: Space, generator: torch.Generator) -> None:
        super().__init__()
        if not _seen(pictures):
            kind = "pictures of uint8 from 0 to 255: H x W, with channels first or last, or a stack of them"
            raise ConfigError(f'observations are {pictures}, and network = "cnn" sees one Box of {kind}; wrap the environment to show that')
        one = pictures.shape[-3:]
        self.channels_last = len(one) == 3 and int(np.argmin(one)) != 0
        height, width = one[:2] if self.channels_last else one[-2:]
        if min(height, width) < LEAST:
            raise ConfigError(
                f'pictures are {height} x {width} pixels, and network = "cnn" needs {LEAST} x {LEAST} at least;'
                ' enlarge them, or take "mlp" with pixels = true'
            )
        channels = int(np.prod(pictures.shape)) // (height * width)
        self.shape = (channels // one[2], height, width, one[2]) if self.channels_last else (channels, height, width)
        sizes = [channels, *(size for size, _, _ in CONVOLUTIONS)]
        layers = [nn.Conv2d(sizes[i], *convolution) for i, convolution in enumerate(CONVOLUTIONS)]
        self.convolutions = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Flatten())
        for _, kernel, stride in CONVOLUTIONS:
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.linear = nn.Linear(sizes[-1] * height * width, FEATURES)
        for layer in (*layers, self.linear):
            initialize_(layer, HIDDEN_GAIN, generator)

    def forward(self, x: Tensor) -> Tensor:
        pictures = x.reshape(-1, *self.shape)
        if self.channels_last:
            pictures = pictures.movedim(-1, 2).flatten(1, 2)
        return torch.relu(self.linear(self.convolutions(pictures / 255)))


class NatureCNN(nn.Module):
    """Pictures (N, I) to logits, means or values (N, `outputs`): features and a linear layer of that `gain`."""

    def __init__(self, pictures: Space, outputs: int, gain: float, generator: torch.Generator) -> None:
        super().__init__()
        self.features, self.last = Features(pictures, generator), nn.Linear(FEATURES, outputs)
        initialize_(self.last, gain, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


class PictureReward(nn.Module):
    """Rewards (N,) of pictures (N, I) and actions (N, A), 0 at first.

    Features and action meet in a layer with ReLU: after a linear one alone, an action would be as good or bad whatever is seen.
    """

    def __init__(self, pictures: Space, actions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.features, self.joint, self.last = Features(pictures, generator), nn.Linear(FEATURES + actions, JOINT), nn.Linear(JOINT, 1)
        initialize_(self.joint, HIDDEN_GAIN, generator)
        initialize_(self.last, 0.0, generator)

    def forward(self, x: Tensor, actions: Tensor) -> Tensor:
        return self.last(torch.relu(self.joint(torch.cat([self.features(x), actions], -1))))[:, 0]


def initialize_(layer: nn.Conv2d | nn.Linear, gain: float, generator: torch.Generator) -> None:
    """Draw orthogonal weights of that `gain`, and set biases to 0."""
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _seen(space: Space) -> TypeGuard[Box]:
    """Whether the CNN can see what a space holds."""
    return is_picture(space) and len(space.shape) <= 4 and bool((space.low == 0).all() and (space.high == 255).all())
