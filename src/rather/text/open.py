"""A language model as a program asks for it, by its name and with defaults for the rest."""

from collections.abc import Mapping
from datetime import date as day
from pathlib import Path
from typing import Any, Literal

from torch import nn

from rather.errors import ConfigError
from rather.text import load as files
from rather.text import lora
from rather.text.language_model import LanguageModel, free_name
from rather.text.policy import TextPolicy


def load(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    weights: Literal["auto", "int8", "q4"] = "auto",
    device: str = "auto",
    chat: bool | None = None,
    template: Mapping[str, Any] | None = None,
    date: str = "",
) -> LanguageModel:
    """A language model by its folder, .gguf file, name on the Hugging Face hub or package:NAME; or an adapter, which names its base.

    `adapter` is the folder or name of a LoRA adapter in PEFT's format. `dtype` is what activations are computed in; "auto" is bfloat16
    where the hardware multiplies it. `weights` "int8" and "q4" hold the weights quantized and frozen, on a CPU or a GPU by NVIDIA (where
    this has been run under Triton's interpreter only), for rather's own architectures: in 53 or 28 % of bfloat16's memory, or as a GGUF
    file holds them: Q8_0, Q6_K, Q5_0, Q5_1, Q5_K, Q4_0, Q4_1 or Q4_K (on a GPU those of 5 and 6 bits in 8).
    `device` is "cpu", "cuda", "cuda:1" or "mps"; "auto" is a GPU by NVIDIA if there is one. `chat` says whether plain prompts go
    through the chat template (None: if the model has one), `template` gives its options, such as {"enable_thinking": False}, and
    `date` the day that it may name, as 2026-11-29 (empty: today).

    Raises:
        ConfigError: `dtype` or `weights` is not known, or `date` is no day.
        ModelError: there is no such model, adapter or device, or it cannot be read.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f'load: dtype is {dtype!r}; take "auto", "float32" or "bfloat16"')
    if weights not in files.BITS:
        raise ConfigError(f'load: weights is {weights!r}; take "auto", "int8" or "q4"')
    where, beside = files.located(str(path), "" if adapter is None else str(adapter))
    on = files.device(device)
    found = files.policy(where, on, files.dtype(dtype, on), False, 1.0, chat, template, date or str(day.today()), bits=files.BITS[weights])
    found.name = where.stem
    return found if beside is None else load_adapter(found, beside)[0]


def load_adapter(base: LanguageModel, folder: Path) -> tuple[LanguageModel, list[nn.Parameter]]:
    """A policy with the adapter in `folder` under a name that is free on `base`; and its parameters."""
    names = lora.names(base.model) if isinstance(base, TextPolicy) else getattr(base.inner, "peft_config", {})  # type: ignore[attr-defined]
    return files.read_adapter(base, free_name(names), folder)  # type: ignore[arg-type]
