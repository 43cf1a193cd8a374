"""The bar that shows how far something is that takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(console: Console, title: str, total: int | None, transient: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar of `total` steps, None where nobody knows how many; what it yields takes the number of new steps, and a new title."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=transient) as bar:
        task = bar.add_task(title, total=total)

        def advance(count: int, description: str | None = None) -> None:
            bar.update(task, advance=count, description=description)

        yield advance
