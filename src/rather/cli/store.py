"""The commands about what is in the store: import, export, backup, status. None of them needs a model, and none imports torch."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rather.cli.options import File, Settings, console, open_store

if TYPE_CHECKING:
    from rather.store import Store
    from rather.store.tally import Counted

commands = typer.Typer()


@commands.command(name="import")
def import_(
    file: File,
    data: Annotated[
        Path,
        typer.Argument(help="JSONL, CSV or Parquet: prompt, chosen, rejected; or prompt, a, b, preference (docs/reference/files.md)."),
    ],
    settings: Settings = None,
    gold: Annotated[bool, typer.Option("--gold", help="Import gold questions, which show how attentive people are.")] = False,
    judge: Annotated[str, typer.Option(help="Judge's name, if the file has no column judge; empty: import:FILE.")] = "",
) -> None:
    """Import comparisons from a file into the store, as answered questions: the whole file, or nothing if it is stopped.

    A question is identified by its prompt and its sides, so the same file again adds nothing. A row with another preference than
    before is its judge's new answer. A row that stands in the file twice is two opinions. With --gold people are asked these
    questions, too, and the file has the right answers.
    """
    from rather.data import transfer
    from rather.learners.progress import progress

    config, store = open_store(file, settings)
    skipped, purpose = Counter[str](), "gold" if gold else "train"
    try:
        with progress(console, f"importing {data}", None, transient=True) as advance:
            done = transfer.import_comparisons(store, config.run.name, data, purpose, judge, skipped, advance)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"an import keeps all of a file or nothing; the same command imports what is missing of {data}") from None
    added = f", {done.answers} new answers to questions that were there" if done.answers else ""
    console.print(
        f"{done.questions} new {'gold ' if gold else ''}questions{added}, {done.changed} changed answers, {done.unchanged} already there, "
        f"{skipped.total()} skipped, from {data}. Next: rather {'serve' if gold else 'train'} {file}",
        highlight=False, markup=False,
    )  # fmt: skip
    _print_skipped(skipped)


def _print_skipped(skipped: Counter[str]) -> None:
    """Say how many rows were left out, and why."""
    for reason, count in skipped.most_common():
        console.print(f"skipped {count}: {reason}", highlight=False, markup=False)


@commands.command()
def export(
    file: File,
    target: Annotated[Path, typer.Argument(help="Where to: .jsonl, .csv or .parquet.")],
    settings: Settings = None,
    form: Annotated[
        str,
        typer.Option(
            help="all (every answer), comparisons (mean preferences, for import), trl, or unpaired (single answers, for TRL's KTO).",
            autocompletion=lambda: ["all", "comparisons", "trl", "unpaired"],
        ),
    ] = "all",
    criterion: Annotated[str, typer.Option(help="comparisons, trl: preferences on this criterion, not on the whole answer.")] = "",
) -> None:
    """Write the run's answers to a file."""
    from rather.data import transfer
    from rather.learners.progress import progress
    from rather.store import tally

    config, store = open_store(file, settings)
    run = config.run.name
    total = tally.written(store, run) if form == "all" else tally.questions(store, run, "train")
    skipped = Counter[str]()
    with progress(console, f"writing {target}", total, transient=True) as advance:
        count = transfer.export(store, run, target, form, advance, skipped, criterion)
    console.print(f"{count} rows in {target}", highlight=False, markup=False)
    _print_skipped(skipped)


@commands.command()
def backup(
    file: File, target: Annotated[Path, typer.Argument(help="The new file; nothing is overwritten.")], settings: Settings = None
) -> None:
    """Copy the run's store to a file, even while people answer. The copy holds every answer that was acknowledged before.

    Do not use `cp`: the newest answers are in a second file, and the first one changes while it is read. The copy is a store like any
    other: [cyan]rather serve run.toml run.store=FILE[/cyan]. Copy a PostgreSQL store with pg_dump.
    """
    from rather.config import toml as toml
    from rather.learners.progress import progress
    from rather.store.backup import backup

    config = toml.load(file, settings or [])
    with progress(console, f"copying {config.store}, %", 100, transient=True) as advance:
        rows = backup(config.store, target, advance)
    console.print(f"{target}: {rows['comparison']} questions, {rows['label']} answers, checked", highlight=False, markup=False)


@commands.command()
def status(file: File, settings: Settings = None) -> None:
    """Show how far the run is: questions, answers of each judge, their agreement, problems, the last metrics."""
    from rather.learners import prequential
    from rather.learners.metrics import Metrics
    from rather.pipeline.domain import problems
    from rather.store import rows, tally

    config, store = open_store(file, settings)
    run = config.run.name
    console.print(f"{run}: {tally.questions(store, run, rows.LEARNED)} questions", markup=False, highlight=False)
    counted = count_answers(store, run)
    if counted.tallies:
        console.print(_table(("judge", "kind"), ("answers", "abstentions"), counted.tallies))
    print_agreement(store, run, counted)
    for finding in problems(config, console, store):
        console.print(f"Problem: {finding.text}", markup=False, highlight=False)
    measured = Metrics(config.folder / "metrics.jsonl").read()
    if foreseen := prequential.last_sentence(measured):
        console.print(f"Reward head: {foreseen}.", markup=False, highlight=False)
    for row in measured[-1:]:
        console.print(f"Last metrics: {row['phase']}, step {row['step']}", markup=False, highlight=False)
        shown = {k: v for k, v in row.items() if k not in ("phase", "step", "settings", "tokenizer")}
        console.print(_table(("metric",), ("value",), shown.items()))


def _table(words: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Columns of words, which a narrow terminal breaks, then of numbers, which it does not."""
    table, cells = Table(), [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    for name in words:
        table.add_column(name, overflow="fold")
    for name, column in zip(numbers, list(zip(*cells, strict=True))[len(words) :], strict=False):
        table.add_column(name, justify="right", overflow="fold", min_width=min(11, max(map(len, [name, *column]))))
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def count_answers(store: "Store", run: str) -> "Counted":
    """What the judges of a run have answered, with a bar while the store counts."""
    from rather.learners.progress import progress
    from rather.store import rows, tally

    with progress(console, "counting answers", tally.questions(store, run, rows.LEARNED), transient=True) as advance:
        return tally.count(store, run, rows.LEARNED, advance)


def print_agreement(store: "Store", run: str, counted: "Counted") -> None:
    """Say how far the judges of a run agree, and whether people are swayed by the place on the screen."""
    from rather.store import tally

    kinds, found = {x.judge: x.kind for x in counted.tallies}, counted.agreement
    if found.questions:
        simulated = all(kinds[j] == "simulated" for j in found.judges)
        interval = f"(95 % interval {found.low:.2f} to {found.high:.2f})"
        alpha = "" if math.isnan(found.alpha) else f", Krippendorff's alpha {found.alpha:.2f} {interval}"  # NaN: all answers are the same
        console.print(
            f"Agreement of {len(found.judges)} {'simulated ' if simulated else ''}judges on {found.questions} questions: "
            f"{100 * found.raw:.0f} % of pairs of answers{alpha}",
            highlight=False,
        )
    bias = tally.position(store, run, "train") if "person" in kinds.values() else None
    if bias is not None:
        console.print(f"Left side preferred {bias.left} of {bias.total} times (p = {bias.p_value:.2g} for no position bias)")
