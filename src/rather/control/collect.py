"""Policies at work without a pause: a segment of every environment's time for each update, as PPO for control is fed.

Shape letters: N environments, T steps of a segment, I inputs, B pieces: a segment is cut where an episode ends.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from rather.control.environments import Eye, allowed
from rather.control.models import ControlPolicy
from rather.control.wrappers import gold_of
from rather.core import Batch
from rather.errors import DataError
from rather.learners.spread import spread


class RolloutSegments:
    """`rows` environments that go on from where the last update left them, `steps` steps each.

    `collect(number)` depends on `seed`, `number` and what came before alone. With `gold`, a name in an environment's info, the last value
    of each episode is measured beside its return. The policy's normalizer learns what was seen at `sync`, so that until then what was
    collected has the log-probabilities that it had.
    """

    def __init__(self, policy: ControlPolicy, make: Callable[[], gymnasium.Env], rows: int, steps: int, seed: int, gold: str = "") -> None:
        self.policy, self.rows, self.steps, self.seed, self.gold = policy, rows, steps, seed, gold
        self.envs = [make() for _ in range(rows)]
        self.eye = Eye(self.envs[0].observation_space)
        self.episodes = [-1] * rows
        self.taken: list[list[Any]] = [[] for _ in range(rows)]
        """What was done since the last reset: with the seed of that reset it brings an environment back to where it is."""
        self.returns = np.zeros(rows)
        self.now = np.stack([self._reset(i) for i in range(rows)])
        self.ended: list[tuple[float, int, float]] = []
        self.seen: list[np.ndarray] = []

    def collect(self, number: int) -> Batch:
        """A segment of `steps` steps in every environment, cut into pieces where episodes end: (B, T).

        Raises:
            DataError: an observation or a reward is not a finite number.
        """
        n, t = self.rows, self.steps
        policy, space = self.policy, self.envs[0].action_space
        chance = np.random.default_rng([self.seed, number])
        noise = policy.noise(chance, t, n)
        seen = np.zeros((t + 1, n, self.now.shape[1]), self.now.dtype)
        logprobs, rewards = np.zeros((t, n), np.float32), np.zeros((t, n), np.float32)
        act = policy.numpy_policy()
        actions, cuts = [], list[tuple[int, int, bool, np.ndarray]]()
        self.ended.clear()
        for step in range(t):
            seen[step] = self.now
            chosen, logprobs[step] = act(self.now, noise[step])
            actions.append(chosen)
            for i, env in enumerate(self.envs):
                observation, reward, terminated, truncated, info = env.step(allowed(space, chosen[i]))
                self.taken[i].append(chosen[i])
                self.returns[i] += reward
                rewards[step, i] = reward
                self.now[i] = self.eye(observation)
                if terminated or truncated:
                    cuts.append((i, step + 1, terminated, self.now[i].copy()))
                    self.ended.append((self.returns[i], len(self.taken[i]), gold_of(info, self.gold)))
                    self.now[i] = self._reset(i)
        seen[t] = self.now
        if not (np.isfinite(seen).all() and np.isfinite(rewards).all()):
            raise DataError(
                f"{self.envs[0]} returned an observation or a reward that is no finite number; observations and rewards must be finite"
            )
        self.seen.append(seen[:-1].reshape(-1, seen.shape[2]))
        return self._pieces(seen, np.stack(actions), logprobs, rewards, cuts)

    def sync(self) -> None:
        """Let the normalizer know what was seen; the weights are shared."""
        if self.policy.normalizer is not None:
            for seen in self.seen:
                self.policy.normalizer.update(torch.from_numpy(seen))
        self.seen.clear()

    def metrics(self, advantages: torch.Tensor, scores: torch.Tensor) -> dict[str, float]:  # noqa: ARG002, of pieces of episodes
        """Mean return and length of the episodes that ended in the last segment, and their gold reward; pieces have none of their own."""
        if not self.ended:
            return {}
        returns, lengths, gold = zip(*self.ended, strict=True)
        each = range(len(returns))  # of a single one no error is known
        found = spread("return", returns, each) | {"trajectory_length": float(np.mean(lengths))}
        return found | (spread("gold", gold, each) if self.gold else {})

    def state_dict(self) -> dict[str, Any]:
        """Which episode each environment is in, and what was done in it."""
        return {
            "attempts": list(self.episodes),
            "taken": [torch.from_numpy(np.array(t)) for t in self.taken],
            "now": torch.from_numpy(self.now),
            "returns": torch.from_numpy(self.returns.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring every environment back to where it was, by doing again what was done.

        Raises:
            DataError: an environment does not come out where it was: it is not decided by its seed and actions.
        """
        space = self.envs[0].action_space
        for i, env in enumerate(self.envs):
            self.episodes[i] = state["attempts"][i] - 1
            now = self._reset(i)
            for action in state["taken"][i].numpy():
                observation, reward, *_ = env.step(allowed(space, action))
                self.taken[i].append(action)
                self.returns[i] += float(reward)
                now = self.eye(observation)
            if not np.array_equal(now, state["now"][i].numpy()):
                raise DataError(f"{env} cannot be resumed: the same seed and actions lead elsewhere than before")
            if "returns" in state and self.returns[i] != float(state["returns"][i]):  # which older checkpoints do not have
                raise DataError(f"{env} cannot be resumed: the same seed and actions bring other rewards than before")
            self.now[i] = now

    def _reset(self, i: int) -> np.ndarray:
        self.episodes[i] += 1
        self.taken[i], self.returns[i] = [], 0.0
        seed = np.random.SeedSequence([self.seed, i, self.episodes[i]]).generate_state(1)[0]
        observation, _ = self.envs[i].reset(seed=int(seed))
        return self.eye(observation)

    def _pieces(self, seen: np.ndarray, actions: np.ndarray, logprobs: np.ndarray, rewards: np.ndarray, cuts: list[Any]) -> Batch:
        """Every environment's segment from cut to cut, padded on the right."""
        pieces = []
        for i in range(self.rows):
            start = 0
            for _, stop, terminated, last in [cut for cut in cuts if cut[0] == i]:
                pieces.append((i, start, stop, terminated, last))
                start = stop
            if start < self.steps:
                pieces.append((i, start, self.steps, False, seen[self.steps, i]))
        longest = max(stop - start for _, start, stop, _, _ in pieces)
        shape = (len(pieces), longest)
        into: dict[str, np.ndarray] = {name: np.zeros(shape, np.float32) for name in ("mask", "logprobs", "rewards")}
        into["observations"] = np.zeros((len(pieces), longest + 1, seen.shape[2]), seen.dtype)
        into["actions"] = np.zeros((*shape, *actions.shape[2:]), actions.dtype)
        for row, (i, start, stop, _, last) in enumerate(pieces):
            length = stop - start
            into["mask"][row, :length] = 1
            into["observations"][row, :length] = seen[start:stop, i]
            into["observations"][row, length:] = last
            for name, values in (("actions", actions), ("logprobs", logprobs), ("rewards", rewards)):
                into[name][row, :length] = values[start:stop, i]
        tensors = {name: torch.from_numpy(values) for name, values in into.items()}
        ends = torch.tensor([terminated for *_, terminated, _ in pieces])
        return Batch(**tensors, terminated=ends, groups=torch.arange(len(pieces)))
