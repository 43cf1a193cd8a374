"""Modules and what is said about them on disk: safetensors and JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rather import renamed
from rather.control.environments import Maker
from rather.errors import CheckpointError, ConfigError


def save_module(module: nn.Module, path: Path) -> None:
    """Write a module's state; its folder is made. Each tensor is copied: a user's network may tie its weights, or keep them transposed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in module.state_dict().items()}
    save_file(tensors, path)


def restore_module(module: nn.Module, path: Path) -> None:
    """Take over what `save_module` wrote, in place.

    Raises:
        CheckpointError: the file cannot be read, or is of a module with other parameters.
    """
    try:
        module.load_state_dict(renamed.tensors(load_file(path)))
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path} cannot be read ({e})") from None
    except RuntimeError as e:
        said = " ".join(str(e).split())[:300]
        raise CheckpointError(f"{path} is of another network ({said}); give the same network as when it was saved") from None


def save_about(path: Path, env: str | Maker, **about: object) -> None:
    """Write what is to be said about saved modules and their environment, of which only an id can be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, "env": env if isinstance(env, str) else None, **about}, indent=1))


def read_about(path: Path, what: str, env: str | Maker | None, *parts: str) -> dict[str, Any]:
    """What `save_about` wrote about a saved agent or the like, with those `parts`, and `env` in place of its environment if it is given.

    Raises:
        CheckpointError: it is missing or damaged, or a newer version wrote it.
        ConfigError: its environment was made by a function, and none is given.
    """
    try:
        about = json.loads(path.read_text())
        newer, _ = about["format"] > 1, [about[part] for part in ("env", *parts)]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path.parent} holds no {what} that can be read ({e}); save() writes one") from None
    if newer:
        raise CheckpointError(f"{path} was written by a newer rather; upgrade")
    about["env"] = env or about["env"]
    if about["env"] is None:
        raise ConfigError(f"the {what} in {path.parent} is of an environment that a function made; give that function as env=")
    return about
