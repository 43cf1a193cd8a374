"""What the tab key offers on the command line: settings with their values, and run files."""

import re
import typing
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from pydantic.fields import FieldInfo
from rich.markup import escape

from rather.config.schema import Config

Offers = list[tuple[str, str]]
"""What may stand there, and what that means."""
PLAIN = re.compile(r"[\w.:/+-]+")
"""A default that a shell takes as it is."""


def run_files(incomplete: str) -> Offers:
    """TOML files that begin like that, and folders beside them; nothing where there are none, so that the shell looks for itself."""
    folder, _, name = incomplete.rpartition("/")
    parent = Path(f"{folder}/" if folder or incomplete.startswith("/") else ".").expanduser()
    there = sorted(parent.glob("*")) if parent.is_dir() else []
    here = [path for path in there if path.name.startswith(name) and (name.startswith(".") or not path.name.startswith("."))]
    before = incomplete.removesuffix(name)
    files = [(f"{before}{path.name}", "") for path in here if path.suffix == ".toml" and path.is_file()]
    return [*files, *((f"{before}{path.name}/", "") for path in here if path.is_dir())] if files else []


def settings(incomplete: str, before: Sequence[str] = ()) -> Offers:
    """Sections, then their keys, then what a key may be; `before` are the words that came before, for a shell that splits at "=" (bash)."""
    fields = {f"{section}.{key}": field for section, key, field in _fields()}
    words = list(before)
    if words[-1:] == ["="]:
        words.pop()
    if words and words[-1] in fields:
        return [(value, meaning) for value, meaning in _values(fields[words[-1]]) if value and value.startswith(incomplete)]
    name, equals, _ = incomplete.partition("=")
    names = [name] if equals else [full for full in fields if full.startswith(name)]
    sections = list(dict.fromkeys(full.partition(".")[0] for full in names))
    if len(sections) > 1:
        return [(f"{section}.", _plain(Config.model_fields[section].annotation.__doc__)) for section in sections]
    if len(names) > 1:
        return [(f"{full}=", _plain(fields[full].description)) for full in names]
    found = [(f"{full}={value}", meaning) for full in names if full in fields for value, meaning in _values(fields[full])]
    return [offer for offer in found if offer[0].startswith(incomplete)]


def _fields() -> list[tuple[str, str, FieldInfo]]:
    return [
        (section, key, inner)
        for section, field in Config.model_fields.items()
        for key, inner in field.annotation.model_fields.items()  # type: ignore[union-attr]
    ]


def _values(field: FieldInfo) -> Offers:
    """Every value of a setting that has few, or its default, if that can be typed as it stands; with "" as the way to any other."""
    meaning = _plain(field.description)
    choices = _choices(field.annotation)
    if choices:
        return [(choice, meaning) for choice in choices]
    default = "" if field.is_required() or field.default_factory or field.default is None else str(field.default)
    return [("", meaning), (default, "default")] if PLAIN.fullmatch(default) else [("", meaning)]


def _choices(annotation: object) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    return [str(choice) for choice in typing.get_args(annotation)] if typing.get_origin(annotation) is typing.Literal else []


def _plain(text: str | None) -> str:
    return escape(shorten((text or "").replace('"', ""), 70, placeholder=" ..."))
