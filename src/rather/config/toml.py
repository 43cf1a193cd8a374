"""A run's settings in and out of TOML: one file, `section.key=value` overrides, errors that name the nearest valid key."""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rather import settings
from rather.config import criteria
from rather.config.schema import Config
from rather.errors import ConfigError
from rather.settings import Section


def load(path: Path | None, overrides: list[str]) -> Config:
    """The settings in a TOML file, with `section.key=value` overrides on top.

    Raises:
        ConfigError: the file is missing or no TOML, or a key or value is wrong; the message names the nearest valid key. See
            `criteria.check`, too.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise ConfigError(f"there is no file {path}; `rather config > {path}` writes one to start from") from None
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} cannot be read: {e}") from None
    for override in overrides:
        _override(values, override)
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


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise ConfigError(f"{override!r} is no setting; write section.key=value, as in train.lr=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    section = values.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"{parts[0]!r} is no section; write section.key=value")
    section[parts[1]] = value


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
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
