"""Names that settings, metrics and tensors had in earlier versions: files that hold them are read, and errors name the new ones."""

from collections.abc import Mapping
from typing import Any

SETTINGS = {
    "dpo.normalised": "dpo.normalized",
    "dpo.reference": "dpo.reference_logprobs",
    "ppo.answers": "ppo.rollout_batch_size",
    "ppo.epochs": "ppo.update_epochs",
    "grpo.size": "grpo.group_size",
    "grpo.again": "grpo.max_resample",
    "reward.centre": "reward.center",
    "zeroth.optimiser": "zeroth.optimizer",
    "zeroth.size": "zeroth.components",
    "control.normalise": "control.normalize",
    "control.stretch": "control.rollout_segment",
    "control.uneven": "control.allow_uneven",
    "sample.rows": "sample.batch_size",
    "query.attempts": "query.episodes",
    "verify.checks.partly": "verify.checks.partial",
}
METRICS = {
    "pull": "gold_correlation",
    "pull_error": "gold_correlation_stderr",
    "moved": "update_norm",
    "norm": "parameter_norm",
    **{f"score_start{end}": f"score_base{end}" for end in ("", "_low", "_high")},
    **{f"{what}_start": f"{what}_base" for what in ("return", "gold")},
    **{
        f"{what}{old}{kind}": f"{what}{new}{now}"
        for what in ("score", "return", "gold")
        for old, new in (("", ""), ("_policy", "_policy"), ("_start", "_base"))
        for kind, now in (("_error", "_stderr"), ("_deviation", "_std"))
    },
}
TENSORS = {"normaliser": "normalizer", "log_deviation": "log_std"}
"""Parts of the names of tensors in a checkpoint's model."""


LATER = {
    "model": {"weights": "auto"},
    "query": {"answers": 2, "questions": 0, "exploration": 0.0},
    "reward": {
        "kind": "lora",
        "layers": [],
        "start": "random",
        "patience": 0,
        "crop": 1.0,
        "pseudo_labels": 0,
        "confidence": 0.99,
        "pseudo_weight": 1.0,
        "dynamics": 0.0,
    },
    "eval": {"best_of": 1},
    "ppo": {"clip_schedule": "constant", "normalize_reward": False},
    "control": {
        "kwargs": {},
        "wrappers": [],
        "restart": False,
        "log_std_init": 0.0,
        "policy_network": "",
        "critic_network": "",
        "network": "mlp",
        "keep_critic": False,
        "unsupervised_steps": 0,
    },
}
"""Settings that came later, with the values that say what earlier versions did."""


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of settings under the names of today."""
    return {section: _section(section, of, SETTINGS) for section, of in values.items()}


def earlier(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of settings as earlier versions had them, by name and without what came `LATER`: digests made of these stay the same."""
    names = {new: old for old, new in SETTINGS.items()}
    before = {**values}
    for section in LATER.keys() & values.keys():
        before[section] = {key: x for key, x in values[section].items() if (key, x) not in LATER[section].items()}
    return {section: _section(section, of, names) for section, of in before.items()}


def metrics(row: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl under the names of today."""
    if "settings" in row:
        row = row | {"settings": settings(row["settings"])}
    return row if row.keys().isdisjoint(METRICS) else {METRICS.get(key, key): value for key, value in row.items()}


def tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """A model's tensors under the names of today."""
    return {".".join(TENSORS.get(part, part) for part in name.split(".")): value for name, value in state.items()}


def _section(name: str, value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_section(name, item, names) for item in value]
    if not isinstance(value, dict):
        return value
    full = {key: f"{name}.{key}" for key in value}
    now = {key: names[full[key]].rpartition(".")[2] if full[key] in names else key for key in value}
    return {now[key]: _section(full[key], item, names) for key, item in value.items()}
