"""What `rather` and `python -m rather` run: the commands, and how their errors are printed."""

import os
import sys

from rather.cli import interrupt

if __name__ == "__main__" or os.path.basename(sys.argv[0]) == "rather":  # noqa: PTH119, before anything that takes long to import
    interrupt.install()

import errno
import re
import traceback
import warnings
from importlib.metadata import requires

from rich.markup import escape

from rather.cli.app import Interrupted, app
from rather.errors import RatherError, installing
from rather.pipeline.terminal import Terminal

THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000"}
"""How OpenMP's threads idle: they sleep, since spinning ones slow their neighbors down, but not at once, since waking up is slow too."""


def main() -> None:
    """Run the command line: exit code 2 and one sentence for an error that the user can mend, 130 for Ctrl-C."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "_RATHER_COMPLETE" in os.environ:
        os.environ["COLUMNS"] = (
            "1000"  # Typer breaks what it tells the shell at the terminal's width, and a shell takes each line as a word
        )
    errors = Terminal(stderr=True)
    warnings.showwarning = lambda message, *_, **__: errors.print(f"[yellow]note:[/yellow] {escape(str(message))}")
    interrupt.install()
    try:
        app()
    except RatherError as e:
        _fail(errors, str(e), 2)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] == "rather":
            raise
        _fail(errors, f"the package {e.name} is missing; {_bringing(e.name)}", 2)
    except Interrupted as e:
        _fail(errors, str(e), 130)
    except OSError as e:
        if e.errno is None:
            raise
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(errors, "the disk is full; make room, then the same command goes on from the last checkpoint", 2)
        _fail(errors, f"{e.filename or 'a file'}: {e.strerror}", 2)


def _bringing(module: str) -> str:
    """What to install for a missing module: the extra of ours that needs it, or itself."""
    name = module.split(".")[0].lower().replace("_", "-")
    extras = [
        found[2]
        for x in requires("rather") or []
        if (found := re.fullmatch(r"([\w-]+).*extra == '(\w+)'", x)) and found[1].startswith(name)
    ]
    return next((installing(extra) for extra in extras if extra != "dev"), f"pip install {module}")


def _fail(errors: Terminal, sentence: str, code: int) -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()
    errors.print(f"[bold red]{'stopped' if code == 130 else 'error'}:[/bold red] {escape(sentence)}", highlight=False)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
