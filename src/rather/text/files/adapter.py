"""The files of a LoRA adapter in PEFT's format: read, and refused by name where they ask for what is not computed here."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rather.errors import ModelError

PREFIX = "base_model.model."
"""What `peft` writes before the name of every layer."""

SHAPE = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "fan_in_fan_out",
)  # fmt: skip
"""The options that say what an adapter computes, and on which layers."""

SILENT = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying",
    "runtime_config",
)  # fmt: skip
"""The options that change nothing about what a trained adapter computes: dropout is for training, these for initialization."""

STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""The kinds of start that leave the base as it is: PiSSA and others subtract from its weights."""

REMEDY = "merge it into its base with peft's merge_and_unload, save that, and set model.path to it"


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of the adapter in `folder`.

    Raises:
        ModelError: the files are missing or damaged, or the adapter is of another kind or has an option that is not supported.
    """
    config = read_config(folder)
    try:
        return config, load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as e:
        raise ModelError(f"the adapter in {folder} cannot be read: {e}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the adapter in `folder`.

    Raises:
        ModelError: it is missing or damaged, of another kind, or has an option that is not supported.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
    except (OSError, ValueError) as e:
        raise ModelError(f"the adapter in {folder} cannot be read: {e}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise ModelError(f"the adapter in {folder} has peft_type = {kind!r}; only LORA is supported: {REMEDY}")
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        raise ModelError(f"the adapter in {folder} has init_lora_weights = {start!r}, which changes its base; {REMEDY}")
    for key, value in config.items():
        if key not in (*SHAPE, *SILENT, "init_lora_weights") and value not in (None, False, "none", {}, []):
            raise ModelError(f"the adapter in {folder} has {key} = {value!r}, which is not supported; {REMEDY}")
    numbers = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    for pattern in ("rank_pattern", "alpha_pattern"):
        numbers |= {f"{pattern}[{key!r}]": value for key, value in (config.get(pattern) or {}).items()}
    for key, value in numbers.items():
        if not isinstance(value, int | float) or value <= 0 or (not key.startswith(("lora_alpha", "alpha")) and value != int(value)):
            raise ModelError(f"the adapter in {folder} has {key} = {value!r} in adapter_config.json; it must be a positive number")
    return config


def shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a configuration that say what the adapter computes, as `peft.LoraConfig` takes them."""
    return {key: config[key] for key in SHAPE if config.get(key) is not None} | {"task_type": "CAUSAL_LM"}


def rank_and_scale(config: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """Rank of the layer called `layer`, and what its update is multiplied by; see `peft.utils.get_pattern_key`."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank, alpha = (
        patterns.get(next((key for key in patterns if re.match(rf"(.*\.)?({key})$", layer)), layer), config[name])
        for name, patterns in (("r", ranks), ("lora_alpha", alphas))
    )
    return int(rank), alpha / (rank**0.5 if config.get("use_rslora") else rank)


def described(layers: Mapping[str, tuple[int, float]], every: Iterable[str]) -> dict[str, Any]:
    """The options of an adapter whose ranks and alphas `layers` gives by name, among all layers that there are: what most of them have, and
    patterns for the others.
    """
    ranks, alphas = ({name: shape[i] for name, shape in layers.items()} for i in (0, 1))
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    targets, blocks = {name.rpartition(".")[2] for name in layers}, {_block(name) for name in layers}
    regular = {name for name in every if name.rpartition(".")[2] in targets and _block(name) in blocks} == set(layers)
    return {
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(targets if regular else layers),
        "layers_to_transform": sorted(blocks) if regular else None,
    }


def _block(layer: str) -> int:
    found = re.search(r"\.(\d+)\.", layer)
    assert found is not None
    return int(found[1])
