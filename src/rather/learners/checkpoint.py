"""Checkpoints: written whole or not at all, read back bit for bit, and traceable to the labels that made them.

A checkpoint is a folder `step-000040`: the model's own files under `model/`, the learner's state as learner.safetensors and
learner.json, and manifest.json with the size and hash of each file, the run's settings and the labels used. It is written
under another name and renamed once everything is on disk.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

from rather import renamed
from rather.core import Learner
from rather.errors import CheckpointError
from rather.scale import ranks

FORMAT = 1
Tree: TypeAlias = "dict[str, Tree] | list[Tree] | torch.Tensor | str | float | None"
"""What a learner's state is made of."""


@dataclass(frozen=True)
class Lineage:
    """What a checkpoint was made from: its run's settings and the labels, of which `watermark` is the last one's number.

    `before` are the labels that it had learned from before it went on with other ones: step, watermark and labels of each such stage.
    `defaults` stand for settings that an older checkpoint does not know. Beside settings there are "_steps", those that the training is to
    have, and "_contents", digests of what settings name (see `State.contents`).
    """

    settings: dict[str, Any]
    watermark: int
    labels: list[int]
    before: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    remedy: str = "set it back, train with --fresh, or use another run.name"


def save(folder: Path, step: int, learner: Learner, lineage: Lineage, keep: int = 2) -> Path:
    """Write the checkpoint of `step` into `folder`; delete all but the newest `keep` (0: none), and what was killed while it was written.

    With several ranks each brings its part of what is whole in the checkpoint, which the first one keeps.

    Raises:
        CheckpointError: the disk is full; the checkpoints before are as they were.
    """
    target = folder / f"step-{step:06d}"
    temporary = folder / f".step-{step:06d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    try:
        learner.model.save(temporary / "model")
        names = _take_tensors(learner.state_dict(), "", tensors)
        if ranks.rank() == 0:
            _write(temporary, target, step, tensors, names, lineage)
    except (OSError, SafetensorError) as e:
        if getattr(e, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(e):
            raise
        last = f"the last one, {every(folder)[-1]}, is whole" if every(folder) else "there is none yet"
        said = f"the disk is full, so that the checkpoint of step {step} could not be written to {folder}; {last}"
        raise CheckpointError(f"{said}: make room, then the same command goes on from there") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    ranks.wait()
    if ranks.rank() == 0:
        for old in [*every(folder)[:-keep], *folder.glob(".step-*")]:
            shutil.rmtree(old)
    return target


def _write(temporary: Path, target: Path, step: int, tensors: dict[str, torch.Tensor], names: Any, lineage: Lineage) -> None:
    save_file(tensors, temporary / "learner.safetensors")
    (temporary / "learner.json").write_text(json.dumps(names))
    files = {
        str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "format": FORMAT, "step": step, "files": files, "settings": lineage.settings,
        "watermark": lineage.watermark, "labels": lineage.labels, "before": lineage.before,
    }  # fmt: skip
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    _sync(target.parent)


def every(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    found = {path: path.name.removeprefix("step-") for path in folder.glob("step-*")}
    return sorted((path for path, step in found.items() if step.isdecimal()), key=lambda path: int(found[path]))


def read(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, whose files are not looked at.

    Raises:
        CheckpointError: it cannot be read, or a newer version wrote it.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        if manifest["format"] > FORMAT:
            raise CheckpointError(f"the checkpoint {checkpoint} was written by a newer rather; upgrade")
        manifest["files"].items()
        manifest["settings"] = renamed.settings(manifest["settings"])
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise CheckpointError(f"the checkpoint {checkpoint} has no manifest that can be read ({e}); {_REMEDY}") from None
    return manifest


def check(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there and whole.

    Raises:
        CheckpointError: something is missing, cut short or changed, or a newer version wrote it.
    """
    manifest = read(checkpoint)
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        size = path.stat().st_size if path.is_file() else 0
        if size != expected["bytes"]:
            raise CheckpointError(f"{path} was cut short: {size} of {expected['bytes']} bytes; {_REMEDY}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} has changed since it was written; {_REMEDY}")
    return manifest


def digest(checkpoint: Path) -> str:
    """Eight digits that stand for the model in a checkpoint: equal weights, equal digits."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    model = {name: file["sha256"] for name, file in files.items() if name.startswith("model/")}
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:8]


def finished(manifest: dict[str, Any]) -> bool:
    """Whether a checkpoint has as many steps as its training was to have; one that learns while people answer is always."""
    return manifest["step"] >= manifest["settings"]["_steps"]


def check_same(checkpoint: Path, lineage: Lineage) -> None:
    """Make sure that a checkpoint was trained with the settings in `lineage`, and with what they name; labels may have come since.

    Raises:
        CheckpointError: it was not.
    """
    was, now = read(checkpoint)["settings"], lineage.settings
    for what in differences(was, now, lineage.defaults):
        raise CheckpointError(f"{checkpoint} was trained with {what}; {lineage.remedy}")
    for name, digest in now.get("_contents", {}).items():
        if was.get("_contents", {}).get(name, digest) != digest:
            section, _, key = name.partition(".")
            what = f"what {name} = {now[section][key]!r} holds has changed since {checkpoint} was trained with it"
            raise CheckpointError(f"{what}; put it back, train with --fresh, or use another run.name")


def differences(was: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """The settings that differ, as "section.key = before, not now"; `defaults` stand for those that `was` does not know."""
    now, defaults = (json.loads(json.dumps(x)) for x in (now, defaults))
    every = [(section, key, value) for section, values in now.items() if not section.startswith("_") for key, value in values.items()]
    before = [was.get(section, {}).get(key, defaults.get(section, {}).get(key)) for section, key, _ in every]
    return [f"{s}.{k} = {old!r}, not {value!r}" for (s, k, value), old in zip(every, before, strict=True) if old != value]


def gone_on(checkpoint: Path, lineage: Lineage) -> Lineage:
    """`lineage` as that of a training which goes on from a checkpoint: the labels of before are named, where they were others.

    Raises:
        CheckpointError: the checkpoint was trained with other settings.
    """
    check_same(checkpoint, lineage)
    was = read(checkpoint)
    before = was.get("before", [])
    if was["labels"] != lineage.labels:
        before = [*before, {key: was[key] for key in ("step", "watermark", "labels")}]
    return replace(lineage, before=before)


_REMEDY = "delete that folder to go on from the one before it"


def load(checkpoint: Path, learner: Learner) -> dict[str, Any]:
    """Put model and learner back to where they were; returns the manifest.

    Raises:
        CheckpointError: the checkpoint is damaged or of another learner.
    """
    manifest = check(checkpoint)
    learner.model.restore(checkpoint / "model")
    put_state(checkpoint, learner.load_state_dict)
    return manifest


def put_state(checkpoint: Path, into: Callable[[dict[str, Any]], object]) -> None:
    """Give the learner's state in a checkpoint to what takes it.

    Raises:
        CheckpointError: it cannot be read, or is of another learner.
    """
    try:
        tensors = load_file(checkpoint / "learner.safetensors")
        into({key: _put_tensors(item, tensors) for key, item in skeleton(checkpoint).items()})
    except (KeyError, ValueError, RuntimeError, SafetensorError) as e:
        raise CheckpointError(f"the checkpoint {checkpoint} does not fit this run ({e}); use another run.name") from None


def skeleton(checkpoint: Path) -> dict[str, Any]:
    """The learner's state in a checkpoint, with the names of tensors in their place."""
    return json.loads((checkpoint / "learner.json").read_text())


def _take_tensors(value: Tree, name: str, tensors: dict[str, torch.Tensor]) -> Tree:
    if isinstance(value, torch.Tensor):
        value = ranks.gathered(value)
        if ranks.rank() == 0:
            tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _take_tensors(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_take_tensors(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    return value


def _put_tensors(value: Tree, tensors: dict[str, torch.Tensor]) -> Tree:
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            return tensors[str(value["tensor"])]
        return {key: _put_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
