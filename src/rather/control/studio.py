"""Clips, drawn in a process of their own: for the labelling page while the run goes on, for the page of `rather hack` and `rather play`.

`python -m rather.control.studio` reads one line of JSON with the settings of `Studio` from its input. A renderer may take its whole process
with it, so that it works in another process yet, and what became of that is kept beside the clip that it was drawing.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from rather.control import video
from rather.control.clips import animation, film, replay
from rather.control.environments import Env, environment
from rather.core import Trajectory
from rather.errors import DataError, RatherError
from rather.store import Store
from rather.store.clips import Clip, keep, missing, progress

HUNG_S = 300.0
"""A clip that takes longer is given up."""
HOPELESS = 2
"""Where so many clips cannot be drawn before the first one could, the others are given up, too, for the same reason."""


@dataclass(frozen=True)
class Studio:
    """Where clips go, and of what they are."""

    where: str
    run: str
    env: str
    horizon: int = 0
    pixels: bool = False
    wrappers: Sequence[str] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    def film(self, trajectory: Trajectory) -> tuple[bytes, dict[str, int]]:
        """See `clips.film`."""
        return film(trajectory, self._drawn)

    def animate(self, trajectory: Trajectory) -> bytes:
        """Every other frame of an episode or fragment as an endless WebP animation."""
        return animation(replay(trajectory, self._drawn, every=2))

    def video(self, trajectories: Sequence[Trajectory], file: Path) -> int:
        """See `video.write`."""
        return video.write(trajectories, self._drawn, file)

    def try_drawing(self) -> bool:
        """Draw one picture, and say that it can be done."""
        env = self._drawn()
        try:
            env.reset(seed=0)
            env.render()
        finally:
            env.close()
        return True

    @property
    def windowed(self) -> bool:
        """Whether the environment can show itself in a window."""
        env = self.make()
        env.close()
        return "human" in (env.metadata.get("render_modes") or ())

    def make(self, render_mode: str | None = None) -> Env:
        """The environment, in one of Gymnasium's render modes."""
        kwargs = self.kwargs | ({"render_mode": render_mode} if render_mode else {})
        return environment(self.env, self.horizon or None, pixels=self.pixels, wrappers=self.wrappers, kwargs=kwargs)

    def _drawn(self) -> Env:
        return self.make("rgb_array")


def draw(
    studio: Studio, film: Callable[[Trajectory], tuple[bytes, dict[str, int]]], advance: Callable[[int], None] = lambda n: None
) -> int:
    """Draw all clips that the run's questions want; returns how many. Of one that cannot be drawn the reason is kept."""
    store, drawn, failed = Store(studio.where), 0, 0
    try:
        before = progress(store, studio.run).drawn
        while found := missing(store, studio.run):
            for number, trajectory in found:
                try:
                    webp, facts = film(trajectory)
                    keep(store, number, Clip(webp, **facts))
                    drawn += 1
                except RatherError as e:
                    keep(store, number, None, str(e))
                    failed += 1
                    if not before + drawn and failed == HOPELESS:  # nobody should wait for them, either
                        for other, _ in missing(store, studio.run):
                            keep(store, other, None, str(e))
                        return 0
                advance(1)
    finally:
        store.close()
    return drawn


def begin(studio: Studio) -> subprocess.Popen[bytes]:
    """Start drawing in the background; the process ends when there is nothing left to draw, or nothing can be drawn."""
    process = subprocess.Popen([sys.executable, "-m", "rather.control.studio"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(studio)).encode())  # not as arguments: `where` may hold a password
    process.stdin.close()
    return process


class Painter:
    """A process that draws; started when it is first needed, and again after it died."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.process: SpawnProcess | None = None
        self.pipe: Connection | None = None

    def film(self, trajectory: Trajectory) -> tuple[bytes, dict[str, int]]:
        """What `Studio.film` says.

        Raises:
            DataError: it cannot be drawn, or the process died of it or did not come to an end.
        """
        return self._draw("film", trajectory)

    def animate(self, trajectory: Trajectory) -> bytes:
        """What `Studio.animate` says.

        Raises:
            DataError: see `film`.
        """
        return self._draw("animate", trajectory)

    def try_drawing(self) -> bool:
        """What `Studio.try_drawing` says.

        Raises:
            DataError: see `film`.
        """
        return self._draw("try_drawing")

    def video(self, trajectories: Sequence[Trajectory], file: Path) -> int:
        """What `Studio.video` says.

        Raises:
            DataError: see `film`.
        """
        return self._draw("video", trajectories, file, patience_s=HUNG_S * len(trajectories))

    def _draw(self, how: str, *of: object, patience_s: float = HUNG_S) -> Any:
        if self.process is None or self.pipe is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_paint, args=(theirs, self.studio), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send((how, of))
        try:
            found = self.pipe.recv() if self.pipe.poll(patience_s) else None
        except EOFError:
            self.process.join()
            died = self.process.exitcode or 0
            self.close()
            end = f"by signal {signal.Signals(-died).name}" if died < 0 else f"with exit code {died}"
            raise DataError(f"the process that draws {self.studio.env} died {end}; {remedy()}") from None
        if found is None:
            self.close()
            raise DataError(f"{self.studio.env} has not drawn a clip within {patience_s:g} s; {remedy()}")
        if isinstance(found, str):
            raise DataError(found)
        return found

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = self.pipe = None


def _paint(pipe: Connection, studio: Studio) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    while True:
        try:
            how, of = pipe.recv()
        except EOFError:
            return
        try:
            found = getattr(studio, how)(*of)
        except RatherError as e:
            found = str(e)
        except Exception as e:  # noqa: BLE001, a stranger's renderer may raise anything
            said = " ".join(str(e).split())[:300]
            found = f"{studio.env} cannot be drawn: {type(e).__name__}{': ' * bool(said)}{said}; {remedy()}"
        pipe.send(found)


def remedy() -> str:
    """What helps where there is no display, which is what most often keeps a renderer from working."""
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return f"MUJOCO_GL is {chosen!r}; egl, osmesa and glfw are what MuJoCo can draw with"
    return "on a machine without a display set MUJOCO_GL=egl for MuJoCo"


def main() -> None:
    """Draw what the settings say that stand on the input."""
    studio = Studio(**json.loads(sys.stdin.read()))
    painter = Painter(studio)
    try:
        draw(studio, painter.film)
    except RatherError as e:
        sys.exit(f"clips are not drawn: {e}")
    except KeyboardInterrupt:
        pass
    finally:
        painter.close()


if __name__ == "__main__":
    main()
