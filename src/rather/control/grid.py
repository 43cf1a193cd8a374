"""A small stochastic grid whose best policy is known exactly, for checking learners against the truth.

Shape letters: S cells, A actions, H horizon.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Discrete

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Up, right, down, left, as (row, column)."""


class GridWorld(gymnasium.Env):
    """`horizon` moves on a grid of `size` x `size` cells; a move slips sideways with probability `slip`, half to each side.

    The reward of a step is that of the cell that it ends on. `rewards` (size, size): by default 1 in the last cell, -1 on the way
    across, 0 elsewhere. The agent begins in cell `start`, the first by default, and walls hold it back. Observations are cells,
    row by row; with `timed` they are step * size^2 + cell, since the best move depends on the time that is left.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self,
        size: int = 5,
        horizon: int = 12,
        slip: float = 0.1,
        rewards: npt.ArrayLike | None = None,
        timed: bool = False,
        render_mode: str | None = None,
        start: int = 0,
    ) -> None:
        self.start = start
        self.size, self.horizon, self.slip, self.timed, self.render_mode = size, horizon, slip, timed, render_mode
        self.rewards = _pits(size) if rewards is None else np.asarray(rewards, float)
        if self.rewards.shape != (size, size):
            raise ValueError(f"rewards have shape {self.rewards.shape}; give one number a cell, ({size}, {size})")
        self.observation_space = Discrete(size * size * (horizon if timed else 1))
        self.action_space = Discrete(len(MOVES))
        self.transitions = self._transitions()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Back to where it begins."""
        super().reset(seed=seed, options=options)
        self.cell, self.time = self.start, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Move once."""
        self.cell = int(self.np_random.choice(self.size**2, p=self.transitions[self.cell, int(action)]))
        self.time += 1
        return self._observe(), float(self.rewards.flat[self.cell]), False, self.time >= self.horizon, {}

    def render(self) -> np.ndarray:
        """The grid and the agent: (256, 256, 3) bytes."""
        from rather.control.drawing import grid

        return grid(self.rewards, self.cell)

    def values(self, policy: np.ndarray | None = None) -> np.ndarray:
        """Expected rewards still to come (H + 1, S), by backward induction, exact: of the best policy, or of `policy` (H, S, A)."""
        found = np.zeros((self.horizon + 1, self.size**2))
        for time in reversed(range(self.horizon)):
            of_moves = self.transitions @ (self.rewards.ravel() + found[time + 1])
            found[time] = of_moves.max(-1) if policy is None else (policy[time] * of_moves).sum(-1)
        return found

    def best(self) -> np.ndarray:
        """The best policy (H, S, A), the first of equally good moves."""
        after = self.values()[1:, None, None, :] + self.rewards.ravel()
        return np.eye(len(MOVES))[(self.transitions * after).sum(-1).argmax(-1)]

    def _observe(self) -> int:
        return self.cell + (min(self.time, self.horizon - 1) * self.size**2 if self.timed else 0)

    def _transitions(self) -> np.ndarray:
        """P(next cell), (S, A, S)."""
        found = np.zeros((self.size**2, len(MOVES), self.size**2))
        for cell in range(self.size**2):
            for action in range(len(MOVES)):
                for turn, chance in ((0, 1 - self.slip), (1, self.slip / 2), (3, self.slip / 2)):
                    place = np.array(divmod(cell, self.size)) + MOVES[(action + turn) % len(MOVES)]
                    row, column = place.clip(0, self.size - 1)
                    found[cell, action, row * self.size + column] += chance
        return found


def _pits(size: int) -> np.ndarray:
    """1 in the last cell, and a row of pits with a gap at its end across the way."""
    rewards = np.zeros((size, size))
    rewards[size // 2, : size - 1] = -1
    rewards[-1, -1] = 1
    return rewards
