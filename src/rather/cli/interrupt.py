"""Ctrl-C before a command is at work, or while packages are imported: one line and an end, since there is nothing to tidy up."""

import os
import signal
import sys
from types import FrameType

working = False
"""Whether a command is at work, which says itself what a Ctrl-C left behind."""

KEPT = "what was finished is kept, and the same command goes on from there"


def install() -> None:
    """Take Ctrl-C from now on. Python would raise KeyboardInterrupt, which an import, or whoever calls back from C, may lose or print."""
    signal.signal(signal.SIGINT, _asked)
    known = sys.unraisablehook

    def lost(found: "sys.UnraisableHookArgs") -> None:
        if isinstance(found.exc_value, KeyboardInterrupt):
            leave()
        known(found)

    sys.unraisablehook = lost


def _asked(_: int, frame: FrameType | None) -> None:
    while working and frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave()
        frame = frame.f_back
    if not working:
        leave()
    raise KeyboardInterrupt


def leave() -> None:
    """End at once, without waiting for threads."""
    shown = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides the cursor
    os.write(2, f"{shown}stopped: {KEPT}\n".encode())
    os._exit(130)
