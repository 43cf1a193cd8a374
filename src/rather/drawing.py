"""Clips for the labelling page, drawn in a process of their own while the run goes on.

`python -m rather.drawing` reads one line of JSON with the arguments of `draw` from its input.
"""

import json
import subprocess
import sys
from collections.abc import Callable

from rather.control.clips import film
from rather.control.environments import environment
from rather.errors import DataError, RatherError
from rather.store import Store
from rather.store.clips import Clip, keep, missing


def draw(where: str, run: str, env: str, horizon: int, advance: Callable[[int], None] = lambda n: None) -> int:
    """Draw all clips that the run's questions want; returns how many. One that cannot be drawn is kept as a problem, and never shown."""
    store, done = Store(where), 0
    try:
        while found := missing(store, run):
            for number, trajectory in found:
                try:
                    webp, facts = film(trajectory, lambda: environment(env, horizon or None, render_mode="rgb_array"))
                    keep(store, number, Clip(webp, **facts))
                except DataError as e:
                    keep(store, number, None, str(e))
                done += 1
                advance(1)
    finally:
        store.close()
    return done


def begin(where: str, run: str, env: str, horizon: int) -> subprocess.Popen[bytes]:
    """Start drawing in the background; the process ends when there is nothing left to draw."""
    process = subprocess.Popen([sys.executable, "-m", "rather.drawing"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps([where, run, env, horizon]).encode())  # not as arguments: `where` may hold a password
    process.stdin.close()
    return process


if __name__ == "__main__":
    try:
        draw(*json.loads(sys.stdin.read()))
    except RatherError as e:
        sys.exit(f"clips are not drawn: {e}")
    except KeyboardInterrupt:
        pass
