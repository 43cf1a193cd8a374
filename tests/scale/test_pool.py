"""A local Ray cluster of several processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from rather.core import Perturbation, Task, Trajectory
from rather.errors import ConfigError
from rather.scale.pool import Pool
from test_nudge import CONTROL, measured, numbers


def echo() -> type:
    """A class that workers get by value: they cannot import this file."""

    class Echo:
        """A worker that says who it is and what it was told; it kills itself at task "die", once."""

        def __init__(self, folder: str) -> None:
            self.folder, self.heard = Path(folder), list[str]()

        def sample(self, first: int, log: list[str], name: str, tasks: list[Task], seed: int, perturbations: list) -> list[Trajectory]:
            self.heard += log[len(self.heard) - first :]
            mark = self.folder / "died"
            if any(t.key == "die" for t in tasks) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            told = f"{name} {''.join(self.heard)} {seed}"
            return [
                Trajectory(t, told, text=str(os.getpid()), actions=np.array([p.seed if p else -1]))
                for t, p in zip(tasks, perturbations, strict=True)
            ]

    return Echo


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    found = Pool(echo(), (str(tmp_path),), 3)
    yield found
    found.close()


def test_rows_come_back_in_order_and_the_share_of_a_worker_that_dies_is_done_again(pool: Pool, tmp_path: Path) -> None:
    asked = [(Task("t", f"{k}/{i}"), Perturbation(k, sign)) for k in range(5) for sign in (1.0, -1.0) for i in range(2)]
    tasks, perturbations = [t for t, _ in asked], [p for _, p in asked]
    first = pool.sample(["a", "b"], "p@0", tasks, 7, perturbations)
    assert [t.task for t in first] == tasks
    assert [int(t.actions[0]) for t in first] == [p.seed for p in perturbations]
    assert {t.policy for t in first} == {"p@0 ab 7"}
    by_direction = {k: {t.text for t, p in zip(first, perturbations, strict=True) if p.seed == k} for k in range(5)}
    assert all(len(who) == 1 for who in by_direction.values()), "twins and their tasks stay together"
    assert len(set.union(*by_direction.values())) == 3, "everybody has work"
    tasks[9] = Task("t", "die")
    again = pool.sample(["a", "b", "c"], "p@1", tasks, 8, perturbations)
    assert (tmp_path / "died").exists()
    assert [t.task for t in again] == tasks
    assert {t.policy for t in again} == {"p@1 abc 8"}, "a new worker hears the whole story"
    assert {t.text for t in again} - {t.text for t in first}, "somebody new has taken over"


@pytest.mark.slow
def test_the_same_numbers_with_any_number_of_workers_one_of_which_is_killed(tmp_path: Path, rather) -> None:
    found, rows = [], []
    for workers in (0, 1, 2, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        (folder / "run.toml").write_text(CONTROL)
        command = ["train", str(folder / "run.toml"), f"run.folder={folder / 'runs'}", f"scale.workers={workers}"]
        if workers == 2:
            process = subprocess.Popen([sys.executable, "-m", "rather", *command], stdout=subprocess.DEVNULL)
            while process.poll() is None and not (victims := _workers(process.pid)):
                time.sleep(0.05)
            time.sleep(0.3)
            victims[0].kill()
            assert process.wait() == 0
        else:
            assert rather(*command).returncode == 0
        found.append(numbers(folder, "grid"))
        rows.append(measured(folder, "grid"))
    assert all(f == found[0] for f in found)
    assert all(r == rows[0] for r in rows)
    # and a run that begins with two workers goes on with one
    folder = tmp_path / "1"
    shutil.rmtree(folder / "runs")
    command = ["train", str(folder / "run.toml"), f"run.folder={folder / 'runs'}"]
    rather(*command, "scale.workers=2", "zeroth.answers=30")
    rather(*command, "scale.workers=1")
    assert numbers(folder, "grid") == found[0]


def _workers(parent: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(parent).children(recursive=True) if "Replica" in " ".join(p.cmdline())]


def test_a_cluster_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at scale.address = '127.0.0.1:1'"):
        Pool(echo(), ("x",), 1, "127.0.0.1:1")


def test_first_order_has_no_directions_to_spread(tmp_path: Path, rather) -> None:
    (tmp_path / "run.toml").write_text(CONTROL)
    done = rather("train", "run.toml", "scale.workers=2", "zeroth.estimator=dpo", code=2)
    assert "first-order learning has none" in done.stderr
