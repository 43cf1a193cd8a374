"""Directions spread over Ray workers. Each keeps the whole policy and updates it itself, by the seeds and weights of the directions.

No weights travel: a step costs a few bytes a direction on the way out, and what was sampled on the way back (docs/guides/many-machines.md).
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayActorError

from rather.core import Perturbation, Task, Trajectory
from rather.errors import ConfigError, TrainingError

DEATHS = 8
"""Workers that may die while one batch is sampled."""


class Pool:
    """`workers` processes on the Ray cluster at `address`, or on one of this machine's own.

    Each is `make(*arguments)`: something whose `sample(first, log, name, tasks, seed, perturbations)` moves by the events of `log`, the
    `first` of which has that number, before it samples. What comes out does not depend on the number of workers: all rows about one
    direction go to one of them. The share of a worker that dies is done again by another.

    Raises:
        ConfigError: no cluster can be reached at `address`.
    """

    def __init__(self, make: Callable[..., Any], arguments: Sequence[Any], workers: int, address: str = "") -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            _knock(address)
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True, **local)
        except (OSError, RuntimeError, ValueError) as e:
            why, remedy = str(e).strip().splitlines()[0], "begin one with `ray start --head`, or leave it empty"
            raise ConfigError(f"no Ray cluster answers at scale.address = {address!r} ({why}); {remedy}") from None
        self.kind = ray.remote(num_cpus=1)(make)
        self.arguments, self.known = arguments, dict[Any, int]()
        for _ in range(workers):
            self._hire()
        self.workers = workers

    def sample(
        self, log: Sequence[Any], name: str, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None]
    ) -> list[Trajectory]:
        """One trajectory a task, by the policy called `name` that the events of `log` have made.

        Raises:
            TrainingError: a worker could not begin, or one after the other died.
        """
        rows = [list(same) for _, same in groupby(range(len(tasks)), lambda i: getattr(perturbations[i], "seed", None))]
        shares = [[i for group in rows[k :: self.workers] for i in group] for k in range(min(self.workers, len(rows)))]
        found: dict[int, Trajectory] = {}
        going: dict[Any, tuple[Any, list[int]]] = {}
        free, deaths = list(self.known), 0
        while shares or going:
            while shares and free:
                worker, share = free.pop(), shares.pop()
                first = self.known[worker]
                of = [[x[i] for i in share] for x in (tasks, perturbations)]
                going[worker.sample.remote(first, list(log[first:]), name, of[0], seed, of[1])] = worker, share
                self.known[worker] = len(log)
            (ready,), _ = ray.wait(list(going), num_returns=1)
            worker, share = going.pop(ready)
            try:
                found |= zip(share, ray.get(ready), strict=True)
            except RayActorError as e:
                deaths += 1
                if e.actor_init_failed:
                    raise TrainingError(f"a worker could not begin: {str(e).strip().splitlines()[-1]}") from None
                if deaths > DEATHS:
                    raise TrainingError(f"{deaths} workers died while they sampled; the last one said: {e}") from None
                del self.known[worker]
                shares.append(share)
                worker = self._hire()
            free.append(worker)
        return [found[i] for i in range(len(tasks))]

    def close(self) -> None:
        """Send the workers home."""
        ray.shutdown()

    def _hire(self) -> Any:
        worker = self.kind.remote(*self.arguments)
        self.known[worker] = 0
        return worker


def _knock(address: str) -> None:
    """Fail at once where nobody listens; Ray would try for minutes."""
    found = urlsplit(address if "://" in address else f"ray://{address}")
    if found.port:
        socket.create_connection((found.hostname or "", found.port), timeout=5).close()
