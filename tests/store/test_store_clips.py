"""Clips in the store."""

from dataclasses import replace

import numpy as np

from rather.core import Comparison, Task, Trajectory
from rather.store import Store
from rather.store.clips import Clip, facts, keep, missing, picture, problems, undrawable

CLIP = Clip(b"RIFF", frames=2, columns=2, width=4, height=3, milliseconds=50)


def drive(seed: int) -> Trajectory:
    steps = {"observations": np.zeros((3, 2), np.float32), "actions": np.zeros(2, np.int64), "rewards": np.ones(2, np.float32)}
    return Trajectory(Task("Car-v0", str(seed)), "p@0", terminated=False, **steps)


def test_a_question_waits_for_its_clips_and_one_that_cannot_be_drawn_is_never_shown(where: str) -> None:
    store = Store(where)
    store.add_judge("ann", "person")
    one, two = store.ask("r", [Comparison((drive(i),), (drive(i + 1),), key=str(i)) for i in (0, 2)])
    assert store.lease("r", "ann") is None
    assert undrawable(store, "r") == set(), "they may still be drawn"
    left, right, broken, _ = [number for number, _ in missing(store, "r")]
    keep(store, left, CLIP)
    keep(store, broken, None, "the replay differs")
    assert store.lease("r", "ann") is None, "one side is not enough"
    keep(store, right, CLIP)
    leased = store.lease("r", "ann")
    assert leased is not None
    assert leased.id == one
    assert store.lease("r", "ann", held=[one]) is None, "the other one has a side that cannot be drawn"
    assert problems(store, "r") == ["the replay differs"]
    assert undrawable(store, "r") == {two}
    assert undrawable(store, "another run") == set()
    assert facts(store, [left])[left] == {"frames": 2, "columns": 2, "width": 4, "height": 3, "milliseconds": 50}
    assert picture(store, left, "r") == b"RIFF"
    assert picture(store, left, "another run") is None
    assert len(missing(store, "r")) == 1
    keep(store, left, None, "no display")
    keep(store, left, replace(CLIP, webp=b"another"))
    assert picture(store, left, "r") == b"RIFF", "the first one counts"
    keep(store, broken, CLIP)
    assert undrawable(store, "r") == set(), "somebody else could draw it"
    assert problems(store, "r") == []
    store.close()
