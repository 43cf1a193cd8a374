import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rather.control.clips import animation, film, replay, sheet
from rather.control.environments import environment, inputs
from rather.control.models import ControlPolicy
from rather.control.rollout import ControlSampler, fragments
from rather.core import Task, Trajectory
from rather.errors import DataError


def episode(name: str) -> Trajectory:
    env = environment(name)
    policy = ControlPolicy(inputs(env), env.action_space)
    return ControlSampler(policy, lambda: environment(name)).sample([Task(name, "5")], 0)[0]


def drawn(name: str):
    return lambda: environment(name, kwargs={"render_mode": "rgb_array"})


@pytest.mark.parametrize("name", ["rather/CheckpointCar-v0", "rather/GridWorld-v0"])
def test_a_replay_shows_the_attempt(name: str) -> None:
    found = episode(name)
    frames = replay(found, drawn(name), every=3)
    assert frames.shape == (len(found.actions) // 3 + 1, 256, 256, 3)
    assert (frames[0] != frames[-1]).any()
    moving = Image.open(io.BytesIO(animation(frames, 50)))
    assert (moving.format, moving.is_animated) == ("WEBP", True)
    flat = Image.open(io.BytesIO(sheet(frames, columns=7)))
    assert flat.size == (7 * 256, -(-len(frames) // 7) * 256)
    tile = np.asarray(flat.convert("RGB"))[256:512, :256].astype(int) if len(frames) > 7 else None
    if tile is not None:
        assert np.abs(tile - frames[7]).mean() < 6, "the eighth frame begins the second row"
    assert len(sheet(frames)) < 400_000


def test_a_replay_that_differs_from_the_record_is_refused() -> None:
    found = episode("rather/CheckpointCar-v0")
    other = replace(found, actions=np.where(np.arange(200) == 20, (found.actions + 3) % 9, found.actions))
    with pytest.raises(DataError, match=r"differs from the record at step 2\d of seed 5"):
        replay(other, drawn("rather/CheckpointCar-v0"))
    with pytest.raises(DataError, match="differs from the record at step 0"):
        replay(replace(found, task=Task("rather/CheckpointCar-v0", "6")), drawn("rather/CheckpointCar-v0"))
    with pytest.raises(DataError, match="draws no pictures"):
        replay(found, lambda: environment("rather/CheckpointCar-v0"))


def test_a_fragment_is_played_again_from_where_it_begins() -> None:
    whole = episode("rather/CheckpointCar-v0")
    (piece,) = fragments([whole], 30, 1, seed=3)
    assert piece.before is not None
    start = len(piece.before)
    assert start > 0
    shown = replay(piece, drawn("rather/CheckpointCar-v0"))
    np.testing.assert_array_equal(shown, replay(whole, drawn("rather/CheckpointCar-v0"))[start : start + 31])
    webp, facts = film(piece, drawn("rather/CheckpointCar-v0"))
    assert facts == {"frames": 31, "columns": 10, "width": 256, "height": 256, "milliseconds": 100}
    assert Image.open(io.BytesIO(webp)).size == (2560, 4 * 256)
    with pytest.raises(DataError, match="differs from the record at step 0"):
        replay(replace(piece, before=piece.before[:-1]), drawn("rather/CheckpointCar-v0"))
