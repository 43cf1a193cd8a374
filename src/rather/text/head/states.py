"""Features of answers: hidden states of a frozen language model, after a few of its blocks.

Shape letters: B trajectories, L layers, P poolings, C width.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rather.core import UNUSED, Batch
from rather.errors import ModelError
from rather.scale import ranks
from rather.text.foreign import ForeignPolicy
from rather.text.language_model import LanguageModel
from rather.text.linear import QuantizedEmbedding, QuantizedLinear
from rather.text.policy import Begun, TextPolicy, pack_batch

POOLINGS = ("last", "mean")
"""The state of an answer's last token, and the mean of those of all its tokens."""
VALUES = 4096
"""Values of each tensor that the digest of a model reads."""


def depth(policy: LanguageModel) -> int:
    """How many blocks a language model has."""
    if isinstance(policy, TextPolicy):
        return policy.model.shape.layers
    assert isinstance(policy, ForeignPolicy)
    return policy.inner.config.get_text_config().num_hidden_layers


@torch.no_grad()
def states(policy: LanguageModel, batch: Batch, layers: Sequence[int]) -> Tensor:
    """Hidden states (B, L P, C), float32, after so many blocks each, in rising order; after the last one they are normed."""
    if isinstance(policy, TextPolicy):
        return passed(policy, batch, layers)[0]
    assert isinstance(policy, ForeignPolicy)
    every = policy.layers(batch)
    return torch.cat([_pooled([row[layer] for row in every]) for layer in layers], 1)


@torch.no_grad()
def passed(policy: TextPolicy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Begun]:
    """`states`, from one pass that computes a prompt which answers share once; and where it ended, to go on from there."""
    model, begun, found = policy.model, None, list[Tensor]()
    laid = pack_batch(batch, model)
    for layer in layers:
        x = model(laid.ids, laid.positions, laid, policy.adapter, begun=begun, before=layer)
        begun = layer, x
        shown = model(laid.ids, laid.positions, laid, policy.adapter, begun=begun) if layer == depth(policy) else x
        found.append(_pooled([shown[places.to(x.device)] for places in laid.after]))
    assert begun is not None
    return torch.cat(found, 1), (laid, begun)


def _pooled(rows: Sequence[Tensor]) -> Tensor:
    """States (B, P, C) of answers from those of their tokens, (t, C) each."""
    return torch.stack([torch.stack([x[-1].float(), x.float().mean(0)]) for x in rows])


def keys(batch: Batch) -> list[bytes]:
    """What stands for each prompt with its answer, as a model reads them: a digest of their tokens."""
    rows = zip(batch.observations.numpy(), batch.actions.numpy(), strict=True)
    both = ([row[row != UNUSED].astype("<i8").tobytes() for row in pair] for pair in rows)
    return [hashlib.sha256(len(prompt).to_bytes(8, "little") + prompt + answer).digest() for prompt, answer in both]


def digest(policy: LanguageModel, layers: Sequence[int]) -> str:
    """Digits that stand for all that states depend on but the tokens: weights and adapter, dtype, layers.

    Of each tensor some thousand values are read, evenly spread: training changes all.
    """
    said = f"{dtype(policy)} {list(layers)} {POOLINGS}"
    found = hashlib.sha256(said.encode())
    for name, tensor in _tensors(policy):
        values = ranks.gathered(tensor.detach()).flatten()[:: max(1, tensor.numel() // VALUES)]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + values.cpu().double().numpy().tobytes())
    return found.hexdigest()


def dtype(policy: LanguageModel) -> str:
    """What a language model computes in."""
    if isinstance(policy, TextPolicy):
        return str(policy.model.dtype).removeprefix("torch.")
    assert isinstance(policy, ForeignPolicy)
    return str(policy.inner.dtype).removeprefix("torch.")


def name(policy: LanguageModel) -> str:
    """Where a language model was read from."""
    if isinstance(policy, TextPolicy):
        return str(policy.model.description.get("_name_or_path", ""))
    assert isinstance(policy, ForeignPolicy)
    return str(policy.inner.config.name_or_path)


def _tensors(policy: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a policy computes with: those of other adapters on its base are left out."""
    if isinstance(policy, TextPolicy):
        model, mark = policy.model, ".adapters."
        for name, module in model.named_modules():
            if isinstance(module, QuantizedLinear | QuantizedEmbedding):
                for i, part in enumerate(module.held.parts):
                    yield f"{name}.{i}.numbers", part.numbers
                    yield f"{name}.{i}.scales", part.scales
    else:
        assert isinstance(policy, ForeignPolicy)
        model, mark = policy.inner, ".lora_"
    for name, tensor in model.state_dict().items():
        if mark not in name or (policy.adapter is not None and f".{policy.adapter}." in f"{name}."):
            yield name, tensor


def check_layers(policy: LanguageModel, layers: Sequence[int] | None) -> list[int]:
    """The layers to read: by default after half, three quarters and all of the blocks.

    Raises:
        ModelError: the model has no such layer, or they do not rise.
    """
    blocks = depth(policy)
    if layers is None:
        return sorted({max(1, round(blocks * share)) for share in (0.5, 0.75, 1.0)})
    if not layers or sorted(set(layers)) != list(layers) or not (layers[0] >= 1 and layers[-1] <= blocks):
        raise ModelError(f"layers is {list(layers)}; give rising numbers of blocks from 1 to {blocks}, which the model has")
    return list(layers)
