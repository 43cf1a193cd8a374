"""The bar that shows how far something is that takes long."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def shows(console: Console) -> bool:
    """Whether a bar can be seen: in a terminal, and in a notebook where ipywidgets is installed."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def progress(console: Console, title: str, total: int | None, transient: bool = False) -> Generator[Callable[..., None]]:
    """Show a bar of `total` steps, None where nobody knows how many; what it yields takes the number of new steps, and a new title.

    Of nothing there is no bar.
    """
    if total == 0:
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=transient) as bar:
        task = bar.add_task(title, total=total)

        def advance(count: int, description: str | None = None) -> None:
            bar.update(task, advance=count, description=description)

        yield advance
