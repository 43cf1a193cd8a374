"""All commands under one name, and those about no run's phase: config and doctor."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from rather import __version__
from rather.cli import control, interrupt, model, page, run, store, use
from rather.cli.options import Settings, complete_file, complete_first, console, open_run
from rather.data import examples
from rather.errors import ConfigError


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C, with what there is to say about it."""


class Commands(TyperGroup):
    """Wraps the help of commands at the terminal's width, and lets `main` say what a Ctrl-C left behind."""

    def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand | None:
        """The command of that name; Typer would keep the line breaks within its docstring's paragraphs."""
        command = super().get_command(ctx, cmd_name)
        if not isinstance(command, TyperCommand):
            return None
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help or "")
        return command

    def invoke(self, ctx: typer.Context) -> object:
        """Run the command."""
        try:
            interrupt.working = True
            return super().invoke(ctx)
        except KeyboardInterrupt as e:
            raise Interrupted(str(e) or interrupt.KEPT) from e
        finally:
            interrupt.working = False


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""[bold]rather[/bold]: from "I'd rather have this one" to better policies.

A run is one TOML file. The usual way through it:

  rather config > run.toml      a file with every setting, described
  rather loop run.toml          sample, label, train, evaluate; stopped, it goes on
  rather report run.toml        one HTML page with the plots
  rather merge run.toml mine    the trained model as a folder that transformers loads
  rather hack run.toml          is the reward being hacked?

Any setting can be changed on the command line: [cyan]rather loop run.toml train.lr=1e-4 run.seed=3[/cyan]""",
)

for group in (run, model, use, control, page, store):
    app.add_typer(group.commands)


@app.command()
def config(
    file: Annotated[
        Path | None, typer.Argument(help="A run's TOML file; without one: the defaults.", autocompletion=complete_first)
    ] = None,
    settings: Settings = None,
    example: Annotated[
        str,
        typer.Option(
            help="Print an example run instead: " + ", ".join(examples.descriptions()) + ".",
            autocompletion=lambda: examples.descriptions().items(),
        ),
    ] = "",
) -> None:
    """Print every setting with its value and what it means, as a TOML file to start from.

    rather config model.path=models/mine data.prompts=prompts.jsonl > run.toml

    rather config --example pendulum > run.toml
    """
    from rather.config import toml as toml

    if file is not None and "=" in str(file) and not file.exists():
        file, settings = None, [str(file), *(settings or [])]
    if not example:
        sys.stdout.write(toml.document(toml.load(file, settings or [])))
    elif file is not None or settings:
        raise ConfigError("--example prints a file as it is; give settings to the command that runs it: rather loop run.toml run.seed=3")
    else:
        sys.stdout.write(examples.settings(example))


@app.command()
def doctor(
    file: Annotated[
        Path | None, typer.Argument(help="A run's TOML file; without one: only the machine.", autocompletion=complete_file)
    ] = None,
    settings: Settings = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what memory the run will take, without loading anything.")] = False,
    memory: Annotated[float | None, typer.Option(help="With --plan: GiB that a GPU or machine has which is not this one.", min=0)] = None,
    tokens: Annotated[int, typer.Option(help="With --plan: tokens of the longest prompt with its answer.", min=2)] = 2048,
) -> None:
    """Say what is wrong with this machine or a run, and what to do about it. Exits with 1 if something is.

    rather doctor --plan run.toml model.device=cuda --memory 24
    """
    from rather import doctor

    if plan:
        _plan(file, settings, memory, tokens)
        return
    run = None if file is None else open_run(file, settings)
    findings = doctor.machine(None if run is None else run.domain)
    if run is not None:
        findings += doctor.run(run)
    for finding in findings:
        grade = {"good": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red]"}[finding.grade]
        console.print(f"{grade}  {escape(finding.text)}")
    if any(f.grade == "bad" for f in findings):
        raise typer.Exit(1)


def _plan(file: Path | None, settings: list[str] | None, memory: float | None, tokens: int) -> None:
    """Print what memory a run takes, by part and phase, and whether that is there; exit with 1 if it is not."""
    from rather.config import toml as toml
    from rather.pipeline import plan
    from rather.pipeline.sizes import GIB

    if file is None:
        raise ConfigError("--plan needs the run's TOML file: rather doctor --plan run.toml")
    config = toml.load(file, settings or [])
    found = plan.of_run(config, tokens)
    table = Table(
        "GiB", *(phase.name for phase in found.phases), title=f"if the longest prompt with its answer has {found.tokens:,} tokens"
    )
    for part in dict.fromkeys(part for phase in found.phases for part in phase.parts):
        table.add_row(part, *(f"{phase.parts[part] / GIB:.2f}" if part in phase.parts else "" for phase in found.phases))
    table.add_row("in all", *(f"{phase.total / GIB:.2f}" for phase in found.phases), style="bold")
    console.print(table)
    there = memory * GIB if memory is not None else plan.there(config)
    what = f"takes {found.needed / GIB:.2f} GiB, most of it while {found.largest.name}; {there / GIB:.2f} GiB are there"
    if found.needed <= there:
        console.print(f"[green]fits[/green]: the run {what}", highlight=False)
        return
    changes, better = plan.advice(config, tokens, there)
    less = f"; with {' '.join(changes)} it takes {better.needed / GIB:.2f} GiB" if changes else "; take a smaller model"
    console.print(f"[red]does not fit[/red]: the run {what}{less}", highlight=False)
    raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Options that hold for every command."""
    context.obj = debug
    if version:
        console.print(f"rather {__version__}")
        raise typer.Exit
