"""Data sets of the Hugging Face hub: which files a name means, and their copies on this machine.

`hf://datasets/ORG/NAME?split=train`; also `&config=NAME` where a data set has several, `&revision=BRANCH`, and
`hf://datasets/ORG/NAME/path/to/file.parquet` for one file. `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the rest work as everywhere.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from rather.errors import DataError

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

NAME = re.compile(r"hf:/{1,2}datasets/(?P<repo>[\w.-]+/[\w.-]+)(?P<file>/[^?]+)?(?:\?(?P<options>.*))?")
EXAMPLE = "hf://datasets/ORG/NAME?split=train"
OPTIONS = ("split", "config", "revision")
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
"""What the files of a split are called, where the data set's card does not say: as `datasets` has it."""
ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz")


def is_name(source: str | Path) -> bool:
    """Whether a source is a data set on the hub. A `Path` has but one of its two slashes left."""
    return re.match(r"hf:/", str(source)) is not None


def files(name: str) -> list[Path]:
    """The files of a data set, fetched unless they are here already.

    Raises:
        DataError: the name is none; the hub has no such data set, split or configuration, cannot be reached, or does not let us in.
    """
    repo, file, options = _parsed(name)
    revision = options.get("revision")
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]  # httpx's, or its successor's

    try:
        if file:
            names = [file]
        else:
            info = HfApi().dataset_info(repo, revision=revision, timeout=30)
            revision = info.sha or revision
            names = choose([x.rfilename for x in info.siblings or []], _configs(info.card_data), options, name)
        return [Path(hf_hub_download(repo, x, repo_type="dataset", revision=revision)) for x in names]
    except (HTTPError, LocalEntryNotFoundError, OSError, ValueError) as e:
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise DataError(f"the hub did not give {name} ({reason}); a private or gated data set needs HF_TOKEN") from None


def _parsed(name: str) -> tuple[str, str, dict[str, str]]:
    match = NAME.fullmatch(name)
    if match is None:
        raise DataError(f"{name!r} is no data set on the hub; write {EXAMPLE}")
    options = {key: values[-1] for key, values in parse_qs(match["options"] or "", keep_blank_values=True).items()}
    if unknown := next((key for key in options if key not in OPTIONS), None):
        raise DataError(f"{name} has {unknown!r}; what can be asked for is {', '.join(OPTIONS)}, as in {EXAMPLE}")
    return match["repo"], (match["file"] or "").strip("/"), options


@dataclass(frozen=True)
class Config:
    """One configuration of a data set's card: patterns of each split's files; without them they are in `folder`, named like splits."""

    name: str
    splits: dict[str, list[str]]
    folder: str = ""
    default: bool = False


def _configs(card: "DatasetCardData | None") -> list[Config]:
    found: Any = card.to_dict().get("configs") if card else None
    configs = []
    for x in found or []:
        data = x.get("data_files", [])
        parts = data if isinstance(data, list) and all(isinstance(p, dict) for p in data) else [{"split": "train", "path": data}]
        splits = {p["split"]: [p["path"]] if isinstance(p["path"], str) else list(p["path"]) for p in parts}
        configs.append(Config(str(x.get("config_name", "default")), splits, str(x.get("data_dir") or ""), bool(x.get("default"))))
    return configs


def choose(names: list[str], configs: list[Config], options: dict[str, str], source: str) -> list[str]:
    """Which of a repository's files to read: by its card, or where that says nothing by their names.

    Raises:
        DataError: the split or configuration is not there, or there are several and none is named.
    """
    config = _config(configs, options.get("config"), source)
    splits: dict[str, list[str]] = {}
    if config.splits:
        patterns = {split: re.compile("|".join(map(_expression, paths))) for split, paths in config.splits.items()}
        splits = {split: [n for n in names if pattern.fullmatch(n)] for split, pattern in patterns.items()}
    else:
        for n in names:
            if n.lower().endswith(ENDINGS) and not n.startswith(".") and f"/{n}".startswith(f"/{config.folder}".rstrip("/") + "/"):
                splits.setdefault(_split_of(n.removeprefix(config.folder)), []).append(n)
    splits = {split: found for split, found in splits.items() if found}
    if set(splits) != {""}:
        splits.pop("", None)  # beside files of splits, the others are something else
    else:
        splits = {"train": splits[""]}
    if not splits:
        raise DataError(
            f"{source} has no files of {', '.join(ENDINGS)} that could be found; name one (hf://datasets/ORG/NAME/FILE), "
            "or ask for the hub's copy: ?revision=refs/convert/parquet&config=default&split=train"
        )
    split = options.get("split") or (next(iter(splits)) if len(splits) == 1 else None)
    if split is None:
        raise DataError(f"{source} has the splits {', '.join(sorted(splits))}; name one, as in ?split={next(iter(splits))}")
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}; it has {', '.join(sorted(splits))}")
    return sorted(splits[split])


def _config(configs: list[Config], wanted: str | None, source: str) -> Config:
    if not configs:
        return Config("", {}, wanted or "")
    names = ", ".join(c.name for c in configs)
    if wanted is not None:
        found = next((c for c in configs if c.name == wanted), None)
        if found is None:
            raise DataError(f"{source} has no configuration {wanted!r}; it has {names}")
        return found
    usual = [c for c in configs if c.default or c.name == "default"] or configs
    if len(usual) > 1:
        raise DataError(f"{source} has the configurations {names}; name one, as in ?config={configs[0].name}&split=train")
    return usual[0]


def _split_of(name: str) -> str:
    """The split that a file's name tells: a word of it, or of a folder's; "" if it tells none."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, called in SPLITS.items() if words & set(called)), "")


def _expression(pattern: str) -> str:
    """A pattern of files' names as a regular expression; `**` is any number of folders, `*` stays in one."""
    kinds = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", re.sub(r"^\./", "", pattern))
    return "".join(kinds.get(part, part if part.startswith("[") else re.escape(part)) for part in parts)
