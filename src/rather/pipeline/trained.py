"""What training has left: a run's policy or reward model, or that of a checkpoint, an adapter or a model folder; with its model card."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from rather.config.schema import Config
from rather.config.toml import load as load_settings
from rather.core import Rate
from rather.errors import ConfigError, ModelError, TrainingError
from rather.learners import checkpoint
from rather.learners.metrics import Metrics
from rather.learners.saved_head import FACTS
from rather.pipeline import evaluation
from rather.pipeline.run import Run
from rather.pipeline.terminal import Terminal
from rather.store import Store, tally
from rather.text import load as files
from rather.text.files import gguf_writer
from rather.text.files.card import Card, Voter
from rather.text.head.model import RewardHead
from rather.text.language_model import LanguageModel
from rather.text.open import load
from rather.text.policy import TextPolicy
from rather.text.reward_model import HEADS, RewardModel

Precision = Literal["float32", "bfloat16"]
Compute = Literal["auto", "float32", "bfloat16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SPOKEN = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""
SCORED = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
chat = [{{"role": "user", "content": "Name a tree."}}, {{"role": "assistant", "content": "An oak."}}]
score = model(**tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")).logits[0, 0]"""
"""How a policy and a reward model are used, for their cards."""


@dataclass(frozen=True)
class Trained:
    """A trained model, and what its card says of it."""

    model: LanguageModel | RewardModel | RewardHead
    card: Card


def trained(source: str, changes: Sequence[str], base: str, number: int | None, dtype: Compute, console: Terminal) -> Trained:
    """What the run `source`, a TOML file with settings to change, has come to in round `number` (None: the last one); or what is in
    `source`, a checkpoint, an adapter, a model folder, a .gguf file or a name on the hub, its base model being `base`, if that is named.

    Raises:
        ConfigError: the arguments do not fit together, or the run is not about text.
        TrainingError: the run has not been trained.
        ModelError: there is no such model, or its base cannot be had.
    """
    if source.endswith(".toml"):
        if base:
            raise ConfigError("--base is for an adapter's folder; a run knows its base model (model.path)")
        return _of_run(Run(load_settings(source, [*changes, f'model.dtype="{dtype}"']), console), number)
    if changes or number is not None:
        raise ConfigError(f"settings and --round are for a run's TOML file, and {source!r} is none")
    return _of_folder(source, base, dtype)


def reward(source: str, dtype: Compute, console: Terminal) -> tuple[RewardModel | RewardHead, str]:
    """The reward model or head in `source`, and what stands for it: the newest one of a run's TOML file; that in a checkpoint or a folder,
    one that `transformers` reads, too; or one on the hub.

    Raises:
        TrainingError: the run has none yet.
        ConfigError: the run is not about text.
        ModelError: there is none, or its base model cannot be had.
    """
    if source.endswith(".toml"):
        run = Run(load_settings(source, [] if dtype == "auto" else [f'model.dtype="{dtype}"']), console)  # "auto": as it was fitted
        if run.config.control.env:
            raise ConfigError(f"the run {run.config.run.name!r} is about control; language models alone have rewards to choose answers by")
        found = [path for n in range(run.config.loop.rounds) for path in checkpoint.every(run.checkpoints(n, "reward"))]
        if not found:
            learns = f"rather train {source} train.learner=reward reward.kind=head"
            raise TrainingError(f"the run {run.config.run.name!r} has no reward model yet; run `{learns}` first")
        model: Any = run.domain.reward_model(found[-1])
        return model, checkpoint.digest(found[-1])
    folder = _weights(Path(source))
    head = (folder / FACTS).exists()
    model = RewardHead.load(folder, dtype=dtype) if head else RewardModel.load(folder if folder.exists() else source, dtype=dtype)
    return model, evaluation.fingerprint(folder) if folder.exists() else source


def _weights(folder: Path) -> Path:
    """Where the weights of a checkpoint or a folder are."""
    return folder / "model" if (folder / "manifest.json").exists() else folder


def _of_run(run: Run, number: int | None) -> Trained:
    c, number = run.config, run.begun if number is None else number
    if c.control.env:
        raise ConfigError(f"the run {c.run.name!r} is about control; language models and their reward models can be written")
    last = run.last(number)
    model: Any = run.domain.reward_model(last) if c.train.learner == "reward" else run.policy(number + 1)
    return Trained(model, of_checkpoint(last, run.store, run.metrics, number))


