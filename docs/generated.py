"""Tables of the documentation that are made from the code: settings, commands, requests. `python docs/generated.py NAME` prints one."""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

import click
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import rather
from rather.cli.app import app
from rather.config.schema import Config
from rather.store import Store
from rather.web.app import create
from rather.web.project import Project

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [list(head), *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def values(field: FieldInfo) -> str:
    """What a setting may be: its type or its choices, and its bounds."""
    kinds = get_args(field.annotation) if type(None) in get_args(field.annotation) else (field.annotation,)
    (kind,) = [kind for kind in kinds if kind is not type(None)]
    if get_origin(kind) is Literal:
        return ", ".join(f'`"{choice}"`' for choice in get_args(kind))
    name = re.sub(r"(\w+\.)+(?=\w)", "", str(kind)) if get_origin(kind) else kind.__name__
    bounds = [f"{sign} {getattr(mark, key):g}" for mark in field.metadata for key, sign in BOUNDS.items() if hasattr(mark, key)]
    return " ".join([f"`{name}`", ", ".join(bounds)]).strip()


def rows(prefix: str, section: type[BaseModel]) -> list[list[str]]:
    """The settings of a section: name, default, values, meaning."""
    made = []
    for key, field in section.model_fields.items():
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, list) and default and isinstance(default[0], BaseModel):
            written = ", ".join(f"`{item.name}`" for item in default)  # type: ignore[attr-defined]
        else:
            written = "unset" if default is None else default if default == "required" else f"`{toml_value(default)}`"
        made.append([f"`{prefix}{key}`", written, values(field), field.description or ""])
    return made


def toml_value(default: Any) -> str:
    """A default as it stands in a TOML file."""
    return json.dumps(default, ensure_ascii=False).replace("Infinity", "inf")


def items(section: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The settings of a section that are lists of tables, and what a table holds."""
    kinds = {key: get_args(field.annotation) for key, field in section.model_fields.items() if get_origin(field.annotation) is list}
    return {key: kind for key, (kind, *_) in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def settings() -> str:
    """Every section with a table of its settings."""
    head = ("setting", "default", "values", "meaning")
    parts = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert section is not None
        parts += [f"## {name}", (section.__doc__ or "").strip(), table(head, rows(f"{name}.", section))]
        for key, item in items(section).items():
            parts += [f"Each item of `{name}.{key}`:", table(head, rows("", item))]
    return "\n\n".join(parts)


def plain(text: str | None) -> str:
    """Help without the terminal's colors, in Markdown."""
    return re.sub(r"\[/?(?:cyan|bold|dim|b|i)\]", "`", text or "").replace("\b", "").strip()


def commands() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    parts = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        shown = [p for p in command.params if p.name not in ("help",)]
        lines = [[f"`{option(p)}`", default(p), plain(getattr(p, "help", ""))] for p in shown]
        parts += [f"## rather {name}", re.sub(r"(?m)^[ ]{2,}", "", plain(command.help)), table(("argument", "default", "meaning"), lines)]
    return "\n\n".join(parts)


def option(parameter: Any) -> str:
    """How an argument or option is written."""
    if parameter.param_type_name == "argument":
        return (parameter.metavar or parameter.name).upper()
    return ", ".join(parameter.opts)


def default(parameter: Any) -> str:
    """The default of an argument or option, where it says something."""
    value = None if callable(parameter.default) else parameter.default
    return "" if value in (None, "", False, [], ()) or str(value).startswith("Sentinel") else f"`{value}`"


def rest() -> str:
    """Every request of the labelling page's server with its answers, and every field."""
    with tempfile.TemporaryDirectory() as folder:
        described = create(Store(f"{folder}/store.db"), Project("run", ""), "key").openapi()
    parts = ["## Every request"]
    for path, methods in described["paths"].items():
        for method, request in methods.items():
            parts += [f"### {method.upper()} {path}", request.get("description", "")]
            given = [[f"`{p['name']}`", p["in"], p.get("description", "")] for p in request.get("parameters", [])]
            if given:
                parts.append(table(("parameter", "in", "meaning"), given))
            for media in request.get("requestBody", {}).get("content", {}).values():
                parts.append(f"Body: {kind(media['schema'])}.")
            replies = [[code, kind(*schemas(reply)), reply["description"]] for code, reply in request["responses"].items()]
            parts.append(table(("status", "body", "meaning"), sorted(replies)))
    parts.append("## Every field")
    for name, schema in described["components"]["schemas"].items():
        needed = schema.get("required", [])
        fields = [
            [
                f"`{key}`",
                kind(field),
                "required" if key in needed else f"`{json.dumps(field.get('default'))}`",
                field.get("description", ""),
            ]
            for key, field in schema.get("properties", {}).items()
        ]
        parts += [f"### {name}", schema.get("description", ""), table(("field", "type", "default", "meaning"), fields)]
    return "\n\n".join(part for part in parts if part)


def schemas(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of a reply's bodies."""
    return [media["schema"] for media in reply.get("content", {}).values() if media.get("schema")]


def kind(*schema: dict[str, Any]) -> str:
    """A JSON schema in a few words, with links to the fields of what has a name."""
    words = []
    for part in schema:
        if "$ref" in part:
            name = part["$ref"].rpartition("/")[2]
            words.append(f"[{name}](#{name.lower()})")
        elif "anyOf" in part:
            words.append(" or ".join(kind(one) for one in part["anyOf"]))
        elif "enum" in part:
            words.append(", ".join(f"`{one}`" for one in part["enum"]))
        elif part.get("type") == "array":
            words.append(f"list of {kind(part.get('items', {}))}")
        else:
            words.append(part.get("const") or part.get("type", "any"))
    return ", ".join(dict.fromkeys(words))


GROUPS = {
    "Models and data": ["load", "comparisons", "LoRA", "Store"],
    "Learners": ["DPO", "KTO", "RewardModel", "RewardHead", "OnlineReward", "OnlineDPO", "GRPO", "PPO", "SFT", "ZerothOrder"],
    "Use without training": ["BestOf"],
    "Functions as rewards and judges": ["batched", "win_rate"],
    "Control": ["control"],
    "Runs": ["Run"],
}
"""The public names of `rather` in the order of the page; others follow."""


def api() -> str:
    """Every public name of the package, described from its docstring."""
    public = [name for name in getattr(rather, "__all__", []) if not name.startswith("__")]
    known = [name for names in GROUPS.values() for name in names]
    groups = {**GROUPS, "More": [name for name in public if name not in known]}
    parts = []
    for title, names in groups.items():
        if names := [name for name in names if name in public]:
            parts += [f"## {title}", *(f"::: {place(name)}" for name in names)]
    return "\n\n".join(parts)


def place(name: str) -> str:
    """Where a public name is defined."""
    found = getattr(rather, name)
    return found.__name__ if hasattr(found, "__path__") else f"{found.__module__}.{found.__qualname__}"


GENERATED: dict[str, Callable[[], str]] = {"settings": settings, "commands": commands, "rest": rest, "api": api}

if __name__ == "__main__":
    sys.stdout.write(GENERATED[sys.argv[1]]() + "\n")
