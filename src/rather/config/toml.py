"""A run's settings in and out of TOML: one file, `section.key=value` overrides, errors that name the nearest valid key."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rather import renamed, settings
from rather.config import criteria
from rather.config.schema import Config
from rather.errors import ConfigError
from rather.settings import Section

NAME = re.compile(r"[^.]+\.[^.]+")


def load(source: str | Path | Config | None, changes: Iterable[str] | Mapping[str, object] = ()) -> Config:
    """The settings in a TOML file, or others, with changes on top: `section.key=value`, or values by `section.key`.

    Raises:
        ConfigError: the file is missing or no TOML, or a key or value is wrong; the message names the nearest valid key. See
            `criteria.check`, too.
    """
    if isinstance(source, Config):
        if not changes:
            return source
        values = source.model_dump()
    elif not isinstance(source, str | Path | None):
        raise ConfigError(f"settings is {source!r:.80}; give a TOML file")
    else:
        values = {} if source is None else _read(Path(source))
    for key, value in changes.items() if isinstance(changes, Mapping) else map(_parsed, changes):
        _change(values, key, value)
    try:
        config = Config.model_validate(values)
    except ValidationError as e:
        raise ConfigError(_explain(e)) from None
    criteria.check(config)
    return config


def mattering(config: Config, use: str) -> dict[str, dict[str, Any]]:
    """The settings that matter to a learner, to "sample" or to "eval": all but those that are declared otherwise where they are defined."""
    fields = type(config).model_fields.items()
    found = {name: settings.mattering(getattr(config, name), use) for name, field in fields if settings.matters(field.metadata, use)}
    return {section: values for section, values in found.items() if values}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; `rather config > {path}` writes one to start from") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from None


def _parsed(change: str) -> tuple[str, object]:
    key, equals, text = change.partition("=")
    if not equals or not NAME.fullmatch(key):
        raise ConfigError(f"{change!r} is no setting; write section.key=value, as in train.lr=1e-4")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def _change(values: dict[str, Any], key: str, value: object) -> None:
    if not NAME.fullmatch(key):
        raise ConfigError(f"{key!r} is no setting; write section.key, as in train.lr")
    parts = key.split(".")
    section = values.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"{parts[0]!r} is no section; write section.key=value")
    section[parts[1]] = value


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        if now := renamed.SETTINGS.get(".".join(part for part in first["loc"] if isinstance(part, str))):
            return f"the setting {name} is called {now} now"
        near = difflib.get_close_matches(name, sorted(names()), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`rather config` lists them all"
        return f"there is no setting {name}; {hint}"
    return settings.wrong(error)


def names() -> set[str]:
    """Every section and every section.key."""
    names = set(Config.model_fields)
    for section, field in Config.model_fields.items():
        names |= {f"{section}.{key}" for key in field.annotation.model_fields}  # type: ignore[union-attr]
    return names


def document(config: Config) -> str:
    """The settings as a TOML file in which every key is described."""
    lines = []
    for section in Config.model_fields:
        values = getattr(config, section)
        lines += [f"# {(type(values).__doc__ or '').strip()}", f"[{section}]"]
        tables = []
        for key, field in type(values).model_fields.items():
            value = getattr(values, key)
            if isinstance(value, list) and value and all(isinstance(item, Section) for item in value):
                tables += [line for item in value for line in ["", f"[[{section}.{key}]]", *_rows(item)]]
            elif value is None:
                lines.append(f"# {key} = ...  # {field.description}")
            else:
                lines.append(f"{key} = {_toml(value)}  # {field.description}")
        lines += [*tables, ""]
    return "\n".join(lines)


def _rows(item: Section) -> list[str]:
    fields = type(item).model_fields
    return [f"{key} = {_toml(getattr(item, key))}  # {field.description}" for key, field in fields.items()]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's strings are JSON's, but for DEL
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(key)} = {_toml(item)}' for key, item in value.items())}}}"
    return repr(value)