def _of_folder(source: str, base: str, dtype: Compute) -> Trained:
    card, folder = Card(source), _weights(Path(source))
    if folder != Path(source):
        card = of_checkpoint(Path(source))
    if (folder / "steering.safetensors").exists():
        raise ModelError(f"{folder} holds a steering vector, which its run alone knows how to read; give the run's TOML file")
    adapter = (folder / "adapter_config.json").exists()
    if base and not adapter:
        raise ConfigError(f"--base is {base!r}, but {source} is no adapter; leave it out")
    name = str(folder) if folder.exists() else source
    if (folder / FACTS).exists():
        return Trained(RewardHead.load(folder, dtype=dtype), card)
    if not adapter:
        return Trained(RewardModel.load(folder, dtype=dtype) if (folder / HEADS).exists() else load(name, dtype=dtype), card)
    where, beside = files.located(base, name) if base else files.located(name)
    body = load(where, dtype=dtype)
    model = RewardModel.load(folder, body) if (folder / HEADS).exists() else load(where, adapter=beside, dtype=dtype)
    return Trained(model, card if card.learner else Card(base or str(where)))


def of_checkpoint(folder: Path, store: Store | None = None, metrics: Metrics | None = None, number: int = 0) -> Card:
    """The model card of a checkpoint; `store` knows who answered, and `metrics` how its policy did in the evaluation of round `number`."""
    manifest = checkpoint.check(folder)
    settings: dict[str, Any] = manifest["settings"]
    stages: list[dict[str, Any]] = [*manifest.get("before", []), manifest]
    labels: list[int] = list(dict.fromkeys(label for stage in stages for label in stage["labels"]))
    count, voters = (len(labels), []) if store is None else tally.learned(store, labels)
    path = settings.get("model", {}).get("path", "")
    learner = folder.parent.name.rpartition("-")[0]
    win = "" if metrics is None else _win_rate(metrics, number, checkpoint.digest(folder), {} if store is None else store.judges())
    return Card(path, learner, count, [Voter(v.judge, v.kind, v.answers) for v in voters], _set(settings), win)


def _set(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not the defaults, by section.key."""
    defaults = Config().model_dump()
    sections = {name: values for name, values in settings.items() if not name.startswith("_")}
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in values.items()
        if defaults.get(section, {}).get(key) != value
    }


def _win_rate(metrics: Metrics, number: int, digest: str, kinds: dict[str, str]) -> str:
    rows = [row for row in metrics.read(f"eval-{number}") if row.get("checkpoint") == digest and "win_rate" in row]
    if not rows:
        return ""
    row = rows[-1]
    rate = Rate(row["win_rate"], row["win_rate_low"], row["win_rate_high"], int(row["prompts"]))
    names: list[str] = row.get("judges") or []
    judges = [f"{name} (simulated)" if kinds.get(name) == "simulated" else name for name in names]
    against, by = row.get("against", "the base model"), f", judged by {', '.join(judges)}" if judges else ""
    return f"Win rate against {against} on held-out prompts: {rate}{by}."


def written(target: Path, write: Callable[[Path], object]) -> Path:
    """A new file or folder, which `write` makes under another name: it is there whole or not at all.

    Raises:
        ConfigError: there is something already.
        ModelError: there is no room for the weights.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"{target} is there already; name another place, or delete it")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write(draft)
        if target.is_dir():
            target.rmdir()
        draft.rename(target)
    except SafetensorError as e:  # which is no OSError where the disk is full
        raise ModelError(f"{target} cannot be written: {e}; make room, and run this again") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
    return target


def merge(found: Trained, folder: Path, dtype: Precision) -> None:
    """Write a trained model as a Hugging Face folder with its card; an ensemble of reward models as a folder a member."""
    model = found.model
    if isinstance(model, RewardHead):
        raise ModelError("a reward head cannot be merged, since transformers has no place for it; rather score uses it where it is")
    members = model.members if isinstance(model, RewardModel) else 0
    name = f"{folder.name}/member-1" if members > 1 else folder.name
    use = (SCORED if members else SPOKEN).format(name=name)

    def write(draft: Path) -> None:
        model.merge(draft, DTYPES[dtype])
        (draft / "README.md").write_text(found.card.text(folder.name, use), encoding="utf-8")

    written(folder, write)


def gguf(found: Trained, path: Path, kind: gguf_writer.Kind) -> Path:
    """Write a trained policy as a GGUF file, and an Ollama Modelfile beside it, whose path comes back.

    Raises:
        ModelError: it is a reward model, or its family or tokenizer cannot be written.
        ConfigError: one of the files is there already.
    """
    model, beside = found.model, path.with_suffix(".Modelfile")
    if isinstance(model, RewardModel | RewardHead):
        raise ModelError("a reward model cannot be written as GGUF, which has no place for its head; rather merge writes it as a folder")
    if not isinstance(model, TextPolicy):
        raise ModelError(f"a model that transformers computes cannot be written as GGUF; rather writes {', '.join(gguf_writer.FAMILIES)}")
    if beside.exists():
        raise ConfigError(f"{beside} is there already; name another place, or delete it")
    written(path, lambda draft: gguf_writer.write(model.merged(), model.tokens, draft, kind, path.stem))
    return written(beside, lambda draft: draft.write_text(gguf_writer.modelfile(path, model.tokens), encoding="utf-8"))
