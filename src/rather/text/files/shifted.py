"""A steering vector as a part of a model that other programs know."""

from dataclasses import replace

import torch
from torch import Tensor

from rather.errors import ModelError
from rather.text import weights
from rather.text.transformer import Transformer


def shifted(model: Transformer, after: dict[int, Tensor]) -> Transformer:
    """A model that by itself adds `after[i]` (C,) to the residual stream after block i: as the bias of the block's last layer.

    Families whose MLP has no bias become Llama, which has one and is otherwise the same.

    Raises:
        ModelError: the model has something that Llama has not.
    """
    shape, description = model.shape, dict(model.description)
    if not shape.mlp_bias:
        if shape.family not in ("llama", "mistral", "qwen2") or shape.window is not None:
            what = " with a sliding window" if shape.window is not None else ""
            raise ModelError(f"a steering vector cannot be merged into a {shape.family} model{what}; load it in rather")
        attention = shape.qkv_bias or shape.out_bias
        shape = replace(shape, family="llama", mlp_bias=True, out_bias=attention)
        only_qwen = ("layer_types", "max_window_layers", "sliding_window", "use_sliding_window")
        description = {key: value for key, value in description.items() if key not in only_qwen}
        description |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": True, "attention_bias": attention}
        description["head_dim"] = shape.head_width
    with torch.device("meta"):
        found = Transformer(shape, model.dtype)
    own = {name: t for name, t in model.state_dict().items() if ".adapters." not in name} | dict(weights.widened(model))
    dtype = own["embedding.weight"].dtype
    zeros = {name: torch.zeros(t.shape, dtype=dtype) for name, t in found.state_dict().items() if name not in own}
    found.load_state_dict(own | zeros, assign=True, strict=False)
    for block, vector in after.items():
        bias = f"blocks.{block}.down.bias"
        updated = (own | zeros)[bias].float() + vector.detach().cpu().float()
        found.get_submodule(f"blocks.{block}.down").bias = torch.nn.Parameter(updated.to(dtype))
    if shape.tied:
        found.tie_()
    found.description = description
    return found
