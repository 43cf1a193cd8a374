"""Clips of a run about control, drawn in the background while people answer."""

import subprocess
import time

from rich.console import Console

from rather.config.schema import Config
from rather.control import studio
from rather.control.studio import Studio
from rather.errors import DataError
from rather.store import Store
from rather.store.clips import missing, progress, retry


class Clips:
    """Draws the clips of a run's questions, in a process of its own."""

    def __init__(self, config: Config, console: Console) -> None:
        self.config, self.console = config, console
        self.drawing: subprocess.Popen[bytes] | None = None

    def studio(self, where: str) -> Studio:
        """What draws clips for the store `where`."""
        c = self.config
        own = c.control
        return Studio(where, c.run.name, own.env, own.horizon, own.takes_pictures, own.wrappers, own.kwargs)

    def draw(self, store: Store) -> None:
        """Have the clips that people need drawn in the background, if any are missing."""
        name = self.config.run.name
        if self.drawing is None or self.drawing.poll() is not None:
            retry(store, name)
            if missing(store, name):
                self.drawing = studio.begin(self.studio(store.where))

    def show(self, store: Store) -> None:
        """Have clips drawn, if people are to see them, and wait for the first one.

        Raises:
            DataError: none can be drawn.
        """
        if self.config.judge.kind != "people":
            return
        self.draw(store)
        begun = progress(store, self.config.run.name)
        with self.console.status("drawing the first clip"):
            while self.drawing is not None and self.drawing.poll() is None:
                now = progress(store, self.config.run.name)
                if now.drawn > begun.drawn:
                    break
                time.sleep(0.1)
        now = progress(store, self.config.run.name)
        if now.failed and not now.drawn:
            raise DataError(f"people would see nothing, so that no question is given out: {now.problem}")
        if now.failed:
            self.console.print(f"{now}.", markup=False)
        elif self.drawing is not None and self.drawing.poll():
            raise DataError(f"the process that draws clips ended with exit code {self.drawing.poll()} before the first one was drawn")
