"""What the commands share: the console, the arguments that most of them take, and the run that these describe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rather.pipeline.terminal import Terminal

if TYPE_CHECKING:
    from rather.config.schema import Config
    from rather.pipeline.run import Run
    from rather.store import Store

console = Terminal()


def complete_file(incomplete: str) -> list[tuple[str, str]]:
    """Run files, for the tab key."""
    from rather.config import completion

    return completion.run_files(incomplete)


def complete_settings(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Settings, for the tab key."""
    from rather.config import completion

    return completion.settings(incomplete, context.params.get("settings") or ())


def complete_first(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Both, for a command whose first word may be either."""
    return [*complete_file(incomplete), *complete_settings(context, incomplete)]


File = Annotated[Path, typer.Argument(help="The run's TOML file; `rather config` writes one.", autocompletion=complete_file)]
Settings = Annotated[list[str] | None, typer.Argument(help="Settings to change: section.key=value ...", autocompletion=complete_settings)]
Round = Annotated[int, typer.Option("--round", help="Round of the outer loop, from 0.")]


def open_run(file: Path, settings: list[str] | None) -> "Run":
    """The run that a file and changed settings describe."""
    from rather.config import toml as toml
    from rather.pipeline.run import Run

    return Run(toml.load(file, settings or []), console)


def open_store(file: Path, settings: list[str] | None) -> tuple["Config", "Store"]:
    """A run's settings and its store, for commands that need no model: without importing torch."""
    from rather.config import toml as toml
    from rather.store import Store

    config = toml.load(file, settings or [])
    return config, Store(config.store)
