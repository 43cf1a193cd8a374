"""The owner's figures, counted in the background: who looks at them does not wait for long, and nobody waits for whoever looks."""

import threading
import time
from typing import Any

import scipy.special  # noqa: F401  here, where nobody waits: the first figures need it

from rather.store import Store
from rather.store.overview import Figures, figures
from rather.store.people import erasures

PATIENCE_S = 0.5
"""Who asks waits for new figures so long; then they get the last ones."""
QUICK_S, SHARE, OLD_S = 0.5, 10, 60.0
"""Figures that took longer are counted anew after that many times as long, and when they are so old even if no answer has come in."""


class Watch:
    """Figures of one run; all that look at them share them."""

    def __init__(self, store: Store, run: str) -> None:
        self.store, self.run = store, run
        self.lock = threading.Lock()
        self.state: Any = None
        self.last: Figures | None = None
        self.ended = 0.0
        self.counting: threading.Event | None = None

    def figures(self) -> Figures | None:
        """New ones if they come quickly, or else the last ones; None where there are none since somebody was erased, here or elsewhere."""
        state = (erasures(self.store), self.store.latest(), self.store.asking(self.run))
        with self.lock:
            if self.counting is None and self._due(state):
                self.counting = threading.Event()
                # A daemon, so that a server that is to stop does not wait for it.
                threading.Thread(target=self._count, args=(self.counting, state), daemon=True).start()
            counting = self.counting
        if counting is not None:
            counting.wait(PATIENCE_S)
        with self.lock:
            return self.last if self._knows_of(state) else None

    def _knows_of(self, state: Any) -> bool:
        """Whether the last figures were counted after all erasures of that state."""
        return self.last is not None and self.state[0] >= state[0]

    def _due(self, state: Any) -> bool:
        if self.last is None or not self._knows_of(state):
            return True
        rest = SHARE * self.last.took_s if self.last.took_s > QUICK_S else 0.0
        return time.monotonic() - self.ended > max(rest, OLD_S if state == self.state else 0.0)

    def _count(self, counted: threading.Event, state: Any) -> None:
        try:
            found = figures(self.store, self.run)
            with self.lock:
                self.last, self.state, self.ended = found, state, time.monotonic()
        finally:
            self.counting = None
            counted.set()
